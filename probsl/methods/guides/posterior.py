"""The posterior of a fit by a guide: the guide's distribution."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.draws.mapped import map_draws
from probsl.methods.endings import broken_sites
from probsl.noise.record import NoiseRecord, record
from probsl.noise.standardized import representative_count, standardized
from probsl.noise.streams import stream, stream_seed
from probsl.program.scoring import Batch, total, weighted_terms
from probsl.program.supports import bijection

if TYPE_CHECKING:
    from collections.abc import Callable

    from probsl.methods.guides.guide import Guide
    from probsl.program.target_density import TargetDensity


class GuidePosterior:
    """The distribution of a guide with its final parameters.

    Attributes
    ----------
    own
        Own parameter of the program -> unconstrained value.
    guide_own
        Own parameter of the guide -> unconstrained value.
    target
        The density that the guide approximates.
    guide
        The guide.
    """

    is_point = False

    def __init__(
        self,
        target: TargetDensity,
        guide: Guide,
        guide_own: dict[str, Tensor],
        own: dict[str, Tensor],
        means: dict[str, Tensor] | None = None,
    ) -> None:
        self.target = target
        self.own = own
        self.guide_own = guide_own
        self._problem = target.problem
        self.guide = guide
        self._means = means

    def point(self) -> dict[str, Tensor]:
        """Return the mean of every latent.

        If the mean is outside the support (a correlation's Cholesky factor),
        it is taken in unconstrained space.
        """
        if self._means is None:
            draws = self.representative_draws(representative_count(self._elements))
            self._means = {name: self._mean(name, x) for name, x in draws.items()}
        return dict(self._means)

    def draw(self, count: int, seed: int) -> dict[str, Tensor]:
        """Return independent draws of every latent, ``[count, ...]``."""
        return self._independent(self._values, count, seed)

    def log_density(self, count: int, seed: int) -> Tensor:
        """Return the guide's log density, ``[count]``, at the values from `draw`."""
        return self._independent(self._log_density, count, seed)["log_q"]

    def _independent(
        self, function: Callable[[], dict[str, Tensor]], count: int, seed: int
    ) -> dict[str, Tensor]:
        problem = self._problem
        with problem.isolated(stream_seed(seed, "posterior")), torch.no_grad():
            if self._noise.replayable:
                noise = self._noise.draw(count, stream(seed, "posterior"))
                return self._drawn(function, noise)
            return map_draws(lambda _: function(), {}, count, self._elements)

    def broken_sites(self) -> tuple[str, ...]:
        """Name the sites whose log density is not finite at a draw."""
        draw = {name: value[0] for name, value in self.draw(1, 0).items()}
        return broken_sites(self._problem, draw, self.own)

    def representative_draws(self, count: int) -> dict[str, Tensor]:
        """Return draws that represent the guide, with its exact moments if Gaussian."""
        if not self._noise.replayable:
            return self.draw(count, 0)
        with self._problem.isolated(), torch.no_grad():
            return self._drawn(self._values, standardized(self._noise, count, 0))

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
        values = self.guide.score(self.guide_own, self._problem.batch()).values
        return {s.name: values[s.name] for s in self._problem.latents}

    def _log_density(self) -> dict[str, Tensor]:
        # The density itself has no row weights, unlike the term of the objective.
        batch = Batch(self._problem.arguments.values)
        scoring = self.guide.score(self.guide_own, batch)
        return {
            "log_q": total(weighted_terms(scoring, self._problem.data_plate, batch))
        }

    def _mean(self, name: str, draws: Tensor) -> Tensor:
        support = self._problem.site(name).support
        mean = draws.mean(0)
        if bool(support.check(mean).all()):
            return mean
        transform = bijection(support)
        image: Tensor = transform(transform.inv(draws).mean(0))
        return image
