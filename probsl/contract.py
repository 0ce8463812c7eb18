"""The interfaces between fits, methods and posteriors."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from probsl.curvature.point_covariance import CovarianceKind, PointCovariance
    from probsl.curvature.point_errors import PointErrors
    from probsl.program.problem import Problem
    from probsl.program.target_density import Density

__all__ = [
    "Basin",
    "KnowsDensity",
    "KnowsErrors",
    "KnowsTarget",
    "Method",
    "Outcome",
    "Posterior",
    "Run",
    "Status",
]


class Status(Enum):
    """How a fit ended, and what to do next.

    Examples
    --------
    >>> import probsl
    >>> probsl.Status.INTERRUPTED.value
    'interrupted by the user; go on from here with start=fit'
    """

    CONVERGED = "the optimum was found"
    MAX_STEPS = (
        "stopped at max_steps before the optimum; raise max_steps, or go on from here "
        "with start=fit"
    )
    STALLED = (
        "no step improves the objective, and yet the point is not a proven optimum: "
        "rounding, a kink or a learning rate that died away is in the way; center and "
        "rescale the data, compute with dtype=torch.float64, give a larger rate, or "
        "try other starts="
    )
    NONFINITE = (
        "the objective became NaN or infinite; rescale the data, give start= nearer "
        "to the solution, or a smaller learning rate"
    )
    UNIDENTIFIED = (
        "the data do not determine some combination of parameters, so their estimates "
        "are arbitrary; drop "
        "a redundant column or parameter, or keep its prior with MAP or SVI"
    )
    UNBOUNDED = (
        "the objective keeps improving as a parameter goes to infinity, so there is no "
        "optimum; keep a prior with MAP or SVI, or a prior with less mass there"
    )
    BOUNDARY = (
        "the optimum lies at the edge of a support; Wald standard errors do not hold "
        "there, so keep a prior that avoids the edge, or use a profile interval"
    )
    INTERRUPTED = "interrupted by the user; go on from here with start=fit"


class Posterior(Protocol):
    """The latents of a fit: a point or a distribution."""

    @property
    def own(self) -> dict[str, Tensor]:
        """Own parameter -> unconstrained value."""
        ...

    @property
    def is_point(self) -> bool:
        """Whether all draws are equal."""
        ...

    def point(self) -> dict[str, Tensor]:
        """Return latent site -> one constrained value."""
        ...

    def draw(self, count: int, seed: int) -> dict[str, Tensor]:
        """Return latent site -> independent draws ``[count, ...]``."""
        ...

    def representative_draws(self, count: int) -> dict[str, Tensor]:
        """Return evenly spread draws, to estimate moments and quantiles."""
        ...


@runtime_checkable
class KnowsTarget(Protocol):
    """A posterior that knows the density it maximizes or approximates."""

    @property
    def target(self) -> Density:
        """The density of data and latents, with the factors of its priors."""
        ...


@runtime_checkable
class KnowsDensity(KnowsTarget, Protocol):
    """A posterior that knows its own log density besides its target."""

    def log_density(self, count: int, seed: int) -> Tensor:
        """Return the log densities, ``[count]``, of the draws that `draw` returns."""
        ...


@runtime_checkable
class KnowsErrors(KnowsTarget, Protocol):
    """A point that knows its covariance and the standard errors of its sites."""

    def covariance(
        self, kind: CovarianceKind = "observed", *, clusters: Tensor | None = None
    ) -> PointCovariance:
        """Return the covariance of the point, or refuse it with the reason."""
        ...

    def errors(self, kind: CovarianceKind | None = None) -> PointErrors:
        """Return the standard errors of all sites, or why there are none."""
        ...

    def spread(self, count: int, seed: int) -> dict[str, Tensor] | None:
        """Return Normal draws of the estimate itself; None if it has no covariance.

        Latent -> constrained values, own parameter -> unconstrained ones, draws on the
        first axis.
        """
        ...

    def estimated(self) -> int | None:
        """Return how many parameters were estimated; None if no maximum was found."""
        ...


@dataclass(frozen=True)
class Run:
    """The options of a run, which a method receives besides the problem.

    Attributes
    ----------
    seed
        Seed of all random numbers.
    batch_size
        Rows per step; None for all of them.
    progress
        Whether to show a progress bar; None shows a long one to a person.
    callbacks
        Called as ``callback(step, loss, parameters)`` after every step, with
        the flat unconstrained vector; a true return value stops the fit.
    compile
        The first-order step to compile from: True is 1, False is never, and "auto" is
        once compiling is expected to save time.
    """

    seed: int = 0
    batch_size: int | None = None
    progress: bool | None = None
    callbacks: tuple[Callable[[int, float, Tensor], Any], ...] = ()
    compile: Literal["auto"] | int = "auto"


@dataclass(frozen=True, eq=False)
class Basin:
    """An optimum that one or more of several starts reached.

    Attributes
    ----------
    value
        The objective there, summed over rows.
    count
        The number of starts that ended there.
    values
        Latent site or own parameter -> its value.
    status
        The kind of end; None if it differs from the answer only by its objective.
    """

    value: float
    count: int
    values: dict[str, Tensor]
    status: Status | None = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method returns: posterior, status, and history of the objective."""

    posterior: Posterior
    status: Status
    sites: tuple[str, ...]
    losses: Tensor
    steps: int
    note: str = ""
    compiled_from: int | None = None
    basins: tuple[Basin, ...] = ()


class Method(Protocol):
    """A method of fitting: a frozen object that maps a problem to an outcome."""

    def run(self, problem: Problem, run: Run) -> Outcome:
        """Fit the problem; called inside `probsl.isolation.calls.isolated`."""
        ...
