"""Data in every form users have it, as arguments of a program, checked."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from probsl.array_kinds import COMPUTED_IN
from probsl.conversion import (
    Converter,
    is_mapped,
    refuse_overflow,
    resident,
    type_of,
)
from probsl.options import did_you_mean, several_names
from probsl.signature import signature_of


@dataclass(frozen=True)
class Arguments:
    """A program's arguments: arrays as tensors, everything else as it came.

    Attributes
    ----------
    values
        Name -> tensor or constant.
    labels
        What its pandas columns meant, see `probsl.conversion.Converter`.
    """

    values: dict[str, Any]
    labels: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def lengths(self) -> dict[str, int]:
        """Return the length of the first axis of every array."""
        return {name: len(value) for name, value in self.arrays().items() if value.ndim}

    def arrays(self) -> dict[str, Any]:
        """Return the arrays: tensors, and NumPy arrays that are mapped from disk."""
        return {n: v for n, v in self.values.items() if is_array(v)}

    def cast(self, dtype: torch.dtype, device: torch.device) -> Arguments:
        """Return the same arguments on a device, floating tensors of type `dtype`.

        Raises
        ------
        ValueError
            If a number is too large for `dtype`.
        """
        for name, array in self.arrays().items():
            refuse_overflow(name, array, dtype)
        values = {
            name: resident(value, dtype, device) if is_array(value) else value
            for name, value in self.values.items()
        }
        return replace(self, values=values)


def is_array(value: Any) -> bool:
    """Return whether a converted argument is an array and not a constant."""
    return torch.is_tensor(value) or is_mapped(value)


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
        Those of earlier arguments, which these must follow.

    Raises
    ------
    TypeError
        If data is of another form, or an array holds text or objects.
    ValueError
        If an argument is missing or unknown, or a value is not finite.
    """
    signature = signature_of(function)
    given = by_name(function, data)
    _check_names(signature, given, data)
    convert = Converter(labels)
    values = {name: convert(name, value) for name, value in given.items()}
    return Arguments(values, convert.labels)


def floating_type(
    arguments: Arguments, own: set[torch.dtype], dtype: torch.dtype | None
) -> torch.dtype:
    """Choose the floating type of a fit.

    The one asked for; else that of the program's own parameters; else the
    widest of the data; else torch's default.

    Raises
    ------
    ValueError, TypeError
        If the program's own parameters have several types and none is asked for,
        or it is no floating type.
    """
    if dtype is not None:
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype must be such as torch.float64, got {dtype!r}")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating type, got {dtype}")
        if dtype not in COMPUTED_IN:
            raise ValueError(
                f"dtype must be a floating type that torch computes in, such as "
                f"torch.float32, got {dtype}"
            )
        return dtype
    if len(own) > 1:
        names = ", ".join(sorted(str(t) for t in own))
        raise ValueError(
            f"the program's own parameters are of several floating types ({names}); "
            "say which one to compute in, for example dtype=torch.float64"
        )
    if own:
        return next(iter(own))
    types = [type_of(array) for array in arguments.arrays().values()]
    return max(
        (t for t in types if t.is_floating_point),
        key=lambda t: torch.finfo(t).bits,
        default=torch.get_default_dtype(),
    )


def device_of(
    arguments: Arguments, own: Iterable[torch.device], device: Any
) -> torch.device:
    """Choose the device of a fit.

    The one asked for; else the accelerator that the program's own parameters are on;
    else that of the data; else the CPU.

    Raises
    ------
    ValueError, TypeError
        If the one asked for is not there, or is no device.
    """
    if device is not None:
        return _available(device)
    tensors = [v.device for v in arguments.values.values() if torch.is_tensor(v)]
    found = (place for place in [*own, *tensors] if place.type != "cpu")
    return next(found, torch.device("cpu"))


def _available(device: Any) -> torch.device:
    """Return a device that is there, with its index."""
    if not isinstance(device, str | torch.device):
        raise TypeError(
            f"device must be 'cpu', 'cuda' or a torch.device, got {device!r}"
        )
    try:
        place = torch.device(device)
    except RuntimeError:
        place = None
    if place is None or place.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got '{device}'")
    if place.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not 0 <= (place.index or 0) < count:
        found = (
            f"torch.cuda.device_count() is {count}"
            if count
            else "torch.cuda.is_available() is False"
        )
        raise ValueError(
            f"device='{device}' is not available here ({found}); leave device out to "
            "compute on the CPU"
        )
    # Tensors name the index of their device, and are to be told equal to it.
    if place.index is None:
        place = torch.device("cuda", torch.cuda.current_device())
    return place


