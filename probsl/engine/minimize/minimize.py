"""The deterministic minimizer of every small full-batch fit.

A function of one flat vector is minimized in two stages: L-BFGS in coordinates scaled
by the curvature at the start, then, if the Hessian is affordable, the Newton method of
`probsl.engine.minimize.trust_region`. At kinks it continues with the nonsmooth method
of `probsl.engine.minimize.kinks`. With an absolute-value penalty the stages are the
same, with the steps of `probsl.engine.minimize.proximal`.
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
from probsl.engine.minimize.line_search import orthant_search, wolfe_search
from probsl.engine.minimize.minimum import End, Minimum
from probsl.engine.minimize.search_options import SearchOptions
from probsl.engine.minimize.trust_region import finish
from probsl.isolation.calls import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from probsl.engine.minimize.l1_penalty import L1Penalty

__all__ = ["Minimum", "SearchOptions", "minimize"]

# With more coordinates gradients are so much cheaper than a Hessian that they find the
# last digits, too, which one Hessian then confirms.
FEW = 32

_DEFAULT = SearchOptions()


def minimize(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    options: SearchOptions = _DEFAULT,
    *,
    l1: L1Penalty | None = None,
    idle: Literal["ignore", "report"] = "ignore",
    known_point: Tensor | None = None,
    callback: Callable[[int, float, Tensor], bool | None] | None = None,
) -> Minimum:
    """Minimize a function of one flat vector, and classify how the search ended.

    Parameters
    ----------
    objective
        Maps a tensor [d] to a scalar tensor, twice differentiable by autograd where it
        is finite. Preferably a mean over rows, so of order one for any number of rows.
        At bad points it may be infinite or NaN, or fail to factorize a matrix.
    start
        Initial point [d]; its dtype and device are those of the result.
    options
        When to stop, and whether to use the Hessian. The default tolerance of the
        decrement g'H⁻¹g / 2 is the 3/4 power of the machine precision.
    l1
        A penalty. Penalized coordinates end exactly at its center if that is optimal.
    idle
        How to treat coordinates that have no influence on the objective: "ignore"
        leaves them unchanged, "report" reports them as null directions.
    known_point
        A lower point [d] that is already known; the first step goes there. The tests
        of the end still measure distances, and their units, from the start.
    callback
        Called with step, objective and point after each step. Returning True ends the
        search like a keyboard interrupt: INTERRUPTED, with the best point so far.

    Returns
    -------
    Minimum
        The best point and the outcome. Failure is an outcome, not an exception;
        exceptions raised by the objective are passed on.

    Notes
    -----
    CONVERGED: the decrement is below tolerance, the Newton step is small relative to
    every coordinate, and the Hessian is positive definite; at a kink, zero lies in the
    subdifferential. UNIDENTIFIED: the same, but the column-scaled Hessian has
    eigenvalues indistinguishable from zero, and their directions are free away from
    the point, too. UNBOUNDED: steps stay large but no longer gain anything
    (flattening), or the objective decreases without bound. STALLED: no descent step is
    found, and none of the above holds.

    Beyond `options.newton_limit` null directions are not searched for, and a tail is
    detected by moving the same distance again without a rise.

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
    descent = Descent(
        Landscape(objective, None if l1 is None else l1.to(start)),
        start,
        tolerance=options.tolerance,
        max_steps=options.max_steps,
        callback=callback,
    )
    exact = len(start) <= options.newton_limit
    before = Snapshot()
    try:
        end = descent.begin()
        if end is None:
            descent.measure(exact=exact)
            if known_point is not None and not torch.equal(known_point, descent.x):
                there = (
                    known_point,
                    *descent.landscape.value_and_gradient(known_point),
                )
                if descent.believes(*there, careful=True):
                    descent.accept(*there)
            end = descend(descent, rough=exact)
            if exact:
                end = finish(descent, descend_anyhow)
            elif end.ending is Ending.CONVERGED and l1 is None:
                end = go_as_far_again(descent, start)
    except KeyboardInterrupt as error:
        before.recover(error)
        end = End(Ending.INTERRUPTED)
    if idle == "report":
        end = with_idle(descent, end)
    return descent.minimum(end)


