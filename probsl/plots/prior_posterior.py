"""Plots of the prior and the posterior of each parameter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probsl.plots.canvas import (
    GRAY,
    canvas,
    check_axes,
    color,
    dashes,
    legend_above,
    legend_lines,
    listed,
)
from probsl.plots.elements import Element, Fits, choose, named_fits, written_labels
from probsl.plots.priors import Priors, priors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from torch import Tensor

    from probsl.fitting import Fit

    Array = NDArray[np.float64]

_PANEL_LIMIT = 12
_COLUMNS = 3
# The width of a letter of a tick label, in inches.
_LETTER = 0.075
# Labels longer than this are shortened.
_LETTERS = 26
_DRAWS = 4000
_BINS = 30
_GRID = 401
# A panel is at most this many times as wide as the range of draws: the tails of a
# vague prior, or a diverged point, would compress everything else into a line.
_WIDEST = 3.0


@dataclass(frozen=True, eq=False)
class Panel:
    """The data of `plot_prior_posterior` for one parameter.

    Attributes
    ----------
    label
        The label of the parameter.
    window
        Lowest and highest value shown.
    prior
        Values and their densities; None if the prior has no density of its own.
    prior_histogram
        Edges and densities of bins of prior draws; None if `prior` is given, or there
        is no prior.
    histograms
        Fit -> edges and densities of bins of its draws.
    points
        Fit -> its point estimate.
    """

    label: str
    window: tuple[float, float]
    prior: tuple[Array, Array] | None
    prior_histogram: tuple[Array, Array] | None
    histograms: dict[str, tuple[Array, Array]]
    points: dict[str, float]


def panels(fits: Fits, sites: Sequence[str] | None) -> tuple[list[Panel], str]:
    """Compute the data of `plot_prior_posterior`, and a note on elements left out."""
    named = named_fits(fits)
    _check_one_program(named)
    first = next(iter(named.values()))
    latents = [s.name for s in first.problem.latents]
    choice = choose(named, sites, _PANEL_LIMIT, default=latents)
    prior = priors(first)
    draws = {
        name: fit.draw(1 if fit.posterior.is_point else _DRAWS)
        for name, fit in named.items()
    }
    return [_panel(e, prior, draws) for e in choice.elements], choice.note


def plot_prior_posterior(
    fits: Fits,
    sites: Sequence[str] | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot the prior and the posterior of each parameter.

    The prior is a gray line: its density, or, if it depends on other latents, a
    histogram of draws from the program without data. A posterior is a histogram of
    draws; a point estimate is a vertical line, or an arrowhead if it is far outside.
    The prior is the one in the program, regardless of the prior weight of a fit.

    Parameters
    ----------
    fits
        One fit, or several of one program: a comparison, or a mapping from names.
    sites
        Names of sites, or of elements such as ``w[0]``, all of which are shown; None
        shows the first 12 latent parameters.
    labels
        Label of a parameter -> the text to write instead.
    figsize
        Width and height of a new figure, in inches; None adapts them to the panels.
    title
        A title above the legend.
    ax
        The axes to draw in; None makes a figure.

    Returns
    -------
    Axes
        The plot if there is one parameter; otherwise a blank frame whose
        ``child_axes`` are the panels, each with its own scale. Its `get_label` is an
        alternative text.

    Raises
    ------
    TypeError
        If `fits` are not fits, `sites` not names, or `ax` not Axes.
    ValueError
        If there are no fits, they are of different programs, or a site is unknown.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", 3):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> fit = probsl.fit(program, {"y": torch.tensor([1.0, 2.0, 3.0])}, probsl.SVI())
    >>> ax = probsl.plot_prior_posterior(fit)
    >>> ax.get_xlabel()
    'mu'
    """
    check_axes(ax)
    drawn, note = panels(fits, sites)
    order = list(named_fits(fits))
    rows = math.ceil(len(drawn) / _COLUMNS)
    lines = legend_lines([*order, "prior"], 4.4 if len(drawn) == 1 else 7.0)
    size = (4.8, 3.0) if len(drawn) == 1 else (7.2, 0.2 + 1.6 * rows)
    size = (size[0], size[1] + 0.2 * lines)
    texts = written_labels([panel.label for panel in drawn], labels)
    with canvas(ax, *(figsize or size)) as axes:
        frames = [axes] if len(drawn) == 1 else _grid(axes, len(drawn))
        for frame, panel, text in zip(frames, drawn, texts, strict=True):
            _draw(frame, panel, order)
            frame.set_xlabel(_short(text), labelpad=1.5)
        found = [frame.get_legend_handles_labels() for frame in frames]
        handles = {n: h for hs, ns in found for h, n in zip(hs, ns, strict=True)}
        names = [name for name in ("prior", *order) if name in handles]
        legend_above(axes, [handles[name] for name in names], title)
        if note:
            # Below the labels of the last row of panels.
            axes.annotate(
                f"({note})",
                (1.0, 0.0),
                (0.0, -12.0),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="right",
                va="top",
                fontsize=8.0,
            )
        axes.set_label(f"Prior and posterior of {listed(texts)}, by {listed(order)}")
    return axes


def _check_one_program(fits: Mapping[str, Fit]) -> None:
    programs = {id(fit.problem.program.function) for fit in fits.values()}
    if len(programs) > 1:
        raise ValueError(
            "the fits are of different programs, which have different priors; plot "
            "those of one program together"
        )


