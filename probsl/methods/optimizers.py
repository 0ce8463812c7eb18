"""Deterministic optimizers of point fits, which use all rows at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from probsl.engine.minimize.minimize import SearchOptions, minimize

if TYPE_CHECKING:
    from torch import Tensor

    from probsl.engine.minimize.minimum import Minimum
    from probsl.methods.objective import Objective

# Up to this many coordinates the exact Hessian is affordable.
NEWTON_LIMIT = 300


@runtime_checkable
class DeterministicOptimizer(Protocol):
    """A value that minimizes an objective without noise.

    Attributes
    ----------
    uses_hessians
        Whether it computes exact Hessians, of which memory is the square of dimensions.
    """

    uses_hessians: ClassVar[bool]

    def minimize(self, objective: Objective, start: Tensor, **options: Any) -> Minimum:
        """Minimize an objective from a start [d].

        The options are `tolerance` and `max_steps`, and `idle`, `known_point` and
        `callback` of `probsl.engine.minimize.minimize.minimize`.
        """
        ...


@dataclass(frozen=True)
class LBFGS:
    """The quasi-Newton method L-BFGS, for any number of parameters.

    The default of point fits above 300 dimensions. It does not compute Hessians, so it
    does not detect parameters that the data leave undetermined.

    References
    ----------
    Nocedal and Wright (2006), "Numerical Optimization", algorithm 7.5.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
    ...     with pyro.plate("days", 3):
    ...         pyro.sample("y", dist.Poisson(rate), obs=y)
    >>> y = torch.tensor([2.0, 3.0, 1.0])
    >>> method = probsl.MAP(optimizer=probsl.LBFGS())
    >>> probsl.fit(program, {"y": y}, method).point()
    {'rate': tensor(1.6000)}
    """

    uses_hessians: ClassVar[bool] = False

    def minimize(self, objective: Objective, start: Tensor, **options: Any) -> Minimum:
        """Minimize an objective; see `DeterministicOptimizer`."""
        return _minimized(objective, start, newton_limit=0, **options)


@dataclass(frozen=True)
class TrustRegionNewton:
    """Newton's method with exact Hessians in a trust region, after some L-BFGS steps.

    The default of point fits up to 300 dimensions. A Hessian of d parameters takes d
    squared numbers and about d gradients.

    References
    ----------
    Nocedal and Wright (2006), "Numerical Optimization", algorithm 4.3.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
    ...     with pyro.plate("days", 3):
    ...         pyro.sample("y", dist.Poisson(rate), obs=y)
    >>> y = torch.tensor([2.0, 3.0, 1.0])
    >>> method = probsl.MAP(optimizer=probsl.TrustRegionNewton())
    >>> probsl.fit(program, {"y": y}, method).point()
    {'rate': tensor(1.6000)}
    """

    uses_hessians: ClassVar[bool] = True

    def minimize(self, objective: Objective, start: Tensor, **options: Any) -> Minimum:
        """Minimize an objective; see `DeterministicOptimizer`."""
        return _minimized(objective, start, newton_limit=len(start), **options)


def default_optimizer(dimension: int) -> DeterministicOptimizer:
    """Return the optimizer of a point fit whose user named none."""
    return TrustRegionNewton() if dimension <= NEWTON_LIMIT else LBFGS()


def _minimized(
    objective: Objective,
    start: Tensor,
    *,
    newton_limit: int,
    tolerance: float | None = None,
    max_steps: int = 1000,
    **options: Any,
) -> Minimum:
    smooth = objective.smooth or objective
    ends = SearchOptions(tolerance, max_steps, newton_limit)
    return minimize(smooth, start, ends, l1=objective.l1, **options)
