"""Whether two computations give the same results."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Powers of the machine precision: for the same operations, and for reordered sums.
SAME_OPERATIONS, OTHER_ORDER = 0.6, 0.5


def value_at(
    function: Callable[..., tuple[Tensor, ...]], arguments: Sequence[Tensor]
) -> tuple[Tensor, ...] | None:
    """Return the results of a function, None if a matrix cannot be factorized."""
    try:
        return function(*arguments)
    except LinAlgError:
        return None


def agree(
    found: Sequence[Tensor], expected: Sequence[Tensor], power: float = SAME_OPERATIONS
) -> bool:
    """Whether two lists of tensors are equal up to rounding.

    Rounding is relative to the largest entry, because sums cancel. Nonfinite entries
    must be nonfinite in both.

    Parameters
    ----------
    found, expected
        The tensors.
    power
        The tolerance, as a power of the machine precision.
    """
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        finite = other.isfinite()
        if not torch.equal(finite, one.isfinite()):
            return False
        values = other[finite]
        if values.numel():
            tolerance = torch.finfo(other.dtype).eps ** power
            limit = tolerance * max(float(values.abs().max()), 1e-3)
            if float((one[finite] - values).abs().max()) > limit:
                return False
    return True


def equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors are equal bit for bit; NaN equals NaN."""
    return all(
        bool(((one == other) | (one.isnan() & other.isnan())).all())
        for one, other in zip(found, expected, strict=True)
    )
