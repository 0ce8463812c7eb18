"""Shuffles rows of arrays, in memory or memory-mapped."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probsl.data.conversion import is_mapped, resident
from probsl.noise.streams import stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Arrays up to this size are shuffled row by row. Of larger ones, whose rows are far
# apart in memory, whole blocks are read, and their rows are shuffled in a buffer.
_SMALL_BYTES = 32 << 20
_BLOCK_BYTES, _BUFFER_BYTES = 16 << 10, 4 << 20
# Data that do not fit in memory are read from disk, with slow seeks.
_DISK_BLOCK_BYTES, _DISK_BUFFER_BYTES = 256 << 10, 64 << 20
# Key of the row weights among the arrays.
_WEIGHTS = ""


class ShuffledRows:
    """Shuffles rows of arrays in memory or memory-mapped.

    Each epoch visits every row once; a batch may extend into the next epoch, so that
    all have one size and every row has equal weight. The batches do not depend
    on how many are taken at a time.

    Parameters
    ----------
    arrays
        Row argument -> tensor, or memory-mapped NumPy array.
    size
        The number of rows.
    batch_size
        Rows per batch.
    seed
        Seed of the shuffling.
    weights
        One weight per row, or None.
    dtype
        The type of the floats in the batches; None keeps it.

    Notes
    -----
    Rows of large arrays are not drawn one by one: blocks of neighboring rows are
    taken in shuffled order, some hundreds of them into a buffer, and the rows in the
    buffer are shuffled. The cost of a step is then the same as with few rows. If
    rows are sorted, a batch is drawn from that many blocks.

    Examples
    --------
    >>> import torch
    >>> from probsl.data.shuffled_rows import ShuffledRows
    >>> rows = ShuffledRows({"y": torch.arange(6)}, 6, 2, seed=0)
    >>> batches, weights = rows.take(3)
    >>> batches["y"].shape, sorted(batches["y"].flatten().tolist())
    (torch.Size([3, 2]), [0, 1, 2, 3, 4, 5])
    """

    def __init__(
        self,
        arrays: Mapping[str, Any],
        size: int,
        batch_size: int,
        seed: int,
        weights: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.batch_size = batch_size
        self._dtype = dtype
        self._arrays = {n: _plain(array) for n, array in arrays.items()}
        if weights is not None:
            self._arrays[_WEIGHTS] = weights
        widest = max(_row_bytes(array) for array in self._arrays.values())
        block, buffer = _shape(widest, widest * size, self._arrays.values())
        self._size, self._rows = size, max(1, block // widest)
        self._generator = stream(seed, "rows")
        self._blocks = torch.zeros(0, dtype=torch.long, device="cpu")
        # The generator at the start of the epoch, and how many orders it gave since.
        self._epoch, self._orders = self._generator.get_state(), 0
        # Rows are gathered from these arrays, in this order, from this position on.
        self._held = self._arrays
        self._order = torch.zeros(0, dtype=torch.long, device="cpu")
        self._next = 0
        if self._rows > 1:
            blocks = max(2, buffer // (widest * self._rows))
            self._held = {
                name: _empty_like(array, blocks * self._rows)
                for name, array in self._arrays.items()
            }
            self._many = blocks

    def take(self, steps: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the next batches, see `probsl.engine.steps.feed.Blocks`."""
        wanted = steps * self.batch_size
        parts: list[dict[str, Tensor]] = []
        while wanted:
            if self._next == len(self._order):
                self._shuffle()
                self._fill()
            index = self._order[self._next : self._next + wanted]
            self._next += len(index)
            wanted -= len(index)
            parts.append({n: self._gather(a, index) for n, a in self._held.items()})
        shape = (steps, self.batch_size)
        rows = {
            name: _end_to_end([part[name] for part in parts]).unflatten(0, shape)
            for name in self._arrays
        }
        return rows, rows.pop(_WEIGHTS, None)

    def _gather(self, array: Any, index: Tensor) -> Tensor:
        if torch.is_tensor(array):
            return resident(array.index_select(0, index.to(array.device)), self._dtype)
        return resident(array.take(index.numpy(), axis=0), self._dtype)

    def state(self) -> dict[str, Any]:
        """Return the position in the epoch, see `probsl.engine.steps.feed.Blocks`."""
        return {"epoch": self._epoch, "orders": self._orders, "next": self._next}

    def restore(self, state: dict[str, Any]) -> None:
        """Return to a position."""
        self._generator.set_state(state["epoch"])
        self._blocks, self._order = self._blocks[:0], self._order[:0]
        for _ in range(state["orders"]):
            self._shuffle()
        if state["orders"]:
            self._fill()
        self._next = state["next"]

    def _shuffle(self) -> None:
        """Draw the order of an epoch, or of the next blocks of it."""
        if not len(self._blocks):
            self._epoch, self._orders = self._generator.get_state(), 0
        self._orders += 1
        count = self._size if self._rows == 1 else self._choose()
        self._order = torch.randperm(count, generator=self._generator, device="cpu")
        self._next = 0

    def _choose(self) -> int:
        """Choose the next blocks of the epoch; return their row count."""
        rows, whole = self._rows, self._size // self._rows
        if not len(self._blocks):
            blocks = math.ceil(self._size / rows)
            self._blocks = torch.randperm(
                blocks, generator=self._generator, device="cpu"
            )
        chosen, self._blocks = self._blocks[: self._many], self._blocks[self._many :]
        self._full = chosen[chosen < whole]
        # The last block of the arrays is shorter than the others.
        last = len(self._full) < len(chosen)
        self._rest = self._size - whole * rows if last else 0
        return len(self._full) * rows + self._rest

    def _fill(self) -> None:
        """Read the chosen blocks into the buffer, if rows are gathered from one."""
        if self._rows == 1:
            return
        rows, full, rest = self._rows, self._full, self._rest
        whole = self._size // rows
        for name, array in self._arrays.items():
            held = self._held[name]
            _copy_blocks(array, full, held[: len(full) * rows], rows)
            if rest:
                tail = array[whole * rows :]
                held[len(full) * rows : len(full) * rows + rest] = tail


