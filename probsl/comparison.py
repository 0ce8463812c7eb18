"""Compares several fits: estimates, shrinkage and scores."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from probsl.contract import KnowsErrors, KnowsTarget
from probsl.data.array_kinds import several
from probsl.draws.summary import COLUMNS
from probsl.fitting import Fit
from probsl.isolation.calls import undisturbed
from probsl.options import did_you_mean
from probsl.progress import phase
from probsl.psis import K_LIMIT
from probsl.scores.held_out import log_score
from probsl.scores.leave_one_out import score_fitted_rows
from probsl.tables import (
    ROWS,
    WIDTH,
    in_width,
    number,
    printable,
    without_rounding_errors,
)

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from probsl.psis import LeaveOneOut
    from probsl.scores.leave_one_out import FittedRows

_HELD_OUT = "held out"
IN_SPREADS = "moved / sd"
_LOO = ("elpd_loo", "se_loo", "p_loo", "worst k")
_RUN = ("status", "steps", "seconds")
_ORDER = ("status", "log likelihood", "log score", _HELD_OUT, *_LOO, "steps", "seconds")
# Above this number of elements in a fit the tables have one row per site.
_ELEMENTS = 1000


@dataclass(frozen=True, repr=False, eq=False)
class Comparison:
    """A comparison of several fits, with a printable form.

    Attributes
    ----------
    fits
        Name -> fit.
    reference
        Name of the fit that differences are measured from.
    estimates
        One row per parameter, lined up by its label, and for each fit the columns
        ``estimate, sd, lower, upper`` (a two-level column index). Those of a point are
        its standard error and its Wald interval. If a fit has more than 1,000 elements
        there is one row per site, as in `Fit.summary`.
    shrinkage
        One row per parameter, and for each other fit the columns ``moved`` (its
        estimate minus the reference's) and ``moved / sd`` (in standard deviations of
        the reference, or else of the first fit that has them). In a row for a whole
        site, ``moved`` is the root mean square difference of its elements, and the
        standard deviation is the mean over its elements.
    scores
        One row per fit: the status, the log likelihood at the fit's point, the log
        predictive density of the training rows (``log score``) and of held-out data if
        given (``held out``); for a distribution the leave-one-out log predictive
        density ``elpd_loo`` with its standard error ``se_loo``, the effective number
        of parameters ``p_loo`` and the largest Pareto shape ``worst k`` of its
        importance weights; and the steps and seconds. The standard error is that of
        one fit; that of the difference of two fits to the same rows is often smaller,
        and can be computed from `left_out`.
    left_out
        Name -> leave-one-out log densities, for fits that have them: ``elpd_rows``
        and ``k_rows`` have one entry per row.
    notes
        Name -> the reason why a distribution has no leave-one-out densities.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     p = pyro.sample("p", dist.Beta(10.0, 10.0))
    ...     with pyro.plate("tosses", 10):
    ...         pyro.sample("y", dist.Bernoulli(p), obs=y)
    >>> heads = {"y": torch.tensor([1.0] * 6 + [0.0] * 4)}
    >>> methods = {"MLE": probsl.MLE(), "MAP": probsl.MAP()}
    >>> fits = {name: probsl.fit(program, heads, m) for name, m in methods.items()}
    >>> comparison = probsl.compare(fits)
    >>> comparison.reference
    'MLE'
    >>> comparison.shrinkage["MAP", "moved"].round(3).tolist()
    [-0.064]
    """

    fits: Mapping[str, Fit]
    reference: str
    estimates: pd.DataFrame
    shrinkage: pd.DataFrame
    scores: pd.DataFrame
    left_out: Mapping[str, LeaveOneOut]
    notes: Mapping[str, str]

    def __str__(self) -> str:
        parts = [
            f"{title}{', continued' if place else ''}\n{part.to_string(max_rows=ROWS)}"
            for title, table in self._tables()
            for place, part in enumerate(in_width(table))
        ]
        sentences = [
            textwrap.fill(each, WIDTH) for each in [self.caution, *self._sentences()]
        ]
        return "\n\n".join([*parts, *sentences])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        parts = [
            f"<h4>{html.escape(title)}</h4>"
            f'<div style="overflow-x: auto">{table.to_html(max_rows=ROWS)}</div>'
            for title, table in self._tables()
        ]
        sentences = [
            f"<p>{html.escape(t)}</p>" for t in [self.caution, *self._sentences()]
        ]
        return "".join([*parts, *sentences])

    @property
    def caution(self) -> str:
        """A statement of which scores may be compared."""
        held_out = _HELD_OUT in self.scores
        problems = [fit.problem for fit in self.fits.values()]
        if len({problem.observed_digest() for problem in problems}) > 1:
            but = ", except held out, which is of the same rows" if held_out else ""
            return (
                "The fits observed different data, so their scores cannot be compared"
                f"{but}."
            )
        fair = [f"elpd_loo where worst k is below {K_LIMIT}"] if self.left_out else []
        fair += ["held out"] if held_out else []
        advice = (
            f"use {', or '.join(fair)}"
            if fair
            else "score rows that they have not seen, by compare(fits, data=...)"
        )
        return (
            "Compare scores within one column. log likelihood and log score are of the "
            "rows that were fitted, on which a weaker prior tends to look better; to "
            f"choose between fits, {advice}."
        )

    def _sentences(self) -> list[str]:
        """Return sentences about individual fits."""
        sentences = [
            f"{name}: {fit.message}"
            for name, fit in self.fits.items()
            if fit.status.name != "CONVERGED"
        ]
        for name, each in self.left_out.items():
            bad = int((each.k_rows >= K_LIMIT).sum())
            if bad:
                sentences.append(
                    f"{name}: elpd_loo is unreliable: {bad} of {len(each.k_rows)} rows "
                    f"{'has' if bad == 1 else 'have'} Pareto k >= {K_LIMIT}; they are "
                    "highly influential, or the guide fits poorly; score held-out rows "
                    "with data= instead"
                )
        sentences += [
            f"{name} has no elpd_loo: {why}" for name, why in self.notes.items()
        ]
        return [*sentences, *self._unmatched()]

    def _unmatched(self) -> list[str]:
        """Say which sites have other elements than in the reference."""
        start, sentences = self.fits[self.reference], []
        base = start.point()
        for name, fit in self.fits.items():
            for site, value in fit.point().items():
                if site not in base:
                    continue
                here = {*start.problem.element_labels(site, base[site].shape)}
                there = fit.problem.element_labels(site, value.shape)
                alone = [label for label in there if label not in here]
                if alone:
                    sentences.append(
                        f"{name} has {several(len(alone), 'element')} of site "
                        f"'{site}' that {self.reference} does not have, such as "
                        f"{alone[0]}; elements are lined up by their labels"
                    )
        return sentences

    def _tables(self) -> list[tuple[str, pd.DataFrame]]:
        """Return the titles and tables to print, with numbers formatted as text."""
        tables = [("Estimates", _side_by_side(self._rounded(self.estimates)))]
        if len(self.shrinkage.columns):
            by_site = _by_site(self.fits)
            means = ", root mean square over each site" if by_site else ""
            title = f"Moved from {self.reference}{means}"
            tables.append((title, _side_by_side(self._rounded(self.shrinkage))))
        scores, run = (printable(self.scores[c]) for c in self._score_columns())
        return [*tables, ("Scores", scores), ("Fits", run)]

    def _rounded(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return a table of estimates or movements without rounding errors."""
        table = table.copy()
        scale = self.estimates.xs("estimate", axis=1, level=1).abs().max(axis=1)
        spread = _spread(self.estimates, self.reference)
        own_units = [column for column in table if column[1] != IN_SPREADS]
        table[own_units] = without_rounding_errors(
            table[own_units], spread, scale.to_frame()
        )
        return table

    def _score_columns(self) -> tuple[list[str], list[str]]:
        scores = [c for c in self.scores.columns if c not in _RUN]
        return scores, list(_RUN)


