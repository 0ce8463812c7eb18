"""Whether directions without curvature are free, tested away from the minimum.

The Hessian is zero along a free direction, but also at the minimum of a quartic, on a
flat segment between two kinks, and where automatic differentiation misses the curvature
of code such as ``log1p(exp(-abs(x)))``. So the point is moved along the direction and
minimized again: if the direction is free, the objective stays constant, or a minimum is
found away from the old one. Otherwise the search returns to the old one. From a saddle
point of higher order, the objective decreases.
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

    from probsl.engine.minimize.minimum import End, Minimum

    Array = NDArray[np.float64]

__all__ = ["free_part", "level_at", "lower_aside"]

# Distances of the points to test for lower ones, in units of the coordinates.
ASIDE = (1e-3, 0.1, 1.0)
# Distances at which to test whether a direction is free; the last one is beyond the
# ends of a flat segment between two kinks.
REACHES = (0.1, 1.0, 10.0)
# Share of the displacement that must remain for a direction to be free, near and at the
# last distance, where a curved valley has turned away.
LEFT, LEFT_FAR = 0.5, 0.25
# Up to this many directions are tested one by one; more are assumed to be free.
FOLLOWED = 10
# Steps of each test minimization.
BACK = 60


def lower_aside(
    descent: Descent, directions: Array, width: Array
) -> tuple[Tensor, float, Tensor] | None:
    """Return a visibly lower point along directions without curvature, or None.

    Parameters
    ----------
    descent
        The current point, a minimum according to its Hessian.
    directions
        Directions [d, k], in units of the coordinates.
    width
        Those units [d].
    """
    for reach in ASIDE:
        for step in (*directions.T, directions.sum(axis=1)):
            for side in (reach, -reach):
                x = descent.x + descent.tensor(side * width * step)
                value, gradient = descent.landscape.value_and_gradient(x)
                visible = value < descent.value - 100 * descent.noise
                if visible and is_finite(value, gradient):
                    return x, value, gradient
    return None


def free_part(
    descent: Descent,
    directions: Array,
    width: Array,
    descend: Callable[[Descent], End],
) -> Array:
    """Return an orthonormal basis [d, j] of those directions that are free.

    Parameters
    ----------
    descent, directions, width
        As for `lower_aside`.
    descend
        Minimizes from a given point.
    """
    # A penalty bounds every level stretch, which is free nevertheless: of a column that
    # is there twice, only the sum of the coefficients is known.
    penalized = descent.landscape.l1 is not None
    reaches = REACHES[:-1] if penalized else REACHES
    count = directions.shape[1]
    signs = np.cos(1.0 + np.arange(count))
    together = width * (directions @ signs)
    if count > FOLLOWED or all(_level(descent, together, r) for r in reaches):
        return directions
    left = np.eye(count)
    for k in range(count):
        step = width * directions[:, k]
        reach = next((r for r in reaches if not _level(descent, step, r)), None)
        if reach is None:
            continue
        near = _remaining(descent, step, reach, width, descend)
        if near is None:
            continue  # nothing can be evaluated from there
        left[:, k] = directions.T @ near
        if abs(left[k, k]) > LEFT and reach < REACHES[-1] and not penalized:
            far = _remaining(descent, step, REACHES[-1], width, descend)
            if far is not None and abs(directions[:, k] @ far) < LEFT_FAR:
                left[:, k] = directions.T @ far
    basis, shares, _ = np.linalg.svd(left)
    free: Array = directions @ basis[:, shares > LEFT]
    return free


def _remaining(
    descent: Descent,
    step: Array,
    reach: float,
    width: Array,
    descend: Callable[[Descent], End],
) -> Array | None:
    """Return the share [d] of a displacement that remains after minimizing from there.

    None: nothing can be evaluated there.
    """
    way = Descent(
        descent.landscape,
        descent.x + descent.tensor(reach * step),
        tolerance=descent.tolerance,
        max_steps=BACK,
        callback=None,
    )
    way.unit = descent.tensor(width)
    if way.begin() is not None:
        return None
    descend(way)
    moved: Array = (way.x - descent.x).double().cpu().numpy() / width
    return moved / reach


def level_at(
    objective: Callable[[Tensor], Tensor], x: Tensor, minimum: Minimum
) -> bool:
    """Whether the free directions of a minimum are flat at another point [d], too.

    They are if columns or parameters are redundant.
    """
    if minimum.null_space is None or minimum.hessian is None:
        return False
    gradient = array(Landscape(objective).value_and_gradient(x)[1])
    scale = curvature_scale(array(minimum.hessian).diagonal(), array(minimum.x))
    along = (scale * gradient) @ array(minimum.null_space)
    return bool((np.abs(along) <= 1e-6 * np.linalg.norm(scale * gradient)).all())


def _level(descent: Descent, step: Array, reach: float) -> bool:
    """Whether the objective is constant along a step [d] of a length, on both sides."""
    sides = (descent.x + descent.tensor(s * reach * step) for s in (1.0, -1.0))
    values = [descent.landscape.value_and_gradient(x)[0] for x in sides]
    rise = max(abs(value - descent.value) for value in values)
    return math.isfinite(rise) and rise <= 10 * descent.noise
