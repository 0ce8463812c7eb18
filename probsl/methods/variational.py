"""SVI: the posterior within the family of a guide."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions.constraint_registry import biject_to
from torch.distributions.transforms import identity_transform

from probsl.batch_checks import check_guide_batches
from probsl.coordinates import Coordinates, Entry
from probsl.engine.feed import NOISE
from probsl.engine.minimize import Outcome as End
from probsl.engine.minimize import minimize
from probsl.fit import Fit, Outcome, Run, Status
from probsl.methods.guides import Beginning, Guide, GuideForm, prepare
from probsl.methods.search import (
    NEWTON_LIMIT,
    Found,
    Start,
    batch_at,
    broken_sites,
    calm_start,
    check_options,
    check_prior_weight,
    prior_weights,
    search_exactly,
    search_noisily,
    start_vector,
    watching,
)
from probsl.options import whole_number
from probsl.predict import map_draws
from probsl.randomness import NoiseRecord, record, standardized
from probsl.scoring import Batch, total, weighed_terms
from probsl.sites import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from probsl.engine.first_order import OptimizerFactory, SchedulerFactory
    from probsl.problem import Problem

# Fixed draws are for problems whose draws times rows fit in memory many times over.
_FIXED_ELEMENTS = 4_000_000
_FIXED_DIMENSIONS = 100
# What the ELBO may still gain in all, in nats, where no tolerance is given.
_GAIN = 1e-7
_LEAST_DRAWS = 64
# The guide's own parameters bear this before their names.
_GUIDE = "guide."
# Draws of one noisy step, where torch can take them together.
_STEP_DRAWS = 8
# Fresh draws must agree with the fixed ones to this many standard errors.
_AGREEMENT = 4.0
_REPRESENTATIVE_ELEMENTS = 20_000_000


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
        bound, noise = _prepared(problem, self, weights, run)
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


class ELBO:
    """The evidence lower bound as a function of one flat vector.

    Attributes
    ----------
    layout
        Of the guide's parameters and the program's own.
    start
        Where the guide and the program begin.
    """

    def __init__(
        self,
        problem: Problem,
        guide: Guide,
        weights: dict[str, float],
        start: Start,
    ) -> None:
        self.problem = problem
        self.guide = guide
        self.weights = weights
        self._guide_names = {f"{_GUIDE}{p.name}": p for p in guide.functional.own}
        entries = [
            Entry(name, identity_transform, p.start.shape)
            for name, p in self._guide_names.items()
        ]
        own = problem.coordinates(())
        self.layout = Coordinates([*entries, *own.entries])
        starts = _guide_starts(guide, start)
        parts = [starts[p.name].reshape(-1) for p in self._guide_names.values()]
        parts.append(start_vector(problem, own, start, 0, 0.0))
        self.start = torch.cat(parts).to(problem.dtype)

    def split(
        self, values: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Split named values into the guide's parameters and the program's own."""
        guide = {p.name: values[name] for name, p in self._guide_names.items()}
        return guide, {p.name: values[p.name] for p in self.problem.own}

    def estimate(self, x: Tensor, batch: Batch) -> Tensor:
        """Return one draw's negative ELBO per row at the flat vector ``x``."""
        problem = self.problem
        guide_own, own = self.split(self.layout.unconstrained(x))
        scoring = self.guide.score(guide_own, batch)
        log_q = total(weighed_terms(scoring, problem.data_plate, batch))
        log_p = problem.log_density(
            scoring.values, own, batch, prior_weights=self.weights
        )
        return (log_q - log_p) / problem.size

    def averaged(
        self, x: Tensor, noise: NoiseRecord, draws: Tensor, batch: Batch | None = None
    ) -> Tensor:
        """Return the negative ELBO per row at each of the draws ``[count, d]``."""
        batch = batch or self.problem.batch()

        def one(z: Tensor) -> Tensor:
            with noise.supply(z):
                return self.estimate(x, batch)

        values: Tensor = torch.func.vmap(one)(draws)
        return values


