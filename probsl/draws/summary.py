"""Tables of a fit's parameters."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.curvature.point_errors import PointErrors, wald_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd

COLUMNS = ("estimate", "sd", "lower", "upper")
# Columns of a point besides: the estimate over its standard error, and the
# probability of one as far from zero if the parameter is zero.
TEST_COLUMNS = ("z", "p")


def check_probability(prob: Any) -> None:
    """Refuse a probability of an interval that is not between 0 and 1.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is not between 0 and 1.
    """
    if not isinstance(prob, Real):
        raise TypeError(f"prob must be a number between 0 and 1, got {prob!r}")
    if not 0 < float(prob) < 1:
        raise ValueError(f"prob must lie between 0 and 1, got {prob}")


def summarize(
    point: Mapping[str, Tensor],
    spread: Mapping[str, Tensor] | PointErrors,
    prob: float,
    *,
    by_site: bool,
    labels: Callable[[str, Sequence[int]], list[str]],
) -> pd.DataFrame:
    """Return estimates, standard deviations and central intervals.

    Parameters
    ----------
    point
        Site -> estimate.
    spread
        Site -> draws of it, ``[draws, ...]``; sites without a spread are absent. Or
        the standard errors of a point, which bring two more columns.
    prob
        Probability of the interval.
    by_site
        One line per site, with the mean of its elements' columns, instead of one
        line per element; z and p are then missing.
    labels
        Labels the elements of a site of a shape; a site as a whole has no shape.

    Raises
    ------
    TypeError
        If `prob` is not a number.
    ValueError
        If `prob` is not between 0 and 1.
    """
    import pandas as pd

    check_probability(prob)
    errors = isinstance(spread, PointErrors)
    columns = COLUMNS + (TEST_COLUMNS if errors else ())
    index, lines = [], []
    for name, value in point.items():
        estimate = value.detach().cpu().reshape(-1).double()
        table = torch.full((len(estimate), len(columns)), torch.nan).double()
        table[:, 0] = estimate
        if isinstance(spread, PointErrors):
            if name in spread.sd:
                table[:, 1:] = _wald_columns(name, value, spread, prob)
        elif name in spread:
            table[:, 1:] = _draw_columns(spread[name], prob)
        if by_site:
            index += [f"{label} {list(value.shape)}" for label in labels(name, ())]
            means = table.mean(0, keepdim=True)
            means[:, len(COLUMNS) :] = torch.nan
            lines.append(means)
        else:
            index += labels(name, value.shape)
            lines.append(table)
    rows = torch.cat(lines).numpy() if lines else torch.zeros(0, len(columns)).numpy()
    return pd.DataFrame(rows, index=index, columns=list(columns))


def _draw_columns(draws: Tensor, prob: float) -> Tensor:
    """Return the standard deviation and the quantiles of draws, ``[elements, 3]``."""
    tail = (1 - prob) / 2
    flat = draws.cpu().reshape(len(draws), -1).double()
    quantiles = torch.quantile(flat, flat.new_tensor([tail, 1 - tail]), 0)
    return torch.stack([flat.std(0, correction=0), *quantiles], 1)


def _wald_columns(name: str, value: Tensor, errors: PointErrors, prob: float) -> Tensor:
    """Return standard errors, intervals, z and p, ``[elements, 5]``."""
    estimate, sd = value.detach().double(), errors.sd[name]
    interval = wald_interval(estimate, sd, prob, errors.ends.get(name))
    z = estimate / sd if errors.tests_zero(name) else torch.full_like(sd, torch.nan)
    p = torch.special.erfc(z.abs() / 2**0.5)
    return torch.stack([c.cpu().reshape(-1) for c in (sd, *interval, z, p)], 1)
