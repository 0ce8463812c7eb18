"""Why steps take a slower way, in words of ours."""

from __future__ import annotations

import torch

# Of what a compiler reports, one line of this length is for the user.
_LONGEST = 120


class CaptureError(RuntimeError):
    """A function that no graph can stand for; the message says why."""


class ReplayError(RuntimeError):
    """A compiled function whose calls cannot be repeated; the message says why."""


def reason_of(error: Exception) -> str:
    """Return why a faster way failed, as the end of a sentence.

    What makes steps fast is not public in torch: another version may lack any part of
    it, or have changed what it does. Its errors are then a reason for the slower way,
    and of no other interest to the user.
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
