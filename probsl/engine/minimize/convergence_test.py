"""When a minimization has converged."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probsl.engine.ending import Ending
from probsl.engine.minimize.descent import LONG_SHARE, Descent, indices
from probsl.engine.minimize.minimum import Verdict


class ConvergenceTest:
    """Tells a minimum from a tail that flattens out, once little is left to gain.

    At both the decrement is below tolerance. Towards a minimum Newton's steps shrink,
    down to rounding; along a tail they stay as they are, for slope and curvature fade
    together.

    Parameters
    ----------
    descent
        The walk to judge.
    needed
        How many small steps in a row make a minimum.
    patience
        How many large steps in a row, worth next to nothing, are let pass.
    """

    def __init__(self, descent: Descent, *, needed: int, patience: int) -> None:
        self._descent = descent
        self._needed = needed
        self._patience = patience
        self._small = self._large = 0
        self._previous = torch.zeros_like(descent.x)
        self._lasting = torch.zeros_like(descent.x)

    def judge(self, step: Tensor, width: Tensor, decrement: float) -> Verdict | None:
        """Judge the full step [d] from here.

        Parameters
        ----------
        step
            The step to the bottom of the model.
        width
            Distance [d] over which each coordinate matters here.
        decrement
            What the step is worth; infinite where the model has no bottom.
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
            return Verdict(Ending.CONVERGED) if self._small >= self._needed else None
        self._small, self._large = 0, self._large + 1
        if self._large > self._patience and bool(
            (self._lasting > self._patience).any()
        ):
            return Verdict(
                Ending.UNBOUNDED, indices(relative > LONG_SHARE), flattening=True
            )
        too_many = self._large > 10 * self._patience
        return Verdict(Ending.CONVERGED) if too_many else None

    def tail(self) -> Verdict | None:
        """Return UNBOUNDED if the last steps lasted, until rounding stopped them."""
        lasted = self._lasting >= min(3, self._patience)
        if not bool(lasted.any()):
            return None
        return Verdict(Ending.UNBOUNDED, indices(lasted), flattening=True)

    def relative(self, step: Tensor, width: Tensor) -> Tensor:
        """Return a step [d] in units of its coordinates.

        The unit is the one at the start: along a tail that of today grows without bound
        (and so does the coordinate). Where the start was on a tail itself, that of
        today is the smaller one. Steps that only rounding makes are small.
        """
        descent = self._descent
        rounding = 100 * descent.precision / descent.step_tolerance * descent.x.abs()
        return step.abs() / torch.maximum(torch.minimum(descent.unit, width), rounding)
