"""An objective with its gradient and Hessian."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probsl.engine.minimize.shared_factors import shared_factors_multiplied_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


# Rows of the Hessian per batched product: more use more memory but save no time.
CHUNK = 64
# Up to this many rows are computed one by one, as gradients of a sum: a batch needs
# grad_outputs=, and at its first use torch imports sympy for half a second.
FEW = 64


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
        self._batched = True

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
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self.objective(x)
            if not value.requires_grad:
                return np.zeros((len(x), len(x)))
            (gradient,) = torch.autograd.grad(
                value, x, create_graph=True, materialize_grads=True
            )
            if not gradient.requires_grad:
                return np.zeros((len(x), len(x)))
            basis = torch.eye(len(x), dtype=x.dtype, device=x.device)
            rows = torch.cat([self._rows(gradient, x, b) for b in basis.split(CHUNK)])
        full: NDArray[np.float64] = rows.detach().double().cpu().numpy()
        return (full + full.T) / 2

    def _rows(self, gradient: Tensor, x: Tensor, basis: Tensor) -> Tensor:
        """Return the rows [k, d] of the Hessian along the unit vectors [k, d]."""
        if self._batched and len(x) > FEW:
            try:
                with shared_factors_multiplied_once():
                    (rows,) = torch.autograd.grad(
                        gradient,
                        x,
                        basis,
                        retain_graph=True,
                        is_grads_batched=True,
                        materialize_grads=True,
                    )
            except RuntimeError:  # an operation without a batching rule, or no memory
                self._batched = False
            else:
                return rows
        return torch.stack(
            [
                torch.autograd.grad(
                    gradient @ unit, x, retain_graph=True, materialize_grads=True
                )[0]
                for unit in basis
            ]
        )
