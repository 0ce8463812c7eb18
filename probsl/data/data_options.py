"""The options of a fit that say how its data are bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


@dataclass(frozen=True, eq=False)
class DataOptions:
    """How data are bound to a program, see `probsl.fit`.

    Attributes
    ----------
    rows
        Names of the arguments with one entry per row, if shapes do not show it.
    weights
        One weight per row.
    batch_size
        Rows per step, if they are to come in batches: large data are then not
        moved, and the program is run on only some rows.
    total
        The number of rows, if a DataLoader does not know it.
    dtype
        The floating type to compute in; None takes the program's or the data's.
    device
        The device to compute on; None takes the program's or the data's.
    """

    rows: Sequence[str] | None = None
    weights: Any = None
    batch_size: int | None = None
    total: int | None = None
    dtype: torch.dtype | None = None
    device: str | torch.device | None = None
