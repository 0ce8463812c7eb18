"""The density that a fit maximizes or approximates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from probsl.program.coordinates import Coordinates
    from probsl.program.problem import Problem
    from probsl.program.scoring import Batch

Space = Literal["constrained", "unconstrained"]


class Density(Protocol):
    """A log density of data and latents, of which some may be integrated out."""

    @property
    def problem(self) -> Problem:
        """The program bound to its data."""

    @property
    def prior_weights(self) -> Mapping[str, float]:
        """Site -> factor of its log prior, 1 where absent; 0 drops the prior."""

    @property
    def space(self) -> Space:
        """The space in which a point maximizes the density."""

    @property
    def integrated(self) -> tuple[str, ...]:
        """The latents that are integrated out."""

    @property
    def has_priors(self) -> bool:
        """Whether the prior of any parameter counts."""

    def in_double(self) -> Density:
        """Return the same density, computed in float64."""

    def log_density(
        self,
        values: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        batch: Batch | None = None,
    ) -> Tensor:
        """Return the log density in constrained space, a scalar."""

    def at(self, x: Tensor, layout: Coordinates, batch: Batch | None = None) -> Tensor:
        """Return the log density in `space`, a scalar, at a flat vector [d]."""


@dataclass(frozen=True, eq=False)
class TargetDensity:
    """A program's density of data and latents, with a factor for each log prior.

    Attributes
    ----------
    problem
        The program bound to its data.
    prior_weights
        Site -> factor of its log prior, 1 where absent; 0 drops the prior.
    space
        The space in which a point maximizes the density.
    """

    problem: Problem
    prior_weights: Mapping[str, float]
    space: Space = "constrained"

    @property
    def integrated(self) -> tuple[str, ...]:
        """The latents that are integrated out: none."""
        return ()

    def in_double(self) -> TargetDensity:
        """Return the same density, computed in float64."""
        return replace(self, problem=self.problem.in_double())

    @property
    def has_priors(self) -> bool:
        """Whether the prior of any parameter counts."""
        sites = (s for s in self.problem.latents if not s.auxiliary)
        return any(self.prior_weights.get(s.name, 1.0) != 0 for s in sites)

    def log_density(
        self,
        values: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        batch: Batch | None = None,
    ) -> Tensor:
        """Return the log density in constrained space, a scalar.

        Parameters
        ----------
        values, own, batch
            As in `probsl.program.problem.Problem.log_density`.
        """
        return self.problem.log_density(values, own, batch, prior_weights=self._factors)

    def at(self, x: Tensor, layout: Coordinates, batch: Batch | None = None) -> Tensor:
        """Return the log density in `space`, a scalar, at a flat vector [d]."""
        values, jacobian = layout.constrain_with_jacobian(x, self.problem.weight_rows)
        density = self.log_density(values, values, batch)
        return density + jacobian if self.space == "unconstrained" else density

    @cached_property
    def _factors(self) -> dict[str, float | Tensor]:
        """Prior weights as tensors, so that one graph serves all nonzero ones.

        A number would be a constant of the graph, so that each number would be compiled
        again. A prior of weight 0 is left out of the graph.
        """
        problem = self.problem
        options: Any = {"dtype": problem.dtype, "device": problem.device}
        return {
            name: torch.tensor(weight, **options) if weight else 0.0
            for name, weight in self.prior_weights.items()
        }
