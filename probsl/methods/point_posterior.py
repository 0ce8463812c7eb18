"""The posterior of a point fit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer.autoguide import AutoDelta, init_to_value

from probsl.contract import Status
from probsl.curvature.point_covariance import (
    CovarianceKind,
    NoCovarianceError,
    PointCovariance,
    point_covariance,
)
from probsl.curvature.point_errors import PointErrors, point_errors
from probsl.draws.predictions import deterministic_names
from probsl.isolation.calls import undisturbed
from probsl.noise.streams import stream
from probsl.program.saved_problem import SavedProblem
from probsl.progress import phase

if TYPE_CHECKING:
    from torch import Tensor

    from probsl.methods.objective import Objective
    from probsl.program.problem import Problem
    from probsl.program.target_density import Density

# Statuses of points that are an optimum, though some coordinates may have none.
_OPTIMA = (Status.CONVERGED, Status.UNIDENTIFIED, Status.UNBOUNDED, Status.BOUNDARY)
# Those of which the objective has a least value.
_MAXIMA = (Status.CONVERGED, Status.UNIDENTIFIED, Status.BOUNDARY)
# Beyond these sizes, a summary does not compute standard errors unless asked to.
_COORDINATES, _ELEMENTS = 300, 100_000_000


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
        The objective of which it is the minimum.
    status, status_sites
        How the search for it ended, and the sites or elements that this is about.
    """

    values: dict[str, Tensor]
    own: dict[str, Tensor]
    objective: Objective
    status: Status = Status.CONVERGED
    status_sites: tuple[str, ...] = ()
    is_point: bool = True
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def target(self) -> Density:
        """The density of which it is the maximum."""
        return self.objective.target

    def point(self) -> dict[str, Tensor]:
        """Return latent site -> value."""
        return dict(self.values)

    def draw(self, count: int, seed: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the point `count` times."""
        return {n: v.expand(count, *v.shape) for n, v in self.values.items()}

    def representative_draws(self, count: int) -> dict[str, Tensor]:
        """Return the point `count` times."""
        return self.draw(count, 0)

    @undisturbed
    def covariance(
        self, kind: CovarianceKind = "observed", *, clusters: Tensor | None = None
    ) -> PointCovariance:
        """Return the covariance of the point, computed on first use and kept.

        Parameters
        ----------
        kind, clusters
            See `probsl.curvature.point_covariance.point_covariance`.

        Raises
        ------
        NoCovarianceError
            Saying why the point has none.
        """
        if clusters is None and kind in self._known:
            return self._known[kind]  # type: ignore[no-any-return]
        self._refuse()
        x = self.flat()
        with phase("computing the curvature"):
            found = point_covariance(
                self.target,
                self.objective.layout,
                x,
                kind,
                left_out=self._left_out(x),
                clusters=clusters,
            )
        found = replace(found, withheld=self.withheld())
        if clusters is None:
            self._known[kind] = found
        return found

    def flat(self) -> Tensor:
        """Return the point as a flat vector [d], in the layout of the objective."""
        with self.target.problem.isolated():
            return self.objective.layout.flatten({**self.values, **self.own})

    def withheld(self) -> dict[str, Tensor]:
        """Return reason -> the coordinates without standard errors for it, [d]."""
        x = self.flat()
        about, kinks = self._about(x), self._kinks(x)
        return {self.status.name: about, "at the kink of the prior": kinks}

    def remember(self, covariance: PointCovariance, errors: PointErrors) -> None:
        """Keep a covariance and errors that are known from an earlier process."""
        self._known["observed"] = covariance
        self._known["errors", None] = errors

    def errors(self, kind: CovarianceKind | None = None) -> PointErrors:
        """Return the standard errors of all sites, or why there are none.

        Parameters
        ----------
        kind
            As for `covariance`; None is ``"observed"``, unless that would take long.

        Raises
        ------
        NoCovarianceError
            If a kind is given, and the point has none.
        """
        if ("errors", kind) in self._known:
            return self._known["errors", kind]  # type: ignore[no-any-return]
        try:
            if kind is None:
                self._refuse_long()
            # Given the effects, which are integrated out, is not given the parameters.
            problem = self.target.problem
            computed = (
                ()
                if self.target.integrated
                else deterministic_names(problem, by_row=False)
            )
            found = point_errors(self.covariance(kind or "observed"), computed)
        except NoCovarianceError as reason:
            if kind is not None:
                raise
            found = PointErrors(sentence=f"no standard errors: {reason}")
        self._known["errors", kind] = found
        return found

    def spread(self, count: int, seed: int) -> dict[str, Tensor] | None:
        """Return Normal draws of the estimate itself; None if it has no covariance.

        Parameters
        ----------
        count
            The number of draws.
        seed
            Seed of the draws.

        Returns
        -------
        dict
            Latent -> constrained values, own parameter -> unconstrained ones, draws on
            the first axis. They are Normal in unconstrained space, so they respect the
            supports. None also if only some elements have an error, because intervals
            without the error of the others would be too narrow.
        """
        found = self.errors()
        if not found.sd or any(sd.isnan().any() for sd in found.sd.values()):
            return None
        known = self.covariance()
        values, vectors = torch.linalg.eigh(known.matrix)
        generator = stream(seed, "posterior")
        shape = (count, len(known.x))
        noise = torch.randn(
            shape, generator=generator, dtype=torch.float64, device="cpu"
        )
        scaled = noise.to(known.x.device) * values.clamp(min=0).sqrt()
        flat = known.x + scaled @ vectors.T
        with self.target.problem.isolated():
            return known.layout.constrain_draws(flat.to(self.target.problem.dtype))

    def estimated(self) -> int | None:
        """Return how many parameters were estimated; None if no maximum was found.

        Directions that the data do not determine do not count.
        """
        if self.status not in _MAXIMA:
            return None
        size = self.objective.layout.size
        if self.status is not Status.UNIDENTIFIED:
            return size
        try:
            return size - self.covariance().inverse.free.shape[1]
        except NoCovarianceError:
            return size

    def guide(self, problem: Problem) -> AutoDelta:
        """Return Pyro's AutoDelta guide at this point, for use with Pyro's tools."""
        return AutoDelta(
            problem.program.function, init_loc_fn=init_to_value(values=self.values)
        )

    def _refuse(self) -> None:
        """Refuse a covariance if the point is not an optimum, or is not known to be."""
        problem = self.target.problem
        if isinstance(problem, SavedProblem):
            raise NoCovarianceError(
                "this fit was loaded without its data; give them: "
                "probsl.load(path, program, data)"
            )
        if self.status not in _OPTIMA:
            raise NoCovarianceError(
                f"the fit ended {self.status.name}, and they hold at an optimum only"
            )
        if self._is_random():
            raise NoCovarianceError(
                "the program draws random numbers, as in dropout; put its modules "
                "into eval mode before the fit"
            )

    def _refuse_long(self) -> None:
        """Refuse to compute what would take long, unless it is asked for."""
        problem, size = self.target.problem, self.objective.layout.size
        long = size > _COORDINATES or problem.size * size > _ELEMENTS
        if long or not problem.data.complete:
            raise NoCovarianceError(
                f"those of {size:,} parameters and {problem.size:,} rows take time; "
                "ask for them with summary(kind='observed')"
            )

    def _is_random(self) -> bool:
        """Return whether the log density at the point depends on the seed."""
        values = []
        for seed in (0, 1):
            with self.target.problem.isolated(seed), torch.no_grad():
                values.append(float(self.target.log_density(self.values, self.own)))
        return values[0] != values[1]

    def _left_out(self, x: Tensor) -> Tensor:
        """Return which coordinates are held still: at edges, diverging, at kinks."""
        kinks = self._kinks(x)
        ended = self.status in (Status.UNBOUNDED, Status.BOUNDARY)
        return kinks | self._about(x) if ended else kinks

    def _kinks(self, x: Tensor) -> Tensor:
        """Return which coordinates lie at the center of a Laplace prior."""
        l1 = self.objective.l1
        if l1 is None:
            return torch.zeros_like(x, dtype=torch.bool)
        return (l1.weight > 0) & (x == l1.center)

    def _about(self, x: Tensor) -> Tensor:
        """Return which coordinates the status is about."""
        layout, sites = self.objective.layout, set(self.status_sites)
        named = [
            entry.name
            for entry, size in zip(layout.entries, layout.sizes, strict=True)
            for _ in range(size)
        ]
        raw = layout.labels()
        shown = self.target.problem.renamed(raw)
        labels = zip(raw, shown, named, strict=True)
        about = [bool(sites.intersection(each)) for each in labels]
        return torch.tensor(about, dtype=torch.bool, device=x.device)
