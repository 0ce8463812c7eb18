"""The objective of a fit, as a function of one flat vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from probsl.engine.minimize.l1_penalty import L1Penalty
from probsl.noise.record import NoiseRecord, record

if TYPE_CHECKING:
    from probsl.contract import Run
    from probsl.program.coordinates import Coordinates
    from probsl.program.problem import Problem
    from probsl.program.scoring import Batch
    from probsl.program.target_density import Density, TargetDensity

# Maps a point [d] and some rows, None for all of them, to a mean over rows.
Value = Callable[[Tensor, "Batch | None"], Tensor]


@dataclass(frozen=True, eq=False)
class Objective:
    """A function of one flat vector [d], which a search minimizes.

    Attributes
    ----------
    target
        The density that it is computed from.
    layout
        Names the coordinates.
    size
        Losses are reported times this: the total weight of the rows.
    value
        Maps a point [d] and some rows, None for all of them, to a mean over rows.
    l1
        The absolute-value penalty in it, if any.
    smooth
        The objective on all rows without that penalty; None: there is no penalty.
    noise
        The random numbers in it, if any.
    draws
        The number of draws of these that one step averages over.
    better_start
        Maps a start to one that is nearer to the optimum, if there is such a function.
    """

    target: Density
    layout: Coordinates
    size: float
    value: Value
    l1: L1Penalty | None = None
    smooth: Callable[[Tensor], Tensor] | None = None
    noise: NoiseRecord | None = None
    draws: int = 1
    better_start: Callable[[Tensor], Tensor] | None = None

    @property
    def problem(self) -> Problem:
        """The program bound to its data."""
        return self.target.problem

    def __call__(self, x: Tensor, batch: Batch | None = None) -> Tensor:
        """Return the objective at a point [d], on some rows or all of them."""
        return self.value(x, batch)

    def improved(self, start: Tensor) -> Tensor:
        """Return a start [d] that is nearer to the optimum, if one is known."""
        return start if self.better_start is None else self.better_start(start)

    def at_each(self, points: Tensor) -> Tensor:
        """Return the values [n] at points [n, d], one by one."""
        with torch.no_grad():
            return torch.stack([self(x) for x in points])


def point_objective(target: TargetDensity, layout: Coordinates) -> Objective:
    """Return the negative log density per row, whose minimum is a point fit."""
    problem, size = target.problem, target.problem.information

    def value(x: Tensor, batch: Batch | None = None) -> Tensor:
        return -target.at(x, layout, batch) / size

    penalties = {
        s.name: s.l1
        for s in problem.latents
        if s.l1 is not None
        and s.name not in layout.held
        and target.prior_weights.get(s.name, 1.0) > 0
    }
    if not penalties:
        return Objective(target, layout, size, value)
    centers, weights, constant = [], [], 0.0
    for entry, length in zip(layout.entries, layout.sizes, strict=True):
        center = torch.zeros(length, dtype=problem.dtype)
        weight = torch.zeros(length, dtype=problem.dtype)
        if entry.name in penalties:
            location, scale = penalties[entry.name]
            factor = target.prior_weights.get(entry.name, 1.0)
            center = location.reshape(-1).clone()
            weight = factor / scale.reshape(-1) / size
            constant += factor * float(torch.log(2 * scale).sum()) / size
        centers.append(center)
        weights.append(weight)
    dropped = {**target.prior_weights, **dict.fromkeys(penalties, 0.0)}
    rest = replace(target, prior_weights=dropped)

    def smooth(x: Tensor) -> Tensor:
        return constant - rest.at(x, layout) / size

    l1 = L1Penalty(torch.cat(centers), torch.cat(weights))
    return Objective(target, layout, size, value, l1, smooth)


def with_own_noise(objective: Objective, x: Tensor, run: Run) -> Objective:
    """Return the objective with the program's random numbers, as in dropout, if any.

    Parameters
    ----------
    objective
        The objective of a point fit.
    x
        A point [d] at which it is finite.
    run
        The size of a batch.
    """
    batch = example_of(objective.problem, run)
    try:
        with torch.no_grad():
            noise = record(lambda: objective(x, batch))
    except LinAlgError:  # the search will report that it cannot start here
        return objective
    some = noise.requests or not noise.replayable
    return replace(objective, noise=noise) if some else objective


def example_of(problem: Problem, run: Run) -> Batch:
    """Return rows of the same shape as in every step."""
    if run.batch_size is None:
        return problem.batch()
    return problem.rows_at(torch.arange(run.batch_size, device="cpu"))
