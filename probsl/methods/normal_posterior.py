"""A Normal distribution in unconstrained space, carried over to the sites."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.isolation.calls import undisturbed
from probsl.noise.record import record
from probsl.noise.standardized import representative_count, standardized
from probsl.noise.streams import stream

if TYPE_CHECKING:
    from probsl.program.coordinates import Coordinates
    from probsl.program.target_density import TargetDensity

__all__ = ["NormalPosterior"]


@dataclass(frozen=True, eq=False)
class NormalPosterior:
    """A Normal distribution of the latents in unconstrained space.

    Attributes
    ----------
    target
        The density that it approximates.
    own
        Own parameter -> unconstrained value.
    layout
        The layout of the latents.
    mode
        The center of the distribution, shape ``[d]``, in float64.
    root
        A matrix R with the covariance R R', shape ``[d, d]``.
    """

    target: TargetDensity
    own: dict[str, Tensor]
    layout: Coordinates
    mode: Tensor
    root: Tensor
    is_point: bool = False

    @undisturbed
    def point(self) -> dict[str, Tensor]:
        """Return the mean of every latent; in unconstrained space if it is outside."""
        return dict(self._means)

    @undisturbed
    def draw(self, count: int, seed: int) -> dict[str, Tensor]:
        """Return independent draws of every latent, ``[count, ...]``."""
        return self._values(self._noise(count, seed))

    @undisturbed
    def representative_draws(self, count: int) -> dict[str, Tensor]:
        """Return draws with the exact moments of the Normal distribution."""
        size = len(self.mode)
        with self.target.problem.isolated(), torch.no_grad():
            noise = record(lambda: torch.empty(size).normal_())
            return self._values(standardized(noise, count, 0))

    @undisturbed
    def log_density(self, count: int, seed: int) -> Tensor:
        """Return the log density, ``[count]``, at the values from `draw`."""
        noise = self._noise(count, seed).double()
        size = len(self.mode)
        logs = -noise.square().sum(1) / 2 - size * math.log(2 * math.pi) / 2
        flat = self.mode + noise @ self.root.T
        with self.target.problem.isolated(), torch.no_grad():
            volumes = [self.layout.constrain_with_jacobian(each)[1] for each in flat]
        scale: Tensor = torch.linalg.slogdet(self.root).logabsdet
        return logs - scale - torch.stack(volumes)

    def _noise(self, count: int, seed: int) -> Tensor:
        shape = (count, len(self.mode))
        generator = stream(seed, "posterior")
        return torch.randn(
            shape, generator=generator, dtype=torch.float64, device="cpu"
        ).to(self.mode.device)

    def _values(self, noise: Tensor) -> dict[str, Tensor]:
        flat = self.mode + noise.to(self.mode) @ self.root.T
        with self.target.problem.isolated():
            return self.layout.constrain_draws(flat.to(self.target.problem.dtype))

    @cached_property
    def _means(self) -> dict[str, Tensor]:
        problem, means = self.target.problem, {}
        draws = self.representative_draws(representative_count(len(self.mode)))
        for entry in self.layout.entries:
            values = draws[entry.name]
            mean = values.mean(0)
            if not bool(problem.site(entry.name).support.check(mean).all()):
                mean = entry.transform(entry.transform.inv(values).mean(0))
            means[entry.name] = mean
        return means
