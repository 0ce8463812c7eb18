"""One search for the optimum, and its ending in the words of a fit."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from probsl.contract import Run, Status
from probsl.engine.ending import Ending
from probsl.engine.minimize.free_directions import level_at
from probsl.engine.minimize.minimize import Minimum, minimize
from probsl.engine.steps.feed import ROW, WEIGHTS, Feed, places_for
from probsl.engine.steps.stochastic import StochasticMinimum, minimize_stochastic
from probsl.isolation.calls import own_generator
from probsl.methods.endings import _at_boundary, named_coordinates
from probsl.methods.progress import Callback, watching
from probsl.noise.vmapped import independent_draws

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from probsl.engine.steps.first_order import OptimizerFactory, SchedulerFactory
    from probsl.engine.steps.remainder import Remainder
    from probsl.noise.record import NoiseRecord
    from probsl.program.coordinates import Coordinates
    from probsl.program.problem import Problem
    from probsl.program.scoring import Batch

# Up to this many coordinates the exact Hessian is affordable.
NEWTON_LIMIT = 300
# First-order steps at most, where no number is given.
NOISY_STEPS = 20_000
# Rows times coordinates up to which some gradients of all rows cost little.
_WHOLE_ELEMENTS = 20_000_000


@dataclass(frozen=True, eq=False)
class Found:
    """Where a search ended: the point, the status, and what the status is about.

    `flattening` says of coordinates that run off whether the objective levels off,
    `redundant` of free directions whether they are level at other points, too, and
    `kinked` whether the optimum lies on kinks.
    """

    x: Tensor
    status: Status
    sites: tuple[str, ...]
    losses: Tensor
    steps: int
    flattening: bool = False
    compiled_from: int | None = None
    reason: str = ""
    redundant: Callable[[Tensor], bool] | None = None
    kinked: bool = False
    remark: str = ""
    remainder: Remainder | None = None

    @property
    def value(self) -> float:
        """The last objective."""
        return float(self.losses[-1]) if len(self.losses) else float("inf")


def search_exactly(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    layout: Coordinates,
    size: float,
    *,
    tolerance: float | None,
    max_steps: int | None,
    l1: tuple[Tensor, Tensor] | None = None,
    idle: Literal["ignore", "report"] = "report",
    newton_limit: int = NEWTON_LIMIT,
    known_point: Tensor | None = None,
    callback: Callback | None = None,
) -> Found:
    """Minimize a deterministic objective and tell the status in terms of sites.

    Parameters
    ----------
    objective
        A mean over rows.
    start
        Where to begin.
    layout
        Names the coordinates.
    size
        The number of rows, by weight; losses are reported as sums.
    tolerance, max_steps, l1, idle, newton_limit, known_point, callback
        As in `probsl.engine.minimize.minimize.minimize`.
    """
    minimum = minimize(
        objective,
        start,
        tolerance=tolerance,
        max_steps=max_steps or (1000 if len(start) <= NEWTON_LIMIT else 5000),
        l1=l1,
        newton_limit=newton_limit,
        idle=idle,
        known_point=known_point,
        callback=callback,
    )
    status = Status[minimum.ending.name]
    if status is Status.UNBOUNDED and _at_boundary(minimum, layout):
        status = Status.BOUNDARY
    losses = torch.tensor(minimum.losses, dtype=torch.float64, device="cpu") * size
    names = named_coordinates(layout, minimum.coordinates)
    exact = len(start) <= newton_limit

    def redundant(x: Tensor) -> bool:
        return level_at(objective, x, minimum)

    return Found(
        minimum.x,
        status,
        names,
        losses,
        minimum.steps,
        minimum.flattening,
        kinked=minimum.hessian is None and status is Status.CONVERGED and exact,
        redundant=redundant if status is Status.UNIDENTIFIED else None,
        reason=_unresolved(minimum),
    )


def _unresolved(minimum: Minimum) -> str:
    """Return a sentence about what rounding hides, if it does."""
    if not minimum.hidden:
        return ""
    if minimum.x.dtype == torch.float32:
        return "float32 cannot resolve this: center the data or use dtype=float64"
    if minimum.ending is Ending.STALLED:
        return "float64 cannot resolve this: center and rescale the data"
    return ""


class Noisy(Protocol):
    """The options of a method that may search by first-order steps."""

    @property
    def optimizer(self) -> OptimizerFactory | None:
        """Makes the optimizer; None chooses."""
        ...

    @property
    def scheduler(self) -> SchedulerFactory | None:
        """Makes what moves the rate; None lowers it at plateaus."""
        ...

    @property
    def clip_norm(self) -> float | None:
        """The longest gradient."""
        ...

    @property
    def tolerance(self) -> float | None:
        """The progress that counts as none."""
        ...

    @property
    def max_steps(self) -> int | None:
        """Steps at most."""
        ...


def search_noisily(
    objective: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
    start: Tensor,
    layout: Coordinates,
    *,
    problem: Problem,
    method: Noisy,
    run: Run,
    noise: NoiseRecord | None = None,
    draws: int = 1,
    size: float | None = None,
) -> Found:
    """Minimize by first-order steps, with or without noise in the objective.

    Parameters
    ----------
    objective
        Maps a point and what its step is given (`batch_at` and `NOISE` read it) to
        a mean over rows.
    start, layout
        As in `search_exactly`.
    problem, method, run
        The rows, and the options.
    noise
        What the objective draws, if anything; it is given to each step, shape
        ``[draws, dimension]``, unless it has an obstacle: torch's own generator is
        then drawn from.
    draws
        How many draws of it a step is given.
    size
        Losses are reported times this; None: the number of rows.
    """
    size = problem.size if size is None else size
    obstacle = ""
    if noise is not None and not noise.replayable:
        obstacle = (
            "the steps are not compiled, because the program or the guide samples by "
            f"{noise.obstacle}"
        )
    if obstacle and run.compile not in ("auto", False):
        warnings.warn(obstacle, UserWarning, stacklevel=2)
    with watching(run, size, method.max_steps or NOISY_STEPS) as callback:
        settled: StochasticMinimum = minimize_stochastic(
            _drawing(objective) if obstacle else objective,
            start,
            feed=_feed(problem, run, None if obstacle else noise, draws),
            optimizer=method.optimizer,
            scheduler=method.scheduler,
            clip_norm=method.clip_norm,
            max_steps=method.max_steps or NOISY_STEPS,
            tolerance=1e-6 if method.tolerance is None else method.tolerance,
            compile=False if obstacle else run.compile,
            callback=callback,
            every_step=bool(run.callbacks),
            whole=_whole(objective, problem, run, noise, len(start)),
        )
    losses = torch.tensor(settled.losses, dtype=torch.float64, device="cpu") * size
    return Found(
        settled.x,
        Status[settled.ending.name],
        named_coordinates(layout, settled.coordinates),
        losses,
        settled.steps,
        compiled_from=settled.compiled_from,
        reason=obstacle or settled.reason,
        remark=_remark(settled, size) or _edge_remark(settled, problem),
        remainder=settled.remainder,
    )


def _whole(
    objective: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
    problem: Problem,
    run: Run,
    noise: NoiseRecord | None,
    dimension: int,
) -> Callable[[Tensor], Tensor] | None:
    """Return the objective of all rows, if they are at hand and cheap."""
    if noise is not None or run.batch_size is None or problem.source is not None:
        return None
    if problem.size * dimension > _WHOLE_ELEMENTS:
        return None
    return lambda x: objective(x, {})


def _remark(settled: StochasticMinimum, size: float) -> str:
    """Return what is left to gain, in nats, in a clause."""
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
    # What an exact step could gain is at most what none was seen to gain.
    return (
        f"the Monte Carlo error of the optimum is at most {left.bound * size:.2g} nats"
    )


def _edge_remark(settled: StochasticMinimum, problem: Problem) -> str:
    """Say that steps may have failed at the edge of a support that moves."""
    if settled.ending is not Ending.NONFINITE or not problem.moving:
        return ""
    return (
        f"the support of '{problem.moving[0]}' moves with the parameters, and "
        "first-order steps cannot end at its edge; fit all rows at once, without "
        "optimizer= and scheduler="
    )


def _drawing(objective: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return an objective whose random numbers no other thread moves."""

    def drawn(x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        with independent_draws(own_generator):
            return objective(x, given)

    return drawn


def batch_at(problem: Problem, given: Mapping[str, Tensor]) -> Batch:
    """Return the rows that a step is given; all of them where it is given none."""
    rows = {n.removeprefix(ROW): v for n, v in given.items() if n.startswith(ROW)}
    return problem.batch_of(rows, given.get(WEIGHTS))


def example_of(problem: Problem, run: Run) -> Batch:
    """Return rows of the shape that every step is given."""
    if run.batch_size is None:
        return problem.batch()
    return problem.rows_at(torch.arange(run.batch_size, device="cpu"))


def _feed(problem: Problem, run: Run, noise: NoiseRecord | None, draws: int) -> Feed:
    blocks, row_bytes, numbers = None, 0, 0
    if run.batch_size is not None:
        blocks = problem.batches(run.batch_size, run.seed)
        held = problem.batch_arrays.values()
        row_bytes = sum(array.nbytes // max(len(array), 1) for array in held)
    drawn = None
    if noise is not None:
        generator = torch.Generator("cpu").manual_seed(run.seed)
        numbers = draws * noise.dimension

        def drawn(steps: int) -> Tensor:
            flat = noise.draw(steps * draws, generator)
            return flat.reshape(steps, draws, noise.dimension)

    needed = row_bytes * (run.batch_size or 0) + numbers * problem.dtype.itemsize
    return Feed(places_for(needed), blocks, drawn, problem.device)
