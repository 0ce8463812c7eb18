"""Nonsmooth minimization: finds a minimum that lies on kinks, and proves it.

The absolute value of a Laplace likelihood, relu, clamp and max have kinks, and minima
often lie on them: a median regression with d coefficients interpolates d of the points.
Newton steps do not converge there. BFGS with a weak Wolfe line search does, because it
uses gradients from both sides (Lewis and Overton 2013). A bundle of nearby gradients
proves optimality: if a convex combination, weighted by linearization errors, is zero,
there is no descent direction. Otherwise it gives a descent direction or an unexplored
side (Wolfe 1975; Lemaréchal 1989, "Nondifferentiable optimization").
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from probsl.engine.ending import Ending
from probsl.engine.minimize.descent import FAR_ON_LOG_SCALE, NARROWEST, array, is_finite
from probsl.engine.minimize.free_directions import free_part, lower_aside
from probsl.engine.minimize.minimum import End
from probsl.engine.minimize.simplex import lightest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from probsl.engine.minimize.descent import Descent

    Array = NDArray[np.float64]

__all__ = ["cross_kinks", "descend_kinks"]

# Alternations of descent and proof.
TURNS = 8
# Up to this many coordinates, the unit of each is measured.
MEASURED = 50
# Steps between two convergence tests.
PAUSE = 10
# Shortest trial step, in units: a gradient there is valid at the current point.
ASIDE = 1e-7
# Iterations of one proof, and additional ones per coordinate.
ROUNDS, FURTHER = 20, 5


class Tangent(NamedTuple):
    """The objective and its gradient at a nearby point: a linearization.

    Attributes
    ----------
    x
        The point [d].
    value
        The objective, penalty included.
    gradient
        The gradient [d], without the penalty.
    subgradient
        The gradient [d] along the axes of the `Ground`, penalty included.
    """

    x: Tensor
    value: float
    gradient: Tensor
    subgradient: Array

    @property
    def finite(self) -> bool:
        """Whether all values are finite."""
        return is_finite(self.value, self.gradient)


class Ground:
    """The objective in scaled axes, and the most recent linearizations.

    Parameters
    ----------
    descent
        State at the initial point.

    Attributes
    ----------
    axes
        Steps [d, d], in columns, along each of which the curvature adds one half.
    seen
        The most recent linearizations.
    inverse
        The BFGS inverse Hessian [d, d] along the axes.
    """

    def __init__(self, descent: Descent) -> None:
        self.descent = descent
        self.size = len(descent.x)
        self.seen: list[Tangent] = []
        self.axes = np.diag(units(descent))
        self._from_axes = np.diag(1 / np.diag(self.axes))
        for _ in range(2):
            self._fit_axes()
        self.inverse = np.eye(self.size)

    def _fit_axes(self) -> None:
        """Rotate and scale the axes by finite differences of gradients along them.

        The steps are long, because the only curvature may come from kinks.
        """
        bends = np.zeros((self.size, self.size))
        for i, step in enumerate(np.eye(self.size)):
            sides = (self.look(step), self.look(-step))
            if all(side.finite for side in sides):
                bends[i] = (sides[0].subgradient - sides[1].subgradient) / 2
        values, vectors = np.linalg.eigh((bends + bends.T) / 2)
        values = np.abs(values)
        values = np.where(values > 1e-13 * values.max(), values, 1.0)
        self.axes = self.axes @ vectors / np.sqrt(values)
        self._from_axes = (vectors * np.sqrt(values)).T @ self._from_axes
        self.seen = []

    @property
    def noise(self) -> float:
        """The rounding error of the objective; nearby kinks are not counted."""
        descent = self.descent
        return 10 * descent.precision * max(1.0, abs(descent.value))

    def here(self) -> Tangent:
        """Return the linearization at the current point."""
        descent = self.descent
        return self._tangent(descent.x, descent.value, descent.gradient)

    def look(self, step: Array) -> Tangent:
        """Evaluate at a step [d], along the axes, from the current point."""
        x = self.descent.x + self.descent.tensor(self.axes @ step)
        found = self._tangent(x, *self.descent.landscape.value_and_gradient(x))
        if found.finite:
            self.seen = [*self.seen[-6 * self.size - 60 :], found]
        return found

    def go(self, there: Tangent) -> None:
        """Accept a step."""
        self.descent.accept(there.x, there.value, there.gradient)

    def misses(self, tangents: list[Tangent]) -> Array:
        """Return the linearization error [m] of each tangent, larger for distant ones.

        Kiwiel (1985), "Methods of descent for nondifferentiable optimization".
        """
        away = np.stack([array(t.x - self.descent.x) for t in tangents])
        away = away @ self._from_axes.T
        subgradients = np.stack([t.subgradient for t in tangents])
        values = np.array([t.value for t in tangents])
        off = self.descent.value - (values - (subgradients * away).sum(axis=1))
        missed: Array = np.maximum(np.abs(off), 0.1 * (away**2).sum(axis=1))
        return missed

    def _tangent(self, x: Tensor, value: float, gradient: Tensor) -> Tangent:
        full, l1 = gradient, self.descent.landscape.l1
        if not is_finite(value, gradient):
            return Tangent(x, value, gradient, np.full(self.size, math.nan))
        if l1 is not None:
            full = gradient + l1.weight * (x - l1.center).sign()
        return Tangent(x, value, gradient, self.axes.T @ array(full))


def cross_kinks(descent: Descent) -> End | None:
    """Minimize from the point at which a smooth search is stuck, and judge the end.

    None: no kinks are near the end, and a smooth search may continue from there.
    """
    for _ in range(TURNS):
        before = descent.value
        ground = Ground(descent)
        verdict = run_down(ground) or spike(ground)
        if verdict is not None:
            return verdict
        proven = prove(ground)
        if proven is not None:
            return at_kink(ground, proven)
        if before - descent.value <= ground.noise:
            break
    end = Ending.MAX_STEPS if descent.spent else Ending.STALLED
    return descent.ends_at_nonfinite() or End(end)


def descend_kinks(descent: Descent) -> End:
    """Minimize over kinks, without proving the end."""
    return run_down(Ground(descent)) or End(Ending.STALLED)


def at_kink(ground: Ground, tangents: list[Tangent]) -> End | None:
    """Return the verdict at a point where a mean of gradients is zero."""
    descent = ground.descent
    center_zeros(descent, ground.noise)
    subgradients = np.stack([t.subgradient for t in tangents])
    jumps = subgradients - subgradients.mean(axis=0)
    if (
        len(subgradients) == 1
        or np.abs(jumps).max() < 1e-3 * np.abs(subgradients).max()
    ):
        return None
    descent.hessian = descent.landscape.hessian(descent.x)
    hessian = ground.axes.T @ descent.hessian @ ground.axes
    descent.hessian = None
    bends = jumps.T @ jumps + hessian.T @ hessian
    values, vectors = np.linalg.eigh(bends)
    flat = vectors[:, values <= 1e-12 * max(1.0, values[-1])]
    if not flat.shape[1]:
        return End(Ending.CONVERGED)
    unit = array(descent.unit)
    flat = np.linalg.qr((ground.axes @ flat) / unit[:, None])[0]
    lower = lower_aside(descent, flat, unit)
    if lower is not None and not descent.spent:
        descent.accept(*lower)
        return None
    free = free_part(descent, flat, unit, descend_kinks)
    if not free.shape[1]:
        return End(Ending.CONVERGED)
    named = np.flatnonzero(np.linalg.norm(free, axis=1) > 1e-2)
    return End(Ending.UNIDENTIFIED, tuple(named.tolist()), null_space=free)


def center_zeros(descent: Descent, noise: float) -> None:
    """Set penalized coordinates that are almost at the center to it exactly."""
    l1 = descent.landscape.l1
    if l1 is None:
        return
    near = (descent.x - l1.center).abs() <= ASIDE * descent.unit
    near &= (l1.weight > 0) & (descent.x != l1.center)
    if not bool(near.any()):
        return
    x = descent.x.where(~near, l1.center)
    value, gradient = descent.landscape.value_and_gradient(x)
    if is_finite(value, gradient) and value <= descent.value + noise:
        descent.accept(x, value, gradient)


def units(descent: Descent) -> Array:
    """Return the distance [d] over which each coordinate has visible curvature.

    The Hessian misses the effect of kinks, so for few coordinates it is measured.
    """
    unit = array(descent.unit).copy()
    if len(unit) > MEASURED:
        return unit

    def bend(i: int, reach: float) -> float:
        step = np.zeros(len(unit))
        step[i] = reach
        sides = (descent.x + descent.tensor(s * step) for s in (1.0, -1.0))
        values = [descent.landscape.value_and_gradient(x)[0] for x in sides]
        return sum(values) - 2 * descent.value

    for i in range(len(unit)):
        reach, found = float(unit[i]), math.nan
        for _ in range(30):
            found = bend(i, reach)
            if not math.isfinite(found) or found > 3:
                reach /= 4
            elif found < 0.1 and reach < 1e10:
                reach *= 4
            else:
                break
        if 0.1 <= found <= 3:
            unit[i] = reach / math.sqrt(found)
    return unit


def run_down(ground: Ground) -> End | None:
    """Minimize by BFGS, Lewis and Overton (2013), until no step improves.

    "Nonsmooth optimization via quasi-Newton methods", Math. Program. 141.
    """
    descent = ground.descent
    ground.inverse = np.eye(ground.size)
    here = ground.here()
    for turn in range(100 * ground.size + 1000):
        if descent.spent:
            return End(Ending.MAX_STEPS)
        direction = -ground.inverse @ here.subgradient
        if turn == 0:
            direction /= max(1.0, float(np.linalg.norm(direction)))
        there, step = weak_search(ground, here, direction)
        if there is None:
            return None
        ground.go(there)
        learn(ground, step, there.subgradient - here.subgradient, first=turn == 0)
        here = there
        verdict = spike(ground) or descent.unbounded()
        if verdict is not None:
            return verdict
        if turn % PAUSE == PAUSE - 1 and level(ground, closest(ground))[1]:
            return None
    return None


def weak_search(
    ground: Ground, here: Tangent, direction: Array
) -> tuple[Tangent | None, Array]:
    """Find a point that satisfies the weak Wolfe conditions, by bisection."""
    start = float(here.subgradient @ direction)
    low, high, t = 0.0, math.inf, 1.0
    if not start < 0:
        return None, direction
    for _ in range(60):
        there = ground.look(t * direction)
        if not there.finite or there.value > here.value + 1e-4 * t * start:
            high = t
        elif there.subgradient @ direction < 0.5 * start:
            low = t
        else:
            return there, t * direction
        t = (low + high) / 2 if high < math.inf else 2 * t
        if (high - low) * abs(start) < 1e-2 * ground.descent.precision:
            break
    return None, direction


def learn(ground: Ground, step: Array, change: Array, *, first: bool) -> None:
    """Update the inverse Hessian with a step [d] and the change [d] of the gradient.

    Nocedal and Wright (2006), equation 6.17.
    """
    curvature = float(step @ change)
    if curvature <= 0:
        return
    if first:
        ground.inverse = ground.inverse * (curvature / float(change @ change))
    pushed = ground.inverse @ change
    rank = (1 + float(change @ pushed) / curvature) * np.outer(step, step)
    both = np.outer(step, pushed)
    ground.inverse = ground.inverse + (rank - both - both.T) / curvature


def closest(ground: Ground) -> list[Tangent]:
    """Return the recent linearizations with the smallest error at this point."""
    if not ground.seen:
        return [ground.here()]
    order = np.argsort(ground.misses(ground.seen))[: 2 * ground.size + 10]
    return [ground.seen[i] for i in order]


def level(ground: Ground, tangents: list[Tangent]) -> tuple[Array, bool, Array]:
    """Return the best mean gradient [d], whether it is zero, and its weights [m].

    Half its squared norm plus the mean linearization error is the gain of the best step
    under the curvature that the units imply.
    """
    subgradients = np.stack([t.subgradient for t in tangents])
    missed = ground.misses(tangents)
    weights = lightest(subgradients @ subgradients.T, missed)
    mean: Array = subgradients.T @ weights
    gain = float(mean @ mean) / 2 + float(missed @ weights)
    enough = max(ground.descent.tolerance, ground.noise)
    return mean, gain <= enough, weights


def prove(ground: Ground) -> list[Tangent] | None:
    """Return linearizations whose mean gradient is zero, or None if none are found.

    As long as the mean is not zero, it gives a descent direction or an unexplored side.
    """
    descent = ground.descent
    tangents = closest(ground)
    for _ in range(ROUNDS + FURTHER * ground.size):
        mean, done, weights = level(ground, tangents)
        order = np.argsort(-weights)
        tangents = [tangents[i] for i in order if weights[i] > 1e-9]
        if done:
            return tangents
        if descent.spent:
            return None
        steep = float(mean @ mean)
        t, lower = 1.0, False
        while True:
            there = ground.look(-t * mean)
            down = there.value <= descent.value - 1e-2 * t * steep
            lower = there.finite and down and there.value < descent.value
            if lower or t * math.sqrt(steep) < ASIDE:
                break
            t *= 0.1
        if lower:
            ground.go(there)
        elif not there.finite or float(there.subgradient @ mean) > 0.5 * steep:
            return None  # no new information: rounding
        tangents = [*tangents[: 3 * ground.size + 30], there]
    return None


def spike(ground: Ground) -> End | None:
    """Return UNBOUNDED if the objective is narrower than the precision of any data.

    That is, while a coordinate that is free to move (the log of the width) diverged.
    """
    descent = ground.descent
    here = array(descent.gradient.abs())
    steep = here
    for there in ground.seen[-PAUSE:]:
        steep = np.maximum(steep, array(there.gradient.abs()))
    narrow = steep * np.abs(array(descent.x)) * descent.precision**0.6 > 1
    narrow |= steep * array(descent.unit) * NARROWEST > 1
    ran = (np.abs(array(descent.x - descent.start)) > FAR_ON_LOG_SCALE) & (
        here < FAR_ON_LOG_SCALE
    )
    if not (narrow.any() and ran.any()):
        return None
    return End(Ending.UNBOUNDED, tuple(np.flatnonzero(ran).tolist()))
