"""The deterministic minimizer of every small full-batch fit.

A function of one flat vector is brought down in two stages: L-BFGS in coordinates
scaled by the curvature at the start, then, where a Hessian is affordable, Newton's
method of `probsl.engine.trust_region`. Where kinks are in the way it goes on by the
steps of `probsl.engine.kinks`. With an absolute-value penalty the road is the
same, and the steps are those of `probsl.engine.proximal`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from probsl.engine.curvature import Landscape, LimitedMemory
from probsl.engine.descent import (
    Descent,
    Minimum,
    Outcome,
    Settling,
    Verdict,
    indices,
    is_finite,
)
from probsl.engine.kinks import descend_kinks
from probsl.engine.proximal import aligned, orthant_search, pseudo_gradient
from probsl.engine.trust_region import finish
from probsl.isolation import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["Minimum", "Outcome", "minimize"]


def minimize(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    tolerance: float | None = None,
    max_steps: int = 1000,
    l1: tuple[Tensor, Tensor] | None = None,
    newton_limit: int = 300,
    idle: Literal["ignore", "report"] = "ignore",
    ahead: Tensor | None = None,
    callback: Callable[[int, float, Tensor], bool | None] | None = None,
) -> Minimum:
    """Minimize a function of one flat vector, and say what kind of end it came to.

    Parameters
    ----------
    objective
        Maps a tensor [d] to a scalar tensor, twice differentiable by autograd where it
        is finite. Best a mean over rows, of order one however many there are. At bad
        points it may be infinite or NaN, or fail to factorize a matrix.
    start
        Where to begin [d]; its dtype and device are those of the answer.
    tolerance
        The decrement g'H⁻¹g / 2, what the best step would still gain, below which the
        search ends; None: the 3/4 power of the machine precision.
    max_steps
        How many steps may be taken.
    l1
        Center [d] and weight [d] of a penalty ``sum(weight * abs(x - center))``, weight
        0 where there is none. Penalized coordinates end exactly at the center where
        that is best.
    newton_limit
        Up to this many coordinates the exact Hessian is used.
    idle
        What to do with coordinates that have no influence on the objective: "ignore"
        leaves them where they are, "report" makes them null directions.
    ahead
        A lower point [d] that is known already; the first step leads there. What the
        end is judged by, how far it came and in which units, counts from the start.
    callback
        Called with step, objective and point after each step. Returning True ends the
        search, as a keyboard interrupt does: INTERRUPTED, with the best point so far.

    Returns
    -------
    Minimum
        The best point and the outcome. Failure is an outcome, not an exception; what
        the objective raises goes through.

    Notes
    -----
    CONVERGED: the decrement is below tolerance, the Newton step is small against every
    coordinate, and the Hessian is positive definite; at a kink, zero lies in the
    subdifferential. NULL_DIRECTIONS: the same, but the column-scaled Hessian has
    eigenvalues that cannot be told from zero, and their directions are free away from
    the point, too. RUNAWAY: steps that stay large are worth nothing any more
    (flattening), or the objective falls without bound. STALLED: no way down is found,
    and none of this holds.

    Beyond `newton_limit` nobody looks for null directions, and a tail is where going
    as far again costs nothing.

    References
    ----------
    Nocedal and Wright (2006), "Numerical Optimization", chapters 3, 4 and 7.
    Moré and Sorensen (1983), SIAM J. Sci. Stat. Comput. 4, 553-572.

    Examples
    --------
    >>> import torch
    >>> from probsl.engine.minimize import minimize
    >>> def banana(x):
    ...     return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    >>> minimum = minimize(banana, torch.tensor([-1.2, 1.0], dtype=torch.float64))
    >>> minimum.outcome.name, minimum.x
    ('CONVERGED', tensor([1., 1.], dtype=torch.float64))
    """
    if l1 is not None:
        l1 = (l1[0].to(start), l1[1].to(start))
    descent = Descent(
        Landscape(objective, l1),
        start,
        tolerance=tolerance,
        max_steps=max_steps,
        callback=callback,
    )
    exact = len(start) <= newton_limit
    before = Snapshot()
    try:
        verdict = descent.begin()
        if verdict is None:
            descent.measure(exact=exact)
            if ahead is not None and not torch.equal(ahead, descent.x):
                there = (ahead, *descent.landscape.slope(ahead))
                if descent.believes(*there, careful=True):
                    descent.accept(*there)
            verdict = descend(descent, rough=exact)
            if exact:
                verdict = finish(descent, descend_anyhow)
            elif verdict.outcome is Outcome.CONVERGED and l1 is None:
                verdict = go_as_far_again(descent, start)
    except KeyboardInterrupt as error:
        before.recover(error)
        verdict = Verdict(Outcome.INTERRUPTED)
    if idle == "report":
        verdict = with_idle(descent, verdict)
    return descent.minimum(verdict)


def descend(descent: Descent, *, rough: bool) -> Verdict:
    """Go down by L-BFGS, Nocedal and Wright (2006), algorithm 7.5.

    With a penalty its orthant-wise form: Andrew and Gao (2007), "Scalable training of
    L1-regularized log-linear models", ICML. A rough descent leaves the last digits, and
    whatever takes many steps, to `finish`: a Hessian costs some d gradients, so that a
    few steps of it are cheaper than many here, and they are the more careful ones.
    """
    smooth = descent.landscape.l1 is None
    memory = LimitedMemory(descent.unit)
    settling = Settling(descent, needed=3, patience=10)
    tolerance = math.sqrt(descent.tolerance) if rough else descent.tolerance
    budget = len(descent.x) // 3 if rough else math.inf
    while not descent.spent and len(descent.losses) <= budget:
        slope = descent.gradient if smooth else pseudo_gradient(descent)
        direction = -memory.apply(slope)
        if not smooth:
            direction = aligned(descent, direction, slope)
        gain = -float(slope @ direction) / 2
        if rough and gain < tolerance:
            break
        verdict = descent.falling() or settling.judge(direction, descent.unit, gain)
        if verdict is not None:
            return verdict
        length = float((direction / descent.unit).norm())
        first = 1.0 if len(memory) else min(1.0, 1 / max(length, 1e-300))
        search = wolfe_search if smooth else orthant_search
        found, walled = search(descent, direction, slope, first)
        worth = max(descent.tolerance, descent.noise)
        if walled and found is not None and descent.value - found[1] <= worth:
            found = None  # it would creep along the wall for ever
        if found is not None:
            memory.update(found[0] - descent.x, found[2] - descent.gradient)
            descent.accept(*found)
        elif len(memory):
            memory.clear()  # it may have been misled by a kink or by rounding
        else:
            low = gain <= max(tolerance, descent.noise)
            end = (descent.at_wall() if walled else None) or settling.tail()
            return end or Verdict(Outcome.CONVERGED if low else Outcome.STALLED)
    return Verdict(Outcome.MAX_STEPS)


def descend_anyhow(descent: Descent) -> Verdict:
    """Go down without a Hessian, over kinks where they are in the way."""
    verdict = descend(descent, rough=False)
    stalled = verdict.outcome is Outcome.STALLED
    return descend_kinks(descent) if stalled else verdict


def go_as_far_again(descent: Descent, start: Tensor) -> Verdict:
    """Judge an end without a Hessian: beyond a minimum all rises, and no tail does.

    Beyond a quadratic's minimum it rises by as much as it fell on the way there. The
    ways are those from the start and, as classes are kept apart by a direction, zero.
    """
    for origin in (start, torch.zeros_like(start)):
        way = descent.x - origin
        if leads_down(descent, way):
            far = way.abs() > way.abs().max() / 2
            return Verdict(Outcome.RUNAWAY, indices(far), flattening=True)
    return Verdict(Outcome.CONVERGED)


def leads_down(descent: Descent, way: Tensor) -> bool:
    """Whether a way [d] here came down visibly, and would not rise if it went on."""

    def rise(share: float) -> float:
        return descent.landscape.slope(descent.x + share * way)[0] - descent.value

    noise = descent.noise
    return rise(-1.0) > 1e3 * noise and all(rise(s) <= noise for s in (0.25, 0.5, 1.0))


def wolfe_search(
    descent: Descent, direction: Tensor, slope: Tensor, first: float
) -> tuple[tuple[Tensor, float, Tensor] | None, bool]:
    """Search a line for a point that is low and less steep: Wolfe's conditions.

    Brackets and interpolates, Nocedal and Wright (2006), section 3.5; where rounding
    hides the decrease the slope decides: Hager and Zhang (2005), SIAM J. Optim. 16.

    Parameters
    ----------
    descent
        Where the line starts.
    direction
        Where it leads to [d].
    slope
        Gradient [d] at the start.
    first
        The first point to try, in units of the direction.

    Returns
    -------
    tuple
        The point, its value and gradient, or None; and whether the search ended at
        points that are not finite.
    """
    start = float(slope @ direction)
    low, value_low, slope_low = 0.0, descent.value, start
    high, value_high, slope_high = math.inf, math.nan, math.nan
    previous, slope_before = low, slope_low
    best, t = None, first
    for _ in range(40):
        x = descent.x + t * direction
        value, gradient = descent.landscape.slope(x)
        slope_t = float(gradient @ direction)
        finite = is_finite(value, gradient)
        change = value - descent.value
        decreases = change <= 1e-4 * t * start or (
            change <= descent.noise and slope_t <= 0.9998 * abs(start)
        )
        if finite and decreases and not descent.believes(x, value, gradient):
            finite = False
        if finite and decreases:
            best = (x, value, gradient)
            if slope_t >= 0.9 * start or t >= 1e4 * first:
                break
            previous, slope_before = low, slope_low
            low, value_low, slope_low = t, value, slope_t
        else:
            high, value_high, slope_high = t, value if finite else math.nan, slope_t
        if high == math.inf:
            bend = (slope_low - slope_before) / (low - previous)
            ahead = -slope_low / bend if bend > 0 else math.inf
            t = low + min(max(ahead, low), 9 * low)
        else:
            t = low + between(high - low, value_high - value_low, slope_low, slope_high)
        if (high - low) * abs(start) < 1e-3 * descent.noise:
            break
    return best, bool(high < math.inf and math.isnan(value_high))


def between(width: float, rise: float, slope: float, slope_end: float) -> float:
    """Return where a cubic with these ends is lowest, kept away from both of them.

    Nocedal and Wright (2006), equation 3.59. Where the far end is not a number, a small
    part of the way.
    """
    if math.isnan(rise):
        return 0.1 * width
    first = slope + slope_end - 3 * rise / width
    root = first * first - slope * slope_end
    if 0 <= root < math.inf:
        bottom = slope_end - slope + 2 * math.sqrt(root)
        if bottom != 0:
            t = width * (1 - (slope_end + math.sqrt(root) - first) / bottom)
            return min(max(t, 0.1 * width), 0.9 * width)
    return width / 2


def with_idle(descent: Descent, verdict: Verdict) -> Verdict:
    """Add the coordinates without influence to the null directions of a minimum."""
    if verdict.outcome not in (Outcome.CONVERGED, Outcome.NULL_DIRECTIONS):
        return verdict
    descent.noticed()
    size = len(descent.x)
    idle = np.delete(np.arange(size), descent.influential)
    if not len(idle):
        return verdict
    null = np.eye(size)[:, idle]
    if verdict.null_space is not None:
        null = np.hstack([verdict.null_space, null])
    named = sorted({*verdict.coordinates, *idle.tolist()})
    return Verdict(Outcome.NULL_DIRECTIONS, tuple(named), null_space=null)
