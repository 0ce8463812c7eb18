"""Plates that draw a subsample by themselves, run on the rows that a fit asks for."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from pyro.poutine.subsample_messenger import SubsampleMessenger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

# What the index of the data plate is called among the rows of a batch.
ROW_INDEX = "index of the data plate"


@dataclass(frozen=True, eq=False)
class Subsampling:
    """Which entries plates have that would draw a subsample by themselves.

    Attributes
    ----------
    index
        Plate -> its entries.
    whole
        The plates that have all their entries. The others have the first ones, as
        many as they ask for: they do not index anything by them.
    seen
        Plate -> how many entries it asked for, of those that have run.
    """

    index: Mapping[str, Tensor] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    seen: dict[str, int] = field(default_factory=dict)

    def at(self, name: str, index: Tensor | None) -> Subsampling:
        """Return the same, with certain entries for one plate."""
        return self if index is None else replace(self, index={name: index})

    def entries(self, name: str, size: int, subsample_size: int) -> Tensor:
        """Return the entries of a plate."""
        self.seen[name] = subsample_size
        if name in self.index:
            return self.index[name]
        count = size if name in self.whole else min(size, subsample_size)
        return torch.arange(count)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Let it hold for a block, which must be inside `isolated`.

        Pyro asks for the entries of a plate by a message, but insists on the number
        that the program gave; so its own function is replaced, for this thread only.
        """
        before, original = _ACTIVE.get(), SubsampleMessenger._subsample

        def subsample(
            name: str,
            size: int | None = None,
            subsample_size: int | None = None,
            subsample: Any = None,
            *options: Any,
            **more: Any,
        ) -> Any:
            active = _ACTIVE.get()
            if active is None or subsample_size is None or subsample is not None:
                return original(name, size, subsample_size, subsample, *options, **more)
            assert size is not None
            entries = active.entries(name, size, subsample_size)
            return size, len(entries), entries

        def restore() -> None:
            SubsampleMessenger._subsample = staticmethod(original)  # type: ignore[method-assign]
            _ACTIVE.set(before)

        # Ctrl-C may end the first of the two halfway, but not the second as well.
        try:
            try:
                _ACTIVE.set(self)
                SubsampleMessenger._subsample = staticmethod(subsample)  # type: ignore[method-assign]
                yield
            finally:
                restore()
        finally:
            restore()


_ACTIVE: ContextVar[Subsampling | None] = ContextVar("subsampling", default=None)
