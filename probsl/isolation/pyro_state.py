"""Replaces Pyro's process-wide state for one thread only.

Pyro stores its handlers, the axes of its plates and of enumeration, and its parameters
in module-level objects that all threads share. Between `use(state)` and `use(None)`
these objects show `state` to its own thread, and the shared content to every other
thread. The shared content is not moved, so it does not have to be restored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import get_ident
from typing import TYPE_CHECKING, Any

import pyro
from pyro.poutine import collapse_messenger, messenger, runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

# The list that all threads share, and the modules that refer to it by name.
_SHARED: list[Any] = runtime._PYRO_STACK
_KNOWN_BY: tuple[Any, ...] = (runtime, messenger, collapse_messenger)


@dataclass
class PyroState:
    """The handlers, plate axes, enumeration axes and parameters of one thread.

    Attributes
    ----------
    thread
        The thread that sees them; the one that created the state.
    handlers
        Its stack of handlers.
    plates, enumeration, parameters
        The attributes of Pyro's allocators and of its parameter store.
    """

    thread: int = field(default_factory=get_ident)
    handlers: list[Any] = field(default_factory=list)
    plates: dict[str, Any] = field(default_factory=lambda: {"_stack": []})
    enumeration: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(
        default_factory=lambda: {
            "_params": {},
            "_param_to_name": {},
            "_constraints": {},
        }
    )


def use(state: PyroState | None) -> None:
    """Show its own Pyro state to a thread; None shows all threads the shared one."""
    _shown[0] = state
    handlers = _SHARED if state is None else _BY_THREAD
    for module in _KNOWN_BY:
        module._PYRO_STACK = handlers
    for shared, (plain, routed) in _CLASSES:
        shared.__class__ = plain if state is None else routed


def in_use() -> PyroState | None:
    """Return the state in use, None if there is none."""
    return _shown[0]


_shown: list[PyroState | None] = [None]


def _own() -> PyroState | None:
    """Return the state of the calling thread, None if that is the shared one."""
    state = _shown[0]
    return state if state is not None and state.thread == get_ident() else None


class _HandlersByThread:
    """Replaces Pyro's list of handlers by one list per thread."""

    @staticmethod
    def _list() -> list[Any]:
        own = _own()
        return _SHARED if own is None else own.handlers

    def append(self, handler: Any) -> None:
        self._list().append(handler)

    def pop(self, *index: Any) -> Any:
        return self._list().pop(*index)

    def index(self, handler: Any) -> int:
        return self._list().index(handler)

    def __len__(self) -> int:
        return len(self._list())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._list())

    def __reversed__(self) -> Iterator[Any]:
        return self._list().__reversed__()

    def __contains__(self, handler: Any) -> bool:
        return handler in self._list()

    def __getitem__(self, index: Any) -> Any:
        return self._list()[index]

    def __setitem__(self, index: Any, handler: Any) -> None:
        self._list()[index] = handler


_BY_THREAD = _HandlersByThread()


def _routed(shared: Any, held: str, *names: str) -> tuple[type, type]:
    """Return an object's class, and one with separate attributes per thread."""

    def fields(each: Any) -> dict[str, Any]:
        own = _own()
        found: dict[str, Any] = vars(each) if own is None else getattr(own, held)
        return found

    def attribute(name: str) -> property:
        def get(each: Any) -> Any:
            try:
                return fields(each)[name]
            except KeyError:
                raise AttributeError(name) from None

        def put(each: Any, value: Any) -> None:
            fields(each)[name] = value

        return property(get, put)

    plain = type(shared)
    return plain, type(plain.__name__, (plain,), {n: attribute(n) for n in names})


_CLASSES: tuple[tuple[Any, tuple[type, type]], ...] = tuple(
    (shared, _routed(shared, held, *names))
    for shared, held, names in (
        (runtime._DIM_ALLOCATOR, "plates", ("_stack",)),
        (
            runtime._ENUM_ALLOCATOR,
            "enumeration",
            ("next_available_dim", "next_available_id", "dim_to_id"),
        ),
        (
            pyro.get_param_store(),
            "parameters",
            ("_params", "_param_to_name", "_constraints"),
        ),
    )
)
