"""Laplace's approximation of the posterior: a Normal distribution at its mode."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from probsl.contract import Outcome, Status
from probsl.curvature.expected_information import expected_information
from probsl.curvature.information import observed_information
from probsl.curvature.point_covariance import DENSE
from probsl.methods.normal_posterior import NormalPosterior
from probsl.methods.objective import point_objective
from probsl.methods.options import check_options, check_prior_weight, prior_weights
from probsl.methods.point_posterior import PointPosterior
from probsl.methods.point_search import search_point
from probsl.options import whole_number
from probsl.program.target_density import Space, TargetDensity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from probsl.contract import Run
    from probsl.engine.steps.first_order import OptimizerFactory, SchedulerFactory
    from probsl.methods.optimizers import DeterministicOptimizer
    from probsl.methods.starts import Start
    from probsl.program.problem import Problem

__all__ = ["LaplaceApproximation"]

_CURVATURES = ("hessian", "ggn")
_STRUCTURES = ("full", "diagonal")


@dataclass(frozen=True)
class LaplaceApproximation:
    """A distribution: the Normal distribution that touches the posterior at its mode.

    It is Normal in unconstrained space, with the inverse of the curvature at the mode
    for its covariance, and is carried over to the sites.

    Parameters
    ----------
    prior_weight
        Factor of the log prior, as for `MAP`.
    space
        The space of the mode, as for `MAP`: ``"unconstrained"``, with the Jacobian of
        the change of variables, which is the mode of the density that is approximated;
        or ``"constrained"``, the point that `MAP` finds.
    curvature
        ``"hessian"``: the negative Hessian of the log density. ``"ggn"``: the
        generalized Gauss-Newton matrix, its expectation over new data, which has no
        negative curvature; usual for networks. None: the Hessian, or the other one
        where that curves upward; `Fit.note` says so.
    structure
        ``"full"`` or None: all covariances. ``"diagonal"``: none; each latent has the
        variance that is left given all others.
    optimizer, scheduler, clip_norm, max_steps, tolerance, start, starts
        Of the search for the mode, as for `MLE`.

    Raises
    ------
    ValueError
        In a fit, if the search does not end at a mode, or the curvature does not exist.

    Notes
    -----
    Laplace (1774); MacKay (1992) for networks. `Fit.note` states the log marginal
    likelihood, of which this is also an approximation: the log density at the mode plus
    half the log determinant of 2 pi times the covariance.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", 3):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> y = torch.tensor([1.0, 2.0, 3.0])
    >>> fit = probsl.fit(program, {"y": y}, probsl.LaplaceApproximation())
    >>> fit.summary().round(2)
        estimate   sd  lower  upper
    mu       1.5  0.5   0.52   2.48
    >>> fit.note
    'log marginal likelihood -5.950 by Laplace, from the Hessian'
    """

    prior_weight: float | Mapping[str, float] = 1.0
    space: Space = "unconstrained"
    curvature: Literal["hessian", "ggn"] | None = None
    structure: Literal["full", "diagonal"] | None = None
    optimizer: OptimizerFactory | DeterministicOptimizer | None = None
    scheduler: SchedulerFactory | None = None
    clip_norm: float | None = None
    max_steps: int | None = None
    tolerance: float | None = None
    start: Start = None
    starts: int = 1

    def __post_init__(self) -> None:
        check_options(self)
        check_prior_weight(self.prior_weight)
        whole_number("starts", self.starts)
        for option, values in (
            ("space", ("constrained", "unconstrained")),
            ("curvature", (*_CURVATURES, None)),
            ("structure", (*_STRUCTURES, None)),
        ):
            value = getattr(self, option)
            if value not in values:
                known = " or ".join(repr(v) for v in values)
                raise ValueError(f"{option} must be {known}, got {value!r}")

    def run(self, problem: Problem, run: Run) -> Outcome:
        """Fit the problem; see `probsl.fit`."""
        if not problem.latents:
            raise ValueError(
                "LaplaceApproximation needs a latent site, and the program has only "
                "parameters of its own; give them a prior, or use MLE"
            )
        weights = prior_weights(problem, self.prior_weight)
        target = TargetDensity(problem, weights, self.space)
        layout = problem.coordinates()
        _refuse_many(layout.size)
        found = search_point(point_objective(target, layout), self, run)
        if found.status is not Status.CONVERGED:
            about = f" ({', '.join(found.sites)})" if found.sites else ""
            raise ValueError(
                "Laplace's approximation needs a mode, and the search for it ended "
                f"{found.status.name}{about}: {found.status.value}; SVI needs none"
            )
        point = found.posterior
        assert isinstance(point, PointPosterior)  # nothing is integrated out
        x = point.flat().double()
        latents = problem.coordinates([s.name for s in problem.latents])
        size = latents.size - sum(p.start.numel() for p in problem.own_parameters)
        information, how = _information(target, x, self.curvature)
        covariance, damped = _inverse(information[:size, :size], self.structure)
        root = torch.linalg.cholesky(covariance)
        alone = type(latents)(latents.entries[: len(problem.latents)])
        evidence = _log_evidence(target, x, root)
        notes = [f"log marginal likelihood {evidence:.3f} by Laplace, from the {how}"]
        if damped:
            notes.append(
                f"{damped} directions in which the density does not curve downward are "
                "damped: their spread is made up"
            )
        plain = replace(target, space="constrained")
        return replace(
            found,
            posterior=NormalPosterior(plain, point.own, alone, x[:size], root),
            note="; ".join(filter(None, [*notes, found.note])),
        )


def _refuse_many(size: int) -> None:
    if size > DENSE:
        raise ValueError(
            f"Laplace's approximation of {size:,} parameters would take a matrix of "
            f"{size:,} x {size:,}, and at most {DENSE:,} are computed; use SVI with a "
            "mean-field guide"
        )


def _information(
    target: TargetDensity, x: Tensor, curvature: str | None
) -> tuple[Tensor, str]:
    """Return the curvature [d, d] at a point, and how it was computed."""
    target = target.in_double()
    layout = target.problem.coordinates()
    gauss_newton = "generalized Gauss-Newton matrix"
    if curvature == "ggn":
        information, note = expected_information(target, layout, x)
        return information, f"{gauss_newton}{f' ({note})' if note else ''}"
    information = observed_information(target, layout, x)
    if curvature == "hessian" or bool((torch.linalg.eigvalsh(information) > 0).all()):
        return information, "Hessian"
    try:
        information, _ = expected_information(target, layout, x)
    except ValueError:
        return information, "Hessian"
    return information, f"{gauss_newton}, because the Hessian curves upward"


def _inverse(information: Tensor, structure: str | None) -> tuple[Tensor, int]:
    """Return the covariance, and how many directions had to be damped."""
    if structure == "diagonal":
        information = torch.diag(information.diagonal())
    scale = information.diagonal().abs().clamp(min=1e-300).rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * information * scale)
    floor = 1e-10 * values.abs().max()
    damped = values < floor
    kept = torch.where(damped, values.abs().clamp(min=floor), values)
    directions = scale[:, None] * vectors
    covariance = (directions / kept) @ directions.T
    return (covariance + covariance.T) / 2, int(damped.sum())


def _log_evidence(target: TargetDensity, x: Tensor, root: Tensor) -> float:
    """Return the log marginal likelihood."""
    volume = replace(target, space="unconstrained").in_double()
    layout = volume.problem.coordinates()
    with volume.problem.isolated(), torch.no_grad():
        density = float(volume.at(x, layout))
    spread = float(torch.linalg.slogdet(root).logabsdet)
    return density + len(root) * math.log(2 * math.pi) / 2 + spread
