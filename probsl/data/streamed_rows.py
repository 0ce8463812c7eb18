"""Rows in a DataLoader, read as arguments of a program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from probsl.data.arguments import Arguments, bind, by_name
from probsl.data.conversion import (
    Converter,
    is_array,
    refuse_overflow,
    resident,
    type_of,
)
from probsl.data.loaded_rows import LoadedRows
from probsl.data.loaders import (
    Epochs,
    read_batch,
    refuse_other_count,
    size_of,
    visited_by,
)
from probsl.data.rows import HeldRows, Rows, refuse_all
from probsl.options import whole_number

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from probsl.data.data_options import DataOptions
    from probsl.engine.steps.feed import Blocks

# Minimum number of rows that represent all of them before training.
_AT_HAND = 100


@dataclass(frozen=True, eq=False)
class StreamedRows:
    """All rows, in a DataLoader, of whose first batches the rows are held.

    See `probsl.data.rows.Rows`; the rows have no weights, because they come in any
    order.

    Attributes
    ----------
    loader
        Yields mappings, or tuples matched by position.
    function
        The program that takes them as arguments.
    arguments
        Its arguments, with the rows of the first batches.
    names
        The arguments with one entry per row.
    size
        The number of rows that the likelihood represents, N.
    visited
        Rows per epoch: fewer if the loader drops its last batch, and
        those of its sampler if `total` states how many they represent.
    batch_size
        Rows per step.
    dtype
        The type of their floats; None keeps it.
    device
        The device of `at` and `parts`; None keeps it. Those of `read` are moved in
        blocks later.
    """

    loader: DataLoader[Any]
    function: Callable[..., Any]
    arguments: Arguments
    names: tuple[str, ...]
    size: int
    visited: int
    batch_size: int
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    complete: ClassVar[bool] = False
    unclear: ClassVar[str] = ""
    weights: ClassVar[None] = None
    held_weights: ClassVar[None] = None

    @property
    def held(self) -> int:
        """The number of rows in the problem's arguments."""
        return len(self.arguments.values[self.names[0]])

    def read_as(self, dtype: torch.dtype, device: torch.device) -> StreamedRows:
        """Return the same rows, read in another form, see `Rows.read_as`."""
        return replace(self, dtype=dtype, device=device)

    def reweighted(
        self,
        weights: Any,
        dtype: torch.dtype,  # noqa: ARG002
        device: torch.device,  # noqa: ARG002
    ) -> StreamedRows:
        """Return the same rows, and refuse weights."""
        if weights is not None:
            raise ValueError(
                "weights cannot be matched to the rows of a DataLoader, which come in "
                "any order; give arrays, and batch_size="
            )
        return self

    def spread(self, count: int) -> Tensor:
        """Return the indices of the first rows that are held."""
        return torch.arange(min(count, self.held), device="cpu")

    def at(self, index: Tensor) -> tuple[dict[str, Tensor], None]:
        """Return some of the rows that are held."""
        held = {n: self.arguments.values[n] for n in self.names}
        rows = {
            n: resident(array[index], self.dtype, self.device)
            for n, array in held.items()
        }
        return rows, None

    def parts(self) -> Iterator[tuple[dict[str, Tensor], None]]:
        """Yield all rows, one batch of the loader at a time."""
        for number, batch in enumerate(Epochs(self.loader, 0)):
            rows = read_batch(self.read, batch, number).items()
            yield {n: resident(value, device=self.device) for n, value in rows}, None

    def blocks(self, batch_size: int, seed: int) -> Blocks:
        """Return the batches of one epoch after another."""
        return LoadedRows(
            self.loader,
            self.size,
            batch_size,
            seed,
            read=self.read,
            visited=self.visited,
        )

    def load(self) -> dict[str, Any]:
        """Refuse to load all rows."""
        refuse_all("come from a DataLoader")

    def read(self, batch: Any) -> dict[str, Tensor]:
        """Return the rows of an item of the loader, checked.

        Raises
        ------
        ValueError, TypeError
            If its names, constants, columns or types differ from the first batch, or
            a value is not a finite number.
        """
        rows = self._rows(batch)
        for name, value in rows.items():
            first = self.arguments.values[name]
            if value.shape[1:] != first.shape[1:]:
                raise ValueError(
                    f"a batch of the DataLoader has '{name}' of shape "
                    f"{tuple(value.shape)}, and the first one of shape "
                    f"{tuple(first.shape)}; let it yield the same columns each time"
                )
            held = type_of(first)
            if value.is_floating_point() != held.is_floating_point:
                raise ValueError(
                    f"a batch of the DataLoader has '{name}' of type {value.dtype}, "
                    f"and the first one of type {held}; let it yield one type"
                )
        return rows

    def _rows(self, batch: Any) -> dict[str, Tensor]:
        named = _by_name(self.function, batch)
        expected = self.arguments.values
        if named.keys() != expected.keys():
            raise ValueError(
                f"the DataLoader yields batches of {', '.join(expected)} and of "
                f"{', '.join(named) or 'nothing'}; let its collate_fn return the same "
                "names in every batch"
            )
        for name in expected.keys() - set(self.names):
            _refuse_changing(name, expected[name], named[name])
        convert = Converter(self.arguments.labels)
        arrays = {n: convert(n, named[n]) for n in self.names}
        for name, array in arrays.items():
            if not is_array(array):
                raise TypeError(
                    f"entry '{name}' is not an array; yield one in every batch"
                )
            if self.dtype is not None:
                refuse_overflow(name, array, self.dtype)
        rows = {n: resident(array, self.dtype) for n, array in arrays.items()}
        lengths = {n: len(value) for n, value in rows.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{count} of '{n}'" for n, count in lengths.items())
            raise ValueError(
                f"a batch of the DataLoader has {shown}; let it yield one entry per "
                "row of each"
            )
        return rows


def stream(
    function: Callable[..., Any],
    loader: DataLoader[Any],
    options: DataOptions,
    labels: Mapping[str, tuple[Any, ...]] | None = None,
) -> tuple[Arguments, Rows]:
    """Return a program's arguments with the rows of the first batches, and all rows.

    If the rows per step are the total number of rows, or more, all of them are held.

    Parameters
    ----------
    function
        The program.
    loader
        Yields mappings, or tuples matched by position.
    options
        How to bind them.
    labels
        The labels of earlier arguments, which these must match.

    Raises
    ------
    ValueError
        If the number of rows is unknown, or the batches cannot be read.
    """
    total = options.total
    size = size_of(loader) if total is None else whole_number("total", total)
    visited = visited_by(loader, size)
    batches = iter(Epochs(loader, 0))
    first = next(batches, None)
    if first is None:
        raise ValueError(
            "the DataLoader yields no batches; give its data set some rows"
        )
    bound = bind(function, _by_name(function, first), labels=labels)
    names = _row_names(bound, loader.batch_size, options.rows)
    if not names:
        raise ValueError(
            "the DataLoader yields batches without arrays, so there are no rows; "
            "yield arrays with one entry per row"
        )
    length = bound.lengths()[names[0]]
    if length > max(size, visited):
        raise ValueError(
            f"the DataLoader's first batch has {length} rows, but its data set has "
            f"{size} entries in all; say how many rows there are with total="
        )
    batch_size = options.batch_size or length
    rows = StreamedRows(loader, function, bound, names, size, visited, batch_size)
    arguments = _first_rows(rows, batches)
    if batch_size >= size == visited:
        return arguments, HeldRows()
    return arguments, replace(rows, arguments=arguments)


def _first_rows(rows: StreamedRows, batches: Iterator[Any]) -> Arguments:
    """Return the arguments with the rows of more batches, or of all."""
    bound, names, needs_all = rows.arguments, rows.names, rows.batch_size >= rows.size
    enough = max(2 * rows.batch_size, _AT_HAND)
    if needs_all:
        enough = rows.visited + 1  # all of them, and then the loader ends
    parts = [{n: resident(bound.values[n]) for n in names}]
    length = len(parts[0][names[0]])
    while length < enough and (batch := next(batches, None)) is not None:
        parts.append(read_batch(rows.read, batch, len(parts)))
        length += len(parts[-1][names[0]])
    if needs_all:
        refuse_other_count(length, rows.visited, drops=rows.loader.drop_last)
    if len(parts) > 1:
        parts = [{n: torch.cat([part[n] for part in parts]) for n in names}]
    return Arguments({**bound.values, **parts[0]}, bound.labels)


def _by_name(function: Callable[..., Any], batch: Any) -> dict[str, Any]:
    """Return the contents of a batch by argument."""
    if not isinstance(batch, Mapping | tuple):
        batch = tuple(batch) if isinstance(batch, list) else (batch,)
    return by_name(function, batch)


def _row_names(
    arguments: Arguments, batch_size: int | None, rows: Any
) -> tuple[str, ...]:
    """Return the entries of a batch that have one entry per row."""
    lengths = arguments.lengths()
    if rows is not None and not isinstance(rows, str):
        named = tuple(name for name in rows if name in lengths)
        if named:
            return named
    likely = batch_size if batch_size in lengths.values() else None
    length = likely or next(iter(lengths.values()), None)
    return tuple(name for name, count in lengths.items() if count == length)


def _refuse_changing(name: str, first: Any, later: Any) -> None:
    """Refuse an entry without rows that differs from batch to batch."""
    if is_array(first):
        same = torch.equal(resident(first), resident(Converter()(name, later)))
    else:
        same = bool(first == later)
    if not same:
        raise ValueError(
            f"entry '{name}' of the DataLoader has no row axis and differs from batch "
            "to batch; give the DataLoader a batch_size, or yield arrays"
        )
