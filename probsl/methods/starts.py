"""The start of a search: given values, or near zero in unconstrained space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.fitting import Fit
from probsl.methods.options import check_latent_names
from probsl.methods.other_starts import start_elsewhere
from probsl.noise.streams import stream
from probsl.program.places import start_tensor, start_value

if TYPE_CHECKING:
    from probsl.methods.objective import Objective
    from probsl.program.coordinates import Coordinates
    from probsl.program.problem import Problem
    from probsl.program.scoring import Batch


# Scales of the random part of a start, decreasing, and the loss allowed per row.
_SPREADS = (0.1, 1e-3, 1e-5, 1e-7)
_CALM = 10.0

Start = Mapping[str, Any] | Fit | None


def feasible_start(
    objective: Objective, start: Start, seed: int, batch: Batch | None = None
) -> Tensor:
    """Return a start, reduced toward zero until the objective is finite.

    For columns in thousands, a coefficient of 0.1 overflows an exponential.

    Parameters
    ----------
    objective
        The objective.
    start, seed
        As in `start_vector`.
    batch
        The rows on which it should be finite; None: all of them.

    Raises
    ------
    ValueError
        If the objective is not finite there, nor at any other start that was tried.
    """
    problem, layout = objective.problem, objective.layout

    def value(x: Tensor) -> float:
        with torch.no_grad():
            try:
                return float(objective(x, batch))
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                return math.nan

    at_rest = start_vector(problem, layout, start, seed, 0.0)
    limit = value(at_rest) + _CALM
    for spread in _SPREADS:
        x = start_vector(problem, layout, start, seed, spread)
        here = value(x)
        if math.isfinite(here) and not here > limit:
            return x
    free = _free(layout, problem, start)
    if not free.any():
        return at_rest
    return start_elsewhere(objective, at_rest, free, batch)


def _free(layout: Coordinates, problem: Problem, start: Start) -> Tensor:
    """Return the coordinates without given starts: those of the remaining latents."""
    fixed = {p.name for p in problem.own_parameters} | set(_given(start))
    return torch.cat(
        [
            torch.full((size,), entry.name not in fixed, device=problem.device)
            for entry, size in zip(layout.entries, layout.sizes, strict=True)
        ]
        or [torch.zeros(0, dtype=torch.bool, device=problem.device)]
    )


def _given(start: Start) -> dict[str, Any]:
    return start.point() if isinstance(start, Fit) else dict(start or {})


def start_vector(
    problem: Problem, layout: Coordinates, start: Start, seed: int, spread: float
) -> Tensor:
    """Return the start of a search, in unconstrained space.

    Parameters
    ----------
    problem
        The program bound to its data.
    layout
        Layout of the latents and own parameters.
    start
        Site -> constrained value, or a fit; other sites start near the problem's
        place in unconstrained space, own parameters at their own start values.
    seed
        Seed of the small random part, which moves symmetric programs off their saddle.
    spread
        Its standard deviation.

    Raises
    ------
    ValueError
        If a start has the wrong shape, is outside its site's support, or is
        not finite.
    """
    generator = stream(seed, "start")
    given = _given(start)
    own = {p.name: p for p in problem.own_parameters}
    parts = []
    for entry, center in layout.split(problem.center(layout)):
        shape = entry.flat_shape
        noise = spread * torch.randn(
            shape, generator=generator, dtype=problem.dtype, device="cpu"
        )
        if entry.name in given:
            part = _start_of(problem, entry.name, given.pop(entry.name))
        else:
            begun = center + noise.to(center)
            part = own[entry.name].start if entry.name in own else begun
        parts.append(part.reshape(-1).to(problem.device, problem.dtype))
    if given and not isinstance(start, Fit):
        check_latent_names(problem, given, "start")
    if not parts:
        return torch.zeros(0, dtype=problem.dtype, device=problem.device)
    return torch.cat(parts)


def _start_of(problem: Problem, name: str, value: Any) -> Tensor:
    """Return a start value in unconstrained space, checked."""
    own = {p.name: p for p in problem.own_parameters}
    like = torch.empty(0, dtype=problem.dtype, device=problem.device)
    if name in own:
        constrained = start_tensor(name, value, own[name].shape, like)
        unconstrained: Tensor = own[name].transform.inv(constrained)
        return unconstrained
    site = problem.site(name)
    return start_value(name, value, site.shape, site.support, like)[1]
