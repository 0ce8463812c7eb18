"""Plots of the differences of estimates from a reference fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from probsl.comparison import IN_SPREADS, Comparison, default_reference, movements
from probsl.options import did_you_mean
from probsl.plots.canvas import canvas, check_axes, color, marker
from probsl.plots.elements import Fits, choose, named_fits, tables
from probsl.plots.parameter_rows import ROW_LIMIT, finish_rows, height, positions, width

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes

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
    note
        A note on elements left out.
    """

    reference: str
    moved: pd.DataFrame
    in_spreads: bool
    names: tuple[str, ...]
    note: str


def shrinkage(
    fits: Fits, reference: str | None, sites: Sequence[str] | None
) -> Shrinkage:
    """Compute the data of `plot_shrinkage`; the parameters are the same."""
    import pandas as pd

    named = named_fits(fits)
    if reference is None and isinstance(fits, Comparison):
        reference = fits.reference
    reference = _checked(named, reference)
    choice = choose(named, sites, ROW_LIMIT)
    estimates = pd.concat(tables(named, choice.elements), axis=1)
    both = movements(estimates, reference)
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
    notes = [choice.note] if choice.note else []
    if not measured.all():
        left_out = int((~measured).sum())
        notes.append(f"{left_out} left out, without a reference or a spread")
    return Shrinkage(
        reference, moved[measured], in_spreads, tuple(named), "; ".join(notes)
    )


def plot_shrinkage(
    fits: Fits,
    reference: str | None = None,
    sites: Sequence[str] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Plot the difference of every estimate from that of a reference.

    From MLE to MAP and SVI, this is the effect of the prior. Differences are in
    standard deviations of the parameter, those of the reference or else of the first
    fit that has them; parameters without one are left out. If no fit has standard
    deviations, all differences are in the parameters' own units.

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
    drawn = shrinkage(fits, reference, sites)
    others = [name for name in drawn.names if name != drawn.reference]
    labels = [str(label) for label in drawn.moved.index]
    rows = len(labels)
    with canvas(ax, width(labels), height(rows, len(others))) as axes:
        for place, name in enumerate(others):
            y, moved = positions(rows, place, len(others)), drawn.moved[name]
            fit = drawn.names.index(name)
            axes.hlines(y, 0.0, moved, color=color(fit), linewidth=1.6)
            axes.plot(
                moved,
                y,
                color=color(fit),
                linestyle="none",
                marker=marker(fit),
                markersize=4.5,
                label=name,
            )
        unit = "standard deviations" if drawn.in_spreads else "the parameter's own unit"
        xlabel = f"moved from {drawn.reference}, in {unit}"
        finish_rows(axes, labels, xlabel, drawn.note)
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
