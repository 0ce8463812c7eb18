"""Explains the errors of a program: adds notes, or replaces them by a clearer one."""

from __future__ import annotations

import contextlib
import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from probsl.data.arguments import Arguments


# Folders without lines of a program: of probsl, of the packages that programs call, and
# of Python's own modules.
_PROBSL = Path(__file__).parents[1]
_PACKAGES = [Path(str(package.__file__)).parent for package in (torch, pyro, np)]
_PYTHON = Path(contextlib.__file__).parent


def annotate(error: Exception, arguments: Arguments, dtype: torch.dtype) -> None:
    """Add to a program's error its line, the arguments, and possible remedies.

    Parameters
    ----------
    error
        The error that the program or the guide raised.
    arguments
        The arguments of the call.
    dtype
        The floating type of the fit.
    """
    if not getattr(error, "__notes__", None):
        return  # a refusal, which is complete
    line = _line_of(error)
    if line:
        error.add_note(f"probsl: the line of the program is {line}")
    called = [
        f"{name} of shape {tuple(value.shape)}"
        if torch.is_tensor(value)
        else f"{name} of type {type(value).__name__}"
        for name, value in arguments.values.items()
    ]
    if called:
        error.add_note(f"probsl: it was called with {', '.join(called)}")
    arrays = {n: v for n, v in arguments.values.items() if torch.is_tensor(v)}
    if "used as indices" in str(error):
        _note_whole_floats(error, arrays)
    elif "same device" in str(error):
        error.add_note(
            "probsl: a fit computes on one device; make there what the program or the "
            "guide adds to its arguments, as in constant.to(x.device), or pass it in "
            "data"
        )
    elif isinstance(error, RuntimeError | TypeError) and re.search(
        r"dtype|scalar type|result type", str(error)
    ):
        _note_types(error, arrays, dtype)


def _line_of(error: Exception) -> str:
    """Return the place and the text of the program's own line, or an empty string.

    That is the last line on the way to the error that is not part of a library, after
    the first one of probsl, which called the program.
    """
    frames = traceback.extract_tb(error.__traceback__)
    places = [Path(frame.filename) for frame in frames]
    first = next((i for i, p in enumerate(places) if p.is_relative_to(_PROBSL)), None)
    if first is None:
        return ""
    mine = [
        frame
        for frame, place in zip(frames[first:], places[first:], strict=True)
        if place.parent != _PYTHON
        and not any(place.is_relative_to(p) for p in (_PROBSL, *_PACKAGES))
    ]
    if not mine:
        return ""
    text = f": {mine[-1].line}" if mine[-1].line else ""
    return f"{Path(mine[-1].filename).name}:{mine[-1].lineno}{text}"


def _note_whole_floats(error: Exception, arrays: Mapping[str, Tensor]) -> None:
    """Name the argument that is meant as an index."""
    for name, value in arrays.items():
        if value.is_floating_point() and bool((value == value.round()).all()):
            error.add_note(
                f"probsl: argument '{name}' holds whole numbers of type "
                f"{value.dtype}; give integers to use it as an index"
            )
            return


def _note_types(
    error: Exception, arrays: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """Say in which floating type the fit computes, and how to match it."""
    integers = [n for n, v in arrays.items() if not v.is_floating_point()]
    stay = f"; integers stay what they are ({', '.join(integers)})"
    error.add_note(
        f"probsl: this fit computes in {dtype}{stay if integers else ''}; bring what "
        "the program adds to its arguments to the same type, as in "
        "constant.to(x.dtype), or choose the type with probsl.fit(..., dtype=)"
    )


def refuse_unequal_lengths(
    rehearse: Callable[[Mapping[str, Any]], Any],
    arguments: Arguments,
    error: Exception,
) -> None:
    """Say that arguments are of unequal length, if that is the cause.

    It is if the program runs once the shorter ones are as long as the others.
    Arrays with one entry per group may well be shorter, so lengths alone do not decide.

    Parameters
    ----------
    rehearse
        Runs the program with given arguments.
    arguments
        The arguments of the call.
    error
        The error that it raised.

    Raises
    ------
    ValueError
        If it is the cause; otherwise nothing happens.
    """
    if isinstance(error, IndexError) and "out of bounds" in str(error):
        return
    lengths = arguments.lengths()
    trials = [
        (short, target)
        for target in set(lengths.values())
        for least in set(lengths.values())
        if (short := [n for n, size in lengths.items() if least <= size < target])
        and least > 0
    ]
    for short, target in sorted(trials, key=lambda trial: (len(trial[0]), -trial[1])):
        values = dict(arguments.values)
        for name in short:
            values[name] = values[name][
                torch.arange(target, device="cpu") % lengths[name]
            ]
        try:
            rehearse(values)
        except Exception:  # the lengths were not the cause
            continue
        named = {n: s for n, s in lengths.items() if n in short or s == target}
        raise ValueError(
            f"arguments {_listed(map(repr, named))} have unequal lengths, "
            f"{_listed(map(str, named.values()))}; give them one entry per row each"
        ) from error


def _listed(words: Any) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}"