def _copy_blocks(array: Any, chosen: Tensor, into: Any, rows: int) -> None:
    """Copy blocks of neighboring rows, all at once if they are contiguous."""
    if not _contiguous(array):
        index = (chosen[:, None] * rows + torch.arange(rows, device="cpu")).flatten()
        into[:] = array[index if torch.is_tensor(array) else index.numpy()]
        return
    whole = len(array) // rows
    blocks = array[: whole * rows].reshape(whole, rows, *array.shape[1:])
    into = into.reshape(len(chosen), rows, *array.shape[1:])
    if torch.is_tensor(array):
        torch.index_select(blocks, 0, chosen.to(array.device), out=into)
    else:
        # Any other mode than the default writes straight into the buffer.
        np.take(blocks, chosen.numpy(), axis=0, out=into, mode="clip")


def _empty_like(array: Any, count: int) -> Any:
    """Return an empty array for this many rows of the same kind."""
    shape = (count, *array.shape[1:])
    if torch.is_tensor(array):
        return array.new_empty(shape)
    return np.empty(shape, dtype=array.dtype)


def _shape(widest: int, total: int, arrays: Iterable[Any]) -> tuple[int, int]:
    """Return the bytes of a block, and of a buffer of blocks."""
    if total <= _SMALL_BYTES:
        return widest, _BUFFER_BYTES
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if any(is_mapped(array) for array in arrays) and 2 * total > memory:
        return _DISK_BLOCK_BYTES, _DISK_BUFFER_BYTES
    return _BLOCK_BYTES, _BUFFER_BYTES


def _plain(array: Any) -> Any:
    """Return a memory-mapped array as a plain one, which is faster to index."""
    return array if torch.is_tensor(array) else array.view(np.ndarray)


def _row_bytes(array: Any) -> int:
    width: int = math.prod(array.shape[1:])
    item: int = array.element_size() if torch.is_tensor(array) else array.itemsize
    return max(1, width * item)


def _contiguous(array: Any) -> bool:
    if torch.is_tensor(array):
        return bool(array.is_contiguous())
    return bool(array.flags.c_contiguous)


def _end_to_end(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
