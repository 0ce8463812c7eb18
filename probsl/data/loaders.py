"""Reads the batches of a DataLoader as arguments of a program."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from probsl.data.arguments import Arguments, bind, by_name
from probsl.data.conversion import (
    Converter,
    is_mapped,
    refuse_overflow,
    resident,
    type_of,
)
from probsl.options import whole_number

_END = object()
# Minimum number of rows that represent all of them before training.
_AT_HAND = 100


class Epochs:
    """Reads a loader repeatedly, with random numbers of its own.

    Iterating a loader draws from torch's global generator, and from the loader's
    own; both states are restored whenever a batch has been yielded.

    Parameters
    ----------
    loader
        The loader.
    seed
        Seed of its shuffling, if the loader does not have a generator of its own.
    """

    def __init__(self, loader: DataLoader[Any], seed: int) -> None:
        self._loader = loader
        self._state = torch.Generator("cpu").manual_seed(seed).get_state()
        sources = (loader, loader.sampler, loader.batch_sampler)
        found = [getattr(source, "generator", None) for source in sources]
        own = {id(g): g for g in found if isinstance(g, torch.Generator)}
        self._own = [(g, [g.get_state()]) for g in own.values()]
        # A loader shuffles on its generator's device, whatever the device of the fit.
        devices = [g.device for g in own.values()]
        self._device = devices[0] if devices else torch.device("cpu")

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of one more epoch."""
        with self:
            batches = iter(self._loader)
        while True:
            with self:
                batch = next(batches, _END)
            if batch is _END:
                return
            yield batch

    def __enter__(self) -> None:
        """Restore the loader's random state."""
        self._before = [
            (generator, generator.get_state()) for generator, _ in self._own
        ]
        self._global = torch.get_rng_state()
        self._device.__enter__()
        torch.set_rng_state(self._state)
        for generator, state in self._own:
            generator.set_state(state[0])

    def __exit__(self, *exception: Any) -> None:
        """Save the loader's random state, and restore the global one."""
        self._state = torch.get_rng_state()
        for generator, state in self._own:
            state[0] = generator.get_state()
        for own, earlier in self._before:
            own.set_state(earlier)
        torch.set_rng_state(self._global)
        self._device.__exit__(*exception)


