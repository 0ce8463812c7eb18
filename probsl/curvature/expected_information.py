"""The expected (Fisher) information of a program's parameters.

The information of one observation y with distribution p(x) is the Hessian, at the same
x, of the Kullback-Leibler divergence of p(x) from p at the estimate (Kullback, 1959,
section 2.6), for which torch has closed forms. For Normal distributions of constant
scale it is the Gauss-Newton matrix. Distributions without a closed form are simulated:
the information is the variance of the score, estimated from data drawn at the estimate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from probsl.curvature.density_parts import row_batches
from probsl.curvature.information import summed_hessian
from probsl.curvature.inverse import NoCovarianceError
from probsl.curvature.simulated_information import family, simulated_information
from probsl.program.scoring import Batch, Scoring, site_terms
from probsl.program.sites import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from probsl.program.coordinates import Coordinates
    from probsl.program.problem import Problem
    from probsl.program.target_density import TargetDensity

__all__ = ["expected_information"]

# Families whose divergence is smooth at equality, and exact in torch.
_NAMES = (
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Dirichlet",
    "Exponential",
    "Gamma",
    "Geometric",
    "HalfNormal",
    "MultivariateNormal",
    "Normal",
    "OneHotCategorical",
    "Poisson",
)
_CLOSED = tuple(getattr(torch.distributions, name) for name in _NAMES)


def expected_information(
    target: TargetDensity, layout: Coordinates, x: Tensor
) -> tuple[Tensor, str]:
    """Return the expected information [d, d] at a point [d], and a note on its error.

    Parameters
    ----------
    target
        The density, of a problem in float64. The curvature of its priors is added.
    layout
        The layout of the point.
    x
        The point.

    Raises
    ------
    NoCovarianceError
        If the program has factors, or discrete latents that are summed out, whose
        expectation over new data is not defined.
    """
    problem = target.problem
    _refuse_factors(problem)
    closed = [
        name for name, fn in _distributions(problem, layout, x).items() if _closed(fn)
    ]
    observed = problem.sites_with_role(Role.OBSERVED)
    others = [name for name in observed if name not in closed]
    with problem.isolated():
        parts = _divergences(problem, layout, x, closed)
        information = summed_hessian(parts, x)
        weights = [target.prior_weights.get(s.name, 1.0) for s in problem.latents]
        if any(weights) or target.space == "unconstrained":
            information = information - summed_hessian([_priors(target, layout)], x)
    if not others:
        return information, ""
    simulated, note = simulated_information(problem, layout, x, others)
    return information + simulated, note


def _refuse_factors(problem: Problem) -> None:
    for role, why in (
        (Role.FACTOR, "is a factor, which has no distribution of new data"),
        (Role.ENUMERATED, "is a discrete latent that is summed out"),
    ):
        names = problem.sites_with_role(role)
        if names:
            raise NoCovarianceError(
                f"the expected information does not exist: site '{names[0]}' {why}; "
                "use kind='observed' or kind='sandwich'"
            )


def _distributions(
    problem: Problem, layout: Coordinates, x: Tensor, batch: Batch | None = None
) -> dict[str, Any]:
    """Return observed site -> its distribution at a point."""
    values = layout.constrain(x)
    scoring = Scoring(values, {s.name for s in problem.sites})
    arguments = (batch or problem.batch()).arguments
    with problem.isolated(), torch.no_grad(), scoring:
        problem.run(values, arguments)
    names = problem.sites_with_role(Role.OBSERVED)
    return {name: scoring.messages[name]["fn"] for name in names}


def _closed(fn: Any) -> bool:
    """Return whether a distribution is of a family whose divergence is known.

    A subclass may have another density than its family.
    """
    kind = type(family(fn))
    ours = kind.__module__.split(".")[0] in ("torch", "pyro")
    return ours and issubclass(kind, _CLOSED) and kind.__name__ in _NAMES


class _Divergence(Scoring):
    """Scores observed sites by minus their divergence from given distributions."""

    def __init__(self, values: Any, skip: set[str], known: dict[str, Any]) -> None:
        super().__init__(values, skip)
        self._known = known

    def density(self, msg: Any) -> Tensor:
        return -_divergence(self._known[msg["name"]], msg["fn"])


def _divergence(one: Any, other: Any) -> Tensor:
    """Return the divergence of two distributions of one family, of the batch shape."""
    divergence: Tensor = kl_divergence(family(one), family(other))
    extra = divergence.dim() - len(other.batch_shape)
    if extra > 0:
        divergence = divergence.sum(tuple(range(-extra, 0)))
    return divergence.expand(other.batch_shape)


def _divergences(
    problem: Problem, layout: Coordinates, x: Tensor, names: list[str]
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield functions whose sum is the divergence from the distributions at a point."""
    skip = {site.name for site in problem.sites if site.name not in names}

    def part(batch: Batch, place: int) -> Callable[[Tensor], Tensor]:
        known = _distributions(problem, layout, x, batch)

        def divergence(point: Tensor) -> Tensor:
            values = layout.constrain(point)
            scoring = _Divergence(values, skip, known)
            terms = site_terms(
                lambda: problem.run(values, batch.arguments),
                scoring,
                problem.data_plate,
                batch,
                None,
            )
            counted = [
                t for t, axis in terms.values() if place == 0 or axis is not None
            ]
            return -torch.stack([term.sum() for term in counted]).sum()

        return divergence

    if names:
        for place, batch in enumerate(row_batches(problem)):
            yield part(batch, place)


def _priors(target: TargetDensity, layout: Coordinates) -> Callable[[Tensor], Tensor]:
    """Return the log density of the latents, without that of the data."""
    problem = target.problem
    without = dict.fromkeys(problem.sites_with_role(Role.OBSERVED), 0.0)
    priors = replace(target, prior_weights={**target.prior_weights, **without})
    return lambda x: priors.at(x, layout)
