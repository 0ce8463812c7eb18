"""MLE and MAP: point estimates, without and with the prior."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor

from probsl.contract import Outcome, Run, Status
from probsl.engine.steps.feed import NOISE
from probsl.methods.basins import ONE_BY_ONE, Several, search_in_turn, search_together
from probsl.methods.edges import approach_edge
from probsl.methods.endings import broken_sites
from probsl.methods.options import (
    check_latent_names,
    check_options,
    check_prior_weight,
    prior_weights,
)
from probsl.methods.point_objective import PointObjective
from probsl.methods.progress import watching
from probsl.methods.search import (
    NEWTON_LIMIT,
    Found,
    batch_at,
    example_of,
    search_exactly,
    search_noisily,
)
from probsl.methods.second_look import OTHERS, look_elsewhere
from probsl.methods.starts import Start, feasible_start
from probsl.options import several_names, whole_number
from probsl.program.sites import Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from probsl.engine.steps.first_order import OptimizerFactory, SchedulerFactory
    from probsl.noise.record import NoiseRecord
    from probsl.program.problem import Problem


# Up to this many coordinates L-BFGS is much faster than first-order steps, and the
# thirty vectors that it stores fit easily in memory.
_EXACT_LIMIT = 100_000
# Maximum of coordinates times starts searched together, for the same reason.
_TOGETHER = 1_000_000


@dataclass(frozen=True)
class MLE:
    """Maximum likelihood: a point estimate without the priors of the parameters.

    Parameters
    ----------
    integrate
        Sites to integrate out besides the random effects, as the likelihood of a
        program with random effects requires; ``()`` integrates none, and drops every
        prior. The noise of reparameterized random effects keeps its distribution.
    optimizer
        A `torch.optim` class or a `functools.partial` of one. None chooses: up to
        100,000 dimensions with all rows at once L-BFGS, up to 300 finished by
        trust-region Newton; beyond, and in batches, Adam.
    scheduler
        A `torch.optim.lr_scheduler` class or a `functools.partial` of one, which
        changes the rate of first-order steps. None lowers the rate at plateaus.
    clip_norm
        Maximum norm of the gradient per row; longer gradients are scaled down to it.
    max_steps
        Maximum number of steps; None: 1,000 up to 300 dimensions, then 5,000, or 20,000
        first-order ones.
    tolerance
        The search stops if the next step can gain no more than this per row.
    start
        Site -> constrained value to start from, or a fit.
    starts
        How many starting points to try, the others drawn uniformly from [-2, 2] in
        unconstrained space; the best result is kept. With one, a few more are tried if
        the search from it finds no optimum. Small problems with all rows are
        minimized from all starts at once; `Fit.basins` lists their results.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
    ...     with pyro.plate("days", 3):
    ...         pyro.sample("y", dist.Poisson(rate), obs=y)
    >>> y = torch.tensor([2.0, 3.0, 1.0])
    >>> probsl.fit(program, {"y": y}, probsl.MLE()).point()
    {'rate': tensor(2.0000)}
    """

    integrate: tuple[str, ...] | None = None
    optimizer: OptimizerFactory | None = None
    scheduler: SchedulerFactory | None = None
    clip_norm: float | None = None
    max_steps: int | None = None
    tolerance: float | None = None
    start: Start = None
    starts: int = 1

    def __post_init__(self) -> None:
        check_options(self)
        whole_number("starts", self.starts)
        if self.integrate is not None:
            several_names("integrate", self.integrate)

    def run(self, problem: Problem, run: Run) -> Outcome:
        """Fit the problem; see `probsl.fit`."""
        return _run(self.objective(problem), run, self)

    def objective(self, problem: Problem) -> PointObjective:
        """Return what a fit of the problem minimizes.

        Raises
        ------
        ValueError
            If a latent would have to be integrated out.
        """
        check_latent_names(problem, self.integrate or (), "integrate")
        effects = problem.sites_with_role(Role.RANDOM_EFFECT)
        # Named sites are integrated besides the random effects; () integrates none.
        asked = dict.fromkeys((*effects, *(self.integrate or ())))
        integrated = () if self.integrate == () else tuple(asked)
        if integrated:
            names = ", ".join(f"'{n}'" for n in integrated)
            raise ValueError(
                f"MLE would integrate the random effects {names} out of the "
                "likelihood, which is not available; use MAP or SVI, which keep their "
                "distribution, or integrate=() to estimate them as free parameters"
            )
        dropped = [s.name for s in problem.latents if not s.auxiliary]
        dropped += [s.name for s in problem.sites if s.prior and s.scored]
        weights = dict.fromkeys(dropped, 0.0)
        return PointObjective(problem, problem.coordinates(), weights, jacobian=False)


@dataclass(frozen=True)
class MAP:
    """Maximum a posteriori: a point estimate, with the prior.

    Parameters
    ----------
    prior_weight
        Factor of the log prior of every parameter (the sites whose prior MLE
        drops), or site -> factor. For a prior Normal(0, s) with s fixed, weight w
        is the prior Normal(0, s / sqrt(w)).
    space
        The space in which the density is maximized: ``"constrained"``, as the program
        states it, or ``"unconstrained"``, with the Jacobian of the change of variables.
    optimizer, scheduler, clip_norm, max_steps, tolerance, start, starts
        As for `MLE`. Laplace priors of fixed scale give exact zeros, unless an
        optimizer is named or rows come in batches.

    Notes
    -----
    The guide is a point mass, Pyro's AutoDelta; the search uses the coordinates of
    `torch.distributions.biject_to`, one per degree of freedom.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
    ...     with pyro.plate("days", 3):
    ...         pyro.sample("y", dist.Poisson(rate), obs=y)
    >>> y = torch.tensor([2.0, 3.0, 1.0])
    >>> probsl.fit(program, {"y": y}, probsl.MAP()).point()
    {'rate': tensor(1.6000)}
    >>> probsl.fit(program, {"y": y}, probsl.MAP(space="unconstrained")).point()
    {'rate': tensor(1.8000)}
    """

    prior_weight: float | Mapping[str, float] = 1.0
    space: Literal["constrained", "unconstrained"] = "constrained"
    optimizer: OptimizerFactory | None = None
    scheduler: SchedulerFactory | None = None
    clip_norm: float | None = None
    max_steps: int | None = None
    tolerance: float | None = None
    start: Start = None
    starts: int = 1

    def __post_init__(self) -> None:
        check_options(self)
        check_prior_weight(self.prior_weight)
        whole_number("starts", self.starts)
        if self.space not in ("constrained", "unconstrained"):
            raise ValueError(
                f"space must be 'constrained' or 'unconstrained', got {self.space!r}"
            )

    def run(self, problem: Problem, run: Run) -> Outcome:
        """Fit the problem; see `probsl.fit`."""
        return _run(self.objective(problem), run, self)

    def objective(self, problem: Problem) -> PointObjective:
        """Return what a fit of the problem minimizes."""
        weights = prior_weights(problem, self.prior_weight)
        jacobian = self.space == "unconstrained"
        layout = problem.coordinates()
        return PointObjective(problem, layout, weights, jacobian=jacobian)


@dataclass(frozen=True, eq=False)
class PointPosterior:
    """A point mass: one value of every latent.

    Attributes
    ----------
    values
        Latent site -> constrained value.
    own
        Own parameter -> unconstrained value.
    objective
        What is least there.
    """

    values: dict[str, Tensor]
    own: dict[str, Tensor]
    objective: PointObjective
    is_point: bool = True

    def point(self) -> dict[str, Tensor]:
        """Return latent site -> value."""
        return dict(self.values)

    def draw(self, count: int, seed: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the point `count` times."""
        return {n: v.expand(count, *v.shape) for n, v in self.values.items()}

    def representative_draws(self, count: int) -> dict[str, Tensor]:
        """Return the point `count` times."""
        return self.draw(count, 0)

    def guide(self, problem: Problem) -> AutoDelta:
        """Return Pyro's AutoDelta guide at this point, for use with Pyro's tools."""
        return AutoDelta(
            problem.program.function, init_loc_fn=init_to_value(values=self.values)
        )


