"""Whether two ways to compute something give the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Powers of the machine precision: the same operations, and sums in another order.
SAME_OPERATIONS, OTHER_ORDER = 0.6, 0.5


def value_at(
    function: Callable[..., tuple[Tensor, ...]], arguments: Sequence[Tensor]
) -> tuple[Tensor, ...] | None:
    """Return the results of a function, None where a matrix has no factor."""
    try:
        return function(*arguments)
    except LinAlgError:
        return None


def agree(
    found: Sequence[Tensor], expected: Sequence[Tensor], power: float = SAME_OPERATIONS
) -> bool:
    """Whether two lists of tensors are equal up to rounding.

    Rounding is measured against the largest entry: sums cancel. What is not finite has
    to be so in both.

    Parameters
    ----------
    found, expected
        The tensors.
    power
        The power of the machine precision that is allowed for.
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
