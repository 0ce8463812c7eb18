"""Results of minimizations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from probsl.engine.ending import Ending

__all__ = ["End", "Minima", "Minimum"]


class End(NamedTuple):
    """An ending and its details; see `Minimum`."""

    ending: Ending
    coordinates: tuple[int, ...] = ()
    flattening: bool = False
    null_space: NDArray[np.float64] | None = None
    hidden: bool = False


@dataclass(frozen=True, eq=False)
class Minimum:
    """The result of a minimization.

    Attributes
    ----------
    x
        Best point found [d].
    value
        Objective there, penalty included.
    hessian
        Hessian [d, d] there, without the penalty; None if it was not computed.
    losses
        Objective at the start and after each step.
    steps
        Number of steps taken.
    ending
        How the search ended.
    coordinates
        The coordinates that the ending concerns: those in the null directions, those
        that diverge, or those whose derivatives are not finite.
    flattening
        For UNBOUNDED: True if the objective levels off to a finite value, False if it
        decreases without bound.
    null_space
        For UNIDENTIFIED: an orthonormal basis [d, k] in column-scaled coordinates,
        that is, of z_i = x_i * sqrt(H_ii).
    hidden
        Whether rounding hides the objective beyond the end.
    """

    x: Tensor
    value: float
    hessian: Tensor | None
    losses: tuple[float, ...]
    steps: int
    ending: Ending
    coordinates: tuple[int, ...] = ()
    flattening: bool = False
    null_space: Tensor | None = None
    hidden: bool = False


@dataclass(frozen=True, eq=False)
class Minima:
    """The results of minimizations in lockstep.

    Attributes
    ----------
    x
        Best point of each [n, d].
    values
        Objective there [n], penalty included; NaN or infinite if the start was bad.
    converged
        Whether each [n] reached a point where a step gains less than the tolerance.
    losses
        Objective of each at the start and after each round [rounds + 1, n].
    steps
        Rounds until each ended [n].
    interrupted
        Whether the callback or a keyboard interrupt stopped them all.
    """

    x: Tensor
    values: Tensor
    converged: Tensor
    losses: Tensor
    steps: Tensor
    interrupted: bool = False
