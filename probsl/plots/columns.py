"""Selects the data and sites of a plot by labels such as ``x[age]`` or ``x[2]``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probsl.data.arguments import by_name
from probsl.draws.predictions import observed_arguments
from probsl.options import did_you_mean
from probsl.program.sites import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from probsl.fitting import Fit

    Array = NDArray[np.float64]


def split_label(label: str) -> tuple[str, str | None]:
    """Split a label into name and entry.

    Examples
    --------
    >>> from probsl.plots.columns import split_label
    >>> split_label("x[2]"), split_label("x[age]"), split_label("age")
    (('x', '2'), ('x', 'age'), ('age', None))
    """
    match = re.fullmatch(r"([^\[]+)\[(.+)\]", label)
    return (match[1], match[2]) if match else (label, None)


def written(label: str) -> str:
    """Return the name of a column as it is written at an axis.

    Examples
    --------
    >>> from probsl.plots.columns import written
    >>> written("x[age]"), written("x[2]"), written("age")
    ('age', 'x[2]', 'age')
    """
    _, entry = split_label(label)
    return label if entry is None or entry.isdecimal() else entry


def entries(fit: Fit, name: str, count: int) -> list[str]:
    """Return the labels of the columns of an argument or site."""
    dims = fit.problem.names.dims.get(name, ())
    return fit.problem.names.entries(dims[-1] if len(dims) > 1 else None, count)


def _position(known: list[str], entry: str | None) -> int | None:
    """Return the index of a column by its label, or by its number."""
    if entry in known:
        return known.index(entry)
    number = int(entry) if entry is not None and entry.isdecimal() else len(known)
    return number if number < len(known) else None


def column(fit: Fit, name: str, values: Array, entry: str | None, axis: int) -> Array:
    """Return one column of values.

    Parameters
    ----------
    fit
        The fit, which knows the labels of the columns.
    name
        The name of the values, for messages.
    values
        Of shape ``[..., rows]`` or ``[..., rows, columns]``.
    entry
        The label or number of the column; None if there is only one.
    axis
        The axis of the columns, if there are any.

    Raises
    ------
    ValueError
        If there are several columns and `entry` is None, or it does not exist.
    """
    if values.ndim == axis and entry is None:
        return values
    known = entries(fit, name, values.shape[-1]) if values.ndim == axis + 1 else []
    if len(known) == 1 and entry is None:
        return values[..., 0]
    part = _position(known, entry)
    if part is not None:
        return values[..., part]
    asked = name if entry is None else f"{name}[{entry}]"
    if values.ndim == axis + 1:
        has = f"{len(known)} columns"
        remedy = f"name one of them, from '{name}[{known[0]}]' to '{name}[{known[-1]}]'"
    else:
        has = f"shape {values.shape[axis - 1 :]}"
        remedy = "a plot needs one value per row"
    raise ValueError(f"'{asked}' cannot be drawn: '{name}' has {has}; {remedy}")


def row_arguments(fit: Fit, arguments: Mapping[str, Any]) -> list[str]:
    """Return the names of the arguments with one entry per row, or of all arrays."""
    problem = fit.problem
    return [
        name
        for name, value in arguments.items()
        if torch.is_tensor(value)
        and value.dim()
        and (name in problem.rows or not problem.has_rows)
    ]


def columns_of(fit: Fit, arguments: Mapping[str, Any]) -> dict[str, Array]:
    """Return label -> input column, for inputs with one value per row."""
    columns = {}
    for name in row_arguments(fit, arguments):
        array = np.asarray(arguments[name].cpu())
        if array.ndim == 1:
            columns[name] = array.astype(float)
        elif array.ndim == 2:
            labels = entries(fit, name, array.shape[1])
            columns |= {
                f"{name}[{label}]": values.astype(float)
                for label, values in zip(labels, array.T, strict=True)
            }
    return columns


def input_along(x: str | None, columns: dict[str, Array]) -> str:
    """Return the label of the input for the horizontal axis.

    Parameters
    ----------
    x
        The label that the user gave, or only the name of a column, or its number;
        None selects the only input that varies.
    columns
        Label -> values.

    Raises
    ------
    ValueError
        If there is no such input, or the choice is ambiguous.
    """
    known = ", ".join(columns) or "none"
    if x is None:
        varying = [name for name, column in columns.items() if np.ptp(column) > 0]
        likely = varying if len(columns) > 1 else list(columns)
        if len(likely) != 1:
            raise ValueError(f"name the input to draw along with x=, one of: {known}")
        return likely[0]
    if x in columns:
        return x
    name, entry = split_label(x)
    same = [label for label in columns if split_label(label)[0] == name]
    place = _position([str(i) for i in range(len(same))], entry)
    if place is not None:
        return same[place]
    named = [label for label in columns if split_label(label)[1] == x]
    if len(named) == 1:
        return named[0]
    raise ValueError(
        f"'{x}' is not an input with one value per row; there are: {known}"
        + did_you_mean(x, columns)
    )


def predicted_site(fit: Fit, y: str | None) -> tuple[str, str | None]:
    """Return the site to draw and the label of its column.

    Parameters
    ----------
    fit
        Any fit.
    y
        The name that the user gave, see `probsl.plot_predictive`.

    Raises
    ------
    ValueError
        If there is no such site, or the choice is ambiguous.
    """
    name, part = split_label(y) if y is not None else (None, None)
    observed = fit.problem.sites_with_role(Role.OBSERVED)
    known = (*observed, *fit.problem.sites_with_role(Role.DETERMINISTIC))
    if name in known:
        return str(name), part
    arguments = observed_arguments(fit.problem)
    if name is not None and name not in arguments:
        offered = [*known, *sorted(arguments)]
        raise ValueError(
            f"'{name}' is not an outcome of the program ({', '.join(offered)})"
            f"{did_you_mean(name, offered)}"
        )
    if len(observed) != 1:
        raise ValueError(
            f"several sites are observed ({', '.join(observed)}); name one with y="
        )
    return observed[0], part


def observed_argument(fit: Fit, site: str) -> str:
    """Return the name of the argument that a site observes, or else of the site."""
    found = observed_arguments(fit.problem)
    return next(iter(found)) if len(found) == 1 else site


def outcomes(fit: Fit, data: Any, label: str) -> Array | None:
    """Return the observed values of a label, or None if the data have none."""
    name, part = split_label(label)
    given = by_name(fit.problem.program.function, data)
    if given.get(name) is None:
        return None
    value = given[name]
    value = value.cpu() if torch.is_tensor(value) else value
    return column(fit, name, np.asarray(value, dtype=float), part, axis=1)
