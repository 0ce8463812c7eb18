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
    """Let distributions be sampled inside `vmap(..., randomness="different")`.

    There torch can draw from each of its samplers, but not into memory that has no
    batch dimension: `torch.empty(shape).normal_()`, as most distributions draw, would
    give all entries the same number, and fails. Here uninitialized tensors, and zeros
    of a floating type, have one. Nor can torch enter the autograd function through
    which Dirichlet and Beta draw; here it calls the sampler inside. The drawing itself
    is left to torch, so that what it cannot do still fails with its own error:
    distributions that look at their draws to decide what to do next, such as VonMises.

    Enter it inside or outside the vectorized function, with validation of
    distributions and gradients off. Where nothing is vectorized the numbers are the
    same as without this context. Numbers of numpy and of `random` would be equal in all
    entries of the batch: `randomness.record` names these as an obstacle.

    Parameters
    ----------
    generator
        Returns the generator to draw from on a device. None draws from torch's global
        one, which every thread of the process moves; so does dropout in any case.

    Returns
    -------
    AbstractContextManager
        One name in torch.distributions is replaced meanwhile, for all threads; draws
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
    """Puts back random states of torch at the end of a block.

    Unlike `torch.random.fork_rng`, which is a generator, it never does so later: when
    Ctrl-C keeps a generator from ending, that ends once it is collected.

    Parameters
    ----------
    devices
        The CUDA devices whose states it puts back besides that of the CPU.
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
    """Stands for torch's autograd function, and calls it where there is a gradient."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def apply(self, concentration: Tensor) -> Tensor:
        sampler = getattr(torch, "_sample_dirichlet", None)
        if sampler is None or (concentration.requires_grad and torch.is_grad_enabled()):
            return self._original.apply(concentration)  # type: ignore[no-any-return]
        return sampler(concentration)  # type: ignore[no-any-return]


class _Batched(TorchFunctionMode):
    """Calls in place of some functions what vmap can do with each entry by itself."""

    def __init__(
        self, generator: Callable[[torch.device], torch.Generator] | None = None
    ) -> None:
        super().__init__()
        self._generator = generator

    def __enter__(self) -> Self:
        self._original = getattr(dirichlet, "_Dirichlet", None)
        if self._original is not None:  # else torch has another name for it by now
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
    """Return a call for random numbers that draws them from a given generator.

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
    if function in likes:  # whose form with a generator vmap does one by one
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
    """Allocate as torch.empty and torch.zeros do; None where that is left to them."""
    dtype = dtype or torch.get_default_dtype()
    # Zeros that count or index may be looked at, which no batch can be.
    if any(options.values()) or (make is _ZEROS and not dtype.is_floating_point):
        return None
    try:
        # No numbers at all are still drawn separately for each entry of the batch, so
        # this has all batch dimensions, and what is made of it inherits them.
        nothing = torch.rand(0, device=device)
    except RuntimeError:  # an inner vmap, of a Jacobian say, that forbids randomness
        return None
    return make(nothing, _shape(sizes) if size is None else size, dtype=dtype)


def _allocate_of(
    make: Callable[..., Tensor], source: Tensor, *sizes: Any, **options: Any
) -> Tensor | None:
    """Allocate as Tensor.new_empty and Tensor.new_zeros do."""
    options["dtype"] = options.get("dtype") or source.dtype
    options["device"] = options.get("device") or source.device
    return _allocate(make, *sizes, **options)


def _allocate_like(
    make: Callable[..., Tensor], input: Tensor, **options: Any
) -> Tensor | None:
    """Allocate as torch.empty_like and torch.zeros_like do."""
    return _allocate_of(make, input, input.shape, **options)


def _new(source: Tensor, *sizes: Any, **options: Any) -> Tensor | None:
    """Allocate as Tensor.new does, which takes data as well as sizes."""
    integers = bool(sizes) and all(isinstance(size, int) for size in sizes)
    if integers or (len(sizes) == 1 and isinstance(sizes[0], torch.Size)):
        return _allocate_of(_EMPTY, source, *sizes, **options)
    return None


def _binomial(count: Tensor, prob: Tensor, generator: Any = None) -> Tensor:
    # Where only `prob` has a batch dimension torch resizes its result, and warns.
    return torch.binomial(count + torch.zeros_like(prob), prob, generator)


def _clamp(target: Tensor, *args: Any, **options: Any) -> Tensor:
    # Gamma clamps in place, which vmap does one entry after the other, and warns.
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
