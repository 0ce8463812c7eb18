"""The own parameters of which a run makes something."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from probsl.parameters import Functional


def leave_out_unreached(
    functional: Functional,
    runs: Iterable[Callable[[Mapping[str, Tensor]], Iterable[Tensor]]],
) -> None:
    """Keep those own parameters on which some results have a derivative.

    That it exists is asked and not what it is: at zero, where a search may start, a
    layer behind another has none but zero.

    Parameters
    ----------
    functional
        A program or a guide.
    runs
        Each calls it with the own parameters that it is given, and returns log
        densities and values.
    """
    if not functional.own:
        return
    reached = set()
    for run in runs:
        leaves = {
            p.name: p.start.detach().clone().requires_grad_() for p in functional.own
        }
        total = torch.stack([r.double().sum() for r in run(leaves)]).sum()
        if total.grad_fn is not None:
            gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
                total, list(leaves.values()), allow_unused=True
            )
            found = zip(leaves, gradients, strict=True)
            reached |= {name for name, gradient in found if gradient is not None}
    functional.keep(reached)
