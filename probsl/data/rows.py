"""All rows of a problem, if its arguments hold only some of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from probsl.data.arguments import Arguments, bind
from probsl.data.conversion import (
    Converter,
    is_mapped,
    refuse_overflow,
    resident,
)
from probsl.data.loaders import StreamedRows
from probsl.options import did_you_mean, several_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# From this many rows on, the steps before training use only a part of them.
_MANY = 100_000
# This many rows represent all of them before training, and a few more, so that they
# are not mistaken for columns or groups.
_AT_HAND = 1000
_MORE = 9
# Rows per part in a pass over all of them.
_PART = 1 << 16


@dataclass(frozen=True, eq=False)
class StoredRows:
    """All rows of a problem, in arrays in memory or memory-mapped.

    Attributes
    ----------
    arrays
        Row argument -> tensor, or memory-mapped NumPy array.
    size
        The number of rows, N.
    index
        Indices of the rows that the problem's arguments hold.
    dtype
        The floating type in which rows are read; None keeps it.
    device
        The device to which rows are read; None keeps it.
    """

    arrays: dict[str, Any]
    size: int
    index: Tensor
    dtype: torch.dtype | None = None
    device: torch.device | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments with one entry per row."""
        return tuple(self.arrays)

    def read_as(self, dtype: torch.dtype, device: torch.device) -> StoredRows:
        """Return the same rows, to be read onto a device, with floats of type `dtype`.

        Raises
        ------
        ValueError
            If a number is too large for `dtype`.
        """
        for name, array in self.arrays.items():
            refuse_overflow(name, array, dtype)
        return replace(self, dtype=dtype, device=device)

    def at(self, index: Tensor) -> dict[str, Tensor]:
        """Read some rows."""
        return {n: self._read(a, index) for n, a in self.arrays.items()}

    def parts(self) -> Iterator[tuple[dict[str, Tensor], slice]]:
        """Yield all rows in order, in parts, with the slice of each part."""
        for start in range(0, self.size, _PART):
            part = slice(start, min(start + _PART, self.size))
            yield (
                {n: self._resident(a[part]) for n, a in self.arrays.items()},
                part,
            )

    def _read(self, array: Any, index: Tensor) -> Tensor:
        rows = array[index if torch.is_tensor(array) else index.numpy()]
        return self._resident(rows)

    def _resident(self, rows: Any) -> Tensor:
        return resident(rows, self.dtype, self.device)


AllRows = StoredRows | StreamedRows


def at_hand(
    function: Callable[..., Any],
    data: Any,
    *,
    rows: Sequence[str] | None,
    labels: Mapping[str, tuple[Any, ...]] | None,
    batch_size: int | None,
    total: int | None,
) -> tuple[Arguments, AllRows | None]:
    """Return a program's arguments, and the source of the rows that they omit.

    Batches of many rows, of memory-mapped arrays and of loaders leave the rows in
    place: the arguments hold some of them, which represent all before training.

    Parameters
    ----------
    function
        The program.
    data
        Its arguments, see `probsl.fit`.
    rows
        The names of the arguments that are rows, if the user gave them.
    labels
        The labels of earlier arguments, which these must match.
    batch_size
        Rows per step; None for all of them, or for those of a loader's batch.
    total
        The number of rows of a loader.

    Raises
    ------
    ValueError, TypeError
        If the data do not fit this program.
    """
    if isinstance(data, DataLoader):
        stream = StreamedRows(data, function, total)
        arguments = stream.at_hand(batch_size, rows, labels)
        return arguments, None if stream.held else stream
    if total is not None:
        raise ValueError(
            "total needs a DataLoader; arrays say themselves how many rows there are"
        )
    arguments = bind(function, data, labels=labels)
    if batch_size is None:
        return arguments, None
    size = _size(arguments, rows)
    mapped = any(is_mapped(array) for array in arguments.arrays().values())
    count = max(batch_size, _AT_HAND) + _MORE
    if size <= count or not (mapped or size > _MANY):
        return arguments, None
    names = find_rows(arguments, size, rows, {})
    if rows is None:
        _refuse_unequal(arguments, size)
    places = torch.linspace(0, size - 1, count, dtype=torch.float64, device="cpu")
    index = places.long()
    arrays = {name: arguments.values[name] for name in names}
    stored = StoredRows(arrays, size, index)
    held = replace(arguments, values={**arguments.values, **stored.at(index)})
    return held, stored


def _size(arguments: Arguments, rows: Sequence[str] | None) -> int:
    """Return the number of rows, by the longest array."""
    lengths = arguments.lengths()
    if rows is not None and not isinstance(rows, str):
        named = [lengths[name] for name in rows if name in lengths]
        if named:
            return named[0]
    return max(lengths.values(), default=0)


def _refuse_unequal(arguments: Arguments, size: int) -> None:
    """Refuse an array that is nearly as long as the rows, or mapped like them."""
    for name, length in arguments.lengths().items():
        long = 2 * length > size or is_mapped(arguments.values[name])
        if length != size and long:
            raise ValueError(
                f"argument '{name}' has {length} entries where the longest array has "
                f"{size}; give one entry per row each, or name those that are rows, "
                "for example rows=('x', 'y')"
            )


class UnclearRowsError(ValueError):
    """Lengths do not determine which arguments have one entry per row."""


def find_rows(
    arguments: Arguments,
    size: int,
    rows: Sequence[str] | None,
    other_plates: Mapping[str, int],
) -> tuple[str, ...]:
    """Find the arguments with one entry per row.

    Parameters
    ----------
    arguments
        The program's arguments.
    size
        The number of rows, N.
    rows
        The names of the arguments, if the user gave them.
    other_plates
        Name -> size of the plates that are not the data plate.

    Raises
    ------
    UnclearRowsError
        If the lengths do not determine them.
    ValueError
        If they contradict the user's names.
    """
    lengths = arguments.lengths()
    matching = tuple(n for n, length in lengths.items() if length == size)
    if rows is not None:
        for name in several_names("rows", rows):
            if name not in lengths:
                raise ValueError(
                    f"rows names '{name}', which is not an array argument; those are "
                    f"{', '.join(lengths)}{did_you_mean(name, lengths)}"
                )
            if name not in matching:
                raise ValueError(
                    f"rows names '{name}', whose first axis is {lengths[name]}, but "
                    f"the data plate has {size} rows; name arguments of that length"
                )
        return tuple(rows)
    remedy = f"say which arguments have one entry per row, for example rows={matching}"
    if size > 1:
        for name in matching:
            if size in arguments.values[name].shape[1:]:
                raise UnclearRowsError(
                    f"argument '{name}' has {size} entries along several axes, so it "
                    f"is not clear which are rows; {remedy}"
                )
        for name, other in other_plates.items():
            if other == size and matching:
                raise UnclearRowsError(
                    f"plate '{name}' is of size {size}, as many as there are rows, so "
                    f"it is not clear which arguments are rows; {remedy}"
                )
    return matching


def row_weights(
    weights: Any, size: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Check and convert one weight per row.

    Raises
    ------
    ValueError
        If a weight is negative or not finite, or their number differs from the
        number of rows.
    """
    converted = Converter()("weights", weights)
    converted = resident(converted) if is_mapped(converted) else converted
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
