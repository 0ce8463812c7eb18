"""Tables of a fit's parameters."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd

COLUMNS = ("estimate", "sd", "lower", "upper")


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
    draws: Mapping[str, Tensor],
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
    draws
        Site -> draws of it, ``[draws, ...]``; sites without a spread are absent.
    prob
        Probability of the interval.
    by_site
        One line per site, with the mean of its elements' columns, instead of one
        line per element.
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
    tail = (1 - prob) / 2
    index, lines = [], []
    for name, value in point.items():
        columns = [value.detach().cpu().reshape(-1).double()]
        if name in draws:
            flat = draws[name].cpu().reshape(len(draws[name]), -1).double()
            quantiles = torch.quantile(flat, flat.new_tensor([tail, 1 - tail]), 0)
            columns += [flat.std(0, correction=0), *quantiles]
        else:
            columns += [torch.full_like(columns[0], torch.nan)] * 3
        table = torch.stack(columns, 1)
        if by_site:
            index += [f"{label} {list(value.shape)}" for label in labels(name, ())]
            lines.append(table.mean(0, keepdim=True))
        else:
            index += labels(name, value.shape)
            lines.append(table)
    rows = torch.cat(lines).numpy() if lines else torch.zeros(0, 4).numpy()
    return pd.DataFrame(rows, index=index, columns=list(COLUMNS))
