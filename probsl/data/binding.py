"""Binds data to the arguments of a program, and finds where its rows are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from probsl.data.arguments import Arguments, bind
from probsl.data.conversion import is_mapped
from probsl.data.row_names import find_rows
from probsl.data.rows import HeldRows, Rows, StoredRows, spread
from probsl.data.streamed_rows import stream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from probsl.data.data_options import DataOptions

# From this many rows on, the steps before training use only a part of them.
_MANY = 100_000
# This many rows represent all of them before training, and a few more, so that they
# are not mistaken for columns or groups.
_AT_HAND = 1000
_MORE = 9


def bind_rows(
    function: Callable[..., Any],
    data: Any,
    options: DataOptions,
    labels: Mapping[str, tuple[Any, ...]] | None = None,
) -> tuple[Arguments, Rows]:
    """Return a program's arguments, and all rows.

    Batches of many rows, of memory-mapped arrays and of loaders leave the rows in
    place: the arguments hold some of them, which represent all before training.

    Parameters
    ----------
    function
        The program.
    data
        Its arguments, see `probsl.fit`.
    options
        How to bind them.
    labels
        The labels of earlier arguments, which these must match.

    Raises
    ------
    ValueError, TypeError
        If the data do not fit this program.
    """
    if isinstance(data, DataLoader):
        return stream(function, data, options, labels)
    if options.total is not None:
        raise ValueError(
            "total needs a DataLoader; arrays say themselves how many rows there are"
        )
    arguments = bind(function, data, labels=labels)
    batch_size, rows = options.batch_size, options.rows
    if batch_size is None:
        return arguments, HeldRows()
    size = _size(arguments, rows)
    mapped = any(is_mapped(array) for array in arguments.arrays().values())
    count = max(batch_size, _AT_HAND) + _MORE
    if size <= count or not (mapped or size > _MANY):
        return arguments, HeldRows()
    names = find_rows(arguments, size, rows, {})
    if rows is None:
        _refuse_unequal(arguments, size)
    arrays = {name: arguments.values[name] for name in names}
    stored = StoredRows(arrays, size, spread(count, size), batch_size)
    held, _ = stored.at(stored.index)
    return replace(arguments, values={**arguments.values, **held}), stored


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
