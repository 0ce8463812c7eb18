"""Where a search begins: given values, or near zero in unconstrained space."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.fit import Fit
from probsl.methods.method_options import check_latent_names
from probsl.options import shown
from probsl.supports import bijection

if TYPE_CHECKING:
    from probsl.coordinates import Coordinates
    from probsl.problem import Problem


# Random parts of a start, ever closer to zero, and what they may cost per row.
_SPREADS = (0.1, 1e-3, 1e-5, 1e-7)


_CALM = 10.0


Start = Mapping[str, Any] | Fit | None


def calm_start(
    objective: Callable[[Tensor], Tensor],
    problem: Problem,
    layout: Coordinates,
    start: Start,
    seed: int,
) -> Tensor:
    """Return where to begin, no farther from zero than the objective bears.

    On columns in thousands a coefficient of 0.1 overflows an exponential.

    Parameters
    ----------
    objective
        A mean over rows.
    problem, layout, start, seed
        As in `start_vector`.
    """

    def value(x: Tensor) -> float:
        with torch.no_grad():
            try:
                return float(objective(x))
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                return math.nan

    at_rest = start_vector(problem, layout, start, seed, 0.0)
    limit = value(at_rest) + _CALM
    for spread in _SPREADS:
        x = start_vector(problem, layout, start, seed, spread)
        here = value(x)
        if math.isfinite(here) and not here > limit:
            return x
    return at_rest


def start_vector(
    problem: Problem, layout: Coordinates, start: Start, seed: int, spread: float
) -> Tensor:
    """Return where to begin, in unconstrained space.

    Parameters
    ----------
    problem
        The program bound to its data.
    layout
        Of the latents and own parameters.
    start
        Site -> constrained value, or a fit; sites left out begin near zero in
        unconstrained space, own parameters at their own values.
    seed
        Of the small random part, which takes symmetric programs off their saddle.
    spread
        Its standard deviation.

    Raises
    ------
    ValueError
        If a start has another shape than its site, is outside its support, or is
        not finite.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    given = start.point() if isinstance(start, Fit) else dict(start or {})
    own = {p.name: p for p in problem.own}
    parts = []
    for entry in layout.entries:
        shape = entry.flat_shape
        noise = spread * torch.randn(
            shape, generator=generator, dtype=problem.dtype, device="cpu"
        )
        if entry.name in given:
            part = _start_of(problem, entry.name, given.pop(entry.name))
        else:
            part = own[entry.name].start if entry.name in own else noise
        parts.append(part.reshape(-1).to(problem.device, problem.dtype))
    if given and not isinstance(start, Fit):
        check_latent_names(problem, given, "start")
    if not parts:
        return torch.zeros(0, dtype=problem.dtype, device=problem.device)
    return torch.cat(parts)


def _start_of(problem: Problem, name: str, value: Any) -> Tensor:
    """Return a start value in unconstrained space, checked."""
    own = {p.name: p for p in problem.own}
    try:
        constrained = torch.as_tensor(value).detach()
        constrained = constrained.to(problem.device, problem.dtype)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"start of '{name}' must be a number or an array, got {shown(value)}"
        ) from None
    shape = own[name].shape if name in own else problem.site(name).shape
    if constrained.shape != shape:
        raise ValueError(
            f"start of '{name}' has shape {tuple(constrained.shape)}, but the site has "
            f"shape {tuple(shape)}; give both the same"
        )
    if not bool(constrained.isfinite().all()):
        raise ValueError(
            f"start of '{name}' is not finite, {shown(constrained.tolist())}; give "
            "finite numbers"
        )
    if name in own:
        unconstrained: Tensor = own[name].transform.inv(constrained)
        return unconstrained
    support = problem.site(name).support
    if not bool(support.check(constrained).all()):
        raise ValueError(
            f"start of '{name}' is outside its support, {support}: "
            f"{shown(constrained.tolist())}; start inside it"
        )
    transform = bijection(support)
    unconstrained = transform.inv(constrained)
    if not bool(unconstrained.isfinite().all()):
        raise ValueError(
            f"start of '{name}' lies on the edge of its support, {support}; start "
            "inside it"
        )
    return unconstrained
