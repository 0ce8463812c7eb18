"""What every inner minimizer keeps, on one table of problems.

It ends at the known minimum, or with the ending that is true; no accepted step raises
the objective by more than rounding; and it can be interrupted anywhere, with the best
point so far.
"""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from probsl.engine.ending import Ending
from probsl.engine.minimize.descent import Descent
from probsl.engine.minimize.kinks import cross_kinks
from probsl.engine.minimize.l1_penalty import L1Penalty
from probsl.engine.minimize.landscape import Landscape
from probsl.engine.minimize.many import minimize_many
from probsl.engine.minimize.minimize import SearchOptions, minimize

DTYPES = {"float64": torch.float64, "float32": torch.float32}
CONVERGED, UNBOUNDED = Ending.CONVERGED, Ending.UNBOUNDED


@dataclass
class Result:
    """The end of one search; the ending is None if the minimizer has none."""

    x: Tensor
    value: float
    ending: Ending | None
    losses: list[float]


# The minimizers.


def newton(objective, start, l1, callback):
    found = minimize(objective, start, l1=l1, callback=callback)
    return [Result(found.x, found.value, found.ending, list(found.losses))]


def limited_memory(objective, start, l1, callback):
    options = SearchOptions(newton_limit=0)
    found = minimize(objective, start, options, l1=l1, callback=callback)
    return [Result(found.x, found.value, found.ending, list(found.losses))]


def over_kinks(objective, start, l1, callback):
    landscape = Landscape(objective, l1)
    descent = Descent(
        landscape, start, tolerance=None, max_steps=1000, callback=callback
    )
    try:
        end = descent.begin()
        if end is None:
            descent.measure(exact=True)
            end = cross_kinks(descent)
        ending = None if end is None else end.ending  # None: nothing but smooth
    except KeyboardInterrupt:
        ending = Ending.INTERRUPTED
    return [Result(descent.x, descent.value, ending, descent.losses)]


def batch(objective, start, l1, callback):
    near = torch.tensor([0.0, 0.25, -0.25]).to(start)[:, None]
    starts = start + near * torch.cos(torch.arange(len(start))).to(start)
    many = minimize_many(objective, starts, l1=l1, callback=callback)
    other = Ending.INTERRUPTED if many.interrupted else None
    return [
        Result(x, float(value), CONVERGED if done else other, losses.tolist())
        for x, value, done, losses in zip(
            many.x, many.values, many.converged, many.losses.T, strict=True
        )
    ]


MINIMIZERS = (newton, limited_memory, over_kinks, batch)
SMOOTH = (newton, limited_memory, batch)


# The problems.


@dataclass
class Problem:
    """A function of data and a point, and what is known of its minimum.

    Attributes
    ----------
    function, start
        The objective without a penalty, and where to begin.
    lowest
        The infimum, penalty included.
    goal
        The minimum, if there is one.
    ending
        The true ending, for those minimizers that classify it.
    weight
        The weights of an absolute-value penalty about zero.
    by
        The minimizers it is for.
    """

    function: object
    start: tuple
    lowest: float
    goal: tuple | None = None
    ending: Ending = CONVERGED
    weight: tuple | None = None
    by: tuple = MINIMIZERS


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


X, Y = normal(60, 3), (normal(60, seed=1) > 0).double()
SCALE = torch.logspace(-2, 2, 5, dtype=torch.float64)


def banana(x):
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def logistic(x, y=Y):
    eta = X.to(x) @ x
    return (softplus(eta) - y.to(x) * eta).mean()


def logistic_minimum():
    """Return the minimum of the logistic regression, by Newton's method."""
    w = torch.zeros(3, dtype=torch.float64)
    for _ in range(20):
        p = torch.sigmoid(X @ w)
        hessian = X.T @ ((p * (1 - p))[:, None] * X)
        w = w - torch.linalg.solve(hessian, X.T @ (p - Y))
    return float(logistic(w)), tuple(w.tolist())


