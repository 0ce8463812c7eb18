"""Compiled steps played again and again on buffers that stay where they are.

What inductor compiles is a few machine-code loops and a Python function that makes
buffers, checks shapes, and calls them. For small problems that function takes longer
than the loops. As all shapes are fixed, it is run once and listened to: the calls it
made are then repeated, with the numbers of each step in place of the first ones.
"""

from __future__ import annotations

import ctypes
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.engine.driver import Driver, DriverError
from probsl.engine.listening import Call, ReplayError, listen

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Replay", "ReplayError"]


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
        If a list of calls cannot stand for what the step does.
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
        calls, results = listen(function, [*first, *constants])
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

        varying = [any(_storage(t) in roles for t in c.tensors()) for c in calls]
        fixed = [partial(c.function, *c.arguments, **c.options) for c in calls]

        def bound(place: int, turn: int) -> list[partial[Any]]:
            mine = owners(place, turn)
            return [
                _placed_call(call, roles, mine) if varies else same
                for call, varies, same in zip(calls, varying, fixed, strict=True)
            ]

        self._bound = cache(bound)
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

    def skip(self) -> None:
        """Leave out the step at the next place: its state is that before it."""
        place, turn = self._progress
        self._states[1 - turn].copy_(self._states[turn])
        self._progress[:] = [place + 1, 1 - turn]

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
            for call in self._bound(place, turn):
                call()
            place, turn = place + 1, 1 - turn
            progress[:] = [place, turn]


_AFTER, _LOSS = -1, -2


def _check_roles(
    first: Sequence[Tensor],
    results: tuple[Tensor, Tensor],
    roles: dict[int, int],
    calls: Sequence[Call],
    constants: Sequence[Tensor],
) -> None:
    """Refuse results that share their memory with something else."""
    distinct = len(roles) == len(first) + 2
    fixed = {_storage(c) for c in constants}
    whole = all(r.untyped_storage().nbytes() == r.nbytes for r in results)
    written = {_storage(tensor) for call in calls for tensor in call.tensors()}
    made = all(_storage(r) in written and _storage(r) not in fixed for r in results)
    if not (distinct and whole and made):
        raise ReplayError("its results share their memory with its arguments")


def _placed_call(
    call: Call, roles: dict[int, int], owners: dict[int, Tensor]
) -> partial[Any]:
    """Return a call with other tensors in the place of the first."""
    arguments = [_placed(a, roles, owners) for a in call.arguments]
    options = {name: _placed(a, roles, owners) for name, a in call.options.items()}
    return partial(call.function, *arguments, **options)


def _placed(argument: Any, roles: dict[int, int], owners: dict[int, Tensor]) -> Any:
    """Return the same view of another tensor, where an argument is to be replaced."""
    if isinstance(argument, list | tuple):
        return [_placed(one, roles, owners) for one in argument]
    if not torch.is_tensor(argument):
        return argument
    role = roles.get(_storage(argument))
    if role is None:
        return argument
    owner = owners[role]
    offset = owner.storage_offset() + argument.storage_offset()
    return owner.as_strided(argument.size(), argument.stride(), offset)


def _driver(
    calls: Sequence[Call],
    roles: dict[int, int],
    blocks: Sequence[Sequence[dict[int, Tensor]]],
) -> Driver | None:
    """Return machine code that makes all the calls, if they are of loops alone."""
    arguments = [a for call in calls for a in call.arguments]
    if any(c.options for c in calls) or not all(map(torch.is_tensor, arguments)):
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
            [call.function for call in calls],
            [len(call.arguments) for call in calls],
            torch.stack([addresses(a) for a in arguments], -1),
        )
    except DriverError:
        return None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