class UnclearRowsError(ValueError):
    """Lengths do not say which arguments have one entry per row."""


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
    UnclearRowsError
        If the lengths do not settle it.
    ValueError
        If they contradict the user's answer.
    """
    lengths = arguments.lengths()
    matching = tuple(n for n, length in lengths.items() if length == size)
    if rows is not None:
        for name in several_names("rows", rows):
            if name not in lengths:
                raise ValueError(
                    f"rows names '{name}', which is not an array argument; those are "
                    f"{', '.join(lengths)}{did_you_mean(name, lengths)}"
                )
            if name not in matching:
                raise ValueError(
                    f"rows names '{name}', whose first axis is {lengths[name]}, but "
                    f"the data plate has {size} rows; name arguments of that length"
                )
        return tuple(rows)
    remedy = f"say which arguments have one entry per row, for example rows={matching}"
    if size > 1:
        for name in matching:
            if size in arguments.values[name].shape[1:]:
                raise UnclearRowsError(
                    f"argument '{name}' has {size} entries along several axes, so it "
                    f"is not clear which are rows; {remedy}"
                )
        for name, other in other_plates.items():
            if other == size and matching:
                raise UnclearRowsError(
                    f"plate '{name}' is of size {size}, as many as there are rows, so "
                    f"it is not clear which arguments are rows; {remedy}"
                )
    return matching


def row_weights(
    weights: Any, size: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Check and convert one weight per row.

    Raises
    ------
    ValueError
        If a weight is negative or not finite, or their number differs from the
        number of rows.
    """
    converted = Converter()("weights", weights)
    converted = resident(converted) if is_mapped(converted) else converted
    if not torch.is_tensor(converted) or converted.shape != (size,):
        got = (
            tuple(converted.shape)
            if torch.is_tensor(converted)
            else type(converted).__name__
        )
        raise ValueError(f"weights must have shape ({size},), one per row, got {got}")
    negative = converted < 0
    count = int(negative.sum())
    if count:
        raise ValueError(
            f"weights has {count} negative value{'s' * (count > 1)}, the first in row "
            f"{int(negative.nonzero()[0, 0])}; give zero or more"
        )
    if not (converted > 0).any():
        raise ValueError("weights are all zero, so no row is left; keep some positive")
    refuse_overflow("weights", converted, dtype)
    weight: Tensor = converted.to(device, dtype)
    return weight


def by_name(function: Callable[..., Any], data: Any) -> dict[str, Any]:
    """Return data as a mapping from a program's argument names to values.

    Raises
    ------
    TypeError, ValueError
        If data is of another form, or has too many entries.
    """
    signature = signature_of(function)
    if _is_dataframe(data):
        return {n: data[n] for n in signature.parameters if n in data.columns}
    if isinstance(data, Mapping):
        return dict(data)
    if isinstance(data, tuple):
        names = list(signature.parameters)
        if len(data) > len(names):
            raise ValueError(
                f"data has {len(data)} entries, but the program takes {len(names)} "
                f"arguments: {', '.join(names)}"
            )
        return dict(zip(names, data, strict=False))
    raise TypeError(
        "data must map the program's argument names to arrays, such as "
        '{"x": x, "y": y}, or be a DataFrame, a DataLoader or a tuple of arrays in '
        f"the order of the arguments; got {type(data).__name__}"
    )


def refuse_unequal_rows(names: Iterable[str], given: Mapping[str, Any]) -> None:
    """Refuse new data whose row arguments differ in length.

    Parameters
    ----------
    names
        The arguments that have one entry per row.
    given
        Argument -> value, before it is converted.

    Raises
    ------
    ValueError
        Naming the arguments, and their lengths.
    """
    arrays = {n: given[n] for n in names if _is_long(given.get(n))}
    lengths = {name: len(value) for name, value in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"arguments {_listed(map(repr, lengths))} have unequal lengths, "
            f"{_listed(map(str, lengths.values()))}; give them one entry per row each"
        )


def _is_long(value: Any) -> bool:
    """Return whether a value has entries to count; one text has none."""
    if isinstance(value, str) or not hasattr(value, "__len__"):
        return False
    return getattr(value, "ndim", 1) > 0


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}"


def _check_names(
    signature: inspect.Signature, given: Mapping[Any, Any], data: Any
) -> None:
    """Refuse data that the program does not take, or lacks."""
    parameters = signature.parameters
    unnamed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [n for n, p in parameters.items() if p.kind not in unnamed]
    required = [n for n in named if parameters[n].default is inspect.Parameter.empty]
    unknown = [n for n in given if n not in named]
    missing = [n for n in required if n not in given]
    if any(not isinstance(n, str) for n in unknown):
        raise TypeError(
            f"data has the key {unknown[0]!r}; its keys must be the names of the "
            f"program's arguments, {', '.join(named)}"
        )
    _check_kinds(parameters.values(), all_named=takes_any or not unknown)
    if unknown and not takes_any:
        raise ValueError(
            f"data has '{unknown[0]}', which is not an argument of the program "
            f"({', '.join(named)}){did_you_mean(unknown[0], named)}"
        )
    if missing:
        columns = data.columns if _is_dataframe(data) else given
        offered = [str(name) for name in columns]
        raise ValueError(
            f"data lacks '{missing[0]}', an argument of the program; given: "
            f"{', '.join(offered) or 'nothing'}{did_you_mean(missing[0], offered)}"
        )


def _check_kinds(parameters: Iterable[inspect.Parameter], *, all_named: bool) -> None:
    """Refuse a program that does not take its data by name."""
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY or (
            parameter.kind is parameter.VAR_POSITIONAL and not all_named
        ):
            raise TypeError(
                f"the program must take its data by name, but '{parameter}' is by "
                "position; declare it as in def program(x, y=None)"
            )


def _is_dataframe(data: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(data, pandas.DataFrame)
