"""The inverse Hessian approximation of L-BFGS."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class LimitedMemory:
    """An inverse Hessian approximated from recent steps and gradient changes.

    The two-loop recursion, Nocedal and Wright (2006), algorithm 7.4.

    Parameters
    ----------
    scale
        Unit of each coordinate [d]: its square is the initial inverse Hessian.
    size
        Number of steps to remember.
    """

    def __init__(self, scale: Tensor, size: int = 15) -> None:
        self.scale = scale
        self._size = size
        self._pairs: list[tuple[Tensor, Tensor, float]] = []
        self._factor = 1.0

    def __len__(self) -> int:
        return len(self._pairs)

    def clear(self) -> None:
        """Forget every step."""
        self._pairs, self._factor = [], 1.0

    def update(self, step: Tensor, change: Tensor) -> None:
        """Remember a step [d] and gradient change [d], if they show curvature."""
        curvature = float(step @ change)
        scaled = self.scale * change
        bend = float(scaled @ scaled)
        reach = float(((step / self.scale) ** 2).sum())
        precision = torch.finfo(step.dtype).eps
        if not curvature > precision * math.sqrt(bend * reach):
            return
        self._pairs = [*self._pairs[1 - self._size :], (step, change, 1 / curvature)]
        self._factor = curvature / bend

    def apply(self, vector: Tensor) -> Tensor:
        """Return the inverse Hessian times the vector [d]."""
        weights = []
        for step, change, inverse in reversed(self._pairs):
            weight = inverse * float(step @ vector)
            vector = vector - weight * change
            weights.append(weight)
        vector = self._factor * self.scale**2 * vector
        for (step, change, inverse), weight in zip(
            self._pairs, reversed(weights), strict=True
        ):
            vector = vector + (weight - inverse * float(change @ vector)) * step
        return vector
