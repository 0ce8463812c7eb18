"""The log predictive densities of the fitted rows, and those of each row left out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probsl.contract import KnowsDensity
from probsl.draws.mapped import map_draws
from probsl.fitting import log_score
from probsl.psis import LeaveOneOut, leave_one_out

if TYPE_CHECKING:
    from torch import Tensor

    from probsl.fitting import Fit

    Draws = dict[str, Tensor]

DRAWS = 1000
# Draws times rows: so many log densities can be weighted, for they are held together.
_WEIGHED = 30_000_000


@dataclass(frozen=True)
class FittedRows:
    """How well a fit predicts the rows that it was fitted to.

    Attributes
    ----------
    log_score
        Sum of their log predictive densities, as `probsl.log_score` has them; nan
        where the program has no rows to tell apart.
    left_out
        The densities of each row given the others; None where there are none.
    reason
        Why there are none, in a clause; empty for a point, which never has them.
    """

    log_score: float
    left_out: LeaveOneOut | None
    reason: str = ""


def score_fitted_rows(fit: Fit, *, seed: int = 0) -> FittedRows:
    """Score the rows that a fit was fitted to, in one pass over draws of it.

    Leaving a row out weighs the draws by ``p(draw) / q(draw) / p(row | draw)``, where q
    is the guide and p the density that it approximates, with the weights of priors and
    rows: so the error of the guide is corrected for, as far as the weights allow. A
    posterior whose density is unknown is taken to be exact. The program's own
    parameters, and latents at a point, are held at their values.

    Parameters
    ----------
    fit
        Any fit.
    seed
        Seed of the draws.

    References
    ----------
    Magnusson, Andersen, Jonasson and Vehtari (2019), Bayesian leave-one-out
    cross-validation for large data, equation 8.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> from probsl.scores.leave_one_out import score_fitted_rows
    >>> def program(y=None):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    ...     with pyro.plate("data", 4):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> y = torch.tensor([-1.0, 0.2, 0.7, 1.3])
    >>> found = score_fitted_rows(probsl.fit(program, {"y": y}, probsl.SVI()))
    >>> found.left_out.elpd < found.log_score
    True
    """
    problem = fit.problem
    try:
        with problem.isolated(), torch.no_grad():
            problem.log_likelihood_rows(fit.posterior.point(), fit.posterior.own)
    except ValueError as error:  # rows that cannot be told apart
        return FittedRows(math.nan, None, str(error))
    if fit.posterior.is_point:
        return FittedRows(_log_score(fit, seed), None)
    local = any(problem.is_local(s) for s in problem.latents)
    if problem.source is not None or DRAWS * problem.size > _WEIGHED:
        reason = (
            f"{DRAWS:,} draws of {problem.size:,} rows are too many to weigh; score "
            "held-out rows with data= instead"
        )
        return FittedRows(_log_score(fit, seed), None, reason)
    values = fit.posterior.draw(DRAWS, seed)
    rows, ratio = _densities(fit, values, seed)
    # Latents of the rows' own are drawn anew for a log score, and fitted for the rest.
    score = _log_score(fit, seed) if local else _log_mean(rows)
    reason = ""
    if local and problem.weights is not None:
        reason = "rows that have weights and latents of their own cannot be left out"
    elif not bool(rows.isfinite().all() and ratio.isfinite().all()):
        reason = "a draw has a log density that is not finite"
    elif all(torch.equal(v.amax(0), v.amin(0)) for v in values.values()):
        reason = "all its draws are the same"
    if reason:
        return FittedRows(score, None, reason)
    weights = _weights(fit)
    left_out = leave_one_out(rows.cpu().numpy(), ratio.cpu().numpy(), weights)
    return FittedRows(score, left_out)


def _weights(fit: Fit) -> np.ndarray[Any, Any] | None:
    """Return how many rows each one counts as, None for one each."""
    weights, scale = fit.problem.weights, fit.problem.row_scale
    if weights is None:
        return None if scale == 1.0 else np.full(fit.problem.size, scale)
    return scale * weights.cpu().double().numpy()


def _log_score(fit: Fit, seed: int) -> float:
    scores = (
        log_score(fit, part.arguments, draws=DRAWS, seed=seed)
        for part in fit.problem.all_rows()
    )
    return sum(float(score.double().sum()) for score in scores)


def _log_mean(rows: Tensor) -> float:
    return float((torch.logsumexp(rows, 0) - math.log(len(rows))).sum())


def _densities(fit: Fit, values: Draws, seed: int) -> tuple[Tensor, Tensor]:
    """Return the log density of each row, and of p over q, at each draw."""
    problem, posterior = fit.problem, fit.posterior
    own = {name: value.detach() for name, value in posterior.own.items()}

    def densities(draw: Draws) -> Draws:
        found = {"rows": problem.log_likelihood_rows(draw, own)}
        if isinstance(posterior, KnowsDensity):
            found["p"] = posterior.log_target(draw)
        return found

    evaluating = problem.program.evaluating()
    with problem.isolated(seed + 1), torch.no_grad(), evaluating:
        found = map_draws(densities, values, DRAWS, problem.size)
    rows = found["rows"].double()
    if not isinstance(posterior, KnowsDensity):
        return rows, rows.new_zeros(DRAWS)
    return rows, (found["p"] - posterior.log_density(DRAWS, seed)).double()
