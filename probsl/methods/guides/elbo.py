"""The objective of variational inference, as a function of one flat vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions.transforms import identity_transform

from probsl.fitting import Fit
from probsl.methods.guides.posterior import GuidePosterior
from probsl.methods.objective import Objective
from probsl.methods.starts import Start, start_vector
from probsl.program.coordinates import Coordinates, Entry
from probsl.program.scoring import Batch, total, weighted_terms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from probsl.methods.guides.guide import Guide
    from probsl.noise.record import NoiseRecord
    from probsl.program.target_density import TargetDensity


# Prefix of the names of the guide's own parameters.
GUIDE = "guide."


class ELBO:
    """The evidence lower bound as a function of one flat vector.

    Attributes
    ----------
    target
        The density that the guide approximates.
    layout
        Layout of the guide's parameters and the program's own.
    start
        The start of the guide's and the program's parameters.
    """

    def __init__(
        self,
        target: TargetDensity,
        guide: Guide,
        start: Start,
    ) -> None:
        problem = self.problem = target.problem
        self.target = target
        self.guide = guide
        names = {p.name: f"{GUIDE}{p.name}" for p in guide.functional.own_parameters}
        # A parameter shared by both is one coordinate, among the program's.
        self._places = names | guide.shared
        mine = [
            p for p in guide.functional.own_parameters if p.name not in guide.shared
        ]
        entries = [
            Entry(names[p.name], identity_transform, p.start.shape) for p in mine
        ]
        own = problem.coordinates(())
        self.layout = Coordinates([*entries, *own.entries])
        starts = _guide_starts(guide, start)
        parts = [starts[p.name].reshape(-1) for p in mine]
        parts.append(start_vector(problem, own, start, 0, 0.0))
        self.start = torch.cat(parts).to(problem.dtype)

    def split(
        self, values: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Split named values into the guide's parameters and the program's own."""
        guide = {name: values[place] for name, place in self._places.items()}
        return guide, {p.name: values[p.name] for p in self.problem.own_parameters}

    def estimate(self, x: Tensor, batch: Batch) -> Tensor:
        """Return one draw's negative ELBO per row at the flat vector ``x``."""
        problem = self.problem
        guide_own, own = self.split(self.layout.unconstrained(x))
        scoring = self.guide.score(guide_own, batch)
        log_q = total(weighted_terms(scoring, problem.data_plate, batch))
        log_p = self.target.log_density(scoring.values, own, batch)
        return (log_q - log_p) / problem.size

    def objective(self, noise: NoiseRecord, draws: int) -> Objective:
        """Return the negative ELBO per row, by some draws of its random numbers."""

        def value(x: Tensor, batch: Batch | None = None) -> Tensor:
            return self.estimate(x, batch or self.problem.batch())

        size = self.problem.size
        return Objective(
            self.target, self.layout, size, value, noise=noise, draws=draws
        )

    def averaged(
        self, x: Tensor, noise: NoiseRecord, draws: Tensor, batch: Batch | None = None
    ) -> Tensor:
        """Return the negative ELBO per row at each of the draws ``[count, d]``."""
        batch = batch or self.problem.batch()

        def one(z: Tensor) -> Tensor:
            with noise.supply(z):
                return self.estimate(x, batch)

        values: Tensor = torch.func.vmap(one)(draws)
        return values


def _guide_starts(guide: Guide, start: Start) -> dict[str, Tensor]:
    """Return the guide's start: its own, or that of a fit of the same guide."""
    own = {p.name: p.start for p in guide.functional.own_parameters}
    posterior = start.posterior if isinstance(start, Fit) else None
    if not isinstance(posterior, GuidePosterior):
        return own
    fitted = posterior.guide_own
    same = {n: v.shape for n, v in own.items()} == {
        n: v.shape for n, v in fitted.items()
    }
    if not same:
        return own
    return {n: v.detach().to(own[n].device) for n, v in fitted.items()}
