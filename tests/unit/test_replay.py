"""Steps whose calls are made again are the steps."""

import dataclasses
import itertools

import pytest
import torch

from probsl.engine.compile import replay as engine_replay
from probsl.engine.compile.obstacles import ReplayError
from probsl.engine.compile.recorded_calls import _repeated
from probsl.engine.steps.step import Step, Walk

aten = torch.ops.aten

PLACES = 40


def halfway(state, given):
    moved = (state + given * state.cos()) / 2
    return moved, moved.square().sum()


def shared(state, divisor):
    return state + 7 // divisor, state.sum() * 1.0


def factored(state, given):
    """Return a state and a loss by way of operations that have no loop."""
    matrix = (state.unsqueeze(-1) * given).cos()
    factor = torch.linalg.cholesky(matrix @ matrix.mT + 200 * torch.eye(200))
    solved = torch.linalg.solve_triangular(factor, matrix, upper=False)
    sums = solved.cumsum(0).sort(0).values.mean(1)
    return (state + sums) / 2, factor.diagonal().log().sum()


def walk(places=PLACES, *, compiled=True):
    """Return a walk of steps that are one compiled loop."""
    given = torch.randn(places, 4, generator=torch.Generator().manual_seed(0))
    made = Walk(Step(halfway), torch.ones(4), [given])
    if compiled:
        assert made.compile()
        assert made._replay is not None
    return made


def plain_walk(**options):
    """Return a walk whose compiled step is called as inductor made it."""
    made = walk(**options)
    made._stop_replaying()
    return made


def taken(made, stops=(PLACES,)):
    for stop in stops:
        made.run(stop)
    assert made.done == stops[-1]
    return made.state.clone(), made.losses.clone()


def equal(one, other):
    return all(map(torch.equal, one, other))


def test_steps_made_again_are_the_steps():
    torch.testing.assert_close(taken(walk()), taken(walk(compiled=False)))


def test_steps_made_again_are_those_of_plain_compiled_code_bit_for_bit():
    assert equal(taken(walk()), taken(plain_walk()))


@pytest.mark.parametrize("made", [walk, plain_walk])
def test_steps_one_by_one_are_the_steps_of_a_block(made):
    assert equal(taken(made(), range(1, PLACES + 1)), taken(made()))
    assert equal(taken(made(), (3, 4, PLACES)), taken(made()))


def test_a_next_block_goes_on_from_the_last_state():
    made, plain = walk(), plain_walk()
    for one in (made, plain):
        taken(one, (7,))
        one.load([torch.ones(PLACES, 4)])
        assert one.done == 0
        taken(one)
        one.set(torch.zeros(4))
        one.load([torch.ones(PLACES, 4)])
    assert equal(taken(made), taken(plain))


def test_an_error_in_a_loop_is_raised_and_leaves_the_last_whole_step():
    divisors = torch.tensor([2, 3, 5, 0] * 10)
    made = Walk(Step(shared), torch.ones(3), [divisors])
    assert made.compile()
    assert made._replay is not None
    # The step itself is tried before the error is believed.
    with (
        pytest.warns(UserWarning, match="from some step on they are not compiled"),
        pytest.raises(RuntimeError, match="ZeroDivisionError"),
    ):
        made.run(PLACES)
    assert made.done == 3
    assert torch.equal(made.state, torch.full((3,), 7.0))
    assert made.losses[2] == 18


def with_call(made, change):
    """Put another function into the place of a step's call, unbound so far."""
    (call,) = made._replay._calls
    made._replay._calls[0] = dataclasses.replace(call, function=change(call.function))
    for bound in made._replay._bound:
        bound.clear()


def test_a_call_that_fails_where_the_step_does_not_makes_steps_slower():
    made, eager = walk(), walk(compiled=False)
    count = itertools.count(1)

    def breaking(function):
        def broken(*arguments):
            if next(count) == 4:
                raise AssertionError("wrong size at dimension 0")
            return function(*arguments)

        return broken

    with_call(made, breaking)
    with pytest.warns(UserWarning, match="from some step on they are not compiled"):
        made.run(PLACES)
    assert "(AssertionError: wrong size at dimension 0)" in made.step.reason
    torch.testing.assert_close(taken(made), taken(eager))