@undisturbed
def compare(
    fits: Mapping[str, Fit], data: Any = None, reference: str | None = None
) -> Comparison:
    """Compare several fits.

    Parameters
    ----------
    fits
        Name -> fit.
    data
        Held-out rows on which to score the fits.
    reference
        Name of the fit to measure differences from; None uses the first MLE, or
        else the first fit.

    Returns
    -------
    Comparison
        Estimates with their standard deviations and intervals, shrinkage, and scores.

    Raises
    ------
    TypeError
        If `fits` is not a mapping of fits.
    ValueError
        If `fits` is empty, `reference` is not one of them, or `data` do not suit one.

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
    reference = default_reference(fits) if reference is None else reference
    if reference not in list(fits):  # a list: reference may be unhashable
        known = [str(name) for name in fits]
        raise ValueError(
            f"reference '{reference}' names none of the fits ({', '.join(known)})"
            f"{did_you_mean(str(reference), known)}"
        )
    by_site = _by_site(fits)
    by: Literal["site", "element"] = "site" if by_site else "element"
    summaries = {n: fit.summary(by=by, effects=True) for n, fit in fits.items()}
    tables = {name: table[[*COLUMNS]] for name, table in summaries.items()}
    # Keep the order of the fits; pandas would sort the labels alphabetically.
    index = list(dict.fromkeys(i for table in tables.values() for i in table.index))
    estimates = pd.concat({n: t.reindex(index) for n, t in tables.items()}, axis=1)
    with phase("scoring the fitted rows", "fits", len(fits)) as scoring:
        found: dict[str, FittedRows] = {}
        for name, fit in fits.items():
            scoring.report(len(found), str(name))
            found[name] = score_fitted_rows(fit)
    scores = pd.DataFrame({n: _scores(f, found[n], data) for n, f in fits.items()}).T
    order = [c for c in _ORDER if c in scores]
    moved = distances(fits, estimates, reference) if by_site else None
    return Comparison(
        fits=dict(fits),
        reference=reference,
        estimates=estimates,
        shrinkage=movements(estimates, reference, moved),
        scores=scores[order].infer_objects(),
        left_out={n: f.left_out for n, f in found.items() if f.left_out is not None},
        notes={n: f.reason for n, f in found.items() if f.reason},
    )


def default_reference(fits: Mapping[str, Fit]) -> str:
    """Return the name of the first point fit without priors, or else the first."""
    unpenalized = (name for name, fit in fits.items() if _is_unpenalized(fit))
    return next(unpenalized, next(iter(fits)))


def _is_unpenalized(fit: Fit) -> bool:
    """Whether a fit is a point whose density has no prior."""
    posterior = fit.posterior
    of_point = posterior.is_point or isinstance(posterior, KnowsErrors)
    if not isinstance(posterior, KnowsTarget) or not of_point:
        return False
    return not posterior.target.has_priors


def movements(
    estimates: pd.DataFrame, reference: str, moved: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return the difference of each fit from the reference.

    Parameters
    ----------
    estimates
        The `estimates` of a `Comparison`.
    reference
        Name of the fit to measure from.
    moved
        The differences to use instead of those of the estimates.

    Returns
    -------
    DataFrame
        The `shrinkage` of a `Comparison`.
    """
    import pandas as pd

    names = list(dict.fromkeys(estimates.columns.get_level_values(0)))
    spread = _spread(estimates, reference)
    columns = {}
    for name in names:
        if name != reference:
            difference = (
                estimates[name, "estimate"] - estimates[reference, "estimate"]
                if moved is None
                else moved[name]
            )
            columns[name, "moved"] = difference
            columns[name, IN_SPREADS] = difference / spread
    index = pd.MultiIndex.from_tuples(columns, names=None) if columns else None
    return pd.DataFrame(columns, index=estimates.index, columns=index)


