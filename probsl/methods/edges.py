"""Optima at the edge of an observed support that moves with the latents.

Where a search ends because the density ends, the edge is approached from inside: the
objective with a barrier, minus a small weight times the logarithms of the distances of
all observed values from the edge, is minimized for ever smaller weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.contract import Status
from probsl.engine.minimize.minimize import minimize
from probsl.methods.endings import named_coordinates
from probsl.methods.search import Found, search_exactly

if TYPE_CHECKING:
    from probsl.methods.point_objective import PointObjective
    from probsl.methods.progress import Callback
    from probsl.program.observed_supports import Edge

__all__ = ["approach_edge"]

# Weights of the barrier, in nats for each unit of a distance's logarithm.
_WEIGHTS = tuple(10.0**-k for k in range(1, 12, 2))
# A log density that grows by more nats from one hundredth of a distance to the next
# grows without limit; toward a finite one the growth is that of the weight.
_GROWTH = 1e-2
_SMALL = 1e-5
# Ends of a search that an edge may lie behind.
_DOUBTFUL = (Status.STALLED, Status.NONFINITE, Status.UNBOUNDED, Status.BOUNDARY)
_SHARE = 1e-6


@dataclass(frozen=True, eq=False)
class _Stage:
    """The end of the search with one weight of the barrier."""

    x: Tensor
    value: float
    near: float
    weight: float


def approach_edge(
    objective: PointObjective, found: Found, start: Tensor, callback: Callback
) -> Found:
    """Return where a search ends that may have run into the edge of a support.

    Parameters
    ----------
    objective
        What was minimized.
    found
        Where the search ended.
    start
        Where it began.
    callback
        As in `probsl.methods.search.search_exactly`.

    Returns
    -------
    Found
        The optimum at the edge, with the latents and the observed site that meet there:
        BOUNDARY, or UNBOUNDED if the density has no limit at it. The search's own end
        if there is no edge behind it.

    References
    ----------
    Nocedal and Wright (2006), "Numerical Optimization", section 19.6.
    """
    if not objective.problem.moving or found.status not in _DOUBTFUL:
        return found
    approach = _Approach(objective, callback, found.steps)
    x = approach.inside(found.x.detach(), start)
    if x is None:
        return found
    stages = approach.stages(x)
    if not stages:
        return replace(found, status=approach.status) if approach.stopped else found
    last = stages[-1]
    if not approach.at_edge(stages):
        return approach.finished(last, found)
    names = approach.names(last.x)
    sharp = approach.is_sharp(stages)
    x = last.x if sharp else approach.polished(last.x)
    value = float(objective(x).detach()) * objective.size
    losses = torch.cat([found.losses, found.losses.new_tensor([value])])
    site = names[-1]
    return Found(
        x=x,
        status=Status.UNBOUNDED if sharp else Status.BOUNDARY,
        sites=names,
        losses=losses,
        steps=approach.steps,
        reason=f"the support of '{site}' ends at observed values",
    )


class _Approach:
    """The way to the edge of an observed support."""

    def __init__(
        self, objective: PointObjective, callback: Callback, steps: int
    ) -> None:
        self._whole = objective
        self._smooth, self._l1 = objective.without_l1()
        self._callback = callback
        self.steps = steps
        self.stopped = False
        self.status = Status.INTERRUPTED
        # So many units in the last place are what distances can be told apart by.
        precision = torch.finfo(objective.problem.dtype).eps
        self._reach = 2 * precision**-0.25

    def inside(self, end: Tensor, start: Tensor) -> Tensor | None:
        """Return a point well inside, as near to the end of the search as may be."""
        for share in (0.99, 0.9, 0.5, 0.0):
            x = start + share * (end - start)
            if math.isfinite(self._barrier(x, 1.0)):
                return x
        return None

    def stages(self, x: Tensor) -> list[_Stage]:
        """Follow the minima of ever smaller barriers, until rounding hides the rest."""
        stages: list[_Stage] = []
        for weight in _WEIGHTS:
            found = search_exactly(
                partial(self._objective, weight),
                x,
                self._whole.layout,
                self._whole.size,
                tolerance=None,
                max_steps=None,
                l1=self._l1,
                idle="ignore",
                callback=self._callback,
            )
            self.steps += found.steps
            if found.status is Status.INTERRUPTED:
                self.stopped = True
                return []
            x = found.x.detach()
            value = float(self._whole(x).detach()) * self._whole.size
            if not math.isfinite(value):
                break
            stages.append(_Stage(x, value, self._nearest(x), weight))
            lost = found.status in (Status.UNBOUNDED, Status.NONFINITE)
            if lost or stages[-1].near < self._reach:
                break
        return stages

    def at_edge(self, stages: list[_Stage]) -> bool:
        """Whether the distance from the edge goes to zero with the barrier."""
        near = [stage.near for stage in stages]
        return near[-1] < self._reach or (len(near) > 1 and near[-1] < near[-2] / 10)

    def is_sharp(self, stages: list[_Stage]) -> bool:
        """Whether the density grows without limit toward the edge.

        Then a barrier that is not small holds nothing back, or the last steps toward
        the edge are worth more than the barrier's weight.
        """
        *_, before, last = [stages[0], *stages]
        if last.weight > _SMALL:
            return bool(last.near < self._reach)
        return before.value - last.value > _GROWTH + 1e3 * last.weight

    def finished(self, last: _Stage, found: Found) -> Found:
        """Return the end of a search without a barrier, begun well inside."""
        again = search_exactly(
            self._smooth,
            last.x,
            self._whole.layout,
            self._whole.size,
            tolerance=None,
            max_steps=None,
            l1=self._l1,
            callback=self._callback,
        )
        if again.status is not Status.CONVERGED or again.value > found.value:
            return found
        return replace(again, steps=self.steps + again.steps)

    def polished(self, x: Tensor) -> Tensor:
        """Return the point with the coordinates that no edge depends on at their best.

        The others stay as they are, next to the edge.
        """
        free = ~self._holding(x)
        if self._l1 is not None or not bool(free.any()):
            return x

        def restricted(part: Tensor) -> Tensor:
            return self._smooth(x.masked_scatter(free, part))

        minimum = minimize(restricted, x[free])
        better = x.masked_scatter(free, minimum.x)
        return better if minimum.value <= float(self._smooth(x).detach()) else x

    def names(self, x: Tensor) -> tuple[str, ...]:
        """Name the coordinates that hold the edge at observed values, and the sites."""
        coordinates = self._holding(x).nonzero().flatten().tolist()
        sites = dict.fromkeys(edge.site for edge in self._touching(x))
        return (*named_coordinates(self._whole.layout, coordinates), *sites)

    def _edges(self, x: Tensor) -> list[Edge]:
        values = self._whole.layout.constrain(x)
        return self._whole.problem.edges(values, values)

    def _objective(self, weight: float, x: Tensor) -> Tensor:
        logs = [edge.distance.log().sum() for edge in self._edges(x)]
        barrier = torch.stack(logs).sum() if logs else x.new_zeros(())
        return self._smooth(x) - weight * barrier / self._whole.size

    def _barrier(self, x: Tensor, weight: float) -> float:
        x = x.detach().requires_grad_()
        return float(self._objective(weight, x).detach())

    def _nearest(self, x: Tensor) -> float:
        """Return the least distance from an edge, in units of the last place."""
        x = x.detach().requires_grad_()
        least = [edge.places().detach().min() for edge in self._edges(x)]
        return float(torch.stack(least).min()) if least else math.inf

    def _touching(self, x: Tensor) -> list[Edge]:
        """Return the edges that observed values are next to, with those values only."""
        x = x if x.requires_grad else x.detach().requires_grad_()
        edges = self._edges(x)
        least = min(float(edge.places().detach().min()) for edge in edges)
        limit = max(100 * least, self._reach)
        near = [(edge, edge.places().detach() <= limit) for edge in edges]
        return [replace(e, distance=e.distance[n]) for e, n in near if bool(n.any())]

    def _holding(self, x: Tensor) -> Tensor:
        """Return which coordinates [d] the edges at observed values depend on."""
        x = x.detach().requires_grad_()
        slopes = [
            torch.autograd.grad(
                edge.distance.sum(), x, retain_graph=True, materialize_grads=True
            )[0].abs()
            for edge in self._touching(x)
        ]
        largest = torch.stack(slopes).amax(0)  # slopes of two edges may cancel
        return largest > _SHARE * largest.max()
