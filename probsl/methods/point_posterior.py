"""The posterior of a point fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyro.infer.autoguide import AutoDelta, init_to_value

if TYPE_CHECKING:
    from torch import Tensor

    from probsl.methods.objective import Objective
    from probsl.program.problem import Problem
    from probsl.program.target_density import TargetDensity


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
    """

    values: dict[str, Tensor]
    own: dict[str, Tensor]
    objective: Objective
    is_point: bool = True

    @property
    def target(self) -> TargetDensity:
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

    def guide(self, problem: Problem) -> AutoDelta:
        """Return Pyro's AutoDelta guide at this point, for use with Pyro's tools."""
        return AutoDelta(
            problem.program.function, init_loc_fn=init_to_value(values=self.values)
        )
