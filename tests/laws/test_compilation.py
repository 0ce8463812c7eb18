"""Steps run from a graph, or from compiled code of it, are the same steps."""

import functools
import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from methods import ADAM, DEEP
from programs import DTYPE, PROBLEMS, problem
from pyro.infer.autoguide import (
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

import probsl
from probsl.engine.compile import compiled as engine_compiled
from probsl.engine.compile import replay
from probsl.engine.compile.obstacles import ReplayError
from probsl.engine.steps import step as engine
from probsl.engine.steps import stochastic

STEPS = 8
METHODS = {
    "MAP": functools.partial(probsl.MAP, optimizer=ADAM),
    "SVI": functools.partial(probsl.SVI, AutoNormal, optimizer=ADAM),
}


@pytest.fixture
def traced_only(monkeypatch):
    """Take the graph in the place of compiled code, which takes seconds to make."""
    monkeypatch.setattr(engine.Step, "compile", engine.Step.trace)


def losses(case, method, **options):
    made = METHODS[method](max_steps=STEPS)
    return probsl.fit(case.program, case.data, made, **options).losses


# Every program is in the graph of MAP; that of SVI has the guide in it too, which is
# another one where latents are discrete, of each row, or not of the program's own.
WITH_GUIDE = {"linear", "local scales", "mixture", "own parameters", "simplex"}
GRAPHS = [
    (case.name, method)
    for case in PROBLEMS
    for method in METHODS
    if case.name != "sequential plate"
    and (DEEP or method == "MAP" or case.name in WITH_GUIDE)
]


@pytest.mark.parametrize(("name", "method"), GRAPHS)
def test_the_graph_of_a_step_is_the_step(name, method, traced_only):
    case = problem(name)
    expected = losses(case, method, compile=False)
    torch.testing.assert_close(losses(case, method, compile=True), expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_graph_of_a_step_takes_any_rows(method, traced_only):
    case = problem("linear")
    expected = losses(case, method, compile=False, batch_size=3)
    found = losses(case, method, compile=True, batch_size=3)
    torch.testing.assert_close(found, expected)


# Compiled steps of one draw, of other programs, are held to eager ones below.
@pytest.mark.parametrize("name", ["linear", "mixed model"][not DEEP :])
def test_compiled_steps_are_the_steps(name):
    case = problem(name)
    eager = probsl.fit(
        case.program, case.data, METHODS["SVI"](max_steps=300), compile=False
    )
    compiled = probsl.fit(
        case.program, case.data, METHODS["SVI"](max_steps=300), compile=True
    )
    assert compiled.compiled_from == 1
    torch.testing.assert_close(compiled.losses, eager.losses)


def test_compiled_steps_are_the_same_bit_for_bit_each_time():
    case = problem("linear")
    first, second = (losses(case, "MAP", compile=True) for _ in range(2))
    assert torch.equal(first, second)


REPEATED = {"LKJ covariance": AutoNormal, "mixture": AutoMultivariateNormal}
if DEEP:
    REPEATED["linear"] = functools.partial(AutoLowRankMultivariateNormal, rank=2)


@pytest.mark.parametrize("name", REPEATED)
def test_steps_called_again_are_the_compiled_steps_bit_for_bit(name, monkeypatch):
    case = problem(name)
    method = probsl.SVI(REPEATED[name], optimizer=ADAM, max_steps=300, draws=1)
    fit = functools.partial(probsl.fit, case.program, case.data, method)
    made = []

    class Replay(replay.Replay):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    def refused(*_):
        raise ReplayError("it is not wanted here")

    monkeypatch.setattr(replay, "Replay", Replay)
    found = fit(compile=True)
    assert not any(call.library for call in made[0]._calls)
    monkeypatch.setattr(replay, "Replay", refused)
    expected = fit(compile=True)
    assert found.compiled_from == expected.compiled_from == 1
    assert torch.equal(found.losses, expected.losses)
    assert "called by torch, because it is not wanted here" in expected.note
    eager = fit(compile=False)
    torch.testing.assert_close(found.losses, eager.losses)


def branching(y=None):
    mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
    scale = 1.0 if mu > 0 else 2.0
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


def test_a_program_that_branches_on_a_latent_is_not_compiled_and_says_so():
    y = torch.ones(5, dtype=DTYPE)
    method = METHODS["MAP"](max_steps=STEPS)
    expected = probsl.fit(branching, {"y": y}, method, compile=False)
    with pytest.warns(UserWarning, match="not compiled"):
        fit = probsl.fit(branching, {"y": y}, method, compile=True)
    assert torch.equal(fit.losses, expected.losses)
    assert fit.compiled_from is None
    assert "not compiled" in fit.note


def test_a_sequential_plate_is_not_compiled_and_says_so(traced_only):
    case = problem("sequential plate")
    expected = losses(case, "MAP", compile=False)
    with pytest.warns(UserWarning, match="not compiled"):
        assert torch.equal(losses(case, "MAP", compile=True), expected)


def test_without_a_compiler_the_graph_runs_and_says_so(monkeypatch):
    def no_compiler(*_):
        raise RuntimeError("no C++ compiler was found")

    monkeypatch.setattr("probsl.engine.compile.compiled._compile", no_compiler)
    monkeypatch.setattr("probsl.engine.compile.compiled._COMPILED", {})
    case = problem("linear")
    expected = losses(case, "MAP", compile=False)
    with pytest.warns(UserWarning, match="not compiled, because torch .* no C"):
        found = losses(case, "MAP", compile=True)
    torch.testing.assert_close(found, expected)


@pytest.fixture
def seconds_a_block(monkeypatch):
    """Return a function that sets how long each block of 250 steps seems to take.

    Nothing is at hand that was compiled by an earlier test.
    """
    monkeypatch.setattr("probsl.engine.compile.compiled._COMPILED", {})

    def seem(seconds):
        clock = itertools.count(0.0, seconds).__next__
        monkeypatch.setattr(stochastic, "clock", clock)

    return seem


@pytest.mark.parametrize(
    ("seconds", "asked"),
    # The 350 steps still to go are worth nothing, a graph, or a compiler.
    [(1.0, []), (2.0, ["trace"]), (10.0, ["compile"])],
)
def test_the_clock_decides_when_to_compile(
    seconds, asked, seconds_a_block, traced_only, monkeypatch
):
    calls = []

    def noted(name, function):
        def noting(*arguments):
            calls.append(name)
            return function(*arguments)

        return noting

    for name in ("compile", "trace"):
        noting = noted(name, getattr(engine.Step, name))
        monkeypatch.setattr(engine.Step, name, noting)
    case = problem("linear")
    seconds_a_block(seconds)
    fit = probsl.fit(case.program, case.data, METHODS["MAP"](max_steps=600))
    assert calls == asked
    assert fit.compiled_from == (251 if "compile" in asked else None)


@pytest.mark.parametrize("compile", ["always", -1, 0.5, None])
def test_only_these_answers_to_compile_are_known(compile):
    case = problem("linear")
    with pytest.raises(ValueError, match="'auto', True, False or the step"):
        losses(case, "MAP", compile=compile)


def test_a_fit_that_the_clock_sped_up_can_be_repeated(seconds_a_block):
    case = problem("linear")
    method = METHODS["SVI"](max_steps=600)
    seconds_a_block(10.0)
    fit = probsl.fit(case.program, case.data, method)
    again = probsl.fit(case.program, case.data, method, compile=fit.compiled_from)
    assert fit.compiled_from == again.compiled_from == 251
    assert torch.equal(fit.losses, again.losses)


# The objective of SVI holds that of MAP.
@pytest.mark.parametrize("name", ["MAP", "SVI"][not DEEP :])
def test_a_path_over_prior_weights_is_compiled_once(name, monkeypatch):
    case = problem("linear")
    compiled = []

    def compiling(*arguments):
        compiled.append(arguments)
        return made(*arguments)

    made = engine_compiled._compile
    monkeypatch.setattr("probsl.engine.compile.compiled._compile", compiling)
    monkeypatch.setattr("probsl.engine.compile.compiled._COMPILED", {})
    fits = [
        probsl.fit(
            case.program,
            case.data,
            METHODS[name](prior_weight=weight, max_steps=STEPS),
            compile=True,
        )
        for weight in (0.1, 1.0, 10.0)
    ]
    assert [fit.compiled_from for fit in fits] == [1, 1, 1]
    assert len(compiled) == 1
    assert len({float(fit.losses[0]) for fit in fits}) == 3


def test_code_that_is_at_hand_is_taken_sooner(seconds_a_block):
    case = problem("linear")
    method = METHODS["MAP"](max_steps=600)
    seconds_a_block(2.0)
    assert probsl.fit(case.program, case.data, method).compiled_from is None
    probsl.fit(case.program, case.data, method, compile=True)
    assert probsl.fit(case.program, case.data, method).compiled_from == 251


@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop]
)
def test_any_optimizer_takes_the_gradient_of_the_graph(optimizer, traced_only):
    case = problem("linear")
    method = probsl.MAP(
        optimizer=functools.partial(optimizer, lr=0.01), max_steps=STEPS
    )
    expected = probsl.fit(case.program, case.data, method, compile=False)
    found = probsl.fit(case.program, case.data, method, compile=True)
    torch.testing.assert_close(found.losses, expected.losses)


