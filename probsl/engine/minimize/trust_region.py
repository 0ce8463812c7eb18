"""Trust-region Newton method with the exact Hessian.

It escapes saddle points, follows curved valleys, converges quadratically, and
classifies how it ended.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from probsl.engine.ending import Ending
from probsl.engine.minimize.convergence_test import ConvergenceTest
from probsl.engine.minimize.curvature import Spectrum, curvature_scale
from probsl.engine.minimize.descent import LONG_SHARE, array, is_finite
from probsl.engine.minimize.free_directions import free_part, lower_aside
from probsl.engine.minimize.hidden_ends import hidden_end
from probsl.engine.minimize.kinks import cross_kinks
from probsl.engine.minimize.minimum import End
from probsl.engine.minimize.proximal import ProximalModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from probsl.engine.minimize.descent import Descent

__all__ = ["Model", "SmoothModel", "finish"]

# Share of a null direction that a coordinate must have to be reported.
NAMED_SHARE = 1e-2
# Limit on curvatures, so that their products stay finite.
LARGEST_CURVATURE = 1e150
# How often an apparent minimum may be left for a lower point.
ESCAPES = 10
# How often a search may cross kinks.
CROSSINGS = 2
# A kink is assumed if this many more trials look like one than do not.
PATIENCE = 4
# Shares of the predicted gain below which a step is rejected, and corrected.
BARELY, POOR = 1e-3, 0.25


class Model(Protocol):
    """A quadratic model of the objective around the current point of a descent.

    Attributes
    ----------
    newton
        The step [d] to the model's stationary point.
    decrement
        Decrease of the model at that point.
    is_bowl
        Whether that point is the model's minimum.
    width
        Distance [d] at which each coordinate's curvature adds one half to the model.
    null_space
        Directions [d, k] along which the model is flat, in column-scaled coordinates.
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
        """Return a trial point [d] corrected by its gradient [d], or None."""
        ...

    def bottom(self) -> Tensor:
        """Return the minimizer [d]."""
        ...

    def residual(self, x: Tensor, gradient: Tensor) -> float:
        """Return a measure of stationarity of a point [d] with a gradient [d]."""
        ...