def _panel(
    element: Element, prior: Priors, draws: dict[str, dict[str, Tensor]]
) -> Panel:
    values = {name: element.of(sites) for name, sites in draws.items()}
    values = {name: v[np.isfinite(v)] for name, v in values.items()}
    # Own parameters are point estimates under every method.
    spread = {n: v for n, v in values.items() if len(v) and np.ptp(v) > 0}
    points = {n: float(v[0]) for n, v in values.items() if len(v) and n not in spread}
    drawn = element.of(prior.draws) if element.site in prior.draws else None
    low, high = window = _window(drawn, spread, points)
    grid = np.linspace(low, high, _GRID)
    density = prior.density(element, grid)
    histogram = None
    if drawn is not None and density is None:
        histogram = _histogram(drawn, window)
    return Panel(
        label=element.label,
        window=window,
        prior=None if density is None else (grid, density),
        prior_histogram=histogram,
        histograms={n: _histogram(v) for n, v in spread.items()},
        points=points,
    )


def _window(
    prior: Array | None, spread: dict[str, Array], points: dict[str, float]
) -> tuple[float, float]:
    """Return the range to show: the draws, and points and prior as far as they fit."""
    ends = [float(np.quantile(v, q)) for v in spread.values() for q in (0.001, 0.999)]
    shown = np.array(ends or [*points.values()] or [0.0])
    low, high = float(shown.min()), float(shown.max())
    room = (_WIDEST - 1) / 2 * (high - low) if spread else np.inf
    tails = np.empty(0) if prior is None else np.quantile(prior, (0.01, 0.99))
    further = np.clip([low, high, *points.values(), *tails], low - room, high + room)
    low, high = float(further.min()), float(further.max())
    # A single value has room around it too.
    padding = 0.03 * (high - low) or 1e-3 * abs(high) or 1.0
    return low - padding, high + padding


def _histogram(
    draws: Array, window: tuple[float, float] | None = None
) -> tuple[Array, Array]:
    """Return edges and densities of bins, which are more for more draws."""
    low, high = window or np.quantile(draws, (0.0005, 0.9995))
    inside = int(((draws >= low) & (draws <= high)).sum())
    counts, edges = np.histogram(draws, min(_BINS, 5 + inside // 50), (low, high))
    # Draws outside count in the total: a prior with little mass here is low here.
    return edges, counts / (len(draws) * np.diff(edges))


def _grid(ax: Axes, count: int) -> list[Axes]:
    """Return a grid of panels that fills the axes."""
    ax.axis("off")
    rows = math.ceil(count / _COLUMNS)
    columns = min(_COLUMNS, count)
    return [
        ax.inset_axes(
            (
                (place % columns + 0.03) / columns,
                1 - (place // columns + 0.75) / rows,
                0.94 / columns,
                0.68 / rows,
            )
        )
        for place in range(count)
    ]


def _draw(ax: Axes, panel: Panel, order: list[str]) -> None:
    several = len(panel.histograms) > 1
    for name, (edges, density) in panel.histograms.items():
        look, alpha = color(order.index(name)), 0.2 if several else 0.45
        ax.stairs(density, edges, fill=True, color=look, alpha=alpha, label=name)
        if several:  # edges distinguish overlapping histograms
            ax.stairs(density, edges, color=look, linewidth=1.0)
    if panel.prior is not None:
        ax.plot(*panel.prior, color=GRAY, linewidth=1.6, label="prior")
    if panel.prior_histogram is not None:
        edges, density = panel.prior_histogram
        ax.stairs(density, edges, color=GRAY, linewidth=1.6, label="prior")
    for name, value in panel.points.items():
        _draw_point(ax, panel.window, value, order.index(name), name)
    ax.set_xlim(*panel.window)
    ax.set_ylim(bottom=0.0)
    ax.set_yticks([])
    ax.spines[["left", "right", "top"]].set_visible(False)
    ax.tick_params(labelsize=8)
    ax.ticklabel_format(axis="x", useOffset=False)
    _few_ticks(ax)


def _few_ticks(ax: Axes) -> None:
    """Use so few ticks that their labels do not overlap."""
    width = ax.get_window_extent().width / ax.figure.dpi
    for count in (5, 4, 3, 2):
        ax.locator_params(axis="x", nbins=count)
        ticks = ax.xaxis.get_major_formatter().format_ticks([*ax.get_xticks()])
        if (len(ticks) + 1) * _LETTER * max(map(len, ticks), default=0) < width:
            return


def _short(label: str) -> str:
    """Abbreviate the middle of a label that is wider than a panel."""
    keep = _LETTERS // 2
    return label if len(label) <= _LETTERS else f"{label[:keep]}…{label[-keep:]}"


def _draw_point(
    ax: Axes, window: tuple[float, float], value: float, place: int, name: str
) -> None:
    low, high = window
    if low <= value <= high:
        style = dashes(place)
        ax.axvline(
            value, color=color(place), linestyle=style, linewidth=1.6, label=name
        )
        return
    ax.plot(
        low if value < low else high,
        0.3 + 0.15 * place % 0.7,
        color=color(place),
        linestyle="none",
        marker="<" if value < low else ">",
        clip_on=False,
        transform=ax.get_xaxis_transform(),
        label=name,
    )
