"""Forest plots: estimates and intervals of several fits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from probsl.plots.canvas import canvas, check_axes, color, listed
from probsl.plots.elements import (
    Fits,
    by_sites,
    choose,
    named_fits,
    sites_of,
    tables,
    undetermined,
    written_labels,
)
from probsl.plots.hollow import clipped, draw_markers, legend_with_hollow, shown_range
from probsl.plots.parameter_rows import ROW_LIMIT, finish_rows, height, positions, width

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from probsl.fitting import Fit

# The quantiles of a site's elements that lines connect.
_OUTER, _INNER = (0.025, 0.975), (0.25, 0.75)


@dataclass(frozen=True, eq=False)
class Forest:
    """The data of `plot_forest`.

    Attributes
    ----------
    labels
        One per row.
    tables
        Fit -> the columns ``estimate, lower, upper`` (and ``sd``), one line per row;
        missing if the fit does not have the parameter or the interval. If rows are
        sites, these are quantiles of the elements' estimates, besides ``inner_lower``
        and ``inner_upper``.
    hollow
        Fit -> whether the estimate in each row has no meaning.
    xlabel
        What the horizontal axis shows.
    note
        A note on elements left out.
    """

    labels: tuple[str, ...]
    tables: dict[str, pd.DataFrame]
    hollow: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    xlabel: str = ""
    note: str = ""


def forest(
    fits: Fits,
    prob: float,
    sites: Sequence[str] | None,
    by: Literal["element", "site"] | None = None,
) -> Forest:
    """Compute the data of `plot_forest`; the parameters are the same."""
    named = named_fits(fits)
    if by_sites(named, sites, by):
        return _forest_of_sites(named, sites)
    choice = choose(named, sites, ROW_LIMIT)
    rows = tables(named, choice.elements, prob)
    intervals = any(table["lower"].notna().any() for table in rows.values())
    shown = f" and {100 * prob:g}% interval" if intervals else ""
    return Forest(
        tuple(e.label for e in choice.elements),
        rows,
        {name: undetermined(fit, choice.elements) for name, fit in named.items()},
        f"estimate{shown}",
        choice.note,
    )


def plot_forest(
    fits: Fits,
    prob: float = 0.95,
    sites: Sequence[str] | None = None,
    *,
    by: Literal["element", "site"] | None = None,
    labels: Mapping[str, str] | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot the estimates of several fits with their intervals.

    Markers are estimates and lines are central intervals; point fits have no interval.
    Estimates that the data do not determine, or that have no optimum (UNIDENTIFIED and
    UNBOUNDED), are hollow, and drawn at the edge if they are far outside.

    Parameters
    ----------
    fits
        A comparison, a mapping from names to fits, or one fit.
    prob
        Probability of the intervals.
    sites
        Names of sites, or of elements such as ``w[0]``, all of which are shown; None
        shows the first 40 parameters.
    by
        ``"element"``, or ``"site"`` for one row per site: the median of its elements'
        estimates, and the range of 50% and of 95% of them; None chooses sites above
        1,000 elements.
    labels
        Label of a row -> the text to write instead.
    figsize
        Width and height of a new figure, in inches; None adapts them to the rows.
    title
        A title above the legend.
    ax
        The axes to draw in; None makes a figure, taller if there are more rows.

    Returns
    -------
    Axes
        The axes, with one row per parameter from top to bottom. Its `get_label` is an
        alternative text.

    Raises
    ------
    TypeError
        If `fits` are not fits, `sites` not names, or `ax` not Axes.
    ValueError
        If there are no fits, a site is unknown, or `prob` is not between 0 and 1.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", 3):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> data = {"y": torch.tensor([1.0, 2.0, 3.0])}
    >>> methods = {"MLE": probsl.MLE(), "SVI": probsl.SVI()}
    >>> fits = {name: probsl.fit(program, data, m) for name, m in methods.items()}
    >>> ax = probsl.plot_forest(fits)
    >>> ax.get_xlabel()
    'estimate and 95% interval'
    """
    check_axes(ax)
    drawn = forest(fits, prob, sites, by)
    texts = written_labels(drawn.labels, labels)
    size = figsize or (width(texts), height(len(texts), len(drawn.tables)))
    with canvas(ax, *size) as axes:
        limits = _limits(drawn)
        for position, (name, table) in enumerate(drawn.tables.items()):
            y = positions(len(texts), position, len(drawn.tables))
            hollow = drawn.hollow.get(name, np.zeros(len(texts), dtype=bool))
            _draw_lines(axes, table, y, ~hollow, color(position))
            values = clipped(table["estimate"].to_numpy(float), hollow, limits)
            draw_markers(axes, values, y, hollow, position=position, name=name)
        finish_rows(axes, texts, drawn.xlabel, drawn.note)
        legend_with_hollow(axes, fits, title)
        axes.set_label(
            f"Forest plot of {len(texts)} rows: {drawn.xlabel}, by "
            f"{listed(drawn.tables)}"
        )
    return axes


def _draw_lines(
    ax: Axes,
    table: pd.DataFrame,
    y: NDArray[np.float64],
    solid: NDArray[np.bool_],
    look: str,
) -> None:
    """Draw the intervals; a site's inner one is thicker."""
    for lower, upper, line in (
        ("lower", "upper", 1.6),
        ("inner_lower", "inner_upper", 4.0),
    ):
        if lower in table and table[lower].notna().any():
            ends = table.loc[solid, [lower, upper]].to_numpy(float)
            ax.hlines(y[solid], *ends.T, color=look, linewidth=line)


def _limits(drawn: Forest) -> tuple[float, float] | None:
    """Return the range of the estimates that have a meaning, with their intervals."""
    solid = []
    for name, table in drawn.tables.items():
        rows = table[["estimate", "lower", "upper"]]
        solid.append(rows[~drawn.hollow[name]] if drawn.hollow else rows)
    return shown_range(solid)


def _forest_of_sites(named: Mapping[str, Fit], sites: Sequence[str] | None) -> Forest:
    """Return one row per site: quantiles of the estimates of its elements."""
    import pandas as pd

    found = sites_of(named, sites)
    columns = ["lower", "upper", "inner_lower", "inner_upper", "estimate"]
    levels = [*_OUTER, *_INNER, 0.5]
    rows = {
        name: pd.DataFrame(
            [
                np.quantile(of_fit[name], levels) if name in of_fit else [np.nan] * 5
                for of_fit in found.values()
            ],
            columns=columns,
        )
        for name in named
    }
    return Forest(
        tuple(found),
        rows,
        xlabel="estimates of the elements: median, 50% and 95% of them",
    )
