"""A fit depends on its arguments and its seed alone, and leaves the process alone."""

import contextlib
import functools
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import programs
import pyro
import pytest
import torch
from methods import DEEP, PAIRS, Pair, fitted
from programs import PROBLEMS, problem
from pyro.infer.autoguide import AutoNormal
from pyro.poutine.runtime import _PYRO_STACK

import probsl

# Every program, and every method of a few.
FITTED_AGAIN = [
    p
    for p in PAIRS
    if DEEP
    or p.method == "MAP"
    or p.case.name in ("linear", "mixed model", "own parameters", "simplex")
    or (p.method, p.case.name) == ("SVI Adam", "mixture")
]
every_pair = pytest.mark.parametrize("pair", FITTED_AGAIN, ids=str)

MODULES = {"NET": programs.NET, "TREND": programs.TREND}


def the_same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) for name in one
    )


def state_of_the_process(data):
    """Return all that a fit could change, as bytes or plain values."""
    store = pyro.get_param_store()
    state = {
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        "numpy's generator": pickle.dumps(np.random.get_state()),  # noqa: NPY002
        "Python's generator": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "settings of Pyro": pyro.settings.get(),
        "validation": torch.distributions.Distribution._validate_args,
        "threads": torch.get_num_threads(),
        "handlers": len(_PYRO_STACK),
        "parameter store": {n: p.tolist() for n, p in store.named_parameters()},
    }
    for name, module in MODULES.items():
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        state[name] = {
            path: (id(t), t.tolist(), t.requires_grad, t.grad, t._version)
            for path, t in tensors.items()
        } | {"training": module.training}
    for name, value in data.items():
        if torch.is_tensor(value):
            state[name] = (value.numpy().tobytes(), value.dtype, value.requires_grad)
    return state


@contextlib.contextmanager
def parameters_of_the_callers():
    """Put parameters into Pyro's store, one named like a program's own."""
    with pyro.get_param_store().scope():
        pyro.param("shift", torch.tensor(3.0))
        pyro.param("auto_scale", torch.tensor([1.0, 2.0]))
        yield


def changes(before, after):
    return [name for name in before if before[name] != after[name]]


@functools.cache
def again(pair: Pair):
    """Fit a pair once more; return the fit and what it changed in the process."""
    torch.manual_seed(99)  # another state than that of the first fit
    with parameters_of_the_callers():
        before = state_of_the_process(pair.case.data)
        fit = pair.fit()
        after = state_of_the_process(pair.case.data)
    return fit, changes(before, after)


@every_pair
def test_the_same_seed_gives_the_same_fit_bit_for_bit(pair):
    first, second = fitted(pair), again(pair)[0]
    assert torch.equal(first.losses, second.losses)
    assert the_same(first.point(), second.point())
    assert the_same(first.draw(3, seed=5), second.draw(3, seed=5))


# The methods differ in what they ask of a problem, and not by program.
ASKED_AGAIN = [
    p
    for p in PAIRS
    if p.method == "MAP"
    or (
        p.method in ("MLE", "SVI AutoNormal")
        and (DEEP or p.case.name in ("linear", "local scales", "own parameters"))
    )
]


@pytest.mark.parametrize("pair", ASKED_AGAIN, ids=str)
def test_a_problem_is_fitted_again_without_another_look(pair):
    first = fitted(pair)
    second = probsl.fit(first.problem, None, first.method, seed=first.seed)
    assert second.problem is first.problem
    assert torch.equal(first.losses, second.losses)
    assert the_same(first.point(), second.point())


def test_a_problem_has_its_data_already():
    problem = fitted(Pair("MAP", PROBLEMS[0])).problem
    with pytest.raises(ValueError, match="dtype must be None, because a problem has"):
        probsl.fit(problem, None, probsl.MAP(), dtype=torch.float32)
    with pytest.raises(ValueError, match="data must be None"):
        probsl.fit(problem, {"y": torch.ones(3)}, probsl.MAP())


def test_a_problem_is_fitted_with_other_weights():
    pair = Pair("MAP", next(case for case in PROBLEMS if case.name == "linear"))
    first = fitted(pair)
    weights = torch.arange(first.problem.size) % 3
    again = probsl.fit(first.problem, None, first.method, weights=weights)
    assert the_same(again.point(), pair.fit(weights=weights).point())


@every_pair
def test_a_fit_leaves_the_process_as_it_was(pair):
    assert again(pair)[1] == []


