"""Validates the result of a search by draws that it has not used."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.methods.guides.whitening import whitened
from probsl.noise.standardized import standardized
from probsl.noise.streams import Stream, stream_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from probsl.methods.guides.elbo import ELBO
    from probsl.methods.guides.many_draws import ManyDraws
    from probsl.noise.record import NoiseRecord

# Numbers of fresh draws, and the maximum of draws times rows and latents in total.
_MOST, _LEAST, _ELEMENTS = 2048, 128, 1_000_000
# The number if draws are evaluated in a loop.
_LOOPED = 256
_HALVES: tuple[Stream, ...] = ("first fresh draws", "second fresh draws")
# Draws per evaluation, and the maximum of draws times rows.
_CHUNK, _CHUNK_ELEMENTS = 128, 4_000_000


@dataclass(frozen=True)
class FreshBound:
    """A bound estimated by fresh draws, in nats.

    Attributes
    ----------
    value
        The negative bound on all rows.
    error
        Its standard error.
    promise
        The predicted gain of the best step from here, by the norm of the gradient in
        the guide's Fisher metric; zero for guides that are not Gaussian.
    """

    value: float
    error: float
    promise: float = 0.0

    def supports(self, stated: float) -> bool:
        """Return whether it agrees with a stated negative bound to within a nat."""
        return abs(self.value - stated) <= 1.0 and self.error <= 1.0

    def __str__(self) -> str:
        return f"ELBO {-self.value:.6g}, standard error {self.error:.2g}"


def fresh_bound(
    bound: ELBO, many: ManyDraws, noise: NoiseRecord, x: Tensor, seed: int
) -> FreshBound:
    """Return the bound of a guide, estimated by fresh draws.

    Parameters
    ----------
    bound, many, noise
        The bound, its evaluation at many draws, and the random numbers of one draw.
    x
        The guide, shape ``[p]``.
    seed
        Seed of the fit; the search has used another of its streams.

    Notes
    -----
    Two independent halves of the draws give two gradients, whose inner product is an
    unbiased estimate of the gradient's squared norm.
    """
    size = bound.problem.size
    elements = _ELEMENTS // max(size, noise.dimension)
    most = _LOOPED if many.way == "loop" else _MOST
    half = 2 ** int(math.log2(max(_LEAST, min(most, elements)))) // 2
    nearby = whitened(bound, x)
    start = x if nearby is None else nearby.start
    raw = _same if nearby is None else nearby.raw
    chunk = max(1, min(_CHUNK, _CHUNK_ELEMENTS // size))
    drawn = [standardized(noise, half, stream_seed(seed, name)) for name in _HALVES]
    halves = [
        _values_and_gradient(
            lambda point, z: many(raw(point), z), start, draws.split(chunk)
        )
        for draws in drawn
    ]
    values = size * torch.cat([found for found, _ in halves]).double()
    promise = 0.0
    if nearby is not None:
        (_, first), (_, second) = halves
        promise = float((first * second / nearby.information).sum()) * size**2 / 2
    error = float(values.std()) / math.sqrt(len(values))
    if not math.isfinite(promise):
        promise = math.inf
    return FreshBound(float(values.mean()), error, promise)


def _values_and_gradient(
    objective: Callable[[Tensor, Tensor], Tensor], x: Tensor, chunks: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the values ``[count]`` at draws, and the gradient of their mean."""
    values, gradient = [], torch.zeros_like(x)
    for chunk in chunks:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            found = objective(point, chunk)
            (part,) = torch.autograd.grad(found.sum(), point)
        values.append(found.detach())
        gradient += part
    return torch.cat(values), gradient / sum(map(len, chunks))


def _same(x: Tensor) -> Tensor:
    return x
