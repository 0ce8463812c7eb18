"""Plots of expected and new outcomes along one input."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probsl.draws.expected import Expected, interval
from probsl.draws.summary import check_probability
from probsl.fitting import Fit
from probsl.options import whole_number
from probsl.plots.canvas import canvas, check_axes, color, legend_above
from probsl.plots.columns import (
    column,
    observed_argument,
    outcomes,
    predicted_site,
    split_label,
    written,
)
from probsl.plots.held_inputs import inputs_along
from probsl.program.sites import Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from probsl.plots.columns import Array
    from probsl.plots.held_inputs import Along

    Band = tuple[Array, Array]

# Draws times rows.
_DRAWN = 4_000_000
# Inputs whose values are written below the plot.
_HELD = 4


@dataclass(frozen=True, eq=False)
class Curve:
    """The mean of an outcome, or the probability of one of its classes.

    Attributes
    ----------
    label
        "mean", or the label of the class.
    middle
        The mean over the posterior, ``[points]``; of an outcome that has none, such as
        a Cauchy, the median of new values.
    band
        Limits of the interval of the mean over the posterior; None for a point.
    new
        Limits of the interval of new outcomes; None for probabilities.
    """

    label: str
    middle: Array
    band: Band | None
    new: Band | None


@dataclass(frozen=True, eq=False)
class Prediction:
    """The data of `plot_predictive`.

    Attributes
    ----------
    x_label, y_label
        The labels of the input and of the outcome.
    x
        The input, sorted, ``[points]``.
    curves
        One, or one for each class.
    groups
        Value of the input -> label, if it is the index of a group.
    held
        Label -> value of the inputs that are held.
    observed
        Inputs and outcomes of the data, or None.
    """

    x_label: str
    y_label: str
    x: Array
    curves: tuple[Curve, ...]
    groups: dict[float, str]
    held: dict[str, str]
    observed: tuple[Array, Array] | None


@dataclass(frozen=True)
class Shown:
    """What a user asks `plot_predictive` for; its parameters are the same."""

    x: str | None = None
    y: str | None = None
    at: Mapping[str, Any] | None = None
    prob: float = 0.95
    draws: int | None = None
    seed: int = 0


def prediction(fit: Fit, data: Any, shown: Shown) -> Prediction:
    """Compute the data of `plot_predictive`."""
    if not isinstance(fit, Fit):
        raise TypeError(f"fit must be a Fit, got {type(fit).__name__}")
    for option in ("x", "y"):
        name = getattr(shown, option)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"{option} must be a name, such as 'x[2]', got {name!r}")
    check_probability(shown.prob)
    if shown.draws is not None:
        whole_number("draws", shown.draws)
    site, part = predicted_site(fit, shown.y)
    y = shown.y or observed_argument(fit, site)
    along = inputs_along(fit, data, shown.x, shown.at)
    try:
        columns = _expected(fit, along, site, part, shown)
    except Exception:
        # Some programs have as many rows as in the data, whatever they are given.
        if along.data is data or len(along.across) == len(along.observed):
            raise
        along = inputs_along(fit, data, shown.x, shown.at, len(along.observed))
        columns = _expected(fit, along, site, part, shown)
    for each in columns:
        _refuse_other_length(each, along)
    order = np.unique(along.across, return_index=True)[1]
    curves = tuple(_curve(c, shown.prob, order) for c in columns)
    # The codes of classes have no height among probabilities.
    classes = columns[0].new is None and _is_observed(fit, site)
    # A site may have another name than the argument that it observes.
    named = split_label(y)[0] != site
    label = y if named else y.replace(site, observed_argument(fit, site), 1)
    outcome = None if classes else outcomes(fit, data, label)
    return Prediction(
        x_label=written(along.label),
        y_label=f"probability of {y}" if classes else y,
        x=along.across[order],
        curves=curves,
        groups=along.groups,
        held=along.held,
        observed=None if outcome is None else (along.observed, outcome),
    )


def plot_predictive(
    fit: Fit,
    data: Any,
    x: str | None = None,
    y: str | None = None,
    *,
    at: Mapping[str, Any] | None = None,
    prob: float = 0.95,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot the expected outcome along one input, with intervals and the data.

    The line is the mean of the outcome: the probability of a 1, the rate of a count; of
    a category there is one line for the probability of each class. The inner band is
    the interval of that mean over the posterior, or over the standard errors of a
    point if it has them, and the outer band that of new outcomes. Up to 12 groups have
    bars instead, if the input is their index.

    If other inputs vary, they are held: numbers at their mean, integers and categories
    at their mode, or as `at` says.

    Parameters
    ----------
    fit
        Any fit.
    data
        Inputs to predict for, in any form that `Fit.predict` accepts, and the observed
        values, if they are to be shown.
    x
        The input on the horizontal axis: an argument with one value per row, or a
        column such as ``x[2]``, ``x[age]`` or only ``age``; may be None if only one
        input varies.
    y
        The outcome: an observed argument or site, a deterministic site with one value
        per row, or a column or class of one, such as ``y[1]``; None takes the only
        observed one.
    at
        Label of another input -> the value at which it is held.
    prob
        Probability of the intervals.
    title
        A title above the legend.
    ax
        The axes to draw in; None makes a figure.

    Returns
    -------
    Axes
        The axes, with predictions, and data as dots. Its `get_label` is an alternative
        text.

    Raises
    ------
    TypeError
        If `fit` is not a `Fit`, a name not a string, or `ax` not Axes.
    ValueError
        If `x`, `y` or an input in `at` are unknown or ambiguous, or the data do not
        suit the program.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(x, y=None):
    ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
    >>> data = {"x": torch.tensor([1.0, 2.0, 3.0]), "y": torch.tensor([0.5, 2.5, 3.0])}
    >>> fit = probsl.fit(program, data, probsl.SVI())
    >>> ax = probsl.plot_predictive(fit, data)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('x', 'y')
    """
    check_axes(ax)
    drawn = prediction(fit, data, Shown(x, y, at, prob))
    share = f"{100 * prob:g}%"
    with canvas(ax, 5.6, 3.8) as axes:
        draw = _draw_bars if drawn.groups else _draw_bands
        for position, curve in enumerate(drawn.curves):
            draw(axes, drawn, position, curve, share)
        if drawn.observed is not None:
            inputs, values = drawn.observed
            # Next to the bars of groups, which they would cover.
            axes.plot(
                inputs + 0.15 if drawn.groups else inputs,
                values,
                color="0.15",
                linestyle="none",
                marker=".",
                markersize=4,
                label="data",
            )
        if drawn.groups:
            axes.set_xticks(list(drawn.groups), list(drawn.groups.values()))
        axes.set_xlabel(drawn.x_label)
        axes.set_ylabel(drawn.y_label)
        if drawn.held:
            _write_held(axes, drawn.held)
        legend_above(axes, title=title)
        axes.set_label(
            f"Expected {drawn.y_label} along {drawn.x_label}, with {share} intervals"
        )
    return axes


