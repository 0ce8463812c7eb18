"""Finds the latents on which the distribution of each latent depends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.isolation.calls import forked
from probsl.program.messages import (
    is_continuous,
    is_deterministic,
    log_density,
    refuse_changing_sites,
    visit,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Dependence:
    """The latents on which distributions depend.

    Attributes
    ----------
    parents
        Latent site -> the latents that its distribution depends on.
    written
        Reparameterized site -> the latents on which the user's original distribution
        depends.
    """

    parents: dict[str, tuple[str, ...]]
    written: dict[str, tuple[str, ...]]


def dependence_of(
    run: Callable[[], Any], messages: Mapping[str, Any], second: Mapping[str, Any]
) -> Dependence:
    """Find, for each latent, the latents on which its distribution depends.

    Continuous parents are found by whether the log density has a derivative;
    discrete ones, which have none, by changing their value.

    Parameters
    ----------
    run
        Calls the program; it must be inside `probsl.isolation.calls.isolated`.
    messages, second
        The messages of two runs, at different values of the latents.

    Raises
    ------
    ValueError
        If a latent changes another site in a way that has no gradient.
    """
    latents = {n: m for n, m in messages.items() if not m["is_observed"]}
    continuous = {
        n: m["value"].detach().clone().requires_grad_()
        for n, m in latents.items()
        if is_continuous(m["fn"])
    }
    discrete = {n: m["value"] for n, m in latents.items() if n not in continuous}
    values = {**continuous, **discrete}
    device = torch.get_default_device()
    with forked(device):  # all runs see the same random numbers, on any device
        traced = visit(run, values=values)
    refuse_changing_sites(messages, traced)
    reached = {
        name: _reached(log_density(message), continuous, name)
        for name, message in traced.items()
        if not is_deterministic(message)
    }
    parents = {name: list(reached[name]) for name in latents}
    used = {name for names in reached.values() for name in names}
    for name in [n for n in continuous if n not in used]:
        with forked(device):
            moved = visit(run, values={**values, name: second[name]["value"]})
        _refuse_detached(name, traced, moved)
    for name, value in discrete.items():
        changed = {**values, name: _other_value(traced[name], value)}
        with forked(device):
            visited = visit(run, values=changed)
        for other, message in visited.items():
            if other in latents and other != name:
                before = log_density(traced[other])
                after = log_density(message)
                if before.shape != after.shape or not torch.equal(before, after):
                    parents[other].append(name)
    return Dependence(
        {n: tuple(p) for n, p in parents.items()}, _written_parents(traced, continuous)
    )


def _written_parents(
    traced: Mapping[str, Any], continuous: Mapping[str, Tensor]
) -> dict[str, tuple[str, ...]]:
    """Return the dependences of the distributions before reparameterization."""
    written = {m["written"] for m in traced.values() if m["written"] is not None}
    return {
        site.name: _reached(
            site.density(traced[site.name]["value"]), continuous, site.name
        )
        for site in written
        if site.name in traced
    }


def _reached(
    density: Tensor, continuous: Mapping[str, Tensor], itself: str
) -> tuple[str, ...]:
    """Return the latents with respect to which a log density has a derivative."""
    others = [name for name in continuous if name != itself]
    if not density.requires_grad or not others:
        return ()
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
        density.sum(),
        [continuous[name] for name in others],
        allow_unused=True,
        retain_graph=True,
    )
    return tuple(n for n, g in zip(others, gradients, strict=True) if g is not None)


def _refuse_detached(
    name: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    """Refuse a latent that changes another site's density without a derivative."""
    for other, message in after.items():
        if other == name or is_deterministic(message):
            continue
        if not torch.equal(log_density(before[other]), log_density(message)):
            raise ValueError(
                f"latent site '{name}' changes site '{other}' in a way that has no "
                "gradient (a comparison, .item(), float(), math or numpy); compute "
                "with torch functions"
            )


def _other_value(message: Any, value: Tensor) -> Tensor:
    """Return a value of a discrete site that differs from `value` everywhere."""
    values = message["fn"].enumerate_support(expand=True)
    different = (values != value).reshape(values.shape[0], *value.shape)
    index = different.long().argmax(0, keepdim=True)
    other: Tensor = values.gather(0, index).squeeze(0)
    return other
