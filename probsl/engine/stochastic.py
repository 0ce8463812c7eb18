"""The stochastic minimizer: first-order steps with a rate that decays at plateaus."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

OptimizerFactory = Callable[..., torch.optim.Optimizer]

# A stage ends when this many windows in a row show no progress beyond their noise,
# and no drift: gradients of a noisy objective at rest average to zero.
_PATIENCE = 2
_WINDOW = 250
_STAGES = 5
_RATE = 0.03
_DECAY = 0.3
_BAD_STEPS = 20


class Ending(Enum):
    """How a stochastic search ended."""

    CONVERGED = "converged"
    MAX_STEPS = "max_steps"
    NONFINITE = "nonfinite"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Settled:
    """Where a stochastic search ended.

    Attributes
    ----------
    x
        The average of the last iterates, shape ``[d]``.
    losses
        The objective at every step.
    ending
        How it ended.
    steps
        Steps taken.
    coordinates
        Coordinates whose gradient was not finite, for NONFINITE.
    """

    x: Tensor
    losses: tuple[float, ...]
    ending: Ending
    steps: int
    coordinates: tuple[int, ...] = ()


def settle(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    optimizer: OptimizerFactory | None = None,
    max_steps: int = 20_000,
    tolerance: float = 1e-6,
    callback: Callable[[int, float, Tensor], Any] | None = None,
) -> Settled:
    """Minimize the expectation of a noisy objective.

    Steps go on at one rate until the mean of the objective over a window falls
    by no more than twice its standard error, or than `tolerance`, and the mean
    gradient cannot be told from zero, in two windows running; the
    rate is then multiplied by 0.3. After five such stages the search
    has converged, and the answer is the average over the last stage.

    Parameters
    ----------
    objective
        Maps a tensor ``[d]`` to a scalar, drawing its own noise; best a mean over
        rows, of order one however many there are.
    start
        Where to begin, shape ``[d]``.
    optimizer
        A `torch.optim` class or a `functools.partial` of one; None takes Adam.
    max_steps
        How many steps may be taken.
    tolerance
        The progress per window that counts as none.
    callback
        Called with step, objective and point; a true answer ends the search.

    Returns
    -------
    Settled
        A keyboard interrupt ends the search with the point so far; a step that
        is not finite is skipped, and after twenty in a row the search ends.

    Notes
    -----
    Constant-rate stages with averaged iterates: Polyak and Juditsky (1992), SIAM
    J. Control Optim. 30, 838-855; Welandawe et al. (2024), JMLR 25, on when to
    end a stage.

    Examples
    --------
    >>> import torch
    >>> from probsl.engine.stochastic import settle
    >>> target = torch.tensor([1.0, -2.0])
    >>> settled = settle(lambda x: ((x - target) ** 2).sum(), torch.zeros(2))
    >>> settled.ending.name, settled.x.round(decimals=3)
    ('CONVERGED', tensor([ 1., -2.]))
    """
    x = start.detach().clone().requires_grad_()
    make = optimizer or _adam
    made = make([x])
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(
            "optimizer must make a torch.optim optimizer of parameters, but made a "
            f"value of type {type(made).__name__}"
        )
    search = _Search(x, made, tolerance)
    ending = Ending.MAX_STEPS
    try:
        for step in range(1, max_steps + 1):
            if not search.step(objective):
                ending = Ending.NONFINITE
                break
            if callback is not None and callback(
                step, search.losses[-1], x.detach().clone()
            ):
                ending = Ending.INTERRUPTED
                break
            if step % _WINDOW == 0 and search.end_window():
                ending = Ending.CONVERGED
                break
    except KeyboardInterrupt:
        ending = Ending.INTERRUPTED
    bad = search.bad_coordinates if ending is Ending.NONFINITE else ()
    return Settled(
        search.average(), tuple(search.losses), ending, len(search.losses), bad
    )


class _Search:
    """The state of a stochastic search."""

    def __init__(
        self, x: Tensor, optimizer: torch.optim.Optimizer, tolerance: float
    ) -> None:
        self.x = x
        self.losses: list[float] = []
        self.bad_coordinates: tuple[int, ...] = ()
        self._optimizer = optimizer
        self._tolerance = tolerance
        self._stage = 0
        self._idle_windows = 0
        self._bad = 0
        self._mean = x.detach().clone()
        self._count = 0
        self._drift = _Drift(x)

    def step(self, objective: Callable[[Tensor], Tensor]) -> bool:
        """Take one step; return False after too many that are not finite."""

        def closure() -> Tensor:
            self._optimizer.zero_grad()
            loss = objective(self.x)
            loss.backward()
            return loss

        loss = closure()
        gradient = self.x.grad
        if gradient is None:
            gradient = torch.zeros_like(self.x, requires_grad=False)
        finite = bool(loss.isfinite()) and bool(gradient.isfinite().all())
        self.losses.append(float(loss.detach()))
        if not finite:
            self._bad += 1
            bad = (~gradient.isfinite()).nonzero().flatten().tolist()
            self.bad_coordinates = tuple(bad)
            return self._bad < _BAD_STEPS
        self._bad = 0
        self._drift.add(gradient)
        if isinstance(self._optimizer, torch.optim.LBFGS):
            self._optimizer.step(closure)  # it evaluates by itself
        else:
            self._optimizer.step()
        self._count += 1
        with torch.no_grad():
            self._mean += (self.x - self._mean) / self._count
        return True

    def end_window(self) -> bool:
        """Lower the rate at a plateau; return whether the last stage is over."""
        if len(self.losses) < 2 * _WINDOW:
            self._drift.take()
            return False
        before = _moments(self.losses[-2 * _WINDOW : -_WINDOW])
        after = _moments(self.losses[-_WINDOW:])
        progress = before[0] - after[0]
        noise = math.sqrt(before[1] + after[1])
        drifting = self._drift.take()
        idle = progress <= max(2 * noise, self._tolerance) and (
            not drifting or noise <= self._tolerance
        )
        self._idle_windows = self._idle_windows + 1 if idle else 0
        if self._idle_windows < _PATIENCE:
            return False
        self._idle_windows = 0
        self._stage += 1
        if self._stage == _STAGES:
            return True
        for group in self._optimizer.param_groups:
            group["lr"] = group["lr"] * _DECAY
        self._mean = self.x.detach().clone()
        self._count = 1
        return False

    def average(self) -> Tensor:
        """Return the average iterate of the stage, if the stage is long enough."""
        return self._mean if self._count >= _WINDOW else self.x.detach().clone()


class _Drift:
    """Tells whether the gradients of a window average to zero."""

    def __init__(self, like: Tensor) -> None:
        self._sum = torch.zeros_like(like, requires_grad=False)
        self._squares = torch.zeros_like(self._sum)
        self._count = 0

    def add(self, gradient: Tensor) -> None:
        """Take note of one gradient."""
        self._sum += gradient
        self._squares += gradient.square()
        self._count += 1

    def take(self) -> bool:
        """Return whether they did not, and begin anew.

        At rest the squared t statistics have mean one, and the largest of d
        exceeds 2 log(200 d) once in a hundred windows.
        """
        count = max(self._count, 1)
        mean = self._sum / count
        variance = (self._squares / count - mean.square()).clamp(min=0)
        moving = variance > 0
        ratios = count * mean.square()[moving] / variance[moving]
        self._sum.zero_()
        self._squares.zero_()
        self._count = 0
        if not len(ratios):
            return False
        limit = 2 * math.log(200 * len(ratios))
        return bool(ratios.mean() > 2) or bool(ratios.max() > limit)


def _adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=_RATE)


def _moments(losses: list[float]) -> tuple[float, float]:
    """Return the mean and the squared standard error of the mean."""
    values = torch.tensor([v for v in losses if math.isfinite(v)] or [math.inf] * 2)
    return float(values.mean()), float(values.var(correction=0)) / len(values)
