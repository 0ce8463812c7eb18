"""Converts and checks data in every supported form, as arguments of a program."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from probsl.data.conversion import (
    Converter,
    is_array,
    refuse_overflow,
    resident,
)
from probsl.data.signature import signature_of
from probsl.options import did_you_mean

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Arguments:
    """A program's arguments: arrays as tensors, everything else unchanged.

    Attributes
    ----------
    values
        Name -> tensor or constant; before `cast`, also NumPy arrays.
    labels
        Labels of its pandas columns, see `probsl.data.conversion.Converter`.
    """

    values: dict[str, Any]
    labels: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def lengths(self) -> dict[str, int]:
        """Return the length of the first dimension of every array."""
        return {name: len(value) for name, value in self.arrays().items() if value.ndim}

    def arrays(self) -> dict[str, Any]:
        """Return the arrays: tensors, and NumPy arrays that torch cannot share."""
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
        The program; its signature defines the arguments.
    data
        A mapping from argument names to arrays or constants, a DataFrame whose
        columns are named like the arguments, or a tuple matched by position.
    labels
        The labels of earlier arguments, which these must match.

    Raises
    ------
    TypeError
        If data has an unsupported form, or an array holds text or objects.
    ValueError
        If an argument is missing or unknown, or a value is not finite.
    """
    signature = signature_of(function)
    given = by_name(function, data)
    _check_names(signature, given, data)
    convert = Converter(labels)
    values = {name: convert(name, value) for name, value in given.items()}
    return Arguments(values, convert.labels)


def by_name(function: Callable[..., Any], data: Any) -> dict[str, Any]:
    """Return data as a mapping from a program's argument names to values.

    Raises
    ------
    TypeError, ValueError
        If data has an unsupported form, or too many entries.
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
        Argument -> value, before conversion.

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
    """Return whether a value has entries to count; a single text has none."""
    if isinstance(value, str) or not hasattr(value, "__len__"):
        return False
    return getattr(value, "ndim", 1) > 0


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}"


def _check_names(
    signature: inspect.Signature, given: Mapping[Any, Any], data: Any
) -> None:
    """Refuse data with arguments unknown to the program, or without required ones."""
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
