"""Information criteria of maximum-likelihood fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from probsl.contract import KnowsErrors
from probsl.draws.criteria import criteria
from probsl.fitting import Fit
from probsl.isolation.calls import undisturbed

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["information_criteria"]


@undisturbed
def information_criteria(fits: Fit | Mapping[str, Fit]) -> pd.DataFrame:
    """Return AIC, AICc and BIC of maximum-likelihood fits.

    Parameters
    ----------
    fits
        One fit by MLE, or a mapping from names to several, the first row of the result
        being the first of them.

    Returns
    -------
    DataFrame
        One row per fit: ``log likelihood``; ``k``, the number of estimated parameters,
        own ones and scales included, without directions that the data do not determine;
        ``n``, the number of rows, or the sum of their weights; ``AIC``, ``AICc`` and
        ``BIC``. The lowest is the best; only fits of the same data can be compared.

    Raises
    ------
    TypeError, ValueError
        If a fit is not by MLE, or is not at a maximum of its likelihood.

    Notes
    -----
    See `probsl.draws.criteria.criteria` for the formulas.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
    ...     with pyro.plate("days", 4):
    ...         pyro.sample("y", dist.Poisson(rate), obs=y)
    >>> y = torch.tensor([2.0, 3.0, 1.0, 2.0])
    >>> fit = probsl.fit(program, {"y": y}, probsl.MLE())
    >>> probsl.information_criteria({"rate": fit}).round(2)
          log likelihood  k  n    AIC   AICc   BIC
    rate           -5.63  1  4  13.27  15.27  12.65
    """
    import pandas as pd

    given = fits if isinstance(fits, Mapping) else {"fit": fits}
    if not given:
        raise ValueError("fits is empty; give at least one fit")
    rows = {str(name): _row(str(name), fit) for name, fit in given.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def _row(name: str, fit: Any) -> dict[str, Any]:
    if not isinstance(fit, Fit):
        raise TypeError(f"'{name}' must be what probsl.fit returns, got {fit!r}")
    posterior = fit.posterior
    if not isinstance(posterior, KnowsErrors) or posterior.target.has_priors:
        raise ValueError(
            f"'{name}' is by {type(fit.method).__name__} with priors, and is not the "
            "maximum of a likelihood, which AIC and BIC suppose; fit it by MLE, or "
            "compare fits by elpd_loo or held-out rows, see probsl.compare"
        )
    estimated = posterior.estimated()
    if estimated is None:
        raise ValueError(
            f"'{name}' ended {fit.status.name}, not at a maximum of its likelihood: "
            f"{fit.status.value}"
        )
    maximum, count = fit.log_likelihood(), fit.problem.count
    rows = int(count) if count == int(count) else count
    return {
        "log likelihood": maximum,
        "k": estimated,
        "n": rows,
        **criteria(maximum, estimated, count),
    }
