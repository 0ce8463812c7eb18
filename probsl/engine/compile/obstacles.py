"""Reasons for using a slower form of a step, in our own words."""

from __future__ import annotations

import torch

# Maximum length of the line of a compiler's error message shown to the user.
_LONGEST = 120


class CaptureError(RuntimeError):
    """A function that cannot be represented by a graph; the message says why."""


class ReplayError(RuntimeError):
    """A compiled function whose calls cannot be repeated; the message says why."""


def reason_of(error: Exception) -> str:
    """Return why a faster form failed, as the end of a sentence.

    The fast forms use private parts of torch, which another version may lack or have
    changed. Such errors are only a reason for the slower form, and otherwise of no
    interest to the user.
    """
    if isinstance(error, CaptureError | ReplayError):
        return str(error)
    text = next(iter(str(error).strip().splitlines()), "")
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 3]}..."
    kind = type(error).__name__
    return (
        f"torch {torch.__version__} failed at it ({kind}{f': {text}' if text else ''})"
    )