def test_adam_takes_the_steps_of_torchs_adam():
    """One of the two is torch's own, since a scheduler that does nothing is asked."""
    case = problem("linear")
    constant = functools.partial(
        torch.optim.lr_scheduler.ConstantLR, factor=1.0, total_iters=1
    )
    own = probsl.MAP(optimizer=ADAM, max_steps=200)
    torchs = probsl.MAP(optimizer=ADAM, scheduler=constant, max_steps=200)
    fits = [
        probsl.fit(case.program, case.data, m, compile=False) for m in (own, torchs)
    ]
    torch.testing.assert_close(fits[0].losses, fits[1].losses)


def test_a_scheduler_moves_the_rate():
    case = problem("linear")
    still = functools.partial(torch.optim.lr_scheduler.ConstantLR, factor=0.0)
    fit = probsl.fit(
        case.program, case.data, probsl.MAP(scheduler=still, max_steps=4), compile=False
    )
    assert (fit.losses == fit.losses[0]).all()


def test_a_scheduler_may_go_by_the_loss():
    case = problem("linear")
    plateau = functools.partial(
        torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=1e9
    )
    rates = []

    def factory(parameters):
        made = torch.optim.SGD(parameters, lr=0.01)
        rates.append(made.param_groups[0])
        return made

    method = probsl.MAP(optimizer=factory, scheduler=plateau, max_steps=4)
    probsl.fit(case.program, case.data, method, compile=False)
    assert rates[-1]["lr"] < 0.01


