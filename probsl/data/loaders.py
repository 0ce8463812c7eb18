"""Reads a DataLoader again and again, and counts its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_END = object()


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

    def states(self) -> list[Tensor]:
        """Return the loader's random states."""
        return [self._state, *(state[0] for _, state in self._own)]

    def restore(self, states: list[Tensor]) -> None:
        """Return to earlier random states."""
        self._state = states[0]
        for (_, held), state in zip(self._own, states[1:], strict=True):
            held[0] = state

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


def size_of(loader: DataLoader[Any]) -> int:
    """Return the number of rows of a loader's data set.

    Raises
    ------
    ValueError
        If it is unknown, or its sampler omits or repeats some rows.
    """
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


def visited_by(loader: DataLoader[Any], size: int) -> int:
    """Return the number of rows in an epoch of a loader.

    Parameters
    ----------
    loader
        The loader.
    size
        The number of rows, if its sampler neither omits nor repeats any.
    """
    data: Any = loader.dataset
    visited = size
    if not isinstance(data, IterableDataset) and hasattr(loader.sampler, "__len__"):
        sampled = len(loader.sampler)  # type: ignore[arg-type]
        visited = size if sampled == len(data) else sampled
    if loader.drop_last and loader.batch_size:
        visited -= visited % loader.batch_size
    return visited


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
