"""SVI: the posterior within the family of a guide."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.engine.feed import NOISE
from probsl.fit import Outcome, Run, Status
from probsl.methods.evidence_lower_bound import ELBO, GUIDE
from probsl.methods.guide_beginnings import prepared
from probsl.methods.guide_posterior import GuidePosterior
from probsl.methods.method_options import (
    check_options,
    check_prior_weight,
    prior_weights,
)
from probsl.methods.search import (
    NEWTON_LIMIT,
    Found,
    batch_at,
    example_of,
    search_exactly,
    search_noisily,
    watching,
)
from probsl.options import whole_number
from probsl.randomness import NoiseRecord, standardized
from probsl.sites import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from probsl.engine.first_order import OptimizerFactory, SchedulerFactory
    from probsl.methods.guides import GuideForm
    from probsl.methods.starts import Start
    from probsl.problem import Problem

# Fixed draws are for problems whose draws times rows fit in memory many times over.
_FIXED_ELEMENTS = 4_000_000
_FIXED_DIMENSIONS = 100
# What the ELBO may still gain in all, in nats, where no tolerance is given.
_GAIN = 1e-7
_LEAST_DRAWS = 64
# Draws of one noisy step, where torch can take them together.
_STEP_DRAWS = 8
# Fresh draws must agree with the fixed ones to this many standard errors.
_AGREEMENT = 4.0


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
        Draws of the guide that one noisy step averages over; None: 8 where torch can
        take them together, else 1.
    optimizer
        A `torch.optim` class or a `functools.partial` of one, for noisy steps.
        None chooses: small problems with all rows at once fix their draws, and
        L-BFGS and Newton find the optimum; others take Adam with a decaying rate.
    scheduler, clip_norm
        As for `MLE`.
    max_steps
        Steps at most; None: 1,000 with fixed draws, else 20,000.
    tolerance
        What the best next step may still gain per row (fixed draws), or the
        progress per row and 100 steps that counts as none.
    start
        Site -> constrained value around which an automatic guide begins, or a fit.
        None begins at the mode in unconstrained space where there is one.

    Notes
    -----
    Fixed draws: Giordano, Ingram and Broderick (2024), Black box variational
    inference with a deterministic objective, JMLR 25. The draws are standardized,
    so that a Gaussian posterior is found exactly. An ELBO of fresh draws must
    agree, else the number of draws is doubled, and in the end noisy steps finish.

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
        check_options(self)
        check_prior_weight(self.prior_weight)
        if self.draws is not None:
            whole_number("draws", self.draws)

    def run(self, problem: Problem, run: Run) -> Outcome:
        """Fit the problem; see `probsl.fit`."""
        if not problem.latents:
            raise ValueError(
                "SVI needs a latent site, and the program has only parameters of its "
                "own; give them a prior, or use MLE"
            )
        weights = prior_weights(problem, self.prior_weight)
        bound, noise = prepared(problem, self.guide, weights, self.start, run)
        guide = bound.guide
        fixed = _fixed_draws(problem, bound, noise)
        chosen = self.optimizer or self.scheduler or self.draws
        if fixed and not chosen and run.batch_size is None:
            found = _with_fixed_draws(self, run, bound, noise, fixed)
        else:
            found = None
        note = "with fixed draws"
        if found is None:
            found = _with_noise(self, run, bound, noise)
            note = "; ".join(filter(None, ["by noisy steps", found.trouble]))
        values = bound.layout.unconstrained(found.x.detach())
        posterior = GuidePosterior(problem, guide, *bound.split(values))
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


def _fixed_draws(problem: Problem, bound: ELBO, noise: NoiseRecord) -> int | None:
    """Return how many draws to fix, or None where the problem is too large for it.

    As many parameters as draws times dimensions could fit the draws themselves,
    and full rank with fewer draws than dimensions is unbounded.
    """
    if not noise.reparameterizable or problem.named(Role.ENUMERATED):
        return None
    if any(s.l1 is not None for s in problem.latents):
        # Averaged over fixed draws a kink is many kinks, on which a search stalls.
        return None
    count = max(2 * noise.dimension, _LEAST_DRAWS)
    count = 2 ** math.ceil(math.log2(count))
    small = (
        noise.dimension <= _FIXED_DIMENSIONS
        and count * max(problem.size, noise.dimension) <= _FIXED_ELEMENTS
    )
    rigid = bound.layout.size <= count * max(noise.dimension, 1) / 2
    return count if small and rigid else None


def _with_fixed_draws(
    method: SVI, run: Run, bound: ELBO, noise: NoiseRecord, count: int
) -> Found | None:
    """Maximize the average over fixed draws; None if it cannot be trusted."""
    problem, x = bound.problem, bound.start
    for attempt in range(2):
        draws = standardized(noise, count * 4**attempt, run.seed)

        def objective(point: Tensor, draws: Tensor = draws) -> Tensor:
            return bound.averaged(point, noise, draws).mean()

        if attempt == 0 and not _can_vectorize(objective, x):
            return None
        with watching(run, problem.size, method.max_steps) as callback:
            found = search_exactly(
                objective,
                x,
                bound.layout,
                problem.size,
                tolerance=method.tolerance or _GAIN / problem.size,
                max_steps=method.max_steps,
                idle="ignore",
                newton_limit=0 if bound.guide.redundant else NEWTON_LIMIT,
                callback=callback,
            )
        found = _without_guide(found)
        if found.status is not Status.CONVERGED or _agrees(bound, noise, found, run):
            return found
        x = found.x.detach()
    return None


def _without_guide(found: Found) -> Found:
    """Judge an ending by the distribution, not by the guide's parameters.

    A direction in them that leaves the distribution as it is does no harm, nor one
    that runs off while the distribution tends to a limit.
    """
    own = tuple(name for name in found.sites if not name.startswith(GUIDE))
    harmless = found.status is Status.UNIDENTIFIED or (
        found.status is Status.UNBOUNDED and found.flattening
    )
    status = Status.CONVERGED if harmless and not own else found.status
    return replace(found, status=status, sites=own)


def _can_vectorize(objective: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether torch can run the program on many draws at a time."""
    try:
        objective(x)
    except RuntimeError:
        return False
    return True


