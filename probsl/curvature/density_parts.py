"""A log density as a sum over parts of the rows, each small enough for its derivatives.

Derivatives are computed in float64, whatever the type of the fit: the curvature of a
sum over many rows is a small difference of large numbers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.program.scoring import Batch
from probsl.program.sites import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from probsl.program.coordinates import Coordinates
    from probsl.program.problem import Problem
    from probsl.program.target_density import Density

__all__ = ["density_parts", "row_batches", "separable"]

# Elements of the widest argument in one part of the rows.
_PART_ELEMENTS = 1 << 22


def separable(problem: Problem) -> bool:
    """Return whether the log likelihood is a sum over rows given the flat vector.

    It is not if a latent has one entry per row, which a part of the rows would not
    select, or if a discrete latent is summed out, which rows may share.
    """
    local = any(problem.is_local(site) for site in problem.latents)
    return (
        problem.has_rows
        and not local
        and not problem.data.unclear
        and not problem.sites_with_role(Role.ENUMERATED)
    )


def row_batches(problem: Problem) -> Iterator[Batch]:
    """Yield all rows once, in parts of bounded size, with their weights."""
    if not problem.data.complete:
        for batch in problem.all_rows():
            yield replace(batch, scale=problem.row_scale)
        return
    widths = [
        value.numel() // max(len(value), 1)
        for name in problem.rows
        if torch.is_tensor(value := problem.arguments.values.get(name)) and value.ndim
    ]
    rows = max(1024, _PART_ELEMENTS // max([1, *widths]))
    if rows >= problem.size or not problem.rows or not separable(problem):
        yield problem.batch()
        return
    for start in range(0, problem.size, rows):
        index = torch.arange(start, min(start + rows, problem.size), device="cpu")
        given, weights = problem.data.at(index)
        arguments = {**problem.arguments.values, **given}
        yield Batch(arguments, weights, problem.row_scale)


def density_parts(
    target: Density, layout: Coordinates
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield functions of the flat vector [d] whose sum is the log density.

    The first holds the priors, and all terms that are not of single rows. A density
    from which latents are integrated out has no parts.

    Parameters
    ----------
    target
        The density, of a problem in float64.
    layout
        The layout of the flat vector.
    """
    problem = target.problem
    if target.integrated:
        yield lambda x: target.at(x, layout)
        return

    def part(batch: Batch, place: int) -> Callable[[Tensor], Tensor]:
        if place == 0:
            return lambda x: target.at(x, layout, batch)

        def of_rows(x: Tensor) -> Tensor:
            values = layout.constrain(x)
            terms = problem.likelihood_terms(values, values, batch)
            rows = [term.sum() for term, axis in terms.values() if axis is not None]
            return torch.stack(rows).sum()

        return of_rows

    for place, batch in enumerate(row_batches(problem)):
        yield part(batch, place)
