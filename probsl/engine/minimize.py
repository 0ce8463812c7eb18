"""The deterministic minimizer of every small full-batch fit.

A function of one flat vector is brought down in two stages: L-BFGS in coordinates
scaled by the curvature at the start, then, where a Hessian is affordable, a trust-region
Newton method with the exact one, which leaves saddles, converges quadratically, and can
say what kind of end it has come to. With an absolute-value penalty the road is the same,
and the steps are those of `probsl.engine.proximal`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch

from probsl.engine.curvature import Landscape, LimitedMemory, Spectrum, curvature_scale
from probsl.engine.descent import (
    Descent,
    Minimum,
    Outcome,
    Settling,
    Verdict,
    array,
    is_finite,
)
from probsl.engine.proximal import (
    ProximalModel,
    aligned,
    orthant_search,
    pseudo_gradient,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Minimum", "Outcome", "minimize"]

# Share of a null direction that a coordinate must hold to be named.
NOTICEABLE = 1e-2
# Products of curvatures are to stay numbers.
LARGEST_CURVATURE = 1e150
# Share of the expected gain that a step must have to be taken.
BARELY = 1e-3


def minimize(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    tolerance: float | None = None,
    max_steps: int = 1000,
    l1: tuple[Tensor, Tensor] | None = None,
    newton_limit: int = 300,
    idle: Literal["ignore", "report"] = "ignore",
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
    coordinate, and the Hessian is positive definite. NULL_DIRECTIONS: the same, but the
    column-scaled Hessian has eigenvalues that cannot be told from zero. RUNAWAY: steps
    that stay large are worth nothing any more (flattening), or the objective falls
    without bound. STALLED: rounding, or a kink, hides every way down.

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
    descent = Descent(
        Landscape(objective, l1),
        start,
        tolerance=tolerance,
        max_steps=max_steps,
        callback=callback,
    )
    exact = len(start) <= newton_limit
    try:
        verdict = descent.begin()
        if verdict is None:
            descent.measure(exact=exact)
            verdict = descend(descent, rough=exact)
            if exact:
                verdict = finish(descent)
    except KeyboardInterrupt:
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
        if found is not None:
            memory.update(found[0] - descent.x, found[2] - descent.gradient)
            descent.accept(*found)
        elif len(memory):
            memory.clear()  # it may have been misled by a kink or by rounding
        else:
            if gain <= max(tolerance, descent.noise):
                return Verdict(Outcome.CONVERGED)
            return stuck(descent, settling, walled=walled)
    return Verdict(Outcome.MAX_STEPS)


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
        if t in (low, high):
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


class Model(Protocol):
    """A quadratic model of the objective around the point where a descent stands.

    Attributes
    ----------
    newton
        The step [d] to the model's stationary point.
    decrement
        How far below the model is there.
    is_bowl
        Whether that point is the model's minimum.
    width
        Distance [d] over which each coordinate bends the model by one half.
    null_space
        Directions [d, k] along which the model is level, in column-scaled coordinates.
    """

    newton: NDArray[np.float64]
    decrement: float
    is_bowl: bool
    width: NDArray[np.float64]
    null_space: NDArray[np.float64]

    def trial(self, radius: float) -> tuple[Tensor, float, float]:
        """Return the best point [d] within a radius, its gain, and its distance."""
        ...

    def corrected(self, trial: Tensor, gradient: Tensor) -> Tensor | None:
        """Return a trial point [d] led back by its gradient [d], if the model can."""
        ...

    def bottom(self) -> Tensor:
        """Return the lowest point [d]."""
        ...

    def residual(self, x: Tensor, gradient: Tensor) -> float:
        """Return how far from stationary a point [d] with a gradient [d] is."""
        ...


class SmoothModel:
    """The second-order Taylor model of an objective without a penalty.

    Parameters
    ----------
    descent
        Where to build it; its Hessian must be there.
    """

    def __init__(self, descent: Descent) -> None:
        self._descent = descent
        self._free = descent.influential
        x, hessian = array(descent.x), descent.hessian
        assert hessian is not None
        self._hessian = hessian[np.ix_(self._free, self._free)]
        self._gradient = array(descent.gradient)[self._free]
        self.width = curvature_scale(np.diag(hessian), x)
        width = self.width[self._free]
        columns = self._spectrum_in(width)
        # A plateau has a width without end, which is no reason to leap that far.
        reach = np.minimum(
            width, np.maximum(array(descent.unit), np.abs(x))[self._free]
        )
        self._spectrum = self._spectrum_in(reach) if np.any(reach < width) else columns
        step, self.decrement = columns.newton(self._gradient)
        self.is_bowl = columns.is_bowl(self._gradient)
        self.newton = np.zeros_like(x)
        self.newton[self._free] = step
        null = columns.vectors[:, columns.null]
        self.null_space = np.zeros((len(x), null.shape[1]))
        self.null_space[self._free] = null

    def _spectrum_in(self, scale: NDArray[np.float64]) -> Spectrum:
        return Spectrum(
            self._hessian,
            scale,
            precision=self._descent.precision,
            negligible=max(self._descent.tolerance, self._descent.noise),
        )

    def trial(self, radius: float) -> tuple[Tensor, float, float]:
        """Return the best point [d] within a radius, its gain, and its distance."""
        step = self._spectrum.step(self._gradient, radius)
        gain = -float(self._gradient @ step + step @ self._hessian @ step / 2)
        distance = float(np.linalg.norm(step / self._spectrum.scale))
        full = np.zeros_like(self.newton)
        full[self._free] = step
        return self._descent.x + self._descent.tensor(full), gain, distance

    def corrected(self, trial: Tensor, gradient: Tensor) -> Tensor:
        """Return a trial point [d] brought back to the floor of a curved valley.

        The slope found there is answered across the step, not along it.
        """
        spectrum, free = self._spectrum, self._free
        step = array(trial - self._descent.x)[free] / spectrum.scale
        along = step / np.linalg.norm(step)
        slope = array(gradient)[free]
        across = spectrum.step(slope, float(np.linalg.norm(step))) / spectrum.scale
        across -= along * (along @ across)
        full = np.zeros_like(self.newton)
        full[free] = across * spectrum.scale
        return trial + self._descent.tensor(full)

    def bottom(self) -> Tensor:
        """Return the end point [d] of Newton's step."""
        return self._descent.x + self._descent.tensor(self.newton)

    def residual(self, x: Tensor, gradient: Tensor) -> float:
        """Return the length of the gradient [d] in scaled coordinates."""
        del x  # only a penalty would need it
        scale = self._spectrum.scale
        return float(np.linalg.norm(array(gradient)[self._free] * scale))


