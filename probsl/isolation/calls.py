"""One door to everything process-wide: Pyro's handlers and store, torch's flags."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
import traceback
import warnings
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import get_ident
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from pyro import settings
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch.distributions import dirichlet

from probsl.isolation import pyro_state, torch_state, validation
from probsl.isolation.pyro_state import PyroState
from probsl.noise import modes as modes_of_noise
from probsl.noise.vmapped import Forked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")

# Torch's default dtype and Pyro's flags belong to the process, so two fits in two
# threads must take turns; re-entrant, for a fit inside a callback.
_LOCK = threading.RLock()
# The blocks that are open, the outermost first.
_OPEN: list[Snapshot] = []

_SETTINGS = (
    "module_local_params",
    "validate_distributions_pyro",
    "validate_infer",
    "validate_poutine",
)
# Where Pyro keeps them: asking Pyro each time the program runs would take long.
_FLAG_OF = {
    name: (importlib.import_module(module), attribute)
    for name in _SETTINGS
    for module, attribute, _ in (settings._REGISTRY[name],)
}
# What else is replaced for a while, here or in torch, by its module and name.
_ATTRIBUTES: tuple[tuple[Any, str], ...] = tuple(
    pair
    for pair in (
        (dirichlet, "_Dirichlet"),
        (warnings, "filters"),
        (warnings, "showwarning"),
        (SubsampleMessenger, "_subsample"),
        (torch, "get_default_dtype"),
        *torch_state.NOTES,
    )
    if pair[1] in vars(pair[0])
)
_AUTOCAST = ("cpu", "cuda")
_get_default_dtype = torch.get_default_dtype
_set_default_dtype = getattr(torch._C, "_set_default_dtype", torch.set_default_dtype)


@contextmanager
def isolated(
    dtype: torch.dtype,
    seed: int = 0,
    *,
    device: torch.device | None = None,
    validate: bool = False,
) -> Iterator[None]:
    """Run a block in a Pyro and torch state of its own, and put back the old one.

    Inside there are no Pyro handlers or plates, Pyro's parameter store is empty,
    torch's default floating type is `dtype` and its default device `device`, the
    random states of the CPU and of that device start from `seed`, gradients are on,
    autocast, inference mode and modes of torch's functions are off, and
    distributions check their arguments only if `validate`. Afterwards, also after an
    error or Ctrl-C, everything is as it was.

    Other threads keep their own Pyro handlers, plates and parameters meanwhile. Torch's
    default dtype, its generators and the flags for validation are one for the process:
    other threads see those of the block.

    Parameters
    ----------
    dtype
        The default floating type inside the block.
    seed
        Seed of torch's global generators inside the block.
    device
        Where tensors are made inside the block; None leaves that as it is.
    validate
        Whether distributions check their parameters and values.

    Examples
    --------
    >>> import torch
    >>> from probsl.isolation.calls import isolated
    >>> with isolated(torch.float64):
    ...     print(torch.zeros(1).dtype)
    torch.float64
    >>> torch.zeros(1).dtype
    torch.float32
    """
    with _turn():
        before = Snapshot(device)
        # Ctrl-C may end the first of the two halfway, but not the second as well.
        try:
            try:
                before.leave(keep_device=device is None)
                _set_default_dtype(dtype)
                before.flags = _Flags(validate)
                _seed(seed, device)
                before.seed = seed
                _set_default_device(device)
                yield
            except BaseException as error:
                before.close(error)
                raise
            finally:
                before.restore()
        finally:
            before.restore()


def undisturbed(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """Let nothing that surrounds a call reach into a function, nor it change that.

    What `isolated` takes away it takes away as well, but for the default dtype, the
    random state and validation, which are the caller's.

    Parameters
    ----------
    function
        A function of the public interface.

    Examples
    --------
    >>> import pyro
    >>> from probsl.isolation.calls import undisturbed
    >>> @undisturbed
    ... def wrapped():
    ...     return pyro.poutine.runtime.am_i_wrapped()
    >>> with pyro.poutine.scale(scale=2.0):
    ...     wrapped()
    False
    """

    @functools.wraps(function)
    def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        with _turn():
            before = Snapshot()
            try:
                try:
                    before.leave()
                    return function(*args, **kwargs)
                except BaseException as error:
                    before.close(error)
                    raise
                finally:
                    before.restore()
            finally:
                before.restore()

    return call


class _Flags:
    """Sets the flags of a block."""

    def __init__(self, validate: bool) -> None:
        self._settings = {
            "module_local_params": True,
            "validate_distributions_pyro": validate,
            # Pyro's own checks refuse a bare `pyro.param` in a module.
            "validate_poutine": False,
            "validate_infer": False,
        }
        settings.set(**self._settings)
        validation.replace_default(validate)
        self._validation = validation.default()

    def hold(self) -> bool:
        """Set them again, and return whether that was needed."""
        if validation.default() is self._validation and all(
            getattr(*_FLAG_OF[name]) is value for name, value in self._settings.items()
        ):
            return False
        settings.set(**self._settings)
        validation.put_back(self._validation)
        return True


class Snapshot:
    """All that `isolated` replaces, as it is now.

    Made where Ctrl-C is caught too: it may have come between the two halves of
    anything, such as the entry of a plate, and `recover` mends that.

    Parameters
    ----------
    device
        Whose random state is noted besides that of the CPU.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.seed: int | None = None
        self.flags: _Flags | None = None
        self.generators: dict[torch.device, torch.Generator] = {}
        self._thread = get_ident()
        self._handled = sys.exception()
        self._open = len(_OPEN)
        self._pyro = pyro_state.in_use()
        self._pyro_held = None if self._pyro is None else _contents(self._pyro)
        self.dtype = _get_default_dtype()
        self._settings = {name: settings.get(name) for name in _SETTINGS}
        self._attributes = [vars(owner)[name] for owner, name in _ATTRIBUTES]
        self._validation = validation.default()
        self._random = torch.get_rng_state()
        self._device_random = [
            (index, torch.cuda.get_rng_state(index)) for index in _cuda_index(device)
        ]
        self._gradients = torch.is_grad_enabled()
        self._autocast = [torch.is_autocast_enabled(kind) for kind in _AUTOCAST]
        self._function_modes = torch_state.function_modes()
        self._dispatch_modes = torch_state.dispatch_modes()
        self._depth = torch_state.vectorized_depth()
        self._default_device = torch_state.default_device()
        self._inference: Any = None

    def leave(self, *, keep_device: bool = False) -> None:
        """Take away what surrounds the caller, until `restore`."""
        _OPEN.append(self)
        pyro_state.use(PyroState())
        torch.get_default_dtype = _default_dtype_of_thread
        if hasattr(torch._C, "_set_default_dtype"):
            torch._C._set_default_dtype = _set_default_dtype_of_thread
        if torch.is_inference_mode_enabled():
            self._inference = torch.inference_mode(False)
            self._inference.__enter__()
        torch.set_grad_enabled(True)
        for kind in _AUTOCAST:
            torch.set_autocast_enabled(kind, False)
        modes = [m for m in self._function_modes if torch_state.sets_device(m)]
        torch_state.set_function_modes(modes if keep_device else [])
        if self._dispatch_modes:
            for module, flag in torch_state.MODE_FLAGS:
                setattr(module, flag, False)
            torch_state.set_dispatch_modes([])
        if not keep_device:
            torch_state.set_default_device(None)

    def restore(self) -> None:
        """End the block that `leave` began; once it has ended, do nothing."""
        # A generator that Ctrl-C kept from ending does so when it is collected, and
        # by then an outer block has put back all of it.
        if self not in _OPEN:
            return
        self._put_back()
        if self._inference is not None:
            self._inference.__exit__(None, None, None)
        del _OPEN[_OPEN.index(self) :]

    def close(self, error: BaseException) -> None:
        """End, after Ctrl-C, what it has kept from ending.

        It may come where a generator is to be resumed, say at the end of a context.
        Such a generator ends when the frames that hold it are forgotten, and would then
        change what has been put back before.

        Raises
        ------
        KeyboardInterrupt
            If that is what another error has come of, such as one of a plate that was
            entered by half.
        """
        chain: list[BaseException] = []
        each: BaseException | None = error
        while each is not None and each is not self._handled and each not in chain:
            chain.append(each)
            each = each.__context__
        if not any(isinstance(raised, KeyboardInterrupt) for raised in chain):
            return
        for raised in chain:
            traceback.clear_frames(raised.__traceback__)
        if not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from None

    def recover(self, error: KeyboardInterrupt) -> None:
        """Go on after Ctrl-C as if nothing had begun since the snapshot was taken."""
        self.close(error)
        self._put_back()
        del _OPEN[self._open :]

    def _put_back(self) -> None:
        """Make everything as it was when the snapshot was taken."""
        self._put_back_process()
        torch.set_grad_enabled(self._gradients)
        for kind, enabled in zip(_AUTOCAST, self._autocast, strict=True):
            torch.set_autocast_enabled(kind, enabled)
        torch_state.leave_vectorized(self._depth)
        torch_state.set_dispatch_modes(self._dispatch_modes)
        torch_state.set_function_modes(self._function_modes)
        torch_state.set_default_device(self._default_device)

    def _put_back_process(self) -> None:
        """Put back what all threads share."""
        if self._pyro is not None and self._pyro_held is not None:
            _refill(self._pyro, self._pyro_held)
        pyro_state.use(self._pyro)
        _set_default_dtype(self.dtype)
        settings.set(**self._settings)
        validation.put_back(self._validation)
        for (owner, name), value in zip(_ATTRIBUTES, self._attributes, strict=True):
            if vars(owner)[name] is not value:
                setattr(owner, name, value)
        torch.set_rng_state(self._random)
        for index, state in self._device_random:
            torch.cuda.set_rng_state(state, index)


