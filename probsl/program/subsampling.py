"""Runs plates that draw a subsample themselves on the rows that a fit requests."""

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

# The name of the data plate's index among the rows of a batch.
ROW_INDEX = "index of the data plate"


@dataclass(frozen=True, eq=False)
class Subsampling:
    """The entries of plates that would draw a subsample themselves.

    Attributes
    ----------
    index
        Plate -> its entries.
    whole
        The plates that have all their entries. The others have their first entries,
        up to their subsample size: they do not index anything by them.
    seen
        Plate -> its requested subsample size, for plates that have run.
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
        """Activate it within a block, which must be inside `isolated`.

        Pyro requests the entries of a plate by a message, but requires the number
        that the program gave; so its function is replaced, for this thread only.
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

        # Ctrl-C may interrupt the first of the two, but not the second as well.
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
