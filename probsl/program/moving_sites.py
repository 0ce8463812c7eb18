"""Finds the observed sites whose support depends on latents or own parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from probsl.program.messages import is_continuous, visit
from probsl.program.observed_supports import movers, moves

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

__all__ = ["moving_sites"]

# How far the program's own parameters are moved, in unconstrained space.
_STEP = 0.1


def moving_sites(
    run: Callable[[Mapping[str, Tensor]], Any],
    own: Mapping[str, Tensor],
    messages: Mapping[str, Any],
    second: Mapping[str, Any],
    bounded: Sequence[str],
) -> dict[str, tuple[str, ...]]:
    """Return, for each observed site with a moving support, the names it depends on.

    A support moves if its bounds, or the value observed in it, differ between two runs.

    Parameters
    ----------
    run
        Calls the program with values of its own parameters; it must be inside
        `probsl.isolation.calls.isolated`.
    own
        Own parameter -> unconstrained value.
    messages, second
        The messages of two runs, at different values of the latents.
    bounded
        The observed sites that do not allow all values.

    Returns
    -------
    dict
        Site -> latents and own parameters; empty without gradients to find them.
    """
    if not bounded:
        return {}
    values = {n: m["value"] for n, m in messages.items() if not m["is_observed"]}
    found = {name for name in bounded if moves(messages[name], second[name])}
    if own:
        elsewhere = {n: v + _STEP * torch.randn_like(v) for n, v in own.items()}
        other = visit(lambda: run(elsewhere), values=values)
        found |= {name for name in bounded if moves(messages[name], other[name])}
    if not found:
        return {}
    continuous = [
        n
        for n, m in messages.items()
        if not m["is_observed"] and is_continuous(m["fn"])
    ]
    leaves = {n: values[n].detach().clone().requires_grad_() for n in continuous}
    parameters = {n: v.detach().clone().requires_grad_() for n, v in own.items()}
    traced = visit(lambda: run(parameters), values={**values, **leaves})
    together = {**leaves, **parameters}
    return {n: movers(traced[n], together) for n in bounded if n in found}