class StreamedRows:
    """All rows of a problem, in a DataLoader.

    Parameters
    ----------
    loader
        Yields mappings, or tuples matched by position.
    function
        The program that takes them as arguments.
    total
        The number of rows; None takes that of the data set.

    Attributes
    ----------
    loader
        The loader.
    size
        The number of rows that the likelihood represents, N.
    visited
        Rows per epoch: fewer if the loader drops its last batch, and
        those of its sampler if `total` states how many they represent.
    names
        The arguments with one entry per row, once `at_hand` has seen a batch.
    dtype
        The type of their floats; None keeps it.
    device
        The device of `parts`; None keeps it.

    Raises
    ------
    ValueError
        If the number of rows is unknown.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        function: Callable[..., Any],
        total: int | None = None,
    ) -> None:
        self.loader = loader
        self.size = _size(loader) if total is None else whole_number("total", total)
        self.visited = _sampled(loader) or self.size
        if loader.drop_last and loader.batch_size:
            self.visited -= self.visited % loader.batch_size
        self.names: tuple[str, ...] = ()
        self.dtype: torch.dtype | None = None
        self.device: torch.device | None = None
        self._function = function
        self._arguments = Arguments({})

    def at_hand(
        self,
        batch_size: int | None,
        rows: Any = None,
        labels: Mapping[str, tuple[Any, ...]] | None = None,
    ) -> Arguments:
        """Return the program's arguments with the rows of the first batches.

        Parameters
        ----------
        batch_size
            Rows per step; None takes the loader's. The total number of rows, or
            more, takes all of them.
        rows
            The names of the arguments that are rows, if the user gave them.
        labels
            The labels of earlier arguments, which these must match.
        """
        batches = iter(Epochs(self.loader, 0))
        first = next(batches, None)
        if first is None:
            raise ValueError(
                "the DataLoader yields no batches; give its data set some rows"
            )
        bound = bind(self._function, self._named(first), labels=labels)
        self._arguments = bound
        self.names = _row_names(bound, self.loader.batch_size, rows)
        if not self.names:
            raise ValueError(
                "the DataLoader yields batches without arrays, so there are no rows; "
                "yield arrays with one entry per row"
            )
        length = bound.lengths()[self.names[0]]
        if length > max(self.size, self.visited):
            raise ValueError(
                f"the DataLoader's first batch has {length} rows, but its data set has "
                f"{self.size} entries in all; say how many rows there are with total="
            )
        self.batch_size = batch_size or length
        enough = max(2 * self.batch_size, _AT_HAND)
        if self.batch_size >= self.size:
            enough = self.visited + 1  # all of them, and then the loader ends
        parts = [{n: resident(bound.values[n]) for n in self.names}]
        while length < enough and (batch := next(batches, None)) is not None:
            parts.append(read_batch(self.read, batch, len(parts)))
            length += len(parts[-1][self.names[0]])
        if self.batch_size >= self.size:
            refuse_other_count(length, self.visited, drops=self.loader.drop_last)
        joined = {n: torch.cat([part[n] for part in parts]) for n in self.names}
        return Arguments({**bound.values, **joined}, bound.labels)

    @property
    def held(self) -> bool:
        """Whether `at_hand` has returned all rows, and there are no others."""
        return self.batch_size >= self.size == self.visited

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
            first = self._arguments.values[name]
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
        named = self._named(batch)
        expected = self._arguments.values
        if named.keys() != expected.keys():
            raise ValueError(
                f"the DataLoader yields batches of {', '.join(expected)} and of "
                f"{', '.join(named) or 'nothing'}; let its collate_fn return the same "
                "names in every batch"
            )
        for name in expected.keys() - set(self.names):
            _refuse_changing(name, expected[name], named[name])
        convert = Converter(self._arguments.labels)
        arrays = {n: convert(n, named[n]) for n in self.names}
        for name, array in arrays.items():
            if not is_mapped(array) and not torch.is_tensor(array):
                raise TypeError(f"entry '{name}' is no array; yield one in every batch")
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

    def read_as(self, dtype: torch.dtype, device: torch.device) -> StreamedRows:
        """Return the same rows, with their floats to be read as `dtype`.

        Tensors from `read` are not moved; they are moved in blocks later.
        """
        other = copy.copy(self)
        other.dtype, other.device = dtype, device
        return other

    def parts(self) -> Iterator[tuple[dict[str, Tensor], None]]:
        """Yield all rows, one batch of the loader at a time."""
        for number, batch in enumerate(Epochs(self.loader, 0)):
            rows = read_batch(self.read, batch, number).items()
            yield {n: resident(value, device=self.device) for n, value in rows}, None

    def _named(self, batch: Any) -> dict[str, Any]:
        """Return the contents of a batch by argument."""
        if not isinstance(batch, Mapping | tuple):
            batch = tuple(batch) if isinstance(batch, list) else (batch,)
        return by_name(self._function, batch)


def read_batch(
    read: Callable[[Any], dict[str, Tensor]], batch: Any, number: int
) -> dict[str, Tensor]:
    """Read an item of a loader, and name the batch in an error.

    Parameters
    ----------
    read
        Maps the item to row argument -> tensor ``[rows, ...]``.
    batch
        The item of the loader.
    number
        The number of the batch in its epoch, from 0.
    """
    try:
        return read(batch)
    except (TypeError, ValueError) as error:
        raise type(error)(f"batch {number}: {error}") from error


def _size(loader: DataLoader[Any]) -> int:
    """Return the number of rows of a loader's data set."""
    data: Any = loader.dataset
    if isinstance(data, IterableDataset) and not hasattr(data, "__len__"):
        raise ValueError(
            "the DataLoader's data set is iterable and does not say how many rows it "
            "has; give their number with total="
        )
    if not isinstance(data, IterableDataset) and loader.batch_sampler is None:
        raise ValueError(
            "the DataLoader has no batch_size, so its data set may count batches; "
            "give the DataLoader a batch_size, or the number of rows with total="
        )
    size = len(data)
    sampler = loader.sampler
    visited = len(sampler) if hasattr(sampler, "__len__") else size  # type: ignore[arg-type]
    if not isinstance(data, IterableDataset) and visited != size:
        raise ValueError(
            f"the DataLoader's sampler visits {visited} rows of a data set of {size}; "
            "say for how many the likelihood is to stand with total="
        )
    return size


def _sampled(loader: DataLoader[Any]) -> int | None:
    """Return the number of rows of a sampler that omits or repeats some, else None."""
    data: Any = loader.dataset
    if isinstance(data, IterableDataset) or not hasattr(loader.sampler, "__len__"):
        return None
    visited = len(loader.sampler)  # type: ignore[arg-type]
    return visited if visited != len(data) else None


def refuse_other_count(seen: int, expected: int, *, drops: bool) -> None:
    """Refuse a loader whose number of rows is not the stated one.

    Parameters
    ----------
    seen
        The number of rows of an epoch.
    expected
        The stated number.
    drops
        Whether it drops a last batch that is not full.

    Raises
    ------
    ValueError
        Saying how many rows there are, and how many were expected.
    """
    if seen > expected or (seen < expected and not drops):
        raise ValueError(
            f"the DataLoader yielded {seen} rows in an epoch, where {expected} were "
            "expected; say how many there are with total="
        )


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
    if torch.is_tensor(first) or is_mapped(first):
        same = torch.equal(resident(first), resident(Converter()(name, later)))
    else:
        same = bool(first == later)
    if not same:
        raise ValueError(
            f"entry '{name}' of the DataLoader has no row axis and differs from batch "
            "to batch; give the DataLoader a batch_size, or yield arrays"
        )
