"""Selects columns of inputs and outcomes by labels such as ``x[2]``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probsl.data.arguments import by_name
from probsl.data.signature import signature_of
from probsl.draws.predictions import new_arguments, observed_arguments
from probsl.options import did_you_mean
from probsl.program.sites import Role

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probsl.fitting import Fit

    Array = NDArray[np.float64]


def split_label(label: str) -> tuple[str, int | None]:
    """Split a label into name and column.

    Examples
    --------
    >>> from probsl.plots.columns import split_label
    >>> split_label("x[2]"), split_label("age")
    (('x', 2), ('age', None))
    """
    match = re.fullmatch(r"(.+)\[(\d+)\]", label)
    return (match[1], int(match[2])) if match else (label, None)


def column(name: str, values: Array, part: int | None, axis: int) -> Array:
    """Return one column of values.

    Parameters
    ----------
    name
        The name of the values, for messages.
    values
        Of shape ``[..., rows]`` or ``[..., rows, columns]``.
    part
        The index of the column; None if there is only one.
    axis
        The axis of the columns, if there are any.

    Raises
    ------
    ValueError
        If there are several columns and `part` is None, or it does not exist.
    """
    if values.ndim == axis and part is None:
        return values
    if values.ndim == axis + 1 and values.shape[axis] == 1 and part is None:
        return values[..., 0]
    if values.ndim == axis + 1 and part is not None and part < values.shape[axis]:
        return values[..., part]
    asked = name if part is None else f"{name}[{part}]"
    if values.ndim == axis + 1:
        count = values.shape[axis]
        has = f"{count} columns"
        remedy = f"name one of them, from '{name}[0]' to '{name}[{count - 1}]'"
    else:
        has = f"shape {values.shape[axis - 1 :]}"
        remedy = "a plot needs one value per row"
    raise ValueError(f"'{asked}' cannot be drawn: '{name}' has {has}; {remedy}")


def row_inputs(fit: Fit, data: Any) -> dict[str, Array]:
    """Return label -> input column, for inputs with one value per row."""
    problem, columns = fit.problem, {}
    for name, value in new_arguments(problem, data).items():
        if problem.has_rows and name not in problem.rows:
            continue
        array = np.asarray(value.cpu()) if torch.is_tensor(value) else np.empty(())
        if array.ndim == 1:
            columns[name] = array.astype(float)
        elif array.ndim == 2:
            columns |= {f"{name}[{i}]": c.astype(float) for i, c in enumerate(array.T)}
    return columns


def input_along(x: str | None, columns: dict[str, Array]) -> str:
    """Return the label of the input for the horizontal axis.

    Parameters
    ----------
    x
        The label that the user gave; None selects the only input that varies.
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
    if x not in columns:
        raise ValueError(
            f"'{x}' is not an input with one value per row; there are: {known}"
            + did_you_mean(x, columns)
        )
    return x


def predicted_site(fit: Fit, y: str | None, site: str | None) -> tuple[str, int | None]:
    """Return the site to draw and the index of its column.

    Parameters
    ----------
    fit
        Any fit.
    y, site
        The names that the user gave, see `probsl.plot_predictive`.

    Raises
    ------
    ValueError
        If there is no such site, or the choice is ambiguous.
    """
    name, part = split_label(y) if y is not None else (None, None)
    observed = fit.problem.sites_with_role(Role.OBSERVED)
    if site is None:
        site = name if name in observed else None
        if site is None and len(observed) == 1:
            (site,) = observed
    if site is None:
        raise ValueError(
            f"several sites are observed ({', '.join(observed)}); name one with site="
        )
    known = (*observed, *fit.problem.sites_with_role(Role.DETERMINISTIC))
    if site not in known:
        raise ValueError(
            f"'{site}' is not an observed or deterministic site of the program "
            f"({', '.join(known)}){did_you_mean(site, known)}"
        )
    return site, part


def observed_argument(fit: Fit, site: str) -> str:
    """Return the name of the argument that a site observes, or else of the site."""
    found = observed_arguments(fit.problem)
    return next(iter(found)) if len(found) == 1 else site


def outcomes(fit: Fit, data: Any, label: str) -> Array | None:
    """Return the observed values of a label, or None if the data have none.

    Raises
    ------
    ValueError
        If the program has no such argument.
    """
    name, part = split_label(label)
    function = fit.problem.program.function
    given = by_name(function, data)
    known = [*signature_of(function).parameters, *given]
    if name not in known and name not in fit.problem.sites_with_role(Role.OBSERVED):
        raise ValueError(
            f"'{name}' is not an argument of the program ({', '.join(known)})"
            + did_you_mean(name, known)
        )
    if given.get(name) is None:
        return None
    value = given[name]
    value = value.cpu() if torch.is_tensor(value) else value
    return column(name, np.asarray(value, dtype=float), part, axis=1)
