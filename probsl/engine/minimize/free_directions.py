"""Whether directions without curvature are free: judged elsewhere than at one point.

A Hessian is zero where a direction is free, but also at the turn of a curve of the
fourth order, on a level stretch between two kinks, and at a point where code such as
``log1p(exp(-abs(x)))`` bends without its derivative's noticing. So one goes aside:
along a free direction nothing is gained or lost, or what was lost is made good
elsewhere than where one came from. Along any other one comes back. And from a saddle
of higher order the way leads down.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from probsl.engine.minimize.curvature import curvature_scale
from probsl.engine.minimize.descent import Descent, array, is_finite
from probsl.engine.minimize.landscape import Landscape

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from probsl.engine.minimize.minimum import Minimum, Verdict

    Array = NDArray[np.float64]

__all__ = ["free_part", "level_at", "lower_aside"]

# How far aside, in units of the coordinates.
ASIDE = (1e-3, 0.1, 1.0)
# So much of the way must be left for a direction to be free.
LEFT = 0.5
# So many directions are followed one by one; more are taken for free.
FOLLOWED = 10
# Steps of the way back.
BACK = 60


def lower_aside(
    descent: Descent, directions: Array, width: Array
) -> tuple[Tensor, float, Tensor] | None:
    """Return a visibly lower point along directions without curvature, or None.

    Parameters
    ----------
    descent
        Where it stands, by its Hessian at a minimum.
    directions
        Directions [d, k], in units of the coordinates.
    width
        Those units [d].
    """
    for reach in ASIDE:
        for step in (*directions.T, directions.sum(axis=1)):
            for side in (reach, -reach):
                x = descent.x + descent.tensor(side * width * step)
                value, gradient = descent.landscape.slope(x)
                visible = value < descent.value - 100 * descent.noise
                if visible and is_finite(value, gradient):
                    return x, value, gradient
    return None


def free_part(
    descent: Descent,
    directions: Array,
    width: Array,
    descend: Callable[[Descent], Verdict],
) -> Array:
    """Return an orthonormal basis [d, j] of those directions that are free.

    Parameters
    ----------
    descent, directions, width
        As for `lower_aside`.
    descend
        Leads down to a minimum.
    """
    count = directions.shape[1]
    signs = np.cos(1.0 + np.arange(count))
    together = width * (directions @ signs)
    if count > FOLLOWED or all(_level(descent, together, r) for r in ASIDE[1:]):
        return directions
    left = np.zeros((count, count))
    for k in range(count):
        step = width * directions[:, k]
        reach = next((r for r in ASIDE[1:] if not _level(descent, step, r)), None)
        if reach is None:
            left[k, k] = 1.0
            continue
        way = Descent(
            descent.landscape,
            descent.x + descent.tensor(reach * step),
            tolerance=descent.tolerance,
            max_steps=BACK,
            callback=None,
        )
        way.unit = descent.tensor(width)
        if way.begin() is not None:
            left[k, k] = 1.0  # nothing can be seen from there
            continue
        descend(way)
        moved = (way.x - descent.x).double().cpu().numpy() / width
        left[:, k] = directions.T @ moved / reach
    basis, shares, _ = np.linalg.svd(left)
    free: Array = directions @ basis[:, shares > LEFT]
    return free


def level_at(
    objective: Callable[[Tensor], Tensor], x: Tensor, minimum: Minimum
) -> bool:
    """Whether the free directions of a minimum are level at another point [d], too.

    So they are where columns or parameters are redundant.
    """
    if minimum.null_space is None or minimum.hessian is None:
        return False
    slope = array(Landscape(objective).slope(x)[1])
    scale = curvature_scale(array(minimum.hessian).diagonal(), array(minimum.x))
    along = (scale * slope) @ array(minimum.null_space)
    return bool((np.abs(along) <= 1e-6 * np.linalg.norm(scale * slope)).all())


def _level(descent: Descent, step: Array, reach: float) -> bool:
    """Whether a step [d] of some length is level, on both sides."""
    sides = (descent.x + descent.tensor(s * reach * step) for s in (1.0, -1.0))
    values = [descent.landscape.slope(x)[0] for x in sides]
    rise = max(abs(value - descent.value) for value in values)
    return math.isfinite(rise) and rise <= 10 * descent.noise
