"""Finds the arguments with one entry per row, by their lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probsl.options import did_you_mean, several_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from probsl.data.arguments import Arguments


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
