"""The Hessian of an objective, by vectorized passes back through its gradient's graph.

Each row is one pass. Several at once take less time, because a matrix is then read from
memory once for all of them, and the overhead of each operation is paid once. Too many
take more, because the tensors of a pass no longer stay in the processor's cache.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.func import vmap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor
    from torch.autograd.graph import Node

__all__ = ["Hessian", "rows_by"]

# Bytes of the largest tensor of the passes together, up to which it stays in the cache.
CACHED = 4 * 2**20
# Bytes above which the allocator returns memory to the system after every operation.
KEPT = 32 * 2**20
# A matrix that is not in the cache is at least multiplied by this many vectors at once.
SEVERAL = 4


class Hessian:
    """The Hessian of an objective as a function of the point.

    Parameters
    ----------
    objective
        Maps a tensor [d] to a scalar tensor.

    Attributes
    ----------
    together
        How many rows are computed at once: None before the first Hessian, and 1 if
        passes cannot be vectorized.

    Examples
    --------
    >>> import torch
    >>> from probsl.engine.minimize.hessian import Hessian
    >>> Hessian(lambda x: x[0] ** 2 * x[1])(torch.tensor([1.0, 2.0]))
    tensor([[4., 2.],
            [2., 0.]])
    """

    def __init__(self, objective: Callable[[Tensor], Tensor]) -> None:
        self._objective = objective
        self.together: int | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the Hessian [d, d] at a point [d], symmetric up to rounding."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            if self.together is not None:
                gradient = self._gradient(x)
            else:
                with bytes_saved() as saved:
                    gradient = self._gradient(x)
            if not gradient.requires_grad:
                return x.new_zeros(len(x), len(x))
            if self.together is None:
                self.together = rows_together(gradient, x, max(saved, default=0))
            return self._rows(gradient, x, self.together).detach()

    def _gradient(self, x: Tensor) -> Tensor:
        value = self._objective(x)
        if not value.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(value, x, create_graph=True, materialize_grads=True)[
            0
        ]

    def _rows(self, gradient: Tensor, x: Tensor, together: int) -> Tensor:
        try:
            return rows_by(gradient, x, together)
        except RuntimeError:  # an operation without a batching rule, or no memory
            if together == 1:
                raise
            self.together = 1
            return rows_by(gradient, x, 1)


def rows_by(gradient: Tensor, x: Tensor, together: int) -> Tensor:
    """Return the Jacobian [m, d] of a vector [m], some rows at once.

    Parameters
    ----------
    gradient
        The vector, such as a gradient, with its graph.
    x
        The point [d], a leaf of that graph.
    together
        How many rows to compute at once; 1: one by one, without vectorization.

    Raises
    ------
    RuntimeError
        If an operation cannot be vectorized, or there is not enough memory.
    """
    total = gradient.sum()

    def row(unit: Tensor) -> Tensor:
        # At the first use of `grad_outputs=` torch imports sympy, which takes a second.
        handle = gradient.register_hook(lambda _: unit)
        try:
            return back(total, x)
        finally:
            handle.remove()

    basis = torch.eye(len(gradient), dtype=x.dtype, device=x.device)
    if together == 1:
        return torch.stack([row(unit) for unit in basis])
    rows: Tensor = vmap(row, chunk_size=together)(basis)
    return rows


def rows_together(gradient: Tensor, x: Tensor, matrix: int) -> int:
    """Return how many rows to compute at once.

    Parameters
    ----------
    gradient, x
        As for `rows_by`.
    matrix
        Bytes of the largest tensor that each pass reads.
    """
    if len(x) == 1:
        return 1
    largest = 1

    def measure(gradients: Sequence[Tensor | None]) -> None:
        nonlocal largest
        sizes = [s.numel() * s.element_size() for s in gradients if s is not None]
        largest = max(largest, *sizes)

    handles = [node.register_prehook(measure) for node in nodes_of(gradient)]
    try:
        back(gradient.sum(), x)
    finally:
        for handle in handles:
            handle.remove()
    budget = min(max(CACHED, matrix // 2), KEPT)
    return max(budget // largest, min(SEVERAL, matrix // largest), 1)


def back(total: Tensor, x: Tensor) -> Tensor:
    """Return the gradient [d] of a scalar by one pass back through its graph."""
    return torch.autograd.grad(total, x, retain_graph=True, materialize_grads=True)[0]


@contextmanager
def bytes_saved() -> Iterator[list[int]]:
    """Collect the sizes of the tensors that are saved for a pass back, in a block."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


def nodes_of(tensor: Tensor) -> set[Node]:
    """Return the nodes of the graph of a tensor."""
    found: set[Node] = set()
    ahead = [tensor.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in found:
            found.add(node)
            ahead += [following for following, _ in node.next_functions]
    return found
