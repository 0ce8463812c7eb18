"""Evaluates one objective at many points, or many objectives, in a vectorized call."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import vmap

from probsl.engine.minimize.landscape import Landscape

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["each_tensor", "single", "values_and_gradients", "vectorizes"]


def vectorizes(
    objective: Callable[..., Tensor], starts: Tensor, extra: Any = None
) -> bool:
    """Return whether vectorized evaluation works, and agrees with single evaluations.

    Parameters
    ----------
    objective, starts, extra
        As for `probsl.engine.minimize.many.minimize_many`. The first and the last start
        are compared.
    """
    ends = [0, len(starts) - 1]
    starts = starts[ends]
    if extra is not None:
        extra = each_tensor(lambda tensor: tensor[ends], extra)
    try:
        values, gradients = _vectorized(objective, starts, extra)
    except Exception:  # errors of the objective itself show up without vmap
        return False
    precision = math.sqrt(torch.finfo(starts.dtype).eps)
    for i in range(2):
        landscape = Landscape(single(objective, extra, i))
        value, gradient = landscape.value_and_gradient(starts[i])
        found = torch.cat([gradients[i], values[i : i + 1]])
        expected = torch.cat([gradient, gradient.new_tensor([value])])
        size = float(expected.abs().nan_to_num(0.0, 0.0, 0.0).max())
        if not torch.allclose(
            found, expected, rtol=precision, atol=precision * size, equal_nan=True
        ):
            return False
    return True


def values_and_gradients(
    objective: Callable[..., Tensor], x: Tensor, extra: Any = None
) -> tuple[Tensor, Tensor]:
    """Return the values [k] and gradients [k, d] at many points [k, d].

    If one matrix cannot be factorized, the vectorized call fails for all points, and
    each is evaluated separately.
    """
    try:
        return _vectorized(objective, x, extra)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        each = [
            Landscape(single(objective, extra, i)).value_and_gradient(x[i])
            for i in range(len(x))
        ]
        values = x.new_tensor([value for value, _ in each])
        return values, torch.stack([gradient for _, gradient in each])


def _vectorized(
    objective: Callable[..., Tensor], x: Tensor, extra: Any
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        values = _values(objective, x, extra)
        gradients = torch.zeros_like(x)
        if values.requires_grad:
            # Each value depends only on its own point, so a sum gives all gradients.
            (gradients,) = torch.autograd.grad(values.sum(), x, materialize_grads=True)
    return values.detach(), gradients


def _values(objective: Callable[..., Tensor], x: Tensor, extra: Any) -> Tensor:
    return vmap(objective)(x) if extra is None else vmap(objective)(x, extra)


def single(
    objective: Callable[..., Tensor], extra: Any, index: int
) -> Callable[[Tensor], Tensor]:
    """Return one of the objectives, as a function of a point [d] alone."""
    if extra is None:
        return objective
    mine = each_tensor(lambda tensor: tensor[index], extra)
    return lambda x: objective(x, mine)


def each_tensor(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply a function to each tensor in nested tuples, lists and dicts.

    Examples
    --------
    >>> import torch
    >>> from probsl.engine.minimize.vectorized import each_tensor
    >>> each_tensor(torch.neg, {"a": (torch.ones(1), torch.zeros(()))})
    {'a': (tensor([-1.]), tensor(-0.))}
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {name: each_tensor(function, value) for name, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(each_tensor(function, value) for value in tree)
    return tree
