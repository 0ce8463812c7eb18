"""All rows of a problem: held by its arguments, stored in arrays, or streamed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol

import torch
from torch import Tensor

from probsl.data.conversion import (
    Converter,
    is_array,
    refuse_overflow,
    resident,
)
from probsl.data.shuffled_rows import ShuffledRows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from probsl.engine.steps.feed import Blocks

# Rows per part in a pass over all stored rows.
_PART = 1 << 16
# Above this many rows, no results per row are computed.
_MANY_ROWS = 1_000_000


class Rows(Protocol):
    """All rows of a problem, wherever they are.

    The problem's arguments hold all of them (`HeldRows`), or some that represent all
    before training, while the others stay in their arrays (`StoredRows`) or their
    loader (`probsl.data.streamed_rows.StreamedRows`). Rows are a dict from the name of
    an argument to its values ``[rows, ...]``, with one weight per row, or None for
    weights of 1.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments with one entry per row."""

    @property
    def unclear(self) -> str:
        """Why it is unclear which arguments are rows; empty if it is clear.

        If unclear, `names` are all candidates, and there can be no batches.
        """

    @property
    def size(self) -> int:
        """The number of rows, N."""

    @property
    def held(self) -> int:
        """The number of rows in the problem's arguments."""

    @property
    def complete(self) -> bool:
        """Whether the problem's arguments hold all rows."""

    @property
    def batch_size(self) -> int | None:
        """Rows per step if none are given; None if they can be fitted at once."""

    @property
    def weights(self) -> Tensor | None:
        """One weight per row, shape ``[size]``, or None."""

    @property
    def held_weights(self) -> Tensor | None:
        """The weights of the rows in the problem's arguments."""

    def read_as(self, dtype: torch.dtype, device: torch.device) -> Rows:
        """Return the same rows, to be read onto a device, with floats of type `dtype`.

        Raises
        ------
        ValueError
            If a number is too large for `dtype`.
        """

    def reweighted(
        self, weights: Any, dtype: torch.dtype, device: torch.device
    ) -> Rows:
        """Return the same rows with other weights, None for weights of 1.

        Raises
        ------
        ValueError
            If the weights are not one nonnegative number per row, or the rows come in
            any order.
        """

    def spread(self, count: int) -> Tensor:
        """Return the indices of some rows, as far apart as can be read."""

    def at(self, index: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Read some rows; of a DataLoader, of those in the problem's arguments.

        They are empty if no argument has one entry per row.
        """

    def parts(self) -> Iterator[tuple[dict[str, Tensor], Tensor | None]]:
        """Yield all rows in parts; none are named if the problem's arguments are all.

        Arrays are read in order.
        """

    def blocks(self, batch_size: int, seed: int) -> Blocks:
        """Return the source of batches of rows, shuffled by a seed."""

    def load(self) -> dict[str, Any]:
        """Return the arrays with all rows.

        Raises
        ------
        ValueError
            If they are in a DataLoader, or too many for results per row.
        """


@dataclass(frozen=True, eq=False)
class HeldRows:
    """All rows, in the arguments of a problem; see `Rows`.

    Attributes
    ----------
    size
        The number of rows; of observed values if there is no data plate.
    names
        The arguments with one entry per row; none until a run has shown the plates.
    arrays
        The arrays that batches index: those arguments, or an index of the rows.
    """

    size: int = 1
    names: tuple[str, ...] = ()
    arrays: dict[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None
    unclear: str = ""
    complete: ClassVar[bool] = True
    batch_size: ClassVar[None] = None

    @property
    def held(self) -> int:
        """The number of rows."""
        return self.size

    @property
    def held_weights(self) -> Tensor | None:
        """The weights of all rows."""
        return self.weights

    def read_as(self, dtype: torch.dtype, device: torch.device) -> HeldRows:  # noqa: ARG002
        """Return the same rows: they are read with the arguments."""
        return self

    def reweighted(
        self, weights: Any, dtype: torch.dtype, device: torch.device
    ) -> HeldRows:
        """Return the same rows with other weights, see `Rows.reweighted`."""
        return replace(self, weights=row_weights(weights, self.size, dtype, device))

    def spread(self, count: int) -> Tensor:
        """Return indices at equal distances."""
        return spread(count, self.size)

    def at(self, index: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return some rows."""
        rows = {name: array[index] for name, array in self.arrays.items()}
        return rows, _weights_at(self.weights, index)

    def parts(self) -> Iterator[tuple[dict[str, Tensor], Tensor | None]]:
        """Yield the weights of all rows once; the arguments hold their values."""
        yield {}, self.weights

    def blocks(self, batch_size: int, seed: int) -> Blocks:
        """Return shuffled batches."""
        return ShuffledRows(self.arrays, self.size, batch_size, seed, self.weights)

    def load(self) -> dict[str, Any]:
        """Return the arrays with all rows."""
        return self.arrays


@dataclass(frozen=True, eq=False)
class StoredRows:
    """All rows, in arrays in memory or memory-mapped, of which some are held.

    See `Rows`.

    Attributes
    ----------
    arrays
        Row argument -> tensor, or memory-mapped NumPy array.
    size
        The number of rows, N.
    index
        Indices of the rows that the problem's arguments hold.
    batch_size
        Rows per step, for which they are stored.
    dtype
        The floating type in which rows are read; None keeps it.
    device
        The device to which rows are read; None keeps it.
    """

    arrays: dict[str, Any]
    size: int
    index: Tensor
    batch_size: int
    weights: Tensor | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    complete: ClassVar[bool] = False
    unclear: ClassVar[str] = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments with one entry per row."""
        return tuple(self.arrays)

    @property
    def held(self) -> int:
        """The number of rows in the problem's arguments."""
        return len(self.index)

    @property
    def held_weights(self) -> Tensor | None:
        """The weights of the rows in the problem's arguments."""
        return _weights_at(self.weights, self.index)

    def read_as(self, dtype: torch.dtype, device: torch.device) -> StoredRows:
        """Return the same rows, read in another form, see `Rows.read_as`."""
        for name, array in self.arrays.items():
            refuse_overflow(name, array, dtype)
        return replace(self, dtype=dtype, device=device)

    def reweighted(
        self, weights: Any, dtype: torch.dtype, device: torch.device
    ) -> StoredRows:
        """Return the same rows with other weights, see `Rows.reweighted`."""
        return replace(self, weights=row_weights(weights, self.size, dtype, device))

    def spread(self, count: int) -> Tensor:
        """Return indices at equal distances."""
        return spread(count, self.size)

    def at(self, index: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Read some rows."""
        rows = {n: self._read(a, index) for n, a in self.arrays.items()}
        return rows, _weights_at(self.weights, index)

    def parts(self) -> Iterator[tuple[dict[str, Tensor], Tensor | None]]:
        """Yield all rows in order, in parts."""
        for start in range(0, self.size, _PART):
            part = slice(start, min(start + _PART, self.size))
            rows = {n: self._resident(a[part]) for n, a in self.arrays.items()}
            yield rows, None if self.weights is None else self.weights[part]

    def blocks(self, batch_size: int, seed: int) -> Blocks:
        """Return shuffled batches."""
        return ShuffledRows(
            self.arrays, self.size, batch_size, seed, self.weights, dtype=self.dtype
        )

    def load(self) -> dict[str, Any]:
        """Return the arrays, if their rows are not too many."""
        if self.size > _MANY_ROWS:
            refuse_all(f"are {self.size}, too many to hold with the draws of each")
        return self.arrays

    def _read(self, array: Any, index: Tensor) -> Tensor:
        rows = array[index if torch.is_tensor(array) else index.numpy()]
        return self._resident(rows)

    def _resident(self, rows: Any) -> Tensor:
        return resident(rows, self.dtype, self.device)


def refuse_all(why: str) -> NoReturn:
    """Refuse results for every row.

    Raises
    ------
    ValueError
        Saying why, and what to do instead.
    """
    raise ValueError(
        f"the rows of this fit {why}, so they cannot all be shown; score some "
        "with log_score(fit, data), or fit some of them as arrays"
    )


def spread(count: int, size: int) -> Tensor:
    """Return indices at equal distances, from the first row to the last."""
    places = torch.linspace(0, size - 1, count, dtype=torch.float64, device="cpu")
    return places.long()


def _weights_at(weights: Tensor | None, index: Tensor) -> Tensor | None:
    return None if weights is None else weights[index]


def row_weights(
    weights: Any, size: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """Check and convert one weight per row; None stays None, for weights of 1.

    Raises
    ------
    ValueError
        If a weight is negative or not finite, or their number differs from the
        number of rows.
    """
    if weights is None:
        return None
    converted = Converter()("weights", weights)
    converted = resident(converted) if is_array(converted) else converted
    if not torch.is_tensor(converted) or converted.shape != (size,):
        got = (
            tuple(converted.shape)
            if torch.is_tensor(converted)
            else type(converted).__name__
        )
        raise ValueError(f"weights must have shape ({size},), one per row, got {got}")
    negative = converted < 0
    count = int(negative.sum())
    if count:
        raise ValueError(
            f"weights has {count} negative value{'s' * (count > 1)}, the first in row "
            f"{int(negative.nonzero()[0, 0])}; give zero or more"
        )
    if not (converted > 0).any():
        raise ValueError("weights are all zero, so no row is left; keep some positive")
    refuse_overflow("weights", converted, dtype)
    weight: Tensor = converted.to(device, dtype)
    return weight
