"""Data in every form users have it, as arguments of a program, checked."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Arguments:
    """A program's arguments: arrays as tensors, everything else as it came.

    Attributes
    ----------
    values
        Name -> tensor or constant.
    labels
        Name -> the categories behind an argument's integer codes.
    """

    values: dict[str, Any]
    labels: dict[str, tuple[Any, ...]]

    def cast(self, dtype: torch.dtype) -> Arguments:
        """Return the same arguments with floating tensors of type `dtype`."""
        values = {
            name: value.to(dtype)
            if torch.is_tensor(value) and value.is_floating_point()
            else value
            for name, value in self.values.items()
        }
        return Arguments(values, self.labels)


def bind(
    function: Callable[..., Any],
    data: Any,
    *,
    labels: Mapping[str, tuple[Any, ...]] | None = None,
) -> Arguments:
    """Match data to a program's arguments and turn every array into a tensor.

    Parameters
    ----------
    function
        The program; its signature says which arguments there are.
    data
        A mapping from argument names to arrays or constants, a DataFrame whose
        columns are named like the arguments, or a tuple matched by position.
    labels
        Name -> the categories whose positions are the codes of that argument,
        for data that must be coded like earlier ones.

    Raises
    ------
    TypeError
        If data is of another form, or an array holds text or objects.
    ValueError
        If an argument is missing or unknown, or a value is not finite.
    """
    signature = inspect.signature(function)
    given = by_name(function, data)
    _check_names(signature, given, strict=not _is_dataframe(data))
    values, found = {}, {}
    for name, value in given.items():
        coded = _recoded(name, value, (labels or {}).get(name))
        values[name], categories = _convert(name, coded)
        if categories is not None:
            found[name] = categories
    return Arguments(values, found)


def floating_type(
    arguments: Arguments, own: set[torch.dtype], dtype: torch.dtype | None
) -> torch.dtype:
    """Choose the floating type of a fit.

    The one asked for; else that of the program's own parameters; else the
    widest of the data; else torch's default.

    Raises
    ------
    ValueError
        If the program's own parameters have several types and none is asked for.
    """
    if dtype is not None:
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating type, got {dtype}")
        return dtype
    if len(own) > 1:
        names = ", ".join(sorted(str(t) for t in own))
        raise ValueError(
            f"the program's own parameters are of several floating types ({names}); "
            "say which one to compute in, for example dtype=torch.float64"
        )
    if own:
        return next(iter(own))
    types = [
        v.dtype
        for v in arguments.values.values()
        if torch.is_tensor(v) and v.is_floating_point()
    ]
    return max(
        types, key=lambda t: torch.finfo(t).bits, default=torch.get_default_dtype()
    )


def find_rows(
    arguments: Arguments,
    size: int,
    rows: Sequence[str] | None,
    other_plates: Mapping[str, int],
) -> tuple[str, ...]:
    """Say which arguments have one entry per row.

    Parameters
    ----------
    arguments
        The program's arguments.
    size
        The number of rows, N.
    rows
        The user's own answer, if given.
    other_plates
        Name -> size of the plates that are not the data plate.

    Raises
    ------
    ValueError
        If the shapes do not settle it, or contradict the user's answer.
    """
    arrays = {
        n: v for n, v in arguments.values.items() if torch.is_tensor(v) and v.ndim > 0
    }
    matching = tuple(n for n, v in arrays.items() if len(v) == size)
    if rows is not None:
        for name in rows:
            if name not in arrays:
                raise ValueError(f"rows names '{name}', which is not an array argument")
            if name not in matching:
                raise ValueError(
                    f"rows names '{name}', whose first axis is {len(arrays[name])}, "
                    f"but the data plate has {size} rows"
                )
        return tuple(rows)
    remedy = f"say which arguments have one entry per row, for example rows={matching}"
    if size > 1:
        for name in matching:
            if size in arrays[name].shape[1:]:
                raise ValueError(
                    f"argument '{name}' has {size} entries along several axes, so it "
                    f"is not clear which are rows; {remedy}"
                )
        for name, other in other_plates.items():
            if other == size and matching:
                raise ValueError(
                    f"plate '{name}' is of size {size}, as many as there are rows, so "
                    f"it is not clear which arguments are rows; {remedy}"
                )
    return matching


def row_weights(weights: Any, size: int | None, dtype: torch.dtype) -> Tensor | None:
    """Check and convert one weight per row.

    Raises
    ------
    ValueError
        If there are no rows, or a weight is negative or not finite, or their
        number differs from the number of rows.
    """
    if weights is None:
        return None
    if size is None:
        raise ValueError(
            "weights needs a program whose observed site is in a vectorized plate; "
            'write: with pyro.plate("data", len(x)): ...'
        )
    converted, _ = _convert("weights", weights)
    if not torch.is_tensor(converted) or converted.shape != (size,):
        shape = tuple(getattr(converted, "shape", ()))
        raise ValueError(f"weights must have shape ({size},), one per row, got {shape}")
    if (converted < 0).any():
        row = int((converted < 0).nonzero()[0, 0])
        raise ValueError(f"weights must not be negative; the first that is: row {row}")
    if not (converted > 0).any():
        raise ValueError("weights are all zero, so no row is left to fit")
    return converted.to(dtype)


def gathered(data: Any) -> tuple[Any, int | None]:
    """Gather a DataLoader's batches; return the data and the size of a batch.

    Other data are returned as they are, with None.

    Raises
    ------
    ValueError
        If the loader yields nothing.
    """
    if not isinstance(data, torch.utils.data.DataLoader):
        return data, None
    # Iterating a loader draws from torch's global generator.
    with torch.random.fork_rng(devices=[]):
        batches = list(data)
    if not batches:
        raise ValueError("the DataLoader yields no batches")
    first = batches[0]
    if isinstance(first, Mapping):
        joined: Any = {k: _joined([b[k] for b in batches]) for k in first}
    else:
        first = first if isinstance(first, tuple | list) else (first,)
        parts = [b if isinstance(b, tuple | list) else (b,) for b in batches]
        joined = tuple(_joined([b[i] for b in parts]) for i in range(len(first)))
    return joined, data.batch_size


def _joined(parts: list[Any]) -> Any:
    """Put batches end to end; what is not an array is a constant."""
    if torch.is_tensor(parts[0]) and parts[0].ndim:
        return torch.cat(parts)
    return parts[0]


def by_name(function: Callable[..., Any], data: Any) -> dict[str, Any]:
    """Return data as a mapping from a program's argument names to values.

    Raises
    ------
    TypeError, ValueError
        If data is of another form, or has too many entries.
    """
    signature = inspect.signature(function)
    if _is_dataframe(data):
        return {n: data[n] for n in signature.parameters if n in data.columns}
    if isinstance(data, Mapping):
        return dict(data)
    if isinstance(data, tuple | list):
        names = list(signature.parameters)
        if len(data) > len(names):
            raise ValueError(
                f"data has {len(data)} entries, but the program takes {len(names)} "
                f"arguments: {', '.join(names)}"
            )
        return dict(zip(names, data, strict=False))
    raise TypeError(
        "data must map the program's argument names to arrays, such as "
        f'{{"x": x, "y": y}}, or be a DataFrame or a DataLoader; '
        f"got {type(data).__name__}"
    )


def _check_names(
    signature: inspect.Signature, given: Mapping[str, Any], *, strict: bool
) -> None:
    parameters = signature.parameters
    kinds = {p.kind for p in parameters.values()}
    required = [
        n
        for n, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    unknown = [n for n in given if n not in parameters]
    missing = [n for n in required if n not in given]
    if unknown and strict and inspect.Parameter.VAR_KEYWORD not in kinds:
        near = difflib.get_close_matches(unknown[0], parameters, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(
            f"data has '{unknown[0]}', which is not an argument of the program "
            f"({', '.join(parameters)}){hint}"
        )
    if missing:
        raise ValueError(
            f"data lacks '{missing[0]}', an argument of the program; given: "
            f"{', '.join(given) or 'nothing'}"
        )


def _convert(name: str, value: Any) -> tuple[Any, tuple[Any, ...] | None]:
    """Return a tensor (or the constant) and the categories behind its codes."""
    categories = None
    if _is_pandas(value):
        value, categories = _from_pandas(name, value)
    if isinstance(value, list | tuple) and value and not torch.is_tensor(value[0]):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        value = _from_numpy(name, value)
    if torch.is_tensor(value):
        value = value.detach()
        _check_finite(name, value)
    return value, categories


def _from_pandas(name: str, value: Any) -> tuple[Any, tuple[Any, ...] | None]:
    import pandas as pd

    if isinstance(value, pd.DataFrame):
        columns = [
            _from_numpy(
                f"{name}.{column}", _column(f"{name}.{column}", value[column])[0]
            )
            for column in value.columns
        ]
        if not columns:
            raise ValueError(f"argument '{name}' is a DataFrame without columns")
        kind = columns[0].dtype
        for column in columns[1:]:
            kind = torch.promote_types(kind, column.dtype)
        return torch.stack([c.to(kind) for c in columns], dim=1), None
    return _column(name, pd.Series(value))


def _column(name: str, series: Any) -> tuple[Any, tuple[Any, ...] | None]:
    import pandas as pd

    if isinstance(series.dtype, pd.CategoricalDtype):
        codes = series.cat.codes.to_numpy()
        _refuse_missing(name, codes < 0)
        return codes.astype(np.int64), tuple(series.cat.categories)
    if pd.api.types.is_extension_array_dtype(series.dtype) and (
        pd.api.types.is_numeric_dtype(series.dtype)
    ):
        _refuse_missing(name, series.isna().to_numpy())
        return series.to_numpy(dtype=series.dtype.numpy_dtype), None
    return series.to_numpy(), None


def _recoded(name: str, value: Any, categories: tuple[Any, ...] | None) -> Any:
    """Give pandas categories the codes that they had in the fit."""
    if categories is None or not _is_pandas(value):
        return value
    import pandas as pd

    series = pd.Series(value)
    unknown = set(series.dropna().unique()) - set(categories)
    if unknown:
        raise ValueError(
            f"argument '{name}' has the category {sorted(unknown, key=str)[0]!r}, "
            f"which the fit did not see; it saw {', '.join(map(repr, categories))}"
        )
    return series.astype(pd.CategoricalDtype(list(categories)))


def _refuse_missing(name: str, missing: Any) -> None:
    if missing.any():
        raise ValueError(
            f"argument '{name}' has {int(missing.sum())} missing values, the first in "
            f"row {int(missing.argmax())}; drop or fill those rows"
        )


def _from_numpy(name: str, value: Any) -> Tensor:
    value = np.asarray(value)
    if value.dtype.kind not in "biufc":
        kind = {"O": "objects", "U": "text", "S": "text", "M": "dates"}
        held = kind.get(value.dtype.kind, str(value.dtype))
        raise TypeError(
            f"argument '{name}' holds {held}; turn it into numbers, for example with "
            'pandas: column.astype("category")'
        )
    if value.dtype.kind == "u" and value.dtype != np.uint8:
        value = value.astype(np.int64)
    # torch shares memory only with writable arrays in native order and layout.
    if (
        not value.flags.writeable
        or not value.dtype.isnative
        or any(s < 0 for s in value.strides)
    ):
        value = value.astype(value.dtype.newbyteorder("="), copy=True)
    return torch.from_numpy(value)


def _check_finite(name: str, value: Tensor) -> None:
    if not value.is_floating_point() and not value.is_complex():
        return
    finite = value.isfinite()
    if bool(finite.all()):
        return
    count = int((~finite).sum())
    first = (~finite).nonzero()[0].tolist()
    where = f"row {first[0]}" if first else "its only value"
    if len(first) > 1:
        where += f", column {first[1]}" if len(first) == 2 else f", index {first[1:]}"
    raise ValueError(
        f"argument '{name}' has {count} NaN or infinite values, the first in {where}; "
        "drop or fill those rows"
    )


def _is_dataframe(value: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def _is_pandas(value: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(
        value, pandas.DataFrame | pandas.Series | pandas.Index | pandas.Categorical
    )