def descend(descent: Descent, *, rough: bool) -> End:
    """Minimize by L-BFGS, Nocedal and Wright (2006), algorithm 7.5.

    With a penalty, its orthant-wise form: Andrew and Gao (2007), "Scalable training of
    L1-regularized log-linear models", ICML. A rough descent leaves anything that takes
    many steps, and of few coordinates the last digits, to `finish`: a few Newton steps
    are then cheaper than many steps here, and more reliable.
    """
    l1 = descent.landscape.l1
    search = wolfe_search if l1 is None else orthant_search
    memory = LimitedMemory(descent.unit)
    convergence = ConvergenceTest(descent, needed=3, patience=10)
    early = rough and len(descent.x) <= FEW
    tolerance = math.sqrt(descent.tolerance) if early else descent.tolerance
    budget = len(descent.x) // 3 if rough else math.inf
    while not descent.spent and len(descent.losses) <= budget:
        gradient = descent.gradient
        if l1 is None:
            direction = -memory.apply(gradient[None])[0]
        else:
            gradient = l1.pseudo_gradient(descent.x, gradient)
            free = l1.free(descent.x, gradient)
            direction = -memory.apply(gradient[None], free[None])[0]
            direction = l1.aligned(descent.x, direction, gradient, descent.unit)
        gain = -float(gradient @ direction) / 2
        if rough and gain < tolerance:
            break
        end = descent.unbounded() or convergence.judge(direction, descent.unit, gain)
        if end is not None:
            return end
        length = float((direction / descent.unit).norm())
        known = bool(memory.known)
        first = 1.0 if known else min(1.0, 1 / max(length, 1e-300))
        found, hit_nonfinite = search(descent, direction, gradient, first)
        worth = max(descent.tolerance, descent.noise)
        if hit_nonfinite and found is not None and descent.value - found[1] <= worth:
            found = None  # it would creep along the boundary forever
        if found is not None:
            moved, bent = found[0] - descent.x, found[2] - descent.gradient
            memory.update(moved[None], bent[None])
            descent.accept(*found)
        elif known:
            # It may have been misled by a kink or by rounding.
            memory.clear(memory.known)
        else:
            end = descent.ends_at_nonfinite() if hit_nonfinite else None
            low = gain <= max(tolerance, descent.noise)
            otherwise = Ending.CONVERGED if low else Ending.STALLED
            return end or convergence.tail() or End(otherwise)
    return End(Ending.MAX_STEPS)


def descend_anyhow(descent: Descent) -> End:
    """Minimize without a Hessian, with the nonsmooth method if that stalls."""
    end = descend(descent, rough=False)
    stalled = end.ending is Ending.STALLED
    return descend_kinks(descent) if stalled else end


def go_as_far_again(descent: Descent, start: Tensor) -> End:
    """Judge an end without a Hessian, by whether the objective rises beyond it.

    Beyond the minimum of a quadratic it rises by as much as it fell before; on a tail
    it does not. Tested along the lines from the start and, for separable classes, zero.
    """
    for origin in (start, torch.zeros_like(start)):
        way = descent.x - origin
        if leads_down(descent, way):
            far = way.abs() > way.abs().max() / 2
            return End(Ending.UNBOUNDED, indices(far), flattening=True)
    return End(Ending.CONVERGED)


def leads_down(descent: Descent, way: Tensor) -> bool:
    """Whether the objective fell visibly along [d], and would not rise beyond."""

    def rise(share: float) -> float:
        return (
            descent.landscape.value_and_gradient(descent.x + share * way)[0]
            - descent.value
        )

    noise = descent.noise
    return rise(-1.0) > 1e3 * noise and all(rise(s) <= noise for s in (0.25, 0.5, 1.0))


def with_idle(descent: Descent, end: End) -> End:
    """Add the coordinates without influence to the null directions of a minimum."""
    if end.ending not in (Ending.CONVERGED, Ending.UNIDENTIFIED):
        return end
    descent.noticed()
    size = len(descent.x)
    idle = np.delete(np.arange(size), descent.influential)
    if not len(idle):
        return end
    null = np.eye(size)[:, idle]
    if end.null_space is not None:
        null = np.hstack([end.null_space, null])
    named = sorted({*end.coordinates, *idle.tolist()})
    return End(Ending.UNIDENTIFIED, tuple(named), null_space=null)
