"""Finds the modules and parameters that a callable holds, closes over or reads."""

from __future__ import annotations

import functools
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

# The name of the callable itself among the objects it holds.
SELF = "callable_"
# Longer lists are data.
_LONGEST = 10_000


def reachable(function: Any) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """Yield the name and object of each distinct module or bare parameter in use.

    The search covers arguments of partials, defaults, closures, globals of the
    function's own file, attributes of objects, lists and dicts.
    It does not look inside modules.

    Parameters
    ----------
    function
        A program or a guide.
    """
    seen: set[int] = set()
    names: set[str] = set()
    pending: list[tuple[str, Any, bool]] = [(SELF, function, True)]
    while pending:
        name, value, follow = pending.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module | nn.Parameter):
            unique = name.replace(".", "_")
            while unique in names:
                unique += "_"
            names.add(unique)
            yield unique, value
        elif isinstance(value, list | tuple | dict):
            pending.extend(_items(name, value))
        elif follow:
            pending.extend(_held_by(value))


def _items(
    name: str, value: list[Any] | tuple[Any, ...] | dict[Any, Any]
) -> Iterator[tuple[str, Any, bool]]:
    if len(value) > _LONGEST:
        return
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
        yield f"{name}_{key}", item, callable(item)


def _held_by(value: Any) -> Iterator[tuple[str, Any, bool]]:
    """Yield (name, value, whether to look inside) for objects that a callable holds."""
    if isinstance(value, functools.partial):
        yield "function", value.func, True
        for index, argument in enumerate(value.args):
            yield f"argument{index}", argument, callable(argument)
        for name, argument in value.keywords.items():
            yield name, argument, callable(argument)
    elif isinstance(value, MethodType):
        yield SELF, value.__self__, True
        yield "function", value.__func__, True
    elif isinstance(value, FunctionType):
        yield from _variables(value)
        wrapped = getattr(value, "__wrapped__", None)
        if wrapped is not None:
            yield "wrapped", wrapped, True
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        for name, held in vars(value).items():
            inside = isinstance(held, FunctionType | MethodType | functools.partial)
            own = getattr(held, "__module__", None) == type(value).__module__
            yield name, held, inside or own


def _variables(function: FunctionType) -> Iterator[tuple[str, Any, bool]]:
    """Yield the outer variables that a function and its inner functions read."""
    code = function.__code__
    defaults = function.__defaults__ or ()
    last = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    yield from ((n, v, callable(v)) for n, v in zip(last, defaults, strict=True))
    yield from ((n, v, callable(v)) for n, v in (function.__kwdefaults__ or {}).items())
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents, True
        except ValueError:  # a variable that is not assigned yet
            continue
    for name in dict.fromkeys(_global_names(code)):
        if name in function.__globals__:
            held = function.__globals__[name]
            # Library functions do not hold parameters of the program.
            yield name, held, getattr(held, "__module__", None) == function.__module__


def _global_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)
