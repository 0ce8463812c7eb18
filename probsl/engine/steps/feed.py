"""Inputs of first-order steps: rows and noise, one block of steps at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor


# Possible numbers of steps per block, each a divisor of a window; and maximum bytes.
_PLACES = (250, 125, 50, 25, 10, 5, 2, 1)
_BLOCK_BYTES = 32_000_000

NOISE, WEIGHTS, ROW = "noise", "weights", "row."


class Blocks(Protocol):
    """Source of the rows of each step, several steps at a time."""

    batch_size: int

    def take(self, steps: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the next batches.

        Parameters
        ----------
        steps
            Number of batches.

        Returns
        -------
        tuple
            Row argument -> ``[steps, batch, ...]``, and the weights of the rows
            ``[steps, batch]``, or None for ones.
        """
        ...


class Feed:
    """Rows and noise for each step.

    Parameters
    ----------
    places
        Number of steps per block; see `places_for`.
    blocks
        Source of the rows; None if every step uses all of them.
    noise
        Maps a number of steps to their noise ``[steps, ...]``; None for no noise.
    device
        Device to copy each block to; None for no copy.
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
        """Return the inputs of the next block of steps, each ``[places, ...]``."""
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
        """Whether any input varies between steps."""
        return self._blocks is not None or self._noise is not None

    def examples(self, count: int) -> list[dict[str, Tensor]]:
        """Return the inputs of single steps, mostly from the next block."""
        if not self.gives:
            return []
        # A few are enough if each step fills a block.
        found: list[dict[str, Tensor]] = []
        for _ in range(max(1, min(count, 8) // self.places)):
            block = self.take()
            places = min(self.places, count - len(found))
            found += [{n: v[i] for n, v in block.items()} for i in range(places)]
        return found

    def back(self) -> None:
        """Return the last block again at the next call."""
        self._kept = self._last


def places_for(bytes_per_step: int) -> int:
    """Return the number of steps per block, limited by memory.

    Examples
    --------
    >>> from probsl.engine.steps.feed import places_for
    >>> places_for(100), places_for(1_000_000)
    (250, 25)
    """
    fitting = (p for p in _PLACES if p * bytes_per_step <= _BLOCK_BYTES)
    return next(fitting, 1)
