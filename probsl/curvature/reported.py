"""The values that a fit reports, as differentiable functions of its flat vector."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch.distributions import constraints

from probsl.program.generating import Generating
from probsl.program.supports import core, ends_of, image, settled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from probsl.program.problem import Problem

__all__ = ["ends_of_reported", "is_open", "reported"]


def reported(
    problem: Problem, values: Mapping[str, Tensor], deterministics: Sequence[str]
) -> dict[str, Tensor]:
    """Return the latents given, the own parameters, and some deterministic sites.

    Parameters
    ----------
    problem
        The problem, in whose isolation this is called.
    values
        Latent -> constrained value, own parameter -> unconstrained value.
    deterministics
        Names of deterministic sites.
    """
    own = {p.name: p.constrain(values[p.name]) for p in problem.own_parameters}
    latents = {s.name: values[s.name] for s in problem.latents if s.name in values}
    computed: dict[str, Tensor] = {}
    if deterministics:
        generating = Generating(latents)
        with problem.program.evaluating(), generating:
            problem.run(values, problem.arguments.values)
        computed = {n: generating.messages[n]["value"] for n in deterministics}
    return {**latents, **own, **computed}


def ends_of_reported(problem: Problem) -> dict[str, tuple[Any, Any]]:
    """Return latent or own parameter -> the ends of its support, infinite if open.

    Those with other supports than intervals, such as a simplex, are absent.
    """
    supports = {site.name: site.support for site in problem.latents}
    supports |= {
        p.name: settled(image(constraints.real, p.transform))
        for p in problem.own_parameters
    }
    found = {name: ends_of(core(support)) for name, support in supports.items()}
    return {name: ends[:2] for name, ends in found.items() if ends is not None}


def is_open(ends: tuple[Any, Any] | None) -> bool:
    """Return whether ends are those of the whole real line."""
    return ends is not None and all(
        isinstance(end, int | float) and math.isinf(end) for end in ends
    )
