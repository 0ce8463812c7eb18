"""Runs one search for the optimum, and describes its result in terms of sites."""

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
# Maximum number of first-order steps, if none is given.
NOISY_STEPS = 20_000
# Up to this many rows times coordinates, full-batch gradients are cheap.
_WHOLE_ELEMENTS = 20_000_000


@dataclass(frozen=True, eq=False)
class Found:
    """The result of a search: the point, the status, and the sites it refers to.

    `flattening` states whether the objective levels off in diverging coordinates,
    `redundant` whether free directions are also flat at other points, and
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
    """Minimize a deterministic objective and report the status in terms of sites.

    Parameters
    ----------
    objective
        A mean over rows.
    start
        The start of the search.
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
    """Return a sentence about what rounding error hides, or an empty one."""
    if not minimum.hidden:
        return ""
    if minimum.x.dtype == torch.float32:
        return "float32 cannot resolve this: center the data or use dtype=float64"
    if minimum.ending is Ending.STALLED:
        return "float64 cannot resolve this: center and rescale the data"
    return ""


class Noisy(Protocol):
    """The options of a method that may use first-order steps."""

    @property
    def optimizer(self) -> OptimizerFactory | None:
        """Makes the optimizer; None for the default."""
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
        Maps a point and the inputs of its step (`batch_at` and `NOISE` read them) to
        a mean over rows.
    start, layout
        As in `search_exactly`.
    problem, method, run
        The rows, and the options.
    noise
        The random numbers in the objective, if any; each step gets some, shape
        ``[draws, dimension]``, unless `noise` has an obstacle: then torch's own
        generator is used.
    draws
        How many draws each step gets.
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
    """Return the full-batch objective, if all rows are held and it is cheap."""
    if noise is not None or run.batch_size is None or problem.source is not None:
        return None
    if problem.size * dimension > _WHOLE_ELEMENTS:
        return None
    return lambda x: objective(x, {})


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


def _drawing(objective: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return an objective whose random numbers are isolated from other threads."""

    def drawn(x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        with independent_draws(own_generator):
            return objective(x, given)

    return drawn


def batch_at(problem: Problem, given: Mapping[str, Tensor]) -> Batch:
    """Return the rows of a step; all rows if it has none of its own."""
    rows = {n.removeprefix(ROW): v for n, v in given.items() if n.startswith(ROW)}
    return problem.batch_of(rows, given.get(WEIGHTS))


def example_of(problem: Problem, run: Run) -> Batch:
    """Return rows of the same shape as in every step."""
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