def finish(descent: Descent) -> Verdict:
    """Go down to the last digit by a trust-region Newton method, and judge the end.

    Nocedal and Wright (2006), algorithm 4.1 and section 4.3.
    """
    settling = Settling(descent, needed=1, patience=3)
    radius, walled = 1.0, False
    while True:
        model = model_at(descent)
        if isinstance(model, Verdict):
            return descent.at_wall() or model
        if radius == 0:
            if model.is_bowl and model.decrement <= max(
                descent.tolerance, descent.noise
            ):
                return settling.tail() or at_minimum(descent, model)
            return stuck(descent, settling, walled=walled)
        if model.decrement < descent.tolerance and refine(descent, model):
            continue
        verdict = descent.falling() or settling.judge(
            descent.tensor(model.newton),
            descent.tensor(model.width),
            model.decrement if model.is_bowl else math.inf,
        )
        if verdict is not None:
            found = verdict.outcome is Outcome.CONVERGED
            return at_minimum(descent, model) if found else verdict
        if descent.spent:
            return Verdict(Outcome.MAX_STEPS)
        radius, walled = advance(descent, model, radius)


def stuck(descent: Descent, settling: Settling, *, walled: bool) -> Verdict:
    """Say why no step is left where the slope asks for one."""
    wall = descent.at_wall() if walled else None
    return wall or settling.tail() or Verdict(Outcome.STALLED)


def at_minimum(descent: Descent, model: Model) -> Verdict:
    """Say what kind of minimum this is: none, one of many, or the only one."""
    faded = descent.faded()
    if faded is not None:
        return faded
    null = model.null_space
    if not null.shape[1]:
        return Verdict(Outcome.CONVERGED)
    named = np.flatnonzero(np.linalg.norm(null, axis=1) > NOTICEABLE)
    return Verdict(Outcome.NULL_DIRECTIONS, tuple(named.tolist()), null_space=null)


