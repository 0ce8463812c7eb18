"""Steps for an absolute-value penalty, which make coordinates exactly zero.

The penalty ``sum(weight * abs(x - center))`` has a kink at the center, at which Newton
steps stall. `ProximalModel` adds the exact penalty to a quadratic model of the rest,
and finds the exact minimum of the sum (Lee, Sun and Saunders 2014, "Proximal
Newton-type methods for minimizing composite functions", SIAM J. Optim. 24).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from probsl.engine.minimize.curvature import Spectrum, curvature_scale
from probsl.engine.minimize.descent import array

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from probsl.engine.minimize.descent import Descent
    from probsl.engine.minimize.l1_penalty import L1Penalty

    Array = NDArray[np.float64]

__all__ = ["ProximalModel", "quadratic_lasso"]


class ProximalModel:
    """A second-order Taylor model plus the exact penalty.

    It has the attributes and methods of `probsl.engine.minimize.trust_region.Model`.
    The Newton step and the null directions are those on the face of the current signs
    and zeros, where the penalty is linear.

    Parameters
    ----------
    descent
        State at the expansion point; its Hessian must be available.
    l1
        The penalty.
    """

    def __init__(self, descent: Descent, l1: L1Penalty) -> None:
        self._descent, self._l1 = descent, l1
        free = self._free = descent.influential
        x, hessian = array(descent.x), descent.hessian
        assert hessian is not None
        self.width = curvature_scale(np.diag(hessian), x)
        # A plateau has infinite width, but steps should not become that long.
        reach = np.minimum(self.width, np.maximum(array(descent.unit), np.abs(x)))
        scale = self._scale = reach[free]
        self._center = array(l1.center)[free]
        self._weight = array(l1.weight)[free] * scale
        self._here = (x[free] - self._center) / scale
        self._gradient = array(descent.gradient)[free] * scale
        self._hessian = hessian[np.ix_(free, free)] * scale * scale[:, None]
        self._convex = convex_part(self._hessian, 100 * len(free) * descent.precision)
        self._fall = np.zeros(len(free))
        self._solve_on_face(hessian)

    def _solve_on_face(self, hessian: Array) -> None:
        """Find the stationary point with the same signs and zeros."""
        descent, here = self._descent, self._here
        free = (self._weight == 0) | (here != 0)
        face: Array = self._free[free]
        spectrum = Spectrum(
            hessian[np.ix_(face, face)],
            self.width[face],
            precision=descent.precision,
            negligible=max(descent.tolerance, descent.noise),
        )
        gradient = (self._gradient + self._weight * np.sign(here))[free] / self._scale[
            free
        ]
        step, decrement = spectrum.newton(gradient)
        pull = np.maximum(np.abs(self._gradient) - self._weight, 0.0)[~free]
        self.decrement = decrement + float(pull @ pull) / 2
        after = here[free] + step / self._scale[free]
        crossing = (self._weight[free] > 0) & (after * here[free] < 0)
        self.is_bowl = spectrum.is_bowl(gradient) and not crossing.any()
        self.newton = np.zeros(len(hessian))
        self.newton[face] = step
        null = spectrum.vectors[:, spectrum.null]
        self.null_space = np.zeros((len(hessian), null.shape[1]))
        self.null_space[face] = null
        if len(face) and spectrum.values[0] < -2 * descent.tolerance:
            fall = spectrum.vectors[:, 0] * self.width[face] / self._scale[free]
            self._fall[free] = fall / np.linalg.norm(fall)

    def trial(self, radius: float) -> tuple[Tensor, float, float]:
        """Return a good point [d] within a radius, its gain, and its distance.

        The step is shortened by damping, so that its zeros stay exact.
        """
        damping = 0.0
        end = self._lowest(damping)
        length = self.residual(self._descent.x, self._descent.gradient)
        while np.linalg.norm(end - self._here) > 1.5 * radius:
            damping = max(4 * damping, length / radius, 1e-8)
            end = self._lowest(damping)
        if self._fall.any():  # away from a saddle, where the gradient is zero
            fall = min(radius, 1.0) * self._fall
            end = max(end, end + fall, end - fall, key=self._gain)
        distance = radius if damping else float(np.linalg.norm(end - self._here))
        return self._point(end), self._gain(end), distance

    def corrected(self, trial: Tensor, gradient: Tensor) -> None:
        """Return None: a trial point [d] is not corrected."""

    def bottom(self) -> Tensor:
        """Return the minimizer [d] of the model plus penalty."""
        return self._point(self._lowest(0.0))

    def residual(self, x: Tensor, gradient: Tensor) -> float:
        """Return the length of the proximal gradient step from a point [d]."""
        scale = torch.ones_like(x, dtype=torch.float64)
        scale[self._free] = torch.from_numpy(self._scale).to(x.device)
        move = self._l1.to(scale).proximal_step(x.to(scale), gradient, scale**2)
        return float(np.linalg.norm(array(move / scale)[self._free]))

    def _lowest(self, damping: float) -> Array:
        """Minimize model, penalty and a damping term, in scaled offsets."""
        hessian = self._convex + damping * np.eye(len(self._here))
        linear = self._gradient - hessian @ self._here
        return quadratic_lasso(hessian, linear, self._weight, start=self._here)

    def _gain(self, end: Array) -> float:
        step = end - self._here
        rise = self._weight @ (np.abs(end) - np.abs(self._here))
        return -float(self._gradient @ step + step @ self._hessian @ step / 2 + rise)

    def _point(self, end: Array) -> Tensor:
        """Return the point [d] at scaled offsets; the center where they are 0."""
        descent = self._descent
        full = array(descent.x).copy()
        full[self._free] = self._center + end * self._scale
        point = descent.tensor(full)
        zero = np.zeros(len(full), dtype=np.bool_)
        zero[self._free] = (end == 0) & (self._weight > 0)
        at_center = torch.from_numpy(zero).to(point.device)
        return torch.where(at_center, self._l1.center, point)


def convex_part(hessian: Array, floor: float) -> Array:
    """Return a matrix [d, d] with absolute eigenvalues, no smaller than a floor."""
    values, vectors = np.linalg.eigh(hessian)
    if values[0] >= floor:
        return hessian
    upward: Array = (vectors * np.maximum(np.abs(values), floor)) @ vectors.T
    return upward


def quadratic_lasso(
    hessian: Array, linear: Array, weight: Array, *, start: Array
) -> Array:
    """Minimize ``v'Hv / 2 + linear'v + sum(weight * abs(v))`` exactly.

    Coordinate descent finds most signs. Then an active-set method solves the equations
    of the nonzero coordinates, fixes those that reach zero on the way, and frees the
    zero that most violates the optimality conditions, until none does: Lee, Battle,
    Raina and Ng (2006), "Efficient sparse coding algorithms", NIPS.

    Parameters
    ----------
    hessian
        Positive definite matrix [d, d].
    linear
        Gradient at zero [d].
    weight
        Weight of the penalty [d]; 0 for none.
    start
        Initial guess [d].

    Returns
    -------
    NDArray
        The minimizer [d], with exact zeros.

    Examples
    --------
    >>> import numpy as np
    >>> from probsl.engine.minimize.proximal import quadratic_lasso
    >>> H, b = np.eye(2), np.array([-3.0, 0.5])
    >>> quadratic_lasso(H, b, np.ones(2), start=np.zeros(2))
    array([2., 0.])
    """
    v = coordinate_descent(hessian, linear, weight, start=start)
    signs = np.sign(v)
    free = (weight == 0) | (signs != 0)
    slack = 1e-14 * (np.abs(linear) + weight)
    for _ in range(20 * len(v) + 20):
        target = v.copy()
        push = (linear + weight * signs)[free]
        target[free] = -np.linalg.solve(hessian[np.ix_(free, free)], push)
        lost = free & (weight > 0) & (target * signs < 0)
        if lost.any():
            fractions = np.full(len(v), np.inf)
            fractions[lost] = v[lost] / (v[lost] - target[lost])
            first = int(np.argmin(fractions))
            v = v + fractions[first] * (target - v)
            v[first], signs[first], free[first] = 0.0, 0.0, False
            continue
        v = target
        gradient = hessian @ v + linear
        excess = np.where(free, -np.inf, np.abs(gradient) - weight - slack)
        strongest = int(np.argmax(excess))
        if excess[strongest] <= 0:
            break
        signs[strongest], free[strongest] = -np.sign(gradient[strongest]), True
    return v


def coordinate_descent(
    hessian: Array, linear: Array, weight: Array, *, start: Array, sweeps: int = 30
) -> Array:
    """Sweep over the coordinates until their signs stay, or up to a maximum.

    Parameters and results are those of `quadratic_lasso`, except for the last
    digits.
    """
    v = start.copy()
    diagonal = np.diag(hessian)
    gradient = hessian @ v + linear
    for sweep in range(sweeps):
        signs = np.sign(v)
        for i in range(len(v)):
            pull = gradient[i] - diagonal[i] * v[i]
            new = -math.copysign(max(abs(pull) - weight[i], 0.0), pull) / diagonal[i]
            if new != v[i]:
                gradient += hessian[i] * (new - v[i])
                v[i] = new
        if sweep > 2 and np.array_equal(signs, np.sign(v)):
            break
    return v
