"""Runs one search by first-order steps, in batches or with noise."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from probsl.contract import Run, Status
from probsl.engine.ending import Ending
from probsl.engine.steps.feed import NOISE, ROW, WEIGHTS, Feed, places_for
from probsl.engine.steps.first_order import FirstOrder
from probsl.engine.steps.stochastic import (
    StochasticMinimum,
    Watch,
    minimize_stochastic,
)
from probsl.isolation.calls import own_generator
from probsl.methods.endings import named_coordinates
from probsl.methods.progress import watching
from probsl.methods.search import Found
from probsl.noise.streams import stream
from probsl.noise.vmapped import independent_draws

if TYPE_CHECKING:
    from probsl.engine.steps.first_order import SchedulerFactory
    from probsl.methods.objective import Objective
    from probsl.program.problem import Problem

# Maps a point [d] and the inputs of a step to a mean over its rows.
Step = Callable[[Tensor, Mapping[str, Tensor]], Tensor]

# Maximum number of first-order steps, if none is given.
NOISY_STEPS = 20_000
# Up to this many rows times coordinates, full-batch gradients are cheap.
_WHOLE_ELEMENTS = 20_000_000


class Noisy(Protocol):
    """The options of a method that may use first-order steps."""

    @property
    def optimizer(self) -> Any:
        """Makes the `torch.optim` optimizer; None for the default."""
        ...

    @property
    def scheduler(self) -> SchedulerFactory | None:
        """Makes the learning rate scheduler; None lowers the rate at plateaus."""
        ...

    @property
    def clip_norm(self) -> float | None:
        """The maximum norm of a gradient."""
        ...

    @property
    def tolerance(self) -> float | None:
        """The progress below which a search stops."""
        ...

    @property
    def max_steps(self) -> int | None:
        """Maximum number of steps."""
        ...


def search_noisily(
    objective: Objective, start: Tensor, method: Noisy, run: Run
) -> Found:
    """Minimize by first-order steps, with or without noise in the objective.

    Parameters
    ----------
    objective
        The objective. Each step gets its number of draws of the noise, unless that
        cannot be replayed: then torch's own generator is used.
    start
        The start of the search [d].
    method, run
        The options.
    """
    noise, size, obstacle = objective.noise, objective.size, ""
    if noise is not None and not noise.replayable:
        obstacle = (
            "the steps are not compiled, because the program or the guide samples by "
            f"{noise.obstacle}"
        )
    if obstacle and run.compile not in ("auto", False):
        warnings.warn(obstacle, UserWarning, stacklevel=2)
    how = FirstOrder(
        method.optimizer,
        method.scheduler,
        method.clip_norm,
        max_steps=method.max_steps or NOISY_STEPS,
        tolerance=1e-6 if method.tolerance is None else method.tolerance,
    )
    with watching(run, size, how.max_steps) as callback:
        settled: StochasticMinimum = minimize_stochastic(
            _drawing(objective) if obstacle else _at_step(objective),
            start,
            feed=_feed(objective, run),
            how=how,
            compile=False if obstacle else run.compile,
            watch=Watch(callback, every_step=bool(run.callbacks)),
            whole=_whole(objective, run),
        )
    losses = torch.tensor(settled.losses, dtype=torch.float64, device="cpu") * size
    return Found(
        settled.x,
        Status[settled.ending.name],
        named_coordinates(objective.layout, settled.coordinates),
        losses,
        settled.steps,
        compiled_from=settled.compiled_from,
        reason=obstacle or settled.reason,
        remark=_remark(settled, size) or _edge_remark(settled, objective.problem),
        remainder=settled.remainder,
    )


def _at_step(objective: Objective) -> Step:
    """Return the objective as a function of a point and the inputs of a step."""
    problem, noise = objective.problem, objective.noise

    def at_step(x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        rows = {n.removeprefix(ROW): v for n, v in given.items() if n.startswith(ROW)}
        batch = problem.batch_of(rows, given.get(WEIGHTS))

        def with_noise(numbers: Tensor) -> Tensor:
            assert noise is not None
            with noise.supply(numbers):
                return objective(x, batch)

        if NOISE not in given:
            return objective(x, batch)
        draws = given[NOISE]
        if len(draws) == 1:
            return with_noise(draws[0])
        mean: Tensor = torch.func.vmap(with_noise)(draws).mean()
        return mean

    return at_step


def _whole(objective: Objective, run: Run) -> Callable[[Tensor], Tensor] | None:
    """Return the full-batch objective, if all rows are held and it is cheap."""
    problem = objective.problem
    if objective.noise is not None or run.batch_size is None:
        return None
    many = problem.size * objective.layout.size > _WHOLE_ELEMENTS
    return objective if problem.data.complete and not many else None


def _remark(settled: StochasticMinimum, size: float) -> str:
    """Return the remaining gain, in nats, as a clause."""
    left = settled.remainder
    if left is None or settled.ending not in (Ending.CONVERGED, Ending.STALLED):
        return ""
    if settled.ending is Ending.STALLED:
        return (
            "the steps have become too short while the objective could still fall by "
            f"{left.gain * size:.2g} nats; give a larger learning rate, or a scheduler "
            "that lowers it later"
        )
    if not left.error:
        return ""
    # No gain was detected, so this is a bound on the gain of an exact step.
    return (
        f"the Monte Carlo error of the optimum is at most {left.bound * size:.2g} nats"
    )


def _edge_remark(settled: StochasticMinimum, problem: Problem) -> str:
    """Say that steps may have failed at the boundary of a moving support."""
    if settled.ending is not Ending.NONFINITE or not problem.moving:
        return ""
    return (
        f"the support of '{problem.moving[0]}' moves with the parameters, and "
        "first-order steps cannot end at its edge; fit all rows at once, without "
        "optimizer= and scheduler="
    )


def _drawing(objective: Objective) -> Step:
    """Return an objective whose random numbers are isolated from other threads."""
    at_step = _at_step(objective)

    def drawn(x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        with independent_draws(own_generator):
            return at_step(x, given)

    return drawn


def _feed(objective: Objective, run: Run) -> Feed:
    problem, noise, draws = objective.problem, objective.noise, objective.draws
    blocks, row_bytes, numbers = None, 0, 0
    if run.batch_size is not None:
        blocks = problem.batches(run.batch_size, run.seed)
        first, _ = problem.data.at(torch.arange(1, device="cpu"))
        row_bytes = sum(array.nbytes for array in first.values())
    drawn = None
    if noise is not None and noise.replayable:
        numbers = draws * noise.dimension

        def drawn(steps: int, generator: torch.Generator) -> Tensor:
            flat = noise.draw(steps * draws, generator)
            return flat.reshape(steps, draws, noise.dimension)

    needed = row_bytes * (run.batch_size or 0) + numbers * problem.dtype.itemsize
    return Feed(
        places_for(needed),
        blocks,
        drawn,
        generator=stream(run.seed, "noise"),
        device=problem.device,
    )
