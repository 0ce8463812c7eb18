"""Batches of rows, all of one shape, shuffled or loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from probsl.data.loaded_rows import LoadedRows
from probsl.data.loaders import StreamedRows
from probsl.data.shuffled_rows import ShuffledRows

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from probsl.data.rows import AllRows
    from probsl.engine.steps.feed import Blocks


def batches_of(
    source: AllRows | None,
    arrays: Mapping[str, Any],
    size: int,
    batch_size: int,
    seed: int,
    *,
    weights: Tensor | None,
    dtype: torch.dtype,
) -> Blocks:
    """Return a source of batches of rows.

    Parameters
    ----------
    source
        The source of the rows; None if they are held in memory.
    arrays
        Row argument -> its rows, if they are held.
    size
        The number of rows.
    batch_size
        Rows per batch.
    seed
        Seed of the shuffling.
    weights
        A weight for each row; None for ones.
    dtype
        The type of the floats of a batch.
    """
    if isinstance(source, StreamedRows):
        return LoadedRows(
            source.loader,
            source.size,
            batch_size,
            seed,
            read=source.read,
            visited=source.visited,
        )
    held = arrays if source is None else source.arrays
    return ShuffledRows(held, size, batch_size, seed, weights, dtype=dtype)
