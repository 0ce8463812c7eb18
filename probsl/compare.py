"""Several fits side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probsl.fit import Fit, log_score
from probsl.methods.point import MLE
from probsl.summary import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

_HELD_OUT = "held out"
IN_SPREADS = "moved / sd"


@dataclass(frozen=True, repr=False)
class Comparison:
    """Several fits side by side; prints itself.

    Attributes
    ----------
    fits
        Name -> fit.
    reference
        Name of the fit that movements are measured from.
    estimates
        One row per parameter, and for each fit the columns ``estimate, sd, lower,
        upper`` (a column index of two levels). A point has no spread.
    shrinkage
        One row per parameter, and for each other fit the columns ``moved`` (its
        estimate less the reference's) and ``moved / sd`` (in standard deviations:
        the reference's where it has a spread, else those of the first fit with one).
    scores
        One row per fit: the status, the log likelihood at the fit's point, the log
        predictive density of the training rows and, where other data were given,
        of those, and the cost.
    """

    fits: Mapping[str, Fit]
    reference: str
    estimates: pd.DataFrame
    shrinkage: pd.DataFrame
    scores: pd.DataFrame

    def __str__(self) -> str:
        parts = [f"{title}\n{table.to_string()}" for title, table in self._tables()]
        told = [
            f"{name}: {fit.message}"
            for name, fit in self.fits.items()
            if fit.status.name != "CONVERGED"
        ]
        return "\n\n".join([*parts, self.caution, *told])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        parts = [f"<h4>{t}</h4>{table.to_html()}" for t, table in self._tables()]
        return "".join([*parts, f"<p>{self.caution}</p>"])

    @property
    def caution(self) -> str:
        """Which scores may be compared, in a sentence."""
        problems = [fit.problem for fit in self.fits.values()]
        if len({problem.observed_digest() for problem in problems}) > 1:
            return "The fits observed different data: their scores cannot be compared."
        held_out = (
            ", or held out, which favors none" if _HELD_OUT in self.scores else ""
        )
        return (
            "Compare scores down a column only: log likelihood and log score are of "
            f"the fitted rows and favor the freer fit{held_out}."
        )

    def _tables(self) -> list[tuple[str, pd.DataFrame]]:
        """Return the tables to print with their titles, their numbers as text."""
        tables = [("Estimates", _side_by_side(self.estimates))]
        if len(self.shrinkage.columns):
            title = f"Moved from {self.reference}"
            tables.append((title, _side_by_side(self.shrinkage)))
        return [*tables, ("Scores", _printable(self.scores))]


def compare(
    fits: Mapping[str, Fit], data: Any = None, reference: str | None = None
) -> Comparison:
    """Put several fits side by side.

    Parameters
    ----------
    fits
        Name -> fit.
    data
        Held-out rows to score the fits on.
    reference
        Name of the fit to measure movements from; None takes the first MLE, else
        the first fit.

    Returns
    -------
    Comparison
        Estimates with their spreads, shrinkage, and scores.

    Raises
    ------
    TypeError
        If `fits` is not a mapping of fits.
    ValueError
        If it is empty, or `reference` names none of them.

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
    reference = default_reference(fits) if reference is None else reference
    if reference not in fits:
        raise ValueError(
            f"reference '{reference}' names none of the fits ({', '.join(fits)})"
        )
    return Comparison(
        fits=dict(fits),
        reference=reference,
        estimates=estimates,
        shrinkage=movements(estimates, reference),
        scores=scores.infer_objects(),
    )


def default_reference(fits: Mapping[str, Fit]) -> str:
    """Return the name of the first MLE fit, else of the first fit."""
    unpenalized = (name for name, fit in fits.items() if isinstance(fit.method, MLE))
    return next(unpenalized, next(iter(fits)))


def movements(estimates: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Return how far each fit moved from the reference.

    Both tables are those of a `Comparison`: its estimates, and its shrinkage.
    """
    import pandas as pd

    names = list(dict.fromkeys(estimates.columns.get_level_values(0)))
    spread = estimates[reference, "sd"]
    for name in names:
        # A constant has a spread of zero, which measures nothing.
        spread = spread.where(spread > 0, estimates[name, "sd"])
    spread = spread.where(spread > 0)
    columns = {}
    for name in names:
        if name != reference:
            moved = estimates[name, "estimate"] - estimates[reference, "estimate"]
            columns[name, "moved"] = moved
            columns[name, IN_SPREADS] = moved / spread
    index = pd.MultiIndex.from_tuples(columns, names=None) if columns else None
    return pd.DataFrame(columns, index=estimates.index, columns=index)


def _scores(fit: Fit, data: Any) -> dict[str, Any]:
    problem = fit.problem
    row: dict[str, Any] = {"status": fit.status.name}
    row["log likelihood"] = fit.log_likelihood()
    row["log score"] = (
        sum(float(log_score(fit, p.arguments).sum()) for p in problem.parts())
        if problem.has_rows
        else math.nan
    )
    if data is not None:
        row[_HELD_OUT] = float(log_score(fit, data).sum())
    row["steps"] = fit.steps
    row["seconds"] = fit.seconds
    return row


def _side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table by fit to print, without intervals and empty columns."""
    import pandas as pd

    columns = {}
    for (name, column), values in table.items():
        if column in COLUMNS[2:] or (column == "sd" and values.isna().all()):
            continue
        write = "{:.2f}".format if column == IN_SPREADS else _number
        columns[name, column] = [
            "" if math.isnan(v) else write(v) for v in values.astype(float)
        ]
    return pd.DataFrame(columns, index=table.index)


def _printable(scores: pd.DataFrame) -> pd.DataFrame:
    table = scores.copy().astype(object)
    for column in table.columns:
        table[column] = [
            ("" if math.isnan(v) else f"{v:.2f}") if isinstance(v, float) else str(v)
            for v in table[column]
        ]
    return table


def _number(value: float) -> str:
    """Write four significant digits, and all digits before the point."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}" if digits < 7 else f"{value:.3e}"
