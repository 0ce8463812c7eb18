"""Plots of the predictive distribution along one input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probsl.fitting import Fit
from probsl.plots.canvas import COLORS, canvas, check_axes, legend_above
from probsl.plots.columns import (
    column,
    input_along,
    observed_argument,
    outcomes,
    predicted_site,
    row_inputs,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_BANDS = (0.95, 0.5)
# Up to this many distinct integers are groups rather than a continuous input.
_GROUPS = 12
# Draws times rows.
_DRAWN = 4_000_000


@dataclass(frozen=True, eq=False)
class Prediction:
    """The data of `plot_predictive`.

    Attributes
    ----------
    x_label, y_label
        The labels of the input and of the outcome.
    x
        The input, sorted, ``[points]``.
    middle
        Median of the predictive draws, or mean if they are integers, ``[points]``.
    middle_label
        Whether it is the median or the mean.
    bands
        Probability -> lower and upper limits of the central interval, ``[points]``;
        empty for 0/1 outcomes.
    joined
        Whether the points form a curve: all other inputs are constant, and this one
        is not a group.
    groups
        Value of the input -> label, if it is the index of a group.
    observed
        Inputs and outcomes of the data, or None.
    """

    x_label: str
    y_label: str
    x: Array
    middle: Array
    middle_label: str
    bands: dict[float, tuple[Array, Array]]
    joined: bool
    groups: dict[float, str]
    observed: tuple[Array, Array] | None


def prediction(
    fit: Fit,
    data: Any,
    x: str | None,
    y: str | None,
    site: str | None,
    *,
    draws: int | None,
    seed: int,
) -> Prediction:
    """Compute the data of `plot_predictive`; the parameters are the same."""
    if not isinstance(fit, Fit):
        raise TypeError(f"fit must be a Fit, got {type(fit).__name__}")
    for option, name in {"x": x, "y": y, "site": site}.items():
        if name is not None and not isinstance(name, str):
            raise TypeError(f"{option} must be a name, such as 'x[2]', got {name!r}")
    site, part = predicted_site(fit, y, site)
    y = y or observed_argument(fit, site)
    outcome = outcomes(fit, data, y)
    columns = row_inputs(fit, data)
    x = input_along(x, columns)
    if draws is None:
        draws = min(20_000, max(1_000, _DRAWN // len(columns[x])))
    predicted = fit.predict(data, draws=draws, seed=seed)[site]
    values = column(fit, site, np.asarray(predicted.cpu().double()), part, axis=2)
    across = columns[x]
    if values.shape[1:] != across.shape:
        raise ValueError(
            f"input '{x}' has {len(across)} values, but site '{site}' is predicted in "
            f"{values.shape[1]}; give one value of the input for each prediction"
        )
    others = [c for n, c in columns.items() if n != x]
    alone = all(np.ptp(c) == 0 for c in others)
    groups = _groups(across, fit.problem.arguments.labels.get(x, ()))
    observed = None if outcome is None else (across, outcome)
    if alone:
        across, values = _pooled(across, values)
    order = np.argsort(across, kind="stable")
    across, values = across[order], values[:, order]
    binary = bool(np.isin(values, (0.0, 1.0)).all())
    bands = {} if binary else {p: _interval(values, p) for p in _BANDS}
    # The median of integers moves in steps; the mean of heavy tails is not central.
    whole = bool((values == values.round()).all())
    return Prediction(
        x_label=x,
        y_label=y,
        x=across,
        middle=values.mean(0) if whole else np.median(values, 0),
        middle_label="mean" if whole else "median",
        bands=bands,
        joined=alone and not groups,
        groups=groups,
        observed=observed,
    )


def plot_predictive(
    fit: Fit,
    data: Any,
    x: str | None = None,
    y: str | None = None,
    *,
    site: str | None = None,
    draws: int | None = None,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Plot the predictive distribution along one input, with the data.

    The line is the predictive median, or the mean if outcomes are integers; the bands
    are central 50% and 95% intervals. If other inputs vary too, there is not a single
    curve, and each row has a bar instead; so has each of up to 12 groups, if the input
    is their index. 0/1 outcomes have no bands: their mean is the probability.

    Parameters
    ----------
    fit
        Any fit.
    data
        Inputs to predict for, in any form that `Fit.predict` accepts, and the observed
        values, if they are to be shown. A fine grid gives smooth bands.
    x
        The input on the horizontal axis: an argument with one value per row, or a
        column such as ``x[2]``, ``x[age]`` or only ``age``; may be None if only one
        input varies.
    y
        The observed argument, or a column of it, such as ``y[1]``; None takes the
        only one, or else the one with the name of the site.
    site
        The observed site, or a deterministic site with one value per row; None takes
        the observed site with the name of `y`, or the only one.
    draws
        The number of predictive draws; None takes from 1,000 (many rows) to 20,000
        (few rows).
    seed
        Seed of the draws.
    ax
        The axes to draw in; None makes a figure.

    Returns
    -------
    Axes
        The axes, with predictions, and data as dots.

    Raises
    ------
    TypeError
        If `fit` is not a `Fit`, a name not a string, or `ax` not Axes.
    ValueError
        If `x`, `y` or `site` are unknown or ambiguous, or the data do not suit the
        program.

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
    drawn = prediction(fit, data, x, y, site, draws=draws, seed=seed)
    with canvas(ax, 5.6, 3.8) as axes:
        if drawn.joined:
            _draw_bands(axes, drawn)
        else:
            _draw_bars(axes, drawn)
        if drawn.observed is not None:
            axes.plot(
                *drawn.observed,
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
        legend_above(axes)
    return axes


def _draw_bands(ax: Axes, drawn: Prediction) -> None:
    for prob, (lower, upper) in drawn.bands.items():
        alpha = 0.18 if prob == max(drawn.bands) else 0.3
        ax.fill_between(
            drawn.x,
            lower,
            upper,
            color=COLORS[0],
            alpha=alpha,
            linewidth=0,
            label=f"{100 * prob:g}%",
        )
    ax.plot(
        drawn.x, drawn.middle, color=COLORS[0], linewidth=1.6, label=drawn.middle_label
    )


def _draw_bars(ax: Axes, drawn: Prediction) -> None:
    # Many bars are drawn thinner.
    thick = 3.0 if len(drawn.x) <= _GROUPS else min(1.0, max(0.4, 100 / len(drawn.x)))
    for prob, (lower, upper) in drawn.bands.items():
        width = thick * (0.8 if prob == max(drawn.bands) else 2.4)
        ax.vlines(
            drawn.x,
            lower,
            upper,
            color=COLORS[0],
            alpha=0.3,
            linewidth=width,
            label=f"{100 * prob:g}%",
        )
    ax.plot(
        drawn.x,
        drawn.middle,
        color=COLORS[0],
        linestyle="none",
        marker="_",
        markersize=max(3.0, 5 * thick),
        label=drawn.middle_label,
    )


def _groups(across: Array, labels: Sequence[Any]) -> dict[float, str]:
    """Return group -> label; empty if the input is not the index of a group."""
    values = np.unique(across)
    if len(values) > _GROUPS or (values != values.round()).any():
        return {}
    return {v: str(labels[int(v)] if labels else int(v)) for v in values.tolist()}


def _pooled(across: Array, values: Array) -> tuple[Array, Array]:
    """Keep one row of draws for each distinct value of the input."""
    unique, first = np.unique(across, return_index=True)
    return unique, values[:, first]


def _interval(values: Array, prob: float) -> tuple[Array, Array]:
    lower, upper = np.quantile(values, ((1 - prob) / 2, (1 + prob) / 2), axis=0)
    return lower, upper
