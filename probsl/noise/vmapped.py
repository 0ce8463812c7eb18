"""Independent random numbers under torch.func.vmap."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.distributions import dirichlet
from torch.overrides import TorchFunctionMode

from probsl.noise.modes import _ANSWERS, SAMPLERS, _shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    Function = Callable[..., Any]


def independent_draws(
    generator: Callable[[torch.device], torch.Generator] | None = None,
) -> AbstractContextManager[object]:
    """Allow sampling from distributions inside `vmap(..., randomness="different")`.

    There torch supports all its samplers, but cannot draw into memory without a batch
    dimension: `torch.empty(shape).normal_()`, which most distributions use, would give
    all entries the same number, and fails. Here uninitialized tensors, and zeros of a
    floating type, have one. Torch also does not support the autograd function of
    Dirichlet and Beta; here the sampler inside is called directly. Torch still does the
    drawing, so unsupported cases fail with torch's own error: distributions whose
    control flow depends on their draws, such as VonMises.

    Enter it inside or outside the vectorized function, with validation of
    distributions and gradients off. Without vectorization the numbers are the same as
    without this context. Numbers of numpy and of `random` would be equal in all
    entries of the batch: `randomness.record` reports these as an obstacle.

    Parameters
    ----------
    generator
        Returns the generator to use on a device. None means torch's global one, which
        all threads of the process share; dropout always uses that one.

    Returns
    -------
    AbstractContextManager
        Meanwhile one name in torch.distributions is replaced, for all threads; draws
        and gradients elsewhere do not change.

    Examples
    --------
    >>> import torch
    >>> from probsl.noise.vmapped import independent_draws
    >>> def draw(rate):
    ...     return torch.distributions.Exponential(rate, validate_args=False).sample()
    >>> with independent_draws():
    ...     draws = torch.func.vmap(draw, randomness="different")(torch.ones(5))
    >>> draws.unique().shape
    torch.Size([5])
    """
    return _Batched(generator)


class Forked:
    """Restores random states of torch at the end of a block.

    Unlike `torch.random.fork_rng`, which is a generator, it never does so later: a
    generator that Ctrl-C keeps from ending ends when it is garbage-collected.

    Parameters
    ----------
    devices
        The CUDA devices whose states are restored besides that of the CPU.
    """

    def __init__(self, devices: Iterable[int] = ()) -> None:
        self._devices = tuple(devices)

    def __enter__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = [torch.cuda.get_rng_state(index) for index in self._devices]

    def __exit__(self, *exception: object) -> None:
        torch.set_rng_state(self._cpu)
        for index, state in zip(self._devices, self._cuda, strict=True):
            torch.cuda.set_rng_state(state, index)


class _Dirichlet:
    """Replaces torch's autograd function, and calls it if a gradient is needed."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def apply(self, concentration: Tensor) -> Tensor:
        sampler = getattr(torch, "_sample_dirichlet", None)
        if sampler is None or (concentration.requires_grad and torch.is_grad_enabled()):
            return self._original.apply(concentration)  # type: ignore[no-any-return]
        return sampler(concentration)  # type: ignore[no-any-return]