def _expected(
    fit: Fit, along: Along, site: str, part: str | None, shown: Shown
) -> Sequence[Expected]:
    """Return the means along the input: one column, or one for each class."""
    draws = shown.draws or min(2_000, max(200, _DRAWN // max(len(along.across), 1)))
    if not _is_observed(fit, site):
        values = fit.predict(along.data, draws=draws, seed=shown.seed)[site]
        means = column(fit, site, np.asarray(values.cpu().double()), part, axis=2)
        spread = None if fit.posterior.is_point else means
        return [Expected(site, None, means, None, spread)]
    found = fit.expected_columns(along.data, [site], draws=draws, seed=shown.seed)
    if part is None and (len(found) == 1 or found[0].new is None):
        return found
    entries = [str(each.entry) for each in found]
    if part is None or part not in entries:
        name = shown.y or site
        several = len(found) > 1
        has = f"{len(found)} columns" if several else "one value per row"
        name_one = (
            f"name one of them, from '{site}[{entries[0]}]' to '{site}[{entries[-1]}]'"
        )
        remedy = name_one if several else f"name it '{site}'"
        raise ValueError(f"'{name}' cannot be drawn: '{site}' has {has}; {remedy}")
    return [found[entries.index(part)]]


def _is_observed(fit: Fit, site: str) -> bool:
    """Return whether a site is observed, and not computed."""
    return site in fit.problem.sites_with_role(Role.OBSERVED)


def _curve(expected: Expected, prob: float, order: Any) -> Curve:
    middle, label = expected.means.mean(0)[order], expected.entry or "mean"
    limits, new = expected.interval(prob), expected.new
    band = None if limits is None else (limits[0][order], limits[1][order])
    if new is None:
        return Curve(label, middle, band, None)
    new = new[:, order]
    if np.isnan(middle).any():
        return Curve("median", np.median(new, 0), None, interval(new, prob))
    # New values of 0 and 1 are from 0 to 1 almost everywhere.
    yes_or_no = bool(np.isin(new, (0.0, 1.0)).all())
    return Curve(
        "mean",
        middle,
        band,
        None if yes_or_no else interval(new, prob),
    )


def _refuse_other_length(expected: Expected, along: Along) -> None:
    if expected.means.shape[1] != len(along.across):
        raise ValueError(
            f"input '{along.label}' has {len(along.across)} values, but site "
            f"'{expected.site}' is predicted in {expected.means.shape[1]}; give one "
            "value of the input for each prediction"
        )


def _draw_bands(
    ax: Axes, drawn: Prediction, position: int, curve: Curve, share: str
) -> None:
    look, alone = color(position), len(drawn.curves) == 1
    bands = {f"{share} of new values": (curve.new, 0.15)}
    bands[f"{share} of the {curve.label}" if alone else "_"] = (curve.band, 0.3)
    for label, (band, alpha) in bands.items():
        if band is not None:
            ax.fill_between(
                drawn.x,
                *band,
                color=look,
                alpha=alpha,
                linewidth=0,
                label=label,
            )
    ax.plot(drawn.x, curve.middle, color=look, linewidth=1.6, label=curve.label)


def _draw_bars(
    ax: Axes, drawn: Prediction, position: int, curve: Curve, share: str
) -> None:
    look, count = color(position), len(drawn.curves)
    place = drawn.x + 0.5 * ((position + 0.5) / count - 0.5)
    bars = {f"{share} of new values": (curve.new, 2.4, 0.3)}
    bars[f"{share} of the {curve.label}" if count == 1 else "_"] = (
        curve.band,
        7.0,
        0.3,
    )
    for label, (band, width, alpha) in bars.items():
        if band is not None:
            ax.vlines(
                place,
                *band,
                color=look,
                alpha=alpha,
                linewidth=width,
                label=label,
            )
    ax.plot(
        place,
        curve.middle,
        color=look,
        linestyle="none",
        marker="_",
        markersize=12,
        label=curve.label,
    )


def _write_held(ax: Axes, held: Mapping[str, str]) -> None:
    """Write the values of the held inputs below the horizontal axis."""
    texts = [f"{written(label)} = {value}" for label, value in held.items()]
    others = len(texts) - _HELD
    if others > 1:
        texts = [*texts[:_HELD], f"{others} other inputs at their mean or mode"]
    note = textwrap.fill("with " + ", ".join(texts), 70)
    ax.set_xlabel(f"{ax.get_xlabel()}\n({note})")