class SmoothModel:
    """The second-order Taylor model of an objective without a penalty.

    Parameters
    ----------
    descent
        State at the expansion point; its Hessian must be available.
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
        # A plateau has infinite width, but steps should not become that long.
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
        """Return a trial point [d] moved back to the floor of a curved valley.

        A Newton correction for the gradient there, orthogonal to the step.
        """
        spectrum, free = self._spectrum, self._free
        step = array(trial - self._descent.x)[free] / spectrum.scale
        along = step / np.linalg.norm(step)
        part = array(gradient)[free]
        across = spectrum.step(part, float(np.linalg.norm(step))) / spectrum.scale
        across -= along * (along @ across)
        full = np.zeros_like(self.newton)
        full[free] = across * spectrum.scale
        return trial + self._descent.tensor(full)

    def bottom(self) -> Tensor:
        """Return the end point [d] of the Newton step."""
        return self._descent.x + self._descent.tensor(self.newton)

    def residual(self, x: Tensor, gradient: Tensor) -> float:
        """Return the length of the gradient [d] in scaled coordinates."""
        del x  # only a penalty would need it
        scale = self._spectrum.scale
        return float(np.linalg.norm(array(gradient)[self._free] * scale))


def finish(descent: Descent, descend: Callable[[Descent], End]) -> End:
    """Minimize to full precision by a trust-region Newton method, and judge the end.

    Parameters
    ----------
    descent
        State at the initial point; moves to the final point.
    descend
        Minimizes without a Hessian, to test null directions.
    """
    crossings = 0
    for _ in range(ESCAPES):
        end = approach(descent)
        before = descent.x
        verdict = hidden_by_rounding(descent, end)
        if verdict is not None:
            misled = verdict.ending is Ending.STALLED and descent.x is not before
            if misled and not descent.wary:
                descent.wary = True
                continue
            return verdict
        if not isinstance(end, End):
            verdict = at_minimum(descent, end, descend)
        elif end.ending is Ending.STALLED and crossings < CROSSINGS:
            crossings += 1
            descent.kinks = 0
            verdict = cross_kinks(descent)
        else:
            verdict = end
        if verdict is not None:
            return verdict
    return End(Ending.STALLED)


def hidden_by_rounding(descent: Descent, end: Model | End) -> End | None:
    """Judge an end by the rounding error there; None if that hides nothing."""
    if isinstance(end, End):
        if end.ending is not Ending.STALLED:
            return None
        end = model_at(descent)
        if isinstance(end, End):
            return None
    return hidden_end(descent, end)


def approach(descent: Descent) -> Model | End:
    """Minimize to an apparent minimum; return the model there, or another end.

    Nocedal and Wright (2006), algorithm 4.1 and section 4.3.
    """
    convergence = ConvergenceTest(descent, needed=1, patience=3)
    radius, hit_nonfinite = 1.0, False
    while True:
        model = model_at(descent)
        if isinstance(model, End):
            return descent.unbounded() or descent.ends_at_nonfinite() or model
        step, width = descent.tensor(model.newton), descent.tensor(model.width)
        if radius == 0:
            loose = convergence.relative(step, width) > LONG_SHARE
            end = convergence.tail() or descent.flat_tail(loose)
            low = model.decrement <= max(descent.tolerance, descent.noise)
            if model.is_bowl and low:
                return end or model
            return (
                (descent.ends_at_nonfinite() if hit_nonfinite else None)
                or end
                or End(Ending.STALLED)
            )
        if model.decrement < descent.tolerance and refine(descent, model):
            continue
        decrement = model.decrement if model.is_bowl else math.inf
        verdict = descent.unbounded() or convergence.judge(step, width, decrement)
        if verdict is not None:
            found = verdict.ending is Ending.CONVERGED
            return model if found else verdict
        if descent.spent:
            return End(Ending.MAX_STEPS)
        radius, hit_nonfinite = advance(descent, model, radius)
        if radius < 0:
            return End(Ending.STALLED)


def at_minimum(
    descent: Descent, model: Model, descend: Callable[[Descent], End]
) -> End | None:
    """Classify an apparent minimum: not a minimum, one of many, or isolated.

    None: it is not a minimum, and the descent has left it for a lower point.
    """
    if descent.noticed() and not descent.spent:
        return None
    flat_tail = descent.flat_tail()
    if flat_tail is not None:
        return flat_tail
    null = model.null_space
    if not null.shape[1]:
        return End(Ending.CONVERGED)
    # A plateau has infinite width, but steps should not become that long.
    unit = np.maximum(array(descent.unit), np.abs(array(descent.x)))
    aside = np.linalg.qr(model.width[:, None] * null / unit[:, None])[0]
    lower = lower_aside(descent, aside, unit)
    if lower is not None and not descent.spent:
        descent.accept(*lower)
        return None
    free = free_part(descent, aside, unit, descend)
    if not free.shape[1]:
        return End(Ending.CONVERGED)
    if free.shape[1] < null.shape[1]:
        null = np.linalg.qr(unit[:, None] * free / model.width[:, None])[0]
    named = np.flatnonzero(np.linalg.norm(null, axis=1) > NAMED_SHARE)
    return End(Ending.UNIDENTIFIED, tuple(named.tolist()), null_space=null)


def refine(descent: Descent, model: Model) -> bool:
    """Take the full Newton step if it comes much closer to a stationary point.

    It doubles the number of correct digits until only rounding is left, also along a
    curved line of minima, where the curvature changes sign. It would converge to a
    saddle point as well, but it only changes the last digits.
    """
    x = model.bottom()
    if descent.spent or torch.equal(x, descent.x):
        return False
    value, gradient = descent.landscape.value_and_gradient(x)
    before = model.residual(descent.x, descent.gradient)
    closer = model.residual(x, gradient) < 0.1 * before
    as_low = value <= descent.value + descent.noise
    if not (is_finite(value, gradient) and closer and as_low):
        return False
    if not descent.believes(x, value, gradient, careful=True):
        return False
    descent.accept(x, value, gradient)
    return True


def model_at(descent: Descent) -> Model | End:
    """Return the model at the current point, or NONFINITE."""
    if descent.hessian is None:
        descent.hessian = descent.landscape.hessian(descent.x)
    bad = ~(np.abs(descent.hessian) < LARGEST_CURVATURE).all(axis=1)
    if bad.any():
        return End(Ending.NONFINITE, tuple(np.flatnonzero(bad).tolist()))
    l1 = descent.landscape.l1
    return SmoothModel(descent) if l1 is None else ProximalModel(descent, l1)


def advance(descent: Descent, model: Model, radius: float) -> tuple[float, bool]:
    """Take the best step that the objective confirms.

    Parameters
    ----------
    descent
        State at the current point.
    model
        The quadratic model of the objective.
    radius
        Trust radius, in scaled coordinates.

    Returns
    -------
    tuple
        The next trust radius, 0 if no step was found, negative if there is a kink; and
        whether that was because the objective is not finite farther on.
    """
    hit_nonfinite = doubted = False
    while True:
        trial, gain, distance = model.trial(radius)
        if not gain > 0 or torch.equal(trial, descent.x):
            return 0.0, hit_nonfinite
        value, gradient = descent.landscape.value_and_gradient(trial)
        hit_nonfinite = not is_finite(value, gradient)
        if not hit_nonfinite:
            point = corrected_point(descent, model, gain, (trial, value, gradient))
            quality = quality_of(descent, model, gain, point)
            kinked = is_kink(descent, trial, gradient, gain)
            descent.kinks = descent.kinks + 1 if kinked else max(0, descent.kinks - 1)
            good = quality > BARELY
            if good and doubted and gain <= descent.resolution:
                return 0.0, False  # any step beyond rounding is too small to matter
            doubted = good and not descent.believes(*point, careful=True)
            if good and not doubted:
                descent.accept(*point)
                further = next_radius(radius, distance, quality)
                return -1.0 if descent.kinks > PATIENCE else further, False
            if gain < descent.noise:
                return 0.0, False
            if descent.kinks > PATIENCE:
                return -1.0, False
        radius = 0.25 * min(radius, distance)


def is_kink(descent: Descent, trial: Tensor, gradient: Tensor, gain: float) -> bool:
    """Whether the gradient jumps along a short step without curvature in the model."""
    step = trial - descent.x
    along = float(descent.gradient @ step)
    turned = abs(float(gradient @ step) - along)
    return abs(gain + along) < 0.1 * abs(along) and turned > 0.5 * abs(along)


def corrected_point(
    descent: Descent, model: Model, gain: float, trial: tuple[Tensor, float, Tensor]
) -> tuple[Tensor, float, Tensor]:
    """Return a trial point, or a lower one nearby if it has left a curved valley."""
    for _ in range(2):
        if quality_of(descent, model, gain, trial) > POOR:
            break
        x = model.corrected(trial[0], trial[2])
        if x is None:
            break
        value, gradient = descent.landscape.value_and_gradient(x)
        if not (is_finite(value, gradient) and value <= trial[1]):
            break
        trial = (x, value, gradient)
    return trial


def quality_of(
    descent: Descent, model: Model, gain: float, trial: tuple[Tensor, float, Tensor]
) -> float:
    """Return the ratio of actual to predicted gain at a trial point.

    Rounding counts for the point, not against it (Conn, Gould and Toint (2000),
    "Trust-region methods", section 17.4.2). If only rounding is visible, the gradient
    must confirm the decrease.
    """
    x, value, gradient = trial
    drop = descent.value - value
    if gain < descent.tolerance**0.25 and abs(drop - gain) > 0.5 * gain:
        descent.listen()
    noise = descent.noise
    if gain < noise:
        before = model.residual(descent.x, descent.gradient)
        if model.residual(x, gradient) >= before:
            return -math.inf
    return (drop + noise) / (gain + noise)


def next_radius(radius: float, distance: float, quality: float) -> float:
    """Return the next trust radius after a step of this length and quality."""
    if quality < POOR:
        return 0.25 * distance
    if quality < 0.75 or distance < 0.8 * radius:
        return radius
    return (4 if quality > 0.95 else 2) * radius
