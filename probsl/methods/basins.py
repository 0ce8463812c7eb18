"""Many starts of one search: the basins they converge to, and the best of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import vmap

from probsl.contract import Basin, Status
from probsl.engine.minimize.many import minimize_many, vectorizes
from probsl.engine.minimize.search_options import SearchOptions
from probsl.methods.search import Found, search_exactly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from probsl.engine.minimize.minimum import Minima
    from probsl.methods.objective import Objective
    from probsl.methods.optimizers import DeterministicOptimizer
    from probsl.methods.progress import Callback

# Points on the line between two optima at which a barrier is searched for.
_ON_THE_WAY = (0.1, 0.5, 0.9)
# Optima whose values differ by more are distinct; a barrier is higher than rounding
# and than the remaining gain of the descent.
LEVEL, _HILL = 1e-5, 2e-8
# This many times the machine precision is not a barrier.
_ROUNDING = 20
# With many coordinates, this many times its tolerance remains where a descent stops.
_LEFT = 10
# Starts slower than the half that has converged get this many times its rounds, and
# up to this many of those that could still win are followed to convergence.
_PATIENCE, _FOLLOWED = 1.5, 4
_LISTED = 5
ONE_BY_ONE = (
    "the objective cannot be evaluated at many points at once, so the starts were "
    "searched one after another"
)


KINKED = "the objective has kinks, so the starts were followed one after another"


@dataclass(frozen=True)
class Several:
    """The result of several starts: the best one, and all of them by basin.

    Attributes
    ----------
    best
        The best result.
    steps
        Steps in total: those of all starts together, and those of single searches.
    basins
        The basins, the lowest objective first.
    note
        The result, in a sentence.
    """

    best: Found
    steps: int
    basins: tuple[Basin, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class _Group:
    """Results in one basin, its representative first."""

    members: list[int]
    value: float
    settled: bool
    found: Found | None = None


def preference(found: Found) -> tuple[bool, bool, float]:
    """Return a sort key that is smallest for the best result.

    A diverged start may show a lower objective, but it is not a solution.
    """
    failed = found.status is not Status.CONVERGED
    return failed, math.isnan(found.value), found.value


def search_together(
    objective: Objective,
    starts: Tensor,
    optimizer: DeterministicOptimizer,
    *,
    tolerance: float | None,
    max_steps: int | None,
    callback: Callback,
) -> Several | None:
    """Search from all starts at once; finish and judge the best ends one by one.

    Parameters
    ----------
    objective
        The objective, on all rows.
    starts
        The starts [k, d].
    optimizer, tolerance, max_steps, callback
        As in `probsl.methods.search.search_exactly`.

    Returns
    -------
    Several or None
        None if the objective cannot be vectorized.
    """
    smooth, l1, size = objective.smooth or objective, objective.l1, objective.size
    if not vectorizes(smooth, starts):
        return None
    many = minimize_many(
        smooth,
        starts,
        options=SearchOptions(max_steps=max_steps or 1000),
        patience=_PATIENCE,
        l1=l1,
        callback=callback,
    )
    if many.interrupted:
        finite = many.values.nan_to_num(math.inf, math.inf, math.inf)
        best = _ended(many, int(finite.argmin()), Status.INTERRUPTED, size)
        return Several(best, len(many.losses) - 1)

    def heights(x: Tensor) -> Tensor:
        with torch.no_grad():
            values = vmap(smooth, chunk_size=4 * len(starts))(x)
        return values if l1 is None else values + l1.value(x)

    steps = len(many.losses) - 1

    def finish(index: int) -> Found:
        nonlocal steps
        before = steps
        rounds = int(many.steps[index])
        found = search_exactly(
            objective,
            starts[index],
            optimizer,
            tolerance=tolerance,
            max_steps=max_steps and max(1, max_steps - rounds),
            known_point=many.x[index],
            callback=lambda step, loss, x: callback(before + step, loss, x),
        )
        steps += found.steps
        way = many.losses[: rounds + 1, index].double().cpu() * size
        return replace(found, losses=torch.cat([way, found.losses[1:]]))

    groups = _grouped(many.x, many.values, many.converged, heights)
    groups = _finished(groups, size, finish)
    kinked = any(g.found is not None and g.found.kinked for g in groups)
    if kinked:
        groups = _followed(groups, size, finish)
    groups = _merged(groups, many.x, heights)
    done = [g.found for g in groups if g.found is not None]
    if not done:  # no start was finite: the search reports why
        return Several(finish(0), steps)
    best = min(done, key=preference)
    if any(found.status is Status.INTERRUPTED for found in done):
        return Several(replace(best, status=Status.INTERRUPTED, sites=()), steps)
    basins, note = _reported(groups, many.x, objective, len(starts))
    return Several(best, steps, basins, f"{note}; {KINKED}" if kinked else note)


def search_in_turn(
    search: Callable[[Tensor], Found],
    starts: Sequence[Tensor],
    objective: Objective,
    *,
    exact: bool,
) -> Several:
    """Search from one start after another.

    Parameters
    ----------
    search
        Maps a start to the result of its search.
    starts
        The starts, [d] each.
    objective
        The objective.
    exact
        Whether the results are exact enough to be grouped by basin.
    """
    found: list[Found] = []
    for start in starts:
        found.append(search(start))
        if found[-1].status is Status.INTERRUPTED:
            break
    best = min(found, key=preference)
    steps = sum(f.steps for f in found)
    if found[-1].status is Status.INTERRUPTED:
        return Several(replace(best, status=Status.INTERRUPTED, sites=()), steps)
    if not exact or len(found) == 1:
        return Several(best, steps)
    x = torch.stack([f.x.detach() for f in found])
    values = x.new_tensor([f.value / objective.size for f in found])
    groups = _grouped(x, values, values.isfinite(), objective.at_each)
    groups = [replace(g, found=found[g.members[0]]) for g in groups]
    groups = _merged(groups, x, objective.at_each)
    return Several(best, steps, *_reported(groups, x, objective, len(starts)))


def _ended(many: Minima, index: int, status: Status, size: float) -> Found:
    way = many.losses[: int(many.steps[index]) + 1, index].double().cpu() * size
    return Found(many.x[index], status, (), way, len(many.losses) - 1)


def _grouped(
    x: Tensor,
    values: Tensor,
    settled: Tensor,
    heights: Callable[[Tensor], Tensor],
) -> list[_Group]:
    """Split optima into basins: equal values, and no barrier between them.

    Both are needed. Points of equal value are in two basins if labels are switched, and
    in one if a direction is free.
    """
    tolerance = torch.finfo(x.dtype).eps ** 0.75
    values, settled = values.cpu(), settled.cpu()  # read one by one
    order = sorted(
        (i for i in range(len(x)) if math.isfinite(values[i])),
        key=lambda i: (not settled[i], float(values[i])),
    )
    groups: list[_Group] = []
    while order:
        first, *rest = order
        value = float(values[first])
        level = max(LEVEL, _LEFT * tolerance) * max(1.0, abs(value))
        near = [i for i in rest if abs(float(values[i]) - value) <= level]
        near += [i for i in rest if not settled[i] and i not in near]
        near = [i for i in near if float(values[i]) >= value - level]
        members = [first]
        if near:
            joined = _without_hill(x[first], value, x[near], values[near], heights)
            members += [i for i, same in zip(near, joined, strict=True) if same]
        # The default start comes first, and represents equally good ones.
        equal = [i for i in members if settled[i] or i == first]
        others = sorted(set(members) - {min(equal)})
        groups.append(_Group([min(equal), *others], value, bool(settled[first])))
        order = [i for i in rest if i not in members]
    return groups


def _finished(
    groups: list[_Group], size: float, finish: Callable[[int], Found]
) -> list[_Group]:
    """Finish basins, the best first, until none of the others can be the optimum."""
    result: list[_Group] = []
    best, followed = math.inf, 0
    free: list[_Group] = []
    for group in groups:
        wanted = best == math.inf if group.settled else group.value < best
        if not group.settled:
            wanted = wanted and followed < _FOLLOWED
            followed += wanted
        wanted = wanted and not any(_level(group, other) for other in free)
        if not wanted:
            result.append(group)
            continue
        found = finish(group.members[0])
        result.append(replace(group, found=found, value=found.value / size))
        if found.status is Status.INTERRUPTED:
            break
        if found.status is Status.CONVERGED:
            best = min(best, result[-1].value)
        if found.status is Status.UNIDENTIFIED:
            free.append(result[-1])  # equally low ones will be joined to it
    return result


def _followed(
    groups: Iterable[_Group], size: float, finish: Callable[[int], Found]
) -> list[_Group]:
    """Follow every result: those on kinks are stalled searches, not basins."""
    result: list[_Group] = []
    stopped = False
    for group in groups:
        found = group.found
        if found is None and not stopped:
            found = finish(group.members[0])
            group = replace(group, found=found, value=found.value / size)  # noqa: PLW2901
        stopped |= found is not None and found.status is Status.INTERRUPTED
        result.append(group)
    return result


def _level(one: _Group, other: _Group) -> bool:
    return abs(one.value - other.value) <= LEVEL * max(1.0, abs(other.value))


def _without_hill(
    one: Tensor,
    height: float,
    others: Tensor,
    values: Tensor,
    heights: Callable[[Tensor], Tensor],
) -> list[bool]:
    """Whether there is no barrier between one optimum [d] and each other one [n, d]."""
    t = one.new_tensor(_ON_THE_WAY)[:, None, None]
    way = one + t * (others - one)
    high = heights(way.reshape(-1, len(one))).reshape(len(t), -1).cpu()
    rise = max(_HILL, _ROUNDING * torch.finfo(one.dtype).eps) * max(1.0, abs(height))
    return (high <= values.clamp(min=height) + rise).all(0).tolist()


def _merged(
    groups: Iterable[_Group], x: Tensor, heights: Callable[[Tensor], Tensor]
) -> list[_Group]:
    """Join basins that converged to the same optimum.

    Equally low ones join one with a free direction, which need not be straight.
    """
    kept: list[_Group] = []

    def end(group: _Group) -> Tensor:
        return x[group.members[0]] if group.found is None else group.found.x.detach()

    def one(group: _Group, other: _Group) -> bool:
        if not _level(group, other):
            return False
        statuses = {g.found.status for g in (group, other) if g.found is not None}
        value = torch.tensor([group.value], dtype=x.dtype, device="cpu")
        return Status.UNIDENTIFIED in statuses or all(
            _without_hill(end(other), other.value, end(group)[None], value, heights)
        )

    # Optima that were followed to convergence represent those that were not.
    for group in sorted(groups, key=lambda g: g.found is None):
        same = next((k for k in kept if one(group, k)), None)
        if same is None:
            kept.append(group)
        else:
            members = [*same.members, *group.members]
            kept[kept.index(same)] = replace(same, members=members)
    return kept


def _reported(
    groups: Iterable[_Group], x: Tensor, objective: Objective, count: int
) -> tuple[tuple[Basin, ...], str]:
    """Return the basins, and a sentence about them."""
    basins, given_up = [], 0
    for group in groups:
        found = group.found
        if found is None and not group.settled:
            given_up += len(group.members)
            continue
        value = group.value * objective.size if found is None else found.value
        at = x[group.members[0]] if found is None else found.x.detach()
        status = None if found is None else found.status
        values = objective.layout.constrain(at)
        basins.append(Basin(value, len(group.members), values, status))
    # Of several equal to the displayed digits, the solution comes first.
    basins.sort(key=lambda b: (float(f"{b.value:.6g}"), b.status is None))
    shown = [_described(b, first=i == 0) for i, b in enumerate(basins[:_LISTED])]
    if len(basins) > _LISTED:
        shown.append(f"and {len(basins) - _LISTED} more")
    noun = "basin" if len(basins) == 1 else "basins"
    note = f"{count} starts found {len(basins)} {noun}: objective " + ", ".join(shown)
    if given_up:
        noun = "start" if given_up == 1 else "starts"
        note += (
            f"; {given_up} {noun} converged slowly to no better value and were stopped"
        )
    lost = count - given_up - sum(b.count for b in basins)
    if lost:
        note += f"; {lost} ended where the objective is not finite"
    return tuple(basins), note


def _described(basin: Basin, *, first: bool) -> str:
    noun = (" start" if basin.count == 1 else " starts") if first else ""
    failed = basin.status not in (None, Status.CONVERGED)
    ending = f", {basin.status.name}" if failed and basin.status else ""
    return f"{basin.value:.6g} ({basin.count}{noun}{ending})"
