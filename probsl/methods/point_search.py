"""Searches for a point fit: from one start or several, by the optimizer asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from probsl.contract import Outcome, Posterior, Run, Status
from probsl.curvature.marginal_density import MarginalDensity
from probsl.methods.basins import ONE_BY_ONE, Several, search_in_turn, search_together
from probsl.methods.edges import approach_edge
from probsl.methods.endings import broken_sites
from probsl.methods.marginal_posterior import MarginalPosterior
from probsl.methods.noisy_search import search_noisily
from probsl.methods.objective import Objective, example_of, with_own_noise
from probsl.methods.optimizers import (
    NEWTON_LIMIT,
    DeterministicOptimizer,
    default_optimizer,
)
from probsl.methods.point_posterior import PointPosterior
from probsl.methods.progress import watching
from probsl.methods.search import Found, search_exactly
from probsl.methods.second_look import OTHERS, look_elsewhere
from probsl.methods.starts import feasible_start
from probsl.noise.streams import stream
from probsl.program.sites import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from probsl.methods.laplace_approximation import LaplaceApproximation
    from probsl.methods.point import MAP, MLE
    from probsl.program.problem import Problem

    PointMethod: TypeAlias = MLE | MAP | LaplaceApproximation

# Up to this many coordinates L-BFGS is much faster than first-order steps, and the
# thirty vectors that it stores fit easily in memory.
_EXACT_LIMIT = 100_000
# Maximum of coordinates times starts searched together, for the same reason.
_TOGETHER = 1_000_000


def search_point(objective: Objective, method: PointMethod, run: Run) -> Outcome:
    """Minimize an objective by the options of a method."""
    several = _search_all(objective, method, run)
    best = several.best
    values = objective.layout.constrain(best.x.detach())
    own = {p.name: values.pop(p.name) for p in objective.problem.own_parameters}
    sites = best.sites
    if best.status is Status.NONFINITE:
        known = {**objective.problem.feasible_values(), **values}
        sites = broken_sites(objective.problem, known, own) or sites
    point = PointPosterior(values, own, objective, best.status, tuple(sites))
    posterior: Posterior = point
    if isinstance(objective.target, MarginalDensity):
        posterior = MarginalPosterior(point, objective.target)
    return Outcome(
        posterior=posterior,
        status=best.status,
        sites=sites,
        losses=best.losses,
        steps=several.steps,
        note="; ".join(filter(None, [several.note, best.remark, best.reason])),
        basins=several.basins,
        compiled_from=best.compiled_from,
    )


def _refuse_parts(problem: Problem, integrated: tuple[str, ...], run: Run) -> None:
    """Refuse what the integral over random effects is not defined for."""
    names = ", ".join(f"'{name}'" for name in integrated)
    if run.batch_size is not None:
        raise ValueError(
            f"the random effects {names} are integrated out of all rows at once, so "
            "rows cannot come in batches; leave out batch_size=, or use SVI"
        )
    local = [s.name for s in problem.latents if problem.is_local(s)]
    inside = [name for name in integrated if name in local]
    if inside and problem.weights is not None:
        raise ValueError(
            f"site '{inside[0]}' has one effect per row, which is integrated out, so "
            "weights= of the rows have no meaning for it; repeat the rows instead"
        )
    for site in problem.sites:
        if site.moving or (site.role is Role.OBSERVED and site.kinked):
            why = "has a kink" if site.kinked else "depends on latents in its support"
            raise ValueError(
                f"the random effects {names} are integrated out by a Normal "
                f"approximation at their mode, and the log density of '{site.name}' "
                f"{why}, so it has none; use SVI"
            )


def _search_all(objective: Objective, method: PointMethod, run: Run) -> Several:
    problem, size = objective.problem, objective.layout.size
    if objective.target.integrated:
        _refuse_parts(problem, objective.target.integrated, run)
    first = feasible_start(objective, method.start, run.seed, example_of(problem, run))
    if method.start is None:
        first = objective.improved(first)
    starts = [first, *_further_starts(objective, run, method.starts - 1)]
    objective = with_own_noise(objective, first, run)
    optimizer = _optimizer(objective, method, run)
    together = len(starts) > 1 and len(starts) * size <= _TOGETHER
    if optimizer is not None and together and not problem.moving:
        with watching(run, objective.size, method.max_steps) as callback:
            several = search_together(
                objective,
                torch.stack(starts),
                optimizer,
                tolerance=method.tolerance,
                max_steps=method.max_steps,
                callback=callback,
            )
        if several is not None:
            return several

    def search(start: Tensor) -> Found:
        if optimizer is None:
            return search_noisily(objective, start, method, run)
        return _search(objective, start, optimizer, method, run)

    if optimizer is not None and len(starts) == 1:
        found = search(first)
        others = _further_starts(objective, run, OTHERS)
        at_edge = bool(problem.moving) and found.status is Status.BOUNDARY
        if size > NEWTON_LIMIT or at_edge:
            return Several(found, found.steps)
        return look_elsewhere(found, others, search, objective.size)
    several = search_in_turn(search, starts, objective, exact=optimizer is not None)
    if not several.note:
        return several
    return replace(several, note=f"{several.note}; {ONE_BY_ONE}")


def _optimizer(
    objective: Objective, method: PointMethod, run: Run
) -> DeterministicOptimizer | None:
    """Return the deterministic optimizer to use, or None for first-order steps.

    Raises
    ------
    ValueError
        If the user named one, and the objective is noisy.
    """
    noisy = run.batch_size is not None or objective.noise is not None
    if isinstance(method.optimizer, DeterministicOptimizer):
        if noisy:
            why = "rows in batches" if objective.noise is None else "random numbers"
            raise ValueError(
                f"optimizer={method.optimizer!r} minimizes objectives without noise, "
                f"and this one has {why}; give a torch.optim class, or leave out "
                f"{'batch_size=' if objective.noise is None else 'optimizer='}"
            )
        return method.optimizer
    asked = (method.optimizer, method.scheduler, method.clip_norm) != (None, None, None)
    size = objective.layout.size
    if noisy or asked or (size > _EXACT_LIMIT and objective.l1 is None):
        return None
    return default_optimizer(size)


def _search(
    objective: Objective,
    start: Tensor,
    optimizer: DeterministicOptimizer,
    method: PointMethod,
    run: Run,
) -> Found:
    with watching(run, objective.size, method.max_steps) as callback:
        found = search_exactly(
            objective,
            start,
            optimizer,
            tolerance=method.tolerance,
            max_steps=method.max_steps,
            callback=callback,
        )
        return approach_edge(objective, found, start, callback)


def _further_starts(objective: Objective, run: Run, count: int) -> Iterator[Tensor]:
    """Yield starts drawn uniformly from [-2, 2] in unconstrained space."""
    problem, size = objective.problem, objective.layout.size
    generator = stream(run.seed, "other starts")
    for _ in range(count):
        drawn = torch.rand(size, generator=generator, dtype=problem.dtype, device="cpu")
        yield objective.improved(4 * drawn.to(problem.device) - 2)
