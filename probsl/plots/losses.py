"""Plots of the objective by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probsl.plots.canvas import canvas, check_axes, color, dashes, legend_above, listed
from probsl.plots.elements import Fits, named_fits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

# Above this ratio of steps of the longest to the shortest fit, use a log scale.
_MANY_TIMES = 5
# The number of windows of a trend, each longer than the one before.
_WINDOWS = 50
# In nats; smaller differences are irrelevant.
_NOTHING = 1e-7
# The scale of losses covers at least this ratio, so that it has ticks.
_SPAN = 1e3
# Fits whose loss rises at this share of the steps are noisy.
_NOISY = 0.2


@dataclass(frozen=True, eq=False)
class Descent:
    """The data of `plot_losses` for one fit.

    Attributes
    ----------
    steps
        The step of each loss, counted from 1.
    gap
        The loss minus the lowest loss of this fit; missing at the lowest, where it is
        zero and has no logarithm.
    trend
        Mean step and mean gap of windows, for noisy fits; empty for others.
    lowest
        The lowest loss.
    """

    steps: NDArray[np.float64]
    gap: NDArray[np.float64]
    trend: tuple[NDArray[np.float64], NDArray[np.float64]]
    lowest: float


def descents(fits: Fits) -> dict[str, Descent]:
    """Compute the data of `plot_losses`.

    Raises
    ------
    ValueError
        If a fit does not have finite losses.
    """
    result = {}
    for name, fit in named_fits(fits).items():
        losses = fit.losses.detach().cpu().double().numpy()
        losses = np.where(np.isfinite(losses), losses, np.nan)
        if not np.isfinite(losses).any():
            raise ValueError(
                f"fit '{name}' has no finite losses to plot ({fit.status.name}); leave "
                "it out"
            )
        lowest = float(np.nanmin(losses))
        gap = losses - lowest
        steps = np.arange(1.0, len(losses) + 1)
        trend = _trend(steps, gap)
        result[name] = Descent(steps, np.where(gap > 0, gap, np.nan), trend, lowest)
    return result


def plot_losses(
    fits: Fits,
    *,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot the objectives of fits by step.

    Objectives of different methods are not comparable, so each is shown as the
    difference from its own lowest value, which the legend states. The lowest point
    itself is not on the log scale, which ends at 1e-7 nats. A line that falls this low
    has converged. Noisy steps level off at the noise; a thick line is their mean over
    windows of steps. A fit that began at its lowest is a triangle at the bottom.

    Parameters
    ----------
    fits
        A comparison, a mapping from names to fits, or one fit.
    figsize
        Width and height of a new figure, in inches.
    title
        A title above the legend.
    ax
        The axes to draw in; None makes a figure.

    Returns
    -------
    Axes
        The axes, with a log scale of losses in nats, and a log scale of steps if the
        numbers of steps differ much. Its `get_label` is an alternative text.

    Raises
    ------
    TypeError
        If `fits` are not fits, or `ax` not Axes.
    ValueError
        If there are no fits, or one has no finite losses.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
    ...     with pyro.plate("days", 3):
    ...         pyro.sample("y", dist.Poisson(rate), obs=y)
    >>> fit = probsl.fit(program, {"y": torch.tensor([2.0, 3.0, 1.0])}, probsl.MAP())
    >>> ax = probsl.plot_losses(fit)
    >>> ax.get_xlabel(), ax.get_yscale()
    ('step', 'log')
    """
    check_axes(ax)
    drawn = descents(fits)
    with canvas(ax, *(figsize or (6.4, 3.6))) as axes:
        for position, (name, descent) in enumerate(drawn.items()):
            noisy = len(descent.trend[0]) > 0
            label = f"{name} (lowest {descent.lowest:.6g})"
            if not (descent.gap > _NOTHING).any():
                _draw_at_the_bottom(axes, descent, color(position), label)
                continue
            axes.plot(
                descent.steps,
                descent.gap,
                linestyle="-" if noisy else dashes(position),
                color=color(position),
                linewidth=0.6 if noisy else 1.4,
                alpha=0.4 if noisy else 1.0,
                marker="." if len(descent.steps) <= 60 else "",
                label="" if noisy else label,
            )
            if noisy:
                axes.plot(
                    *descent.trend, color=color(position), linewidth=1.8, label=label
                )
        lengths = [len(d.steps) for d in drawn.values() if len(d.steps) > 1] or [1]
        axes.set_xscale(
            "log" if max(lengths) > _MANY_TIMES * min(lengths) else "linear"
        )
        if axes.get_xscale() == "linear":
            axes.locator_params(axis="x", integer=True)
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(bottom=max(min(low, high / _SPAN), _NOTHING))
        axes.set_xlabel("step")
        axes.set_ylabel("loss above its lowest (nats)")
        legend_above(axes, title=title)
        axes.set_label(f"Loss by step, above its lowest, of {listed(drawn)}")
    return axes


def _draw_at_the_bottom(ax: Axes, descent: Descent, look: str, label: str) -> None:
    """Mark a fit that began at its lowest, which the log scale cannot show."""
    ax.plot(
        descent.steps[:1],
        [0.0],
        color=look,
        linestyle="none",
        marker="v",
        clip_on=False,
        transform=ax.get_xaxis_transform(),
        label=label,
    )


def _trend(
    steps: NDArray[np.float64], gap: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean steps and gaps of windows; empty for a fit without noise."""
    finite = np.isfinite(gap)
    steps, gap = steps[finite], gap[finite]
    if len(gap) < 4 * _WINDOWS or (np.diff(gap) > 0).mean() < _NOISY:
        return np.empty(0), np.empty(0)
    edges = np.unique(np.geomspace(1, len(gap), _WINDOWS + 1).astype(int)) - 1
    counts = np.diff(np.append(edges[:-1], len(gap)))
    return (
        np.add.reduceat(steps, edges[:-1]) / counts,
        np.add.reduceat(gap, edges[:-1]) / counts,
    )
