"""Draws estimates without meaning: hollow, and at the edge if they are far outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from probsl.plots.canvas import GRAY, color, legend_above, marker
from probsl.plots.elements import Fits, named_fits

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Flags = NDArray[np.bool_]

_REASONS = {"UNBOUNDED": "no optimum", "UNIDENTIFIED": "not determined by the data"}
# Share of the range of the other estimates that is free at each side.
_ROOM = 0.15


def shown_range(solid: Iterable[pd.DataFrame]) -> tuple[float, float] | None:
    """Return the range of numbers with meaning, and some room; None without any."""
    values = np.concatenate([table.to_numpy(float).reshape(-1) for table in solid])
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    room = _ROOM * (high - low) or abs(high) or 1.0
    return low - room, high + room


def clipped(values: Array, hollow: Flags, limits: tuple[float, float] | None) -> Array:
    """Return estimates, with the hollow ones moved to the edge of the range.

    Examples
    --------
    >>> import numpy as np
    >>> from probsl.plots.hollow import clipped
    >>> clipped(np.array([9.0, 9.0]), np.array([False, True]), (0.0, 2.0)).tolist()
    [9.0, 2.0]
    """
    if limits is None:
        return values
    return np.where(hollow, np.clip(values, *limits), values)


def draw_markers(
    ax: Axes, values: Array, y: Array, hollow: Flags, *, position: int, name: str
) -> None:
    """Draw the estimates of one fit, hollow if they have no meaning."""
    look: dict[str, Any] = {
        "linestyle": "none",
        "marker": marker(position),
        "markersize": 4.5,
    }
    ax.plot(
        np.where(hollow, np.nan, values), y, color=color(position), label=name, **look
    )
    if hollow.any():
        ax.plot(
            values[hollow],
            y[hollow],
            color=color(position),
            markerfacecolor="none",
            gid="hollow",
            **look,
        )


def legend_with_hollow(ax: Axes, fits: Fits, title: str | None = None) -> None:
    """Put the legend above the axes, and say in it what is hollow."""
    statuses = {fit.status.name for fit in named_fits(fits).values()}
    handles: list[Artist] = ax.get_legend_handles_labels()[0]
    if any(line.get_gid() == "hollow" for line in ax.lines):
        from matplotlib.lines import Line2D

        reasons = [text for status, text in _REASONS.items() if status in statuses]
        hollow = Line2D(
            [],
            [],
            color=GRAY,
            linestyle="none",
            marker="o",
            markersize=4.5,
            markerfacecolor="none",
            label=f"hollow: {' or '.join(reasons)} (clipped)",
        )
        handles = [*handles, hollow]
    legend_above(ax, handles, title)