class GuidePosterior:
    """The distribution of a guide with its final parameters.

    Attributes
    ----------
    own
        Own parameter of the program -> unconstrained value.
    guide_own
        Own parameter of the guide -> unconstrained value.
    """

    is_point = False

    def __init__(
        self,
        problem: Problem,
        guide: Guide,
        guide_own: dict[str, Tensor],
        own: dict[str, Tensor],
    ) -> None:
        self.own = own
        self.guide_own = guide_own
        self._problem = problem
        self._guide = guide

    def point(self) -> dict[str, Tensor]:
        """Return the mean of every latent.

        Where the mean lies outside the support (a correlation's Cholesky factor),
        it is taken in unconstrained space.
        """
        return {
            name: self._mean(name, draws)
            for name, draws in self._representative.items()
        }

    def draw(self, count: int, seed: int) -> dict[str, Tensor]:
        """Return independent draws of every latent, ``[count, ...]``."""
        return self._independent(self._values, count, seed)

    def log_density(self, count: int, seed: int) -> Tensor:
        """Return the guide's log density, ``[count]``, at what `draw` returns."""
        return self._independent(self._log_density, count, seed)["log_q"]

    def _independent(
        self, function: Callable[[], dict[str, Tensor]], count: int, seed: int
    ) -> dict[str, Tensor]:
        problem = self._problem
        with problem.isolated(seed), torch.no_grad():
            if self._noise.replayable:
                generator = torch.Generator("cpu").manual_seed(seed)
                return self._drawn(function, self._noise.draw(count, generator))
            return map_draws(lambda _: function(), {}, count, self._elements)

    def broken_sites(self) -> tuple[str, ...]:
        """Name the sites whose log density is not finite at a draw."""
        draw = {name: value[0] for name, value in self.draw(1, 0).items()}
        return broken_sites(self._problem, draw, self.own)

    def representative_draws(self, count: int) -> dict[str, Tensor]:
        """Return draws spread like the guide, with its exact moments if Gaussian."""
        if not self._noise.replayable:
            return self.draw(count, 0)
        with self._problem.isolated(), torch.no_grad():
            return self._drawn(self._values, standardized(self._noise, count, 0))

    @cached_property
    def _representative(self) -> dict[str, Tensor]:
        elements = max(self._elements, 1)
        return self.representative_draws(
            max(64, min(4096, _REPRESENTATIVE_ELEMENTS // elements))
        )

    @property
    def _elements(self) -> int:
        return sum(s.shape.numel() for s in self._problem.latents)

    @cached_property
    def _noise(self) -> NoiseRecord:
        with self._problem.isolated(), torch.no_grad():
            return record(self._values)

    def _drawn(
        self, function: Callable[[], dict[str, Tensor]], noise: Tensor
    ) -> dict[str, Tensor]:
        def one(draw: dict[str, Tensor]) -> dict[str, Tensor]:
            with self._noise.supply(draw["noise"]):
                return function()

        return map_draws(one, {"noise": noise}, len(noise), self._elements)

    def _values(self) -> dict[str, Tensor]:
        values = self._guide.score(self.guide_own, self._problem.batch()).values
        return {s.name: values[s.name] for s in self._problem.latents}

    def _log_density(self) -> dict[str, Tensor]:
        # The density itself has no row weights, unlike the term of the objective.
        batch = Batch(self._problem.arguments.values)
        scoring = self._guide.score(self.guide_own, batch)
        return {"log_q": total(weighed_terms(scoring, self._problem.data_plate, batch))}

    def _mean(self, name: str, draws: Tensor) -> Tensor:
        support = self._problem.site(name).support
        mean = draws.mean(0)
        if bool(support.check(mean).all()):
            return mean
        transform = biject_to(support)
        image: Tensor = transform(transform.inv(draws).mean(0))
        return image


def _guide_starts(guide: Guide, start: Start) -> dict[str, Tensor]:
    """Return where the guide's parameters begin: in a fit of the same guide, there."""
    own = {p.name: p.start for p in guide.functional.own}
    posterior = start.posterior if isinstance(start, Fit) else None
    if not isinstance(posterior, GuidePosterior):
        return own
    fitted = posterior.guide_own
    same = {n: v.shape for n, v in own.items()} == {
        n: v.shape for n, v in fitted.items()
    }
    if not same:
        return own
    return {n: v.detach().to(own[n].device) for n, v in fitted.items()}


def _prepared(
    problem: Problem, method: SVI, weights: dict[str, float], run: Run
) -> tuple[ELBO, NoiseRecord]:
    """Return the bound of a guide that begins where the bound is finite."""

    def begun(beginning: Beginning) -> tuple[ELBO, NoiseRecord]:
        guide = prepare(problem, method.guide, beginning)
        _refuse_unweighable(problem, guide)
        if run.batch_size is not None:
            own = {p.name: p.start for p in guide.functional.own}
            check_guide_batches(
                problem, lambda rows: guide.score(own, rows), run.batch_size
            )
        bound = ELBO(problem, guide, weights, method.start)
        noise = record(lambda: bound.estimate(bound.start, problem.batch()))
        _refuse_detached(noise, guide)
        return bound, noise

    *better, near = _beginnings(problem, method, weights, run.seed)
    for beginning in better:
        bound, noise = begun(beginning)
        if _is_finite(bound, noise):
            return bound, noise
    return begun(near)


def _is_finite(bound: ELBO, noise: NoiseRecord) -> bool:
    """Whether the bound is finite where it begins, at some fixed draws."""
    if not noise.replayable:
        return True
    draws = noise.draw(_LEAST_DRAWS, torch.Generator("cpu").manual_seed(0))
    with torch.no_grad():
        try:
            return bool(bound.averaged(bound.start, noise, draws).isfinite().all())
        except RuntimeError:  # what torch cannot vectorize is tried step by step
            return True


def _beginnings(
    problem: Problem, method: SVI, weights: dict[str, float], seed: int
) -> list[Beginning]:
    """Return where an automatic guide may begin, the best place first.

    That is around given values; else in Laplace's way, unless the mode is so flat
    that draws around it overflow; then near zero in unconstrained space.
    """
    layout = problem.coordinates()

    def objective(point: Tensor) -> Tensor:
        values, jacobian = layout.constrain_with_jacobian(point, problem.weigh_rows)
        density = problem.log_density(values, values, prior_weights=weights)
        return -(density + jacobian) / problem.size

    x = calm_start(objective, problem, layout, method.start, seed)

    def at(point: Tensor) -> dict[str, Tensor]:
        values = layout.constrain(point)
        return {s.name: values[s.name].detach() for s in problem.latents}

    near = Beginning(at(x), None)
    if method.start is not None or len(x) > NEWTON_LIMIT:
        return [near]
    mode = minimize(objective, x, max_steps=100)
    if mode.outcome is End.INTERRUPTED:
        raise KeyboardInterrupt
    if mode.outcome is not End.CONVERGED or mode.hessian is None:
        return [near]
    size = sum(e.flat_shape.numel() for e in layout.entries if e.name in near.values)
    precision = mode.hessian[:size, :size].detach() * problem.size
    inverse, singular = torch.linalg.inv_ex(precision)
    factor, failed = torch.linalg.cholesky_ex(inverse)
    if singular or failed:
        return [near]
    return [Beginning(at(mode.x.detach()), factor), near]


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
    own = tuple(name for name in found.sites if not name.startswith(_GUIDE))
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
    if not noise.replayable:
        # The guide draws from torch's own generator, one draw a step.
        return search_noisily(
            lambda x, given: bound.estimate(x, batch_at(problem, given)),
            bound.start,
            bound.layout,
            problem=problem,
            method=method,
            run=run,
            obstacle=f"the steps run eagerly, for the guide draws by {noise.obstacle}",
        )
    generator = torch.Generator("cpu").manual_seed(run.seed)
    count = method.draws or _draws_per_step(run, bound, noise)

    def objective(x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        batch = batch_at(problem, given)
        if count > 1:
            return bound.averaged(x, noise, given[NOISE], batch).mean()
        with noise.supply(given[NOISE][0]):
            return bound.estimate(x, batch)

    def drawn(steps: int) -> Tensor:
        draws = noise.draw(steps * count, generator)
        return draws.reshape(steps, count, noise.dimension)

    return search_noisily(
        objective,
        bound.start,
        bound.layout,
        problem=problem,
        method=method,
        run=run,
        noise=drawn,
        numbers=count * noise.dimension,
    )


def _draws_per_step(run: Run, bound: ELBO, noise: NoiseRecord) -> int:
    """Return how many draws a step averages: several, where they go together."""
    rows = run.batch_size or bound.problem.size
    if _STEP_DRAWS * max(noise.dimension, rows) > _FIXED_ELEMENTS:
        return 1
    some = noise.draw(2, torch.Generator("cpu").manual_seed(0))
    together = _can_vectorize(lambda x: bound.averaged(x, noise, some), bound.start)
    return _STEP_DRAWS if together else 1


def _refuse_detached(noise: NoiseRecord, guide: Guide) -> None:
    if noise.detached:
        raise ValueError(
            f"guide {guide.name} draws without gradients (a distribution's sample, "
            "not rsample); use reparameterized distributions in the guide"
        )


def _refuse_unweighable(problem: Problem, guide: Guide) -> None:
    """Refuse row weights where the guide joins the rows' own latents in one."""
    local = [s.name for s in problem.latents if problem.is_local(s)]
    if problem.weights is None or not local:
        return
    own = {p.name: p.start for p in guide.functional.own}
    messages = guide.score(own, problem.batch()).messages
    plate = problem.data_plate
    for name in local:
        plates = {f.name for f in messages[name]["cond_indep_stack"]}
        if plate is not None and plate.name not in plates:
            raise ValueError(
                f"weights cannot reach '{name}', one latent per row, in guide "
                f"{guide.name}, which has no plate '{plate.name}'; use AutoNormal"
            )
