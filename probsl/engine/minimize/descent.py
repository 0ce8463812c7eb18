"""State of a running minimization, and the tests that classify how it ends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probsl.engine.ending import Ending
from probsl.engine.minimize.curvature import curvature_scale
from probsl.engine.minimize.minimum import End, Minimum
from probsl.engine.minimize.rounding import (
    ON_THE_WAY,
    SMALL,
    doubtful,
    explained,
    rounding_at,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from probsl.engine.minimize.landscape import Landscape

__all__ = ["Descent"]

# Farther than this on a log scale, e^20 = 5e8, a density no longer describes the data.
FAR_ON_LOG_SCALE = 20.0
# No choice of units makes a density narrower than at the start by this factor.
NARROWEST = 1e-20
# A step of this share of a coordinate's unit, without gain, is not due to rounding.
LONG_SHARE = 5e-3
# Intervals of a step over which its derivatives are integrated.
INTERVALS = 16
# Distances, in units of the coordinates, at which to test for influence.
ELSEWHERE = (0.1, -1.0)


class Descent:
    """The current point of a minimization, its derivatives, and its history.

    Parameters
    ----------
    landscape
        The objective.
    start
        Initial point [d].
    tolerance, max_steps, callback
        As in `probsl.engine.minimize.minimize.minimize`.

    Attributes
    ----------
    start
        Initial point [d].
    x, value, gradient
        The last accepted point [d], the objective there with its penalty, and the
        gradient [d] without it. An accepted step never raises the objective by more
        than rounding, so the last point is the best.
    hessian
        Hessian [d, d] at ``x``, or None if it was not computed.
    losses
        Objective at the start and after each step.
    unit
        Distance [d] over which each coordinate mattered at the start.
    influential
        Indices of the coordinates that affect the objective.
    travel
        How far each coordinate [d] has moved since it last changed direction.
    wary
        Whether rounding has misled the search, so that checks are stricter.
    """

    def __init__(
        self,
        landscape: Landscape,
        start: Tensor,
        *,
        tolerance: float | None,
        max_steps: int,
        callback: Callable[[int, float, Tensor], bool | None] | None,
    ) -> None:
        self.landscape = landscape
        self.start = start.detach()
        self.x = self.start.clone()
        self.value = math.nan
        self.gradient = torch.full_like(self.x, math.nan)
        self.hessian: NDArray[np.float64] | None = None
        self.losses: list[float] = []
        self.unit = self.x.abs().clamp(min=1.0)
        self.influential = np.arange(len(start))
        self.travel = torch.zeros_like(self.x)
        self._steady = torch.zeros_like(self.x, dtype=torch.bool)
        self.precision = torch.finfo(start.dtype).eps
        # In units of the objective, a mean over rows: far below what data can resolve
        # (2e-12 in float64), far above the rounding error of a decrement.
        self.resolution = self.precision**0.75
        self.tolerance = self.resolution if tolerance is None else tolerance
        # The decrement allows a step of sqrt(2 tolerance / c) along a curvature c. That
        # is long if the curvature is weak, so the step itself has to be small, too.
        self.step_tolerance = self.precision**0.25
        self._rounding, self._heard = 0.0, 0
        self.kinks = 0
        self.wary = False
        self._max_steps = max_steps
        self._callback = callback

    @property
    def spent(self) -> bool:
        """Whether the maximum number of steps is reached."""
        return len(self.losses) > self._max_steps

    @property
    def noise(self) -> float:
        """The largest change of the objective that rounding alone can cause."""
        return max(10 * self.precision * max(1.0, abs(self.value)), self._rounding)

    def begin(self) -> End | None:
        """Evaluate the initial point."""
        self.value, self.gradient = self.landscape.value_and_gradient(self.x)
        self.losses.append(self.value)
        if is_finite(self.value, self.gradient):
            return None
        return End(Ending.NONFINITE, indices(~self.gradient.isfinite()))

    def measure(self, *, exact: bool) -> None:
        """Find the unit of each coordinate, and the coordinates without influence."""
        if exact:
            self.hessian = self.landscape.hessian(self.x)
            self.unit = self.tensor(
                curvature_scale(np.diag(self.hessian), array(self.x))
            )
        idle = self.flat_here()
        if idle.any():
            idle &= self.flat_elsewhere()
            self.influential = np.flatnonzero((~idle).cpu().numpy())

    def noticed(self) -> bool:
        """Test again for coordinates with influence; return whether any were found.

        A coordinate may matter only once others have moved.
        """
        if len(self.influential) == len(self.x):
            return False
        flat = self.flat_here() & self.flat_elsewhere()
        flat[torch.from_numpy(self.influential).to(flat.device)] = False
        before = len(self.influential)
        self.influential = np.flatnonzero((~flat).cpu().numpy())
        return len(self.influential) > before

    def flat_here(self) -> Tensor:
        """Return whether each coordinate [d] has zero derivatives at this point."""
        flat = self.gradient == 0
        if self.hessian is not None:
            flat &= torch.from_numpy(~self.hessian.any(axis=1)).to(flat.device)
        if self.landscape.l1 is not None:
            flat &= self.landscape.l1.weight == 0
        return flat

    def flat_elsewhere(self) -> Tensor:
        """Return whether each coordinate [d] has zero gradient at other points, too.

        A coordinate that is flat at one point, such as a saddle, may have influence.
        """
        flat = torch.ones_like(self.x, dtype=torch.bool)
        angles = torch.arange(len(self.x), dtype=self.x.dtype, device=self.x.device)
        for reach in ELSEWHERE:
            value, gradient = self.landscape.value_and_gradient(
                self.x + reach * self.unit * angles.cos()
            )
            if is_finite(value, gradient):
                flat &= gradient == 0
        return flat

    def accept(self, x: Tensor, value: float, gradient: Tensor) -> None:
        """Accept a step, and call the callback."""
        move, change = x - self.x, gradient - self.gradient
        onward = move * self.travel >= -0.1 * self.travel**2
        self.travel = torch.where(onward, self.travel, 0.0) + move
        same_gradient = change.abs() <= 1e-6 * gradient.abs()
        self._steady = same_gradient & (move.abs() > 0.1 * self.travel.abs())
        self.x, self.value, self.gradient, self.hessian = x, value, gradient, None
        if len(self.influential) < len(x):
            moved = np.flatnonzero(array(gradient))
            self.influential = np.union1d(self.influential, moved)
        self.losses.append(value)
        if self._callback and self._callback(len(self.losses) - 1, value, x.clone()):
            raise KeyboardInterrupt  # handled like an interrupt by the user

    def listen(self) -> None:
        """Measure the rounding error of the objective at the current point."""
        if self._heard == len(self.losses):
            return
        self._heard = len(self.losses)
        here = (self.x, self.value, self.gradient)
        rounding = rounding_at(self.landscape, here, self.unit, count=6)
        if math.isfinite(rounding):
            self._rounding = max(self._rounding, rounding)

    def rounding_here(self, unit: Tensor) -> float:
        """Return the rounding error at the current point, ignoring earlier points.

        Parameters
        ----------
        unit
            Distance [d] over which each coordinate matters at the current point.
        """
        self._heard = len(self.losses)
        here = (self.x, self.value, self.gradient)
        enough = self.resolution
        rounding = rounding_at(self.landscape, here, unit, count=4, enough=enough)
        if not rounding <= enough:  # then measure more precisely
            rounding = rounding_at(self.landscape, here, unit, count=6, enough=enough)
        self._rounding = rounding if math.isfinite(rounding) else 0.0
        return self.noise

    def rounding_near(
        self, x: Tensor, value: float, gradient: Tensor, unit: Tensor
    ) -> float:
        """Return the rounding error of the objective near another point [d]."""
        measured = rounding_at(
            self.landscape,
            (x, value, gradient),
            unit,
            count=6,
            enough=self.resolution,
        )
        return max(10 * self.precision * max(1.0, abs(value)), measured)

    def reach(self) -> NDArray[np.float64]:
        """Return a plausible step length for each coordinate [d].

        That is the larger of its unit and its absolute value.
        """
        return np.maximum(array(self.unit), np.abs(array(self.x)))

    def believes(
        self, x: Tensor, value: float, gradient: Tensor, *, careful: bool = False
    ) -> bool:
        """Whether a lower point [d] is lower by more than rounding.

        Parameters
        ----------
        x, value, gradient
            The point [d], the objective and its gradient [d] there.
        careful
            Whether to check even if the gradients at both ends explain the decrease.
        """
        drop = self.value - value
        if drop <= max(self.noise, self.resolution):
            return True
        step = x - self.x
        level = self.landscape.penalty(self.x) - self.landscape.penalty(x)
        before, after = float(self.gradient @ step), float(gradient @ step)
        known = explained(drop - level, before, after)
        if known and not careful:
            return True
        unit = torch.minimum(self.unit, step.abs())
        count = 6 if self.wary else 2 if known else 4
        places = [(x, value, gradient)]
        ends = self.x.new_tensor([drop - level, before, after])
        if bool(doubtful(*ends)):
            path = self._path(step)
            along = sum(float(gradient @ step) for _, _, gradient in path)
            area = ((before + after) / 2 + along) / INTERVALS
            # Beyond the rounding errors of large terms, the objective may be exactly
            # constant at a value that it does not have.
            if not abs(drop - level + area) <= SMALL * (drop - level):
                return False
            places += [path[int(share * INTERVALS) - 1] for share in ON_THE_WAY]
        enough = SMALL * drop
        return all(
            rounding_at(self.landscape, place, unit, count=count, enough=enough)
            <= enough
            for place in places
        )

    def _path(self, step: Tensor) -> list[tuple[Tensor, float, Tensor]]:
        """Return the points, values and gradients between the intervals of a step."""
        shares = [place / INTERVALS for place in range(1, INTERVALS)]
        points = [self.x + share * step for share in shares]
        return [(x, *self.landscape.value_and_gradient(x)) for x in points]

    def flat_tail(self, loose: Tensor | None = None) -> End | None:
        """Return UNBOUNDED if coordinates have lost their influence, far away.

        Parameters
        ----------
        loose
            Whether each coordinate [d] would still move if rounding did not hide the
            gain. These need not have flattened completely, only far enough.
        """
        if self.hessian is None:
            return None
        travel = self.travel.abs()
        ran = (travel > 5 * self.unit) | (travel > FAR_ON_LOG_SCALE)
        limit = max(self.precision, self._rounding)
        bend = self.tensor(np.diag(self.hessian))
        if loose is not None:
            ran &= loose | (bend <= 0)
            limit = math.sqrt(self.noise)
        ran &= bend.abs() * travel**2 <= limit
        if not bool(ran.any()):
            return None
        return End(Ending.UNBOUNDED, indices(ran), flattening=True)

    def unbounded(self) -> End | None:
        """Return UNBOUNDED if the objective visibly decreases without bound.

        Either a coordinate has moved very far along a constant gradient. Or the
        objective has become a spike, narrower than the precision of any data, while
        a coordinate that is free to move (the log of its width) diverged.
        """
        far = self._steady & self._downhill()
        far &= self.travel.abs() > self.precision**-0.8
        if bool(far.any()):
            return End(Ending.UNBOUNDED, indices(far))
        if self.hessian is None:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            width = self.tensor(1 / np.sqrt(np.diag(self.hessian)))
        travel = self.travel.abs()
        narrow = width < self.precision**0.8 * self.x.abs()
        narrow |= width < NARROWEST * self.unit
        ran = (
            bool(narrow.any()) & (travel > FAR_ON_LOG_SCALE) & ~(width <= 1e-3 * travel)
        )
        return End(Ending.UNBOUNDED, indices(ran)) if bool(ran.any()) else None

    def ends_at_nonfinite(self) -> End | None:
        """Return UNBOUNDED if a long decrease ends only at the limits of the dtype."""
        ran = self._downhill() & (self.travel.abs() > FAR_ON_LOG_SCALE)
        if self.hessian is not None:
            bend = self.tensor(np.abs(np.diag(self.hessian)))
            if bool(bend.isfinite().all()):
                ran &= bend <= self.gradient.abs()
        return End(Ending.UNBOUNDED, indices(ran)) if bool(ran.any()) else None

    def _downhill(self) -> Tensor:
        """Return whether each coordinate [d] is still moving along a steep descent."""
        steep = self.gradient.abs() > self.tolerance
        return steep & (self.gradient * self.travel < 0)

    def tensor(self, values: NDArray[np.float64]) -> Tensor:
        """Return an array as a tensor like ``x``."""
        # A copy, because a diagonal is read-only.
        return torch.tensor(values, device="cpu").to(self.x)

    def minimum(self, end: End) -> Minimum:
        """Return the result of the minimization."""
        null = end.null_space
        return Minimum(
            x=self.x,
            value=self.value,
            hessian=None if self.hessian is None else self.tensor(self.hessian),
            losses=tuple(self.losses),
            steps=max(0, len(self.losses) - 1),
            ending=end.ending,
            coordinates=end.coordinates,
            flattening=end.flattening,
            null_space=None if null is None else self.tensor(null),
            hidden=end.hidden,
        )


def is_finite(value: float, gradient: Tensor) -> bool:
    """Return whether the objective and its gradient are finite."""
    return math.isfinite(value) and bool(gradient.isfinite().all())


def indices(mask: Tensor) -> tuple[int, ...]:
    """Return the indices at which a mask [d] is true."""
    return tuple(mask.nonzero().flatten().tolist())


def array(tensor: Tensor) -> NDArray[np.float64]:
    """Return a tensor as a float64 array."""
    values: NDArray[np.float64] = tensor.detach().double().cpu().numpy()
    return values
