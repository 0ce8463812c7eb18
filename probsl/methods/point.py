"""MLE and MAP: point estimates, without and with the prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from probsl.methods.marginal import marginal_objective
from probsl.methods.objective import Objective, point_objective
from probsl.methods.options import (
    check_latent_names,
    check_options,
    check_prior_weight,
    prior_weights,
)
from probsl.methods.point_search import search_point
from probsl.options import several_names, whole_number
from probsl.program.sites import Role
from probsl.program.target_density import Space, TargetDensity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from probsl.contract import Outcome, Run
    from probsl.engine.steps.first_order import OptimizerFactory, SchedulerFactory
    from probsl.methods.optimizers import DeterministicOptimizer
    from probsl.methods.starts import Start
    from probsl.program.problem import Problem


@dataclass(frozen=True)
class MLE:
    """Maximum likelihood: a point estimate without the priors of the parameters.

    Random effects, latents that depend on other latents or lie in the data plate, are
    integrated out of the likelihood.

    Parameters
    ----------
    integrate
        Sites to integrate out besides the random effects. Coefficients with an
        improper uniform prior give the restricted likelihood (REML); a standardized
        effect, whose scale is elsewhere in the program, is one too. ``()`` integrates
        none, and drops every prior.
    optimizer
        With all rows at once `probsl.LBFGS()` or `probsl.TrustRegionNewton()`; or a
        `torch.optim` class, or a `functools.partial` of one. None chooses: with all
        rows at once Newton's method up to 300 dimensions, L-BFGS up to 100,000;
        beyond, and in batches, Adam.
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

    Notes
    -----
    The integral is by Laplace's approximation at the conditional mode of the effects
    (Tierney and Kadane, 1986), which is exact if they are jointly Normal with the
    data. Effects that do not meet in the density are found, and are integrated in
    blocks. `Fit.point` has the conditional modes, `Fit.draw` and `Fit.predict` draw
    the effects from the Normal distribution about them, and
    ``summary(effects=True)`` lists them.

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
    optimizer: OptimizerFactory | DeterministicOptimizer | None = None
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
        return search_point(self.objective(problem), self, run)

    def objective(self, problem: Problem) -> Objective:
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
        dropped = [
            s.name
            for s in problem.latents
            if not s.auxiliary and s.name not in integrated
        ]
        dropped += [s.name for s in problem.sites if s.prior and s.scored]
        target = TargetDensity(problem, dict.fromkeys(dropped, 0.0))
        if not integrated:
            return point_objective(target, problem.coordinates())
        return marginal_objective(target, integrated)


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
    space: Space = "constrained"
    optimizer: OptimizerFactory | DeterministicOptimizer | None = None
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
        return search_point(self.objective(problem), self, run)

    def objective(self, problem: Problem) -> Objective:
        """Return what a fit of the problem minimizes."""
        weights = prior_weights(problem, self.prior_weight)
        target = TargetDensity(problem, weights, self.space)
        return point_objective(target, problem.coordinates())
