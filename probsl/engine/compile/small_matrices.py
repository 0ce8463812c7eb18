"""Decompositions of small-matrix operations, so that they become compiled loops.

For a product, a Cholesky factor, a triangular solve or a cumulative sum inductor calls
torch, which for a few numbers takes a hundred times as long as the arithmetic.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor
    from torch.fx import GraphModule

aten = torch.ops.aten

# Up to these sizes loops are faster, and take no longer to compile: multiplications of
# a product, rows of a matrix to factorize and of a triangular system, and length of a
# cumulative sum.
_MULTIPLICATIONS = 50_000
_FACTORED = 6
_SOLVED = 12
_LENGTH = 32
# For a result with fewer columns than this, a library takes up to ten times as long as
# for its transpose.
_NARROW = 32


def written_out(table: Mapping[Any, Callable[..., Any]]) -> dict[Any, Any]:
    """Return a table of decompositions that tries those for small matrices first."""
    own: dict[Any, Callable[..., Any]] = {
        aten.mm.default: _product,
        aten.bmm.default: _product,
        aten.addmm.default: _sum_and_product,
        aten.linalg_cholesky_ex.default: _cholesky,
        aten.linalg_solve_triangular.default: _solve_triangular,
        aten.cumsum.default: _running_sum,
        aten.cumprod.default: _running_product,
    }
    return {**table, **{name: _either(own[name], table.get(name)) for name in own}}


def _either(
    own: Callable[..., Any], other: Callable[..., Any] | None
) -> Callable[..., Any]:
    """Return a decomposition that falls back to another if it does not apply."""

    def decomposed(*arguments: Any, **options: Any) -> Any:
        result = own(*arguments, **options)
        if result is NotImplemented and other is not None:
            return other(*arguments, **options)
        return result

    return decomposed


def drop_checks(graph: GraphModule) -> None:
    """Remove the checks of factorizations that were decomposed.

    If the factorization fails its result is NaN, and so is the objective: such a step
    is skipped.
    """
    for node in list(graph.graph.nodes):
        checks = node.target is aten._linalg_check_errors.default
        # Torch's own factorization returns a tuple.
        if checks and node.args[0].target is not operator.getitem:
            graph.graph.erase_node(node)


# Each returns NotImplemented if its matrices are too large.
def _product(one: Tensor, other: Tensor) -> Any:
    rows, columns = one.shape[-2], other.shape[-1]
    if not one.is_floating_point():
        return NotImplemented
    if one.numel() * columns <= _MULTIPLICATIONS:
        return (one.unsqueeze(-1) * other.unsqueeze(-3)).sum(-2)
    if 1 < columns < min(rows, _NARROW):
        turned = torch.matmul(other.mT, one.mT)
        return turned.mT.contiguous()
    return NotImplemented


def _sum_and_product(
    added: Tensor, one: Tensor, other: Tensor, *, beta: float = 1, alpha: float = 1
) -> Any:
    product = _product(one, other)
    if product is NotImplemented:
        return NotImplemented
    return alpha * product + (beta * added if beta else 0)


def _cholesky(
    matrix: Tensor, *, upper: bool = False, check_errors: bool = False
) -> Any:
    size = matrix.shape[-1]
    if upper or check_errors or not 0 < size <= _FACTORED:
        return NotImplemented
    rest, columns = matrix, []
    for i in range(size):
        column = rest[..., 0] / rest[..., 0, 0, None].sqrt()
        columns.append(torch.nn.functional.pad(column, (i, 0)))
        below = column[..., 1:]
        rest = rest[..., 1:, 1:] - below.unsqueeze(-1) * below.unsqueeze(-2)
    # torch's own factors and solutions are column-major
    info = torch.zeros_like(matrix[..., 0, 0], dtype=torch.int32)
    return torch.stack(columns, -2).mT, info


def _solve_triangular(
    matrix: Tensor,
    right: Tensor,
    *,
    upper: bool,
    left: bool = True,
    unitriangular: bool = False,
) -> Any:
    size = matrix.shape[-1]
    if not 0 < size <= _SOLVED:
        return NotImplemented
    if not left:
        solution = _solve_triangular(
            matrix.mT, right.mT, upper=not upper, unitriangular=unitriangular
        )
        return solution.contiguous().mT
    solved: dict[int, Tensor] = {}
    for i in reversed(range(size)) if upper else range(size):
        value = right[..., i, :]
        for j, known in solved.items():
            value = value - matrix[..., i, j, None] * known
        solved[i] = value if unitriangular else value / matrix[..., i, i, None]
    return torch.stack([solved[i] for i in range(size)], -1).mT


def _running_sum(values: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Any:
    dim = dim % max(values.dim(), 1)
    earlier = _earlier(values, dim, dtype, 0)
    return NotImplemented if earlier is None else earlier.sum(dim)


def _running_product(
    values: Tensor, dim: int, *, dtype: torch.dtype | None = None
) -> Any:
    dim = dim % max(values.dim(), 1)
    earlier = _earlier(values, dim, dtype, 1)
    return NotImplemented if earlier is None else earlier.prod(dim)


def _earlier(
    values: Tensor, dim: int, dtype: torch.dtype | None, neutral: int
) -> Tensor | None:
    """Return, on a new axis, the entries up to each position; others are neutral."""
    size = values.shape[dim] if values.dim() else 0
    if not 0 < size <= _LENGTH:
        return None
    if dtype is None and not values.is_floating_point():
        dtype = torch.int64
    place = torch.arange(size, device=values.device)
    kept = (place <= place.unsqueeze(1)).mT
    kept = kept.reshape(size, size, *[1] * (values.dim() - dim - 1))
    return torch.where(
        kept, values.to(dtype or values.dtype).unsqueeze(dim + 1), neutral
    )
