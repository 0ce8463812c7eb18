"""Intercepts torch's random functions in a program.

A `torch.overrides.TorchFunctionMode` intercepts a torch function when the program calls
it, before vmap, grad and make_fx. `Supply` answers calls for random numbers with given
numbers, so that a random program becomes a pure function of them.
"""

from __future__ import annotations

import math
import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Function = Callable[..., Any]

__all__ = [
    "SAMPLERS",
    "NoiseMismatchError",
    "NoiseMode",
    "Request",
    "Supply",
    "generator_on",
]

Kind = Literal["normal", "uniform"]


class NoiseMismatchError(RuntimeError):
    """A program requested other random numbers than when it was recorded."""


@dataclass(frozen=True)
class Request:
    """One call for standard random numbers.

    `kind` says whether they are standard normal or uniform on (0, 1); `shape`, `dtype`
    and `device` are those of the resulting tensor.
    """

    kind: Kind
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def count(self) -> int:
        """Number of random numbers requested."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.kind} {list(self.shape)} {self.dtype} on {self.device}"


class NoiseMode(TorchFunctionMode, ABC):
    """Answers calls for random numbers by `noise`, and passes the rest to `other`.

    Normal and uniform numbers are returned directly. Other distributions of torch are
    computed from them by scaling or an inverse distribution function, if possible.
    """

    def __init__(self) -> None:
        super().__init__()
        self._unwritten: list[tuple[weakref.ref[Tensor], Tensor]] = []

    @abstractmethod
    def noise(self, request: Request) -> Tensor:
        """Return the requested numbers."""

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
        """Return the noise of one call, or None if its dtype is not a floating type."""
        dtype = dtype or torch.get_default_dtype()
        if not dtype.is_floating_point:
            return None
        place = torch.get_default_device() if device is None else torch.device(device)
        return self.noise(Request(kind, tuple(shape), dtype, place))

    def fill(self, target: Tensor, value: Tensor) -> Tensor:
        """Return `value` as the result of filling `target` in place.

        `target` is nearly always a temporary `torch.empty` that is freed before the
        next torch call. Then nothing has to be mutated, which vmap and compilers
        prefer. A target that is still alive at that call is written.
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
    """Whether a tensor shares its memory with another; True if unknown."""
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
        """Return the next numbers of the flat tensor."""
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
        # A copy, because the program may change its numbers in place.
        return piece.to(request.device, request.dtype, copy=True)

    def other(self, function: Function, args: Any, kwargs: dict[str, Any]) -> Any:
        """Call a function that draws nothing."""
        if function in SAMPLERS or function in _ANSWERS:
            raise NoiseMismatchError(
                f"The program called {function.__name__}, which draws from torch's own "
                "generator, and did not when it was recorded."
            )
        return function(*args, **kwargs)


def _shape(sizes: tuple[Any, ...]) -> Sequence[int]:
    """Return sizes given in either form of torch: `(2, 3)` or `((2, 3),)`."""
    return sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes


def _factory(kind: Kind) -> Function:
    """Return a function that answers torch.randn or torch.rand."""

    def answer(mode: NoiseMode, *sizes: Any, **options: Any) -> Tensor | None:
        shape = options.get("size", _shape(sizes))
        return mode.ask(kind, shape, options.get("dtype"), options.get("device"))

    return answer


def _like(kind: Kind) -> Function:
    """Return a function that answers torch.randn_like or torch.rand_like."""

    def answer(mode: NoiseMode, input: Tensor, **options: Any) -> Tensor | None:
        dtype = options.get("dtype") or input.dtype
        return mode.ask(kind, input.shape, dtype, options.get("device") or input.device)

    return answer


def _normal(
    mode: NoiseMode, mean: Any, std: Any = 1.0, size: Any = (), **options: Any
) -> Tensor | None:
    """Answer torch.normal in each of its overloads."""
    dtype, device = options.get("dtype"), options.get("device")
    tensors = [value for value in (mean, std) if isinstance(value, Tensor)]
    if tensors:
        size = torch.broadcast_shapes(*(value.shape for value in tensors))
        dtype, device = tensors[0].dtype, tensors[0].device
    noise = mode.ask("normal", size, dtype, device)
    return None if noise is None else mean + std * noise


def _in_place(kind: Kind, transform: Callable[..., Tensor], *names: str) -> Function:
    """Return an answer for a method that fills a tensor with transformed noise."""

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
    # Standard normals, which torch.distributions request, need no operation.
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

# Other samplers are detected by a change of torch's generator, which takes longer to
# test, and which another thread may have caused.
SAMPLERS = frozenset(
    {torch.poisson, torch.binomial, torch.bernoulli, Tensor.bernoulli}
    | {Tensor.bernoulli_, torch.multinomial, Tensor.multinomial, Tensor.random_}
    | {torch.randint, torch.randint_like, torch.randperm}
    # Private names of torch, which may change.
    | {
        getattr(torch, name)
        for name in ("_standard_gamma", "_sample_dirichlet")
        if hasattr(torch, name)
    }
)


def generator_on(device: torch.device) -> torch.Generator:
    """Return a new random number generator on a device."""
    return torch.Generator(device)
