"""Inputs of first-order steps: rows and noise, one block of steps at a time."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

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

    def state(self) -> dict[str, Any]:
        """Return numbers and states of generators that say which batch is next."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Return to the batch that was next at an earlier `state`."""
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
        Maps a number of steps and a generator to their noise ``[steps, ...]``; None
        for no noise.
    generator
        The CPU generator of the noise.
    device
        Device to copy each block to; None for no copy.
    """

    def __init__(
        self,
        places: int,
        blocks: Blocks | None = None,
        noise: Callable[[int, torch.Generator], Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.places = places
        self._blocks = blocks
        self._noise = noise
        self._generator = generator or torch.Generator("cpu")
        self._device = device
        self._last: dict[str, Tensor] = {}

    def take(self) -> dict[str, Tensor]:
        """Return the inputs of the next block of steps, each ``[places, ...]``."""
        given: dict[str, Tensor] = {}
        if self._blocks is not None:
            rows, weights = self._blocks.take(self.places)
            given |= {f"{ROW}{name}": value for name, value in rows.items()}
            if weights is not None:
                given[WEIGHTS] = weights
        if self._noise is not None:
            given[NOISE] = self._noise(self.places, self._generator)
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

    def state(self) -> dict[str, Any]:
        """Return the state from which the next block follows."""
        state: dict[str, Any] = {}
        if self._blocks is not None:
            state["rows"] = self._blocks.state()
        if self._noise is not None:
            state["noise"] = self._generator.get_state()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Return to an earlier state."""
        if self._blocks is not None:
            self._blocks.restore(state["rows"])
        if self._noise is not None:
            self._generator.set_state(state["noise"])

    def digest(self) -> str:
        """Return a hash of the inputs of the first step of the last block."""
        found = hashlib.sha256()
        for name, values in self._last.items():
            first = values[0].detach().cpu().contiguous().reshape(-1)
            found.update(name.encode() + first.view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


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
