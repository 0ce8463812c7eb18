"""Lays out one row per parameter, with the fits below each other in each row."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from probsl.plots.canvas import PALE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

# The most rows of a figure if the user does not name sites.
ROW_LIMIT = 40
# A figure of this width, in inches, has space for labels of up to this many letters.
_WIDTH, _LETTERS = 6.4, 18
_LETTER = 0.075
_WIDEST = 12.0
_FIT_HEIGHT = 0.1
_ROW_GAP = 0.12
_MARGINS = 1.0


def height(rows: int, fits: int) -> float:
    """Return the height of a figure with this many rows and fits, in inches."""
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
    """Return the positions of the markers of one fit, one per row.

    Examples
    --------
    >>> from probsl.plots.parameter_rows import positions
    >>> positions(2, 0, 3).round(2)
    array([-0.23,  0.77])
    """
    return np.arange(float(rows)) + 0.7 * ((fit + 0.5) / fits - 0.5)


def _shade(ax: Axes, rows: int) -> None:
    """Shade every second row, all by one artist, because there may be thousands."""
    from matplotlib.collections import PolyCollection

    bands = [
        [(0.0, row - 0.5), (1.0, row - 0.5), (1.0, row + 0.5), (0.0, row + 0.5)]
        for row in range(1, rows, 2)
    ]
    across = ax.get_yaxis_transform()
    shade = PolyCollection(bands, transform=across, color=PALE, linewidth=0, zorder=0)
    ax.add_collection(shade, autolim=False)


def finish_rows(ax: Axes, labels: Sequence[str], xlabel: str, note: str) -> None:
    """Label the rows from top to bottom, and shade every second one."""
    _shade(ax, len(labels))
    low, high = ax.get_xlim()
    if low < 0 < high:
        ax.axvline(0.0, color="0.6", linewidth=0.8, zorder=0.5)
    ax.set_xlim(low, high)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    label = textwrap.fill(xlabel, 60)
    ax.set_xlabel(f"{label}\n({note})" if note else label)
