"""Applies a function to every draw, vectorized if torch can."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.isolation.calls import hold, marked, own_generator
from probsl.noise.vmapped import independent_draws

if TYPE_CHECKING:
    from collections.abc import Callable


# Maximum number of elements per site in one vectorized pass, to bound its memory.
_CHUNK_ELEMENTS = 4_000_000


# Number of attempts to vectorize if another thread interferes.
_ATTEMPTS = 3


Draws = dict[str, Tensor]


def map_draws(
    function: Callable[[Draws], Draws], draws: Draws, count: int, size: int
) -> Draws:
    """Apply a function to every draw, vectorized if torch can.

    Parameters
    ----------
    function
        Maps the values of one draw to a dict of tensors.
    draws
        Values with draws on the first axis.
    count
        The number of draws.
    size
        The number of rows, which limits how many draws are vectorized together.

    Returns
    -------
    dict
        The results with draws on a new first axis. A function that
        `torch.func.vmap` refuses (a branch on a value, a rejection sampler) is
        applied in a loop over the draws.
    """
    chunk = max(1, min(count, _CHUNK_ELEMENTS // max(size, 1)))
    index = torch.arange(count)

    def one(position: Tensor, values: Draws) -> Draws:
        # A result that does not depend on the draw still needs one entry per draw.
        blank = (position * 0).to(torch.get_default_dtype())
        return {
            name: value + (blank if value.is_floating_point() else (position * 0))
            if value.dtype != torch.bool
            else value | (position < 0)
            for name, value in function(values).items()
        }

    hold()
    rewind = marked()
    with independent_draws(own_generator):
        for _ in range(_ATTEMPTS):
            try:
                mapped = torch.func.vmap(one, randomness="different", chunk_size=chunk)
                result: Draws = mapped(index, draws)
                return result
            except Exception:
                # It may have failed because another thread changed a flag.
                if not hold():
                    break
                rewind()
        # If vmap failed for any reason, a plain loop raises the program's own error.
        rows = [function({n: v[i] for n, v in draws.items()}) for i in range(count)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
