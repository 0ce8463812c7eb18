"""First-order steps: Adam's as one function of tensors, or any torch optimizer's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.engine.step import Step, Walk, scattered

if TYPE_CHECKING:
    from probsl.engine.feed import Feed

OptimizerFactory = Callable[..., torch.optim.Optimizer]
SchedulerFactory = Callable[..., torch.optim.lr_scheduler.LRScheduler]
Objective = Callable[[Tensor, Mapping[str, Tensor]], Tensor]

# Rows of the state of Adam's walk: the point, Adam's two moments, and for the whole
# stage or window the mean of the points and the sums of gradients and their squares.
_X, _FIRST, _SECOND, _MEAN, _DRIFT, _SQUARES = range(6)
_USUAL_RATE = 0.03
# Columns of what a place of a block is given beside rows and noise.
_RATE, _SECOND_BIAS, _SHARE = range(3)


@dataclass(frozen=True)
class AdamOptions:
    """Adam's options, as `torch.optim.Adam` has them."""

    rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8


def adam_options(made: torch.optim.Optimizer) -> AdamOptions | None:
    """Return the options of plain Adam; None of any other optimizer."""
    if type(made) is not torch.optim.Adam or len(made.param_groups) != 1:
        return None
    group = made.param_groups[0]
    if group["weight_decay"] or group["amsgrad"] or group["maximize"]:
        return None
    if not isinstance(group["lr"], float):
        return None
    return AdamOptions(group["lr"], tuple(group["betas"]), group["eps"])


