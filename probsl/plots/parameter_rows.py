"""Parameters down the side, and the fits one below the other in every row."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from probsl.plots.canvas import PALE, legend_above

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

# How many rows a figure has where the user names no sites.
ROW_LIMIT = 40
# Inches; labels up to so many letters have room in a figure of that width.
_WIDTH, _LETTERS = 6.4, 18
_LETTER = 0.075
_WIDEST = 12.0
_FIT_HEIGHT = 0.1
_ROW_GAP = 0.12
_MARGINS = 1.0


def height(rows: int, fits: int) -> float:
    """Return the height of a figure with these rows, in inches."""
    return _MARGINS + rows * (_ROW_GAP + _FIT_HEIGHT * fits)


def width(labels: Sequence[str]) -> float:
    """Return the width of a figure with these labels, in inches.

    Examples
    --------
    >>> from probsl.plots.parameter_rows import width
    >>> width(["w[0]"]), width(["w[0]", "a_site_with_a_name_of_forty_letters_here"])
    (6.4, 8.05)
    """
    longest = max(map(len, labels), default=0)
    return min(_WIDTH + _LETTER * max(0, longest - _LETTERS), _WIDEST)


def positions(rows: int, fit: int, fits: int) -> NDArray[np.float64]:
    """Return where the markers of one fit stand, one per row.

    Examples
    --------
    >>> from probsl.plots.parameter_rows import positions
    >>> positions(2, 0, 3).round(2)
    array([-0.23,  0.77])
    """
    return np.arange(float(rows)) + 0.7 * ((fit + 0.5) / fits - 0.5)


def finish_rows(ax: Axes, labels: Sequence[str], xlabel: str, note: str) -> None:
    """Label the rows from the top down, and shade every other one."""
    for row in range(1, len(labels), 2):
        ax.axhspan(row - 0.5, row + 0.5, color=PALE, linewidth=0, zorder=0)
    low, high = ax.get_xlim()
    if low < 0 < high:
        ax.axvline(0.0, color="0.6", linewidth=0.8, zorder=0.5)
    ax.set_xlim(low, high)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    told = textwrap.fill(xlabel, 60)
    ax.set_xlabel(f"{told}\n({note})" if note else told)
    legend_above(ax)
