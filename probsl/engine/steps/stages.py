"""Stages of constant learning rate: when one ends, and how the search ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from probsl.engine.ending import Ending

if TYPE_CHECKING:
    from torch import Tensor

    from probsl.engine.steps.remainder import Remainder

# A stage ends after this many consecutive windows without progress beyond noise, and
# without drift: at stationarity the mean gradient of a noisy objective is zero.
_PATIENCE = 2
WINDOW = 250
_STAGES = 5
# Consecutive windows with drift but no progress after which the search is judged.
_ADRIFT = 8
# Minimum number of windows of the last stage, if steps are noisy.
_LAST_WINDOWS = 4


class _Walk(Protocol):
    """Steps whose progress is judged window by window."""

    @property
    def x(self) -> Tensor: ...

    def begin_stage(self, decay: float) -> None: ...

    def begin_window(self) -> None: ...

    def drifting(self) -> bool: ...


@dataclass
class Stages:
    """The stage of a search, and its progress window by window.

    Attributes
    ----------
    point
        The point at the end of the last window, shape ``[d]``.
    stage
        The number of the stage, from 0.
    idle_windows, windows
        Consecutive windows without progress, and all windows, of this stage.
    adrift
        Consecutive windows with drift but no progress.
    patience
        Idle windows after which the stage ends.
    retreats
        Returns to the average of a stage, because steps were not finite.
    speed
        The largest change of a coordinate in the last window.
    moments
        The mean objective of the last window, and its squared standard error.
    """

    point: Tensor
    stage: int = 0
    idle_windows: int = 0
    windows: int = 0
    adrift: int = 0
    patience: int = _PATIENCE
    retreats: int = 0
    speed: float = 0.0
    moments: tuple[float, float] | None = None

    def end_window(
        self,
        walk: _Walk,
        losses: list[float],
        tolerance: float,
        *,
        decay: float,
        noisy: bool,
    ) -> bool:
        """Lower the rate at a plateau; return whether the search is to be judged.

        Parameters
        ----------
        walk
            The steps.
        losses
            The objective at each step of the window.
        tolerance
            Progress that is considered to be zero.
        decay
            Factor of the learning rate from stage to stage.
        noisy
            Whether the inputs of steps vary.
        """
        self.windows += 1
        point = walk.x.detach().clone()
        self.speed = float((point - self.point).abs().max())
        self.point = point
        before, self.moments = self.moments, _moments(losses)
        if before is None:
            walk.begin_window()
            return False
        progress = before[0] - self.moments[0]
        noise = math.sqrt(before[1] + self.moments[1])
        resting = progress <= max(2 * noise, tolerance)
        idle = resting and (noise <= tolerance or not walk.drifting())
        walk.begin_window()
        self.adrift = self.adrift + 1 if resting and not idle else 0
        if self.adrift == _ADRIFT:  # is the rate too small to follow the gradient?
            self.adrift = 0
            return True
        self.idle_windows = self.idle_windows + 1 if idle else 0
        if self.idle_windows < self.patience:
            return False
        if self._last:
            return self.windows >= _LAST_WINDOWS or not noisy
        self.idle_windows = self.windows = 0
        self.stage += 1
        walk.begin_stage(decay)
        return False

    def verdict(
        self, found: Remainder, tolerance: float, windows_left: float
    ) -> Ending | None:
        """Return how the search ends, or None if it has to continue.

        At stationarity it is judged by the gain of a better step. If that is more than
        noise explains, the search continues if its steps can reach the better point.

        Parameters
        ----------
        found
            The remaining gain.
        tolerance
            Gain that is considered to be zero.
        windows_left
            Windows until the maximum number of steps.
        """
        if found.gain <= max(tolerance, found.chance):
            return Ending.CONVERGED if self._last else None
        if not self.speed * windows_left > found.distance:
            return Ending.STALLED
        self.idle_windows = 0
        self.patience *= 2  # a verdict costs as much as several hundred steps
        return None

    @property
    def _last(self) -> bool:
        return self.stage == _STAGES - 1


def _moments(losses: list[float]) -> tuple[float, float]:
    """Return the mean and the squared standard error of the mean."""
    # Summing a list this short takes less time than making a tensor of it.
    if not math.isfinite(sum(losses)):
        losses = [v for v in losses if math.isfinite(v)] or [math.inf] * 2
    mean = sum(losses) / len(losses)
    variance = sum([(v - mean) * (v - mean) for v in losses]) / len(losses)
    return mean, variance / len(losses)
