"""An objective with its gradient and Hessian."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.engine.minimize.hessian import Hessian

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray


class Landscape:
    """An objective of one flat vector, with its derivatives.

    Parameters
    ----------
    objective
        Maps a tensor [d] to a scalar tensor, twice differentiable where finite.
    l1
        Center [d] and weight [d] of an absolute-value penalty, which is included in the
        value but not in the derivatives. None: no penalty.
    """

    def __init__(
        self,
        objective: Callable[[Tensor], Tensor],
        l1: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.objective = objective
        self.l1 = l1
        self._hessian = Hessian(objective)

    def slope(self, x: Tensor) -> tuple[float, Tensor]:
        """Return the value, penalty included, and the gradient [d] without it.

        A matrix that cannot be factorized is treated like a value of NaN.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            try:
                value = self.objective(x)
                gradient = torch.zeros_like(x)
                if value.requires_grad:
                    (gradient,) = torch.autograd.grad(value, x, materialize_grads=True)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                return math.nan, torch.full_like(x, math.nan)
        return float(value.detach()) + self.penalty(x.detach()), gradient

    def value(self, x: Tensor) -> float:
        """Return the value at a point [d], penalty included."""
        with torch.no_grad():
            try:
                value = float(self.objective(x))
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                return math.nan
        return value + self.penalty(x)

    def penalty(self, x: Tensor) -> float:
        """Return the penalty at a point [d]."""
        if self.l1 is None:
            return 0.0
        center, weight = self.l1
        return float((weight * (x - center).abs()).sum())

    def hessian(self, x: Tensor) -> NDArray[np.float64]:
        """Return the symmetric Hessian [d, d] of the objective without the penalty."""
        full: NDArray[np.float64] = self._hessian(x).double().cpu().numpy()
        return (full + full.T) / 2
