"""Functions of the parameters, with their errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.contract import KnowsErrors
from probsl.curvature.point_errors import PointErrors
from probsl.curvature.reported import reported
from probsl.draws.predictions import deterministic_names
from probsl.draws.summary import COLUMNS, check_probability, summarize
from probsl.isolation.calls import undisturbed
from probsl.noise.standardized import representative_count
from probsl.program.coordinates import element_labels
from probsl.uncertainty.points import check_fit, covariance_of, value_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from probsl.curvature.point_covariance import CovarianceKind
    from probsl.fitting import Fit

__all__ = ["delta"]

# The name of a function's value, if the function has none of its own.
_VALUE = "value"


@undisturbed
def delta(
    fit: Fit,
    function: Callable[[dict[str, Tensor]], Any],
    prob: float = 0.95,
    *,
    kind: CovarianceKind | None = None,
    clusters: Any = None,
) -> pd.DataFrame:
    """Return a function of the parameters with its error.

    Parameters
    ----------
    fit
        A fit. For a distribution the function is applied to draws.
    function
        Maps site -> value, as `Fit.point` returns them, to a tensor, or to a mapping
        from names to tensors. It must be differentiable by torch.
    prob
        Probability of the interval.
    kind, clusters
        The covariance of a point, as for `covariance`; None is ``"observed"``.

    Returns
    -------
    DataFrame
        One row per element of the function's value, with the columns ``estimate, sd,
        lower, upper``.

    Raises
    ------
    TypeError, ValueError
        If the function's value is not made of tensors, or the fit has no covariance.

    Notes
    -----
    For a point, the delta method: the variance of f is g' C g, where g is its gradient
    and C the covariance of the estimate; the interval is the Wald interval. It is
    accurate if f is nearly linear within the error of the estimate.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     p = pyro.sample("p", dist.Beta(2.0, 2.0))
    ...     with pyro.plate("tosses", 10):
    ...         pyro.sample("y", dist.Bernoulli(p), obs=y)
    >>> heads = torch.tensor([1.0] * 6 + [0.0] * 4)
    >>> fit = probsl.fit(program, {"y": heads}, probsl.MLE())
    >>> def odds(sites):
    ...     return sites["p"] / (1 - sites["p"])
    >>> probsl.delta(fit, odds).round(3)
          estimate     sd  lower  upper
    odds       1.5  0.968 -0.398  3.398
    """
    check_probability(prob)
    check_fit(fit)
    name = getattr(function, "__name__", "")
    shapes: dict[str, torch.Size] = {}

    def flat(sites: dict[str, Tensor]) -> Tensor:
        label = name if name.isidentifier() else _VALUE
        values = _named(value_of(function, sites), label)
        shapes.update({n: v.shape for n, v in values.items()})
        return torch.cat([v.reshape(-1).double() for v in values.values()])

    spread: PointErrors | dict[str, Tensor]
    if isinstance(fit.posterior, KnowsErrors):
        estimate, spread = _of_point(fit, flat, kind or "observed", clusters)
    elif kind is not None or clusters is not None:
        raise ValueError(
            "kind= and clusters= are of the covariance of points, and this fit is a "
            "distribution, whose draws the function is applied to; leave them out"
        )
    else:
        estimate, spread = _of_draws(fit, flat)
    table = summarize(
        {"": estimate}, spread, prob, by_site=False, labels=lambda *_: _labels(shapes)
    )
    return table[[*COLUMNS]]


def _of_point(
    fit: Fit, flat: Callable[[dict[str, Tensor]], Tensor], kind: Any, clusters: Any
) -> tuple[Tensor, PointErrors]:
    known = covariance_of(fit, kind, clusters)
    names = deterministic_names(fit.problem, by_row=False)
    found = known.of(lambda values: flat(reported(known.problem, values, names)))
    return found.values, PointErrors("", {"": found.sd})


def _of_draws(
    fit: Fit, flat: Callable[[dict[str, Tensor]], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    size = sum(value.numel() for value in fit.point().values())
    count = representative_count(size)
    draws = fit.completed(fit.posterior.representative_draws(count), count)
    each = ({n: v[i] for n, v in draws.items()} for i in range(count))
    values = torch.stack([flat(sites) for sites in each])
    return values.mean(0), {"": values}


def _named(value: Any, name: str) -> dict[str, Tensor]:
    """Return the value of a function as tensors by name."""
    if isinstance(value, Mapping):
        parts = [_named(each, str(key)) for key, each in value.items()]
        return {n: each for part in parts for n, each in part.items()}
    if not torch.is_tensor(value):
        raise TypeError(
            "the function must return a tensor, or a mapping from names to tensors, "
            f"got {type(value).__name__}; compute with torch, so that it can be "
            "differentiated"
        )
    return {name: value}


def _labels(shapes: Mapping[str, torch.Size]) -> list[str]:
    return [label for n, shape in shapes.items() for label in element_labels(n, shape)]
