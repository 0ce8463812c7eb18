"""Initializes a guide: by Laplace's approximation, or where its bound is finite."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.engine.ending import Ending
from probsl.engine.minimize.minimize import SearchOptions, minimize
from probsl.methods.guides.checks import refuse_reaching, refuse_unbounded
from probsl.methods.guides.elbo import ELBO
from probsl.methods.guides.forms import (
    GuideForm,
    GuideStart,
    begins_by_itself,
    prepare,
)
from probsl.methods.objective import example_of, point_objective
from probsl.methods.optimizers import NEWTON_LIMIT
from probsl.methods.starts import Start, feasible_start
from probsl.noise.record import NoiseRecord, record
from probsl.program.batch_checks import check_guide_batches

if TYPE_CHECKING:
    from probsl.contract import Run
    from probsl.methods.guides.guide import Guide
    from probsl.program.problem import Problem
    from probsl.program.scoring import Batch
    from probsl.program.target_density import TargetDensity


# The number of draws used to test whether a bound is finite.
_TRIED_DRAWS = 64


def initialized(
    target: TargetDensity, form: GuideForm, start: Start, run: Run
) -> tuple[ELBO, NoiseRecord, Tensor | None]:
    """Return the bound of a guide that is initialized where the bound is finite.

    Parameters
    ----------
    target
        The density to approximate.
    form
        The guide, in any form that `SVI` takes.
    start
        As in `SVI`.
    run
        The seed, and the size of a batch.

    Returns
    -------
    tuple
        The bound, the random numbers of one estimate, and the Cholesky factor
        of the latents' covariance at the start, if known.

    Raises
    ------
    ValueError
        If the guide cannot be trained on the problem.
    """
    problem = target.problem
    refuse_unbounded(problem, form)
    example = example_of(problem, run)

    def begun(beginning: GuideStart) -> tuple[ELBO, NoiseRecord]:
        guide = prepare(problem, form, beginning)
        refuse_reaching(problem, guide)
        _refuse_unweighable(problem, guide)
        if run.batch_size is not None:
            own = {p.name: p.start for p in guide.functional.own_parameters}
            check_guide_batches(
                problem, lambda rows: guide.score(own, rows), run.batch_size
            )
        bound = ELBO(target, guide, start)
        noise = record(lambda: bound.estimate(bound.start, example))
        _refuse_detached(noise, guide)
        return bound, noise

    if begins_by_itself(problem, form):
        return (*begun(GuideStart({}, None)), None)
    *better, near = _beginnings(target, start, run.seed)
    for beginning in better:
        bound, noise = begun(beginning)
        if _is_finite(bound, noise, example):
            return bound, noise, beginning.factor
    return (*begun(near), near.factor)


def _is_finite(bound: ELBO, noise: NoiseRecord, batch: Batch) -> bool:
    """Whether the bound is finite at its start, at some fixed draws."""
    if not noise.replayable:
        return True
    draws = noise.draw(_TRIED_DRAWS, torch.Generator("cpu").manual_seed(0))
    with torch.no_grad():
        try:
            return bool(
                bound.averaged(bound.start, noise, draws, batch).isfinite().all()
            )
        except RuntimeError:  # if torch cannot vectorize it, it is tried step by step
            return True


def _beginnings(target: TargetDensity, start: Start, seed: int) -> list[GuideStart]:
    """Return starts for an automatic guide, the best one first.

    That is around given values; else by Laplace's approximation, unless the mode is so
    flat that draws around it overflow; then near zero in unconstrained space.
    """
    problem, layout = target.problem, target.problem.coordinates()
    objective = point_objective(replace(target, space="unconstrained"), layout)
    x = feasible_start(objective, start, seed)

    def at(point: Tensor) -> dict[str, Tensor]:
        values = layout.constrain(point)
        return {s.name: values[s.name].detach() for s in problem.latents}

    near = GuideStart(at(x), None)
    if start is not None or len(x) > NEWTON_LIMIT:
        return [near]
    mode = minimize(objective, x, SearchOptions(max_steps=100))
    if mode.ending is Ending.INTERRUPTED:
        raise KeyboardInterrupt
    if mode.ending is not Ending.CONVERGED or mode.hessian is None:
        return [near]
    size = sum(e.flat_shape.numel() for e in layout.entries if e.name in near.values)
    precision = mode.hessian[:size, :size].detach() * objective.size
    inverse, singular = torch.linalg.inv_ex(precision)
    factor, failed = torch.linalg.cholesky_ex(inverse)
    if singular or failed:
        return [near]
    return [GuideStart(at(mode.x.detach()), factor), near]


def _refuse_detached(noise: NoiseRecord, guide: Guide) -> None:
    if noise.detached:
        raise ValueError(
            f"guide {guide.name} draws without gradients (a distribution's sample, "
            "not rsample); use reparameterized distributions in the guide"
        )


def _refuse_unweighable(problem: Problem, guide: Guide) -> None:
    """Refuse row weights if the guide models the rows' own latents jointly."""
    local = [s.name for s in problem.latents if problem.is_local(s)]
    if problem.weights is None or not local:
        return
    own = {p.name: p.start for p in guide.functional.own_parameters}
    messages = guide.score(own, problem.batch()).messages
    plate = problem.data_plate
    for name in local:
        plates = {f.name for f in messages[name]["cond_indep_stack"]}
        if plate is not None and plate.name not in plates:
            raise ValueError(
                f"weights cannot reach '{name}', one latent per row, in guide "
                f"{guide.name}, which has no plate '{plate.name}'; use AutoNormal"
            )
