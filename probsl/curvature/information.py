"""Information matrices of a program's parameters, in flat coordinates.

The observed information is the negative Hessian of the log density. The expected
(Fisher) information is that of its expectation over new data, which the fitted
distributions state in closed form: the Hessian of their Kullback-Leibler divergence
from themselves. The outer product of the scores of single rows estimates it from the
data (Berndt, Hall, Hall and Hausman, 1974).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.curvature.density_parts import density_parts
from probsl.curvature.row_scores import row_scores
from probsl.engine.minimize.hessian import Hessian

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from probsl.program.coordinates import Coordinates
    from probsl.program.target_density import Density

__all__ = [
    "SummedHessian",
    "observed_information",
    "score_products",
    "summed_hessian",
]


def observed_information(target: Density, layout: Coordinates, x: Tensor) -> Tensor:
    """Return the negative Hessian [d, d] of the log density at a point [d].

    Parameters
    ----------
    target
        The density, of a problem in float64. Its priors count with their factors.
    layout
        The layout of the point.
    x
        The point.
    """
    with target.problem.isolated():
        return -summed_hessian(density_parts(target, layout), x)


def summed_hessian(parts: Iterable[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    """Return the Hessian [d, d] of a sum of functions at a point [d]."""
    return SummedHessian()(parts, x)


class SummedHessian:
    """The Hessian of a sum of functions, which remembers how to compute it fastest.

    Attributes
    ----------
    current
        The function whose Hessian is being computed.
    """

    def __init__(self) -> None:
        self.current: Callable[[Tensor], Tensor] = torch.sum
        # One object for all parts, as it measures how many rows to compute at once.
        self._hessian = Hessian(lambda x: self.current(x))  # noqa: PLW0108

    def __call__(
        self, parts: Iterable[Callable[[Tensor], Tensor]], x: Tensor
    ) -> Tensor:
        """Return the Hessian [d, d] of a sum of functions at a point [d]."""
        total = x.new_zeros(len(x), len(x))
        for part in parts:
            self.current = part
            total += self._hessian(x)
        return (total + total.T) / 2


def score_products(
    target: Density,
    layout: Coordinates,
    x: Tensor,
    *,
    power: int = 1,
    clusters: Tensor | None = None,
) -> Tensor:
    """Return the sum of outer products [d, d] of the scores of rows.

    Parameters
    ----------
    target, layout, x
        As for `observed_information`; only the likelihood has scores.
    power
        Each product is multiplied by this power of the weight of its row: 1 if weights
        are frequencies, 2 if the row's score is one observation times the weight.
    clusters
        The cluster of each row, counted from 0, shape ``[rows]``: weighted scores are
        added up within clusters before their products are taken.
    """
    total = x.new_zeros(len(x), len(x))
    sums = None
    if clusters is not None:
        sums = x.new_zeros(int(clusters.max()) + 1, len(x))
    start = 0
    for scores, weights in row_scores(target.problem, layout, x):
        ones = scores.new_ones(len(scores))
        weight = ones if weights is None else weights.to(scores)
        if sums is not None and clusters is not None:
            part = clusters[start : start + len(scores)]
            sums.index_add_(0, part, scores * weight[:, None])
        else:
            total += scores.T @ (scores * weight[:, None] ** power)
        start += len(scores)
    return total if sums is None else sums.T @ sums
