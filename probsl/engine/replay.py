"""Compiled steps played again and again on buffers that stay where they are.

What inductor compiles is a few machine-code loops and a Python function that makes
buffers, checks shapes, and calls them. For small problems that function takes longer
than the loops. As all shapes are fixed, it is run once and listened to: the calls it
made are then repeated, with the numbers of each step in place of the first ones.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.engine.driver import Driver, DriverError

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
        # The next place of the block, and which of the states is the last one.
        self._progress = (ctypes.c_int64 * 2)(0, 0)
        first = [state.clone(), *(given.clone() for given in places[0])]
        calls, results = _listen(function, [*first, *constants])
        after, loss = results
        roles = {_storage(tensor): i for i, tensor in enumerate(first)}
        roles[_storage(after)] = _AFTER
        roles[_storage(loss)] = _LOSS
        _check_roles(first, results, roles, calls, constants)

        def owners(place: int, turn: int) -> dict[int, Tensor]:
            """Return what takes the place of the first tensors."""
            given = {i + 1: tensor for i, tensor in enumerate(places[place])}
            states = {0: self._states[turn], _AFTER: self._states[1 - turn]}
            return {**given, **states, _LOSS: losses[place]}

        def bound(place: int, turn: int) -> list[tuple[Callable[..., Any], list[Any]]]:
            mine = owners(place, turn)
            return [
                (call, [_placed(a, roles, mine) for a in arguments])
                for call, arguments in calls
            ]

        self._bound = functools.cache(bound)
        blocks = [[owners(i, turn) for turn in (0, 1)] for i in range(len(places))]
        self._driver = _driver(calls, roles, blocks)

    @property
    def state(self) -> Tensor:
        """The state after the last whole step; a view, which later steps change."""
        return self._states[self._progress[1]]

    @property
    def place(self) -> int:
        """The next place of the block."""
        return self._progress[0]

    @place.setter
    def place(self, place: int) -> None:
        self._progress[0] = place

    def set(self, state: Tensor) -> None:
        """Go on from another state."""
        self.state.copy_(state)

    def run(self, stop: int) -> None:
        """Take the steps from the next place up to `stop`.

        An interrupt leaves the last whole step.
        """
        driver, progress = self._driver, self._progress
        while driver is not None and progress[0] < stop and driver(progress, stop):
            pass
        # A loop that threw an exception throws it again from Python.
        place, turn = progress
        while place < stop:
            for call, arguments in self._bound(place, turn):
                call(*arguments)
            place, turn = place + 1, 1 - turn
            progress[:] = [place, turn]


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


def _driver(
    calls: Sequence[tuple[Any, tuple[Any, ...]]],
    roles: dict[int, int],
    blocks: Sequence[Sequence[dict[int, Tensor]]],
) -> Driver | None:
    """Return machine code that makes all the calls, if they are of loops alone."""
    arguments = [a for _, given in calls for a in given]
    if not all(map(torch.is_tensor, arguments)):
        return None
    starts = {
        role: torch.tensor([[o[role].data_ptr() for o in turns] for turns in blocks])
        for role in blocks[0][0]
    }

    def addresses(argument: Tensor) -> Tensor:
        role = roles.get(_storage(argument))
        if role is None:
            return torch.full_like(starts[0], argument.data_ptr())
        offset = int(argument.storage_offset()) * argument.element_size()
        return starts[role] + offset

    try:
        return Driver(
            [loop for loop, _ in calls],
            [len(given) for _, given in calls],
            torch.stack([addresses(a) for a in arguments], -1),
        )
    except DriverError:
        return None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
