"""One step as a function of tensors: first eager, then a graph, then compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from probsl.engine.compile.agreement import OTHER_ORDER, agree, value_at
from probsl.engine.compile.obstacles import CaptureError, reason_of

if TYPE_CHECKING:
    from probsl.engine.compile.capture import Capture
    from probsl.engine.compile.replay import Replay

Function = Callable[..., tuple[Tensor, ...]]
Form = Literal["eager", "graph", "compiled"]


class Step:
    """A function of tensors of fixed shapes, in the fastest form requested.

    Parameters
    ----------
    function
        Maps tensors to a tuple of tensors, without side effects.
    compared
        Selects the results by which a graph is checked; by default all.

    Attributes
    ----------
    form
        The form that a call runs: the function, its graph, or compiled code.
    reason
        Why there is no faster form, in a sentence; empty if there is no obstacle.
    """

    def __init__(
        self,
        function: Function,
        compared: Callable[[tuple[Tensor, ...]], Sequence[Tensor]] = tuple,
    ) -> None:
        self.form: Form = "eager"
        self.reason = ""
        self.constants: list[Tensor] = []
        self.code: Any = None
        self._function = function
        self._compared = compared
        self._capture: Capture | None = None

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Return the function's results."""
        if self.form == "compiled":
            try:
                return tuple(self.code([*arguments, *self.constants]))
            except LinAlgError:
                raise
            except Exception as error:
                self.fall_back(error)
        if self._capture is not None:
            return self._capture(*arguments)
        return self._function(*arguments)

    def trace(self, examples: Sequence[Sequence[Tensor]]) -> bool:
        """Switch to the graph, if it agrees with the function at the examples."""
        if self._capture is None and not self.reason:
            try:
                from probsl.engine.compile.capture import capture

                self._capture = capture(
                    self._function, examples, compared=self._compared
                )
                self.form = "graph"
            except Exception as error:
                self.give_up(f"the steps are not compiled, because {reason_of(error)}")
        return self._capture is not None

    def compile(self, examples: Sequence[Sequence[Tensor]]) -> bool:
        """Switch to compiled code, if there is a compiler and it agrees."""
        if self.form == "compiled":
            return True
        if not self.trace(examples) or self.reason or self._capture is None:
            return False
        try:
            code = self._compiled(self._capture, examples)
        except Exception as error:  # any error of a compiler, or of its absence
            self.give_up(f"the steps are not compiled, because {reason_of(error)}")
            return False
        self.form, self.code = "compiled", code
        return True

    def _compiled(
        self, captured: Capture, examples: Sequence[Sequence[Tensor]]
    ) -> Callable[[list[Tensor]], Any]:
        """Compile a graph, and compare its results with those of the code."""
        from probsl.engine.compile.compiled import compiled

        constants = self._laid_out(examples)
        code: Callable[[list[Tensor]], Any] = compiled(captured, examples[0], constants)
        for values in examples:
            found = value_at(lambda *given: tuple(code([*given, *constants])), values)
            expected = value_at(captured, values)
            if not _alike(found, expected, self._compared):
                raise CaptureError("compiled they give other results")
        return code

    def is_compiled(self, examples: Sequence[Sequence[Tensor]]) -> bool:
        """Return whether an earlier fit has left compiled code of the graph."""
        if self._capture is None or self.reason:
            return False
        try:
            from probsl.engine.compile.compiled import is_compiled

            return is_compiled(self._capture, examples[0], self._laid_out(examples))
        except Exception:  # `compile` tries again and reports the error
            return False

    def _laid_out(self, examples: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Return the constants in the layout of compiled code, copied once."""
        if self._capture is not None and not self.constants:
            from probsl.engine.compile.compiled import laid_out

            device = examples[0][0].device
            self.constants = laid_out(self._capture.constants, device)
        return self.constants

    def fall_back(self, error: Exception) -> None:
        """Return to the function, because compiled code has failed at some step."""
        self.form, self._capture = "eager", None
        self.give_up(
            f"from some step on they are not compiled, because {reason_of(error)}"
        )

    def give_up(self, reason: str) -> None:
        """Warn once why there is no faster form, and stop trying."""
        self.reason = reason
        warnings.warn(reason, UserWarning, stacklevel=2)


def _alike(
    found: tuple[Tensor, ...] | None,
    expected: tuple[Tensor, ...] | None,
    compared: Callable[[tuple[Tensor, ...]], Sequence[Tensor]],
) -> bool:
    """Whether compiled code and a graph agree; None marks a failed factorization.

    The order of summation may differ, and code for small matrices may continue with NaN
    where a library would raise an error.
    """
    if expected is None:
        return found is None or not all(bool(f.isfinite().all()) for f in found)
    if found is None:
        return False
    return agree(compared(found), compared(expected), OTHER_ORDER)


class Walk:
    """A state updated step by step, each step with its own inputs.

    Parameters
    ----------
    step
        Maps the state and the inputs of a step to the next state and a loss.
    state
        The initial state.
    inputs
        Inputs of the steps of a block, each with one entry per step on its first axis.
        A block overwrites the one before.
    feasible
        Makes a valid state of one that was randomly perturbed; None leaves it as it is.
    """

    def __init__(
        self,
        step: Step,
        state: Tensor,
        inputs: Sequence[Tensor],
        feasible: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.step = step
        self._feasible = feasible
        self.inputs = [tensor.clone() for tensor in inputs]
        self.losses = state.new_full((len(inputs[0]),), torch.nan)
        self._done = 0
        self._state = state
        self._replay: Replay | None = None

    @property
    def done(self) -> int:
        """Number of steps of the block taken so far."""
        return self._done if self._replay is None else self._replay.place

    @done.setter
    def done(self, place: int) -> None:
        self._done = place
        if self._replay is not None:
            self._replay.place = place

    @property
    def state(self) -> Tensor:
        """The state after the last step."""
        return self._state if self._replay is None else self._replay.state

    def load(self, inputs: Sequence[Tensor]) -> None:
        """Load the next block."""
        for mine, new in zip(self.inputs, inputs, strict=True):
            mine.copy_(new)
        self.done = 0

    def set(self, state: Tensor) -> None:
        """Continue from another state."""
        self._state = state
        if self._replay is not None:
            self._replay.set(state)

    def run(self, stop: int) -> None:
        """Take the steps of the block up to position `stop`.

        A step at which a matrix cannot be factorized is skipped, like one that is not
        finite. If replayed calls fail in another way, the step is run without replay.
        """
        while self.done < stop:
            try:
                self._run(stop)
            except LinAlgError:
                self._skip()
            except Exception as error:
                if self._replay is None:
                    raise
                self._stop_replaying()
                self.step.fall_back(error)

    def _stop_replaying(self) -> None:
        self._state, self._done = self.state.clone(), self.done
        self._replay = None

    def _run(self, stop: int) -> None:
        if self._replay is not None:
            self._replay.run(stop)
            return
        while self._done < stop:
            given = [tensor[self._done] for tensor in self.inputs]
            state, loss = self.step(self._state, *given)
            self._state, self.losses[self._done] = state.detach(), loss.detach()
            self._done += 1

    def _skip(self) -> None:
        self.losses[self.done] = torch.nan
        if self._replay is not None:
            self._replay.skip()
        else:
            self._done += 1

    def trace(self) -> bool:
        """Switch to the graph, if there is one."""
        return self.step.trace(self._examples())

    def is_compiled(self) -> bool:
        """Return whether compiled code of the graph is available."""
        return self.step.is_compiled(self._examples())

    def compile(self) -> bool:
        """Switch to compiled code, if there is any."""
        if not self.step.compile(self._examples()):
            return False
        if self._state.device.type != "cpu":
            return True  # its launches are already replayed, as a CUDA graph
        try:
            self._replay = self._proven_replay()
        except Exception as error:  # the slower function of inductor is used
            reason = reason_of(error)
            self.step.reason = (
                f"each compiled step is called by torch, because {reason}"
            )
        return True

    def _proven_replay(self) -> Replay:
        """Return a replay of the step that was checked against the step."""
        from probsl.engine.compile.replay import Replay

        places = [
            [tensor[i] for tensor in self.inputs] for i in range(len(self.losses))
        ]
        replay = Replay(
            self.step.code, self._state, places, self.losses, self.step.constants
        )
        replay.prove(self._examples())
        replay.place = self._done
        return replay

    def _examples(self) -> list[list[Tensor]]:
        examples = scattered(self.state, self.inputs)
        if self._feasible is None:
            return examples
        return [[self._feasible(state), *given] for state, *given in examples]


def scattered(point: Tensor, inputs: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return several lists of arguments, to compare a graph with its function.

    Parameters
    ----------
    point
        A point or state, which is used as it is first, and then randomly perturbed.
    inputs
        Inputs of the steps of a block, each with one entry per step on its first axis.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    examples = []
    for place in range(3):
        noise = torch.randn(point.shape, generator=generator, device="cpu")
        moved = point + 0.3 * noise.to(point) * (place > 0)
        given = (_entry(tensor, place) for tensor in inputs)
        examples.append([moved, *given])
    return examples


def _entry(values: Tensor, place: int) -> Tensor:
    """Return a copy of one entry; if there are fewer, of the last one, permuted.

    Integers, which may be indices into a table by column, move along the first axis.
    """
    entry = values[min(place, len(values) - 1)].clone()
    if place < len(values) or not entry.dim():
        return entry
    return entry.roll(place, -1 if entry.is_floating_point() else 0)
