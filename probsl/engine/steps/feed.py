"""What each first-order step is given: its rows and its noise, a block at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor


# Steps of one block, of which a whole number fill a window; and what it may hold.
_PLACES = (250, 125, 50, 25, 10, 5, 2, 1)
_BLOCK_BYTES = 32_000_000

NOISE, WEIGHTS, ROW = "noise", "weights", "row."


class Blocks(Protocol):
    """Where the rows of each step come from, several steps at a time."""

    batch_size: int

    def take(self, steps: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the next batches.

        Parameters
        ----------
        steps
            How many.

        Returns
        -------
        tuple
            Row argument -> ``[steps, batch, ...]``, and the weights of the rows
            ``[steps, batch]``, or None for ones.
        """
        ...


class Feed:
    """Rows and noise for step after step.

    Parameters
    ----------
    places
        How many steps a block is for; see `places_for`.
    blocks
        Where the rows come from; None where every step has all of them.
    noise
        From a number of steps to their noise ``[steps, ...]``; None for none.
    device
        Where all of it goes, a block at a time; None leaves it.
    """

    def __init__(
        self,
        places: int,
        blocks: Blocks | None = None,
        noise: Callable[[int], Tensor] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.places = places
        self._blocks = blocks
        self._noise = noise
        self._device = device
        self._kept: dict[str, Tensor] | None = None
        self._last: dict[str, Tensor] = {}

    def take(self) -> dict[str, Tensor]:
        """Return what the next block of steps is given, each ``[places, ...]``."""
        if self._kept is not None:
            self._last, self._kept = self._kept, None
            return self._last
        given: dict[str, Tensor] = {}
        if self._blocks is not None:
            rows, weights = self._blocks.take(self.places)
            given |= {f"{ROW}{name}": value for name, value in rows.items()}
            if weights is not None:
                given[WEIGHTS] = weights
        if self._noise is not None:
            given[NOISE] = self._noise(self.places)
        given = {name: value.to(self._device) for name, value in given.items()}
        self._last = given
        return given

    @property
    def gives(self) -> bool:
        """Whether steps are given anything that varies."""
        return self._blocks is not None or self._noise is not None

    def examples(self, count: int) -> list[dict[str, Tensor]]:
        """Return what single steps are given, the next block's for the most."""
        if not self.gives:
            return []
        # Of blocks as large as memory bears a few are enough.
        found: list[dict[str, Tensor]] = []
        for _ in range(max(1, min(count, 8) // self.places)):
            block = self.take()
            places = min(self.places, count - len(found))
            found += [{n: v[i] for n, v in block.items()} for i in range(places)]
        return found

    def back(self) -> None:
        """Give the last block once more."""
        self._kept = self._last


def places_for(bytes_per_step: int) -> int:
    """Return how many steps a block is for, so that it stays small.

    Examples
    --------
    >>> from probsl.engine.steps.feed import places_for
    >>> places_for(100), places_for(1_000_000)
    (250, 25)
    """
    fitting = (p for p in _PLACES if p * bytes_per_step <= _BLOCK_BYTES)
    return next(fitting, 1)
