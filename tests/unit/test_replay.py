"""Steps whose calls are made again are the steps, whoever makes the calls."""

import pytest
import torch

from probsl.engine import driver
from probsl.engine.step import Step, Walk

PLACES = 40


def halfway(state, given):
    moved = (state + given * state.cos()) / 2
    return moved, moved.square().sum()


def shared(state, divisor):
    return state + 7 // divisor, state.sum() * 1.0


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
