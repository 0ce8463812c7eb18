"""Optima at the boundary of an observed support that depends on the latents.

If a search stops because the density drops to zero, the boundary is approached from
inside: the objective with a log barrier, minus a small weight times the logarithms of
all observed values' distances from it, is minimized for a decreasing weight.
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
    from probsl.methods.objective import Objective
    from probsl.methods.progress import Callback
    from probsl.program.observed_supports import Edge

__all__ = ["approach_edge"]

# Weights of the barrier, in nats per unit of a distance's logarithm.
_WEIGHTS = tuple(10.0**-k for k in range(1, 12, 2))
# A log density that increases by more nats when a distance shrinks a hundredfold is
# unbounded; toward a finite limit it increases only by about the weight.
_GROWTH = 1e-2
_SMALL = 1e-5
# Statuses of a search that may have stopped near a boundary.
_DOUBTFUL = (Status.STALLED, Status.NONFINITE, Status.UNBOUNDED, Status.BOUNDARY)
_SHARE = 1e-6


@dataclass(frozen=True, eq=False)
class _Stage:
    """The result of the search with one barrier weight."""

    x: Tensor
    value: float
    near: float
    weight: float


def approach_edge(
    objective: Objective, found: Found, start: Tensor, callback: Callback
) -> Found:
    """Return the optimum of a search that may have reached a support's boundary.

    Parameters
    ----------
    objective
        The objective that was minimized.
    found
        The result of the search.
    start
        The start of the search.
    callback
        As in `probsl.methods.search.search_exactly`.

    Returns
    -------
    Found
        The optimum at the boundary, with the latents and the observed site involved:
        BOUNDARY, or UNBOUNDED if the density has no limit there. The result of the
        search itself if no boundary was reached.

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
    """The approach to the boundary of an observed support."""

    def __init__(self, objective: Objective, callback: Callback, steps: int) -> None:
        self._whole = objective
        self._smooth = objective.smooth or objective
        self._callback = callback
        self.steps = steps
        self.stopped = False
        self.status = Status.INTERRUPTED
        # Distances can be resolved down to this many units in the last place.
        precision = torch.finfo(objective.problem.dtype).eps
        self._reach = 2 * precision**-0.25

    def inside(self, end: Tensor, start: Tensor) -> Tensor | None:
        """Return a point well inside, as close as possible to the end of the search."""
        for share in (0.99, 0.9, 0.5, 0.0):
            x = start + share * (end - start)
            if math.isfinite(self._barrier(x, 1.0)):
                return x
        return None

    def stages(self, x: Tensor) -> list[_Stage]:
        """Minimize with decreasing barriers, until rounding hides any change."""
        stages: list[_Stage] = []
        for weight in _WEIGHTS:
            barrier = replace(self._whole, smooth=partial(self._objective, weight))
            found = search_exactly(barrier, x, idle="ignore", callback=self._callback)
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
        """Whether the distance from the boundary goes to zero with the barrier."""
        near = [stage.near for stage in stages]
        return near[-1] < self._reach or (len(near) > 1 and near[-1] < near[-2] / 10)

    def is_sharp(self, stages: list[_Stage]) -> bool:
        """Whether the density is unbounded toward the boundary.

        Then a barrier has no effect even if it is not small, or the last steps toward
        the boundary gain more than the barrier's weight.
        """
        *_, before, last = [stages[0], *stages]
        if last.weight > _SMALL:
            return bool(last.near < self._reach)
        return before.value - last.value > _GROWTH + 1e3 * last.weight

    def finished(self, last: _Stage, found: Found) -> Found:
        """Return the result of a search without a barrier, started well inside."""
        again = search_exactly(self._whole, last.x, callback=self._callback)
        if again.status is not Status.CONVERGED or again.value > found.value:
            return found
        return replace(again, steps=self.steps + again.steps)

    def polished(self, x: Tensor) -> Tensor:
        """Return the point, optimized in the coordinates that affect no boundary.

        The others keep their values, next to the boundary.
        """
        free = ~self._holding(x)
        if self._whole.l1 is not None or not bool(free.any()):
            return x

        def restricted(part: Tensor) -> Tensor:
            return self._smooth(x.masked_scatter(free, part))

        minimum = minimize(restricted, x[free])
        better = x.masked_scatter(free, minimum.x)
        return better if minimum.value <= float(self._smooth(x).detach()) else x

    def names(self, x: Tensor) -> tuple[str, ...]:
        """Name the coordinates that move the active boundaries, and their sites."""
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
        """Return the smallest distance from a boundary, in units in the last place."""
        x = x.detach().requires_grad_()
        least = [edge.places().detach().min() for edge in self._edges(x)]
        return float(torch.stack(least).min()) if least else math.inf

    def _touching(self, x: Tensor) -> list[Edge]:
        """Return the active boundaries, with only the values next to them."""
        x = x if x.requires_grad else x.detach().requires_grad_()
        edges = self._edges(x)
        least = min(float(edge.places().detach().min()) for edge in edges)
        limit = max(100 * least, self._reach)
        near = [(edge, edge.places().detach() <= limit) for edge in edges]
        return [replace(e, distance=e.distance[n]) for e, n in near if bool(n.any())]

    def _holding(self, x: Tensor) -> Tensor:
        """Return the coordinates [d] on which the active boundaries depend."""
        x = x.detach().requires_grad_()
        gradients = [
            torch.autograd.grad(
                edge.distance.sum(), x, retain_graph=True, materialize_grads=True
            )[0].abs()
            for edge in self._touching(x)
        ]
        # The largest, because gradients of two boundaries may cancel.
        largest = torch.stack(gradients).amax(0)
        return largest > _SHARE * largest.max()
