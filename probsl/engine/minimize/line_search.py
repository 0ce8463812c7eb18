"""Line searches: for the Wolfe conditions, and within an orthant of a penalty."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from probsl.engine.minimize.descent import Descent, is_finite

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DECREASE", "STEEPNESS", "orthant_search", "wolfe_search"]

# Constants of the Armijo and the Wolfe condition.
DECREASE, STEEPNESS = 1e-4, 0.9


def wolfe_search(
    descent: Descent, direction: Tensor, pseudo_gradient: Tensor, first: float
) -> tuple[tuple[Tensor, float, Tensor] | None, bool]:
    """Find a point along a direction that satisfies the Wolfe conditions.

    Brackets and interpolates, Nocedal and Wright (2006), section 3.5. If rounding hides
    the decrease, the gradient decides: Hager and Zhang (2005), SIAM J. Optim. 16.

    Parameters
    ----------
    descent
        State at the start of the line.
    direction
        Search direction [d].
    pseudo_gradient
        The gradient [d] at the start; with a penalty, the pseudo-gradient.
    first
        The first step length to try, in units of the direction.

    Returns
    -------
    tuple
        The point, its value and gradient, or None; and whether the search ended at
        nonfinite values.
    """
    start = float(pseudo_gradient @ direction)
    low, value_low, derivative_low = 0.0, descent.value, start
    high, value_high, derivative_high = math.inf, math.nan, math.nan
    previous, derivative_before = low, derivative_low
    best, t = None, first
    for _ in range(40):
        x = descent.x + t * direction
        value, gradient = descent.landscape.value_and_gradient(x)
        derivative = float(gradient @ direction)
        finite = is_finite(value, gradient)
        change = value - descent.value
        decreases = change <= DECREASE * t * start or (
            change <= descent.noise and derivative <= (1 - 2 * DECREASE) * abs(start)
        )
        if finite and decreases and not descent.believes(x, value, gradient):
            finite = False
        if finite and decreases:
            best = (x, value, gradient)
            if derivative >= STEEPNESS * start or t >= 1e4 * first:
                break
            previous, derivative_before = low, derivative_low
            low, value_low, derivative_low = t, value, derivative
        else:
            high, value_high, derivative_high = (
                t,
                value if finite else math.nan,
                derivative,
            )
        if high == math.inf:
            bend = (derivative_low - derivative_before) / (low - previous)
            ahead = -derivative_low / bend if bend > 0 else math.inf
            t = low + min(max(ahead, low), 9 * low)
        else:
            t = low + between(
                high - low, value_high - value_low, derivative_low, derivative_high
            )
        if (high - low) * abs(start) < 1e-3 * descent.noise:
            break
    return best, bool(high < math.inf and math.isnan(value_high))


def between(
    width: float, rise: float, derivative: float, derivative_end: float
) -> float:
    """Return the minimizer of a cubic interpolant, kept away from both ends.

    Nocedal and Wright (2006), equation 3.59. If the far end is not finite, a small
    fraction of the width.
    """
    if math.isnan(rise):
        return 0.1 * width
    first = derivative + derivative_end - 3 * rise / width
    root = first * first - derivative * derivative_end
    if 0 <= root < math.inf:
        bottom = derivative_end - derivative + 2 * math.sqrt(root)
        if bottom != 0:
            t = width * (1 - (derivative_end + math.sqrt(root) - first) / bottom)
            return min(max(t, 0.1 * width), 0.9 * width)
    return width / 2


def orthant_search(
    descent: Descent, direction: Tensor, pseudo_gradient: Tensor, first: float
) -> tuple[tuple[Tensor, float, Tensor] | None, bool]:
    """Search a line, projected onto the orthant, for a lower point.

    Parameters and results are those of `wolfe_search`.
    """
    l1 = descent.landscape.l1
    assert l1 is not None
    orthant, start = (
        l1.orthant(descent.x, pseudo_gradient),
        float(pseudo_gradient @ direction),
    )
    t, hit_nonfinite = first, False
    for _ in range(60):
        x = l1.projected(descent.x + t * direction, orthant)
        value, gradient = descent.landscape.value_and_gradient(x)
        if is_finite(value, gradient):
            hit_nonfinite = False
            if torch.equal(x, descent.x):
                break
            expected = float(pseudo_gradient @ (x - descent.x))
            low = expected < 0 and value - descent.value <= DECREASE * expected
            if low and descent.believes(x, value, gradient):
                return (x, value, gradient), False
            if -t * start < 1e-3 * descent.noise:
                break
            t *= 0.5
        else:
            hit_nonfinite = True
            t *= 0.1
    return None, hit_nonfinite
