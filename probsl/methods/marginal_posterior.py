"""The posterior of a point fit with random effects integrated out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.isolation.calls import undisturbed
from probsl.noise.streams import stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from probsl.curvature.effect_blocks import Blocks
    from probsl.curvature.marginal_density import MarginalDensity
    from probsl.curvature.point_covariance import CovarianceKind, PointCovariance
    from probsl.curvature.point_errors import PointErrors
    from probsl.methods.point_posterior import PointPosterior

__all__ = ["MarginalPosterior"]


@dataclass(frozen=True, eq=False)
class MarginalPosterior:
    """A point of the parameters, and the effects' distribution given it and the data.

    Attributes
    ----------
    parameters
        The point, at which the marginal density is greatest.
    density
        The marginal density.
    """

    parameters: PointPosterior
    density: MarginalDensity
    is_point: bool = False

    @property
    def target(self) -> MarginalDensity:
        """The density of which the point is the maximum."""
        return self.density

    @property
    def own(self) -> dict[str, Tensor]:
        """Own parameter -> unconstrained value."""
        return self.parameters.own

    def point(self) -> dict[str, Tensor]:
        """Return latent site -> value; of the effects, their conditional mode."""
        u, _, _ = self._conditional
        effects = {n: v[0] for n, v in self.density.constrained(u[None]).items()}
        return self._in_order({**self.parameters.values, **effects})

    @undisturbed
    def draw(self, count: int, seed: int) -> dict[str, Tensor]:
        """Return the point `count` times, with draws of the effects given it.

        They are Normal in unconstrained space, about the conditional mode.
        """
        u, scaled = self.whitened()
        noise = torch.randn(
            (count, len(u)),
            generator=stream(seed, "posterior"),
            dtype=u.dtype,
            device="cpu",
        )
        draws = torch.stack([u + scaled(each) for each in noise.to(u.device)])
        parameters = self.parameters.draw(count, seed)
        return self._in_order({**parameters, **self.density.constrained(draws)})

    def whitened(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the effects' mode [q], and a root of their covariance as a function.

        It maps standard Normal noise [q] to deviations from the mode with their
        covariance, the inverse of the negative Hessian L L' of the log density.
        """
        u, factor, blocks = self._conditional

        def scaled(noise: Tensor) -> Tensor:
            parts = torch.where(blocks.present, noise[blocks.index], 0.0)
            moved = torch.linalg.solve_triangular(
                factor.mT, parts[..., None], upper=True
            )
            return blocks.scatter(moved[..., 0], len(u))

        return u, scaled

    def representative_draws(self, count: int) -> dict[str, Tensor]:
        """Return `count` draws of a fixed seed."""
        return self.draw(count, 0)

    def covariance(
        self, kind: CovarianceKind = "observed", *, clusters: Tensor | None = None
    ) -> PointCovariance:
        """Return the covariance of the parameters, see `PointPosterior.covariance`."""
        return self.parameters.covariance(kind, clusters=clusters)

    def errors(self, kind: CovarianceKind | None = None) -> PointErrors:
        """Return the standard errors of the parameters, see `PointPosterior.errors`.

        Those of the effects are their standard deviations given the parameters.
        """
        found = self.parameters.errors(kind)
        # Whether one effect is zero is no question: it is drawn like the others.
        ends = {n: e for n, e in found.ends.items() if n in self.parameters.values}
        return replace(found, sd={**found.sd, **self._effect_sd}, ends=ends)

    def spread(self, count: int, seed: int) -> dict[str, Tensor] | None:
        """Return Normal draws of the estimate, and of the effects at the estimate."""
        found = self.parameters.spread(count, seed)
        return None if found is None else {**self.draw(count, seed), **found}

    def estimated(self) -> int | None:
        """Return how many parameters were estimated; effects do not count."""
        return self.parameters.estimated()

    @cached_property
    def _conditional(self) -> tuple[Tensor, Tensor, Blocks]:
        problem = self.density.problem
        with problem.isolated():
            values = {**self.parameters.values, **self.parameters.own}
            return self.density.conditional(self.density.layout.flatten(values))

    @cached_property
    def _effect_sd(self) -> dict[str, Tensor]:
        """Standard deviations of the effects, of the shapes of their values."""
        u, factor, blocks = self._conditional
        inverse = torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2)
        sd = blocks.scatter(inverse.sqrt(), len(u))
        with torch.enable_grad():
            point = u.detach().requires_grad_()
            values = self.density.constrained(point[None])
            total = torch.cat([v.reshape(-1) for v in values.values()]).sum()
            (change,) = torch.autograd.grad(total, point)
        found = {}
        for entry, part in self.density.effects.split(sd * change.abs()):
            same = entry.flat_shape == entry.shape
            none = part.new_full(entry.shape, torch.nan)
            found[entry.name] = part if same else none
        return found

    def _in_order(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {site.name: values[site.name] for site in self.density.problem.latents}
