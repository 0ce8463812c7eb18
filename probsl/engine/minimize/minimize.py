"""The deterministic minimizer of every small full-batch fit.

A function of one flat vector is brought down in two stages: L-BFGS in coordinates
scaled by the curvature at the start, then, where a Hessian is affordable, Newton's
method of `probsl.engine.minimize.trust_region`. Where kinks are in the way it goes on
by the steps of `probsl.engine.minimize.kinks`. With an absolute-value penalty the road
is the same, and the steps are those of `probsl.engine.minimize.proximal`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from probsl.engine.ending import Ending
from probsl.engine.minimize.convergence_test import ConvergenceTest
from probsl.engine.minimize.descent import Descent, indices
from probsl.engine.minimize.kinks import descend_kinks
from probsl.engine.minimize.landscape import Landscape
from probsl.engine.minimize.limited_memory import LimitedMemory
from probsl.engine.minimize.line_search import wolfe_search
from probsl.engine.minimize.minimum import Minimum, Verdict
from probsl.engine.minimize.orthant import aligned, orthant_search, pseudo_gradient
from probsl.engine.minimize.trust_region import finish
from probsl.isolation.calls import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["Minimum", "minimize"]


def minimize(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    tolerance: float | None = None,
    max_steps: int = 1000,
    l1: tuple[Tensor, Tensor] | None = None,
    newton_limit: int = 300,
    idle: Literal["ignore", "report"] = "ignore",
    known_point: Tensor | None = None,
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
    known_point
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
    subdifferential. UNIDENTIFIED: the same, but the column-scaled Hessian has
    eigenvalues that cannot be told from zero, and their directions are free away from
    the point, too. UNBOUNDED: steps that stay large are worth nothing any more
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
    >>> from probsl.engine.minimize.minimize import minimize
    >>> def banana(x):
    ...     return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    >>> minimum = minimize(banana, torch.tensor([-1.2, 1.0], dtype=torch.float64))
    >>> minimum.ending.name, minimum.x
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
            if known_point is not None and not torch.equal(known_point, descent.x):
                there = (known_point, *descent.landscape.slope(known_point))
                if descent.believes(*there, careful=True):
                    descent.accept(*there)
            verdict = descend(descent, rough=exact)
            if exact:
                verdict = finish(descent, descend_anyhow)
            elif verdict.ending is Ending.CONVERGED and l1 is None:
                verdict = go_as_far_again(descent, start)
    except KeyboardInterrupt as error:
        before.recover(error)
        verdict = Verdict(Ending.INTERRUPTED)
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
    convergence = ConvergenceTest(descent, needed=3, patience=10)
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
        verdict = descent.unbounded() or convergence.judge(
            direction, descent.unit, gain
        )
        if verdict is not None:
            return verdict
        length = float((direction / descent.unit).norm())
        first = 1.0 if len(memory) else min(1.0, 1 / max(length, 1e-300))
        search = wolfe_search if smooth else orthant_search
        found, hit_nonfinite = search(descent, direction, slope, first)
        worth = max(descent.tolerance, descent.noise)
        if hit_nonfinite and found is not None and descent.value - found[1] <= worth:
            found = None  # it would creep along the wall for ever
        if found is not None:
            memory.update(found[0] - descent.x, found[2] - descent.gradient)
            descent.accept(*found)
        elif len(memory):
            memory.clear()  # it may have been misled by a kink or by rounding
        else:
            low = gain <= max(tolerance, descent.noise)
            end = (
                descent.ends_at_nonfinite() if hit_nonfinite else None
            ) or convergence.tail()
            return end or Verdict(Ending.CONVERGED if low else Ending.STALLED)
    return Verdict(Ending.MAX_STEPS)


def descend_anyhow(descent: Descent) -> Verdict:
    """Go down without a Hessian, over kinks where they are in the way."""
    verdict = descend(descent, rough=False)
    stalled = verdict.ending is Ending.STALLED
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
            return Verdict(Ending.UNBOUNDED, indices(far), flattening=True)
    return Verdict(Ending.CONVERGED)


def leads_down(descent: Descent, way: Tensor) -> bool:
    """Whether a way [d] here came down visibly, and would not rise if it went on."""

    def rise(share: float) -> float:
        return descent.landscape.slope(descent.x + share * way)[0] - descent.value

    noise = descent.noise
    return rise(-1.0) > 1e3 * noise and all(rise(s) <= noise for s in (0.25, 0.5, 1.0))


def with_idle(descent: Descent, verdict: Verdict) -> Verdict:
    """Add the coordinates without influence to the null directions of a minimum."""
    if verdict.ending not in (Ending.CONVERGED, Ending.UNIDENTIFIED):
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
    return Verdict(Ending.UNIDENTIFIED, tuple(named), null_space=null)