def made_optimizer(
    factory: OptimizerFactory | None, parameters: list[Tensor]
) -> torch.optim.Optimizer:
    """Return the optimizer that a factory makes; None makes Adam.

    Raises
    ------
    TypeError
        If it makes something else.
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


def slope(
    objective: Objective, x: Tensor, given: Mapping[str, Tensor], clip: float | None
) -> tuple[Tensor, Tensor]:
    """Return the objective and its gradient ``[d]``, shortened to a norm."""
    with torch.enable_grad():
        moved = x.detach().requires_grad_()
        loss = objective(moved, given)
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, moved, materialize_grads=True)
        else:
            gradient = torch.zeros_like(x)
    if clip is not None:
        gradient = gradient * (clip / (gradient.norm() + 1e-12)).clamp(max=1.0)
    return loss.detach(), gradient.detach()


class AdamWalk:
    """Steps of Adam, whose whole arithmetic is one function of tensors.

    Attributes
    ----------
    step
        That function.
    rate
        The learning rate.
    count
        Steps of this stage.
    """

    def __init__(
        self,
        objective: Objective,
        start: Tensor,
        feed: Feed,
        options: AdamOptions,
        clip: float | None,
    ) -> None:
        self.rate = options.rate
        self.count = 0
        self._objective = objective
        self._options = options
        self._clip = clip
        self._age = 0
        self._feed = feed
        self._names: list[str] = []
        self._window = 0
        self.step = Step(self._advance, compared=lambda r: (r[0][_FIRST], r[1]))
        state = start.detach().new_zeros(6, len(start))
        state[_X] = state[_MEAN] = start.detach()
        self._start_state = state
        self._walk: Walk | None = None

    @property
    def x(self) -> Tensor:
        """The point, shape ``[d]``."""
        return self._state[_X]

    @property
    def mean(self) -> Tensor:
        """The average of the points of this stage."""
        return self._state[_MEAN]

    @property
    def done(self) -> int:
        """How many steps of the block have been taken."""
        return self._walk.done if self._walk else 0

    @property
    def losses(self) -> Tensor:
        """The losses of the block, shape ``[places]``."""
        assert self._walk is not None
        return self._walk.losses

    def load(self, given: Mapping[str, Tensor]) -> None:
        """Put what the next block of steps is given into place."""
        self._names = list(given)
        inputs = [self._schedule(), *given.values()]
        if self._walk is None:
            self._walk = Walk(self.step, self._start_state, inputs)
        else:
            self._walk.load(inputs)

    def run(self, stop: int) -> None:
        """Take the steps of the block up to the place `stop`."""
        assert self._walk is not None
        before = self._walk.done
        try:
            self._walk.run(stop)
        finally:
            taken = self._walk.done - before
            self._age, self.count = self._age + taken, self.count + taken
            self._window += taken

    def trace(self) -> bool:
        """Go on with the graph of the step, where there is one."""
        return self._walk is not None and self._walk.trace()

    def compile(self) -> bool:
        """Go on with the compiled step, where there is one."""
        return self._walk is not None and self._walk.compile()

    def begin_stage(self, decay: float) -> None:
        """Lower the rate, and average anew."""
        self.rate *= decay
        self.count = 1
        self._state[_MEAN] = self._state[_X]

    def retreat(self, decay: float) -> None:
        """Go back to the average of the stage, at a lower rate and without momentum."""
        self.rate *= decay
        state = self._state.clone()
        state[_X] = state[_MEAN]
        state[_FIRST], state[_SECOND] = 0.0, 0.0
        self._age = 0
        assert self._walk is not None
        self._walk.set(state)

    def drifting(self) -> bool:
        """Return whether the gradients since the last call did not average to zero."""
        moving = drifts(self._state[_DRIFT], self._state[_SQUARES], self._window)
        self._state[_DRIFT:] = 0.0
        self._window = 0
        return moving

    def nonfinite(self) -> tuple[int, ...]:
        """Return the coordinates whose gradient is not finite here."""
        assert self._walk is not None
        given = {
            n: t[0] for n, t in zip(self._names, self._walk.inputs[1:], strict=True)
        }
        return bad_coordinates(self._objective, self.x, given)

    @property
    def _state(self) -> Tensor:
        return self._walk.state if self._walk else self._start_state

    def _schedule(self) -> Tensor:
        """Return the factors that change from step to step, ``[places, 3]``."""
        first, second = self._options.betas
        places = torch.arange(
            1, self._feed.places + 1, dtype=torch.float64, device="cpu"
        )
        age, count = self._age + places, self.count + places
        columns = [self.rate / (1 - first**age), 1 / (1 - second**age), 1 / count]
        return torch.stack(columns, 1).to(self._start_state)

    def _advance(
        self, state: Tensor, schedule: Tensor, *given: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the state after one step, and the loss before it.

        Kingma and Ba (2015), Adam, algorithm 1. A step that is not finite is not made.
        """
        named = dict(zip(self._names, given, strict=True))
        x, first, second, mean, drift, squares = state.unbind()
        loss, gradient = slope(self._objective, x, named, self._clip)
        b1, b2 = self._options.betas
        first = b1 * first + (1 - b1) * gradient
        second = b2 * second + (1 - b2) * gradient.square()
        width = (second * schedule[_SECOND_BIAS]).sqrt() + self._options.epsilon
        x = x - schedule[_RATE] * first / width
        mean = mean + (x - mean) * schedule[_SHARE]
        drift, squares = drift + gradient, squares + gradient.square()
        after = torch.stack([x, first, second, mean, drift, squares])
        fine = loss.isfinite() & gradient.isfinite().all()
        kept = torch.where(fine, after, state)
        return kept, torch.where(fine, loss, torch.nan)


