"""The stochastic minimizer: first-order steps with a rate that decays at plateaus."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from probsl.engine.ending import Ending
from probsl.engine.steps.adam import AdamWalk, adam_options
from probsl.engine.steps.any_optimizer import OptimizerWalk
from probsl.engine.steps.feed import Feed
from probsl.engine.steps.first_order import (
    OptimizerFactory,
    SchedulerFactory,
    made_optimizer,
)
from probsl.engine.steps.remainder import SAMPLES, Remainder, remainder
from probsl.isolation.calls import Snapshot

# A stage ends after this many consecutive windows without progress beyond noise, and
# without drift: at stationarity the mean gradient of a noisy objective is zero.
_PATIENCE = 2
WINDOW = 250
_STAGES = 5
# Consecutive windows with drift but no progress after which the search is judged.
_ADRIFT = 8
# Minimum number of windows of the last stage, if steps are noisy.
_LAST_WINDOWS = 4
_DECAY = 0.3
_BAD_STEPS = 20
_RETREATS = 3

# Estimated seconds to trace a graph, and to compile it.
_TRACING, _COMPILING = 0.5, 6.0
# Expected minimum number of steps of a search without a limit.
_USUAL_STEPS = 5000

Objective = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
# The step from which to use compiled code; True is 1, and False is never.
Compile = Literal["auto"] | int
# Called with step, objective, point and rate.
Callback = Callable[[int, float, Tensor, float], Any]


@dataclass(frozen=True, eq=False)
class StochasticMinimum:
    """The result of a stochastic search.

    Attributes
    ----------
    x
        The average of the last iterates, shape ``[d]``.
    losses
        The objective at every step.
    ending
        How the search ended.
    steps
        Steps taken.
    coordinates
        Coordinates whose gradient was not finite, for NONFINITE.
    compiled_from
        The first step that compiled code took, or None.
    reason
        Why steps could not be compiled, in a sentence.
    remainder
        The remaining gain there, for CONVERGED and STALLED.
    """

    x: Tensor
    losses: tuple[float, ...]
    ending: Ending
    steps: int
    coordinates: tuple[int, ...] = ()
    compiled_from: int | None = None
    reason: str = ""
    remainder: Remainder | None = None


def minimize_stochastic(
    objective: Objective,
    start: Tensor,
    *,
    feed: Feed | None = None,
    optimizer: OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    clip_norm: float | None = None,
    max_steps: int = 20_000,
    tolerance: float = 1e-6,
    compile: Compile = False,
    callback: Callback | None = None,
    every_step: bool = True,
    clock: Callable[[], float] = time.perf_counter,
    whole: Callable[[Tensor], Tensor] | None = None,
) -> StochasticMinimum:
    """Minimize the expectation of a noisy objective.

    The learning rate is constant until, in two consecutive windows, the mean of the
    objective falls by no more than twice its standard error, or than `tolerance`, and
    the mean gradient is indistinguishable from zero. The rate is then multiplied by
    0.3. After five such stages the result is the average over the last stage. The
    search has converged if steps of a better kind would gain no more than `tolerance`,
    or than its noise explains: see `probsl.engine.steps.remainder.remainder`.
    Otherwise it continues, or has stalled if steps as short as the last ones cannot
    reach the better point.

    Parameters
    ----------
    objective
        Maps a tensor ``[d]`` and the inputs of a step to a scalar; preferably a mean
        over rows, so of order one for any number of rows.
    start
        Initial point, shape ``[d]``.
    feed
        Provides the rows and the noise of every step; None for no inputs.
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
        Progress per window that is considered to be zero.
    compile
        True compiles before the first step, a number before the first block that begins
        at that step or later, and "auto" once it is expected to save time. If
        compilation fails, the search continues without it and warns.
    callback
        Called with step, objective, point and rate; a true result ends the search.
    every_step
        Whether `callback` is called after each step, or once per block.
    clock
        Returns seconds; used by `compile="auto"`.
    whole
        The expectation of the objective, if it is cheap enough for judging the end.

    Returns
    -------
    StochasticMinimum
        A keyboard interrupt ends the search with the current point. A step that is not
        finite is skipped; after twenty consecutive ones the search returns to the
        average of its stage with a lower rate, and the third time it ends.

    Notes
    -----
    Constant-rate stages with averaged iterates: Polyak and Juditsky (1992), SIAM
    J. Control Optim. 30, 838-855. When to end a stage: Welandawe et al. (2024), JMLR
    25.

    Examples
    --------
    >>> import torch
    >>> from probsl.engine.steps.stochastic import minimize_stochastic
    >>> target = torch.tensor([1.0, -2.0])
    >>> def square(x, _):
    ...     return ((x - target) ** 2).sum()
    >>> settled = minimize_stochastic(square, torch.zeros(2))
    >>> settled.ending.name, settled.x.round(decimals=3)
    ('CONVERGED', tensor([ 1., -2.]))
    """
    feed = feed or Feed(WINDOW)
    x = start.detach().clone().requires_grad_()
    made = made_optimizer(optimizer, [x])
    options = adam_options(made) if scheduler is None else None
    walk: AdamWalk | OptimizerWalk
    if options is not None:
        walk = AdamWalk(objective, start, feed, options, clip_norm)
    else:
        walk = OptimizerWalk(
            objective, x, feed, optimizer=made, scheduler=scheduler, clip=clip_norm
        )
    search = _Search(
        walk, feed, tolerance, compile, decays=scheduler is None, clock=clock
    )
    watch = _Watch(callback, every_step=every_step)
    ending = Ending.MAX_STEPS
    before = Snapshot()
    try:
        search.prepare()
        while search.steps < max_steps:
            if not search.block(max_steps, watch):
                ending = Ending.INTERRUPTED
                break
            if search.stuck():
                ending = Ending.NONFINITE
                break
            if search.steps % WINDOW == 0 and search.end_window():
                verdict = search.judge(objective, max_steps, whole)
                if verdict is not None:
                    ending = verdict
                    break
        if ending is Ending.MAX_STEPS and search.broken():
            ending = Ending.NONFINITE
    except KeyboardInterrupt as error:
        before.recover(error)
        search.collect()
        ending = Ending.INTERRUPTED
    bad = walk.nonfinite() if ending is Ending.NONFINITE else ()
    return StochasticMinimum(
        search.average(),
        tuple(search.losses),
        ending,
        search.steps,
        bad,
        search.compiled_from,
        walk.step.reason,
        search.remainder,
    )


class _Watch:
    """Calls the callback after each step, or after each block."""

    def __init__(self, callback: Callback | None, *, every_step: bool) -> None:
        self.callback = callback
        self.every_step = every_step and callback is not None

    def __call__(self, step: int, loss: float, x: Tensor, rate: float) -> bool:
        if self.callback is None:
            return False
        return bool(self.callback(step, loss, x.detach().clone(), rate))


class _Search:
    """The state of a stochastic search."""

    def __init__(
        self,
        walk: AdamWalk | OptimizerWalk,
        feed: Feed,
        tolerance: float,
        compile: Compile,
        *,
        decays: bool,
        clock: Callable[[], float],
    ) -> None:
        self.walk = walk
        self.losses: list[float] = []
        self.compiled_from: int | None = None
        self._feed = feed
        self._tolerance = tolerance
        self._compile = compile
        self._decays = decays
        self._clock = clock
        self._stage = 0
        self._idle_windows = 0
        self._retreats = 0
        self._collected = feed.places
        self._seconds, self._timed = 0.0, 0
        self._moments: tuple[float, float] | None = None
        self._patience = _PATIENCE
        self._adrift = 0
        self._windows, self._speed = 0, 0.0
        self._point = walk.x.detach().clone()
        self.remainder: Remainder | None = None

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.losses)

    def prepare(self) -> None:
        """Compile before the first step, if requested."""
        if self._due():
            self.walk.load(self._feed.take())
            self._take_over()
            self._feed.back()

    def block(self, max_steps: int, watch: _Watch) -> bool:
        """Take the steps of one block; return False if the callback ends the search."""
        self._speed_up(max_steps)
        self.walk.load(self._feed.take())
        self._collected = 0
        stop = min(self._feed.places, max_steps - self.steps)
        started = self._clock()
        for place in range(1, stop + 1) if watch.every_step else (stop,):
            self.walk.run(place)
            self.collect()
            if watch(self.steps, self.losses[-1], self.walk.x, self.walk.rate):
                return False
        self._seconds += self._clock() - started
        self._timed += stop
        return True

    def collect(self) -> None:
        """Store the losses of the steps taken so far."""
        done = self.walk.done
        self.losses += self.walk.losses[self._collected : done].tolist()
        self._collected = done

    def _speed_up(self, max_steps: int) -> None:
        """Switch to a faster form of the step if it is due, or likely to save time."""
        step = self.walk.step
        if step.reason or self.compiled_from is not None:
            return
        if self._compile != "auto":
            if self.steps and self._due():
                self._take_over()
            return
        if not self._timed:
            return
        # The number of steps is unknown; assume as many again as were taken.
        left = min(max_steps - self.steps, max(_USUAL_STEPS - self.steps, self.steps))
        remaining = self._seconds / self._timed * left
        if remaining > 2 * _COMPILING:
            self._take_over()
        elif remaining > 4 * _TRACING and step.form == "eager":
            self.walk.trace()
            self._seconds, self._timed = 0.0, 0
            if self.walk.is_compiled():  # by an earlier fit
                self._take_over()

    def _due(self) -> bool:
        """Whether compiled code was requested for the next step."""
        return self._compile != "auto" and 0 < self._compile <= self.steps + 1

    def _take_over(self) -> None:
        """Switch to compiled code, if there is a compiler."""
        if self.walk.compile():
            self.compiled_from = self.steps + 1

    def stuck(self) -> bool:
        """Retreat if steps are no longer finite; return whether to give up."""
        if self.steps < _BAD_STEPS or not self.broken():
            return False
        self._retreats += 1
        if self._retreats == _RETREATS:
            return True
        self.walk.retreat(_DECAY)
        return False

    def broken(self) -> bool:
        """Whether none of the last steps was finite."""
        return not any(map(math.isfinite, self.losses[-_BAD_STEPS:]))

    def end_window(self) -> bool:
        """Lower the rate at a plateau; return whether the last stage is over."""
        self._windows += 1
        point = self.walk.x.detach().clone()
        self._speed = float((point - self._point).abs().max())
        self._point = point
        before, after = self._moments, _moments(self.losses[-WINDOW:])
        self._moments = after
        if before is None:
            self.walk.begin_window()
            return False
        progress = before[0] - after[0]
        noise = math.sqrt(before[1] + after[1])
        resting = progress <= max(2 * noise, self._tolerance)
        idle = resting and (noise <= self._tolerance or not self.walk.drifting())
        self.walk.begin_window()
        self._adrift = self._adrift + 1 if resting and not idle else 0
        if self._adrift == _ADRIFT:  # is the rate too small to follow the gradient?
            self._adrift = 0
            return True
        self._idle_windows = self._idle_windows + 1 if idle else 0
        if self._idle_windows < self._patience:
            return False
        if self._stage == _STAGES - 1:
            return self._windows >= _LAST_WINDOWS or not self._feed.gives
        self._idle_windows = 0
        self._stage += 1
        self.walk.begin_stage(_DECAY if self._decays else 1.0)
        self._windows = 0
        return False

    def judge(
        self,
        objective: Objective,
        max_steps: int,
        whole: Callable[[Tensor], Tensor] | None,
    ) -> Ending | None:
        """Return how the search ends, or None if it has to continue.

        At stationarity it is judged by the gain of a better step. If that is more than
        noise explains, the search continues if its steps can reach the better point.
        """
        self.remainder = found = remainder(
            objective,
            self.average(),
            self._feed.examples(SAMPLES),
            self.walk.count,
            whole,
        )
        if found.gain <= max(self._tolerance, found.chance):
            return Ending.CONVERGED if self._stage == _STAGES - 1 else None
        left = (max_steps - self.steps) / WINDOW
        if not self._speed * left > found.distance:
            return Ending.STALLED
        self._idle_windows = 0
        self._patience *= 2  # a verdict costs as much as several hundred steps
        return None

    def average(self) -> Tensor:
        """Return the average iterate of the stage, if the stage is long enough."""
        walk = self.walk
        return (walk.mean if walk.count >= WINDOW else walk.x).detach().clone()


def _moments(losses: list[float]) -> tuple[float, float]:
    """Return the mean and the squared standard error of the mean."""
    # Summing a list this short takes less time than making a tensor of it.
    if not math.isfinite(sum(losses)):
        losses = [v for v in losses if math.isfinite(v)] or [math.inf] * 2
    mean = sum(losses) / len(losses)
    variance = sum([(v - mean) * (v - mean) for v in losses]) / len(losses)
    return mean, variance / len(losses)
