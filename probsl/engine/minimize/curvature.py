"""Local quadratic model of an objective: gradient, Hessian, and the steps they give.

Vectors of coordinates stay tensors of the caller's dtype, on the caller's device. d x d
matrices become float64 numpy, so that the linear algebra adds no error of its own to a
float32 objective; the rounding tolerance depends on the objective's own dtype.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Spectrum", "curvature_scale", "trust_region"]

# A larger scale is an accident of the point at which it was measured; the square of a
# smaller one underflows.
SMALLEST_SCALE, LARGEST_SCALE = 1e-80, 1e10


def curvature_scale(
    diagonal: NDArray[np.float64], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the distance [d] at which each coordinate's curvature adds one half.

    That is 1 / sqrt|H_ii|. A coordinate of zero or negative curvature, which says
    little about its scale, gets max(|x_i|, 1) instead.
    """
    fallback = np.maximum(np.abs(x), 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1 / np.sqrt(np.abs(diagonal))
    scale = np.where(np.isfinite(scale), scale, fallback)
    scale = np.where(diagonal < 0, np.minimum(scale, fallback), scale)
    return np.clip(scale, SMALLEST_SCALE, LARGEST_SCALE)


class Spectrum:
    """Eigenvalues of a Hessian in scaled coordinates, and the steps they give.

    Parameters
    ----------
    hessian
        Symmetric matrix [d, d].
    scale
        Unit of each coordinate [d]; with ``scale = 1 / sqrt(diag(hessian))`` the scaled
        Hessian is the correlation of the columns of a regression.
    precision
        Machine epsilon of the numbers from which the Hessian was computed.
    negligible
        Gradients and negative curvatures, in scaled coordinates, below which nothing
        can be gained.

    Attributes
    ----------
    values
        Eigenvalues [d], ascending.
    vectors
        Orthonormal eigenvectors [d, d], in columns.
    null
        Boolean [d]: the eigenvalue is indistinguishable from zero. Rounding the entries
        of a matrix with unit diagonal moves its eigenvalues by up to d * precision.
    """

    def __init__(
        self,
        hessian: NDArray[np.float64],
        scale: NDArray[np.float64],
        *,
        precision: float,
        negligible: float,
    ) -> None:
        self.scale = scale
        scaled = hessian * scale * scale[:, None]
        self.values, self.vectors = np.linalg.eigh((scaled + scaled.T) / 2)
        floor = 100 * len(scale) * precision
        self.null = self.values <= floor
        self._negligible = negligible
        self._flat = self.null & (self.values >= -max(floor, 2 * negligible))

    def rotated(self, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the gradient [d] along the eigenvectors, in scaled coordinates."""
        rotated: NDArray[np.float64] = self.vectors.T @ (self.scale * gradient)
        return rotated

    def is_bowl(self, gradient: NDArray[np.float64]) -> bool:
        """Return whether the model is bounded below: no descent without curvature."""
        rotated = np.abs(self.rotated(gradient))
        return bool(
            np.all(self._flat[self.null])
            and np.all(rotated[self.null] <= self._negligible)
        )

    def newton(
        self, gradient: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], float]:
        """Return the pseudo-inverse Newton step [d] and its decrement g'H⁻¹g / 2."""
        rotated = np.where(self.null, 0.0, self.rotated(gradient))
        step = -rotated / np.where(self.null, 1.0, self.values)
        return self.scale * (self.vectors @ step), float(-rotated @ step / 2)

    def step(self, gradient: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
        """Return the best step [d] of the quadratic model within the radius.

        Flat directions along which nothing can be gained are left out, as with a
        pseudo-inverse.
        """
        rotated = self.rotated(gradient)
        idle = self._flat & (np.abs(rotated) <= self._negligible)
        values = np.where(idle, max(1.0, self.values[-1]), self.values)
        step = trust_region(values, np.where(idle, 0.0, rotated), radius)
        scaled: NDArray[np.float64] = self.scale * (self.vectors @ step)
        return scaled


@np.errstate(over="ignore")  # of a square: only whether it is large matters
def trust_region(
    values: NDArray[np.float64], gradient: NDArray[np.float64], radius: float
) -> NDArray[np.float64]:
    """Minimize gradient'p + p' diag(values) p / 2 over steps up to a radius.

    The exact solution, by the secular equation in the offset from the leftmost pole (to
    avoid cancellation), with the hard case: Moré and Sorensen (1983), "Computing a
    trust region step", SIAM J. Sci. Stat. Comput. 4, 553-572; Nocedal and Wright
    (2006), section 4.3.

    Parameters
    ----------
    values
        Curvatures [d] along an orthonormal basis.
    gradient
        Gradient [d] along the same basis.
    radius
        Length of the longest step; may be infinite if all curvatures are positive.

    Returns
    -------
    NDArray
        The step [d].

    Examples
    --------
    At a saddle point the gradient is zero, and the step follows the curvature:

    >>> import numpy as np
    >>> trust_region(np.array([-1.0, 2.0]), np.zeros(2), 0.5) + 0.0
    array([0.5, 0. ])
    """
    size = float(np.abs(gradient).max())
    if size > 1e100:  # it exceeds any curvature, and its square overflows
        return -radius * (gradient / size) / np.linalg.norm(gradient / size)
    lowest = int(np.argmin(values))
    if values[lowest] > 0:
        newton = -gradient / values
        if np.linalg.norm(newton) <= radius:
            return newton
    pole = max(0.0, -float(values[lowest]))
    height = values + pole
    at_pole = height <= np.finfo(np.float64).eps * np.abs(values).max()
    if not np.any(gradient[at_pole]):
        inner = np.where(at_pole, 0.0, -gradient / np.where(at_pole, 1.0, height))
        left = radius**2 - float(inner @ inner)
        if np.any(at_pole) and left >= 0:  # the hard case: the rest along the pole
            inner[lowest] = math.sqrt(left) if pole > 0 else 0.0
            return inner
    height = np.where(at_pole, 0.0, height)
    offset = max(0.0, float(np.max(np.abs(gradient) / radius - height)))
    active = gradient != 0
    s, h = gradient[active], height[active]
    for _ in range(100):
        length = math.sqrt(float(np.sum((s / (h + offset)) ** 2)))
        excess = (length - radius) / radius
        if abs(excess) <= 1e-8:
            break
        offset += excess * length**2 / float(np.sum(s**2 / (h + offset) ** 3))
    step = np.zeros_like(gradient)
    step[active] = -s / (h + offset)
    return step
