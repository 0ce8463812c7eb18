"""Callbacks see every step; a fit that is stopped, or interrupted, is still a fit."""

import itertools

import pyro
import pytest
import torch
from methods import ADAM, METHODS, Pair, fitted
from programs import problem
from pyro.infer.autoguide import AutoNormal

import probsl
from probsl import Status
from probsl.program.problem import Problem

every_kind = pytest.mark.parametrize(
    "method", ["MLE", "MAP", "MAP Adam", "SVI AutoNormal", "SVI Adam"]
)


def is_usable(fit):
    """Whether a fit answers what fits are asked, with finite numbers."""
    values = [*fit.point().values(), *fit.draw(3).values()]
    values += fit.predict(fit.problem.arguments.values, draws=2).values()
    return (
        all(v.isfinite().all() for v in values)
        and fit.summary()["estimate"].notna().all()
        and "INTERRUPTED" in repr(fit)
    )


@every_kind
@pytest.mark.parametrize("name", ["linear", "own parameters"])
def test_callbacks_see_every_step(method, name):
    seen = []
    pair = Pair(method, problem(name))
    fit = pair.fit(callbacks=[lambda *step: seen.append(step)])
    steps, losses, points = zip(*seen, strict=True)
    assert list(steps) == list(range(1, fit.steps + 1))
    # What is told are the losses of the fit, sums over the rows.
    torch.testing.assert_close(
        torch.tensor(losses, dtype=torch.float64), fit.losses[-fit.steps :]
    )
    assert all(p.ndim == 1 and p.shape == points[0].shape for p in points)
    assert not torch.equal(points[0], points[-1])
    # Looking on changes nothing.
    assert torch.equal(fit.losses, fitted(pair).losses)


@every_kind
def test_a_true_answer_of_any_callback_stops_the_fit(method):
    seen = []
    fit = Pair(method, problem("linear")).fit(
        callbacks=[lambda step, *_: step == 2, lambda step, *_: seen.append(step)]
    )
    assert seen == [1, 2]
    assert fit.status is Status.INTERRUPTED
    assert fit.steps == 2
    assert is_usable(fit)


@every_kind
def test_ctrl_c_between_steps_returns_the_fit_so_far(method):
    def callback(step, loss, x):
        if step == 2:
            raise KeyboardInterrupt

    fit = Pair(method, problem("linear")).fit(callbacks=[callback])
    assert fit.status is Status.INTERRUPTED
    assert "start=fit" in fit.message
    assert is_usable(fit)


def interrupting(program, call):
    """Return a program during whose n-th call the user presses Ctrl-C."""
    calls = itertools.count(1)

    def interrupted(x, y=None):
        if next(calls) == call:
            raise KeyboardInterrupt
        program(x, y)

    return interrupted


def calls_of(function):
    """Count how often a program is called."""
    calls = itertools.count()
    case = problem("linear")

    def counting(x, y=None):
        next(calls)
        case.program(x, y)

    function(counting, case.data)
    return next(calls)


@every_kind
def test_ctrl_c_at_any_moment_ends_the_fit(method):
    case = problem("linear")
    before = calls_of(Problem.build)
    after = calls_of(lambda p, data: probsl.fit(p, data, METHODS[method]))
    assert after > before + 5
    # Some moments of the whole: nearer together at first, where searches begin.
    ended = []
    for call in sorted(
        {before + round((after - before) * (i / 12) ** 2) for i in range(13)}
    ):
        program = interrupting(case.program, max(call, before + 1))
        try:
            fit = probsl.fit(program, case.data, METHODS[method])
        except KeyboardInterrupt:
            # Before its first step there is no fit to return.
            ended.append(False)
        else:
            assert fit.status is Status.INTERRUPTED, f"call {call} of {after}"
            assert is_usable(fit)
            ended.append(True)
    assert any(ended)


@pytest.mark.parametrize(
    "method",
    [
        lambda start: probsl.MAP(start=start),
        lambda start: probsl.SVI(AutoNormal, start=start),
    ],
    ids=["MAP", "SVI"],
)
def test_a_stopped_fit_goes_on_from_where_it_is(method):
    case = problem("mixed model")
    stopped = probsl.fit(
        case.program, case.data, method(None), callbacks=[lambda step, *_: step == 3]
    )
    resumed = probsl.fit(case.program, case.data, method(stopped))
    whole = probsl.fit(case.program, case.data, method(None))
    assert resumed.status is Status.CONVERGED
    assert resumed.losses[0] < whole.losses[0]
    # Two ways to one optimum, each as near as its tolerance.
    for name, value in whole.point().items():
        torch.testing.assert_close(resumed.point()[name], value, rtol=1e-4, atol=1e-4)


def test_max_steps_is_told_with_what_to_do():
    case = problem("linear")
    method = probsl.MAP(max_steps=2)
    fit = probsl.fit(case.program, case.data, method)
    assert fit.status is Status.MAX_STEPS
    assert fit.steps == 2
    assert "raise max_steps" in fit.message


@pytest.mark.parametrize(
    "method",
    [
        probsl.MAP(optimizer=ADAM, max_steps=100),
        probsl.SVI(AutoNormal, optimizer=ADAM, max_steps=100),
    ],
    ids=["MAP", "SVI"],
)
def test_an_objective_that_is_not_finite_is_told(method):
    def program(y=None):
        mu = pyro.sample("mu", pyro.distributions.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            # Finite at zero alone, where the dry run looks.
            scale = (1e-12 - mu * mu).sqrt()
            pyro.factor("broken", scale)
            pyro.sample("y", pyro.distributions.Normal(mu, 1.0), obs=y)

    fit = probsl.fit(program, {"y": torch.ones(3)}, method)
    assert fit.status is Status.NONFINITE
    assert "start=" in fit.message
    assert fit.status_sites == ("broken",)
