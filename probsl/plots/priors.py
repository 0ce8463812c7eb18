"""Computes densities and draws of the priors of a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro.distributions as dist
import torch

from probsl.draws.predictions import deterministics, prior_draws
from probsl.program.generating import Generating
from probsl.program.sites import Role
from probsl.program.supports import support_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from probsl.fitting import Fit
    from probsl.plots.elements import Element

_DRAWS = 4000
_LEAST_DRAWS = 500
# Draws times rows.
_DRAWN = 4_000_000


@dataclass(frozen=True, eq=False)
class Priors:
    """The priors of a program's latents and deterministics.

    Attributes
    ----------
    draws
        Site -> draws ``[draws, ...]``. Improper priors, which cannot be sampled, and
        sites that depend on one are missing.
    distributions
        Site -> distribution over the site's elements, if they are independent and it
        does not depend on another site.
    """

    draws: dict[str, Tensor]
    distributions: dict[str, Any]

    def density(
        self, element: Element, grid: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """Return the density of one element on a grid, or None if it is unknown."""
        fn = self.distributions.get(element.site)
        if fn is None:
            return None
        place = self.draws[element.site].device
        values = torch.as_tensor(grid, device=place).reshape(
            -1, *[1] * len(fn.batch_shape)
        )
        values = values.expand(len(grid), *fn.batch_shape)
        support = support_of(fn)
        inside = torch.ones_like(values, dtype=torch.bool)
        if support is not None:
            inside = support.check(values)
        # Outside its support a distribution may return any value.
        allowed = self.draws[element.site][0].to(values)
        density = fn.log_prob(torch.where(inside, values, allowed)).exp() * inside
        density = density.reshape(len(grid), -1)[:, element.index].double()
        return np.asarray(torch.where(density.isfinite(), density, torch.nan).cpu())


def priors(fit: Fit, *, seed: int = 0) -> Priors:
    """Return the priors of a program's sites.

    Parameters
    ----------
    fit
        Any fit of the program.
    seed
        Seed of the draws.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> from probsl.plots.elements import Element
    >>> from probsl.plots.priors import priors
    >>> def program(y=None):
    ...     scale = pyro.sample("scale", dist.Exponential(2.0))
    ...     with pyro.plate("data", 2):
    ...         pyro.sample("y", dist.Normal(0.0, scale), obs=y)
    >>> fit = probsl.fit(program, {"y": torch.tensor([1.0, 3.0])}, probsl.MLE())
    >>> found = priors(fit)
    >>> found.draws["scale"].shape
    torch.Size([4000])
    >>> found.density(Element("scale", 0, "scale"), [-1.0, 0.0])
    array([0., 2.])
    """
    problem, own = fit.problem, fit.posterior.own
    # Every draw computes all rows.
    count = max(_LEAST_DRAWS, min(_DRAWS, _DRAWN // problem.data.held))
    draws, missing = prior_draws(problem, own, count=count, seed=seed)
    if not missing:
        draws |= deterministics(problem, draws, own, count)
    generating = Generating(problem.feasible_values())
    with problem.isolated(), torch.no_grad(), generating:
        problem.run(own, problem.arguments.values)
    roots = set(problem.sites_with_role(Role.PARAMETER)) & set(draws)
    distributions = {n: _by_element(generating.messages[n]["fn"]) for n in roots}
    return Priors(draws, {n: d for n, d in distributions.items() if d is not None})


def _by_element(fn: Any) -> Any:
    """Return an elementwise distribution, or None for a joint one."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    joint = len(fn.event_shape) > 0 or isinstance(fn, dist.MaskedDistribution)
    return None if joint else fn
