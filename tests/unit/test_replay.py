"""Steps whose calls are made again are the steps, whoever makes the calls."""

import pytest
import torch

from probsl.engine import driver
from probsl.engine.listening import ReplayError, _repeated
from probsl.engine.step import Step, Walk

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


def python_walk(**options):
    made = walk(**options)
    made._replay._driver = None
    return made


def taken(made, stops=(PLACES,)):
    for stop in stops:
        made.run(stop)
    assert made.done == stops[-1]
    return made.state.clone(), made.losses.clone()


def equal(one, other):
    return all(map(torch.equal, one, other))


def test_machine_code_drives_a_step_of_one_loop():
    assert walk()._replay._driver is not None


def test_steps_made_again_are_the_steps():
    torch.testing.assert_close(taken(walk()), taken(walk(compiled=False)))


def test_machine_code_and_python_make_the_same_steps():
    assert equal(taken(walk()), taken(python_walk()))


@pytest.mark.parametrize("made", [walk, python_walk])
def test_steps_one_by_one_are_the_steps_of_a_block(made):
    assert equal(taken(made(), range(1, PLACES + 1)), taken(made()))
    assert equal(taken(made(), (3, 4, PLACES)), taken(made()))


def test_slices_are_the_steps_of_a_block(monkeypatch):
    expected = taken(walk())
    monkeypatch.setattr(driver, "_SLICE", 0.0)
    assert equal(taken(walk()), expected)


def test_a_next_block_goes_on_from_the_last_state():
    made, python = walk(), python_walk()
    for one in (made, python):
        taken(one, (7,))
        one.load([torch.ones(PLACES, 4)])
        assert one.done == 0
        taken(one)
        one.set(torch.zeros(4))
        one.load([torch.ones(PLACES, 4)])
    assert equal(taken(made), taken(python))


def test_without_a_compiler_python_makes_the_calls(monkeypatch):
    def no_compiler(*_, **__):
        raise OSError("no C++ compiler was found")

    expected = taken(walk())
    driver._drive.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr("torch._inductor.codecache.CppCodeCache.load", no_compiler)
        made = walk()
    assert made._replay._driver is None
    assert equal(taken(made), expected)


def test_more_arguments_than_machine_code_knows_are_left_to_python(monkeypatch):
    monkeypatch.setattr(driver, "_MOST_ARGUMENTS", 1)
    assert walk()._replay._driver is None


def test_an_error_in_a_loop_is_raised_and_leaves_the_last_whole_step():
    divisors = torch.tensor([2, 3, 5, 0] * 10)
    made = Walk(Step(shared), torch.ones(3), [divisors])
    assert made.compile()
    assert made._replay._driver is not None
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        made.run(PLACES)
    assert made.done == 3
    assert torch.equal(made.state, torch.full((3,), 7.0))
    assert made.losses[2] == 18


def test_an_interrupt_leaves_the_last_whole_step(monkeypatch):
    expected = taken(walk(), (3,))
    monkeypatch.setattr(driver, "_SLICE", 0.0)
    made = walk()
    drive = made._replay._driver

    def interrupted(progress, stop):
        going = drive(progress, stop)
        if progress[0] == 3:
            raise KeyboardInterrupt
        return going

    made._replay._driver = interrupted
    with pytest.raises(KeyboardInterrupt):
        made.run(PLACES)
    assert made.done == 3
    assert equal((made.state, made.losses[:3]), (expected[0], expected[1][:3]))
    assert made.losses[3:].isnan().all()


def test_operations_without_a_loop_are_called_again_bit_for_bit():
    given = torch.randn(6, 200, 200, generator=torch.Generator().manual_seed(0))
    made, direct = (Walk(Step(factored), torch.ones(200), [given]) for _ in range(2))
    assert made.compile()
    assert direct.compile()
    assert made._replay is not None
    assert made._replay._driver is None
    direct._replay = None
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
