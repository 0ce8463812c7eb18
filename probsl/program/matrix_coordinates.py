"""Minimal coordinates of triangular and of positive definite matrices."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform

__all__ = ["CholeskyFactor", "PositiveDefinite"]


class CholeskyFactor(Transform):
    """From a vector to a lower triangular matrix with a positive diagonal.

    The vector [d (d + 1) / 2] has the logarithms of the diagonal first, then the
    entries below it, row by row.

    Examples
    --------
    >>> import torch
    >>> from probsl.program.matrix_coordinates import CholeskyFactor
    >>> CholeskyFactor()(torch.tensor([0.0, 0.0, 0.5]))
    tensor([[1.0000, 0.0000],
            [0.5000, 1.0000]])
    """

    domain = constraints.real_vector
    codomain: Any = constraints.lower_cholesky
    bijective = True

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of the matrix."""
        size = _size(shape[-1])
        return torch.Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of the vector."""
        size = shape[-1]
        return torch.Size((*shape[:-2], size * (size + 1) // 2))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log determinant of the Jacobian."""
        return x[..., : y.shape[-1]].sum(-1)

    def _call(self, x: Tensor) -> Tensor:
        size = _size(x.shape[-1])
        diagonal = x[..., :size].exp().diag_embed()
        rows, columns = torch.tril_indices(size, size, -1, device=x.device)
        placed = torch.zeros((len(rows), size, size), dtype=x.dtype, device=x.device)
        placed[torch.arange(len(rows), device=x.device), rows, columns] = 1.0
        below = torch.einsum("...k,kij->...ij", x[..., size:], placed)
        return diagonal + below

    def _inverse(self, y: Tensor) -> Tensor:
        size = y.shape[-1]
        rows, columns = torch.tril_indices(size, size, -1, device=y.device)
        diagonal = y.diagonal(dim1=-2, dim2=-1).log()
        return torch.cat([diagonal, y[..., rows, columns]], -1)


class PositiveDefinite(CholeskyFactor):
    """From a vector to a positive definite matrix, by its Cholesky factor.

    The Jacobian is that of the matrix's entries on and below the diagonal.
    """

    codomain = constraints.positive_definite

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log determinant of the Jacobian."""
        size = y.shape[-1]
        powers = torch.arange(size + 1, 1, -1, dtype=x.dtype, device=x.device)
        scaled = x[..., :size] * powers
        return scaled.sum(-1) + size * math.log(2)

    def _call(self, x: Tensor) -> Tensor:
        factor = super()._call(x)
        return factor @ factor.mT

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(torch.linalg.cholesky(y))


def _size(length: int) -> int:
    """Return d for a length of d (d + 1) / 2."""
    return (math.isqrt(8 * length + 1) - 1) // 2
