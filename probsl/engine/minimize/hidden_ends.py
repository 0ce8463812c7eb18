"""Ends hidden by rounding: a minimum, a tail, or a point the dtype cannot resolve.

If rounding errors are larger than the tolerance of the search, gradient and curvature
at a point prove nothing: noise has minima everywhere. The objective is then compared at
larger distances. It rises on both sides of a minimum; on a tail it rises on one side
only, and on the other side it changes by no more than rounding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from probsl.engine.ending import Ending
from probsl.engine.minimize.descent import array, indices, is_finite
from probsl.engine.minimize.minimum import End

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from probsl.engine.minimize.descent import Descent
    from probsl.engine.minimize.trust_region import Model

    Array = NDArray[np.float64]

__all__ = ["hidden_end", "weak_directions"]

# Rounding of this many times the resolution of a search may hide an end.
VISIBLE = 10
# Distances of the test points, in shares of the size of the coordinates.
REACHES = (0.03, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
# Multiple of the rounding error that a rise must exceed if rounding is large.
LOUD = 100
# A tail decreases by less than this, per row, over a distance like that travelled.
STEEP = 0.1
# Share of a rise that the directional derivative at its end must account for.
CLIMB = 0.1
# Maximum number of corrections of a point next to a curved valley to its floor.
CORRECTIONS = 4
# Share of a direction that a coordinate must have to be reported.
NAMED = 0.3
# Directions are the same if the cosine between them is at least this.
SAME = 0.9


class Place(NamedTuple):
    """A point [d] with its value and gradient, and the rounding error of the value."""

    x: Tensor
    value: float
    gradient: Tensor
    rounding: float


def hidden_end(descent: Descent, model: Model) -> End | None:
    """Judge an end at which rounding exceeds the resolution of the search.

    Parameters
    ----------
    descent
        State at the end. It may move to a nearby point of smaller rounding error.
    model
        The quadratic model there.

    Returns
    -------
    End or None
        None if rounding hides nothing, or a minimum is visible in spite of it.
    """
    unit = np.minimum(model.width, array(descent.unit))
    rounding = descent.rounding_here(descent.tensor(unit))
    if rounding <= VISIBLE * descent.resolution:
        return None
    here = Place(descent.x, descent.value, descent.gradient, rounding)
    for direction in weak_directions(descent, model):
        sides = [_side(descent, model, here, s * direction) for s in (1.0, -1.0)]
        rises = [rise for rise, _ in sides]
        if None in rises:
            return None  # a clearly visible decrease is not hidden
        if all(rises):
            continue
        steep = abs(float(array(descent.gradient) @ direction)) > STEEP
        if any(rises) and rounding <= descent.step_tolerance and not steep:
            _go_to_surest(descent, here, [p for _, seen in sides for p in seen[:-1]])
            share = abs(direction) / descent.reach()
            named = indices(descent.tensor(share) > NAMED * share.max())
            return End(Ending.UNBOUNDED, named, flattening=True, hidden=True)
        fallen = descent.ends_at_nonfinite()
        _go_to_surest(descent, here, [p for _, seen in sides for p in seen])
        return fallen or End(Ending.STALLED, hidden=True)
    return None


def _go_to_surest(descent: Descent, here: Place, places: list[Place]) -> None:
    """Move to the point with the lowest upper bound on its value."""
    best = min([here, *places], key=lambda place: place.value + place.rounding)
    if best is not here and not descent.spent:
        descent.accept(best.x, best.value, best.gradient)


def weak_directions(descent: Descent, model: Model) -> list[Array]:
    """Return the directions [d] along which rounding may hide the most.

    The one of least curvature, and the Newton step, each scaled to the coordinates.
    """
    assert descent.hessian is not None
    free, reach = descent.influential, descent.reach()
    scaled = descent.hessian[np.ix_(free, free)] * reach[free] * reach[free][:, None]
    weakest = np.zeros(len(reach))
    weakest[free] = np.linalg.eigh(scaled)[1][:, 0]
    found = [weakest]
    newton = model.newton / reach
    length = float(np.linalg.norm(newton))
    if 0 < length < math.inf and abs(newton @ weakest) < SAME * length:
        found.append(newton / length)
    return [reach * direction for direction in found]


def _on_the_floor(
    descent: Descent, model: Model, point: tuple[Tensor, float, Tensor]
) -> tuple[Tensor, float, Tensor]:
    """Return a point corrected to the floor of a curved valley, if there is one."""
    for _ in range(CORRECTIONS):
        lower = model.corrected(point[0], point[2])
        if lower is None:
            break
        corrected = (lower, *descent.landscape.value_and_gradient(lower))
        if not (corrected[1] < point[1] and is_finite(*corrected[1:])):
            break
        point = corrected
    return point


def _side(
    descent: Descent, model: Model, here: Place, direction: Array
) -> tuple[bool | None, list[Place]]:
    """Return whether the objective visibly rises on one side, and the points tested.

    None: it visibly decreases.
    """
    places: list[Place] = []
    loudest = here.rounding
    unit = descent.tensor(np.minimum(model.width, array(descent.unit)))
    for reach in REACHES:
        x = descent.x + descent.tensor(reach * direction)
        value, gradient = descent.landscape.value_and_gradient(x)
        if not is_finite(value, gradient):
            return True, places
        x, value, gradient = _on_the_floor(descent, model, (x, value, gradient))
        rounding = descent.rounding_near(x, value, gradient, unit)
        if not math.isfinite(rounding):
            return True, places
        places.append(Place(x, value, gradient, rounding))
        loudest = max(loudest, rounding)  # one small error among large ones is chance
        change = value - here.value
        # If rounding is large, a rise must be larger by that much.
        quiet = loudest <= 2 * max(descent.step_tolerance, here.rounding)
        needed = 1 if quiet else LOUD
        if change > here.rounding + needed * loudest:
            # A rise that the gradient does not confirm is rounding, as is all beyond.
            # The gradient does not include the penalty.
            smooth = descent.landscape.l1 is None
            climbs = float(gradient @ (x - here.x)) > CLIMB * change
            return climbs or not smooth, places
        if -change > LOUD * loudest:
            return None, places
        if needed > 1 or -change > here.rounding + loudest:
            break  # values farther out are unreliable
    return False, places
