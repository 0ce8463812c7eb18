"""What draws that a search has not seen say of where it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.methods.guides.whitening import whitened
from probsl.noise.standardized import standardized

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from probsl.methods.guides.elbo import ELBO
    from probsl.methods.guides.many_draws import ManyDraws
    from probsl.noise.record import NoiseRecord

# Fresh draws, and how many numbers of rows and latents they may take in all.
_MOST, _LEAST, _ELEMENTS = 2048, 128, 1_000_000
# Where draws are taken one by one.
_LOOPED = 256
# Draws of one evaluation, and how many numbers of rows they may take.
_CHUNK, _CHUNK_ELEMENTS = 128, 4_000_000


@dataclass(frozen=True)
class FreshBound:
    """A bound by fresh draws, in nats.

    Attributes
    ----------
    value
        The negative bound of all rows.
    error
        Its standard error.
    promise
        What the best step from here would still gain, by the length of the gradient in
        the guide's own geometry; zero for guides that are not Gaussian.
    """

    value: float
    error: float
    promise: float = 0.0

    def supports(self, stated: float) -> bool:
        """Return whether it agrees with a stated negative bound to a nat."""
        return abs(self.value - stated) <= 1.0 and self.error <= 1.0

    def __str__(self) -> str:
        return f"ELBO {-self.value:.6g}, standard error {self.error:.2g}"


def fresh_bound(
    bound: ELBO, many: ManyDraws, noise: NoiseRecord, x: Tensor, seed: int
) -> FreshBound:
    """Return the bound of a guide by fresh draws.

    Parameters
    ----------
    bound, many, noise
        The bound, its evaluation at many draws, and what one draw is made of.
    x
        The guide, shape ``[p]``.
    seed
        Of the draws that the search has used; these are others.

    Notes
    -----
    Two independent halves of the draws give two gradients, whose product is the square
    of the gradient's length without the share of chance.
    """
    size = bound.problem.size
    elements = _ELEMENTS // max(size, noise.dimension)
    most = _LOOPED if many.way == "loop" else _MOST
    half = 2 ** int(math.log2(max(_LEAST, min(most, elements)))) // 2
    nearby = whitened(bound, x)
    start = x if nearby is None else nearby.start
    raw = _same if nearby is None else nearby.raw
    chunk = max(1, min(_CHUNK, _CHUNK_ELEMENTS // size))
    halves = [
        _slope(lambda point, z: many(raw(point), z), start, draws.split(chunk))
        for draws in (standardized(noise, half, seed + part) for part in (1, 2))
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


def _slope(
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
