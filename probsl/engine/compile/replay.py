"""Repeats the kernel calls of a compiled step on fixed buffers.

Inductor generates a few machine-code loops and a Python function that allocates
buffers, checks shapes, and calls them. For small problems that function takes longer
than the loops. Because all shapes are fixed, it is run once and its calls are recorded;
they are then repeated with the inputs of each step in place of the first ones.

Torch does not guarantee any of this. So a replay is used only after it has reproduced
the steps of the function from several states and at several positions.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from probsl.engine.compile.agreement import agree, equal
from probsl.engine.compile.obstacles import ReplayError
from probsl.engine.compile.recorded_calls import Call, listen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    # A step at some position.
    Bound = Callable[[], Any]

__all__ = ["Replay"]


class Replay:
    """The calls of one compiled step, for each position in a block of steps.

    The step maps a state, the inputs at the position, and constants to the next state
    and a loss. States alternate between two buffers.

    Parameters
    ----------
    function
        The function from inductor: takes one list ``[state, *given, *constants]`` and
        returns ``(state, loss)``.
    state
        The initial state.
    places
        The inputs of the step at each position of the block; views of the same buffers
        in every block.
    losses
        Output buffer for the losses of the block, shape ``[places]``.
    constants
        The last arguments.

    Raises
    ------
    ReplayError
        If a list of calls cannot represent the step.
    """

    def __init__(
        self,
        function: Callable[[list[Tensor]], Any],
        state: Tensor,
        places: Sequence[Sequence[Tensor]],
        losses: Tensor,
        constants: Sequence[Tensor],
    ) -> None:
        self._function = function
        self._places = places
        self._losses = losses
        self._constants = constants
        self._states = (state.clone(), torch.empty_like(state))
        # One number that changes with each complete step: its last bit is the index of
        # the current state, and the offset gives its position.
        self._taken = self._offset = 0
        first = [state.clone(), *(given.clone() for given in places[0])]
        self._calls, results = listen(function, [*first, *constants])
        after, loss = results
        roles = {_storage(tensor): i for i, tensor in enumerate(first)}
        roles[_storage(after)] = _AFTER
        roles[_storage(loss)] = _LOSS
        _check_roles(first, results, roles, self._calls, constants)
        self._roles = roles
        # Calls whose arguments are the same at each position, bound once.
        self._fixed = [
            None
            if any(_storage(tensor) in roles for tensor in call.tensors())
            else partial(call.function, *call.arguments, **call.options)
            for call in self._calls
        ]
        # Last bit of the offset -> position -> calls, bound when first needed.
        self._bound: tuple[dict[int, Bound], ...] = tuple({} for _ in self._states)

    @property
    def state(self) -> Tensor:
        """The state after the last complete step; a view, which later steps change."""
        return self._states[self._taken & 1]

    @property
    def place(self) -> int:
        """The next position of the block."""
        return self._taken - self._offset

    @place.setter
    def place(self, place: int) -> None:
        self._offset = self._taken - place

    def set(self, state: Tensor) -> None:
        """Continue from another state."""
        self.state.copy_(state)

    def skip(self) -> None:
        """Skip the step at the next position: the state stays the same."""
        self._states[1 - (self._taken & 1)].copy_(self.state)
        self._taken += 1

    def run(self, stop: int) -> None:
        """Take the steps from the next position up to `stop`.

        After an interrupt, the state is that of the last complete step.
        """
        bound = self._bound[self._offset & 1]
        for place in range(self.place, stop):
            if place not in bound:
                bound[place] = self._bind(place)
        steps = [bound[place] for place in range(self.place, stop)]
        for taken, step in enumerate(steps, self._taken + 1):
            step()
            self._taken = taken

    def _bind(self, place: int) -> Bound:
        """Bind the calls to the inputs and states of a position."""
        turn = (place + self._offset) & 1
        owners = dict(enumerate(self._places[place], 1))
        owners |= {0: self._states[turn], _AFTER: self._states[1 - turn]}
        owners[_LOSS] = self._losses[place]
        calls = [
            fixed or _placed_call(call, self._roles, owners)
            for call, fixed in zip(self._calls, self._fixed, strict=True)
        ]
        return calls[0] if len(calls) == 1 else partial(_one_by_one, calls)

    def prove(self, examples: Sequence[Sequence[Tensor]]) -> None:
        """Compare steps at several positions with those of the function itself.

        Afterwards the state, the position and the inputs are unchanged.

        Parameters
        ----------
        examples
            Several lists of a state and the inputs at a position.

        Raises
        ------
        ReplayError
            If they differ: by any bit if loops run on one thread; else by more than
            rounding, because threads add up in any order, and libraries may choose
            another algorithm for other memory addresses.
        """
        state, taken, offset = self.state.clone(), self._taken, self._offset
        last = len(self._places) - 1
        trials = [*examples, *examples]
        for i, (moved, *given) in enumerate(trials):
            place = i * last // max(len(trials) - 1, 1)
            mine = [*self._places[place], self._losses[place]]
            kept = [tensor.clone() for tensor in mine]
            try:
                for tensor, other in zip(mine, given, strict=False):
                    tensor.copy_(other)
                for _ in self._states:  # from each in turn
                    self.place = place
                    self._prove_one(moved, given)
            finally:
                for tensor, other in zip(mine, kept, strict=True):
                    tensor.copy_(other)
        self._taken, self._offset = taken, offset
        self.set(state)

    def _prove_one(self, state: Tensor, given: Sequence[Tensor]) -> None:
        """Compare the step at the next position, from some state."""
        copies = [tensor.clone() for tensor in (state, *given)]
        try:
            expected = self._function([*copies, *self._constants])
        except LinAlgError:  # a failed factorization: no step to compare
            self.skip()
            return
        self.set(state)
        place = self.place
        self.run(place + 1)
        found = (self.state, self._losses[place])
        exact = torch.get_num_threads() == 1 and not any(c.library for c in self._calls)
        if not (equal if exact else agree)(found, expected):
            raise ReplayError("calls made again give other results")


_AFTER, _LOSS = -1, -2


def _check_roles(
    first: Sequence[Tensor],
    results: tuple[Tensor, Tensor],
    roles: dict[int, int],
    calls: Sequence[Call],
    constants: Sequence[Tensor],
) -> None:
    """Raise an error if results share memory with other tensors."""
    distinct = len(roles) == len(first) + 2
    fixed = {_storage(c) for c in constants}
    whole = all(r.untyped_storage().nbytes() == r.nbytes for r in results)
    written = {_storage(tensor) for call in calls for tensor in call.tensors()}
    made = all(_storage(r) in written and _storage(r) not in fixed for r in results)
    if not (distinct and whole and made):
        raise ReplayError("its results share their memory with its arguments")


def _one_by_one(calls: Sequence[Bound]) -> None:
    for call in calls:
        call()


def _placed_call(
    call: Call, roles: dict[int, int], owners: dict[int, Tensor]
) -> partial[Any]:
    """Return a call with other tensors in place of the first."""
    arguments = [_placed(a, roles, owners) for a in call.arguments]
    options = {name: _placed(a, roles, owners) for name, a in call.options.items()}
    return partial(call.function, *arguments, **options)


def _placed(argument: Any, roles: dict[int, int], owners: dict[int, Tensor]) -> Any:
    """Return the same view of another tensor, if an argument is to be replaced."""
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


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