def _spread(estimates: pd.DataFrame, reference: str) -> pd.Series:
    """Return the reference's standard deviations, or else those of other fits."""
    spread = estimates[reference, "sd"]
    for name in dict.fromkeys(estimates.columns.get_level_values(0)):
        # A constant has standard deviation zero, which cannot be a unit.
        spread = spread.where(spread > 0, estimates[name, "sd"])
    return spread.where(spread > 0)


def _by_site(fits: Mapping[str, Fit]) -> bool:
    sizes = [sum(v.numel() for v in fit.point().values()) for fit in fits.values()]
    return max(sizes) > _ELEMENTS


def distances(
    fits: Mapping[str, Fit], estimates: pd.DataFrame, reference: str
) -> pd.DataFrame:
    """Return the root mean square difference over the elements of each site.

    In a plain mean, differences of opposite sign would cancel.
    """
    import pandas as pd

    start, columns = fits[reference].point(), {}
    for name, fit in fits.items():
        distances = {}
        rows = fit.summary(by="site", effects=True).index
        for label, (site, value) in zip(rows, fit.point().items(), strict=True):
            if site not in start:
                continue
            here, there = _lined_up(fits[reference], start[site], fit, value, site)
            if len(here):
                moved = there.double() - here.double()
                distances[label] = float(moved.square().mean().sqrt())
        columns[name] = pd.Series(distances, dtype=float)
    return pd.DataFrame(columns).reindex(estimates.index)


def _lined_up(
    reference: Fit, base: Tensor, fit: Fit, value: Tensor, site: str
) -> tuple[Tensor, Tensor]:
    """Return the elements of a site that two fits share, in the same order."""
    here = reference.problem.element_labels(site, base.shape)
    there = fit.problem.element_labels(site, value.shape)
    if here == there:
        return base.reshape(-1), value.reshape(-1)
    places = {label: place for place, label in enumerate(there)}
    shared = [place for place, label in enumerate(here) if label in places]
    others = [places[here[place]] for place in shared]
    return base.reshape(-1)[shared], value.reshape(-1)[others]


def _scores(fit: Fit, fitted: FittedRows, data: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"status": fit.status.name}
    row["log likelihood"] = fit.log_likelihood()
    row["log score"] = fitted.log_score
    if data is not None:
        row[_HELD_OUT] = float(log_score(fit, data).sum())
    if fitted.left_out is not None:
        row["elpd_loo"] = fitted.left_out.elpd
        row["se_loo"] = fitted.left_out.se
        row["p_loo"] = fitted.left_out.p
        row["worst k"] = fitted.left_out.worst_k
    row["steps"] = fit.steps
    row["seconds"] = fit.seconds
    return row


def _side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """Return a printable table by fit, without intervals and empty columns."""
    import pandas as pd

    columns = {}
    for (name, column), values in table.items():
        if column in COLUMNS[2:] or (column == "sd" and values.isna().all()):
            continue
        write = "{:.2f}".format if column == IN_SPREADS else number
        columns[name, column] = [
            "" if math.isnan(v) else write(v) for v in values.astype(float)
        ]
    return pd.DataFrame(columns, index=table.index)
