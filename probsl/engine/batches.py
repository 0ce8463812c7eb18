"""Batches of rows: shuffled, of one size, several steps at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping


class Blocks(Protocol):
    """Where the rows of each step come from, several steps at a time."""

    batch_size: int

    def take(self, steps: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the next batches.

        Parameters
        ----------
        steps
            How many batches.

        Returns
        -------
        tuple
            Row argument -> ``[steps, batch, ...]``, and the rows' weights ``[steps,
            batch]`` or None.
        """
        ...


class ShuffledRows:
    """Batches of rows in a random order, each epoch another.

    Parameters
    ----------
    arrays
        Name -> rows.
    size
        The number of rows.
    batch_size
        Rows per batch.
    seed
        Seed of the shuffling.
    weights
        One weight per row, or None.

    Notes
    -----
    Each epoch visits every row once; a batch may reach over into the next epoch, so
    that all have one size and every row the same share.

    Examples
    --------
    >>> import torch
    >>> from probsl.engine.batches import ShuffledRows
    >>> rows = ShuffledRows({"y": torch.arange(6.0)}, 6, 2, seed=0)
    >>> batches, weights = rows.take(3)
    >>> batches["y"].shape, sorted(batches["y"].flatten().tolist())
    (torch.Size([3, 2]), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    """

    def __init__(
        self,
        arrays: Mapping[str, Tensor],
        size: int,
        batch_size: int,
        seed: int,
        weights: Tensor | None = None,
    ) -> None:
        self.batch_size = batch_size
        self._arrays = arrays
        self._size = size
        self._weights = weights
        self._generator = torch.Generator().manual_seed(seed)
        self._pending = torch.zeros(0, dtype=torch.long)

    def take(self, steps: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the next batches; see `Blocks.take`."""
        wanted = steps * self.batch_size
        while len(self._pending) < wanted:
            epoch = torch.randperm(self._size, generator=self._generator)
            self._pending = torch.cat([self._pending, epoch])
        index, self._pending = self._pending[:wanted], self._pending[wanted:]

        def gathered(array: Tensor) -> Tensor:
            return array[index].reshape(steps, self.batch_size, *array.shape[1:])

        rows = {name: gathered(array) for name, array in self._arrays.items()}
        return rows, None if self._weights is None else gathered(self._weights)
