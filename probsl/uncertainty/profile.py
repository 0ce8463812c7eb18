"""The profile likelihood of one quantity, and its interval.

The profile is the log density maximized over everything else. Twice its fall from the
maximum is about chi-square with one degree of freedom (Wilks, 1938), so its signed
square root is about standard Normal, and nearly linear in the quantity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.uncertainty.constrained import ConstrainedMaximum, Found

if TYPE_CHECKING:
    from collections.abc import Callable

    from probsl.curvature.point_covariance import PointCovariance
    from probsl.program.target_density import Density

__all__ = ["Profile", "ProfilePoint"]

# The root is met within this; a side has at most this many points.
_MET, _POINTS = 1e-4, 40
# A root below this, far from the estimate, is that of a level side.
_FLAT = 1e-2
# A side is open if the root is not met within this many units of the quantity.
_FAR = 1e3


@dataclass(frozen=True, eq=False)
class ProfilePoint:
    """One point of a profile.

    Attributes
    ----------
    value
        The quantity.
    root
        The root of twice the fall of the log density, negative below the estimate.
    x
        The flat vector [d] at which the log density is greatest.
    """

    value: float
    root: float
    x: Tensor


class Profile:
    """The profile of one quantity about the maximum of a density.

    Parameters
    ----------
    target
        The density.
    covariance
        The covariance of the point at which it is greatest.
    quantity
        Maps the flat vector, with gradients, to a scalar.
    unit
        Its standard error, or another size of a noticeable change.

    Attributes
    ----------
    estimate
        The quantity at the maximum.
    """

    def __init__(
        self,
        target: Density,
        covariance: PointCovariance,
        quantity: Callable[[Tensor], Tensor],
        unit: float,
    ) -> None:
        self.unit = unit if math.isfinite(unit) and unit > 0 else 1.0
        self._maximum = ConstrainedMaximum(
            target,
            covariance.layout,
            lambda x: quantity(x).reshape(1),
            torch.tensor([self.unit], dtype=torch.float64),
        )
        with covariance.problem.isolated():
            self._best, _ = self._maximum.density(covariance.x)
            with torch.enable_grad():
                point = covariance.x.detach().requires_grad_()
                value = quantity(point)
                (slope,) = torch.autograd.grad(value, point, materialize_grads=True)
        self.estimate = float(value.detach())
        variance = float(slope @ covariance.matrix @ slope)
        self._start = covariance.x
        # Along the profile the point moves with the quantity as it is correlated.
        self._direction = covariance.matrix @ slope / variance if variance > 0 else None

    def at(self, value: float, near: ProfilePoint | None = None) -> ProfilePoint | None:
        """Return the profile at a value; None if no maximum was found there.

        Parameters
        ----------
        value
            The quantity.
        near
            A point of the profile to start from; the estimate by default.
        """
        origin = near or ProfilePoint(self.estimate, 0.0, self._start)
        start = origin.x
        if self._direction is not None:
            start = start + (value - origin.value) * self._direction
        wanted = torch.tensor([value], dtype=torch.float64)
        found: Found | None = self._maximum.at(wanted, start)
        if found is None and self._direction is not None:
            found = self._maximum.at(wanted, origin.x)
        if found is None:
            return None
        fall = max(self._best - found.value, 0.0)
        sign = math.copysign(1.0, value - self.estimate)
        return ProfilePoint(value, sign * math.sqrt(2 * fall), found.x)

    def limit(self, root: float) -> float | None:
        """Return the value at which the profile has a root; None if it has none.

        Parameters
        ----------
        root
            The root, such as -1.96.
        """
        sign, wanted = math.copysign(1.0, root), abs(root)
        # Pairs of a distance from the estimate and the root there, on both sides.
        inside, outside = (0.0, 0.0), (math.inf, math.inf)
        near = ProfilePoint(self.estimate, 0.0, self._start)
        distance = wanted * self.unit
        for step in range(_POINTS):
            found = self.at(self.estimate + sign * distance, near)
            if found is None and inside[1] < _FLAT and distance > self.unit:
                return None  # so far out that nothing can be computed, and still level
            here = math.inf if found is None else abs(found.root)
            if abs(here - wanted) < _MET:
                break
            if here > wanted:
                outside = (distance, here)
            elif found is not None:
                inside, near = (distance, here), found
            if outside[0] == math.inf and distance > _FAR * self.unit:
                return None
            if outside[0] - inside[0] < 1e-9 * self.unit:
                distance = inside[0]
                break
            distance = _next(inside, outside, wanted, halve=step % 4 == 3)
        return self.estimate + sign * distance


def _next(
    inside: tuple[float, float],
    outside: tuple[float, float],
    wanted: float,
    *,
    halve: bool,
) -> float:
    """Return the next distance to try: by a line, which the root nearly is.

    Parameters
    ----------
    inside, outside
        The nearest known distances with smaller and larger roots, and these.
    wanted
        The root.
    halve
        Whether to halve the range between them, if it is known, instead.
    """
    (near, low), (far, high) = inside, outside
    if far == math.inf:
        guess = near * wanted / low if low > 0 else 2 * near
        return min(max(guess, 1.1 * near), 3 * near)
    if halve or high == math.inf:
        return (near + far) / 2
    return near + (far - near) * (wanted - low) / (high - low)
