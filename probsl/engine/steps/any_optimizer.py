"""Steps of any torch optimizer, given the loss and its gradient."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from probsl.engine.steps.first_order import (
    Objective,
    SchedulerFactory,
    bad_coordinates,
    drifts,
    value_and_gradient,
)
from probsl.engine.steps.step import Step, scattered

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from probsl.engine.steps.feed import Feed


class OptimizerWalk:
    """Steps of any torch optimizer, given the gradient.

    Attributes
    ----------
    step
        Maps a point and the inputs of a step to the loss and the gradient.
    x
        The point, shape ``[d]``, which the optimizer updates.
    mean
        The average of the points of this stage.
    losses
        The losses of the block.
    done
        Number of steps of the block taken so far.
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
            lambda x, *given: value_and_gradient(
                objective, x, dict(zip(self._names, given, strict=True)), clip
            )
        )

    @property
    def rate(self) -> float:
        """The learning rate of the first parameter group."""
        return float(self._optimizer.param_groups[0]["lr"])

    def state(self) -> dict[str, Any]:
        """Return the state after the last step."""
        scheduler = self._scheduler
        return deepcopy(
            {
                "x": self.x.detach(),
                "mean": self.mean,
                "sums": [self._sum, self._squares],
                "counts": [self.count, self._window],
                "optimizer": self._optimizer.state_dict(),
                "scheduler": None if scheduler is None else scheduler.state_dict(),
            }
        )

    def restore(self, state: Mapping[str, Any], place: int) -> None:  # noqa: ARG002
        """Return to a state after `place` steps of a block, before any step here."""
        with torch.no_grad():
            self.x.copy_(state["x"])
        self.mean.copy_(state["mean"])
        for mine, other in zip((self._sum, self._squares), state["sums"], strict=True):
            mine.copy_(other)
        self.count, self._window = state["counts"]
        # Copied, because the optimizer would go on in the tensors of the state.
        self._optimizer.load_state_dict(deepcopy(state["optimizer"]))
        if self._scheduler is not None:
            self._scheduler.load_state_dict(deepcopy(state["scheduler"]))

    def skip(self, place: int) -> None:
        """Go to a position of the block whose earlier steps the state has taken."""
        self.done = place

    def load(self, given: Mapping[str, Tensor]) -> None:
        """Load the inputs of the next block of steps."""
        self._names, self._inputs = list(given), list(given.values())
        self.done = 0

    def run(self, stop: int) -> None:
        """Take the steps of the block up to position `stop`."""
        while self.done < stop:
            self.losses[self.done] = self._one([t[self.done] for t in self._inputs])
            self.done += 1

    def trace(self) -> bool:
        """Switch to the graph of the gradient, if there is one."""
        return self.step.trace(self._examples())

    def is_compiled(self) -> bool:
        """Return whether the compiled gradient is available."""
        return self.step.is_compiled(self._examples())

    def compile(self) -> bool:
        """Switch to the compiled gradient, if there is one."""
        return self.step.compile(self._examples())

    def begin_stage(self, decay: float) -> None:
        """Lower the rate, and restart the average."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["lr"] * decay
        self.mean = self.x.detach().clone()
        self.count = 1

    def retreat(self, decay: float) -> None:
        """Return to the average of the stage, with a lower rate and zero momentum."""
        mean = self.mean.clone()
        self._optimizer.state.clear()
        self.begin_stage(decay)
        with torch.no_grad():
            self.x.copy_(mean)
        self.mean = mean

    def begin_window(self) -> None:
        """Restart the sums of gradients."""
        self._sum.zero_()
        self._squares.zero_()
        self._window = 0

    def drifting(self) -> bool:
        """Return whether the mean gradient of this window differs from zero."""
        return drifts(self._sum, self._squares, self._window)

    def nonfinite(self) -> tuple[int, ...]:
        """Return the coordinates whose gradient is not finite at this point."""
        given = {n: t[0] for n, t in zip(self._names, self._inputs, strict=True)}
        return bad_coordinates(self._objective, self.x.detach(), given)

    def _one(self, given: Sequence[Tensor]) -> Tensor:
        """Take one step and return the loss before it; NaN if it was skipped."""

        def closure() -> Tensor:
            try:
                loss, gradient = self.step(self.x.detach(), *given)
            except LinAlgError:  # a matrix that cannot be factorized
                loss = gradient = torch.full_like(self.x.detach(), torch.nan)
            self.x.grad = gradient.clone()
            return loss.clone().reshape(-1)[0]

        loss = closure()
        gradient = self.x.grad
        assert gradient is not None
        if not bool(loss.isfinite() & gradient.isfinite().all()):
            return torch.full_like(loss, torch.nan)
        self._sum += gradient
        self._squares += gradient.square()
        self._window += 1
        if isinstance(self._optimizer, torch.optim.LBFGS):
            self._optimizer.step(closure)  # it calls the closure itself
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