def own_generator(device: torch.device) -> torch.Generator:
    """Return a generator of the innermost `isolated` block, which no one else moves.

    It starts from the seed of the block.
    """
    block = next((each for each in reversed(_OPEN) if each.seed is not None), None)
    if block is None or block.seed is None:
        return modes_of_noise.generator_on(device)
    for index in _cuda_index(device):
        device = torch.device("cuda", index)
    if device not in block.generators:
        made = modes_of_noise.generator_on(device).manual_seed(block.seed)
        block.generators[device] = made
    return block.generators[device]


def marked() -> Callable[[], None]:
    """Return a function that rewinds the generators of the block to where they are."""
    blocks = [(each, dict(each.generators)) for each in _OPEN]
    states = [
        (generator, generator.get_state())
        for _, held in blocks
        for generator in held.values()
    ]

    def rewind() -> None:
        for block, held in blocks:
            block.generators = dict(held)
        for generator, state in states:
            generator.set_state(state)

    return rewind


def hold() -> bool:
    """Take back the flags of the innermost block, if another thread changed them.

    Returns
    -------
    bool
        Whether one has.
    """
    flags = next((b.flags for b in reversed(_OPEN) if b.flags is not None), None)
    return flags is not None and flags.hold()


def _default_dtype_of_thread() -> torch.dtype:
    """Return torch's default dtype; to other threads, what it is without the block."""
    if _OPEN and _OPEN[0]._thread != get_ident():
        return _OPEN[0].dtype
    return _get_default_dtype()


