"""The Jacobian of a vector, by the fewest passes through its graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from probsl.engine.minimize.hessian import CACHED, rows_by

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["jacobian"]


def jacobian(outputs: Tensor, x: Tensor) -> Tensor:
    """Return the derivatives [m, d] of a vector [m] by a point [d].

    Parameters
    ----------
    outputs
        The vector, with its graph, which is kept.
    x
        The point, a leaf of that graph.

    Notes
    -----
    One pass back gives a row, and as many rows as fit in the processor's cache are
    computed together. If there are more rows than columns, columns are computed
    instead, by a pass back through the graph of one pass back, which is linear in the
    vector that it weights the rows by.

    Examples
    --------
    >>> import torch
    >>> from probsl.engine.minimize.jacobian import jacobian
    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> jacobian(torch.stack([x.sum(), x.prod(), x[1] ** 2]), x)
    tensor([[1., 1.],
            [2., 1.],
            [0., 4.]])
    """
    if not outputs.requires_grad:
        return x.new_zeros(len(outputs), len(x))
    if len(outputs) <= len(x):
        return _rows(outputs, x).detach()
    weights = torch.zeros_like(outputs, requires_grad=True)
    (back,) = torch.autograd.grad(
        (outputs * weights).sum(), x, create_graph=True, materialize_grads=True
    )
    if not back.requires_grad:
        return x.new_zeros(len(outputs), len(x))
    return _rows(back, weights).T.detach()


def _rows(outputs: Tensor, x: Tensor) -> Tensor:
    together = max(1, CACHED // (x.element_size() * max(len(x), len(outputs))))
    try:
        return rows_by(outputs, x, together)
    except RuntimeError:  # an operation without a batching rule, or no memory
        if together == 1:
            raise
        return rows_by(outputs, x, 1)
