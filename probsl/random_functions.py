"""Torch's random functions, answered from outside the program that calls them.

Two contexts, each a `torch.overrides.TorchFunctionMode`: that sees a torch function as
the program calls it, before vmap, grad and make_fx do. `Supply` answers calls for
random numbers with numbers that are given, so that a random program becomes a pure
function of them. `independent_draws` lets torch draw them inside `torch.func.vmap`.
"""

from __future__ import annotations

import math
import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor
from torch.distributions import dirichlet
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    Function = Callable[..., Any]

__all__ = [
    "SAMPLERS",
    "Forked",
    "NoiseMismatchError",
    "NoiseMode",
    "Request",
    "Supply",
    "drawing_from",
    "independent_draws",
]

Kind = Literal["normal", "uniform"]


class NoiseMismatchError(RuntimeError):
    """A program asked for other random numbers than when it was recorded."""


@dataclass(frozen=True)
class Request:
    """One call for standard random numbers.

    `kind` says whether they are standard normal or uniform on (0, 1); `shape`, `dtype`
    and `device` are those of the tensor that is made of them.
    """

    kind: Kind
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def count(self) -> int:
        """How many numbers are asked for."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.kind} {list(self.shape)} {self.dtype} on {self.device}"


class NoiseMode(TorchFunctionMode, ABC):
    """Answers calls for random numbers from `noise`, and leaves the rest to `other`.

    Normal and uniform numbers it answers as they are; what else torch has that scaling
    or an inverse distribution function can make of them, it makes of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._unwritten: list[tuple[weakref.ref[Tensor], Tensor]] = []

    @abstractmethod
    def noise(self, request: Request) -> Tensor:
        """Return the numbers asked for."""

    @abstractmethod
    def other(self, function: Function, args: Any, kwargs: dict[str, Any]) -> Any:
        """Call any other function, random or not."""

    def __torch_function__(
        self, func: Function, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._unwritten:
            self._write()
        answer = _ANSWERS.get(func)
        if answer is None or "out" in kwargs:
            return self.other(func, args, kwargs)
        result = answer(self, *args, **kwargs)
        return self.other(func, args, kwargs) if result is None else result

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        if exception[0] is None:
            self._write()
        self._unwritten.clear()

    def ask(self, kind: Kind, shape: Any, dtype: Any, device: Any) -> Tensor | None:
        """Return the noise of one call, or None where its numbers are not real."""
        dtype = dtype or torch.get_default_dtype()
        if not dtype.is_floating_point:
            return None
        place = torch.get_default_device() if device is None else torch.device(device)
        return self.noise(Request(kind, tuple(shape), dtype, place))

    def fill(self, target: Tensor, value: Tensor) -> Tensor:
        """Return `value` for the result of filling `target` in place.

        Nearly always `target` is a nameless `torch.empty` that dies before the next
        torch call: nothing then need be mutated, which vmap and compilers prefer. One
        that is alive by then is written after all.
        """
        if _is_view(target):
            return target.copy_(value)
        self._unwritten.append((weakref.ref(target), value))
        return value

    def _write(self) -> None:
        filled, self._unwritten = self._unwritten, []
        for reference, value in filled:
            target = reference()
            if target is not None:
                target.copy_(value)


def _is_view(tensor: Tensor) -> bool:
    """Whether a tensor shares its memory with another; yes where nobody knows."""
    asked = getattr(tensor, "_is_view", None)
    return asked is None or bool(asked())


class Supply(NoiseMode):
    """Answers recorded requests from one flat tensor: see `NoiseRecord.supply`."""

    def __init__(self, requests: tuple[Request, ...], flat: Tensor) -> None:
        super().__init__()
        self._requests = requests
        self._flat = flat
        self._answered = self._start = 0

    def __enter__(self) -> Self:
        self._answered = self._start = 0
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        left = self._requests[self._answered :]
        if left and exception[0] is None:
            raise NoiseMismatchError(
                f"The program asked for random numbers {self._answered} times; when it "
                f"was recorded it went on to ask for {left[0]}. It must ask for the "
                "same numbers at each run."
            )

    def noise(self, request: Request) -> Tensor:
        """Cut the next numbers off the flat tensor."""
        left = self._requests[self._answered : self._answered + 1]
        if left != (request,):
            raise NoiseMismatchError(
                f"The program asked for {request}; when it was recorded it asked, as "
                f"number {self._answered}, for {left[0] if left else 'nothing more'}. "
                "It must ask for the same numbers at each run: record it again if its "
                "shapes changed."
            )
        start, self._start = self._start, self._start + request.count
        self._answered += 1
        piece = self._flat[start : self._start].reshape(request.shape)
        # A copy, for the program may go on to change its numbers in place.
        return piece.to(request.device, request.dtype, copy=True)

    def other(self, function: Function, args: Any, kwargs: dict[str, Any]) -> Any:
        """Call what draws nothing."""
        if function in SAMPLERS or function in _ANSWERS:
            raise NoiseMismatchError(
                f"The program called {function.__name__}, which draws from torch's own "
                "generator, and did not when it was recorded."
            )
        return function(*args, **kwargs)


def _shape(sizes: tuple[Any, ...]) -> Sequence[int]:
    """Sizes as torch takes them: `(2, 3)` or `((2, 3),)`."""
    return sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes


def _factory(kind: Kind) -> Function:
    """Answer torch.randn or torch.rand."""

    def answer(mode: NoiseMode, *sizes: Any, **options: Any) -> Tensor | None:
        shape = options.get("size", _shape(sizes))
        return mode.ask(kind, shape, options.get("dtype"), options.get("device"))

    return answer


def _like(kind: Kind) -> Function:
    """Answer torch.randn_like or torch.rand_like."""

    def answer(mode: NoiseMode, input: Tensor, **options: Any) -> Tensor | None:
        dtype = options.get("dtype") or input.dtype
        return mode.ask(kind, input.shape, dtype, options.get("device") or input.device)

    return answer


def _normal(
    mode: NoiseMode, mean: Any, std: Any = 1.0, size: Any = (), **options: Any
) -> Tensor | None:
    """Answer torch.normal in each of its forms."""
    dtype, device = options.get("dtype"), options.get("device")
    tensors = [value for value in (mean, std) if isinstance(value, Tensor)]
    if tensors:
        size = torch.broadcast_shapes(*(value.shape for value in tensors))
        dtype, device = tensors[0].dtype, tensors[0].device
    noise = mode.ask("normal", size, dtype, device)
    return None if noise is None else mean + std * noise


def _in_place(kind: Kind, transform: Callable[..., Tensor], *names: str) -> Function:
    """Answer a method that fills a tensor with a transformation of the noise."""

    def answer(
        mode: NoiseMode, target: Tensor, *args: Any, **options: Any
    ) -> Tensor | None:
        noise = mode.ask(kind, target.shape, target.dtype, target.device)
        if noise is None:
            return None
        given = options | dict(zip(names, args, strict=False))
        # `from` is a keyword of Python and cannot name a parameter.
        named = {n.replace("from", "low"): given[n] for n in names if n in given}
        return mode.fill(target, transform(noise, **named))

    return answer


def _to_normal(z: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    # Standard numbers, as torch.distributions ask for, cost no operation.
    return z if (mean, std) == (0, 1) else mean + std * z


def _to_log_normal(z: Tensor, mean: float = 1.0, std: float = 2.0) -> Tensor:
    return torch.exp(mean + std * z)


def _to_uniform(u: Tensor, low: float = 0.0, to: float = 1.0) -> Tensor:
    return u if (low, to) == (0, 1) else low + (to - low) * u


def _to_exponential(u: Tensor, lambd: float = 1.0) -> Tensor:
    return -torch.log1p(-u) / lambd


def _to_cauchy(u: Tensor, median: float = 0.0, sigma: float = 1.0) -> Tensor:
    return median + sigma * torch.tan(math.pi * (u - 0.5))


def _to_geometric(u: Tensor, p: float) -> Tensor:
    return u.ceil() if p == 1 else torch.ceil(torch.log1p(-u) / math.log1p(-p))


def _dropout(
    mode: NoiseMode,
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor | None:
    """Answer torch.nn.functional.dropout, and torch.dropout, which it calls."""
    if not training or p == 0:
        return input
    noise = mode.ask("uniform", input.shape, input.dtype, input.device)
    if noise is None:
        return None
    kept = (noise >= p).to(input.dtype) / (1 - p if p < 1 else 1)
    return input.mul_(kept) if inplace else input * kept


_ANSWERS: dict[Function, Function] = {
    torch.randn: _factory("normal"),
    torch.rand: _factory("uniform"),
    torch.randn_like: _like("normal"),
    torch.rand_like: _like("uniform"),
    torch.normal: _normal,
    torch.dropout: _dropout,
    torch.nn.functional.dropout: _dropout,
    Tensor.normal_: _in_place("normal", _to_normal, "mean", "std"),
    Tensor.log_normal_: _in_place("normal", _to_log_normal, "mean", "std"),
    Tensor.uniform_: _in_place("uniform", _to_uniform, "from", "to"),
    Tensor.exponential_: _in_place("uniform", _to_exponential, "lambd"),
    Tensor.cauchy_: _in_place("uniform", _to_cauchy, "median", "sigma"),
    Tensor.geometric_: _in_place("uniform", _to_geometric, "p"),
}

# Others are found by what they do to torch's generator, which takes longer to see, and
# which another thread may have moved.
SAMPLERS = frozenset(
    {torch.poisson, torch.binomial, torch.bernoulli, Tensor.bernoulli}
    | {Tensor.bernoulli_, torch.multinomial, Tensor.multinomial, Tensor.random_}
    | {torch.randint, torch.randint_like, torch.randperm}
    # Not public in torch, which may come to call them something else.
    | {
        getattr(torch, name)
        for name in ("_standard_gamma", "_sample_dirichlet")
        if hasattr(torch, name)
    }
)


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
    >>> from probsl.random_functions import independent_draws
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


def generator_on(device: torch.device) -> torch.Generator:
    """Return a new generator of numbers on a device."""
    return torch.Generator(device)


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
