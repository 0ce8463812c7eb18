"""The rows of a DataLoader, in batches of one size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.data.loaders import Epochs, read_batch, refuse_other_count
from probsl.noise.streams import stream_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class LoadedRows:
    """The rows of a DataLoader, read again in every epoch.

    Parameters
    ----------
    loader
        The loader.
    size
        The number of rows that the likelihood represents, N.
    batch_size
        Rows per batch, B, whatever the loader's own batch size.
    seed
        Seed of the loader's shuffling, if it does not have a generator of its own.
    read
        Maps an item of the loader to row argument -> tensor ``[rows, ...]``.
    visited
        Rows per epoch of the loader, V; None for all of them.

    Notes
    -----
    An epoch has K batches, V / B rounded up. If the last one is not full, it is
    filled with rows of weight zero, and every other row of the epoch has the weight
    K B / V: the mean over the epoch's batches, each times N / B, is then N / V times
    the sum over its rows, whatever their order. The last batch on its own counts for
    less, because it has fewer rows; scaling it by N over its own rows would weight them
    more than the others if the loader does not shuffle.
    """

    def __init__(
        self,
        loader: Any,
        size: int,
        batch_size: int,
        seed: int,
        *,
        read: Callable[[Any], dict[str, Tensor]] = dict,
        visited: int | None = None,
    ) -> None:
        self.batch_size = batch_size
        self._epochs = Epochs(loader, stream_seed(seed, "rows"))
        self._drops = bool(loader.drop_last)
        self._visited = visited or size
        self._read = read
        self._batches = self._without_end()
        # Random states of the loader before the epoch, and batches taken since.
        self._epoch, self._taken = self._epochs.states(), 0

    def take(self, steps: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the next batches, see `probsl.engine.steps.feed.Blocks`."""
        taken = [self._next() for _ in range(steps)]
        names = taken[0][0]
        rows = {name: torch.stack([rows[name] for rows, _ in taken]) for name in names}
        if self._visited % self.batch_size == 0:
            return rows, None
        filled = torch.tensor([count for _, count in taken], device="cpu")
        real = torch.arange(self.batch_size, device="cpu") < filled[:, None]
        batches = math.ceil(self._visited / self.batch_size)
        floats = [r.dtype for r in rows.values() if r.is_floating_point()]
        weights = real.to(floats[0] if floats else torch.get_default_dtype())
        return rows, weights * (batches * self.batch_size / self._visited)

    def state(self) -> dict[str, Any]:
        """Return the position in the epoch, see `probsl.engine.steps.feed.Blocks`."""
        return {"epoch": self._epoch, "taken": self._taken}

    def restore(self, state: dict[str, Any]) -> None:
        """Return to a position: the epoch is read again up to there."""
        self._epochs.restore(state["epoch"])
        self._batches = self._without_end()
        self._epoch, self._taken = state["epoch"], 0
        for _ in range(state["taken"]):
            self._next()

    def _next(self) -> tuple[dict[str, Tensor], int]:
        batch = next(self._batches)
        self._taken += 1
        return batch

    def _without_end(self) -> Iterator[tuple[dict[str, Tensor], int]]:
        """Yield batches of one size, and how many of their rows are not padding."""
        size = self.batch_size
        while True:
            self._epoch, self._taken = self._epochs.states(), 0
            seen, left = 0, _Left()
            for number, loaded in enumerate(self._epochs):
                rows = read_batch(self._read, loaded, number)
                seen += len(next(iter(rows.values())))
                left.add(rows)
                while left.count >= size:
                    yield left.first(size), size
            if left.count:
                repeated = torch.arange(size, device="cpu") % left.count
                yield {n: r[repeated] for n, r in left.rows.items()}, left.count
            self._check(seen)

    def _check(self, seen: int) -> None:
        """Refuse a loader whose number of rows is not the stated one."""
        if seen == 0:
            raise ValueError(
                "the DataLoader yields no batches in a second epoch; let its data set "
                "start again each time it is iterated"
            )
        refuse_other_count(seen, self._visited, drops=self._drops)


class _Left:
    """Rows that were loaded but not yet returned."""

    def __init__(self) -> None:
        self.rows: dict[str, Tensor] = {}
        self.count = 0

    def add(self, rows: dict[str, Tensor]) -> None:
        if self.count:
            rows = {n: torch.cat([self.rows[n], r]) for n, r in rows.items()}
        self.rows = rows
        self.count = len(next(iter(rows.values())))

    def first(self, count: int) -> dict[str, Tensor]:
        """Remove and return the first of them."""
        taken = {n: r[:count] for n, r in self.rows.items()}
        self.rows = {n: r[count:] for n, r in self.rows.items()}
        self.count -= count
        return taken