def refine(descent: Descent, model: Model) -> bool:
    """Take Newton's whole step if it comes much closer to a stationary point.

    It doubles the digits until only rounding is left, also along a curved line of
    minima, where the curvature changes sign. It would go to a saddle just as well, but
    only as far as its last digits.
    """
    x = model.bottom()
    if descent.spent or torch.equal(x, descent.x):
        return False
    value, gradient = descent.landscape.slope(x)
    before = model.residual(descent.x, descent.gradient)
    closer = model.residual(x, gradient) < 0.1 * before
    as_low = value <= descent.value + descent.noise
    if not (is_finite(value, gradient) and closer and as_low):
        return False
    descent.accept(x, value, gradient)
    return True


def model_at(descent: Descent) -> Model | Verdict:
    """Return the model where the descent stands, or NONFINITE."""
    if descent.hessian is None:
        descent.hessian = descent.landscape.hessian(descent.x)
    bad = ~(np.abs(descent.hessian) < LARGEST_CURVATURE).all(axis=1)
    if bad.any():
        return Verdict(Outcome.NONFINITE, tuple(np.flatnonzero(bad).tolist()))
    return (
        SmoothModel(descent) if descent.landscape.l1 is None else ProximalModel(descent)
    )


def advance(descent: Descent, model: Model, radius: float) -> tuple[float, bool]:
    """Take the best step that the objective confirms.

    Parameters
    ----------
    descent
        Where to step from.
    model
        What the objective is expected to do.
    radius
        How far the model is trusted, in scaled coordinates.

    Returns
    -------
    tuple
        How far it is trusted next, 0 where no step was found; and whether that was
        because the objective is not finite further on.
    """
    walled = False
    while True:
        trial, gain, distance = model.trial(radius)
        if not gain > 0 or torch.equal(trial, descent.x):
            return 0.0, walled
        value, gradient = descent.landscape.slope(trial)
        walled = not is_finite(value, gradient)
        if not walled:
            quality = quality_of(descent, model, gain, (trial, value, gradient))
            corrected = None if quality > BARELY else model.corrected(trial, gradient)
            if corrected is not None:
                trial = corrected
                value, gradient = descent.landscape.slope(trial)
                quality = quality_of(descent, model, gain, (trial, value, gradient))
            if quality > BARELY:
                descent.accept(trial, value, gradient)
                return next_radius(radius, distance, quality), False
            if gain < descent.noise:
                return 0.0, False
        radius = 0.25 * min(radius, distance)


def quality_of(
    descent: Descent, model: Model, gain: float, trial: tuple[Tensor, float, Tensor]
) -> float:
    """Return the share of an expected gain that a trial point has.

    Rounding counts for the point, not against it (Conn, Gould and Toint (2000),
    "Trust-region methods", section 17.4.2); where rounding is all that can be seen, the
    slope must confirm.
    """
    x, value, gradient = trial
    if not is_finite(value, gradient):
        return -math.inf
    drop = descent.value - value
    suspicious = drop < BARELY * gain < BARELY * math.sqrt(descent.tolerance)
    if suspicious:
        descent.listen()
    noise = descent.noise
    if gain < noise:
        before = model.residual(descent.x, descent.gradient)
        if model.residual(x, gradient) >= before:
            return -math.inf
    return (drop + noise) / (gain + noise)


def next_radius(radius: float, distance: float, quality: float) -> float:
    """Return how far to trust a model after a step of such a distance and quality."""
    if quality < 0.25:
        return 0.25 * distance
    if quality < 0.75 or distance < 0.8 * radius:
        return radius
    if abs(quality - 1) < 0.01:
        return 10 * radius
    return (4 if quality > 0.95 else 2) * radius


def with_idle(descent: Descent, verdict: Verdict) -> Verdict:
    """Add the coordinates without influence to the null directions of a minimum."""
    size = len(descent.x)
    idle = np.setdiff1d(np.arange(size), descent.influential)
    found = verdict.outcome in (Outcome.CONVERGED, Outcome.NULL_DIRECTIONS)
    if not (found and len(idle)):
        return verdict
    null = np.eye(size)[:, idle]
    if verdict.null_space is not None:
        null = np.hstack([verdict.null_space, null])
    named = sorted({*verdict.coordinates, *idle.tolist()})
    return Verdict(Outcome.NULL_DIRECTIONS, tuple(named), null_space=null)
