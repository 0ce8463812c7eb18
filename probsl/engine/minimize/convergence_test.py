"""Tests whether a minimization has converged."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probsl.engine.ending import Ending
from probsl.engine.minimize.descent import LONG_SHARE, Descent, indices
from probsl.engine.minimize.minimum import End


class ConvergenceTest:
    """Distinguishes a minimum from a flattening tail, once little is left to gain.

    The decrement is below tolerance at both. Newton steps shrink to rounding error near
    a minimum; along a tail they keep their length, because gradient and curvature
    decrease together.

    Parameters
    ----------
    descent
        The minimization to judge.
    needed
        Number of consecutive small steps that make a minimum.
    patience
        Number of consecutive large steps of almost no gain that are allowed.
    """

    def __init__(self, descent: Descent, *, needed: int, patience: int) -> None:
        self._descent = descent
        self._needed = needed
        self._patience = patience
        self._small = self._large = 0
        self._previous = torch.zeros_like(descent.x)
        self._lasting = torch.zeros_like(descent.x)

    def judge(self, step: Tensor, width: Tensor, decrement: float) -> End | None:
        """Judge the full step [d] from the current point.

        Parameters
        ----------
        step
            The step to the minimum of the model.
        width
            Distance [d] over which each coordinate matters at the current point.
        decrement
            Predicted gain of the step; infinite if the model is unbounded below.
        """
        relative = self.relative(step, width)
        lasts = (relative > LONG_SHARE) & (step.abs() > 0.9 * self._previous)
        self._previous = step.abs()
        if math.isfinite(decrement):
            near = decrement < math.sqrt(self._descent.tolerance)
            self._lasting = torch.where(lasts & near, self._lasting + 1, 0.0)
        if not decrement < self._descent.tolerance:
            self._small = self._large = 0
            return None
        if not bool((relative > self._descent.step_tolerance).any()):
            self._small += 1
            return End(Ending.CONVERGED) if self._small >= self._needed else None
        self._small, self._large = 0, self._large + 1
        if self._large > self._patience and bool(
            (self._lasting > self._patience).any()
        ):
            return End(
                Ending.UNBOUNDED, indices(relative > LONG_SHARE), flattening=True
            )
        too_many = self._large > 10 * self._patience
        return End(Ending.CONVERGED) if too_many else None

    def tail(self) -> End | None:
        """Return UNBOUNDED if steps stayed long until rounding stopped the search."""
        lasted = self._lasting >= min(3, self._patience)
        if not bool(lasted.any()):
            return None
        return End(Ending.UNBOUNDED, indices(lasted), flattening=True)

    def relative(self, step: Tensor, width: Tensor) -> Tensor:
        """Return a step [d] in units of its coordinates.

        The unit is the one at the start: along a tail the current one grows without
        bound (and so does the coordinate). If the start itself was on a tail, the
        current unit is the smaller one. Steps caused by rounding alone are small.
        """
        descent = self._descent
        rounding = 100 * descent.precision / descent.step_tolerance * descent.x.abs()
        return step.abs() / torch.maximum(torch.minimum(descent.unit, width), rounding)
