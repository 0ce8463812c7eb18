"""Leave-one-out predictive densities by Pareto smoothed importance sampling (PSIS).

Plain numpy: neither torch nor ArviZ is needed. With draws from the posterior of all
rows, the posterior without row i has importance weights ``1 / p(y[i] | draw)``; with
draws from an approximation q of it, ``p(draw) / q(draw) / p(y[i] | draw)``. The largest
weights are replaced by quantiles of a generalized Pareto distribution fitted to them.
Its shape k shows whether the weights are reliable.

References
----------
Vehtari, Gelman and Gabry (2017), Practical Bayesian model evaluation using
leave-one-out cross-validation and WAIC. Vehtari, Simpson, Gelman, Yao and Gabry (2024),
Pareto smoothed importance sampling. Zhang and Stephens (2009), A new and efficient
estimation method for the generalized Pareto distribution. Magnusson, Andersen, Jonasson
and Vehtari (2019), Bayesian leave-one-out cross-validation for large data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

K_LIMIT = 0.7
"""Pareto shapes from here on mean that a leave-one-out density is unreliable."""

# Minimum number of tail draws for a fit.
_TAIL_LEAST = 5
_SMALLEST = math.log(np.finfo(float).tiny)
_NEGLIGIBLE = 10 * np.finfo(float).eps
# Maximum number of elements in temporary arrays.
_CHUNK = 4_000_000


@dataclass(frozen=True, repr=False, eq=False)
class LeaveOneOut:
    """Leave-one-out predictive densities of rows.

    Attributes
    ----------
    elpd_rows
        Log predictive density of each row given the others, ``[rows]``.
    k_rows
        Pareto shape of each row's weights, ``[rows]``: ``inf`` if its tail could not
        be fitted, ``-inf`` if the weights are equal.
    lpd_rows
        Log predictive density of each row given all of them, ``[rows]``.
    """

    elpd_rows: Array
    k_rows: Array
    lpd_rows: Array

    @property
    def elpd(self) -> float:
        """Sum of the rows' leave-one-out log predictive densities, in nats."""
        return float(self.elpd_rows.sum())

    @property
    def se(self) -> float:
        """Standard error of `elpd`, with the rows as a sample; nan for one row."""
        rows = len(self.elpd_rows)
        if rows < 2:
            return math.nan
        return math.sqrt(rows * float(self.elpd_rows.var(ddof=1)))

    @property
    def p(self) -> float:
        """Effective number of parameters: the gain of the rows from being fitted."""
        return float((self.lpd_rows - self.elpd_rows).sum())

    @property
    def worst_k(self) -> float:
        """The largest Pareto shape."""
        return float(self.k_rows.max())

    def __repr__(self) -> str:
        return (
            f"LeaveOneOut(elpd {self.elpd:.2f}, se {self.se:.2f}, p {self.p:.2f}, "
            f"worst k {self.worst_k:.2f}, {len(self.elpd_rows)} rows)"
        )


