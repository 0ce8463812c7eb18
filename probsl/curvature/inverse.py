"""The inverse of an information matrix, and the directions that it leaves free."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Inverse", "NoCovarianceError", "inverted"]

# Share of a function's gradient along free directions that is no more than rounding.
_ALONG_FREE = 1e-6
# Rounding errors of a scaled matrix's eigenvalues, in units of its size and precision.
_ROUNDING = 50.0
# Below this, relative to the largest, a scaled eigenvalue is negative beyond rounding.
_NEGATIVE = -1e-7


class NoCovarianceError(ValueError):
    """An estimate has no covariance; the message says why, and what to do."""


@dataclass(frozen=True, eq=False)
class Inverse:
    """The inverse of a symmetric matrix on the directions that it determines.

    Attributes
    ----------
    matrix
        The inverse, shape ``[d, d]``; 0 in the rows and columns that were left out.
    free
        Directions that the matrix does not determine, shape ``[d, k]``, in units of
        `scale`, in which they have length 1.
    scale
        The unit of each coordinate, in which the matrix has a diagonal of ones.
    negative
        Whether the curvature along one of them is negative beyond rounding errors, so
        that the point is not a maximum.
    """

    matrix: Tensor
    free: Tensor
    scale: Tensor
    negative: bool

    def determines(self, derivatives: Tensor) -> Tensor:
        """Return which functions do not change along the free directions, ``[m]``.

        Parameters
        ----------
        derivatives
            Their Jacobian, shape ``[m, d]``.
        """
        scaled = derivatives * self.scale
        along = (scaled @ self.free).norm(dim=1)
        determined: Tensor = along <= _ALONG_FREE * scaled.norm(dim=1)
        return determined


def inverted(information: Tensor, left_out: Tensor | None = None) -> Inverse:
    """Invert an information matrix on the directions that it determines.

    Parameters
    ----------
    information
        A symmetric matrix, shape ``[d, d]``.
    left_out
        Coordinates held still, whose rows and columns do not take part, ``[d]``.

    Raises
    ------
    NoCovarianceError
        If it is not finite.

    Notes
    -----
    The matrix is scaled to a diagonal of ones first, so that units do not matter:
    columns on scales far apart are no singularity.

    Examples
    --------
    >>> import torch
    >>> from probsl.curvature.inverse import inverted
    >>> inverse = inverted(torch.tensor([[4.0, 4.0], [4.0, 4.0]]).double())
    >>> inverse.free.shape
    torch.Size([2, 1])
    """
    size = len(information)
    kept = torch.ones(size, dtype=torch.bool, device=information.device)
    if left_out is not None:
        kept = ~left_out
    part = information[kept][:, kept]
    if not part.isfinite().all():
        raise NoCovarianceError(
            "the information matrix is not finite at the estimate; rescale the data"
        )
    diagonal = part.diagonal().abs()
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * part * scale)
    largest = values.abs().max() if len(values) else part.new_zeros(())
    rounding = _ROUNDING * max(len(values), 1) * torch.finfo(part.dtype).eps
    determined = values > rounding * largest
    sound = (scale[:, None] * vectors)[:, determined]
    matrix = information.new_zeros(size, size)
    free = information.new_zeros(size, int((~determined).sum()))
    places = kept.nonzero()[:, 0]
    matrix[places[:, None], places] = (sound / values[determined]) @ sound.T
    free[places] = vectors[:, ~determined]
    units = torch.ones_like(information[0]) if size else information.new_zeros(0)
    units[places] = scale
    negative = bool((values < _NEGATIVE * largest).any())
    return Inverse(matrix, free, units, negative)
