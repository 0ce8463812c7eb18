"""Tables of a fit's parameters."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.program.coordinates import element_labels

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

COLUMNS = ("estimate", "sd", "lower", "upper")


def summarize(
    point: Mapping[str, Tensor],
    draws: Mapping[str, Tensor],
    prob: float,
    *,
    by_site: bool,
    marks: Mapping[str, str],
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
    marks
        Site -> suffix of its labels.

    Raises
    ------
    TypeError
        If `prob` is not a number.
    ValueError
        If `prob` is not between 0 and 1.
    """
    import pandas as pd

    if not isinstance(prob, Real):
        raise TypeError(f"prob must be a number between 0 and 1, got {prob!r}")
    if not 0 < prob < 1:
        raise ValueError(f"prob must lie between 0 and 1, got {prob}")
    tail = (1 - prob) / 2
    index, lines = [], []
    for name, value in point.items():
        mark = marks.get(name, "")
        columns = [value.detach().cpu().reshape(-1).double()]
        if name in draws:
            flat = draws[name].cpu().reshape(len(draws[name]), -1).double()
            quantiles = torch.quantile(flat, flat.new_tensor([tail, 1 - tail]), 0)
            columns += [flat.std(0, correction=0), *quantiles]
        else:
            columns += [torch.full_like(columns[0], torch.nan)] * 3
        table = torch.stack(columns, 1)
        if by_site:
            index.append(f"{name} {list(value.shape)}{mark}")
            lines.append(table.mean(0, keepdim=True))
        else:
            index += [label + mark for label in element_labels(name, value.shape)]
            lines.append(table)
    rows = torch.cat(lines).numpy() if lines else torch.zeros(0, 4).numpy()
    return pd.DataFrame(rows, index=index, columns=list(COLUMNS))