PROBLEMS = {
    "quadratic": Problem(
        lambda x: (x[0] - 1) ** 2 + (x[0] + 2 * x[1]) ** 2, (3.0, 3.0), 0.0, (1, -0.5)
    ),
    "ill-scaled": Problem(
        lambda x: 0.5 * ((SCALE.to(x) * x - 1) ** 2).sum(),
        (0.0,) * 5,
        0.0,
        tuple((1 / SCALE).tolist()),
    ),
    "Rosenbrock": Problem(banana, (-1.2, 1.0), 0.0, (1.0, 1.0)),
    "logistic": Problem(logistic, (0.0,) * 3, *logistic_minimum()),
    "separable": Problem(
        lambda x: logistic(x, (X[:, 0] > 0).double()),
        (0.0,) * 3,
        0.0,
        ending=UNBOUNDED,
        by=(newton, limited_memory),
    ),
    "flat direction": Problem(
        lambda x: (x[0] + x[1] - 1) ** 2 + x[2] ** 2,
        (0.0, 0.0, 2.0),
        0.0,
        ending=Ending.UNIDENTIFIED,
        by=(newton,),
    ),
    "slope without end": Problem(
        lambda x: x[0] + (x[1] - 3) ** 2,
        (0.0, 0.0),
        -torch.inf,
        ending=UNBOUNDED,
        by=(newton, limited_memory),
    ),
    "not a number on one side": Problem(
        lambda x: (x - torch.log(x)).sum(), (9.0, 0.3), 2.0, (1.0, 1.0)
    ),
    "not finite at the start": Problem(
        lambda x: torch.log(x).sum(),
        (-1.0, 1.0),
        torch.nan,
        ending=Ending.NONFINITE,
        by=(newton, limited_memory, over_kinks),
    ),
    "kink": Problem(
        lambda x: x.abs().sum(), (0.7, -2.0), 0.0, (0.0, 0.0), by=(newton, over_kinks)
    ),
    "narrow valley of kinks": Problem(
        lambda x: 8 * (x[0] ** 2 - x[1]).abs() + (1 - x[0]) ** 2,
        (-1.2, 1.0),
        0.0,
        (1.0, 1.0),
        by=(newton, over_kinks),
    ),
    "lasso": Problem(
        lambda x: 0.5 * ((x - x.new_tensor([3.0, -0.5, 0.2, -2.0])) ** 2).sum(),
        (1.0, 1.0, 1.0, 1.0),
        2.5 + 0.125 + 0.02 + 1.5,
        (2.0, 0.0, 0.0, -1.0),
        weight=(1.0,) * 4,
    ),
    "penalized in part": Problem(
        lambda x: 0.5 * (x[0] - 2) ** 2 + 0.5 * (x[1] - 2) ** 2 - x[0] * x[1] / 2,
        (0.0, 0.0),
        4 / 3,
        (8 / 3, 4 / 3),
        weight=(0.0, 2.0),
    ),
}
CASES = [
    pytest.param(problem, minimizer, dtype, id=f"{name}-{minimizer.__name__}-{word}")
    for name, problem in PROBLEMS.items()
    for minimizer in problem.by
    for word, dtype in DTYPES.items()
]


def run(problem, minimizer, dtype, callback=None, objective=None):
    start = torch.tensor(problem.start, dtype=dtype)
    l1 = None
    if problem.weight is not None:
        l1 = L1Penalty(torch.zeros_like(start), start.new_tensor(problem.weight))
    return minimizer(objective or problem.function, start, l1, callback)


def at(problem, x):
    """Return the objective at a point, penalty included."""
    value = float(problem.function(x))
    if problem.weight is None:
        return value
    return value + float((x.new_tensor(problem.weight) * x.abs()).sum())


def noise(losses, dtype):
    return 20 * torch.finfo(dtype).eps * max(1.0, *map(abs, losses))


@pytest.mark.parametrize(("problem", "minimizer", "dtype"), CASES)
def test_the_end_is_the_minimum_or_the_true_ending(problem, minimizer, dtype):
    for found in run(problem, minimizer, dtype):
        assert found.x.dtype == dtype
        if found.ending is not None or minimizer is batch:
            assert found.ending is problem.ending
        if problem.ending in (CONVERGED, Ending.UNIDENTIFIED):
            left = 1e-8 if dtype is torch.float64 else 3e-4
            assert found.value == pytest.approx(problem.lowest, abs=left)
        if problem.goal is not None:
            goal = found.x.new_tensor(problem.goal)
            near = 1e-3 if dtype is torch.float64 else 3e-2
            torch.testing.assert_close(found.x, goal, rtol=near, atol=near)
        if problem.weight is not None and minimizer is not over_kinks:
            assert torch.equal(found.x == 0, goal == 0)


