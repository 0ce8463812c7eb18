"""The rounding error of an objective, measured at the points where it matters.

Differences of large terms, such as two log gamma functions of large numbers, lose more
digits than the size of the objective suggests. A search that trusts them minimizes
noise. So a decrease that the gradients at both ends do not explain is compared with
the rounding error there and between.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from probsl.engine.minimize.landscape import Landscape

__all__ = ["ON_THE_WAY", "SMALL", "doubtful", "explained", "nearby", "rounding_at"]

# Units in the last place by which a point is moved, so that it rounds differently.
PLACES = 4
# Factor of the distance by which a point is moved, in units, times the square root of
# the error that matters: the effect of curvature is then small.
APART = 0.1
# Safety factor, because the error is the maximum over a few points only.
MARGIN = 3
# Fractions of a step to a flat point at which rounding is measured: beyond the noise
# there may be a flat point, where all differences are rounded to zero.
ON_THE_WAY = (0.5, 0.25)
# A point is flat if the directional derivative is this share of its initial value.
LEVEL = 1e-3
# If gradients explain all but this share of a difference, it is not rounding.
CURVED = 0.01
# Rounding must be at most this share of a decrease.
SMALL = 0.25
# A decrease is explained if the gradients at its ends predict it, to this share.
SHARE = 0.5


def nearby(
    x: Tensor, unit: Tensor, precision: float, count: int, share: float
) -> list[Tensor]:
    """Return points [d] so near to a point [d] that little except rounding differs.

    Parameters
    ----------
    x
        The point.
    unit
        Distance [d] over which each coordinate matters.
    precision
        Machine epsilon.
    count
        Number of points.
    share
        Distance, in units. The error of a difference of large terms may be the same for
        very many neighboring numbers, until the difference has changed by more.
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
    """Return the rounding error of the objective near a point.

    Parameters
    ----------
    landscape
        The objective.
    point
        The point [d], its value and its gradient [d].
    unit
        Distance [d] over which each coordinate matters.
    count
        Number of nearby points to evaluate.
    enough
        An error up to this need not be measured more precisely. A larger one may be
        curvature between neighboring numbers of a narrow valley, which is not counted.
    """
    x, value, gradient = point
    share = APART * math.sqrt(min(enough, 1.0)) if enough < math.inf else 0.0
    near = nearby(x, unit, torch.finfo(x.dtype).eps, count, share)
    value = value - landscape.penalty(x)  # whose kinks are not rounding
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
        level, other_gradient = landscape.value_and_gradient(other)
        mean = (gradient + other_gradient) / 2  # exact if the gradient is linear
        level = level - landscape.penalty(other)
        rest.append(abs(level - value - float(mean @ (other - x))))
    if not all(map(math.isfinite, rest)):
        return math.nan
    return 0.0 if max(rest) < CURVED * max(linear) else MARGIN * max(rest)


def explained(drop: float, before: float, after: float) -> bool:
    """Return whether the gradients at both ends of a step predict its decrease.

    Parameters
    ----------
    drop
        Decrease of the objective over the step.
    before, after
        Directional derivatives along the step at its start and at its end.
    """
    return abs(drop + (before + after) / 2) <= SHARE * drop


def doubtful(drop: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Return whether decreases may lead beyond rounding errors, not to a minimum.

    The gradients do not explain them, and either the end is flat, or the objective
    rises there although it fell by more than any convex function could.

    Parameters
    ----------
    drop, before, after
        As for `explained`; tensors of any shape.
    """
    missed = (drop + (before + after) / 2).abs() > SHARE * drop
    flat = after.abs() <= LEVEL * before.abs()
    return missed & (flat | ((after > 0) & (drop > -before)))