def test_an_interrupt_leaves_the_last_whole_step():
    expected = taken(walk(), (3,))
    made = walk()
    count = itertools.count(1)

    def interrupting(function):
        def interrupted(*arguments):
            function(*arguments)
            if next(count) == 4:
                raise KeyboardInterrupt

        return interrupted

    with_call(made, interrupting)
    with pytest.raises(KeyboardInterrupt):
        made.run(PLACES)
    assert made.done == 3
    assert equal((made.state, made.losses[:3]), (expected[0], expected[1][:3]))
    assert made.losses[4:].isnan().all()
    # The step that was broken off is made again.
    assert equal(taken(made), taken(walk()))


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


def stale(place):
    """Give a call for ever what it was given first in the place of one input."""

    def lie(call, inputs, results):
        mine = [storage(a) == storage(inputs[place]) for a in call.arguments]
        assert any(mine)
        arguments = [
            a.clone() if m else a for a, m in zip(call.arguments, mine, strict=True)
        ]
        return dataclasses.replace(call, arguments=tuple(arguments))

    return lie


def idle(call, inputs, results):
    return dataclasses.replace(call, function=lambda *_: None)


def inexact(call, inputs, results):
    """Let a call be wrong by one part in a million."""
    places = [i for i, a in enumerate(call.arguments) if a is results[1]]
    assert places

    def function(*arguments):
        call.function(*arguments)
        arguments[places[0]].mul_(1 + 1e-6)

    return dataclasses.replace(call, function=function)


@pytest.mark.parametrize("places", [1, 2, PLACES])
@pytest.mark.parametrize("lie", [stale(0), stale(1), idle, inexact])
def test_calls_that_are_not_the_step_are_not_trusted(lie, places, monkeypatch):
    honest = engine_replay.listen

    def listen(function, arguments):
        inputs = list(arguments)
        (call,), results = honest(function, arguments)
        return [lie(call, inputs, results)], results

    made, plain = walk(places, compiled=False), plain_walk(places=places)
    made.losses.fill_(7.0)
    before = [tensor.clone() for tensor in (*made.inputs, made.state, made.losses)]
    monkeypatch.setattr(engine_replay, "listen", listen)
    assert made.compile()
    assert made._replay is None
    assert "called by torch, because calls made again give other" in made.step.reason
    # Nothing is left of the trial.
    assert equal(before, (*made.inputs, made.state, made.losses))
    assert equal(taken(made, (places,)), taken(plain, (places,)))


def test_operations_without_a_loop_are_called_again_bit_for_bit():
    given = torch.randn(6, 200, 200, generator=torch.Generator().manual_seed(0))
    made, direct = (Walk(Step(factored), torch.ones(200), [given]) for _ in range(2))
    assert made.compile()
    assert direct.compile()
    assert any(call.library for call in made._replay._calls)
    direct._stop_replaying()
    assert equal(taken(made, (2, 6)), taken(direct, (2, 6)))


def test_an_operation_is_called_again_on_what_it_made_first():
    values = torch.rand(3, 4)
    made = values.cumsum(0)
    (call,) = _repeated(aten.cumsum.default, (values, 0), {}, made)
    expected = made.clone()
    made.zero_()
    call.function(*call.arguments, **call.options)
    assert torch.equal(made, expected)
    pair = values.sort(0)
    (call,) = _repeated(aten.sort.default, (values, 0), {}, tuple(pair))
    assert call.options["values"] is pair.values
    assert call.options["indices"] is pair.indices


def test_a_view_is_not_made_again():
    values = torch.rand(3, 4)
    assert _repeated(aten.t.default, (values,), {}, values.t()) == []


def test_what_writes_in_place_is_called_as_it_is():
    values = torch.rand(3)
    (call,) = _repeated(aten.add_.Tensor, (values, values), {}, values)
    assert call.function is aten.add_.Tensor
    (call,) = _repeated(aten._linalg_check_errors.default, (values, "", True), {}, None)
    assert call.function is aten._linalg_check_errors.default


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        (aten.rand_like.default, (torch.rand(3),)),
        (aten.nonzero.default, (torch.rand(3),)),
        (aten.unbind.int, (torch.rand(3),)),
        (aten.equal.default, (torch.rand(3), torch.rand(3))),
    ],
)
def test_what_makes_something_else_each_time_is_refused(operation, arguments):
    with pytest.raises(ReplayError):
        _repeated(operation, arguments, {}, operation(*arguments))