@pytest.mark.parametrize("method", ["MAP", "SVI AutoNormal"])
@pytest.mark.parametrize("name", ["linear", "own parameters", "factor model"])
def test_using_a_fit_leaves_the_process_as_it_was(name, method):
    case = problem(name)
    fit = fitted(Pair(method, case))
    with parameters_of_the_callers():
        before = state_of_the_process(case.data)
        fit.summary()
        fit.draw(2)
        fit.predict(case.inputs, draws=2)
        fit.log_likelihood()
        probsl.log_score(fit, case.data, draws=2)
        probsl.compare({"fit": fit}, case.data)
        assert changes(before, state_of_the_process(case.data)) == []


class ProgramError(Exception):
    """Raised by a program."""


def failing(program, after):
    """Return a program that fails once it has been called `after` times."""
    calls = 0

    @functools.wraps(program)
    def fails(*args, **kwargs):
        nonlocal calls
        calls += 1
        program(*args, **kwargs)
        if calls > after:
            raise ProgramError

    return fails


# Calls of the dry run, of the search for a start, and of the fit itself.
@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 8, 20])
@pytest.mark.parametrize(
    "method",
    [
        probsl.MAP(),
        probsl.MAP(optimizer=torch.optim.Adam, max_steps=40),
        probsl.SVI(AutoNormal, optimizer=torch.optim.Adam, max_steps=40),
    ],
    ids=["MAP", "MAP Adam", "SVI"],
)
def test_an_error_in_the_program_leaves_the_process_as_it_was(method, after):
    case = problem("own parameters")
    with parameters_of_the_callers():
        before = state_of_the_process(case.data)
        with pytest.raises(ProgramError):
            probsl.fit(failing(case.program, after), case.data, method)
        assert changes(before, state_of_the_process(case.data)) == []


def test_an_error_in_a_callback_leaves_the_process_as_it_was():
    case = problem("own parameters")

    def callback(step, loss, x):
        raise ProgramError

    with parameters_of_the_callers():
        before = state_of_the_process(case.data)
        with pytest.raises(ProgramError):
            probsl.fit(case.program, case.data, probsl.MAP(), callbacks=[callback])
        assert changes(before, state_of_the_process(case.data)) == []


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", ["MAP", "SVI AutoNormal"])
def test_a_fit_does_not_ask_for_the_callers_grad_mode(method, mode):
    pair = Pair(method, problem("own parameters"))
    with mode():
        fit = pair.fit()
        assert not torch.is_grad_enabled()
    assert the_same(fit.point(), fitted(pair).point())


def test_another_seed_gives_other_random_numbers():
    pair = Pair("SVI Adam", problem("linear"))
    first = fitted(pair)
    assert not torch.equal(first.losses, pair.fit(seed=1).losses)
    draws, others = first.draw(3, seed=0), first.draw(3, seed=1)
    assert not the_same(draws, others)
    inputs = pair.case.inputs
    predicted = [first.predict(inputs, draws=3, seed=seed) for seed in (0, 0, 1)]
    assert the_same(predicted[0], predicted[1])
    assert not the_same(predicted[0], predicted[2])


@pytest.mark.parametrize("method", ["MAP", "SVI AutoNormal"])
def test_equal_names_in_two_fits_stay_apart(method):
    pair = Pair(method, problem("own parameters"))
    first = pair.fit()
    before = first.point()
    other = probsl.fit(
        pair.case.program,
        {**pair.case.data, "y": pair.case.data["y"] + 5},
        first.method,
    )
    assert not the_same(other.point(), before)
    # What is computed after the second fit still belongs to the first.
    assert the_same(first.point(), before)
    assert the_same(first.draw(2), fitted(pair).draw(2))


def test_a_fit_inside_a_callback_disturbs_neither():
    outer, inner = (Pair("SVI Adam", problem(n)) for n in ("own parameters", "linear"))
    nested = []

    def callback(step, loss, x):
        if step == 3:
            nested.append(inner.fit())

    assert the_same(outer.fit(callbacks=[callback]).point(), fitted(outer).point())
    assert the_same(nested[0].point(), fitted(inner).point())


def test_fits_in_two_threads_do_not_disturb_each_other():
    pairs = [Pair("SVI Adam", problem(n)) for n in ("own parameters", "linear")] * 2
    with ThreadPoolExecutor(2) as pool:
        fits = list(pool.map(lambda pair: pair.fit(), pairs))
    for pair, fit in zip(pairs, fits, strict=True):
        assert the_same(fit.point(), fitted(pair).point())


def test_the_programs_have_names_of_their_own():
    names = [case.name for case in PROBLEMS]
    assert len(set(names)) == len(names)
