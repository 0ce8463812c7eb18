"""Runs one search for the optimum, and describes its result in terms of sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from probsl.contract import Status
from probsl.engine.ending import Ending
from probsl.engine.minimize.free_directions import level_at
from probsl.methods.endings import (
    _at_boundary,
    edge_coordinates,
    named_coordinates,
)
from probsl.methods.optimizers import (
    NEWTON_LIMIT,
    DeterministicOptimizer,
    default_optimizer,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from probsl.engine.minimize.minimum import Minimum
    from probsl.engine.steps.remainder import Remainder
    from probsl.methods.objective import Objective
    from probsl.methods.progress import Callback


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
    objective: Objective,
    start: Tensor,
    optimizer: DeterministicOptimizer | None = None,
    *,
    tolerance: float | None = None,
    max_steps: int | None = None,
    idle: Literal["ignore", "report"] = "report",
    known_point: Tensor | None = None,
    callback: Callback | None = None,
) -> Found:
    """Minimize an objective without noise, and report the status in terms of sites.

    Parameters
    ----------
    objective
        The objective, on all rows.
    start
        The start of the search [d].
    optimizer
        How to minimize it; None chooses by the number of dimensions.
    tolerance, max_steps, idle, known_point, callback
        As in `probsl.engine.minimize.minimize.minimize`.
    """
    optimizer = optimizer or default_optimizer(len(start))
    layout = objective.layout
    minimum = optimizer.minimize(
        objective,
        start,
        tolerance=tolerance,
        max_steps=max_steps or (1000 if len(start) <= NEWTON_LIMIT else 5000),
        idle=idle,
        known_point=known_point,
        callback=callback,
    )
    status = Status[minimum.ending.name]
    coordinates = minimum.coordinates
    if status is Status.UNBOUNDED and _at_boundary(minimum, layout):
        status = Status.BOUNDARY
    if status in (Status.CONVERGED, Status.STALLED):
        at_edge = edge_coordinates(objective, minimum)
        if at_edge:
            status, coordinates = Status.BOUNDARY, tuple(at_edge)
    losses = torch.tensor(minimum.losses, dtype=torch.float64, device="cpu")

    def redundant(x: Tensor) -> bool:
        return level_at(objective.smooth or objective, x, minimum)

    without_hessian = minimum.hessian is None and optimizer.uses_hessians
    return Found(
        minimum.x,
        status,
        named_coordinates(layout, coordinates),
        losses * objective.size,
        minimum.steps,
        minimum.flattening,
        kinked=without_hessian and status is Status.CONVERGED,
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