def _agrees(bound: ELBO, noise: NoiseRecord, found: Found, run: Run) -> bool:
    """Whether an ELBO of fresh draws is as good as that of the fixed ones."""
    generator = torch.Generator("cpu").manual_seed(run.seed + 1)
    count = max(1024, 4 * noise.dimension)
    chunk = max(64, _FIXED_ELEMENTS // max(bound.problem.size, noise.dimension))
    with torch.no_grad():
        fresh = torch.cat(
            [
                bound.averaged(found.x, noise, draws)
                for draws in noise.draw(count, generator).split(chunk)
            ]
        ).double()
    error = float(fresh.std()) / math.sqrt(count)
    gap = abs(float(fresh.mean()) - found.value / bound.problem.size)
    # Half a nat in all is no disagreement, whatever the standard error.
    return gap <= max(_AGREEMENT * error, 0.5 / bound.problem.size)


def _with_noise(method: SVI, run: Run, bound: ELBO, noise: NoiseRecord) -> Found:
    problem = bound.problem
    count = 1
    if noise.replayable:
        count = method.draws or _draws_per_step(run, bound, noise)

    def objective(x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        batch = batch_at(problem, given)
        if NOISE not in given:  # torch's own generator is drawn from
            return bound.estimate(x, batch)
        if count > 1:
            return bound.averaged(x, noise, given[NOISE], batch).mean()
        with noise.supply(given[NOISE][0]):
            return bound.estimate(x, batch)

    return search_noisily(
        objective,
        bound.start,
        bound.layout,
        problem=problem,
        method=method,
        run=run,
        noise=noise,
        draws=count,
    )


def _draws_per_step(run: Run, bound: ELBO, noise: NoiseRecord) -> int:
    """Return how many draws a step averages: several, where they go together."""
    rows = run.batch_size or bound.problem.size
    if _STEP_DRAWS * max(noise.dimension, rows) > _FIXED_ELEMENTS:
        return 1
    some = noise.draw(2, torch.Generator("cpu").manual_seed(0))
    example = example_of(bound.problem, run)
    together = _can_vectorize(
        lambda x: bound.averaged(x, noise, some, example), bound.start
    )
    return _STEP_DRAWS if together else 1
