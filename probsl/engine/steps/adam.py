"""Adam steps as a single function of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.engine.steps.first_order import (
    Objective,
    bad_coordinates,
    drifts,
    value_and_gradient,
)
from probsl.engine.steps.step import Step, Walk

if TYPE_CHECKING:
    from collections.abc import Mapping

    from probsl.engine.steps.feed import Feed


# Rows of the state: the point, Adam's two moments, the mean of the points of the stage,
# and the sums over the window of the gradients and of their squares.
_X, _FIRST, _SECOND, _MEAN, _DRIFT, _SQUARES = range(6)


# Columns of the inputs of each step of a block besides rows and noise.
_RATE, _SECOND_BIAS, _SHARE = range(3)


@dataclass(frozen=True)
class AdamOptions:
    """The options of `torch.optim.Adam`."""

    rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8


def adam_options(made: torch.optim.Optimizer) -> AdamOptions | None:
    """Return the options of plain Adam; None for any other optimizer."""
    if type(made) is not torch.optim.Adam or len(made.param_groups) != 1:
        return None
    group = made.param_groups[0]
    if group["weight_decay"] or group["amsgrad"] or group["maximize"]:
        return None
    if not isinstance(group["lr"], float):
        return None
    return AdamOptions(group["lr"], tuple(group["betas"]), group["eps"])


def _feasible(state: Tensor) -> Tensor:
    """Return a state whose sums of squares are positive."""
    rows = list(state)
    for row in (_SECOND, _SQUARES):
        rows[row] = rows[row].abs() + 0.01
    return torch.stack(rows)


class AdamWalk:
    """Adam steps as a single function of tensors.

    Attributes
    ----------
    step
        The function.
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
        places = torch.arange(1, feed.places + 1, dtype=torch.float64, device="cpu")
        decays = [beta**places for beta in options.betas]
        self._ahead = torch.stack([*decays, places], 1)
        self._names: list[str] = []
        self._window = 0
        # Row by row, because each has its own size.
        self.step = Step(self._advance, compared=lambda r: (*r[0], r[1]))
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
        """Number of steps of the block taken so far."""
        return self._walk.done if self._walk else 0

    @property
    def losses(self) -> Tensor:
        """The losses of the block, shape ``[places]``."""
        assert self._walk is not None
        return self._walk.losses

    def state(self) -> dict[str, Any]:
        """Return the state after the last step."""
        return {
            "rows": self._state.clone(),
            "rate": self.rate,
            "age": self._age,
            "count": self.count,
            "window": self._window,
        }

    def restore(self, state: Mapping[str, Any], place: int) -> None:
        """Return to a state after `place` steps of a block, before any step here."""
        self._start_state.copy_(state["rows"])
        self.rate, self._window = state["rate"], state["window"]
        # Those at the beginning of the block, from which its schedule is computed.
        self._age, self.count = state["age"] - place, state["count"] - place

    def skip(self, place: int) -> None:
        """Go to a position of the block whose earlier steps the state has taken."""
        assert self._walk is not None
        self._walk.done = place
        self._age, self.count = self._age + place, self.count + place

    def load(self, given: Mapping[str, Tensor]) -> None:
        """Load the inputs of the next block of steps."""
        self._names = list(given)
        inputs = [self._schedule(), *given.values()]
        if self._walk is None:
            self._walk = Walk(self.step, self._start_state, inputs, _feasible)
        else:
            self._walk.load(inputs)

    def run(self, stop: int) -> None:
        """Take the steps of the block up to position `stop`."""
        assert self._walk is not None
        before = self._walk.done
        try:
            self._walk.run(stop)
        finally:
            taken = self._walk.done - before
            self._age, self.count = self._age + taken, self.count + taken
            self._window += taken

    def trace(self) -> bool:
        """Switch to the graph of the step, if there is one."""
        return self._walk is not None and self._walk.trace()

    def is_compiled(self) -> bool:
        """Return whether the compiled step is available."""
        return self._walk is not None and self._walk.is_compiled()

    def compile(self) -> bool:
        """Switch to the compiled step, if there is one."""
        return self._walk is not None and self._walk.compile()

    def begin_stage(self, decay: float) -> None:
        """Lower the rate, and restart the average."""
        self.rate *= decay
        self.count = 1
        self._state[_MEAN] = self._state[_X]

    def retreat(self, decay: float) -> None:
        """Return to the average of the stage, with a lower rate and zero momentum."""
        self.rate *= decay
        state = self._state.clone()
        state[_X] = state[_MEAN]
        state[_FIRST], state[_SECOND] = 0.0, 0.0
        self._age = 0
        assert self._walk is not None
        self._walk.set(state)

    def begin_window(self) -> None:
        """Restart the sums of gradients."""
        self._state[_DRIFT:] = 0.0
        self._window = 0

    def drifting(self) -> bool:
        """Return whether the mean gradient of this window differs from zero."""
        return drifts(self._state[_DRIFT], self._state[_SQUARES], self._window)

    def nonfinite(self) -> tuple[int, ...]:
        """Return the coordinates whose gradient is not finite at this point."""
        assert self._walk is not None
        given = {
            n: t[0] for n, t in zip(self._names, self._walk.inputs[1:], strict=True)
        }
        return bad_coordinates(self._objective, self.x, given)

    @property
    def _state(self) -> Tensor:
        return self._walk.state if self._walk else self._start_state

    def _schedule(self) -> Tensor:
        """Return the factors that vary by step, ``[places, 3]``."""
        # Few operations on whole columns, because each block waits for them.
        first, second = self._options.betas
        decays = [-(first**self._age), -(second**self._age), 1]
        above, below, scales = torch.tensor(
            [[self.rate, 1, 1], [1, 1, self.count], decays],
            dtype=torch.float64,
            device="cpu",
        )
        schedule: Tensor = above / torch.addcmul(below, scales, self._ahead)
        return schedule.to(self._start_state)

    def _advance(
        self, state: Tensor, schedule: Tensor, *given: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the state after one step, and the loss before it.

        Kingma and Ba (2015), Adam, algorithm 1. A step that is not finite is skipped.
        """
        named = dict(zip(self._names, given, strict=True))
        x, first, second, mean, drift, squares = state.unbind()
        loss, gradient = value_and_gradient(self._objective, x, named, self._clip)
        b1, b2 = self._options.betas
        first = b1 * first + (1 - b1) * gradient
        second = b2 * second + (1 - b2) * gradient.square()
        width = (second * schedule[_SECOND_BIAS]).sqrt() + self._options.epsilon
        x = x - schedule[_RATE] * first / width
        mean = mean + (x - mean) * schedule[_SHARE]
        drift, squares = drift + gradient, squares + gradient.square()
        after = (x, first, second, mean, drift, squares)
        fine = loss.isfinite() & gradient.isfinite().all()
        # Row by row, because otherwise a compiler writes all rows twice.
        rows = zip(after, state.unbind(), strict=True)
        kept = torch.stack([torch.where(fine, row, before) for row, before in rows])
        return kept, torch.where(fine, loss, torch.nan)
