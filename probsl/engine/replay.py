"""Compiled steps played again and again on buffers that stay where they are.

What inductor compiles is a few machine-code loops and a Python function that makes
buffers, checks shapes, and calls them. For small problems that function takes longer
than the loops. As all shapes are fixed, it is run once and listened to: the calls it
made are then repeated, with the numbers of each step in place of the first ones.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Calls that make new tensors at each run are not on buffers that stay.
_UNREPEATABLE = re.compile(r"\b(aten|torch\.ops|inductor_ops|_quantized)\.")
_COMMENT = re.compile(r"#.*")
_LOOPS = "cpp_fused"


class ReplayError(RuntimeError):
    """A compiled function whose calls cannot be repeated."""


class Replay:
    """The calls of one compiled step, for each place of a block of steps.

    The step maps a state, what the place gives, and constants to the next state and a
    loss. States take turns between two buffers.

    Parameters
    ----------
    function
        What inductor compiled: takes one list ``[state, *given, *constants]`` and
        returns ``(state, loss)``.
    state
        The state to begin with.
    places
        For each place of the block what the step is given there; views of the same
        buffers in every block.
    losses
        Where the losses of the block go, shape ``[places]``.
    constants
        The last arguments.

    Raises
    ------
    ReplayError
        If not all that the step does is calls of compiled loops.

    Attributes
    ----------
    place
        The next place of the block.
    """

    def __init__(
        self,
        function: Any,
        state: Tensor,
        places: Sequence[Sequence[Tensor]],
        losses: Tensor,
        constants: Sequence[Tensor],
    ) -> None:
        self._states = (state.clone(), torch.empty_like(state))
        self._turn = 0
        self.place = 0
        first = [state.clone(), *(given.clone() for given in places[0])]
        calls, results = _listen(function, [*first, *constants])
        after, loss = results
        roles = {_storage(tensor): i for i, tensor in enumerate(first)}
        roles[_storage(after)] = _AFTER
        roles[_storage(loss)] = _LOSS
        _check_roles(first, results, roles, calls, constants)

        def bound(place: int, turn: int) -> list[tuple[Callable[..., Any], list[Any]]]:
            before, then = self._states[turn], self._states[1 - turn]
            owners = {i + 1: given for i, given in enumerate(places[place])}
            owners |= {0: before, _AFTER: then, _LOSS: losses[place]}
            return [
                (call, [_placed(a, roles, owners) for a in arguments])
                for call, arguments in calls
            ]

        self._calls = [
            (bound(place, 0), bound(place, 1)) for place in range(len(places))
        ]

    @property
    def state(self) -> Tensor:
        """The state after the last whole step; a view, which later steps change."""
        return self._states[self._turn]

    def set(self, state: Tensor) -> None:
        """Go on from another state."""
        self._states[self._turn].copy_(state)

    def run(self, stop: int) -> None:
        """Take the steps from the next place up to `stop`."""
        turn = self._turn
        for turns in self._calls[self.place : stop]:
            for call, arguments in turns[turn]:
                call(*arguments)
            # An interrupt leaves the last whole step.
            self._turn = turn = 1 - turn
            self.place += 1


_AFTER, _LOSS = -1, -2


def _listen(
    function: Any, arguments: list[Tensor]
) -> tuple[list[tuple[Callable[..., Any], tuple[Any, ...]]], tuple[Tensor, Tensor]]:
    """Run a compiled function once, and return the calls it made and its results."""
    call = getattr(function, "current_callable", None)
    module: dict[str, Any] = getattr(getattr(call, "__func__", call), "__globals__", {})
    loops = [name for name in module if name.startswith(_LOOPS)]
    try:
        source = _COMMENT.sub("", inspect.getsource(call)) if call else ""
    except (OSError, TypeError) as error:
        raise ReplayError("the compiled function shows no source") from error
    if not loops or _UNREPEATABLE.search(source):
        raise ReplayError("it calls operations that have no compiled loop")
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def heard(loop: Callable[..., Any]) -> Callable[..., Any]:
        def listening(*given: Any) -> Any:
            calls.append((loop, given))
            return loop(*given)

        return listening

    kept = {name: module[name] for name in [*loops, "extern_kernels"]}
    module.update({name: heard(module[name]) for name in loops})
    module["extern_kernels"] = _Kernels(kept["extern_kernels"], calls)
    try:
        results = function(arguments)
    finally:
        module.update(kept)
    return calls, tuple(results)


class _Kernels:
    """Stands for inductor's library kernels, which write to a given ``out``."""

    def __init__(self, kernels: Any, calls: list[Any]) -> None:
        self._kernels = kernels
        self._calls = calls

    def __getattr__(self, name: str) -> Callable[..., Any]:
        kernel = getattr(self._kernels, name)

        def listening(*given: Any, **options: Any) -> Any:
            if "out" not in options:
                raise ReplayError(f"{name} makes a new tensor at each run")
            names = tuple(options)

            def repeated(*values: Any) -> None:
                split = len(values) - len(names)
                kernel(*values[:split], **dict(zip(names, values[split:], strict=True)))

            self._calls.append((repeated, (*given, *options.values())))
            return kernel(*given, **options)

        return listening


def _check_roles(
    first: Sequence[Tensor],
    results: tuple[Tensor, Tensor],
    roles: dict[int, int],
    calls: Sequence[tuple[Any, tuple[Any, ...]]],
    constants: Sequence[Tensor],
) -> None:
    """Refuse results that share their memory with something else."""
    distinct = len(roles) == len(first) + 2
    fixed = {_storage(c) for c in constants}
    whole = all(r.untyped_storage().nbytes() == r.nbytes for r in results)
    written = {_storage(a) for _, given in calls for a in given if torch.is_tensor(a)}
    made = all(_storage(r) in written and _storage(r) not in fixed for r in results)
    if not (distinct and whole and made):
        raise ReplayError("its results share their memory with its arguments")


def _placed(argument: Any, roles: dict[int, int], owners: dict[int, Tensor]) -> Any:
    """Return the same view of another tensor, where an argument is to be replaced."""
    if not torch.is_tensor(argument):
        return argument
    role = roles.get(_storage(argument))
    if role is None:
        return argument
    owner = owners[role]
    offset = owner.storage_offset() + argument.storage_offset()
    return owner.as_strided(argument.size(), argument.stride(), offset)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
