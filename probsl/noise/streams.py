"""Independent streams of random numbers, one for each purpose of a seed."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

__all__ = ["Stream", "stream", "stream_seed"]

Stream = Literal[
    # of a fit
    "start",
    "other starts",
    "fixed draws",
    "first fresh draws",
    "second fresh draws",
    "rows",
    "noise",
    # of its results
    "posterior",
    "predictive",
    "prior",
    "scores",
    "simulated",
]


def stream(seed: int, name: Stream) -> torch.Generator:
    """Return a new CPU generator at the beginning of a stream.

    Parameters
    ----------
    seed
        The user's seed.
    name
        The purpose of the numbers.

    Examples
    --------
    >>> import torch
    >>> from probsl.noise.streams import stream
    >>> def first(seed, name):
    ...     return torch.randn(3, generator=stream(seed, name)).tolist()
    >>> first(0, "rows") == first(0, "rows")
    True
    >>> first(0, "rows") == first(0, "noise")
    False
    """
    return torch.Generator("cpu").manual_seed(stream_seed(seed, name))


def stream_seed(seed: int, name: Stream) -> int:
    """Return the seed of a stream, for generators that are not torch's CPU generator.

    It is 64 bits of a hash, the same on every platform and in every process, so streams
    of neighboring seeds have nothing in common. Torch's CPU generator uses only the
    lower 32 bits: two of its streams are the same by chance once in 4e9 pairs.
    """
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "little")
