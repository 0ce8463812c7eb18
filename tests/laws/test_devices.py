"""A fit computes on one device, whatever torch makes its tensors on by default."""

import sys
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from methods import ADAM, DEEP, PAIRS, fitted
from programs import problem
from pyro.infer.autoguide import AutoNormal
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

import probsl
from probsl.data.shuffled_rows import ShuffledRows
from probsl.engine.compile import compiled
from probsl.engine.minimize.minimize import minimize
from probsl.engine.steps.first_order import FirstOrder
from probsl.engine.steps.stochastic import minimize_stochastic
from probsl.isolation.calls import isolated
from probsl.noise.record import record
from probsl.noise.standardized import standardized
from probsl.program.problem import Problem

META = torch.device("meta")
NAMES = ("linear", "own parameters", "simplex")
# Every method of one program, and of the others a point and a distribution.
NAMED = [
    p
    for p in PAIRS
    if p.case.name == "linear"
    or (p.case.name in NAMES and (DEEP or p.method in ("MAP", "SVI AutoNormal")))
]


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].device.type == other[name].device.type == "cpu"
        assert torch.equal(one[name], other[name])


class Factories(TorchFunctionMode):
    """Notes the calls whose result lies where it should only by chance."""

    def __init__(self):
        super().__init__()
        self.misplaced = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _device_constructors() and kwargs.get("device") is None:
            # Torch's generators are on the CPU, and so must be what is drawn by them;
            # all else belongs on the device of the fit.
            drawn = kwargs.get("generator") is not None
            caller = sys._getframe(1)
            where = f"{caller.f_code.co_filename}:{caller.f_lineno}"
            # Torch itself makes a tensor to see the index of the default device.
            asking = caller.f_code.co_name == "_get_device_with_index"
            if not asking and (drawn or torch.get_default_device() == META):
                self.misplaced.append(f"{func.__name__} in {where}")
        return func(*args, **kwargs)


# --- On the CPU


@pytest.mark.parametrize("pair", NAMED, ids=str)
def test_the_cpu_by_name_is_the_cpu(pair):
    named, plain = pair.fit(device="cpu"), fitted(pair)
    assert torch.equal(named.losses, plain.losses)
    same(named.point(), plain.point())
    same(named.draw(3), plain.draw(3))


@pytest.mark.parametrize("pair", NAMED, ids=str)
def test_a_fit_does_not_depend_on_the_default_device(pair):
    with META, Factories() as factories:
        fit = pair.fit(device="cpu")
        point, draws = fit.point(), fit.draw(3)
        table, likelihood = fit.summary(), fit.log_likelihood()
        assert torch.get_default_device() == META
    assert not factories.misplaced
    plain = fitted(pair)
    assert torch.equal(fit.losses, plain.losses)
    same(point, plain.point())
    same(draws, plain.draw(3))
    np.testing.assert_array_equal(table, plain.summary())
    assert likelihood == plain.log_likelihood()


@pytest.mark.parametrize("method", [probsl.MAP, partial(probsl.SVI, AutoNormal)])
def test_batches_and_predictions_do_not_depend_on_the_default_device(method):
    case = problem("linear")

    def results():
        made = method(optimizer=ADAM, max_steps=20)
        options = {"batch_size": 3, "compile": False, "device": "cpu"}
        fit = probsl.fit(case.program, case.data, made, **options)
        predicted = fit.predict(case.data, draws=5)
        score = probsl.log_score(fit, case.data, draws=5)
        return {**fit.point(), **predicted, "score": score, "losses": fit.losses}

    plain = results()
    with META, Factories() as factories:
        found = results()
    assert not factories.misplaced
    same(found, plain)


def test_searches_stay_where_their_start_is():
    target = torch.tensor([1.0, -2.0])

    def objective(x, given=None):
        return ((x - target) ** 2).sum() + (x**4).sum()

    def results():
        adam = minimize_stochastic(objective, start, how=FirstOrder(max_steps=300))
        other = minimize_stochastic(
            objective, start, how=FirstOrder(torch.optim.SGD, max_steps=10)
        )
        rows, _ = ShuffledRows({"y": target}, 2, 1, seed=0).take(5)
        drawn = standardized(noise, 8, seed=0)
        exact = minimize(objective, start).x
        return {"exact": exact, "adam": adam.x, "sgd": other.x, "z": drawn, **rows}

    start = torch.zeros(2)
    noise = record(torch.randn, 3)
    plain = results()
    with isolated(torch.float32, device=META):
        found = results()
    same(found, plain)


def test_isolated_makes_tensors_on_its_device_and_puts_the_default_back():
    with isolated(torch.float64, device=META):
        assert torch.zeros(1).device == META
        with isolated(torch.float64, device=torch.device("cpu")):
            assert torch.zeros(1).device.type == "cpu"
        assert torch.zeros(1).device == META
    assert torch.zeros(1).device.type == "cpu"
    with pytest.raises(KeyError), isolated(torch.float64, device=META):
        raise KeyError
    assert torch.zeros(1).device.type == "cpu"
    with META:
        with isolated(torch.float64):
            assert torch.zeros(1).device == META
        assert torch.get_default_device() == META


