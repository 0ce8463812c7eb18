"""Maximum likelihood with random effects integrated out: its objective."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.distributions import constraints

from probsl.curvature.marginal_density import MarginalDensity
from probsl.engine.minimize.minimize import SearchOptions, minimize
from probsl.methods.objective import Objective
from probsl.program.supports import core

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from probsl.methods.objective import Value
    from probsl.program.coordinates import Coordinates
    from probsl.program.scoring import Batch
    from probsl.program.target_density import TargetDensity

__all__ = ["marginal_objective"]

# Sizes of the scales that are tried, on the log scale. Smaller ones are approached from
# above: below the optimum the likelihood is flat.
_SHIFTS = (8.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.0)
# The search for a start: few steps, without Hessians.
_FEW = SearchOptions(1e-3, 100, 0)


def marginal_objective(
    target: TargetDensity,
    integrated: tuple[str, ...],
    held: Mapping[str, Tensor] | None = None,
) -> Objective:
    """Return the negative log marginal density per row.

    Parameters
    ----------
    target
        The density of data and latents, without the priors of parameters.
    integrated
        The latents to integrate out.
    held
        Latent -> value of those that are held still.
    """
    density = MarginalDensity(target, integrated, held or {})
    size = target.problem.information

    def value(x: Tensor, batch: Batch | None = None) -> Tensor:
        return -density.at(x, density.layout, batch) / size

    def better_start(x: Tensor) -> Tensor:
        return _better_start(density, value, x)

    return Objective(density, density.layout, size, value, better_start=better_start)


def _better_start(density: MarginalDensity, value: Value, x: Tensor) -> Tensor:
    """Return a start nearer to the optimum, if there is one.

    Far from it, a large scale of the effects explains the data as well as the right
    mean does. So the mode of data and effects together is found first, with the scales
    of the effects held still, for they would go to zero there. Then all scales are
    tried in several sizes: correlations of effects that are much too small go to one.

    Parameters
    ----------
    density
        The marginal density.
    value
        The objective.
    x
        The start, shape ``[p]``.
    """
    layout, scales = density.layout, _scales(density)
    held = _coordinates(layout, scales)
    size = int((~held).sum())
    problem = density.problem

    def together(z: Tensor) -> Tensor:
        phi = x.masked_scatter(~held, z[:size])
        return -density.log_joint(phi, z[size:]) / problem.information

    effects = density.start_of_effects().to(x)
    found = minimize(together, torch.cat([x[~held], effects]), _FEW)
    moved = x.masked_scatter(~held, found.x[:size].detach())
    with torch.no_grad():
        if not float(value(moved, None)) < float(value(x, None)):
            moved = x
    single = {e.name for e in layout.entries if e.flat_shape == e.shape}
    free = _coordinates(layout, scales & single)
    tried = [moved + shift * free for shift in _SHIFTS] if free.any() else [moved]
    with torch.no_grad():
        values = [float(value(each, None)) for each in tried]
    known = [v if math.isfinite(v) else math.inf for v in values]
    return tried[known.index(min(known))]


def _coordinates(layout: Coordinates, names: set[str]) -> Tensor:
    """Return which coordinates belong to some entries, shape ``[p]``."""
    return torch.cat(
        [
            torch.full((size,), entry.name in names)
            for entry, size in zip(layout.entries, layout.sizes, strict=True)
        ]
    )


def _scales(density: MarginalDensity) -> set[str]:
    """Return the parameters of the effects' distributions that are no locations."""
    problem = density.joint.problem
    parents = {
        parent
        for site in problem.latents
        if site.name in density.integrated
        for parent in site.parents
    }
    return {
        site.name
        for site in problem.latents
        if site.name in parents and core(site.support) is not constraints.real
    }
