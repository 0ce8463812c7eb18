"""An objective with its gradient and Hessian."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.engine.minimize.hessian import Hessian
from probsl.progress import phase

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from probsl.engine.minimize.l1_penalty import L1Penalty


class Landscape:
    """An objective of one flat vector, with its derivatives.

    Parameters
    ----------
    objective
        Maps a tensor [d] to a scalar tensor, twice differentiable where finite.
    l1
        A penalty, which is included in the value but not in the derivatives.
    """

    def __init__(
        self,
        objective: Callable[[Tensor], Tensor],
        l1: L1Penalty | None = None,
    ) -> None:
        self.objective = objective
        self.l1 = l1
        self._hessian = Hessian(objective)

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
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
        return 0.0 if self.l1 is None else float(self.l1.value(x))

    def hessian(self, x: Tensor) -> NDArray[np.float64]:
        """Return the symmetric Hessian [d, d] of the objective without the penalty."""
        with phase("computing the curvature"):
            full: NDArray[np.float64] = self._hessian(x).double().cpu().numpy()
        return (full + full.T) / 2
