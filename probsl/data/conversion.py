"""Converts data of every kind to torch tensors, and records their labels."""

from __future__ import annotations

import math
import numbers
import sys
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probsl.data.array_kinds import (
    UNSIGNED,
    is_array,
    is_mapped,
    is_shared,
    place,
    refuse_dates,
    refuse_kinds,
    refuse_missing,
    refuse_strange_tensors,
    resident,
    several,
    type_of,
    unmasked,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "Converted",
    "Converter",
    "is_array",
    "is_mapped",
    "place",
    "refuse_overflow",
    "resident",
    "type_of",
]

# Elements checked at a time, to bound the memory.
_CHECKED_ELEMENTS = 1 << 20
_LARGEST = 2**63 - 1
# Torch does not index with a column of these types, as pandas makes them of codes.
_NO_INDEX = (torch.int8, torch.int16, torch.uint8)


@dataclass(frozen=True)
class Converted:
    """An argument converted and checked before, with codes for its labels."""

    value: Any


class Converter:
    """Converts arrays to tensors, and records the labels that tensors do not have.

    Parameters
    ----------
    known
        The labels of an earlier conversion, which this one must match.

    Attributes
    ----------
    labels
        Argument -> the categories behind its integer codes; of a DataFrame, the names
        of its columns.

    Examples
    --------
    >>> import pandas as pd
    >>> from probsl.data.conversion import Converter
    >>> convert = Converter()
    >>> convert("group", pd.Series(["b", "a", "b"], dtype="category"))
    tensor([1, 0, 1])
    >>> convert.labels
    {'group': ('a', 'b')}
    >>> Converter(convert.labels)("group", ["b"])
    tensor([1])
    """

    def __init__(self, known: Mapping[str, tuple[Any, ...]] | None = None) -> None:
        self.labels: dict[str, tuple[Any, ...]] = {}
        self._known = known or {}

    def __call__(self, name: str, value: Any) -> Any:
        """Return an array as a tensor, and anything else unchanged.

        Named tuples, such as torch's PackedSequence, are not arrays. A NumPy array
        whose memory torch cannot share, such as a memory-mapped one, is unchanged, so
        that it is copied only once, to the type of the fit; see `resident`.

        Raises
        ------
        TypeError
            If the array holds text, dates or objects, or is of a kind that torch cannot
            compute with.
        ValueError
            If a value is missing, masked or not finite, or the array is empty.
        """
        if isinstance(value, Converted):
            return value.value
        if isinstance(value, list | tuple) and not _is_named_tuple(value):
            value = _from_sequence(name, value)
        if isinstance(value, np.ma.MaskedArray):
            value = unmasked(name, value)
        if name in self._known and is_array(value) and value.ndim == 1:
            value = _labels_or_codes(name, value, self._known[name])
        if _is_pandas(value, "DataFrame"):
            value = self._frame(name, value)
        elif _is_pandas(value, "Series", "Index") or _is_pandas_array(value):
            value = self._column(name, value)
        elif isinstance(value, np.ndarray):
            return _checked_array(name, value)
        elif hasattr(value, "toarray"):
            raise TypeError(
                f"argument '{name}' is a sparse {type(value).__name__}; "
                f"give a dense one, {name}.toarray()"
            )
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"argument '{name}' is NaN; give a number")
        return _checked(name, value) if torch.is_tensor(value) else value

    def _frame(self, name: str, frame: Any) -> Tensor:
        if not frame.columns.is_unique:
            twice = frame.columns[frame.columns.duplicated()][0]
            raise ValueError(
                f"argument '{name}' has two columns '{twice}'; give each its own name"
            )
        known = self._known.get(name, tuple(frame.columns))
        absent = [c for c in known if c not in frame.columns]
        if absent:
            raise ValueError(
                f"argument '{name}' lacks the column '{absent[0]}', which it had in "
                "the fit; give the same columns"
            )
        for column in known:
            _refuse_category(name, column, frame[column])
        self.labels[name] = known
        columns = [self._column(f"{name}.{c}", frame[c]) for c in known]
        if not columns:
            raise ValueError(f"argument '{name}' is a DataFrame without columns")
        kind = reduce(torch.promote_types, map(type_of, columns))
        matrix = torch.empty(len(frame), len(columns), dtype=kind, device="cpu")
        for i, column in enumerate(columns):
            matrix[:, i] = resident(column)
        return matrix

    def _column(self, name: str, column: Any) -> Any:
        import pandas as pd

        series = pd.Series(column)
        if name in self._known:
            series = _with_codes(name, series, self._known[name])
        if isinstance(series.dtype, pd.CategoricalDtype):
            self.labels[name] = tuple(series.cat.categories.tolist())
            codes = series.cat.codes.to_numpy().astype(np.int64)
            refuse_missing(name, codes < 0)
            return _checked(name, torch.from_numpy(codes))
        if pd.api.types.is_datetime64_any_dtype(series.dtype):
            refuse_dates(name, "dates", "(column - column.min())")
        if isinstance(series.dtype, pd.SparseDtype):
            dense = "to_dense()" if _is_pandas_array(column) else "sparse.to_dense()"
            raise TypeError(
                f"argument '{name}' is a sparse {type(column).__name__}; give a dense "
                f"one, {name}.{dense}"
            )
        if pd.api.types.is_numeric_dtype(series.dtype) and (
            pd.api.types.is_extension_array_dtype(series.dtype)
        ):
            refuse_missing(name, series.isna().to_numpy())
            series = series.astype(series.dtype.numpy_dtype)
        return _checked_array(name, series.to_numpy())