def _run(objective: PointObjective, run: Run, method: MLE | MAP) -> Outcome:
    several = _search_all(objective.problem, run, method, objective)
    best = several.best
    values, own = objective.named(best.x.detach())
    sites = best.sites
    if best.status is Status.NONFINITE:
        sites = broken_sites(objective.problem, values, own) or sites
    return Outcome(
        posterior=PointPosterior(values, own, objective),
        status=best.status,
        sites=sites,
        losses=best.losses,
        steps=several.steps,
        note="; ".join(filter(None, [several.note, best.remark, best.reason])),
        basins=several.basins,
        compiled_from=best.compiled_from,
    )


def _search_all(
    problem: Problem, run: Run, method: MLE | MAP, objective: PointObjective
) -> Several:
    starts = _starts(objective, method, run)
    smooth, l1 = objective.without_l1()
    size = objective.layout.size
    noise = objective.noise(starts[0], example_of(problem, run))
    exact = noise is None and _is_exact(run, method, size, l1)
    together = len(starts) > 1 and len(starts) * size <= _TOGETHER
    if exact and together and not problem.moving:
        with watching(run, objective.size, method.max_steps) as callback:
            several = search_together(
                smooth,
                torch.stack(starts),
                objective.layout,
                objective.size,
                tolerance=method.tolerance,
                max_steps=method.max_steps,
                l1=l1,
                callback=callback,
            )
        if several is not None:
            return several

    def search(start: Tensor) -> Found:
        return _search(objective, run, method, start, noise)

    if exact and len(starts) == 1:
        found = search(starts[0])
        others = _further_starts(objective, run, OTHERS)
        at_edge = bool(problem.moving) and found.status is Status.BOUNDARY
        if size > NEWTON_LIMIT or at_edge:
            return Several(found, found.steps)
        return look_elsewhere(found, others, search, objective.size)
    several = search_in_turn(
        search,
        starts,
        objective.at_each if exact else None,
        objective.layout,
        objective.size,
    )
    if not several.note:
        return several
    return replace(several, note=f"{several.note}; {ONE_BY_ONE}")


