"""What rounding does to an objective, measured at the points where it matters.

Differences of large terms, such as two log gamma functions of large numbers, lose more
digits than the size of the objective shows. A search that believes them goes down into
noise. So a drop that the slopes at both of its ends do not explain is held against what
rounding does there and on the way.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from probsl.engine.minimize.landscape import Landscape

__all__ = ["LEVEL", "ON_THE_WAY", "SMALL", "explained", "nearby", "rounding_at"]

# How many units in the last place a point is moved, to round another way.
PLACES = 4
# How far a point is moved, in units, times the root of the error that matters: so that
# its bend counts for little.
APART = 0.1
# The error is that of the worst of a few points, and what a worse one may be.
MARGIN = 3
# Shares of a way to a level place at which rounding is looked for: beyond the noise
# there may be such a place, where all differences are rounded to zero.
ON_THE_WAY = (0.5, 0.25)
# Where a slope is this share of what it was, a place is level.
LEVEL = 1e-3
# Where slopes explain all but this share of a difference, it is no rounding.
CURVED = 0.01
# Rounding is to be this share of a drop, or less.
SMALL = 0.25
# A drop is explained if the slopes at its ends promise as much, to this share.
SHARE = 0.5


def nearby(
    x: Tensor, unit: Tensor, precision: float, count: int, share: float
) -> list[Tensor]:
    """Return points [d] so near to a point [d] that little but rounding differs.

    Parameters
    ----------
    x
        The point.
    unit
        Distance [d] over which each coordinate matters.
    precision
        Machine epsilon.
    count
        How many points.
    share
        How far to go, in units. The error of a difference of large terms may stay as it
        is over very many neighboring numbers, until the difference has changed by more.
    """
    size = torch.maximum(x.abs(), unit.clamp(max=1.0))
    reach = PLACES * precision * size + share * unit
    angles = torch.arange(1, len(x) + 1, dtype=x.dtype, device=x.device)
    return [x + reach * (turn * angles).cos() for turn in range(1, count + 1)]


def rounding_at(
    landscape: Landscape,
    point: tuple[Tensor, float, Tensor],
    unit: Tensor,
    *,
    count: int,
    enough: float = math.inf,
) -> float:
    """Return how large an error of the objective rounding makes near a point.

    Parameters
    ----------
    landscape
        The objective.
    point
        The point [d], its value and its gradient [d].
    unit
        Distance [d] over which each coordinate matters.
    count
        How many points near it are looked at.
    enough
        An error that need not be known better. A larger one may be curvature, between
        neighboring numbers of a narrow valley, and that is not counted.
    """
    x, value, gradient = point
    share = APART * math.sqrt(min(enough, 1.0)) if enough < math.inf else 0.0
    near = nearby(x, unit, torch.finfo(x.dtype).eps, count, share)
    value = value - landscape.penalty(x)  # whose kinks are no rounding
    linear = [
        abs(
            landscape.value(other)
            - landscape.penalty(other)
            - value
            - float(gradient @ (other - x))
        )
        for other in near
    ]
    if not all(map(math.isfinite, linear)):
        return math.nan
    if MARGIN * max(linear) <= enough:
        return MARGIN * max(linear)
    rest = []
    for other in near:
        level, slope = landscape.slope(other)
        mean = (gradient + slope) / 2  # exact where the slope is linear
        level = level - landscape.penalty(other)
        rest.append(abs(level - value - float(mean @ (other - x))))
    if not all(map(math.isfinite, rest)):
        return math.nan
    return 0.0 if max(rest) < CURVED * max(linear) else MARGIN * max(rest)


def explained(drop: float, before: float, after: float) -> bool:
    """Return whether the slopes at both ends of a step promise its drop.

    Parameters
    ----------
    drop
        How much lower the end is.
    before, after
        Slopes along the step at its start and at its end.
    """
    return abs(drop + (before + after) / 2) <= SHARE * drop
