"""Plots of the differences of estimates from a reference fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from probsl.comparison import (
    IN_SPREADS,
    Comparison,
    default_reference,
    distances,
    movements,
)
from probsl.options import did_you_mean
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


@dataclass(frozen=True, eq=False)
class Shrinkage:
    """The data of `plot_shrinkage`.

    Attributes
    ----------
    reference
        The fit that the others are compared with.
    moved
        One row per parameter, and for each other fit a column of differences of its
        estimates from the reference.
    in_spreads
        Whether it is in standard deviations, or in the parameters' own units.
    names
        All fits, in order, so that each has the same color as in other plots.
    hollow
        Fit -> whether its difference in each row has no meaning.
    note
        A note on elements left out.
    """

    reference: str
    moved: pd.DataFrame
    in_spreads: bool
    names: tuple[str, ...]
    hollow: dict[str, NDArray[np.bool_]]
    note: str


def shrinkage(
    fits: Fits,
    reference: str | None,
    sites: Sequence[str] | None,
    by: Literal["element", "site"] | None = None,
) -> Shrinkage:
    """Compute the data of `plot_shrinkage`; the parameters are the same."""
    named = named_fits(fits)
    if reference is None and isinstance(fits, Comparison):
        reference = fits.reference
    reference = _checked(named, reference)
    both, hollow, note = (
        _by_site(named, reference, sites)
        if by_sites(named, sites, by)
        else _by_element(named, reference, sites)
    )
    moved = both.xs(IN_SPREADS, axis=1, level=1)
    in_spreads = bool(moved.notna().any(axis=None))
    if not in_spreads:
        moved = both.xs("moved", axis=1, level=1)
    measured = moved.notna().any(axis=1)
    if not measured.any():
        raise ValueError(
            f"no other fit has a parameter of the reference '{reference}', so nothing "
            "moved; give fits of programs that share sites"
        )
    notes = [note] if note else []
    if not measured.all():
        left_out = int((~measured).sum())
        notes.append(f"{left_out} left out, without a reference or a spread")
    return Shrinkage(
        reference,
        moved[measured],
        in_spreads,
        tuple(named),
        {name: rows[measured.to_numpy()] for name, rows in hollow.items()},
        "; ".join(notes),
    )


def _by_element(
    named: Mapping[str, Fit], reference: str, sites: Sequence[str] | None
) -> tuple[pd.DataFrame, dict[str, NDArray[np.bool_]], str]:
    """Return the movements of elements, which of them have no meaning, and a note."""
    import pandas as pd

    choice = choose(named, sites, ROW_LIMIT)
    estimates = pd.concat(tables(named, choice.elements), axis=1)
    from_nowhere = undetermined(named[reference], choice.elements)
    hollow = {
        name: undetermined(fit, choice.elements) | from_nowhere
        for name, fit in named.items()
    }
    return movements(estimates, reference), hollow, choice.note


def _by_site(
    named: Mapping[str, Fit], reference: str, sites: Sequence[str] | None
) -> tuple[pd.DataFrame, dict[str, NDArray[np.bool_]], str]:
    """Return the root mean square movements of sites."""
    import pandas as pd

    estimates = pd.concat({n: f.summary(by="site") for n, f in named.items()}, axis=1)
    estimates = estimates.reindex([*sites_of(named, sites)])
    moved = movements(estimates, reference, distances(named, estimates, reference))
    nothing = np.zeros(len(estimates), dtype=bool)
    return moved, dict.fromkeys(named, nothing), "root mean square over each site"


def plot_shrinkage(
    fits: Fits,
    reference: str | None = None,
    sites: Sequence[str] | None = None,
    *,
    by: Literal["element", "site"] | None = None,
    labels: Mapping[str, str] | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot the difference of every estimate from that of a reference.

    From MLE to MAP and SVI, this is the effect of the prior. Differences are in
    standard deviations of the parameter, those of the reference or else of the first
    fit that has them; parameters without one are left out. If no fit has standard
    deviations, all differences are in the parameters' own units. Differences from or to
    an estimate that the data do not determine, or that has no optimum, are hollow.

    Parameters
    ----------
    fits
        A comparison, or a mapping from names to at least two fits.
    reference
        Name of the fit to measure from; None takes the reference of the comparison,
        or else the first MLE, or else the first fit.
    sites
        Names of sites, or of elements such as ``w[0]``, all of which are shown; None
        shows the first 40 parameters.
    by
        ``"element"``, or ``"site"`` for the root mean square difference of each site's
        elements; None chooses sites above 1,000 elements.
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
        If there are fewer than two fits, they do not share a parameter, or `reference`
        or a site is unknown.

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
    >>> ax = probsl.plot_shrinkage(fits)
    >>> ax.get_xlabel()
    'moved from MLE, in standard deviations'
    """
    check_axes(ax)
    drawn = shrinkage(fits, reference, sites, by)
    others = [name for name in drawn.names if name != drawn.reference]
    texts = written_labels([str(label) for label in drawn.moved.index], labels)
    rows = len(texts)
    size = figsize or (width(texts), height(rows, len(others)))
    with canvas(ax, *size) as axes:
        solid = [drawn.moved.loc[~drawn.hollow[n], [n]] for n in others]
        limits = shown_range(solid)
        for place, name in enumerate(others):
            y, hollow = positions(rows, place, len(others)), drawn.hollow[name]
            moved = clipped(drawn.moved[name].to_numpy(float), hollow, limits)
            fit = drawn.names.index(name)
            axes.hlines(
                y[~hollow], 0.0, moved[~hollow], color=color(fit), linewidth=1.6
            )
            draw_markers(axes, moved, y, hollow, position=fit, name=name)
        unit = "standard deviations" if drawn.in_spreads else "the parameter's own unit"
        xlabel = f"moved from {drawn.reference}, in {unit}"
        finish_rows(axes, texts, xlabel, drawn.note)
        legend_with_hollow(axes, fits, title)
        axes.set_label(
            f"Shrinkage plot of {rows} rows: how far the estimates by {listed(others)} "
            f"{xlabel}"
        )
    return axes


def _checked(fits: Mapping[str, Fit], reference: str | None) -> str:
    if len(fits) < 2:
        raise ValueError(
            "shrinkage is from one fit to another; give at least two, such as "
            '{"MLE": ..., "MAP": ...}'
        )
    if reference is None:
        return default_reference(fits)
    if reference not in list(fits):
        raise ValueError(
            f"reference '{reference}' names none of the fits ({', '.join(fits)})"
            f"{did_you_mean(str(reference), fits)}"
        )
    return reference
