"""Nothing that surrounds a call reaches into it, and it leaves nothing behind."""

import contextlib
import os
import threading

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine import runtime
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import probsl
from probsl.isolation.calls import isolated

X = np.random.default_rng(0).normal(size=(12, 2)).astype("f4")
Y = X @ np.array([1.0, -1.0], "f4") + 0.1 * np.arange(12, dtype="f4")
DATA = {"x": X, "y": Y}


def program(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    s = pyro.sample("s", dist.Gamma(2.0, 2.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.StudentT(4.0, x @ w, s), obs=y)


def values(arrays):
    return {name: np.asarray(array) for name, array in arrays.items()}


def groups(tree):
    """Return the arrays of what `to_arviz` returns."""
    names = tree.groups() if callable(tree.groups) else tree.groups
    names = [name.strip("/") for name in names if name.strip("/")]
    return {
        f"{group}.{name}": array.values
        for group in names
        for name, array in tree[group].data_vars.items()
    }


CALLS = {
    "fit by MAP": lambda fits: probsl.fit(program, DATA, probsl.MAP()).point(),
    "fit by SVI": lambda fits: probsl.fit(
        program, DATA, probsl.SVI(optimizer=torch.optim.Adam, max_steps=20)
    ).point(),
    "fit in batches": lambda fits: probsl.fit(
        program, DATA, probsl.MAP(max_steps=20), batch_size=5
    ).point(),
    "point": lambda fits: fits["SVI"].point(),
    "draw": lambda fits: fits["SVI"].draw(3),
    "summary": lambda fits: {"": fits["SVI"].summary()},
    "log likelihood": lambda fits: {"": fits["MAP"].log_likelihood()},
    "predict": lambda fits: fits["SVI"].predict(DATA, draws=3),
    "log score": lambda fits: {"": probsl.log_score(fits["SVI"], DATA, draws=3)},
    "compare": lambda fits: {"": probsl.compare(fits).estimates},
    "to_arviz": lambda fits: groups(probsl.to_arviz(fits["SVI"], draws=3)),
}


# All of them, where the surroundings are of a kind of their own.
QUICK = ("fit by MAP", "predict", "log score")
THOROUGH = ("scale", "autocast", "inference mode", "default device")


class Doubling(TorchFunctionMode):
    """Doubles all sums."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return 2 * result if func in (torch.sum, torch.Tensor.sum) else result


class Halving(TorchDispatchMode):
    """Halves all sums, below autograd."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result / 2 if func is torch.ops.aten.sum.default else result


@contextlib.contextmanager
def default(set_default, value, before):
    set_default(value)
    try:
        yield
    finally:
        set_default(before)


SURROUNDINGS = {
    "scale": lambda: poutine.scale(scale=1 / 50),
    "mask": lambda: poutine.mask(mask=False),
    "block": poutine.block,
    "condition": lambda: poutine.condition(data={"s": torch.tensor(7.0)}),
    "do": lambda: poutine.do(data={"w": torch.zeros(2)}),
    "plate of that name": lambda: pyro.plate("rows", 3),
    "plate": lambda: pyro.plate("other", 3, dim=-1),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "torch function mode": Doubling,
    "torch dispatch mode": Halving,
    "device": lambda: torch.device("meta"),
    "default device": lambda: default(torch.set_default_device, "meta", None),
    "validation": lambda: pyro.validation_enabled(False),
    "default dtype": lambda: default(
        torch.set_default_dtype, torch.float64, torch.float32
    ),
}


@pytest.fixture(scope="module")
def fits():
    adam = probsl.SVI(optimizer=torch.optim.Adam, max_steps=20)
    return {
        "MAP": probsl.fit(program, DATA, probsl.MAP()),
        "SVI": probsl.fit(program, DATA, adam),
    }


@pytest.fixture(scope="module")
def answers(fits):
    return {name: values(call(fits)) for name, call in CALLS.items()}


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
def test_what_surrounds_a_call_does_not_reach_in(surrounding, fits, answers):
    found = {}
    with SURROUNDINGS[surrounding]():
        for name in CALLS if surrounding in THOROUGH else QUICK:
            found[name] = CALLS[name](fits)
    for name, answer in found.items():
        assert values(answer).keys() == answers[name].keys(), name
        for key, value in values(answer).items():
            np.testing.assert_array_equal(value, answers[name][key], err_msg=name)


def test_what_surrounds_a_call_is_as_if_nothing_had_happened(fits):
    with (
        poutine.trace() as tracing,
        pyro.plate("outer", 2, dim=-2),
        Doubling(),
        torch.autocast("cpu"),
        torch.inference_mode(),
    ):
        pyro.sample("before", dist.Normal(0.0, 1.0))
        for name in QUICK:
            CALLS[name](fits)
        with pyro.plate("inner", 3):
            after = pyro.sample("after", dist.Normal(0.0, 1.0))
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_inference_mode_enabled()
    names = [n for n, m in tracing.trace.nodes.items() if m["type"] == "sample"]
    assert names == ["outer", "before", "inner", "after"]
    assert after.shape == (2, 3)
    assert tracing.trace.nodes["after"]["cond_indep_stack"][0].name == "outer"


def test_a_program_may_fit_another(fits):
    """A fit inside a program is apart from the run that it is called in."""
    inner = probsl.fit(program, DATA, probsl.MAP()).point()

    def outer(y=None):
        with pyro.plate("rows", 3):
            found = probsl.fit(program, DATA, probsl.MAP()).point()
            mean = found["w"].sum() + pyro.sample("m", dist.Normal(0.0, 1.0).mask(True))
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y = torch.tensor([1.0, 2.0, 3.0])
    fit = probsl.fit(outer, {"y": y}, probsl.MAP())
    expected = (y - inner["w"].sum()) / 2
    torch.testing.assert_close(fit.point()["m"], expected, rtol=1e-4, atol=1e-5)


# --- Other threads


def beside(run):
    """Run a function in another thread until the block ends; return its results."""

    @contextlib.contextmanager
    def block():
        done, results, errors = threading.Event(), [], []

        def again_and_again():
            try:
                while not done.is_set():
                    results.append(run())
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=again_and_again)
        thread.start()
        try:
            yield results
        finally:
            done.set()
            thread.join()
        assert errors == []

    return block()


def test_another_thread_keeps_its_handlers_plates_and_parameters():
    """A thread that runs Pyro by itself is traced and trained as if it were alone."""

    def traced():
        with poutine.trace() as tracing, pyro.plate("outer", 2, dim=-2):
            weight = pyro.param("weight", torch.zeros(()))
            with torch.no_grad():
                weight += 1.0
            with pyro.plate("rows", 3):
                value = pyro.sample("z", dist.Delta(torch.zeros(())))
        return list(tracing.trace.nodes), tuple(value.shape)

    names = ["outer", "weight", "rows", "z"]
    with pyro.get_param_store().scope(), beside(traced) as results:
        for _ in range(3):
            probsl.fit(program, DATA, probsl.MAP()).predict(DATA, draws=3)
        while len(results) < 20:
            pass
    assert all(result == (names, (2, 3)) for result in results)


def test_handlers_of_another_thread_do_not_reach_in(fits, answers):
    def scaled():
        with poutine.scale(scale=3.0), pyro.plate("rows", 5):
            pyro.sample("z", dist.Delta(torch.zeros(())))

    with beside(scaled):
        for name in ("fit by MAP", "predict", "log score"):
            for key, value in values(CALLS[name](fits)).items():
                np.testing.assert_array_equal(value, answers[name][key])


def test_the_default_dtype_of_a_fit_in_another_thread_is_not_taken_for_the_callers():
    """Counts alone say no floating type: the caller's default is not that of the fit
    that another thread is in."""

    def counts(y=None):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    entered, found = threading.Event(), []

    def count():
        entered.wait()
        data = {"y": np.array([1, 2, 3])}
        found.append(probsl.fit(counts, data, probsl.MAP()).problem.dtype)

    thread = threading.Thread(target=count)
    thread.start()
    with isolated(torch.float64):
        entered.set()
        thread.join(0.2)
    thread.join()
    assert found == [torch.float32]


# --- Forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_that_is_forked_while_another_thread_fits_can_fit():
    expected = probsl.fit(program, DATA, probsl.MAP()).point()["w"]
    inside, forked = threading.Event(), threading.Event()

    def wait(step, loss, point):
        inside.set()
        forked.wait(60)

    data = {name: array.astype("f8") for name, array in DATA.items()}
    thread = threading.Thread(
        target=lambda: probsl.fit(program, data, probsl.MAP(), callbacks=[wait])
    )
    thread.start()
    inside.wait(60)
    state = torch.get_rng_state()
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            own = torch.get_default_dtype() is torch.float32
            again = probsl.fit(program, DATA, probsl.MAP()).point()["w"]
            rest = runtime._PYRO_STACK == [] and runtime._DIM_ALLOCATOR._stack == []
            status = 0 if own and rest and torch.equal(again, expected) else 2
        os._exit(status)
    forked.set()
    thread.join()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert state.shape == torch.get_rng_state().shape


class Meddling:
    """Another thread, which draws random numbers and sets defaults all the time."""

    def __init__(self):
        self._done, self.draws = threading.Event(), 0

    def __enter__(self):
        self._thread = threading.Thread(target=self._meddle)
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._done.set()
        self._thread.join()
        torch.set_default_dtype(torch.float32)

    def _meddle(self):
        while not self._done.is_set():
            torch.rand(3)
            torch.set_default_dtype(torch.float64)
            assert torch.get_default_dtype() is torch.float64
            torch.set_default_dtype(torch.float16)
            assert torch.get_default_dtype() is torch.float16
            pyro.enable_validation(True)
            self.draws += 1
            self._done.wait(0.0005)


def gammas(y=None):
    """Draws by samplers that are no transformations of normal numbers."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", 4):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def gamma_guide(y=None):
    shape = pyro.param("shape", torch.tensor(2.0), constraint=dist.constraints.positive)
    pyro.sample("rate", dist.Gamma(shape, 1.0))


COUNTS = {"y": torch.tensor([1.0, 0.0, 3.0, 2.0])}
DRAWING = {
    **{name: CALLS[name] for name in (*QUICK, "draw", "fit by SVI")},
    "predictions of counts": lambda fits: fits["counts"].predict(COUNTS, draws=20),
    "draws of a gamma": lambda fits: fits["counts"].draw(20),
    "fit by draws of a gamma": lambda fits: probsl.fit(
        gammas, COUNTS, probsl.SVI(gamma_guide, optimizer=torch.optim.Adam, max_steps=9)
    ).point(),
}


def test_random_numbers_and_defaults_of_another_thread_do_not_reach_in(fits):
    method = probsl.SVI(gamma_guide, optimizer=torch.optim.Adam, max_steps=5)
    held = {**fits, "counts": probsl.fit(gammas, COUNTS, method)}
    expected = {name: values(call(held)) for name, call in DRAWING.items()}
    with Meddling() as other:
        found = {name: values(call(held)) for name, call in DRAWING.items()}
        found |= {f"{n}, again": values(c(held)) for n, c in DRAWING.items()}
    assert other.draws > 10
    assert torch.get_default_dtype() is torch.float32
    for name, answer in found.items():
        for key, value in expected[name.removesuffix(", again")].items():
            np.testing.assert_array_equal(answer[key], value, err_msg=name)
