"""The stochastic minimizer: first-order steps with a rate that decays at plateaus."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from probsl.engine.ending import Ending
from probsl.engine.steps.adam import AdamWalk, adam_options
from probsl.engine.steps.any_optimizer import OptimizerWalk
from probsl.engine.steps.feed import Feed
from probsl.engine.steps.first_order import FirstOrder, made_optimizer
from probsl.engine.steps.remainder import SAMPLES, Remainder, remainder
from probsl.engine.steps.stages import WINDOW, Stages
from probsl.engine.steps.state import SearchState
from probsl.isolation.calls import Snapshot
from probsl.isolation.random_states import random_states, restore_random_states

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

# Returns seconds, by which `compile="auto"` decides.
clock = time.perf_counter


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
    state
        The state from which the search would go on, for MAX_STEPS, and for INTERRUPTED
        by the callback.
    """

    x: Tensor
    losses: tuple[float, ...]
    ending: Ending
    steps: int
    coordinates: tuple[int, ...] = ()
    compiled_from: int | None = None
    reason: str = ""
    remainder: Remainder | None = None
    state: SearchState | None = None


@dataclass(frozen=True)
class Watch:
    """What is called during a search.

    Attributes
    ----------
    callback
        Called with step, objective, point and rate; a true result ends the search.
    checkpoint
        Called before it with a function that returns the state after this step.
    every_step
        Whether they are called after each step, or once per block.
    """

    callback: Callback | None = None
    checkpoint: Callable[[Callable[[], SearchState]], Any] | None = None
    every_step: bool = True

    @property
    def sees_steps(self) -> bool:
        """Whether anything is called after each step."""
        return self.every_step and (self.callback or self.checkpoint) is not None


