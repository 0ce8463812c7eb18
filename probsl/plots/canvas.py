"""The axes and the style of plots."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

# Okabe and Ito (2008), Color universal design, without yellow, which is too pale for
# lines; ordered so that neighbors also differ in lightness.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# One more marker than colors: the first 56 fits all look different.
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
DASHES = ("-", "--", ":", "-.")
GRAY = "0.45"
PALE = "0.93"

STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.prop_cycle": f"cycler('color', {list(COLORS)})",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,
    "font.size": 10.0,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "savefig.dpi": 150.0,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
}
"""Matplotlib settings of a figure that a plot makes for itself.

Use them for a figure of several plots: ``with plt.style.context(probsl.plots.STYLE)``.
"""


@contextmanager
def canvas(ax: Axes | None, width: float, height: float) -> Iterator[Axes]:
    """Yield the axes to draw in, those of a new pyplot figure if none are given.

    Given axes keep the style of the caller; a new figure has `STYLE`, and is closed
    if drawing fails.

    Parameters
    ----------
    ax
        Axes, checked by `check_axes`, or None.
    width, height
        Size of a new figure, in inches.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from probsl.plots.canvas import canvas
    >>> given = Figure().subplots()
    >>> with canvas(given, 4.0, 3.0) as ax:
    ...     ax is given
    True
    """
    if ax is not None:
        yield ax
        return
    import matplotlib.pyplot as plt

    with plt.style.context(STYLE):
        figure, made = plt.subplots(figsize=(width, height))
        try:
            yield made
        except BaseException:
            plt.close(figure)
            raise


def check_axes(ax: Any) -> None:
    """Raise if `ax` is neither None nor Axes.

    Raises
    ------
    TypeError
        If it is something else, such as the array that ``plt.subplots`` returns.

    Examples
    --------
    >>> from probsl.plots.canvas import check_axes
    >>> check_axes("left")
    Traceback (most recent call last):
    TypeError: ax must be matplotlib Axes or None, got str
    """
    if ax is None:
        return
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes):
        several = "; give one of its elements" if hasattr(ax, "__getitem__") else ""
        several = "" if isinstance(ax, str) else several
        raise TypeError(
            f"ax must be matplotlib Axes or None, got {type(ax).__name__}{several}"
        )


def color(position: int) -> str:
    """Return the color of the fit at a position."""
    return COLORS[position % len(COLORS)]


def marker(position: int) -> str:
    """Return the marker of the fit at a position."""
    return MARKERS[position % len(MARKERS)]


def dashes(position: int) -> str:
    """Return the line style of the fit at a position."""
    return DASHES[position % len(DASHES)]


def legend_lines(names: Sequence[str], width: float) -> int:
    """Return the number of lines of a legend in a figure of this width in inches.

    Examples
    --------
    >>> from probsl.plots.canvas import legend_lines
    >>> legend_lines(["MLE", "MAP", "SVI"], 4.0), legend_lines(["MLE"] * 12, 4.0)
    (1, 3)
    """
    return math.ceil(len(names) / _legend_columns(names, width))


def _legend_columns(names: Sequence[str], width: float) -> int:
    # The widths of texts are estimates, in inches.
    widths = [0.06 * len(name) + 0.5 for name in names]
    fits = len(names) if sum(widths) <= width else int(width / max(widths))
    return max(1, fits)


def listed(names: Iterable[str]) -> str:
    """Return names as a part of a sentence.

    Examples
    --------
    >>> from probsl.plots.canvas import listed
    >>> listed(["MLE", "MAP", "SVI"]), listed(["MLE"])
    ('MLE, MAP and SVI', 'MLE')
    """
    *others, last = map(str, names)
    return f"{', '.join(others)} and {last}" if others else last


def legend_above(
    ax: Axes, handles: Iterable[Artist] | None = None, title: str | None = None
) -> None:
    """Put the legend above the axes, so that it does not cover data.

    A title goes above the legend, which would cover one set by ``ax.set_title``.
    """
    found = ax.get_legend_handles_labels()[0] if handles is None else list(handles)
    if not found:
        if title is not None:
            ax.set_title(title, loc="left")
        return
    # A legend wider than the axes would shrink them, and layout, which comes later,
    # takes additional space for the tick labels.
    letters = max((len(t.get_text()) for t in ax.get_yticklabels()), default=0)
    width = min(
        ax.get_window_extent().width / ax.figure.dpi,
        ax.figure.get_window_extent().width / ax.figure.dpi - 0.075 * letters - 0.3,
    )
    names = [str(handle.get_label()) for handle in found]
    ax.legend(
        handles=found,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0.2,
        columnspacing=1.2,
        frameon=False,
        ncols=_legend_columns(names, width),
        title=title,
        title_fontsize=11.0,
        alignment="left",
    )