def test_the_device_is_that_of_the_data_where_none_is_asked_for():
    case = problem("linear")
    assert Problem.build(case.program, case.data).device == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused():
    case = problem("linear")
    sentence = (
        "device='cuda' is not available here (torch.cuda.is_available() is False); "
        "leave device out to compute on the CPU"
    )
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        probsl.fit(case.program, case.data, probsl.MAP(), device="cuda")
    assert str(refusal.value) == sentence


def test_the_copies_of_a_launched_step_outlive_the_next_launch():
    def doubled(state, constant):
        return 2 * state + constant, state.sum()

    inputs = [torch.ones(3), torch.arange(3.0)]
    # The options of a CUDA graph, which inductor leaves out for tensors on the CPU.
    code = compiled._compile(doubled, inputs, range(1, 2))
    state, total = code(list(inputs))
    again, _ = code([state, inputs[1]])
    torch.testing.assert_close(state, torch.tensor([2.0, 3.0, 4.0]))
    torch.testing.assert_close(again, torch.tensor([4.0, 7.0, 10.0]))
    assert total == 3


def test_compiled_code_is_let_go_of_with_the_constants_it_reads():
    constants = [torch.ones(2), torch.zeros(3)]
    compiled._COMPILED["key"] = "code"
    compiled.forget_with(constants, "key")
    assert "key" in compiled._COMPILED
    del constants[0]
    assert "key" not in compiled._COMPILED


def test_single_numbers_are_where_compiled_code_reads_them():
    constants = [torch.tensor(2.0), torch.ones(3, device=META)]
    laid = compiled.laid_out(constants, META)
    assert {constant.device for constant in laid} == {META}


# --- On a GPU


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("NOT CHECKED: no CUDA device here")
    return torch.device("cuda", torch.cuda.current_device())


SEARCHES = {
    "MLE": probsl.MLE(integrate=()),
    "MAP": probsl.MAP(),
    "MAP starts": probsl.MAP(starts=3),
    "MAP Adam": probsl.MAP(optimizer=ADAM, max_steps=60),
    "MAP SGD": probsl.MAP(optimizer=partial(torch.optim.SGD, lr=0.01), max_steps=60),
    "SVI": probsl.SVI(),
    "SVI Adam": probsl.SVI(AutoNormal, optimizer=ADAM, max_steps=60),
}


def near(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "method", "compile", "batch_size"),
    [
        (name, method, compile, batch_size)
        for name in NAMES
        for method, made in SEARCHES.items()
        for compile in (False, True)
        for batch_size in (None, 3)
        # Exact searches have neither steps to compile nor batches.
        if made.optimizer or not (compile or batch_size)
        if name == "linear" or batch_size is None
    ],
)
def test_a_fit_on_a_gpu_is_that_on_the_cpu(name, method, compile, batch_size, cuda):
    case, made = problem(name), SEARCHES[method]
    options = {"dtype": torch.float64, "batch_size": batch_size}
    before = torch.cuda.get_rng_state()
    found = probsl.fit(
        case.program, case.data, made, device="cuda", compile=compile, **options
    )
    plain = probsl.fit(case.program, case.data, made, compile=False, **options)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.get_default_device().type == "cpu"
    assert found.status is plain.status
    assert all(value.device == cuda for value in found.point().values())
    near(found.point(), plain.point())
    near(found.draw(4), plain.draw(4))
    torch.testing.assert_close(found.losses, plain.losses, rtol=1e-4, atol=1e-4)
    if compile:
        assert found.compiled_from == 1


def test_what_follows_a_fit_on_a_gpu(cuda):
    case = problem("linear")
    options = {"dtype": torch.float64}
    found = probsl.fit(case.program, case.data, probsl.SVI(), device="cuda", **options)
    plain = probsl.fit(case.program, case.data, probsl.SVI(), **options)
    assert found.predict(case.data, draws=5)["y"].device == cuda
    scores = [probsl.log_score(fit, case.data, draws=50) for fit in (found, plain)]
    near({"score": scores[0]}, {"score": scores[1]})
    np.testing.assert_allclose(found.summary(), plain.summary(), rtol=1e-3, atol=1e-3)
    assert found.log_likelihood() == pytest.approx(plain.log_likelihood(), rel=1e-4)
    assert len(probsl.compare({"gpu": found, "cpu": plain}).scores) == 2
    pytest.importorskip("arviz")
    exported = probsl.to_arviz(found)["posterior"]
    assert exported["w"].shape == probsl.to_arviz(plain)["posterior"]["w"].shape


def test_tensors_made_by_the_program_are_on_the_gpu(cuda):
    net = torch.nn.Linear(2, 1)
    start = torch.tensor(1.0)

    def program(x, y=None):
        scale = pyro.param("scale", start, constraint=dist.constraints.positive)
        w = pyro.sample("w", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(net(x)[:, 0] + x @ w, scale), obs=y)

    x = np.random.default_rng(0).normal(size=(20, 2)).astype("float32")
    fit = probsl.fit(program, {"x": x, "y": x[:, 0]}, probsl.MAP(), device="cuda")
    assert {v.device for v in fit.point().values()} == {cuda}
    assert net.weight.device.type == start.device.type == "cpu"
