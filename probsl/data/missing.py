"""Drops the rows in which a value is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from probsl.data.arguments import by_name
from probsl.data.array_kinds import is_missing, several
from probsl.data.conversion import is_mapped
from probsl.options import several_names

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class CompleteRows:
    """Data without the rows in which a value is missing.

    Attributes
    ----------
    data
        Argument -> the rows that are left, or a constant.
    weights
        The weights of these rows.
    note
        The number of rows that were dropped, and for which argument; empty if none.
    """

    data: Any
    weights: Any
    note: str


def complete_rows(
    function: Callable[..., Any], data: Any, rows: Sequence[str] | None, weights: Any
) -> CompleteRows:
    """Drop every row in which an argument has a missing value.

    Missing are NaN, None, and whatever pandas or a mask of NumPy counts as missing;
    infinite values are not. The arguments with one entry per row are those named, or
    else all that are as long as those with missing values.

    Parameters
    ----------
    function
        The program.
    data
        Its arguments, see `probsl.fit`.
    rows
        The names of the arguments with one entry per row, if given.
    weights
        One weight per row, or None.

    Raises
    ------
    TypeError
        If the data are a DataLoader.
    ValueError
        If the missing values are in arguments of different lengths, or no row is left.
    """
    if isinstance(data, DataLoader):
        raise TypeError(
            "missing='drop' needs arrays; drop rows in the Dataset of the DataLoader"
        )
    given = by_name(function, data)
    named = None if rows is None else several_names("rows", rows)
    masks = {
        name: mask
        for name, value in given.items()
        if (named is None or name in named) and (mask := _missing(value)).any()
    }
    if not masks:
        return CompleteRows(data, weights, "")
    size = _one_length(masks)
    keep = ~np.any([*masks.values()], axis=0)
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    listed = ", ".join(f"{count} of {name}" for name, count in counts.items())
    if not keep.any():
        raise ValueError(
            f"every row has a missing value ({listed}); fill them, or leave "
            "out the argument"
        )
    kept = {
        name: _chosen(name, value, keep) if _length(value) == size else value
        for name, value in given.items()
    }
    if weights is not None and _length(weights) == size:
        weights = _chosen("weights", weights, keep)
    dropped = several(size - int(keep.sum()), "row")
    note = f"dropped {dropped} of {size} with missing values ({listed})"
    return CompleteRows(kept, weights, note)


def _one_length(masks: dict[str, Mask]) -> int:
    lengths = {name: len(mask) for name, mask in masks.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            "values are missing in arguments of different lengths, "
            + ", ".join(f"{name} {length}" for name, length in lengths.items())
            + "; name those with one entry per row, rows=('x', 'y'), fill the others"
        )
    return next(iter(lengths.values()))


def _missing(value: Any) -> Mask:
    """Return which rows of an array have a missing value; of others, none."""
    count = _length(value)
    if not count:
        return np.zeros(0, dtype=bool)
    try:
        return np.asarray(_elements(value).reshape(count, -1).any(1))
    except (TypeError, ValueError, RuntimeError):
        # An array that cannot be tested is refused when it is converted.
        return np.zeros(count, dtype=bool)


def _elements(value: Any) -> Mask:
    """Return which elements of an array are missing."""
    if isinstance(value, np.ma.MaskedArray):
        hidden = np.ma.getmaskarray(value)
        return np.asarray(hidden | _elements(np.ma.getdata(value)))
    if hasattr(value, "isna"):  # of pandas
        return np.asarray(value.isna())
    if torch.is_tensor(value):
        return np.asarray(value.isnan().cpu())
    array = np.asarray(value)
    if array.dtype.kind in "fcmM":
        return np.asarray(
            np.isnat(array) if array.dtype.kind in "mM" else np.isnan(array)
        )
    flat = array.reshape(-1).tolist() if array.dtype.kind == "O" else ()
    missing = [is_missing(entry) for entry in flat] or np.zeros(array.size, dtype=bool)
    return np.asarray(missing, dtype=bool).reshape(array.shape)


def _chosen(name: str, value: Any, keep: Mask) -> Any:
    """Return the rows of an array that are kept."""
    if torch.is_tensor(value):
        return value[torch.from_numpy(keep).to(value.device)]
    if is_mapped(value):
        raise ValueError(
            f"missing='drop' would read all of the memory-mapped argument '{name}'; "
            "write a file without those rows"
        )
    if isinstance(value, list | tuple):
        return [entry for entry, kept in zip(value, keep, strict=True) if kept]
    return value[keep]


def _length(value: Any) -> int:
    """Return the number of entries of an array; 0 for anything else."""
    shape = getattr(value, "shape", None)
    if isinstance(value, list | tuple):
        return len(value)
    return int(shape[0]) if shape is not None and len(shape) else 0
