"""Searches from other starts, before a search is reported as failed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from probsl.contract import Status
from probsl.methods.basins import LEVEL, Several

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from probsl.methods.search import Found

__all__ = ["OTHERS", "look_elsewhere"]

# Maximum number of other starts; fewer if this many of them confirm the first.
OTHERS, CONFIRMED = 4, 2
# Further searches start until all took twice the first one's steps, or this many.
_STEPS = 200
_DOUBTFUL = (Status.UNBOUNDED, Status.BOUNDARY, Status.UNIDENTIFIED, Status.STALLED)


def look_elsewhere(
    found: Found,
    starts: Iterable[Tensor],
    search: Callable[[Tensor], Found],
    size: float,
) -> Several:
    """Search from other starts if the first search did not find an optimum.

    One component of a mixture may have diverged, a hinge may have left the range of the
    data; that is a failure of this search, not of the program. If all searches agree,
    it is one of the program; if the objective is unbounded below, one search is enough.

    Parameters
    ----------
    found
        The result of the first search.
    starts
        The starts of further ones.
    search
        Maps a start to the result of its search.
    size
        The number of rows.
    """
    falls = found.status is Status.UNBOUNDED and not found.flattening
    starts = [] if falls or found.status not in _DOUBTFUL else list(starts)
    if found.redundant is not None and all(map(found.redundant, starts)):
        starts = []
    best, confirmed, tried, steps = found, 0, 1, 0
    for start in starts:
        other = search(start)
        tried += 1
        steps += other.steps
        if other.status is Status.INTERRUPTED:
            best = replace(best, status=Status.INTERRUPTED, sites=())
            break
        if _lower(other, best, size):
            best, confirmed = other, 0
        elif other.status is best.status and not _lower(best, other, size):
            confirmed += 1
        enough = confirmed >= CONFIRMED or steps > max(2 * found.steps, _STEPS)
        if best.status is Status.CONVERGED or enough:
            break
    if best.x is found.x:
        return Several(best, best.steps)
    more = "another start was" if tried == 2 else f"{tried - 1} other starts were"
    note = (
        f"from the first start the search ended {found.status.name} at "
        f"{found.value:.6g}, so {more} tried"
    )
    return Several(best, best.steps, note=note)


def _lower(one: Found, other: Found, size: float) -> bool:
    """Whether one result is visibly lower than another."""
    if not math.isfinite(one.value):
        return False
    level = LEVEL * max(1.0, abs(other.value / size))
    stalled = other.status is Status.STALLED and one.status is Status.CONVERGED
    return one.value / size < other.value / size + (level if stalled else -level)
