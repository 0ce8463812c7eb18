"""SVI: the posterior within the family of a guide."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.contract import Outcome, Run, Status
from probsl.methods.guides.fixed_draws import obstacle, search_with_fixed_draws
from probsl.methods.guides.fresh_draws import FreshBound, fresh_bound
from probsl.methods.guides.initialization import initialized
from probsl.methods.guides.many_draws import ManyDraws
from probsl.methods.guides.posterior import GuidePosterior
from probsl.methods.noisy_search import search_noisily
from probsl.methods.objective import example_of
from probsl.methods.options import (
    check_options,
    check_prior_weight,
    prior_weights,
)
from probsl.noise.standardized import standardized
from probsl.options import whole_number
from probsl.program.target_density import TargetDensity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from probsl.engine.steps.first_order import OptimizerFactory, SchedulerFactory
    from probsl.methods.guides.elbo import ELBO
    from probsl.methods.guides.forms import GuideForm
    from probsl.methods.search import Found
    from probsl.methods.starts import Start
    from probsl.noise.record import NoiseRecord
    from probsl.program.problem import Problem

# Draws per noisy step, if torch can vectorize over them.
_STEP_DRAWS = 8
# Maximum of draws times rows or latents per noisy step.
_STEP_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class SVI:
    """Stochastic variational inference: a distribution, by maximizing the ELBO.

    Parameters
    ----------
    guide
        Any Pyro guide: an autoguide class such as `AutoNormal` or a
        `functools.partial` of one, a function that makes a guide of the program, a
        guide module, or a guide function. None chooses: full rank up to 300 latent
        dimensions, low rank up to 5,000, then mean field; `Fit.note` says which.
    prior_weight
        Factor of the log prior, as for `MAP`.
    draws
        Draws of the guide that one noisy step averages over; None: 8 if torch can
        vectorize over them, else 1.
    optimizer
        A `torch.optim` class or a `functools.partial` of one, for noisy steps.
        None chooses: small problems with all rows at once use fixed draws, with
        L-BFGS and Newton; others use Adam with a decaying learning rate.
    scheduler, clip_norm
        As for `MLE`.
    max_steps
        Maximum number of steps; None: 1,000 with fixed draws, else 20,000.
    tolerance
        The search stops if the next step can gain no more than this per row (fixed
        draws), or if the progress per row in 100 steps is below it.
    start
        Site -> constrained value around which an automatic guide starts, or a fit.
        None starts at the mode in unconstrained space if there is one.

    Notes
    -----
    Fixed draws: Giordano, Ingram and Broderick (2024), Black box variational
    inference with a deterministic objective, JMLR 25. The draws are standardized,
    so that a Gaussian posterior is found exactly. Fresh draws
    validate the result: while they predict a visible gain, or their ELBO differs by
    more than a nat, the number of draws is quadrupled. If no feasible number is enough,
    noisy steps finish. `Fit.note` states the ELBO of fresh draws.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> from pyro.infer.autoguide import AutoNormal
    >>> def program(y=None):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", 3):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> y = torch.tensor([1.0, 2.0, 3.0])
    >>> probsl.fit(program, {"y": y}, probsl.SVI(AutoNormal)).summary().round(2)
        estimate   sd  lower  upper
    mu       1.5  0.5   0.52   2.48
    """

    guide: GuideForm = None
    prior_weight: float | Mapping[str, float] = 1.0
    draws: int | None = None
    optimizer: OptimizerFactory | None = None
    scheduler: SchedulerFactory | None = None
    clip_norm: float | None = None
    max_steps: int | None = None
    tolerance: float | None = None
    start: Start = None

    def __post_init__(self) -> None:
        check_options(self, deterministic=False)
        check_prior_weight(self.prior_weight)
        if self.draws is not None:
            whole_number("draws", self.draws)

    @property
    def _asks_for_noise(self) -> bool:
        """Whether an option was given that applies only to noisy steps."""
        options = (self.optimizer, self.scheduler, self.draws, self.clip_norm)
        return any(option is not None for option in options)

    def run(self, problem: Problem, run: Run) -> Outcome:
        """Fit the problem; see `probsl.fit`."""
        if not problem.latents:
            raise ValueError(
                "SVI needs a latent site, and the program has only parameters of its "
                "own; give them a prior, or use MLE"
            )
        target = TargetDensity(problem, prior_weights(problem, self.prior_weight))
        bound, noise, factor = initialized(target, self.guide, self.start, run)
        guide = bound.guide
        found, note = None, ""
        if not self._asks_for_noise and run.batch_size is None:
            note = obstacle(bound, noise)
            if not note:
                found, note = search_with_fixed_draws(
                    run,
                    bound,
                    noise,
                    factor,
                    tolerance=self.tolerance,
                    max_steps=self.max_steps,
                )
        if found is None:
            why = f"by noisy steps, because {note}" if note else "by noisy steps"
            found, fresh = _with_noise(self, run, bound, noise)
            note = "; ".join(filter(None, [why, fresh, found.remark, found.reason]))
        values = bound.layout.unconstrained(found.x.detach())
        posterior = GuidePosterior(target, guide, *bound.split(values))
        sites = found.sites
        if found.status is Status.NONFINITE:
            sites = posterior.broken_sites() or sites
        return Outcome(
            posterior=posterior,
            status=found.status,
            sites=sites,
            losses=found.losses,
            steps=found.steps,
            note=f"guide {guide.name}{' (chosen)' if guide.chosen else ''}, {note}",
            compiled_from=found.compiled_from,
        )


def _can_vectorize(objective: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether torch can vectorize the program over draws."""
    try:
        objective(x)
    except RuntimeError:
        return False
    return True


def _with_noise(
    method: SVI, run: Run, bound: ELBO, noise: NoiseRecord
) -> tuple[Found, str]:
    """Return the result of noisy steps, and the ELBO of fresh draws there."""
    count = 1
    if noise.replayable:
        count = method.draws or _draws_per_step(run, bound, noise)

    found = search_noisily(bound.objective(noise, count), bound.start, method, run)
    fresh = _fresh(bound, noise, found, run)
    if fresh is None:
        return found, ""
    losses = torch.cat([found.losses, found.losses.new_tensor([fresh.value])])
    found = replace(found, losses=losses)
    if fresh.error > 1 and run.batch_size is None:
        found = replace(found, status=Status.STALLED)
    return found, str(fresh)


def _fresh(
    bound: ELBO, noise: NoiseRecord, found: Found, run: Run
) -> FreshBound | None:
    """Return the bound of the result by fresh draws, on all rows if these are few."""
    left, problem = found.remainder, bound.problem
    if left is None or found.status is not Status.CONVERGED:
        return None
    small = problem.size <= _STEP_ELEMENTS // 32
    if noise.replayable and problem.data.complete and small:
        many = ManyDraws(bound, noise, standardized(noise, 2, seed=0))
        if many.way != "loop":
            return fresh_bound(bound, many, noise, found.x, run.seed)
    return FreshBound(left.value * problem.size, left.error * problem.size)


def _draws_per_step(run: Run, bound: ELBO, noise: NoiseRecord) -> int:
    """Return how many draws a step averages: several if they can be vectorized."""
    rows = run.batch_size or bound.problem.size
    if _STEP_DRAWS * max(noise.dimension, rows) > _STEP_ELEMENTS:
        return 1
    some = noise.draw(2, torch.Generator("cpu").manual_seed(0))
    example = example_of(bound.problem, run)
    together = _can_vectorize(
        lambda x: bound.averaged(x, noise, some, example), bound.start
    )
    return _STEP_DRAWS if together else 1
