"""The score of every row: the gradient of its log likelihood."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.curvature.density_parts import row_batches
from probsl.engine.minimize.jacobian import jacobian
from probsl.program.scoring import by_row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from probsl.program.coordinates import Coordinates
    from probsl.program.problem import Problem

__all__ = ["row_scores"]


def row_scores(
    problem: Problem, layout: Coordinates, x: Tensor
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the scores [rows, d] and the weights [rows] of all rows, in parts.

    Parameters
    ----------
    problem
        The problem, in float64.
    layout
        The layout of the point.
    x
        The point [d].

    Yields
    ------
    tuple
        The gradients of the log likelihood of each row, unweighted; and the weights of
        the rows, None for weights of 1.

    Raises
    ------
    ValueError
        If the program has no rows, or they share a discrete latent.
    """
    problem.refuse_no_rows()
    for batch in row_batches(problem):
        plain = replace(batch, weights=None, scale=1.0)
        with problem.isolated(), torch.enable_grad():
            point = x.detach().requires_grad_()
            values = layout.constrain(point)
            rows = by_row(problem.likelihood_terms(values, values, plain))
            scores = jacobian(rows, point)
        yield scores, batch.weights
