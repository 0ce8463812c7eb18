"""The objective of point fits, as a function of one flat vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from probsl.methods.options import as_tensors
from probsl.noise.record import NoiseRecord, record

if TYPE_CHECKING:
    from collections.abc import Callable

    from probsl.program.coordinates import Coordinates
    from probsl.program.problem import Problem
    from probsl.program.scoring import Batch


class PointObjective:
    """The negative log density per row as a function of the flat vector.

    Attributes
    ----------
    size
        The total weight of the rows: the density is divided by it.
    """

    def __init__(
        self,
        problem: Problem,
        layout: Coordinates,
        weights: dict[str, float],
        *,
        jacobian: bool,
    ) -> None:
        self.problem = problem
        self.size = problem.information
        self.layout = layout
        self.weights = weights
        self.jacobian = jacobian
        self._factors = as_tensors(problem, weights)
        self._latents = {s.name for s in problem.latents}

    def __call__(self, x: Tensor, batch: Batch | None = None) -> Tensor:
        """Return the value at a point [size], for some rows or all of them."""
        values, jacobian = self.layout.constrain_with_jacobian(
            x, self.problem.weight_rows
        )
        density = self.problem.log_density(
            values, values, batch, prior_weights=self._factors
        )
        if self.jacobian:
            density = density + jacobian
        return -density / self.size

    def noise(self, x: Tensor, batch: Batch) -> NoiseRecord | None:
        """Return the random numbers of the program, as in dropout; None without any."""
        try:
            with torch.no_grad():
                found = record(lambda: self(x, batch))
        except LinAlgError:  # the search will report that it cannot start here
            return None
        return found if found.requests or not found.replayable else None

    def at_each(self, points: Tensor) -> Tensor:
        """Return the values [n] at points [n, size], one by one."""
        with torch.no_grad():
            return torch.stack([self(x) for x in points])

    def named(self, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Split a point into latents and own parameters."""
        values = self.layout.constrain(x)
        latents = {n: v for n, v in values.items() if n in self._latents}
        return latents, {n: v for n, v in values.items() if n not in self._latents}

    def without_l1(
        self,
    ) -> tuple[Callable[[Tensor], Tensor], tuple[Tensor, Tensor] | None]:
        """Return the objective without Laplace priors, and these as a penalty.

        The penalty is (center, weight) per coordinate, or None without any.
        """
        problem, size = self.problem, self.size
        penalties = {
            s.name: s.l1
            for s in problem.latents
            if s.l1 is not None and self.weights.get(s.name, 1.0) > 0
        }
        if not penalties:
            return self, None
        centers, weights, constant = [], [], 0.0
        for entry, length in zip(self.layout.entries, self.layout.sizes, strict=True):
            center = torch.zeros(length, dtype=problem.dtype)
            weight = torch.zeros(length, dtype=problem.dtype)
            if entry.name in penalties:
                location, scale = penalties[entry.name]
                factor = self.weights.get(entry.name, 1.0)
                center = location.reshape(-1).clone()
                weight = factor / scale.reshape(-1) / size
                constant += factor * float(torch.log(2 * scale).sum()) / size
            centers.append(center)
            weights.append(weight)
        rest = {**self.weights, **dict.fromkeys(penalties, 0.0)}
        smooth = PointObjective(problem, self.layout, rest, jacobian=self.jacobian)
        return lambda x: smooth(x) + constant, (torch.cat(centers), torch.cat(weights))
