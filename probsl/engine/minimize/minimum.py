"""Ends of a minimization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from probsl.engine.ending import Ending


@dataclass(frozen=True, eq=False)
class Minimum:
    """The end of a minimization.

    Attributes
    ----------
    x
        Best point found [d].
    value
        Objective there, penalty included.
    hessian
        Hessian [d, d] there, without the penalty; None where it was not formed.
    losses
        Objective at the start and after each step.
    steps
        How many steps were taken.
    ending
        What kind of end it is.
    coordinates
        What the ending is about: the coordinates in the null directions, those that
        run off, or those whose derivatives are not finite.
    flattening
        For UNBOUNDED: True where the objective levels off to a finite value, False
        where it falls without bound.
    null_space
        For UNIDENTIFIED: an orthonormal basis [d, k] in column-scaled coordinates,
        that is, of z_i = x_i * sqrt(H_ii).
    hidden
        Whether rounding hides what lies beyond.
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


class Verdict(NamedTuple):
    """An ending and what it is about; see `Minimum`."""

    ending: Ending
    coordinates: tuple[int, ...] = ()
    flattening: bool = False
    null_space: NDArray[np.float64] | None = None
    hidden: bool = False
