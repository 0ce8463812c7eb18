"""Inputs along one column, with the other columns held at one value each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probsl.data.conversion import Converted
from probsl.draws.predictions import new_arguments
from probsl.plots.columns import (
    columns_of,
    entries,
    input_along,
    row_arguments,
    split_label,
)

if TYPE_CHECKING:
    from probsl.fitting import Fit
    from probsl.plots.columns import Array

# Up to this many distinct integers are groups rather than a continuous input.
_GROUPS = 12
_POINTS = 200


@dataclass(frozen=True, eq=False)
class Along:
    """Rows along one input.

    Attributes
    ----------
    label
        The label of the input.
    observed
        Its values in the data, ``[rows]``.
    data
        The arguments to predict for.
    across
        The input in each row of these.
    groups
        Value of the input -> label, if it is the index of a group.
    held
        Label of another input -> the value at which it is held, as text; empty if only
        this one varies.
    """

    label: str
    observed: Array
    data: Any
    across: Array
    groups: dict[float, str]
    held: dict[str, str]


def inputs_along(
    fit: Fit,
    data: Any,
    x: str | None,
    at: Mapping[str, Any] | None,
    points: int = _POINTS,
) -> Along:
    """Return rows along one input; the data themselves if no other input varies.

    Parameters
    ----------
    fit
        The fit.
    data
        The data, with the values of the inputs.
    x
        The label of the input; None takes the only one that varies.
    at
        Label of an input -> the value at which it is held; by default numbers are held
        at their mean, and integers and categories at their mode.
    points
        The number of rows.

    Raises
    ------
    TypeError, ValueError
        If `x` or `at` name no input, or a value is not one of the input.
    """
    if at is not None and not isinstance(at, Mapping):
        raise TypeError(
            f"at must map inputs to values, such as {{'age': 30}}, got {at!r}"
        )
    arguments = new_arguments(fit.problem, data)
    columns = columns_of(fit, arguments)
    x = input_along(x, columns)
    given = {
        input_along(str(name), columns): value for name, value in (at or {}).items()
    }
    if x in given:
        raise ValueError(f"at holds '{x}', which is the input along which to plot")
    groups = _groups(columns[x], fit.problem.arguments.labels.get(x, ()))
    varying = [n for n, c in columns.items() if n != x and np.ptp(c) > 0]
    if not varying and not given:
        return Along(x, columns[x], data, columns[x], groups, {})
    rows, held = _held(fit, arguments, columns, given)
    across = np.array([*groups]) if groups else _range(columns[x], points)
    grid = {
        name: value.expand(len(across), *value.shape[1:]).clone()
        for name, value in rows.items()
    }
    _set(fit, grid, x, torch.as_tensor(across))
    shown = {n: held[n] for n in columns if n in {*varying, *given}}
    converted = {n: Converted(v) for n, v in {**arguments, **grid}.items()}
    return Along(x, columns[x], converted, across, groups, shown)


def _held(
    fit: Fit,
    arguments: Mapping[str, Any],
    columns: Mapping[str, Array],
    given: Mapping[str, Any],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return one row in which every input is held, and the values as text."""
    rows = {}
    for name in row_arguments(fit, arguments):
        value = arguments[name]
        whole = not value.is_floating_point()
        middle = value.mode(0).values if whole else value.mean(0)
        rows[name] = middle[None].clone()
    for label, value in given.items():
        _set(fit, rows, label, torch.tensor(_code(fit, label, value)))
    held = {}
    for label in columns:
        name, entry = split_label(label)
        number = float(_column(fit, rows[name], name, entry)[0])
        levels = fit.problem.arguments.labels.get(label, ())
        held[label] = str(levels[int(number)]) if levels else f"{number:.3g}"
    return rows, held


def _code(fit: Fit, label: str, value: Any) -> float:
    """Return a value of an input as a number, and a level as its code."""
    levels = [*fit.problem.arguments.labels.get(label, ())]
    if value in levels:
        return float(levels.index(value))
    if levels or isinstance(value, str):
        known = ", ".join(map(repr, levels)) or "numbers"
        raise ValueError(f"at['{label}'] is {value!r}, but its values are {known}")
    return float(value)


def _set(fit: Fit, rows: dict[str, Tensor], label: str, values: Tensor) -> None:
    name, entry = split_label(label)
    column = _column(fit, rows[name], name, entry)
    column.copy_(values.to(column))


def _column(fit: Fit, value: Tensor, name: str, entry: str | None) -> Tensor:
    if entry is None:
        return value
    return value[:, entries(fit, name, value.shape[1]).index(entry)]


def _range(column: Array, points: int) -> Array:
    low, high = float(column.min()), float(column.max())
    across = np.linspace(low, high, points)
    whole = (column == column.round()).all()
    return np.unique(across.round()) if whole and high - low > 1 else across


def _groups(across: Array, labels: Any) -> dict[float, str]:
    """Return group -> label; empty if the input is not the index of a group."""
    values = np.unique(across)
    if len(values) > _GROUPS or (values != values.round()).any():
        return {}
    return {v: str(labels[int(v)] if labels else int(v)) for v in values.tolist()}