def test_a_clipped_gradient_is_a_short_step():
    case = problem("linear")
    sgd = functools.partial(torch.optim.SGD, lr=1.0)
    seen = []
    probsl.fit(
        case.program,
        case.data,
        probsl.MAP(optimizer=sgd, clip_norm=1e-3, max_steps=3),
        callbacks=[lambda step, loss, x: seen.append(x)],
        compile=False,
    )
    assert float((seen[1] - seen[0]).norm()) == pytest.approx(1e-3)


def test_a_low_rank_guide_can_be_compiled(traced_only):
    case = problem("linear")
    guide = functools.partial(AutoLowRankMultivariateNormal, rank=1)
    method = probsl.SVI(guide, optimizer=ADAM, max_steps=STEPS)
    expected = probsl.fit(case.program, case.data, method, compile=False)
    found = probsl.fit(case.program, case.data, method, compile=True)
    torch.testing.assert_close(found.losses, expected.losses)


def compound(y=None):
    """Ten columns with one covariance, which from -1/10 downward is none."""
    shared = pyro.sample("shared", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
    covariance = torch.eye(10, dtype=DTYPE) + shared
    mean = torch.zeros(10, dtype=DTYPE)
    with pyro.plate("data", len(y)):
        normal = dist.MultivariateNormal(mean, covariance, validate_args=False)
        pyro.sample("y", normal, obs=y)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_a_step_at_which_a_matrix_has_no_factor_is_not_made(optimizer):
    y = torch.randn(50, 10, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    method = probsl.MAP(
        optimizer=functools.partial(optimizer, lr=0.3),
        max_steps=260,
        start={"shared": 1.0},
    )
    fits = [
        probsl.fit(compound, {"y": y}, method, compile=compile)
        for compile in (False, True)
    ]
    assert fits[1].compiled_from == 1
    torch.testing.assert_close(*(fit.losses for fit in fits), equal_nan=True)
    lost = fits[0].losses.isnan()
    assert lost.any()
    # It then goes back to where there was one, at a lower rate.
    assert not lost[-1]
    assert all(fit.point()["shared"] > -0.1 for fit in fits)


def test_a_start_where_a_matrix_has_no_factor_is_refused():
    y = torch.ones(5, 10, dtype=DTYPE)
    method = probsl.MAP(optimizer=ADAM, start={"shared": -0.5}, max_steps=100)
    with pytest.raises(ValueError, match=r"at start=, it fails \(linalg.cholesky"):
        probsl.fit(compound, {"y": y}, method, compile=False)


def with_dropout(hidden):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Linear(2, hidden, dtype=DTYPE),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(hidden, 1, dtype=DTYPE),
        )

    def program(x, y=None):
        scale = pyro.sample("scale", dist.HalfNormal(torch.ones((), dtype=DTYPE)))
        mean = net(x)[:, 0]
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)

    return program


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("method", METHODS)
def test_dropout_is_noise_like_any_other(method, batch_size, traced_only):
    data = {name: problem("linear").data[name] for name in ("x", "y")}
    fits = [
        probsl.fit(
            with_dropout(3),
            data,
            METHODS[method](max_steps=STEPS),
            compile=compile,
            batch_size=batch_size,
        )
        for compile in (False, True)
    ]
    assert fits[1].compiled_from == 1
    torch.testing.assert_close(fits[0].losses, fits[1].losses)
    one, other = (fit.predict({"x": data["x"]}, draws=1, seed=1) for fit in fits)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("hidden", [2, 100])
def test_a_program_with_noise_of_its_own_is_searched_by_noisy_steps(hidden):
    """Exact searches end at once where the objective is another at each look."""
    data = {name: problem("linear").data[name] for name in ("x", "y")}
    fit = probsl.fit(
        with_dropout(hidden), data, probsl.MAP(max_steps=300), compile=False
    )
    assert fit.status is probsl.Status.MAX_STEPS
    assert fit.steps == 300
    assert fit.losses[-50:].mean() < fit.losses[:50].mean()
