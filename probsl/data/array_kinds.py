"""Arrays that torch supports, and the error messages for all others."""

from __future__ import annotations

import math
import mmap
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

_AS_NUMBERS = "turn it into numbers, for example with pandas: column.astype('category')"
_AS_TIME = "turn it into numbers, for example days: {} / pandas.Timedelta(days=1)"
COMPUTED_IN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NUMPY_FLOATS: dict[torch.dtype | None, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
_COMPLEX = (torch.complex64, torch.complex128)


def is_array(value: Any) -> bool:
    """Return whether a value is a tensor or a NumPy array."""
    return isinstance(value, Tensor | np.ndarray)


def is_mapped(value: Any) -> bool:
    """Return whether an array is memory-mapped from a file."""
    while isinstance(value, np.ndarray):
        value = value.base
    return isinstance(value, mmap.mmap)


def resident(
    array: Any, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """Return an array as a tensor in memory, with floats of type `dtype`.

    Parameters
    ----------
    array
        A tensor, or a NumPy array of numbers. Nothing is copied twice, and nothing at
        all if it is of the right type and torch can share its memory.
    dtype
        The floating type; None keeps it.
    device
        The target device; None keeps it.
    """
    if not torch.is_tensor(array):
        with np.errstate(over="ignore"):
            held = np.asarray(array, dtype=_kind_of(array.dtype, dtype))
        array = torch.from_numpy(held if is_shared(held) else held.copy())
    tensor: Tensor = array
    return tensor.to(device, dtype if tensor.is_floating_point() else None)


def _kind_of(kind: np.dtype[Any], dtype: torch.dtype | None) -> np.dtype[Any]:
    """Return NumPy's type of an array's numbers in torch."""
    if kind.kind == "u" and kind != np.uint8:
        return np.dtype(np.int64)
    if kind.kind == "f" and dtype in _NUMPY_FLOATS:
        return _NUMPY_FLOATS[dtype]
    return kind.newbyteorder("=")


def is_shared(array: np.ndarray[Any, Any]) -> bool:
    """Return whether torch can share the memory of an array of numbers.

    Of writable ones in native order and layout, that is; a mapped file is not shared.
    """
    return (
        array.flags.writeable
        and array.dtype.isnative
        and not any(stride < 0 for stride in array.strides)
        and (array.dtype.kind != "u" or array.dtype == np.uint8)
        and not is_mapped(array)
    )


def type_of(array: Any) -> torch.dtype:
    """Return the type of an array's numbers after conversion to a tensor."""
    return resident(array[:0]).dtype if isinstance(array, np.ndarray) else array.dtype


def place(index: Sequence[int]) -> str:
    """Describe the position of an element in an array.

    Examples
    --------
    >>> from probsl.data.array_kinds import place
    >>> place((3, 0))
    'row 3, column 0'
    """
    if not index:
        return "its only value"
    if len(index) > 2:
        return f"row {index[0]}, index {list(index[1:])}"
    return f"row {index[0]}" + "".join(f", column {i}" for i in index[1:])


def unmasked(name: str, value: Any) -> Any:
    """Return the numbers of a NumPy masked array, none of which may be masked.

    Raises
    ------
    ValueError
        Saying how many are masked, and where the first one is.
    """
    mask = np.ma.getmaskarray(value)
    hidden = np.argwhere(mask if mask.dtype.names is None else mask.astype(bool))
    if len(hidden):
        raise ValueError(
            f"argument '{name}' has {several(len(hidden), 'masked value')}, the first "
            f"in {place(hidden[0].tolist())}; what a mask hides is missing, so drop or "
            "fill those rows"
        )
    return value.data


def refuse_dates(name: str, held: str, span: str) -> None:
    """Refuse dates and time spans, and say how to convert them to numbers."""
    raise TypeError(f"argument '{name}' holds {held}; " + _AS_TIME.format(span))


def refuse_kinds(name: str, value: Any) -> None:
    """Refuse an array of anything but numbers that torch supports."""
    kind = value.dtype.kind
    if kind == "M":
        refuse_dates(name, "dates", "(column - column.min())")
    if kind == "m":
        refuse_dates(name, "time spans", "column")
    if kind not in "biufc":
        _refuse_objects(name, value)
    if value.dtype.itemsize > {"f": 8, "c": 16}.get(kind, 8):
        raise TypeError(
            f"argument '{name}' is of type {value.dtype}, which torch does not have; "
            f"give {name}.astype({'float' if kind == 'f' else 'complex'})"
        )


def _refuse_objects(name: str, value: Any) -> None:
    """Say which type an array of objects or text holds, by its first such entry."""
    entries = value.reshape(-1).tolist()
    refuse_missing(name, np.array([is_missing(v) for v in entries], dtype=bool))
    strange = (
        (i, v)
        for i, v in enumerate(entries)
        if not isinstance(v, numbers.Number | np.bool_)
    )
    position, first = next(strange, (None, None))
    if position is None:
        raise TypeError(
            f"argument '{name}' holds numbers as Python objects; give it a type of "
            "numbers, for example with .astype(float)"
        )
    where = place([int(i) for i in np.unravel_index(position, value.shape)])
    if isinstance(first, str | bytes):
        raise TypeError(
            f"argument '{name}' holds text, {first!r} in {where}; {_AS_NUMBERS}"
        )
    raise TypeError(
        f"argument '{name}' holds objects, a {type(first).__name__} in {where}; "
        "give an array of numbers"
    )


def is_missing(value: Any) -> bool:
    """Return whether an object stands for a missing value: NaN, None, NA, NaT."""
    if isinstance(value, float):
        return math.isnan(value)
    missing = value is None or value is np.ma.masked
    return missing or type(value).__name__ in ("NAType", "NaTType")


def refuse_missing(name: str, missing: Any) -> None:
    """Refuse missing values, given a mask of them."""
    if missing.any():
        raise ValueError(
            f"argument '{name}' has {several(int(missing.sum()), 'missing value')}, "
            f"the first in row {int(missing.argmax())}; drop or fill those rows"
        )


def refuse_strange_tensors(name: str, value: Tensor) -> None:
    """Refuse a tensor that is masked, nested, sparse, without data, or storage-only."""
    if hasattr(value, "get_mask"):
        raise TypeError(
            f"argument '{name}' is a {type(value).__name__}, and what a mask hides is "
            f"missing; give {name}.get_data() without those rows"
        )
    if value.is_nested:
        raise TypeError(
            f"argument '{name}' is a nested tensor; give a padded one, "
            f"{name}.to_padded_tensor(0.0), and the lengths as an argument of their own"
        )
    if value.layout is not torch.strided:
        raise TypeError(
            f"argument '{name}' is a sparse tensor; give a dense one, {name}.to_dense()"
        )
    if value.is_meta:
        raise TypeError(
            f"argument '{name}' is a tensor on the device 'meta', which holds no "
            "numbers; give one with data"
        )
    if value.dtype not in (*COMPUTED_IN, *_INTEGERS, *UNSIGNED, *_COMPLEX):
        remedy = "dequantize()" if value.is_quantized else "float()"
        raise TypeError(
            f"argument '{name}' is of type {value.dtype}, in which torch does not "
            f"compute; give {name}.{remedy}"
        )


def several(count: int, what: str) -> str:
    """Return a count with its noun."""
    return f"{count} {what}{'s' * (count > 1)}"
