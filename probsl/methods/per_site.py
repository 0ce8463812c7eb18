"""A method for each site: some held still, some without their prior, some with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.methods.marginal import marginal_objective
from probsl.methods.objective import Objective, point_objective
from probsl.methods.options import check_latent_names
from probsl.methods.point import MAP, MLE
from probsl.methods.point_search import search_point
from probsl.program.sites import Role
from probsl.program.target_density import Space, TargetDensity

if TYPE_CHECKING:
    from probsl.contract import Outcome, Run
    from probsl.program.problem import Problem
    from probsl.program.sites import Site

__all__ = ["Fixed", "PerSite"]


@dataclass(frozen=True)
class Fixed:
    """Holds a site still, in `PerSite`.

    Parameters
    ----------
    value
        Its constrained value, of its shape, or a number for all its elements.

    Examples
    --------
    >>> import probsl
    >>> probsl.PerSite({"nu": probsl.Fixed(4.0)}, otherwise=probsl.MLE())
    PerSite(sites={'nu': Fixed(value=4.0)}, otherwise=MLE(...))
    """

    value: Any


@dataclass(frozen=True, repr=False)
class PerSite:
    """A point estimate by a method for each site.

    Parameters
    ----------
    sites
        Site -> `MLE()`, which drops its prior; `MAP(prior_weight=...)`, which keeps it;
        or `Fixed(value)`, which holds it still.
    otherwise
        The method of all other sites, `MLE` or `MAP`, whose options the search has.

    Raises
    ------
    TypeError
        If a method is another one.
    ValueError
        In a fit, if a name is not a latent, or a value does not suit its site.

    Notes
    -----
    Random effects whose method is `MLE` are integrated out, as by `MLE` itself. The
    prior of a site that is held still counts if it depends on others.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    ...     with pyro.plate("data", 4):
    ...         pyro.sample("y", dist.Normal(mu, sigma), obs=y)
    >>> y = torch.tensor([1.0, 2.0, 3.0, 4.0])
    >>> method = probsl.PerSite({"sigma": probsl.Fixed(2.0)}, otherwise=probsl.MLE())
    >>> fit = probsl.fit(program, {"y": y}, method)
    >>> fit.summary()[["estimate", "sd"]]
           estimate   sd
    mu          2.5  1.0
    sigma       2.0  NaN
    """

    sites: Mapping[str, MLE | MAP | Fixed]
    otherwise: MLE | MAP

    def __post_init__(self) -> None:
        if not isinstance(self.sites, Mapping):
            raise TypeError(
                'PerSite takes a mapping from sites to methods, such as {"nu": '
                f"Fixed(4.0)}}, got {type(self.sites).__name__}"
            )
        for name, method in self.sites.items():
            if not isinstance(method, MLE | MAP | Fixed):
                raise TypeError(
                    f"the method of '{name}' must be MLE(), MAP() or Fixed(value), got "
                    f"{method!r}; distributions of some sites only are not available"
                )
        if not isinstance(self.otherwise, MLE | MAP):
            raise TypeError(f"otherwise must be MLE() or MAP(), got {self.otherwise!r}")

    def __repr__(self) -> str:
        other = type(self.otherwise).__name__
        return f"PerSite(sites={dict(self.sites)!r}, otherwise={other}(...))"

    @property
    def start(self) -> Any:
        """The start of the search."""
        return self.otherwise.start

    def run(self, problem: Problem, run: Run) -> Outcome:
        """Fit the problem; see `probsl.fit`."""
        return search_point(self.objective(problem), self.otherwise, run)

    def objective(self, problem: Problem) -> Objective:
        """Return what a fit of the problem minimizes."""
        check_latent_names(problem, self.sites, "PerSite")
        held = {
            name: _held_value(problem.site(name), method, problem)
            for name, method in self.sites.items()
            if isinstance(method, Fixed)
        }
        integrated = self._integrated(problem)
        weights = {}
        for site in problem.sites:
            weight = self._weight(site)
            unknown = (site.prior or site.latent) and not site.auxiliary
            if unknown and site.name not in integrated and weight is not None:
                weights[site.name] = weight
        plain: Space = "constrained"
        space = self.otherwise.space if isinstance(self.otherwise, MAP) else plain
        target = TargetDensity(problem, weights, space)
        if integrated:
            return marginal_objective(target, integrated, held)
        return point_objective(target, problem.coordinates(held=held))

    def _method(self, name: str) -> MLE | MAP | Fixed:
        return self.sites.get(name, self.otherwise)

    def _integrated(self, problem: Problem) -> tuple[str, ...]:
        asked = self.otherwise.integrate if isinstance(self.otherwise, MLE) else None
        check_latent_names(problem, asked or (), "integrate")
        effects = problem.sites_with_role(Role.RANDOM_EFFECT)
        if asked == ():
            effects = ()
        names = dict.fromkeys((*effects, *(asked or ())))
        return tuple(n for n in names if isinstance(self._method(n), MLE))

    def _weight(self, site: Site) -> float | None:
        """Return the factor of a site's log prior; None leaves it as it is."""
        method = self._method(site.name)
        if isinstance(method, MLE):
            return 0.0
        if isinstance(method, Fixed):  # a constant, if it depends on no other site
            return None if site.parents else 0.0
        weight = method.prior_weight
        if isinstance(weight, Mapping):
            return float(weight.get(site.name, 1.0))
        return float(weight) if site.prior else None


def _held_value(site: Site, method: Fixed, problem: Problem) -> Tensor:
    """Return the value of a site that is held still, checked."""
    try:
        value = torch.as_tensor(
            method.value, dtype=problem.dtype, device=problem.device
        )
        value = value.detach().expand(site.shape).clone()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"Fixed value of '{site.name}' must be a number, or have the shape "
            f"{tuple(site.shape)} of the site, got {method.value!r}"
        ) from None
    if not bool(value.isfinite().all()) or not bool(site.support.check(value).all()):
        raise ValueError(
            f"Fixed value of '{site.name}' is outside its support "
            f"({site.support}), got {method.value!r}"
        )
    return value