def minimize_stochastic(
    objective: Objective,
    start: Tensor,
    *,
    feed: Feed | None = None,
    how: FirstOrder = FirstOrder(),  # noqa: B008 (it is frozen)
    compile: Compile = False,
    watch: Watch = Watch(),
    whole: Callable[[Tensor], Tensor] | None = None,
    state: SearchState | None = None,
) -> StochasticMinimum:
    """Minimize the expectation of a noisy objective.

    The learning rate is constant until, in two consecutive windows, the mean of the
    objective falls by no more than twice its standard error, or than the tolerance, and
    the mean gradient is indistinguishable from zero. The rate is then multiplied by
    0.3. After five such stages the result is the average over the last stage. The
    search has converged if steps of a better kind would gain no more than the
    tolerance, or than its noise explains: see
    `probsl.engine.steps.remainder.remainder`. Otherwise it continues, or has stalled if
    steps as short as the last ones cannot reach the better point.

    Parameters
    ----------
    objective
        Maps a tensor ``[d]`` and the inputs of a step to a scalar; preferably a mean
        over rows, so of order one for any number of rows.
    start
        Initial point, shape ``[d]``.
    feed
        Provides the rows and the noise of every step; None for no inputs.
    how
        The optimizer and its options.
    compile
        True compiles before the first step, a number before the first block that begins
        at that step or later, and "auto" once it is expected to save time. If
        compilation fails, the search continues without it and warns.
    watch
        Called after each step, or after each block.
    whole
        The expectation of the objective, if it is cheap enough for judging the end.
    state
        The state of an earlier search with the same objective, inputs and options, to
        go on from there instead of from `start`. With the same `compile`, the result is
        bit for bit that of one uninterrupted search if steps are on the CPU and run on
        one thread. With "auto", steps that were compiled are compiled again before the
        first one, and others once that is expected to save time by the clock, possibly
        at another step: the results are then the same to rounding.

    Returns
    -------
    StochasticMinimum
        A keyboard interrupt ends the search with the current point. A step that is not
        finite is skipped; after twenty consecutive ones the search returns to the
        average of its stage with a lower rate, and the third time it ends.

    Raises
    ------
    ValueError
        If `state` is that of a search by another optimizer, of another size, or with
        other inputs.

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
    search = _Search(objective, start, feed or Feed(WINDOW), how, compile)
    before = Snapshot()
    try:
        if state is not None:
            search.restore(state)
        ending = search.run(watch, whole)
        state = search.state() if ending in _UNFINISHED else None
    except KeyboardInterrupt as error:
        before.recover(error)
        search.collect()
        ending, state = Ending.INTERRUPTED, None  # it may have come within a step
    judged = ending in (Ending.CONVERGED, Ending.STALLED)
    return StochasticMinimum(
        search.average(),
        tuple(search.losses),
        ending,
        search.steps,
        search.walk.nonfinite() if ending is Ending.NONFINITE else (),
        search.compiled_from,
        search.walk.step.reason,
        search.remainder if judged else None,
        state,
    )


_UNFINISHED = (Ending.INTERRUPTED, Ending.MAX_STEPS)


class _Search:
    """A stochastic search: where it stands, and how it goes on."""

    def __init__(
        self,
        objective: Objective,
        start: Tensor,
        feed: Feed,
        how: FirstOrder,
        compile: Compile,
    ) -> None:
        x = start.detach().clone().requires_grad_()
        made = made_optimizer(how.optimizer, [x])
        options = adam_options(made) if how.scheduler is None else None
        self.walk: AdamWalk | OptimizerWalk
        if options is not None:
            self.walk = AdamWalk(objective, start, feed, options, how.clip_norm)
        else:
            self.walk = OptimizerWalk(
                objective,
                x,
                feed,
                optimizer=made,
                scheduler=how.scheduler,
                clip=how.clip_norm,
            )
        by = " with a scheduler" if how.scheduler else ""
        self._kind = (
            f"{type(made).__name__}{by} in {len(x)} coordinates, in blocks of "
            f"{feed.places} steps"
        )
        self.losses: list[float] = []
        self.compiled_from: int | None = None
        self.remainder: Remainder | None = None
        self._objective = objective
        self._feed = feed
        self._max_steps, self._tolerance = how.max_steps, how.tolerance
        self._decay = 1.0 if how.scheduler else _DECAY
        self._compile = compile
        self._stages = Stages(start.detach().clone())
        # The state of the feed before the block under way; None between two blocks.
        self._fed: dict[str, Any] | None = None
        self._collected = 0
        self._seconds, self._timed = 0.0, 0

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.losses)

    def state(self) -> SearchState:
        """Return the state after the last step."""
        under_way = self._fed is not None
        return SearchState(
            kind=self._kind,
            losses=torch.tensor(self.losses, dtype=torch.float64, device="cpu"),
            place=self._collected if under_way else 0,
            walk=self.walk.state(),
            stages=deepcopy(vars(self._stages)),
            feed=deepcopy(self._fed or self._feed.state()),
            digest=self._feed.digest() if under_way else "",
            generators=random_states(self.walk.x.device),
            compiled_from=self.compiled_from,
        )

    def restore(self, state: SearchState) -> None:
        """Return to the state of an earlier search."""
        state.check_kind(self._kind)
        self.losses = state.losses.tolist()
        self.walk.restore(state.walk, state.place)
        point = state.stages["point"].to(self._stages.point)
        self._stages = Stages(**{**state.stages, "point": point})
        self._feed.restore(state.feed)
        compiled = bool(self._compile) and state.compiled_from is not None
        if state.place or compiled:
            self._begin_block()
        if state.place:
            state.check_inputs(self._feed.digest())
            self.walk.skip(state.place)
            self._collected = state.place
        if compiled and self.walk.compile():
            self.compiled_from = state.compiled_from
        restore_random_states(state.generators)

    def run(self, watch: Watch, whole: Callable[[Tensor], Tensor] | None) -> Ending:
        """Take steps to the end of the search."""
        while self._fed is not None or self.steps < self._max_steps:
            if self._fed is None:
                self._begin_block()
                self._speed_up()
            if not self._take_steps(watch):
                return Ending.INTERRUPTED
            if self._collected < self._feed.places:  # the last step of all
                break
            self._fed = None
            if self._stuck():
                return Ending.NONFINITE
            verdict = self._judge(whole) if self._window_ends() else None
            if verdict is not None:
                return verdict
        return Ending.NONFINITE if self._broken() else Ending.MAX_STEPS

    def _begin_block(self) -> None:
        """Load the inputs of the next block of steps."""
        fed = self._feed.state()
        self.walk.load(self._feed.take())
        self._collected, self._fed = 0, fed

    def _take_steps(self, watch: Watch) -> bool:
        """Take the steps left of a block; return False if the callback ends it."""
        first = self._collected + 1
        stop = min(self._feed.places, self._collected + self._max_steps - self.steps)
        places = range(first, stop + 1)
        started = clock()
        for place in places if watch.sees_steps else places[-1:]:
            self.walk.run(place)
            self.collect()
            if watch.checkpoint is not None:
                watch.checkpoint(self.state)
            if watch.callback is not None and watch.callback(
                self.steps,
                self.losses[-1],
                self.walk.x.detach().clone(),
                self.walk.rate,
            ):
                return False
        self._seconds += clock() - started
        self._timed += len(places)
        return True

    def collect(self) -> None:
        """Store the losses of the steps taken so far."""
        if self._fed is not None:
            done = self.walk.done
            self.losses += self.walk.losses[self._collected : done].tolist()
            self._collected = done

    def _speed_up(self) -> None:
        """Switch to a faster form of the step if it is due, or likely to save time."""
        step = self.walk.step
        if step.reason or self.compiled_from is not None:
            return
        if self._compile != "auto":
            if 0 < self._compile <= self.steps + 1:
                self._take_over()
            return
        if not self._timed:
            return
        # The number of steps is unknown; assume as many again as were taken.
        steps = self.steps
        left = min(self._max_steps - steps, max(_USUAL_STEPS - steps, steps))
        remaining = self._seconds / self._timed * left
        if remaining > 2 * _COMPILING:
            self._take_over()
        elif remaining > 4 * _TRACING and step.form == "eager":
            self.walk.trace()
            self._seconds, self._timed = 0.0, 0
            if self.walk.is_compiled():  # by an earlier fit
                self._take_over()

    def _take_over(self) -> None:
        """Switch to compiled code, if there is a compiler."""
        if self.walk.compile():
            self.compiled_from = self.steps + 1

    def _stuck(self) -> bool:
        """Retreat if steps are no longer finite; return whether to give up."""
        if self.steps < _BAD_STEPS or not self._broken():
            return False
        self._stages.retreats += 1
        if self._stages.retreats == _RETREATS:
            return True
        self.walk.retreat(_DECAY)
        return False

    def _broken(self) -> bool:
        """Whether none of the last steps was finite."""
        return not any(map(math.isfinite, self.losses[-_BAD_STEPS:]))

    def _window_ends(self) -> bool:
        """Lower the rate at a plateau; return whether the search is to be judged."""
        return self.steps % WINDOW == 0 and self._stages.end_window(
            self.walk,
            self.losses[-WINDOW:],
            self._tolerance,
            decay=self._decay,
            noisy=self._feed.gives,
        )

    def _judge(self, whole: Callable[[Tensor], Tensor] | None) -> Ending | None:
        """Return how the search ends, or None if it has to continue."""
        self.remainder = remainder(
            self._objective,
            self.average(),
            self._feed.examples(SAMPLES),
            self.walk.count,
            whole,
        )
        left = (self._max_steps - self.steps) / WINDOW
        return self._stages.verdict(self.remainder, self._tolerance, left)

    def average(self) -> Tensor:
        """Return the average iterate of the stage, if the stage is long enough."""
        walk = self.walk
        return (walk.mean if walk.count >= WINDOW else walk.x).detach().clone()
