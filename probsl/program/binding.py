"""Binds a program to the data of a fit, or takes a problem that is bound already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from probsl.data.missing import CompleteRows, complete_rows
from probsl.program.dry_run import check_program
from probsl.program.places import Place
from probsl.program.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from probsl.data.data_options import DataOptions

__all__ = ["bound_problem", "complete_data", "first_place"]


def complete_data(
    missing: str,
    program: Callable[..., Any] | Problem,
    data: Any,
    rows: Sequence[str] | None,
    weights: Any,
) -> CompleteRows:
    """Drop rows with missing values if that is asked for."""
    if missing not in ("refuse", "drop"):
        raise ValueError(f"missing must be 'refuse' or 'drop', got {missing!r}")
    if missing == "refuse":
        return CompleteRows(data, weights, "")
    if isinstance(program, Problem):
        raise ValueError(
            "missing='drop' needs data, but a problem has its data already"
        )
    check_program(program)
    return complete_rows(program, data, rows, weights)


def bound_problem(
    program: Callable[..., Any] | Problem, data: Any, options: DataOptions, place: Place
) -> Problem:
    """Bind a program to data, unless it is a problem, which is bound already."""
    if not isinstance(program, Problem):
        return Problem.build(program, data, options, place=place)
    asked = {"data": data} | {
        name: getattr(options, name) for name in ("rows", "dtype", "device", "total")
    }
    given = [name for name, value in asked.items() if value is not None]
    if given:
        raise ValueError(
            f"{given[0]} must be None, because a problem has its data already; give "
            "the program to bind it to other data"
        )
    all_rows, batch_size = program.data, options.batch_size or 0
    if not all_rows.complete and batch_size > max(
        all_rows.held, all_rows.batch_size or 0
    ):
        raise ValueError(
            f"batch_size is {batch_size}, but the problem holds only {all_rows.held} "
            f"of its {all_rows.size} rows; give a smaller one, or the program and its "
            "data again"
        )
    weights = options.weights
    return program if weights is None else program.reweighted(weights)


def first_place(method: Any) -> Place:
    """Return the values of the latents in the program's first run, from `start`."""
    start = getattr(method, "start", None)
    point = getattr(start, "point", None)  # of another fit
    given = point() if callable(point) else start
    return Place(given=dict(given) if isinstance(given, Mapping) else {})
