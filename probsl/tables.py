"""Formats tables to fit the width of a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd


# The width of a terminal in characters, and the most table rows to print.
WIDTH, ROWS = 88, 60
# Shares of a column's largest number and of a standard deviation that print as 0.
_TINY, _NEGLIGIBLE = 1e-12, 1e-6


def in_width(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Split a table into parts that fit the terminal, each of whole fits or columns."""
    names = list(dict.fromkeys(table.columns.get_level_values(0)))
    while names:
        count = next(
            n
            for n in range(len(names), 0, -1)
            if n == 1 or _width(table[names[:n]]) <= WIDTH
        )
        yield table[names[:count]]
        names = names[count:]


def _width(table: pd.DataFrame) -> int:
    return max(map(len, table.to_string(max_rows=ROWS).splitlines()))


def printable(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of text, with numbers rounded to two decimals."""
    table = table.copy().astype(object)
    for column in table.columns:
        table[column] = [
            ("" if math.isnan(v) else f"{v:.2f}") if isinstance(v, float) else str(v)
            for v in table[column]
        ]
    return table


def number(value: float) -> str:
    """Format four significant digits, and all digits before the point."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}" if digits < 7 else f"{value:.3e}"


def parameters(table: pd.DataFrame) -> pd.DataFrame:
    """Return the summary of a fit as text, without empty columns."""
    tests = [column for column in _WRITTEN if column in table]
    numbers = table.drop(columns=tests)
    rounded = without_rounding_errors(numbers, table["sd"], numbers).join(table[tests])
    rounded = rounded.dropna(axis=1, how="all")
    columns = {
        name: [
            "" if math.isnan(v) else _WRITTEN.get(str(name), number)(v) for v in values
        ]
        for name, values in rounded.items()
    }
    return type(table)(columns, index=table.index, dtype=object)


def _probability(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


# Columns with a format of their own.
_WRITTEN: dict[str, Callable[[float], str]] = {"z": "{:.2f}".format, "p": _probability}


def without_rounding_errors(
    table: pd.DataFrame, sd: pd.Series, scale: pd.DataFrame
) -> pd.DataFrame:
    """Return a table with 0 in place of numbers that are only rounding errors.

    Parameters
    ----------
    table
        Numbers, one row per parameter.
    sd
        The standard deviation of each parameter, or missing. Numbers far below it are
        rounding errors.
    scale
        Numbers of the same kind, in the same columns or in one. Without a standard
        deviation, numbers far below the largest of them are rounding errors.
    """
    sizes = np.nan_to_num(table.abs().to_numpy(), nan=0.0, posinf=np.inf)
    spread = np.nan_to_num(sd.to_numpy()[:, None])
    finite = np.nan_to_num(scale.abs().to_numpy(), nan=0.0, posinf=0.0)
    largest = finite.max(axis=0, keepdims=True, initial=0.0)
    limits = np.where(spread > 0, _NEGLIGIBLE * spread, _TINY * largest)
    return table.mask(table.notna() & (sizes < limits), 0.0)
