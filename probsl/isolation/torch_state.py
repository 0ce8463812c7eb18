"""Torch's state around a call, by private names of torch.

Each is looked up separately: if a version of torch has renamed one of them, only that
part of the state stays unchanged around a fit, and everything else works.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch


def _named(module: str, name: str, substitute: Any) -> Any:
    """Return torch's object of a name, or a harmless substitute."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return substitute


def _nothing(*_: Any) -> None:
    """Do nothing."""


def _none() -> list[Any]:
    return []


_get_function_modes = _named(
    "torch.overrides", "_get_current_function_mode_stack", _none
)
_pop_function_mode = _named("torch.overrides", "_pop_mode", _nothing)
_push_function_mode = _named("torch.overrides", "_push_mode", _nothing)
_DISPATCH = "torch.utils._python_dispatch"
_get_dispatch_modes = _named(_DISPATCH, "_get_current_dispatch_mode_stack", _none)
_pop_dispatch_mode = _named(_DISPATCH, "_pop_mode", _nothing)
_push_dispatch_mode = _named(_DISPATCH, "_push_mode", _nothing)
_announce_dispatch_modes = _named(
    _DISPATCH, "set_is_in_mode_without_ignore_compile_internals", _nothing
)
_functorch: Any = _named("torch._C", "_functorch", None)
_depth = getattr(_functorch, "get_dynamic_layer_stack_depth", lambda: 0)
_undo_to_depth = getattr(
    _functorch, "pop_dynamic_layer_stack_and_undo_to_depth", _nothing
)
_device_mode = _named("torch.utils._device", "DeviceContext", ())

# Torch's own flags, by module and name: whether a dispatch mode is active, and the
# device on which tensors are created.
_ANY_MODE = "_is_in_any_mode_without_ignore_compile_internals"
MODE_FLAGS = tuple(
    (importlib.import_module(_DISPATCH), name)
    for name in (
        "_is_in_torch_dispatch_mode",
        "_is_in_non_infra_torch_dispatch_mode",
        _ANY_MODE,
    )
    if _named(_DISPATCH, name, None) is not None
)
NOTES = (
    *MODE_FLAGS,
    *(
        (importlib.import_module(module), name)
        for module, name in (
            ("torch.utils._device", "CURRENT_DEVICE"),
            ("torch._C", "_set_default_dtype"),
        )
        if _named(module, name, _nothing) is not _nothing
    ),
)


def function_modes() -> list[Any]:
    """Return the torch function modes, the innermost last."""
    return list(_get_function_modes())


def set_function_modes(modes: list[Any]) -> None:
    """Set the torch function modes."""
    now = function_modes()
    if now == modes:
        return
    for _ in now:
        _pop_function_mode()
    for mode in modes:
        _push_function_mode(mode)


def sets_device(mode: Any) -> bool:
    """Return whether a mode sets a default device."""
    return isinstance(mode, _device_mode)


def dispatch_modes() -> list[Any]:
    """Return the torch dispatch modes, the innermost last."""
    return list(_get_dispatch_modes())


def set_dispatch_modes(modes: list[Any]) -> None:
    """Set the torch dispatch modes; `MODE_FLAGS` are set separately."""
    now = dispatch_modes()
    if now != modes:
        for _ in now:
            _pop_dispatch_mode()
        for mode in modes:
            _push_dispatch_mode(mode)
    _announce_dispatch_modes(bool(_named(_DISPATCH, _ANY_MODE, False)))


def vectorized_depth() -> int:
    """Return the number of nested `torch.func` transformations of the thread."""
    return int(_depth())


def leave_vectorized(depth: int) -> None:
    """Exit transformations until there are no more than `depth`."""
    if vectorized_depth() > depth:
        _undo_to_depth(depth)


def default_device() -> Any:
    """Return the context set by `torch.set_default_device` in this thread."""
    held = getattr(torch, "_GLOBAL_DEVICE_CONTEXT", None)
    return getattr(held, "device_context", None)


def set_default_device(context: Any) -> None:
    """Restore a result of `default_device`; None removes the default device."""
    if default_device() is not context:
        torch._GLOBAL_DEVICE_CONTEXT.device_context = context