class _Batched(TorchFunctionMode):
    """Replaces some functions by forms that vmap supports for each entry separately."""

    def __init__(
        self, generator: Callable[[torch.device], torch.Generator] | None = None
    ) -> None:
        super().__init__()
        self._generator = generator

    def __enter__(self) -> Self:
        self._original = getattr(dirichlet, "_Dirichlet", None)
        if self._original is not None:  # else this torch has another name for it
            vars(dirichlet)["_Dirichlet"] = _Dirichlet(self._original)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        if self._original is not None:
            vars(dirichlet)["_Dirichlet"] = self._original

    def __torch_function__(
        self, func: Function, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._generator is not None and func in _DRAWING:
            func, args, kwargs = drawing_from(self._generator, func, args, kwargs)
        substitute = _SUBSTITUTES.get(func)
        result = None if substitute is None else substitute(*args, **kwargs)
        return func(*args, **kwargs) if result is None else result


def drawing_from(
    generator: Callable[[torch.device], torch.Generator],
    function: Function,
    args: Any,
    kwargs: dict[str, Any],
) -> tuple[Function, Any, dict[str, Any]]:
    """Return a call of a random function that draws from a given generator.

    Parameters
    ----------
    generator
        Returns the generator of a device.
    function, args, kwargs
        The call of one of torch's random functions.
    """
    given = kwargs.get("generator") is not None
    if given or any(isinstance(each, torch.Generator) for each in args):
        return function, args, kwargs
    likes = {torch.randn_like: torch.randn, torch.rand_like: torch.rand}
    if function in likes:  # vmap runs their generator forms one by one
        source = args[0] if args else kwargs["input"]
        kept = {n: v for n, v in kwargs.items() if v is not None}
        made = {"dtype": source.dtype, "device": source.device} | kept
        kwargs = {n: v for n, v in made.items() if n not in ("input", "memory_format")}
        function, args = likes[function], (source.shape,)
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
    place = tensors[0].device if tensors else kwargs.get("device")
    place = torch.get_default_device() if place is None else torch.device(place)
    return function, args, {**kwargs, "generator": generator(place)}


def _allocate(
    make: Callable[..., Tensor],
    *sizes: Any,
    size: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    **options: Any,
) -> Tensor | None:
    """Allocate like torch.empty and torch.zeros; None to leave it to them."""
    dtype = dtype or torch.get_default_dtype()
    # Integer zeros may be read by the program, which is impossible for a batch.
    if any(options.values()) or (make is _ZEROS and not dtype.is_floating_point):
        return None
    try:
        # Even an empty draw is made separately for each entry of the batch, so this has
        # all batch dimensions, and tensors made of it inherit them.
        nothing = torch.rand(0, device=device)
    except RuntimeError:  # an inner vmap, as of a Jacobian, that forbids randomness
        return None
    return make(nothing, _shape(sizes) if size is None else size, dtype=dtype)


def _allocate_of(
    make: Callable[..., Tensor], source: Tensor, *sizes: Any, **options: Any
) -> Tensor | None:
    """Allocate like Tensor.new_empty and Tensor.new_zeros."""
    options["dtype"] = options.get("dtype") or source.dtype
    options["device"] = options.get("device") or source.device
    return _allocate(make, *sizes, **options)


def _allocate_like(
    make: Callable[..., Tensor], input: Tensor, **options: Any
) -> Tensor | None:
    """Allocate like torch.empty_like and torch.zeros_like."""
    return _allocate_of(make, input, input.shape, **options)


def _new(source: Tensor, *sizes: Any, **options: Any) -> Tensor | None:
    """Allocate like Tensor.new, which takes data as well as sizes."""
    integers = bool(sizes) and all(isinstance(size, int) for size in sizes)
    if integers or (len(sizes) == 1 and isinstance(sizes[0], torch.Size)):
        return _allocate_of(_EMPTY, source, *sizes, **options)
    return None


def _binomial(count: Tensor, prob: Tensor, generator: Any = None) -> Tensor:
    # If only `prob` has a batch dimension, torch resizes its result and warns.
    return torch.binomial(count + torch.zeros_like(prob), prob, generator)


def _clamp(target: Tensor, *args: Any, **options: Any) -> Tensor:
    # Gamma clamps in place, which vmap runs entry by entry with a warning.
    return target.copy_(torch.clamp(target, *args, **options))


_EMPTY, _ZEROS = Tensor.new_empty, Tensor.new_zeros


# Random functions that take a generator.
_DRAWING = (_ANSWERS.keys() - {torch.dropout, torch.nn.functional.dropout}) | SAMPLERS


_SUBSTITUTES: dict[Function, Callable[..., Tensor | None]] = {
    torch.empty: partial(_allocate, _EMPTY),
    torch.zeros: partial(_allocate, _ZEROS),
    torch.empty_like: partial(_allocate_like, _EMPTY),
    torch.zeros_like: partial(_allocate_like, _ZEROS),
    Tensor.new_empty: partial(_allocate_of, _EMPTY),
    Tensor.new_zeros: partial(_allocate_of, _ZEROS),
    Tensor.new: _new,
    Tensor.clamp_: _clamp,
    torch.binomial: _binomial,
}