def _set_default_dtype_of_thread(d: torch.dtype) -> None:
    """Set torch's default dtype; for another thread, once the block has ended.

    The default is one for the process, and a fit must not change its type halfway.
    """
    if _OPEN and _OPEN[0]._thread != get_ident() and d.is_floating_point:
        _OPEN[0].dtype = d
    else:
        _set_default_dtype(d)


def forked(device: torch.device | None) -> AbstractContextManager[None]:
    """Put back the random states of the CPU and of a device after a block."""
    return Forked(_cuda_index(device))


def _turn() -> AbstractContextManager[Any]:
    """Wait until no other thread is in a block."""
    if _OPEN and _OPEN[0]._thread == get_ident():
        return nullcontext()
    return _LOCK


def _begin_anew() -> None:
    """Let a forked child be free of the block that another thread was in."""
    global _LOCK  # noqa: PLW0603
    if _OPEN and _OPEN[0]._thread == get_ident():
        return
    _LOCK = threading.RLock()
    if _OPEN:
        _OPEN[0]._put_back_process()
        _OPEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def _contents(state: PyroState) -> tuple[Any, ...]:
    return (
        list(state.handlers),
        list(state.plates["_stack"]),
        dict(state.enumeration),
        {name: dict(held) for name, held in state.parameters.items()},
    )


def _refill(state: PyroState, contents: tuple[Any, ...]) -> None:
    handlers, plates, enumeration, parameters = contents
    state.handlers = list(handlers)
    state.plates = {"_stack": list(plates)}
    state.enumeration = dict(enumeration)
    state.parameters = {name: dict(held) for name, held in parameters.items()}


def _seed(seed: int, device: torch.device | None) -> None:
    # Not torch.manual_seed, which would also reseed every other accelerator.
    torch.default_generator.manual_seed(seed)
    for index in _cuda_index(device):
        torch.cuda.default_generators[index].manual_seed(seed)


def _cuda_index(device: torch.device | None) -> list[int]:
    """Return the index of a CUDA device in a list, which is empty for any other."""
    if device is None or device.type != "cuda":
        return []
    if device.index is None:
        return [torch.cuda.current_device()]
    return [device.index]


def _set_default_device(device: torch.device | None) -> None:
    # Torch's own mode costs time at every call, so it is entered where it matters only;
    # it is not left, for the snapshot puts back what was before.
    if device is not None and device != torch.get_default_device():
        device.__enter__()
