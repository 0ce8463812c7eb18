"""Forest plots: estimates and intervals of several fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from probsl.plots.canvas import canvas, check_axes, color, marker
from probsl.plots.elements import Fits, choose, named_fits, tables
from probsl.plots.parameter_rows import ROW_LIMIT, finish_rows, height, positions, width

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Forest:
    """The data of `plot_forest`.

    Attributes
    ----------
    labels
        One per row.
    tables
        Fit -> the columns ``estimate, lower, upper`` (and ``sd``), one line per row;
        missing if the fit does not have the parameter or the interval.
    prob
        Probability of the intervals.
    note
        A note on elements left out.
    """

    labels: tuple[str, ...]
    tables: dict[str, pd.DataFrame]
    prob: float
    note: str


def forest(fits: Fits, prob: float, sites: Sequence[str] | None) -> Forest:
    """Compute the data of `plot_forest`; the parameters are the same."""
    named = named_fits(fits)
    choice = choose(named, sites, ROW_LIMIT)
    labels = tuple(e.label for e in choice.elements)
    return Forest(labels, tables(named, choice.elements, prob), prob, choice.note)


def plot_forest(
    fits: Fits,
    prob: float = 0.95,
    sites: Sequence[str] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Plot the estimates of several fits with their intervals.

    Markers are estimates and lines are central intervals; point fits have no interval.

    Parameters
    ----------
    fits
        A comparison, a mapping from names to fits, or one fit.
    prob
        Probability of the intervals.
    sites
        Names of sites, or of elements such as ``w[0]``, all of which are shown; None
        shows the first 40 parameters.
    ax
        The axes to draw in; None makes a figure, taller if there are more rows.

    Returns
    -------
    Axes
        The axes, with one row per parameter from top to bottom.

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
    drawn = forest(fits, prob, sites)
    rows, count = len(drawn.labels), len(drawn.tables)
    with canvas(ax, width(drawn.labels), height(rows, count)) as axes:
        intervals = False
        for position, (name, table) in enumerate(drawn.tables.items()):
            look = color(position)
            y = positions(rows, position, count)
            if table["lower"].notna().any():
                intervals = True
                axes.hlines(
                    y, table["lower"], table["upper"], color=look, linewidth=1.6
                )
            axes.plot(
                table["estimate"],
                y,
                linestyle="none",
                marker=marker(position),
                markersize=4.5,
                label=name,
                color=look,
            )
        shown = f" and {100 * drawn.prob:g}% interval" if intervals else ""
        finish_rows(axes, drawn.labels, f"estimate{shown}", drawn.note)
    return axes