@pytest.mark.parametrize(("problem", "minimizer", "dtype"), CASES)
def test_no_step_raises_the_objective(problem, minimizer, dtype):
    for found in run(problem, minimizer, dtype):
        for before, after in pairwise(found.losses):
            assert after <= before + noise([before, after], dtype)
        if problem.ending is not Ending.NONFINITE:
            assert found.value == found.losses[-1]
            assert found.value == pytest.approx(at(problem, found.x), rel=1e-5)


INTERRUPTED = [case for case in CASES if case.values[2] is torch.float64]


@pytest.mark.parametrize(("problem", "minimizer", "dtype"), INTERRUPTED)
@pytest.mark.parametrize("step", [1, 3, 8])
def test_a_callback_stops_it_anywhere(problem, minimizer, dtype, step):
    seen = []

    def callback(number, value, x):
        seen.append((number, value, x.clone()))
        x.zero_()  # what a callback gets is its own
        return number == step

    results = run(problem, minimizer, dtype, callback)
    assert [number for number, _, _ in seen] == list(range(1, len(seen) + 1))
    if len(seen) < step:
        return
    assert len(seen) == step
    assert any(found.ending is Ending.INTERRUPTED for found in results)
    best = min(results, key=lambda found: found.value)
    assert seen[-1][1] == best.value
    assert torch.equal(seen[-1][2], best.x)


@pytest.mark.parametrize(("problem", "minimizer", "dtype"), INTERRUPTED)
@pytest.mark.parametrize("call", [2, 5, 13, 21])
def test_an_interrupt_in_the_objective_loses_nothing(problem, minimizer, dtype, call):
    calls = 0

    def objective(x):
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return problem.function(x)

    results = run(problem, minimizer, dtype, objective=objective)
    if calls < call:
        return
    assert calls == call
    assert any(found.ending is Ending.INTERRUPTED for found in results)
    for found in results:
        assert found.value == pytest.approx(min(found.losses), nan_ok=True)
        if found.value == found.value:
            assert found.value == pytest.approx(at(problem, found.x))


# Penalties that differ within a batch.


Z = normal(80, 8) + 2 * normal(80, 1, seed=2)
RESPONSE = Z[:, :3] @ torch.tensor([2.0, -1.0, 0.5]).double() + normal(80, seed=3)


def squares(b):
    return 0.5 * ((RESPONSE - Z @ b) ** 2).mean()


def classes(b):
    return (softplus(Z @ b) - (RESPONSE > 0) * (Z @ b)).mean()


@pytest.mark.parametrize("objective", [squares, classes])
def test_a_path_in_a_batch_is_that_of_single_fits(objective):
    """Zeros are the same, and the values agree to 1e-8."""
    weights = torch.logspace(-4, 1, 12, dtype=torch.float64)
    zero = torch.zeros(8, dtype=torch.float64)
    center = zero + 0.3 * (torch.arange(8) == 7)
    path = L1Penalty(center, weights[:, None].expand(12, 8))
    options = SearchOptions(tolerance=1e-18)
    many = minimize_many(objective, zero.expand(12, 8), None, options, l1=path)
    assert many.converged.all()
    counts = set()
    for k, weight in enumerate(weights):
        single = minimize(objective, zero, l1=L1Penalty(center, weight.expand(8)))
        assert single.ending is CONVERGED
        at_center = many.x[k] == center
        assert torch.equal(at_center, single.x == center)
        torch.testing.assert_close(many.x[k], single.x, rtol=0, atol=1e-8)
        assert float(many.values[k]) == pytest.approx(single.value, abs=1e-12)
        counts.add(int(at_center.sum()))
    assert {0, 8} < counts
    assert many.steps.max() < 100


def test_each_member_of_a_batch_may_have_its_own_center():
    centers = normal(5, 4)
    penalty = L1Penalty(centers, torch.full((4,), 10.0, dtype=torch.float64))
    starts = torch.zeros(5, 4, dtype=torch.float64)
    many = minimize_many(lambda x: (x**2).sum(), starts, l1=penalty)
    assert torch.equal(many.x, centers)
