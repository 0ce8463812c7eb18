"""Options of a deterministic search."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SearchOptions:
    """When a search ends, and whether it may use the Hessian.

    Parameters
    ----------
    tolerance
        The search ends if the predicted gain of the best step is below this; None: a
        default that depends on the machine precision.
    max_steps
        Maximum number of steps.
    newton_limit
        Maximum number of coordinates for which the exact Hessian is used.
    """

    tolerance: float | None = None
    max_steps: int = 1000
    newton_limit: int = 300
