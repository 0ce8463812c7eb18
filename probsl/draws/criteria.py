"""Information criteria of maximum-likelihood fits."""

from __future__ import annotations

import math

from probsl.tables import number

__all__ = ["criteria", "criteria_facts"]


def criteria(log_likelihood: float, parameters: int, rows: float) -> dict[str, float]:
    """Return AIC, AICc and BIC.

    Parameters
    ----------
    log_likelihood
        At its maximum, in nats.
    parameters
        The number k of estimated parameters.
    rows
        The number n of rows, each counted as often as its weight says.

    Notes
    -----
    AIC = 2 k - 2 log L (Akaike, 1974); AICc adds 2 k (k + 1) / (n - k - 1) (Hurvich and
    Tsai, 1989), and is infinite if n <= k + 1; BIC = k log n - 2 log L (Schwarz, 1978).

    Examples
    --------
    >>> from probsl.draws.criteria import criteria
    >>> {name: round(value, 2) for name, value in criteria(-10.0, 2, 20).items()}
    {'AIC': 24.0, 'AICc': 24.71, 'BIC': 25.99}
    """
    deviance = -2 * log_likelihood
    aic = deviance + 2 * parameters
    left = rows - parameters - 1
    extra = 2 * parameters * (parameters + 1) / left if left > 0 else math.inf
    return {
        "AIC": aic,
        "AICc": aic + extra,
        "BIC": deviance + parameters * math.log(rows),
    }


def criteria_facts(
    log_likelihood: float, parameters: int | None, rows: float
) -> list[str]:
    """Return AIC and BIC for people to read; none without a maximum."""
    if parameters is None:
        return []
    found = criteria(log_likelihood, parameters, rows)
    return [f"{name} {number(found[name])}" for name in ("AIC", "BIC")]
