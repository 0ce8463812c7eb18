"""Common parts of first-order steps: optimizer, gradient, and stationarity test."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

OptimizerFactory = Callable[..., torch.optim.Optimizer]
SchedulerFactory = Callable[..., torch.optim.lr_scheduler.LRScheduler]
Objective = Callable[[Tensor, Mapping[str, Tensor]], Tensor]

_USUAL_RATE = 0.03


@dataclass(frozen=True)
class FirstOrder:
    """The options of first-order steps.

    Attributes
    ----------
    optimizer
        A `torch.optim` class or a `functools.partial` of one; None means Adam.
    scheduler
        A `torch.optim.lr_scheduler` class or a `functools.partial` of one, which
        changes the rate after each step; None lowers the rate at plateaus.
    clip_norm
        Maximum norm of the gradient; longer ones are scaled down.
    max_steps
        Maximum number of steps.
    tolerance
        Progress per window of steps that is considered to be zero.
    """

    optimizer: OptimizerFactory | None = None
    scheduler: SchedulerFactory | None = None
    clip_norm: float | None = None
    max_steps: int = 20_000
    tolerance: float = 1e-6


def made_optimizer(
    factory: OptimizerFactory | None, parameters: list[Tensor]
) -> torch.optim.Optimizer:
    """Return the optimizer that a factory makes; None means Adam.

    Raises
    ------
    TypeError
        If it makes anything else.
    """
    if factory is None:
        return torch.optim.Adam(parameters, lr=_USUAL_RATE)
    made = factory(parameters)
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(
            "optimizer must make a torch.optim optimizer of parameters, but made a "
            f"value of type {type(made).__name__}"
        )
    return made


def value_and_gradient(
    objective: Objective, x: Tensor, given: Mapping[str, Tensor], clip: float | None
) -> tuple[Tensor, Tensor]:
    """Return the objective and its gradient ``[d]``, clipped to a norm.

    A matrix that cannot be factorized is treated like an objective of NaN.
    """
    with torch.enable_grad():
        moved = x.detach().requires_grad_()
        try:
            loss = objective(moved, given)
        except LinAlgError:
            return x.new_tensor(torch.nan), torch.full_like(x, torch.nan)
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, moved, materialize_grads=True)
        else:
            gradient = torch.zeros_like(x)
    if clip is not None:
        gradient = gradient * (clip / (gradient.norm() + 1e-12)).clamp(max=1.0)
    return loss.detach(), gradient.detach()


def drifts(total: Tensor, squares: Tensor, count: int) -> bool:
    """Return whether the mean gradient differs from zero.

    At stationarity the squared t statistics have mean one, and the largest of d exceeds
    2 log(200 d) once in a hundred windows.

    Parameters
    ----------
    total, squares
        Sums of the gradients and of their squares, shape ``[d]``.
    count
        Number of gradients.
    """
    sums = total.square()
    spread = squares - sums / max(count, 1)
    ratios = (sums / spread)[spread > 0]
    if not len(ratios):
        return False
    limit = 2 * math.log(200 * len(ratios))
    return bool(ratios.mean() > 2) or bool(ratios.max() > limit)


def bad_coordinates(
    objective: Objective, x: Tensor, given: Mapping[str, Any]
) -> tuple[int, ...]:
    """Return the coordinates whose gradient is not finite."""
    _, gradient = value_and_gradient(objective, x, given, None)
    return tuple((~gradient.isfinite()).nonzero().flatten().tolist())