def _is_exact(
    run: Run, method: MLE | MAP, size: int, l1: tuple[Tensor, Tensor] | None
) -> bool:
    """Whether the objective has no noise, and no optimizer was requested."""
    options = (method.optimizer, method.scheduler, method.clip_norm)
    exact = run.batch_size is None and options == (None, None, None)
    return exact and (size <= _EXACT_LIMIT or l1 is not None)


def _search(
    objective: PointObjective,
    run: Run,
    method: MLE | MAP,
    start: Tensor,
    noise: NoiseRecord | None,
) -> Found:
    problem = objective.problem
    smooth, l1 = objective.without_l1()
    if noise is None and _is_exact(run, method, len(start), l1):
        with watching(run, objective.size, method.max_steps) as callback:
            found = search_exactly(
                smooth,
                start,
                objective.layout,
                objective.size,
                tolerance=method.tolerance,
                max_steps=method.max_steps,
                l1=l1,
                callback=callback,
            )
            return approach_edge(objective, found, start, callback)

    def noisy(x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        batch = batch_at(problem, given)
        if noise is None or NOISE not in given:
            return objective(x, batch)
        with noise.supply(given[NOISE][0]):
            return objective(x, batch)

    return search_noisily(
        noisy,
        start,
        objective.layout,
        problem=problem,
        method=method,
        run=run,
        noise=noise,
        size=objective.size,
    )


def _starts(objective: PointObjective, method: MLE | MAP, run: Run) -> list[Tensor]:
    problem, layout = objective.problem, objective.layout
    batch = example_of(problem, run)
    first = feasible_start(
        lambda x: objective(x, batch), problem, layout, method.start, run.seed
    )
    return [first, *_further_starts(objective, run, method.starts - 1)]


def _further_starts(
    objective: PointObjective, run: Run, count: int
) -> Iterator[Tensor]:
    """Yield starts drawn uniformly from [-2, 2] in unconstrained space."""
    problem, size = objective.problem, objective.layout.size
    generator = torch.Generator("cpu").manual_seed(run.seed + 1)
    for _ in range(count):
        drawn = torch.rand(size, generator=generator, dtype=problem.dtype, device="cpu")
        yield 4 * drawn.to(problem.device) - 2