def _from_sequence(name: str, value: Sequence[Any]) -> Any:
    """Return a list as an array; lists of non-scalar tensors are unchanged."""
    if value and all(torch.is_tensor(v) for v in value):
        single = all(v.ndim == 0 for v in value)
        return torch.stack(list(value)) if single else value
    try:
        if any(isinstance(v, np.ma.MaskedArray) for v in value):
            # Each has a mask of its own: numpy would turn a masked number into NaN.
            held = [np.ma.getdata(v) for v in value]
            return np.ma.array(held, mask=[np.ma.getmaskarray(v) for v in value])
        return np.asarray(value)
    except ValueError:
        raise ValueError(
            f"argument '{name}' is a list whose entries differ in length; give all "
            "rows the same number of columns"
        ) from None


def _is_named_tuple(value: Any) -> bool:
    """Return whether a tuple is a record, such as torch's PackedSequence."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _labels_or_codes(name: str, value: Any, categories: tuple[Any, ...]) -> Any:
    """Return an array of labels as a pandas Series, and one of codes unchanged.

    Numbers are labels if the categories are numbers; if those are text, they
    can only be codes.
    """
    if torch.is_tensor(value):
        value = value.detach().cpu()
        array = (value.double() if value.is_floating_point() else value).numpy()
    else:
        array = value
    numeric = array.dtype.kind in "biufc"
    if numeric and not all(isinstance(c, numbers.Number) for c in categories):
        strange = (array < 0) | (array >= len(categories))
        if strange.any():
            raise ValueError(
                f"argument '{name}' has the code {array[strange][0]}, but the fit saw "
                f"{len(categories)} categories, {', '.join(map(repr, categories))}; "
                "give their labels, or codes from 0 on"
            )
        return value
    import pandas as pd

    return pd.Series(array)


def _refuse_category(name: str, column: Any, values: Any) -> None:
    """Refuse a category among the columns of a matrix."""
    import pandas as pd

    if isinstance(values.dtype, pd.CategoricalDtype):
        raise TypeError(
            f"argument '{name}' has the category '{column}' among its columns, and its "
            "codes would count as numbers there; give the category as an argument of "
            f"its own, or columns of 0 and 1, pandas.get_dummies({name}, dtype=float)"
        )


def _with_codes(name: str, series: Any, categories: tuple[Any, ...]) -> Any:
    """Give categories their codes from the fit."""
    import pandas as pd

    unknown = set(series.dropna().unique().tolist()) - set(categories)
    if unknown:
        raise ValueError(
            f"argument '{name}' has the category {sorted(unknown, key=str)[0]!r}, "
            f"which the fit did not see; it saw {', '.join(map(repr, categories))}"
        )
    return series.astype(pd.CategoricalDtype(list(categories)))


def _refuse_too_large(name: str, value: Any) -> None:
    if value.dtype.kind != "u" or value.dtype.itemsize < 8:
        return
    count, first = _found(value, lambda part: part > _LARGEST)
    if first is not None:
        raise ValueError(
            f"argument '{name}' has {several(count, 'value')} of 2**63 or more, the "
            f"first in {place(first)}, which torch's integers cannot hold; give "
            f"{name}.astype(float), or smaller numbers"
        )


def _checked(name: str, value: Tensor) -> Tensor:
    """Return a tensor of finite numbers without gradient.

    Raises
    ------
    TypeError
        If it is sparse, masked, without data, or of a type that torch only stores.
    ValueError
        If it is empty, or a value is not finite.
    """
    refuse_strange_tensors(name, value)
    if value.dtype in UNSIGNED:
        array = value.detach().cpu().numpy()
        _refuse_too_large(name, array)
        return _checked(name, resident(array))
    if value.ndim and not len(value):
        raise ValueError(
            f"argument '{name}' has no rows (its shape is {tuple(value.shape)}); give "
            "at least one"
        )
    if not value.numel():
        raise ValueError(
            f"argument '{name}' has no columns (its shape is {tuple(value.shape)}); "
            "give at least one, or a program without it"
        )
    value = value.detach()
    if value.is_inference():  # autograd does not support inference tensors
        value = value.clone()
    if value.is_floating_point() or value.is_complex():
        _refuse_nonfinite(name, value)
    if value.dim() == 1 and value.dtype in _NO_INDEX:
        return value.long()
    return value


def _checked_array(name: str, array: Any) -> Any:
    """Return a NumPy array of finite numbers, as a tensor if torch can share it.

    Raises
    ------
    TypeError
        If torch does not support the numbers, or they are not numbers.
    ValueError
        If a value is missing or not finite, or out of range for torch's integers.
    """
    refuse_kinds(name, array)
    _refuse_too_large(name, array)
    narrow = array.dtype.kind in "iu" and array.dtype.itemsize < 4
    if narrow and array.ndim == 1 and not is_mapped(array):
        array = array.astype(np.int64)
    if is_shared(array) or not array.ndim or not array.size:
        return _checked(name, resident(array))
    if array.dtype.kind in "fc":
        _refuse_nonfinite(name, array)
    return array


def _refuse_nonfinite(name: str, value: Any) -> None:
    """Say how many elements are NaN or infinite, and where the first one is."""
    count, first = _found(value, _nonfinite)
    if first is not None:
        raise ValueError(
            f"argument '{name}' has {several(count, 'NaN or infinite value')}, "
            f"the first in {place(first)}; drop or fill those rows"
        )


def _nonfinite(part: Any) -> Tensor:
    """Return which elements are NaN or infinite, one False if none is."""
    held = resident(part)
    if held.sum().isfinite():  # this is much faster, and true of most data
        return torch.zeros((), dtype=torch.bool, device=held.device)
    return ~held.isfinite()


def refuse_overflow(name: str, value: Any, dtype: torch.dtype) -> None:
    """Refuse finite numbers that overflow a narrower floating type.

    Parameters
    ----------
    name
        The argument.
    value
        A tensor, or a memory-mapped array.
    dtype
        The floating type to compute in.

    Raises
    ------
    ValueError
        Saying how many are too large, and where the first one is.
    """
    held = type_of(value)
    if not held.is_floating_point or torch.finfo(held).max <= torch.finfo(dtype).max:
        return
    count, first = _found(value, lambda part: ~resident(part, dtype).isfinite())
    if first is not None:
        raise ValueError(
            f"argument '{name}' has {several(count, 'value')} too large for {dtype}, "
            f"the first in {place(first)}, {float(value[tuple(first)]):g}; rescale it, "
            f"or compute in dtype={held}"
        )


def _found(
    value: Any, strange: Callable[[Any], Any]
) -> tuple[int, Sequence[int] | None]:
    """Count the invalid elements, and find the first; in parts, to save memory."""
    count, first = 0, None
    listed = value if value.ndim else value.reshape(1)
    rows = max(1, _CHECKED_ELEMENTS // max(math.prod(listed.shape[1:]), 1))
    for start in range(0, len(listed), rows):
        found = strange(listed[start : start + rows])
        found = found if torch.is_tensor(found) else torch.from_numpy(found)
        number = int(found.sum())
        if number and first is None:
            row, *rest = found.nonzero()[0].tolist()
            first = [start + row, *rest] if value.ndim else []
        count += number
    return count, first


def _is_pandas(value: Any, *kinds: str) -> bool:
    """Whether a value is of one of pandas's classes, without importing pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(
        value, tuple(getattr(pandas, kind) for kind in kinds)
    )


def _is_pandas_array(value: Any) -> bool:
    """Whether a value is a pandas extension array, such as a Categorical."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(
        value, pandas.api.extensions.ExtensionArray
    )
