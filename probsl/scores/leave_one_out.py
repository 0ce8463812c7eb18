"""In-sample and leave-one-out log predictive densities of the fitted rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probsl.contract import KnowsDensity, KnowsErrors
from probsl.draws.mapped import map_draws
from probsl.noise.streams import stream_seed
from probsl.psis import LeaveOneOut, leave_one_out
from probsl.scores.held_out import log_score

if TYPE_CHECKING:
    from torch import Tensor

    from probsl.fitting import Fit

    Draws = dict[str, Tensor]

DRAWS = 1000
# The most log densities (draws times rows) to weight; all are in memory at once.
_WEIGHED = 30_000_000


@dataclass(frozen=True)
class FittedRows:
    """Predictive scores of the rows that a fit was fitted to.

    Attributes
    ----------
    log_score
        Sum of their log predictive densities, see `probsl.log_score`; nan if the
        program has no separate rows.
    left_out
        The leave-one-out densities; None if there are none.
    reason
        Why there are none; empty for a point, which never has them.
    """

    log_score: float
    left_out: LeaveOneOut | None
    reason: str = ""


def score_fitted_rows(fit: Fit, *, seed: int = 0) -> FittedRows:
    """Score the rows that a fit was fitted to, in one pass over posterior draws.

    To leave a row out, the draws get importance weights ``p(draw) / q(draw) /
    p(row | draw)``, where q is the guide and p the density that it approximates, with
    the weights of priors and rows. This corrects for the error of the guide, as far as
    the weights allow. A posterior without a known density is taken to be exact. The
    program's own parameters and point latents are fixed at their values.

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
    except ValueError as error:  # the program has no separate rows
        return FittedRows(math.nan, None, str(error))
    if fit.posterior.is_point or isinstance(fit.posterior, KnowsErrors):
        return FittedRows(_log_score(fit, seed), None)
    local = any(problem.is_local(s) for s in problem.latents)
    if not problem.data.complete or DRAWS * problem.size > _WEIGHED:
        reason = (
            f"{DRAWS:,} draws of {problem.size:,} rows are too many to weigh; score "
            "held-out rows with data= instead"
        )
        return FittedRows(_log_score(fit, seed), None, reason)
    values = fit.posterior.draw(DRAWS, seed)
    rows, ratio = _densities(fit, values, seed)
    # The log score redraws latents with one entry per row; the rest uses fitted ones.
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
    """Return the weight of each row, or None if all are 1."""
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
    """Return the log densities of the rows and log p - log q, at each draw."""
    problem, posterior = fit.problem, fit.posterior
    own = {name: value.detach() for name, value in posterior.own.items()}

    def densities(draw: Draws) -> Draws:
        found = {"rows": problem.log_likelihood_rows(draw, own)}
        if isinstance(posterior, KnowsDensity):
            found["p"] = posterior.target.log_density(draw, own)
        return found

    evaluating = problem.program.evaluating()
    with problem.isolated(stream_seed(seed, "scores")), torch.no_grad(), evaluating:
        found = map_draws(densities, values, DRAWS, problem.size)
    rows = found["rows"].double()
    if not isinstance(posterior, KnowsDensity):
        return rows, rows.new_zeros(DRAWS)
    return rows, (found["p"] - posterior.log_density(DRAWS, seed)).double()
