"""Names the sites that the status of a fit refers to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.engine.ending import Ending
from probsl.program.scoring import Scoring
from probsl.program.sites import Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from probsl.engine.minimize.minimize import Minimum
    from probsl.methods.objective import Objective
    from probsl.program.coordinates import Coordinates
    from probsl.program.problem import Problem


# A status names up to this many elements one by one.
_NAMED_ELEMENTS = 8
# Curvature, in nats per unit of a coordinate squared, of those that may be at an edge.
_FAINT = 1e-6
# Differences of objectives that are rounding errors, relative to their size.
_LEVEL = 1e-11


def broken_sites(
    problem: Problem, values: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Name the sites whose log density is not finite at some values.

    Parameters
    ----------
    problem
        The program bound to its data.
    values, own
        As in `Problem.log_density`.
    """
    names = {s.name for s in problem.sites}
    try:
        with torch.no_grad():
            terms = problem.log_density_by_site(values, own, names)
    except (ValueError, RuntimeError):  # a matrix that cannot be factorized
        return _unscored_site(problem, values, own)
    return tuple(n for n, (term, _) in terms.items() if not term.isfinite().all())


def _unscored_site(
    problem: Problem, values: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Name the site whose distribution or log density raises an error in a run."""
    scoring = Scoring(values)
    try:
        with torch.no_grad(), scoring:
            problem.run(own, problem.batch().arguments)
    except (ValueError, RuntimeError):
        scored = {n for n, m in scoring.messages.items() if "log_prob" in m}
        kinds = (Role.DETERMINISTIC, Role.ENUMERATED)
        named = (s.name for s in problem.sites if s.role not in kinds)
        return tuple(n for n in named if n not in scored)[:1]
    return ()


def named_coordinates(
    layout: Coordinates, coordinates: Sequence[int]
) -> tuple[str, ...]:
    """Name single elements if they are few, else the sites that contain them."""
    labels = layout.labels()
    elements = tuple(dict.fromkeys(labels[i] for i in coordinates))
    if len(elements) <= _NAMED_ELEMENTS:
        return elements
    sites = [
        e.name
        for e, s in zip(layout.entries, layout.sizes, strict=True)
        for _ in range(s)
    ]
    return tuple(dict.fromkeys(sites[i] for i in coordinates))


def _at_boundary(minimum: Minimum, layout: Coordinates) -> bool:
    """Whether all diverging coordinates tend to a boundary at a finite density."""
    if not minimum.flattening:
        return False
    offset = 0
    for entry, size in zip(layout.entries, layout.sizes, strict=True):
        mine = [i - offset for i in minimum.coordinates if offset <= i < offset + size]
        part = minimum.x[offset : offset + size].detach()
        offset += size
        if mine and not _toward_edge(entry.transform, entry.flat_shape, part, mine):
            return False
    return True


def edge_coordinates(objective: Objective, minimum: Minimum) -> list[int]:
    """Return the coordinates of an end that are at the edge of a support.

    Near it the objective is that at the edge plus a power of the distance. On the log
    scale of the distance this looks like an optimum, because all derivatives vanish
    together, or no step gains anything beyond rounding errors; but moving on to the
    edge makes nothing worse.

    Parameters
    ----------
    objective
        The objective.
    minimum
        Where the search ended.
    """
    layout, x = objective.layout, minimum.x.detach()
    faint = torch.ones_like(x, dtype=torch.bool)
    if minimum.ending is Ending.CONVERGED:
        if minimum.hessian is None:
            return []
        faint = minimum.hessian.diagonal().abs() * objective.size < _FAINT
    limit = minimum.value + _LEVEL * max(1.0, abs(minimum.value))
    found, offset = [], 0
    for entry, size in zip(layout.entries, layout.sizes, strict=True):
        part = x[offset : offset + size]
        for place in range(size):
            moved = x.clone()
            moved[offset + place] += 40 * part[place].sign()
            if (
                faint[offset + place]
                and _toward_edge(entry.transform, entry.flat_shape, part, [place])
                and float(objective.at_each(moved[None])[0]) <= limit
            ):
                found.append(offset + place)
        offset += size
    return found


def _toward_edge(
    transform: Any, shape: torch.Size, part: Tensor, running: list[int]
) -> bool:
    """Whether the constrained value has a finite limit as coordinates diverge."""
    near, far = part.clone(), part.clone()
    near[running] += 20 * part[running].sign()
    far[running] += 40 * part[running].sign()
    here, there, yonder = (transform(p.reshape(shape)) for p in (part, near, far))
    still = (yonder - there).abs() <= 1e-3 * (there - here).abs()
    still |= torch.isclose(here, yonder, rtol=0, atol=1e-3)
    return bool(still.all()) and not torch.equal(part, here.reshape(-1)[: len(part)])
