"""Scores held-out data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from probsl.draws.log_scores import log_score_rows
from probsl.fitting import Fit
from probsl.isolation.calls import undisturbed
from probsl.options import whole_number

if TYPE_CHECKING:
    from torch import Tensor


@undisturbed
def log_score(fit: Fit, data: Any, *, draws: int = 1000, seed: int = 0) -> Tensor:
    """Return the log predictive density of each row of held-out data.

    Parameters
    ----------
    fit
        The fit to score.
    data
        Inputs and observed values, in any form that `probsl.fit` accepts.
    draws
        The number of posterior draws to average over; a point needs only one.
    seed
        Seed of the draws.

    Returns
    -------
    Tensor
        ``log mean_s p(row | draw s)``, shape ``[rows]``, without scales or weights.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    ...     with pyro.plate("data", len(y)):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> fit = probsl.fit(program, {"y": torch.tensor([1.0, 3.0])}, probsl.MLE())
    >>> probsl.log_score(fit, {"y": torch.tensor([2.0])})
    tensor([-0.9189])
    """
    if not isinstance(fit, Fit):
        raise TypeError(f"fit must be what probsl.fit returns, got {fit!r}")
    draws = whole_number("draws", draws)
    problem = fit.problem.with_data(data)
    local = any(problem.is_local(s) for s in problem.latents)
    count = 1 if fit.posterior.is_point and not local else draws
    return log_score_rows(
        problem,
        fit.posterior.draw(count, seed),
        fit.posterior.own,
        count=count,
        seed=seed,
    )
