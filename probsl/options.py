"""Validation of user options."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any


def whole_number(option: str, value: Any, *, least: int = 1) -> int:
    """Return a whole number that is at least `least`.

    Raises
    ------
    TypeError
        If it is not a whole number.
    ValueError
        If it is smaller.

    Examples
    --------
    >>> from probsl.options import whole_number
    >>> whole_number("max_steps", 100)
    100
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{option} must be a whole number, got {value!r}") from None
    if number < least:
        raise ValueError(f"{option} must be at least {least}, got {number}")
    return number


def finite_number(option: str, value: Any, *, zero: bool = False) -> float:
    """Return a finite number that is positive, or also zero if `zero`.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is negative, NaN, infinite, or zero without `zero`.
    """
    try:
        number = float(value) if not isinstance(value, str) else None
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None:
        raise TypeError(f"{option} must be a number, got {value!r}")
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        allowed = "not negative" if zero else "positive"
        raise ValueError(f"{option} must be finite and {allowed}, got {number}")
    return number


def several_names(option: str, value: Any) -> tuple[str, ...]:
    """Return names as a tuple; a string is refused, as it would be split into letters.

    Raises
    ------
    TypeError
        If it is a string, or contains anything but strings.
    """
    if isinstance(value, str):
        raise TypeError(f"{option} must be several names, such as ({value!r},)")
    names = tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"{option} must be names, such as ('a', 'b'), got {value!r}")
    return names


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that suggests the closest known name.

    Examples
    --------
    >>> from probsl.options import did_you_mean
    >>> did_you_mean("Weight", ["weights", "y"])
    "; did you mean 'weights'?"
    >>> did_you_mean("colour", ["weights", "y"])
    ''
    """
    folded = {each.casefold(): each for each in known}
    nearest = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f"; did you mean '{folded[nearest[0]]}'?" if nearest else ""


def shown(value: Any) -> str:
    """Return the repr of a value if it is short, otherwise the name of its type."""
    text = repr(value)
    return text if len(text) < 60 else f"a value of type {type(value).__name__}"


def check_method(method: Any) -> None:
    """Raise if this is not a method; the `run` of a Pyro SVI does not qualify."""
    runs = callable(getattr(method, "run", None))
    if isinstance(method, type):
        made = f"make one of it: {method.__name__}()" if runs else "give one of those"
        raise TypeError(
            "method must be a value such as probsl.MLE(), probsl.MAP() or "
            f"probsl.SVI(guide), got the class {method.__name__}; {made}"
        )
    if not runs or type(method).__module__.startswith("pyro."):
        raise TypeError(
            "method must be a value such as probsl.MLE(), probsl.MAP() or "
            f"probsl.SVI(guide), got {method!r}"
        )


def first_compiled(compile: Any) -> int:
    """Return the first step to compile; 0 means never.

    Raises
    ------
    ValueError
        If it is not a step, True or False.
    """
    try:
        return whole_number("compile", compile, least=0)
    except (TypeError, ValueError):
        raise ValueError(
            "compile must be 'auto', True, False or the step to compile from, got "
            f"{compile!r}"
        ) from None


def check_callbacks(callbacks: Any) -> None:
    """Refuse callbacks that are not functions in a list.

    Raises
    ------
    TypeError
        If they are anything else.
    """
    listed = not callable(callbacks) and isinstance(callbacks, Iterable)
    if not listed or not all(map(callable, callbacks)):
        raise TypeError(
            "callbacks must be functions in a list or tuple, such as "
            f"callbacks=[report], got {callbacks!r}"
        )
