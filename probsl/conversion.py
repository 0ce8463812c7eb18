"""Arrays of every kind as torch tensors, and what cannot become one."""

from __future__ import annotations

import math
import mmap
import numbers
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_AS_NUMBERS = "turn it into numbers, for example with pandas: column.astype('category')"
_AS_TIME = "turn it into numbers, for example days: {} / pandas.Timedelta(days=1)"
# Elements that a check looks at together, to bound the memory it takes.
_CHECKED_ELEMENTS = 1 << 20


class Converter:
    """Turns arrays into tensors, and remembers the labels that numbers do not have.

    Parameters
    ----------
    known
        The labels of an earlier conversion, which this one is to follow.

    Attributes
    ----------
    labels
        Argument, or ``argument.column`` of a DataFrame -> the categories behind its
        integer codes; of a DataFrame as a whole, the names of its columns.

    Examples
    --------
    >>> import pandas as pd
    >>> from probsl.conversion import Converter
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
        """Return an array as a tensor, and anything else as it came.

        An array that is mapped from disk stays where it is, see `resident`.

        Raises
        ------
        TypeError
            If the array holds text, dates or objects.
        ValueError
            If a value is missing or not finite, or there is none.
        """
        if isinstance(value, list | tuple):
            value = _from_sequence(name, value)
        known = isinstance(value, np.ndarray) and name in self._known
        if known and value.ndim == 1 and not is_mapped(value):
            value = _labels_or_codes(value, self._known[name])
        if _is_pandas(value, "DataFrame"):
            value = self._frame(name, value)
        elif _is_pandas(value, "Series", "Index", "Categorical"):
            value = self._column(name, value)
        elif isinstance(value, np.ndarray):
            if is_mapped(value):
                return _checked_on_disk(name, value)
            value = _from_numpy(name, value)
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
        self.labels[name] = known
        columns = [self._column(f"{name}.{c}", frame[c]) for c in known]
        if not columns:
            raise ValueError(f"argument '{name}' is a DataFrame without columns")
        kind = columns[0].dtype
        for column in columns[1:]:
            kind = torch.promote_types(kind, column.dtype)
        return torch.stack([c.to(kind) for c in columns], dim=1)

    def _column(self, name: str, column: Any) -> Tensor:
        import pandas as pd

        series = pd.Series(column)
        if name in self._known:
            series = _with_codes(name, series, self._known[name])
        if isinstance(series.dtype, pd.CategoricalDtype):
            self.labels[name] = tuple(series.cat.categories)
            codes = series.cat.codes.to_numpy().astype(np.int64)
            _refuse_missing(name, codes < 0)
            return _checked(name, torch.from_numpy(codes))
        if pd.api.types.is_datetime64_any_dtype(series.dtype):
            raise TypeError(_of_kind(name, "dates", "(column - column.min())"))
        if pd.api.types.is_numeric_dtype(series.dtype) and (
            pd.api.types.is_extension_array_dtype(series.dtype)
        ):
            _refuse_missing(name, series.isna().to_numpy())
            series = series.astype(series.dtype.numpy_dtype)
        return _checked(name, _from_numpy(name, series.to_numpy()))


def is_mapped(value: Any) -> bool:
    """Return whether an array's numbers are mapped from a file, not in memory."""
    while isinstance(value, np.ndarray):
        value = value.base
    return isinstance(value, mmap.mmap)


