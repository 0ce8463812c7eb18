"""The expected information of distributions without a closed form, by simulation.

It is the variance of the score: the average outer product of the scores of rows over
data drawn at the estimate. The average score itself is zero if the distribution draws
from its own density, which is tested.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.curvature.density_parts import row_batches
from probsl.curvature.inverse import NoCovarianceError, inverted
from probsl.engine.minimize.jacobian import jacobian
from probsl.noise.streams import stream_seed
from probsl.program.scoring import Batch, Scoring, by_row, site_terms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from probsl.program.coordinates import Coordinates
    from probsl.program.problem import Problem

__all__ = ["family", "simulated_information"]

# Sets of data that are simulated, if rows are many and if they are few.
_MANY, _FEW, _ROWS = 200, 1000, 200


def family(fn: Any) -> Any:
    """Return the distribution inside those that declare axes as one event."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn


def simulated_information(
    problem: Problem, layout: Coordinates, x: Tensor, names: list[str]
) -> tuple[Tensor, str]:
    """Return the variance [d, d] of the score over simulated data, and its error.

    Parameters
    ----------
    problem
        The problem, in float64.
    layout, x
        The flat coordinates, and the estimate [d].
    names
        The observed sites to draw again.

    Returns
    -------
    tuple
        The matrix, and a note on how many sets were simulated, and the largest relative
        Monte Carlo error of its diagonal.

    Raises
    ------
    NoCovarianceError
        If a distribution has no sampler, or one that does not suit its density.
    ValueError
        If there are no rows.
    """
    problem.refuse_no_rows("kind='expected' of a distribution without a closed form")
    sets = _MANY if problem.size >= _ROWS else _FEW
    every, totals = [], []
    with problem.isolated(stream_seed(0, "simulated")), torch.enable_grad():
        for _ in range(sets):
            products, total = x.new_zeros(len(x), len(x)), torch.zeros_like(x)
            for scores, weights in _scores(problem, layout, x, names):
                products += scores.T @ (scores * weights[:, None])
                total += scores.sum(0)
            every.append(products)
            totals.append(total)
    mean = torch.stack(every).mean(0)
    _refuse_other_sampler(torch.stack(totals), names)
    spread = torch.stack(every).diagonal(dim1=1, dim2=2).std(0) / sets**0.5
    relative = spread / mean.diagonal().clamp(min=torch.finfo(mean.dtype).tiny)
    return mean, (
        f"the expected information of {', '.join(f'{n!r}' for n in names)} is from "
        f"{sets:,} simulated data sets, to {100 * float(relative.max()):.1g} %"
    )


def _scores(
    problem: Problem, layout: Coordinates, x: Tensor, names: list[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the scores and the weights of all rows with new values, in parts."""
    skip = {site.name for site in problem.sites if site.name not in names}
    for batch in row_batches(problem):
        point = x.detach().requires_grad_()
        values = layout.constrain(point)
        rows = _log_likelihoods(problem, values, batch, _Redrawing(values, skip, names))
        scores = jacobian(rows, point)
        weights = scores.new_ones(len(scores))
        if batch.weights is not None:
            weights = batch.weights
        yield scores, weights * batch.scale


def _log_likelihoods(
    problem: Problem, values: Mapping[str, Tensor], batch: Batch, scoring: Scoring
) -> Tensor:
    terms = site_terms(
        lambda: problem.run(values, batch.arguments),
        scoring,
        problem.data_plate,
        replace(batch, weights=None, scale=1.0),
        None,
    )
    return by_row(terms)


def _refuse_other_sampler(totals: Tensor, names: list[str]) -> None:
    """Refuse samplers under which the expected score is not zero.

    Parameters
    ----------
    totals
        The score of each simulated set of data, ``[sets, d]``.
    names
        The sites that were drawn.
    """
    mean, size = totals.mean(0), totals.shape[1]
    inverse = inverted(torch.cov(totals.T).reshape(size, size) / len(totals)).matrix
    statistic = float(mean @ inverse @ mean)
    # About chi-square: beyond this once in ten thousand programs.
    if statistic > size + 6 * (2 * size) ** 0.5 + 8:
        raise NoCovarianceError(
            f"values drawn for {', '.join(f'{n!r}' for n in names)} do not have the "
            "distribution that its log density states, so its expected information "
            "cannot be simulated; use kind='observed'"
        )


class _Redrawing(Scoring):
    """Draws observed sites again, and scores the values drawn."""

    def __init__(
        self, values: Mapping[str, Tensor], skip: set[str], names: list[str]
    ) -> None:
        super().__init__(values, skip)
        self._names = names

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if msg["name"] in self._names:
            try:
                with torch.no_grad():
                    msg["value"] = msg["fn"].sample()
            except NotImplementedError:
                kind = type(family(msg["fn"])).__name__
                raise NoCovarianceError(
                    f"the expected information of site '{msg['name']}' is simulated, "
                    f"and its distribution {kind} has no sampler; use kind='observed'"
                ) from None
