"""Isolates calls from process-wide state: Pyro's handlers and store, torch's flags."""

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

# Torch's default dtype and Pyro's flags are process-wide, so fits in different threads
# must take turns; re-entrant, to allow a fit inside a callback.
_LOCK = threading.RLock()
# The open blocks, outermost first.
_OPEN: list[Snapshot] = []

_SETTINGS = (
    "module_local_params",
    "validate_distributions_pyro",
    "validate_infer",
    "validate_poutine",
)
# Where Pyro stores them; querying Pyro's settings at each run would be slow.
_FLAG_OF = {
    name: (importlib.import_module(module), attribute)
    for name in _SETTINGS
    for module, attribute, _ in (settings._REGISTRY[name],)
}
# Other attributes that are temporarily replaced, here or in torch: module and name.
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
    """Run a block in its own Pyro and torch state, and restore the old one.

    Inside there are no Pyro handlers or plates, Pyro's parameter store is empty,
    torch's default floating type is `dtype` and its default device `device`, the
    random states of the CPU and of that device start from `seed`, gradients are on,
    autocast, inference mode and torch function modes are off, and distributions check
    their arguments only if `validate`. Afterwards, also after an error or Ctrl-C, the
    previous state is restored.

    Meanwhile other threads keep their own Pyro handlers, plates and parameters. Torch's
    default dtype, its generators and the flags for validation are process-wide: other
    threads see those of the block.

    Parameters
    ----------
    dtype
        The default floating type inside the block.
    seed
        Seed of torch's global generators inside the block.
    device
        Default device inside the block; None leaves it unchanged.
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
        # Ctrl-C may interrupt the first of the two, but then not the second.
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
    """Decorate a function so that its calls are isolated from the caller's state.

    It replaces the same state as `isolated`, except for the default dtype, the random
    state and validation, which are the caller's.

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
            # Pyro's own checks reject a bare `pyro.param` in a module.
            "validate_poutine": False,
            "validate_infer": False,
        }
        settings.set(**self._settings)
        validation.replace_default(validate)
        self._validation = validation.default()

    def hold(self) -> bool:
        """Set the flags again if they changed, and return whether they had."""
        if validation.default() is self._validation and all(
            getattr(*_FLAG_OF[name]) is value for name, value in self._settings.items()
        ):
            return False
        settings.set(**self._settings)
        validation.put_back(self._validation)
        return True


class Snapshot:
    """A snapshot of all state that `isolated` replaces.

    Also taken where Ctrl-C is caught: it may have interrupted any operation, such as
    the entry of a plate, and `recover` repairs that.

    Parameters
    ----------
    device
        Device whose random state is stored besides that of the CPU.
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
        """Replace the caller's state by a neutral one, until `restore`."""
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
        """End the block that `leave` began; does nothing if it has already ended."""
        # A generator that Ctrl-C kept from ending ends when it is garbage-collected. By
        # then an outer block has already restored everything.
        if self not in _OPEN:
            return
        self._put_back()
        if self._inference is not None:
            self._inference.__exit__(None, None, None)
        del _OPEN[_OPEN.index(self) :]

    def close(self, error: BaseException) -> None:
        """Close generators that Ctrl-C has left open.

        Ctrl-C may arrive when a generator is about to be resumed, as at the end of a
        context. Such a generator ends when the frames that hold it are cleared, and
        could then change state that has already been restored.

        Raises
        ------
        KeyboardInterrupt
            If the error is a consequence of one, such as an error of a partly entered
            plate.
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
        """Restore the state of the snapshot after Ctrl-C, and drop later blocks."""
        self.close(error)
        self._put_back()
        del _OPEN[self._open :]

    def _put_back(self) -> None:
        """Restore all state of the snapshot."""
        self._put_back_process()
        torch.set_grad_enabled(self._gradients)
        for kind, enabled in zip(_AUTOCAST, self._autocast, strict=True):
            torch.set_autocast_enabled(kind, enabled)
        torch_state.leave_vectorized(self._depth)
        torch_state.set_dispatch_modes(self._dispatch_modes)
        torch_state.set_function_modes(self._function_modes)
        torch_state.set_default_device(self._default_device)

    def _put_back_process(self) -> None:
        """Restore the state that all threads share."""
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
    """Return a generator of the innermost `isolated` block, used by nothing else.

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
    """Return a function that resets the block's generators to their current states."""
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
    """Restore the flags of the innermost block, if another thread changed them.

    Returns
    -------
    bool
        Whether another thread had changed them.
    """
    flags = next((b.flags for b in reversed(_OPEN) if b.flags is not None), None)
    return flags is not None and flags.hold()


def _default_dtype_of_thread() -> torch.dtype:
    """Return torch's default dtype; for other threads, the one outside the block."""
    if _OPEN and _OPEN[0]._thread != get_ident():
        return _OPEN[0].dtype
    return _get_default_dtype()


def _set_default_dtype_of_thread(d: torch.dtype) -> None:
    """Set torch's default dtype; for other threads, after the block has ended.

    The default is process-wide, and must not change during a fit.
    """
    if _OPEN and _OPEN[0]._thread != get_ident() and d.is_floating_point:
        _OPEN[0].dtype = d
    else:
        _set_default_dtype(d)


def forked(device: torch.device | None) -> AbstractContextManager[None]:
    """Restore the random states of the CPU and of a device after a block."""
    return Forked(_cuda_index(device))


def _turn() -> AbstractContextManager[Any]:
    """Wait until no other thread is in a block."""
    if _OPEN and _OPEN[0]._thread == get_ident():
        return nullcontext()
    return _LOCK


def _begin_again() -> None:
    """Release a forked child process from the block of another thread."""
    global _LOCK  # noqa: PLW0603
    if _OPEN and _OPEN[0]._thread == get_ident():
        return
    _LOCK = threading.RLock()
    if _OPEN:
        _OPEN[0]._put_back_process()
        _OPEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_again)


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
    # Not torch.manual_seed, because it would also reseed every other accelerator.
    torch.default_generator.manual_seed(seed)
    for index in _cuda_index(device):
        torch.cuda.default_generators[index].manual_seed(seed)


def _cuda_index(device: torch.device | None) -> list[int]:
    """Return a list of the index of a CUDA device, empty for any other device."""
    if device is None or device.type != "cuda":
        return []
    if device.index is None:
        return [torch.cuda.current_device()]
    return [device.index]


def _set_default_device(device: torch.device | None) -> None:
    # Torch's own mode slows down every call, so it is entered only if needed. It is not
    # exited, because the snapshot restores the previous state.
    if device is not None and device != torch.get_default_device():
        device.__enter__()
