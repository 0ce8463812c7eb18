"""Finds the own parameters that a run uses."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.program.messages import (
    is_computed,
    is_observation,
    log_density,
    visit,
)
from probsl.program.observed_supports import is_bounded
from probsl.program.sites import inventory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from probsl.data.arguments import Arguments
    from probsl.program.messages import Plate
    from probsl.program.places import Place
    from probsl.program.sites import Site
    from probsl.program.stateless_callable import StatelessCallable


def leave_out_unreached(
    functional: StatelessCallable,
    runs: Iterable[Callable[[Mapping[str, Tensor]], Iterable[Tensor]]],
) -> None:
    """Keep only the own parameters with respect to which a result has a derivative.

    Only its existence is tested, not its value: at zero, where a search may start, the
    derivative of a layer behind another one is zero.

    Parameters
    ----------
    functional
        A program or a guide.
    runs
        Each calls it with the given own parameters, and returns log
        densities and values.
    """
    if not functional.own_parameters:
        return
    reached = set()
    for run in runs:
        leaves = {
            p.name: p.start.detach().clone().requires_grad_()
            for p in functional.own_parameters
        }
        total = torch.stack([r.double().sum() for r in run(leaves)]).sum()
        if total.grad_fn is not None:
            gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
                total, list(leaves.values()), allow_unused=True
            )
            found = zip(leaves, gradients, strict=True)
            reached |= {name for name, gradient in found if gradient is not None}
    functional.keep(reached)


def runs_of(
    functional: StatelessCallable, arguments: Mapping[str, Any], place: Place
) -> Iterator[Callable[[Mapping[str, Tensor]], Iterator[Tensor]]]:
    """Yield runs of a program that return its log densities and computed values."""

    def run(own: Mapping[str, Tensor], jitter: float) -> Iterator[Tensor]:
        call = partial(functional, own, arguments)
        messages = visit(call, jitter=jitter, place=place)
        for message in messages.values():
            if is_computed(message):
                yield message["value"]
            yield log_density(message)

    for jitter in (0.1, 0.3):
        yield partial(run, jitter=jitter)


def reached_sites(
    functional: StatelessCallable,
    arguments: Arguments,
    messages: Mapping[str, Any],
    plate: Plate | None,
    place: Place,
) -> tuple[Site, ...]:
    """Return the sites, and leave out own parameters that the program never uses."""
    observed = {n: m for n, m in messages.items() if is_observation(m)}
    sites = inventory(
        lambda own: functional(own, arguments.values),
        {p.name: p.start for p in functional.own_parameters},
        plate,
        place,
        [n for n, message in observed.items() if is_bounded(message)],
    )
    leave_out_unreached(functional, runs_of(functional, arguments.values, place))
    return sites