class OptimizerWalk:
    """Steps of any torch optimizer, which is given the gradient.

    Attributes
    ----------
    step
        Maps a point and what a place gives to the loss and the gradient.
    x
        The point, shape ``[d]``, which the optimizer moves.
    mean
        The average of the points of this stage.
    losses
        The losses of the block.
    done
        How many steps of the block have been taken.
    count
        Steps of this stage.
    """

    def __init__(
        self,
        objective: Objective,
        x: Tensor,
        feed: Feed,
        *,
        optimizer: torch.optim.Optimizer,
        scheduler: SchedulerFactory | None,
        clip: float | None,
    ) -> None:
        self.x = x
        self._optimizer = optimizer
        self._scheduler = scheduler(optimizer) if scheduler else None
        self._objective = objective
        self._names: list[str] = []
        self._inputs: list[Tensor] = []
        self.mean = x.detach().clone()
        self.count = self.done = 0
        self.losses = x.detach().new_full((feed.places,), torch.nan)
        self._sum = torch.zeros_like(self.mean)
        self._squares = torch.zeros_like(self.mean)
        self._window = 0
        self.step = Step(
            lambda x, *given: slope(
                objective, x, dict(zip(self._names, given, strict=True)), clip
            )
        )

    @property
    def rate(self) -> float:
        """The learning rate of the first group."""
        return float(self._optimizer.param_groups[0]["lr"])

    def load(self, given: Mapping[str, Tensor]) -> None:
        """Put what the next block of steps is given into place."""
        self._names, self._inputs = list(given), list(given.values())
        self.done = 0

    def run(self, stop: int) -> None:
        """Take the steps of the block up to the place `stop`."""
        while self.done < stop:
            self.losses[self.done] = self._one([t[self.done] for t in self._inputs])
            self.done += 1

    def trace(self) -> bool:
        """Go on with the graph of the gradient, where there is one."""
        return self.step.trace(self._examples())

    def compile(self) -> bool:
        """Go on with the compiled gradient, where there is one."""
        return self.step.compile(self._examples())

    def begin_stage(self, decay: float) -> None:
        """Lower the rate, and average anew."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["lr"] * decay
        self.mean = self.x.detach().clone()
        self.count = 1

    def retreat(self, decay: float) -> None:
        """Go back to the average of the stage, at a lower rate and without momentum."""
        mean = self.mean.clone()
        self._optimizer.state.clear()
        self.begin_stage(decay)
        with torch.no_grad():
            self.x.copy_(mean)
        self.mean = mean

    def drifting(self) -> bool:
        """Return whether the gradients since the last call did not average to zero."""
        moving = drifts(self._sum, self._squares, self._window)
        self._sum.zero_()
        self._squares.zero_()
        self._window = 0
        return moving

    def nonfinite(self) -> tuple[int, ...]:
        """Return the coordinates whose gradient is not finite here."""
        given = {n: t[0] for n, t in zip(self._names, self._inputs, strict=True)}
        return bad_coordinates(self._objective, self.x.detach(), given)

    def _one(self, given: Sequence[Tensor]) -> Tensor:
        """Take one step and return the loss before it; NaN if it was not made."""

        def closure() -> Tensor:
            loss, gradient = self.step(self.x.detach(), *given)
            self.x.grad = gradient.clone()
            return loss.clone()

        loss = closure()
        gradient = self.x.grad
        assert gradient is not None
        if not bool(loss.isfinite() & gradient.isfinite().all()):
            return torch.full_like(loss, torch.nan)
        self._sum += gradient
        self._squares += gradient.square()
        self._window += 1
        if isinstance(self._optimizer, torch.optim.LBFGS):
            self._optimizer.step(closure)  # it evaluates by itself
        else:
            self._optimizer.step()
        self._move_rate(loss)
        self.count += 1
        with torch.no_grad():
            self.mean += (self.x - self.mean) / self.count
        return loss

    def _move_rate(self, loss: Tensor) -> None:
        if isinstance(self._scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self._scheduler.step(float(loss))
        elif self._scheduler is not None:
            self._scheduler.step()

    def _examples(self) -> list[list[Tensor]]:
        return scattered(self.x.detach(), self._inputs)


def drifts(total: Tensor, squares: Tensor, count: int) -> bool:
    """Return whether gradients do not average to zero.

    At rest the squared t statistics have mean one, and the largest of d exceeds
    2 log(200 d) once in a hundred windows.

    Parameters
    ----------
    total, squares
        Sums of the gradients and of their squares, shape ``[d]``.
    count
        How many there were.
    """
    count = max(count, 1)
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    moving = variance > 0
    ratios = count * mean.square()[moving] / variance[moving]
    if not len(ratios):
        return False
    limit = 2 * math.log(200 * len(ratios))
    return bool(ratios.mean() > 2) or bool(ratios.max() > limit)


def bad_coordinates(
    objective: Objective, x: Tensor, given: Mapping[str, Any]
) -> tuple[int, ...]:
    """Return the coordinates whose gradient is not finite."""
    _, gradient = slope(objective, x, given, None)
    return tuple((~gradient.isfinite()).nonzero().flatten().tolist())