def leave_one_out(
    log_likelihood: Array,
    log_ratio: Array | None = None,
    weights: Array | None = None,
) -> LeaveOneOut:
    """Return the leave-one-out predictive densities of rows.

    Parameters
    ----------
    log_likelihood
        Log density of each row at each draw, ``[draws, rows]``.
    log_ratio
        ``log p - log q`` of each draw, ``[draws]``, up to a constant: p is the
        posterior density and q the density of the distribution of the draws. None if
        the draws are from the posterior.
    weights
        Weights of the rows in p, ``[rows]``; None for 1. A row is left out with its
        weight, and its density is reported unweighted.

    Raises
    ------
    ValueError
        If there are fewer than two draws, or a log density is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from probsl.psis import leave_one_out
    >>> y = np.array([-1.0, 0.2, 0.7, 1.3])
    >>> mu = y.mean() + np.random.default_rng(0).standard_normal((4000, 1)) / 2
    >>> found = leave_one_out(-0.5 * (y - mu) ** 2 - 0.5 * np.log(2 * np.pi))
    >>> others = (y.sum() - y) / 3
    >>> exact = -0.5 * (y - others) ** 2 * 3 / 4 - 0.5 * np.log(8 / 3 * np.pi)
    >>> bool(abs(found.elpd - exact.sum()) < 0.1), bool(found.worst_k < 0.7)
    (True, True)
    """
    draws, rows = log_likelihood.shape
    ratio = np.zeros(draws) if log_ratio is None else np.asarray(log_ratio, float)
    _check(log_likelihood, ratio)
    elpd, k, lpd = np.empty(rows), np.empty(rows), np.empty(rows)
    step = max(1, _CHUNK // (draws * 4))
    for start in range(0, rows, step):
        chunk = slice(start, start + step)
        density = np.array(log_likelihood[:, chunk].T, float)
        power = 1.0 if weights is None else np.asarray(weights, float)[chunk, None]
        log_weights, k[chunk] = smoothed(ratio - power * density)
        elpd[chunk] = _log_sum(log_weights + density)
        lpd[chunk] = _log_sum(density) - math.log(draws)
    return LeaveOneOut(elpd, k, lpd)


def smoothed(log_ratios: Array) -> tuple[Array, Array]:
    """Smooth the largest importance weights.

    Parameters
    ----------
    log_ratios
        Unnormalized log importance weights, finite, ``[..., draws]``.

    Returns
    -------
    tuple
        Log weights of the same shape, whose exponentials sum to one over the draws; and
        the Pareto shape k, ``[...]``: ``inf`` if fewer than 5 draws are in the tail,
        which is then unchanged, ``-inf`` if all weights are equal.

    Examples
    --------
    >>> import numpy as np
    >>> from probsl.psis import smoothed
    >>> heavy = np.random.default_rng(0).standard_exponential(1000) * 1.5
    >>> log_weights, k = smoothed(heavy)
    >>> bool(k > 0.7), float(np.exp(log_weights).sum()).__round__(6)
    (True, 1.0)
    """
    shape = log_ratios.shape
    x = np.array(log_ratios, float).reshape(-1, shape[-1])
    x -= x.max(1, keepdims=True)
    draws = x.shape[1]
    tail = math.ceil(min(draws / 5, 3 * math.sqrt(draws)))
    order = np.argpartition(x, draws - tail - 1, axis=1)
    cutoff = np.maximum(
        np.take_along_axis(x, order[:, [draws - tail - 1]], 1), _SMALLEST
    )
    # Draws that are not larger than the cutoff are not in the tail, so with equal
    # weights the tail is shorter.
    lengths = (x > cutoff).sum(1)
    k = np.where(np.ptp(x, axis=1) > 0, np.inf, -np.inf)
    for length in np.unique(lengths[lengths >= _TAIL_LEAST]):
        rows = np.flatnonzero(lengths == length)
        step = max(1, _CHUNK // (int(length) * 60))
        for start in range(0, len(rows), step):
            chunk = rows[start : start + step]
            k[chunk] = _smooth(x, order, cutoff, chunk, int(length))
    x -= _log_sum(x)[:, None]
    return x.reshape(shape), k.reshape(shape[:-1])


def _smooth(
    x: Array, order: NDArray[np.intp], cutoff: Array, rows: NDArray[np.intp], n: int
) -> Array:
    """Replace the n largest entries of some rows of x by quantiles; return k."""
    index = order[rows, -n:]
    index = np.take_along_axis(
        index, np.argsort(np.take_along_axis(x[rows], index, 1), axis=1), 1
    )
    tail = np.take_along_axis(x[rows], index, 1)
    least = np.exp(cutoff[rows])
    k, sigma = generalized_pareto(np.exp(tail) - least)
    probability = (np.arange(n) + 0.5) / n
    shape = np.where(np.abs(k) < np.finfo(float).eps, np.finfo(float).eps, k)[:, None]
    with np.errstate(all="ignore"):
        quantiles = sigma[:, None] * np.expm1(-shape * np.log1p(-probability)) / shape
        # No weight becomes larger than the original maximum.
        values = np.minimum(np.log(quantiles + least), 0.0)
    fitted = np.isfinite(values).all(1)
    x[rows[fitted, None], index[fitted]] = values[fitted]
    return np.where(fitted, k, np.inf)


def generalized_pareto(exceedances: Array) -> tuple[Array, Array]:
    """Fit a generalized Pareto distribution with location zero.

    Parameters
    ----------
    exceedances
        Sorted and positive, ``[..., draws]``.

    Returns
    -------
    tuple
        Shape k, shrunk toward 0.5 as by ten more draws, and scale, ``[...]`` each.

    References
    ----------
    Zhang and Stephens (2009), section 4; the shrinkage toward 0.5 is from Vehtari and
    others (2024), appendix G.

    Examples
    --------
    >>> import numpy as np
    >>> from probsl.psis import generalized_pareto
    >>> uniform = np.random.default_rng(0).uniform(size=20_000)
    >>> k, scale = generalized_pareto(np.sort((uniform**-0.3 - 1) / 0.3))
    >>> float(k.round(1)), float(scale.round(1))
    (0.3, 1.0)
    """
    x = exceedances
    n = x.shape[-1]
    points = 30 + math.isqrt(n)
    grid = 1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))
    with np.errstate(all="ignore"):
        quartile = x[..., int(n / 4 + 0.5) - 1, None]
        b = grid / (3 * quartile) + 1 / x[..., -1:]
        each = np.log1p(-b[..., None] * x[..., None, :]).mean(-1)
        profile = n * (np.log(-b / each) - each - 1)
        weight = np.exp(profile - _log_sum(profile)[..., None])
        weight = np.where(weight >= _NEGLIGIBLE, weight, 0.0)
        b = (weight * b).sum(-1) / weight.sum(-1)
        k = np.log1p(-b[..., None] * x).mean(-1)
        scale = -k / b
    return (n * k + 10 * 0.5) / (n + 10), scale


def _check(log_likelihood: Array, log_ratio: Array) -> None:
    if len(log_likelihood) < 2:
        raise ValueError(
            "leave-one-out needs at least two draws, got "
            f"{len(log_likelihood)}; draw more of them"
        )
    if not np.isfinite(log_ratio).all():
        raise ValueError(
            "log_ratio must be finite; leave out the draws whose density is zero or "
            "unknown"
        )
    finite = np.isfinite(log_likelihood).all(0)
    if not finite.all():
        raise ValueError(
            f"log_likelihood must be finite, and row {int(np.argmin(finite))} has a "
            "draw where it is not; leave that draw out"
        )


def _log_sum(x: Array) -> Any:
    largest = x.max(-1)
    return largest + np.log(np.exp(x - largest[..., None]).sum(-1))