def resident(
    array: Any, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """Return an array as a tensor in memory, what floats in it of type `dtype`.

    Parameters
    ----------
    array
        A tensor, or a NumPy array of numbers; what is in memory and of the right type
        is not copied.
    dtype
        The floating type; None leaves it.
    device
        Where to; None leaves it.
    """
    if not torch.is_tensor(array):
        kind = array.dtype
        unsigned = kind.kind == "u" and kind != np.uint8
        kind = np.dtype(np.int64) if unsigned else kind.newbyteorder("=")
        held = np.asarray(array, dtype=kind, order="C")
        array = torch.from_numpy(held.copy() if is_mapped(held) else held)
    tensor: Tensor = array
    return tensor.to(device, dtype if tensor.is_floating_point() else None)


def type_of(array: Any) -> torch.dtype:
    """Return the type of an array's numbers once they are in a tensor."""
    return resident(array[:0]).dtype if isinstance(array, np.ndarray) else array.dtype


def place(index: Sequence[int]) -> str:
    """Say where an element of an array is.

    Examples
    --------
    >>> from probsl.conversion import place
    >>> place((3, 0))
    'row 3, column 0'
    """
    if not index:
        return "its only value"
    if len(index) > 2:
        return f"row {index[0]}, index {list(index[1:])}"
    return f"row {index[0]}" + "".join(f", column {i}" for i in index[1:])


def _from_sequence(name: str, value: Sequence[Any]) -> Any:
    """Return a list as an array; lists of tensors that are no numbers stay."""
    if value and all(torch.is_tensor(v) for v in value):
        single = all(v.ndim == 0 for v in value)
        return torch.stack(list(value)) if single else value
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(
            f"argument '{name}' is a list whose entries differ in length; give all "
            "rows the same number of columns"
        ) from None


def _labels_or_codes(value: Any, categories: tuple[Any, ...]) -> Any:
    """Return an array of labels as a pandas Series, and one of codes as it is."""
    numeric = value.dtype.kind in "biufc"
    if numeric and not all(isinstance(c, numbers.Number) for c in categories):
        return value
    import pandas as pd

    return pd.Series(value)


def _with_codes(name: str, series: Any, categories: tuple[Any, ...]) -> Any:
    """Give categories the codes that they had in the fit."""
    import pandas as pd

    unknown = set(series.dropna().unique()) - set(categories)
    if unknown:
        raise ValueError(
            f"argument '{name}' has the category {sorted(unknown, key=str)[0]!r}, "
            f"which the fit did not see; it saw {', '.join(map(repr, categories))}"
        )
    return series.astype(pd.CategoricalDtype(list(categories)))


def _from_numpy(name: str, value: Any) -> Tensor:
    kind = value.dtype.kind
    if kind == "M":
        raise TypeError(_of_kind(name, "dates", "(column - column.min())"))
    if kind == "m":
        raise TypeError(_of_kind(name, "time spans", "column"))
    if kind not in "biufc":
        _refuse_objects(name, value)
    if kind == "u" and value.dtype != np.uint8:
        value = value.astype(np.int64)
    # torch shares memory only with writable arrays in native order and layout.
    if (
        not value.flags.writeable
        or not value.dtype.isnative
        or any(s < 0 for s in value.strides)
    ):
        value = value.astype(value.dtype.newbyteorder("="), copy=True)
    return torch.from_numpy(value)


def _of_kind(name: str, held: str, span: str) -> str:
    return f"argument '{name}' holds {held}; " + _AS_TIME.format(span)


def _refuse_objects(name: str, value: Any) -> None:
    """Say what an array of objects or text holds, by its first entry of that kind."""
    entries = value.reshape(-1).tolist()
    _refuse_missing(name, np.array([_is_missing(v) for v in entries], dtype=bool))
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


def _is_missing(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _refuse_missing(name: str, missing: Any) -> None:
    if missing.any():
        count = int(missing.sum())
        raise ValueError(
            f"argument '{name}' has {count} missing value{'s' * (count > 1)}, the "
            f"first in row {int(missing.argmax())}; drop or fill those rows"
        )


def _checked(name: str, value: Tensor) -> Tensor:
    """Return a tensor without gradient, dense, with at least one row, and finite."""
    if value.layout is not torch.strided:
        raise TypeError(
            f"argument '{name}' is a sparse tensor; give a dense one, {name}.to_dense()"
        )
    if value.ndim and not len(value):
        raise ValueError(
            f"argument '{name}' has no rows (its shape is {tuple(value.shape)}); give "
            "at least one"
        )
    value = value.detach()
    if value.is_floating_point() or value.is_complex():
        _refuse_nonfinite(name, value)
    return value


def _checked_on_disk(name: str, array: Any) -> Any:
    """Return a mapped array of finite numbers as it is, read once and in parts."""
    if array.dtype.kind not in "biufc" or not array.ndim:
        return _checked(name, _from_numpy(name, np.array(array)))
    if not len(array):
        return _checked(name, resident(array))
    if array.dtype.kind in "fc":
        _refuse_nonfinite(name, array)
    return array


def _refuse_nonfinite(name: str, value: Any) -> None:
    """Say how many elements are NaN or infinite, and where the first is."""
    count, first = 0, None
    listed = value if value.ndim else value.reshape(1)
    rows = max(1, _CHECKED_ELEMENTS // max(math.prod(listed.shape[1:]), 1))
    for start in range(0, len(listed), rows):
        strange = ~resident(listed[start : start + rows]).isfinite()
        found = int(strange.sum())
        if found and first is None:
            row, *rest = strange.nonzero()[0].tolist()
            first = [start + row, *rest] if value.ndim else []
        count += found
    if first is not None:
        raise ValueError(
            f"argument '{name}' has {count} NaN or infinite value{'s' * (count > 1)}, "
            f"the first in {place(first)}; drop or fill those rows"
        )


def _is_pandas(value: Any, *kinds: str) -> bool:
    """Whether a value is one of pandas's classes, without importing pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(
        value, tuple(getattr(pandas, kind) for kind in kinds)
    )
