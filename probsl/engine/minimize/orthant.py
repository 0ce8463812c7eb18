"""Orthant-wise steps for an absolute-value penalty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from probsl.engine.minimize.descent import is_finite

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from probsl.engine.minimize.descent import Descent

    Array = NDArray[np.float64]


def penalty_of(descent: Descent) -> tuple[Tensor, Tensor]:
    """Return the center [d] and the weight [d] of the penalty."""
    assert descent.landscape.l1 is not None
    return descent.landscape.l1


def pseudo_gradient(descent: Descent) -> Tensor:
    """Return the steepest one-sided derivative [d]; 0 if both sides go up.

    Andrew and Gao (2007), equation 4.
    """
    center, weight = penalty_of(descent)
    side = torch.sign(descent.x - center)
    gradient = descent.gradient
    within = torch.sign(gradient) * (gradient.abs() - weight).clamp(min=0.0)
    return torch.where(side == 0, within, gradient + weight * side)


def aligned(descent: Descent, direction: Tensor, slope: Tensor) -> Tensor:
    """Return the direction [d] without the penalized components that go up.

    Andrew and Gao (2007), section 3.2.
    """
    weight = penalty_of(descent)[1]
    kept = torch.where((weight > 0) & (direction * slope >= 0), 0.0, direction)
    downhill = float(kept @ slope) < 0
    return kept if downhill else -(descent.unit**2) * slope


def orthant_search(
    descent: Descent, direction: Tensor, slope: Tensor, first: float
) -> tuple[tuple[Tensor, float, Tensor] | None, bool]:
    """Search a line, projected onto the orthant, for a lower point.

    Parameters and results are those of
    `probsl.engine.minimize.line_search.wolfe_search`.
    """
    center, weight = penalty_of(descent)
    offset = descent.x - center
    orthant = torch.where(offset == 0, -torch.sign(slope), torch.sign(offset))
    t, hit_nonfinite = first, False
    for _ in range(60):
        x = descent.x + t * direction
        outside = (weight > 0) & ((x - center) * orthant <= 0)
        x = torch.where(outside, center, x)
        value, gradient = descent.landscape.slope(x)
        if is_finite(value, gradient):
            hit_nonfinite = False
            if torch.equal(x, descent.x):
                break
            expected = float(slope @ (x - descent.x))
            low = value - descent.value <= 1e-4 * expected
            if low and descent.believes(x, value, gradient):
                return (x, value, gradient), False
            if -expected < 1e-3 * descent.noise:
                break
            t *= 0.5
        else:
            hit_nonfinite = True
            t *= 0.1
    return None, hit_nonfinite
