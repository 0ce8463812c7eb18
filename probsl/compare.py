"""Several fits side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probsl.fit import Fit, log_score
from probsl.summary import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

_BLANK = ""


@dataclass(frozen=True, repr=False)
class Comparison:
    """Several fits side by side; prints itself.

    Attributes
    ----------
    fits
        Name -> fit.
    estimates
        One row per parameter, and for each fit the columns ``estimate, sd, lower,
        upper`` (a column index of two levels). A point has no spread.
    scores
        One row per fit: the status, the log likelihood at the fit's point, the log
        predictive density of the training rows and, where other data were given,
        of those, and the cost.
    """

    fits: Mapping[str, Fit]
    estimates: pd.DataFrame
    scores: pd.DataFrame

    def __str__(self) -> str:
        parts = [_table(_side_by_side(self.estimates)), _table(_printable(self.scores))]
        told = [
            f"{name}: {fit.message}"
            for name, fit in self.fits.items()
            if fit.status.name != "CONVERGED"
        ]
        return "\n\n".join([*parts, *told])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        tables = (_side_by_side(self.estimates), _printable(self.scores))
        html: str = "".join(table.to_html() for table in tables)
        return html


def compare(fits: Mapping[str, Fit], data: Any = None) -> Comparison:
    """Put several fits side by side.

    Parameters
    ----------
    fits
        Name -> fit.
    data
        Held-out rows to score the fits on.

    Returns
    -------
    Comparison
        Estimates with their spreads, and scores.

    Raises
    ------
    TypeError
        If `fits` is not a mapping of fits.
    ValueError
        If it is empty.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     p = pyro.sample("p", dist.Beta(10.0, 10.0))
    ...     with pyro.plate("tosses", 10):
    ...         pyro.sample("y", dist.Bernoulli(p), obs=y)
    >>> heads = {"y": torch.tensor([1.0] * 6 + [0.0] * 4)}
    >>> fits = {
    ...     "MLE": probsl.fit(program, heads, probsl.MLE()),
    ...     "MAP": probsl.fit(program, heads, probsl.MAP()),
    ... }
    >>> probsl.compare(fits).estimates["MAP", "estimate"].round(3)
    p    0.536
    Name: (MAP, estimate), dtype: float64
    """
    import pandas as pd

    if not isinstance(fits, Mapping):
        raise TypeError(
            'fits must map names to fits, such as {"MLE": fit}, got '
            f"{type(fits).__name__}"
        )
    if not fits:
        raise ValueError("fits is empty; give at least one fit to compare")
    for name, fit in fits.items():
        if not isinstance(fit, Fit):
            raise TypeError(f"fits['{name}'] is a {type(fit).__name__}, not a Fit")
    tables = {name: fit.summary() for name, fit in fits.items()}
    # The order of the first fit that has a parameter, not the alphabet's.
    index = list(dict.fromkeys(i for table in tables.values() for i in table.index))
    estimates = pd.concat({n: t.reindex(index) for n, t in tables.items()}, axis=1)
    scores = pd.DataFrame({n: _scores(f, data) for n, f in fits.items()}).T
    return Comparison(dict(fits), estimates, scores.infer_objects())


def _scores(fit: Fit, data: Any) -> dict[str, Any]:
    problem = fit.problem
    row: dict[str, Any] = {"status": fit.status.name}
    row["log likelihood"] = fit.log_likelihood()
    row["log score"] = (
        float(log_score(fit, problem.arguments.values).sum())
        if problem.has_rows
        else math.nan
    )
    if data is not None:
        row["held out"] = float(log_score(fit, data).sum())
    row["steps"] = fit.steps
    row["seconds"] = fit.seconds
    return row


def _side_by_side(estimates: pd.DataFrame) -> pd.DataFrame:
    """Return the table to print: each fit's estimates, and sds where it has them."""
    import pandas as pd

    columns = {}
    for name in dict.fromkeys(estimates.columns.get_level_values(0)):
        for column in COLUMNS[:2]:
            values = estimates[name, column]
            if column == "estimate" or values.notna().any():
                columns[name, column] = values.map(_number)
    return pd.DataFrame(columns)


def _printable(scores: pd.DataFrame) -> pd.DataFrame:
    table = scores.copy().astype(object)
    for column in table.columns:
        table[column] = [
            f"{v:.2f}" if isinstance(v, float) else str(v) for v in table[column]
        ]
    return table


def _number(value: float) -> str:
    """Four significant digits, all digits before the point; nothing for a gap."""
    if math.isnan(value):
        return _BLANK
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}" if digits < 7 else f"{value:.3e}"


def _table(table: pd.DataFrame) -> str:
    text: str = table.to_string()
    return text
