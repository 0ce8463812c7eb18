"""Many minimizations in lockstep: each ends where it would have by itself."""

import math
from dataclasses import replace

import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import probsl
from probsl import Status
from probsl.engine.ending import Ending
from probsl.engine.minimize.l1_penalty import L1Penalty
from probsl.engine.minimize.many import minimize_many, vectorizes
from probsl.engine.minimize.minimize import SearchOptions, minimize
from probsl.isolation.calls import isolated
from probsl.program.problem import Problem
from probsl.program.scoring import Batch

DTYPES = [torch.float64, torch.float32]


def uniform(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (4 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 2).to(
        dtype
    )


def banana(x):
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def logistic_data(rows=200, columns=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, columns, generator=generator, dtype=dtype)
    weights = torch.linspace(-1, 1, columns, dtype=dtype)
    chance = torch.sigmoid(x @ weights)
    y = (torch.rand(rows, generator=generator, dtype=dtype) < chance).to(dtype)
    return {"x": x, "y": y}


def logistic(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


# The engine.


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_follow_the_banana(dtype):
    many = minimize_many(banana, uniform(20, 2, dtype=dtype))
    assert many.x.dtype == dtype
    assert many.converged.all()
    # The valley bends 2,500 times less along than across.
    assert (many.x - 1).abs().max() < (1e-3 if dtype is torch.float64 else 0.1)
    assert torch.equal(many.losses[-1], many.values)
    assert (many.losses.diff(dim=0) <= 1e-5 * many.losses[:-1].clamp(min=1)).all()


@pytest.mark.parametrize("spread", [0, 4, 8])
def test_bad_scales_are_no_harder(spread):
    scale = torch.logspace(-spread, spread, 9, dtype=torch.float64)
    starts = uniform(6, 9) / scale
    many = minimize_many(lambda x: 0.5 * ((scale * x - 1) ** 2).sum(), starts)
    torch.testing.assert_close(scale * many.x, torch.ones_like(starts))
    assert many.steps.max() < 12


def test_ends_are_those_of_single_searches():
    def bumpy(x):
        return (x**4 / 4 - x**2 + 0.3 * x).sum() + 0.5 * (x[0] - x[1]) ** 2

    starts = uniform(16, 2)
    many = minimize_many(bumpy, starts, options=SearchOptions(tolerance=1e-14))
    assert many.converged.all()
    # Each is at a minimum that a single search would not leave.
    for end, value in zip(many.x, many.values, strict=True):
        single = minimize(bumpy, end)
        assert single.ending is Ending.CONVERGED
        torch.testing.assert_close(single.x, end, rtol=1e-6, atol=1e-6)
        assert single.value == pytest.approx(float(value))
    singles = [minimize(bumpy, start).value for start in starts]
    assert min(singles) == pytest.approx(float(many.values.min()))


def test_a_start_that_is_not_finite_ends_there_and_holds_up_nobody():
    def objective(x):
        return (torch.log(x) ** 2).sum()

    starts = torch.tensor([[2.0], [-1.0], [math.nan], [0.5]], dtype=torch.float64)
    many = minimize_many(objective, starts)
    assert many.converged.tolist() == [True, False, False, True]
    assert many.steps[1:3].tolist() == [0, 0]
    torch.testing.assert_close(
        many.x[[0, 3]], torch.ones(2, 1).double(), rtol=1e-4, atol=0
    )


def test_walls_are_kept_off():
    def objective(x):
        return x.sum() - torch.log(x).sum()  # not a number below zero

    many = minimize_many(objective, uniform(8, 3).abs() * 20 + 0.01)
    torch.testing.assert_close(many.x, torch.ones_like(many.x), rtol=1e-4, atol=0)


def test_one_that_runs_off_does_not_hold_up_the_others():
    def objective(x):  # a bowl about -2, and a slope without end beyond 0
        return torch.where(x < 0, (x + 2) ** 2, 4 - x).sum()

    starts = torch.tensor([[-1.0], [-3.0], [-0.5], [1.0]], dtype=torch.float64)
    many = minimize_many(
        objective, starts, patience=2.0, options=SearchOptions(max_steps=500)
    )
    assert many.converged.tolist() == [True, True, True, False]
    torch.testing.assert_close(many.x[:3], torch.full((3, 1), -2.0).double())
    assert len(many.losses) < 30


def test_a_penalty_gives_exact_zeros():
    data = logistic_data()
    x, y = data["x"], data["y"]

    def objective(w):
        return torch.nn.functional.softplus(x @ w).mean() - (y * (x @ w)).mean()

    l1 = L1Penalty(torch.zeros(5).double(), torch.full((5,), 0.05).double())
    single = minimize(objective, torch.zeros(5).double(), l1=l1)
    many = minimize_many(
        objective, uniform(8, 5), l1=l1, options=SearchOptions(tolerance=1e-13)
    )
    assert (single.x == 0).any()
    for end in many.x:
        assert torch.equal(end == 0, single.x == 0)
        torch.testing.assert_close(end, single.x, rtol=1e-5, atol=1e-6)


def test_a_matrix_that_cannot_be_factorized_is_a_bad_point_for_one_alone():
    def objective(x):
        matrix = torch.diag(torch.stack([x[0], x[0] + 1]))
        return x.sum() - torch.linalg.cholesky(matrix).diagonal().log().sum()

    starts = torch.tensor([[0.1], [3.0], [-5.0]], dtype=torch.float64)
    many = minimize_many(objective, starts)
    assert many.converged.tolist() == [True, True, False]
    torch.testing.assert_close(many.x[0], many.x[1], rtol=1e-4, atol=0)


def test_callbacks_see_every_round_and_may_stop_it():
    seen = []
    many = minimize_many(banana, uniform(4, 2), callback=lambda *s: seen.append(s))
    assert [s[0] for s in seen] == list(range(1, len(many.losses)))
    assert seen[-1][1] == float(many.values.min())
    stopped = minimize_many(banana, uniform(4, 2), callback=lambda step, *_: step == 3)
    assert stopped.interrupted
    assert len(stopped.losses) == 4
    assert stopped.values.isfinite().all()


def test_what_vmap_cannot_run_is_told():
    starts = uniform(3, 2)
    assert vectorizes(banana, starts)
    assert not vectorizes(lambda x: x.sum() if x[0] > 0 else -x.sum(), starts)
    calls = []

    def differs(x):  # another function at every call
        calls.append(x)
        return len(calls) * x.sum()

    assert not vectorizes(differs, starts)


# Related problems.


def objective_of(problem, layout):
    def objective(x: Tensor, extra: dict) -> Tensor:
        values = layout.constrain(x)
        batch = Batch(problem.arguments.values, extra["weights"])
        density = problem.log_density(
            values, values, batch, prior_weights={"w": extra["prior"]}
        )
        return -density / problem.size

    return objective


def test_bootstrap_refits_are_those_of_single_fits():
    data = logistic_data()
    problem = Problem.build(logistic, data)
    layout = problem.coordinates()
    generator = torch.Generator().manual_seed(2)
    rows = torch.randint(200, (20, 200), generator=generator)
    weights = torch.stack([r.bincount(minlength=200) for r in rows]).double()
    extra = {"weights": weights, "prior": torch.ones(20).double()}
    with isolated(problem.dtype):
        starts = torch.zeros(20, layout.size)
        objective = objective_of(problem, layout)
        assert vectorizes(objective, starts, extra)
        many = minimize_many(
            objective, starts, extra, options=SearchOptions(tolerance=1e-14)
        )
    assert many.converged.all()
    for end, weight in zip(many.x, weights, strict=True):
        single = probsl.fit(logistic, data, probsl.MAP(), weights=weight)
        torch.testing.assert_close(end, single.point()["w"], rtol=0, atol=1e-5)


def test_prior_weights_are_those_of_single_fits():
    data = logistic_data()
    problem = Problem.build(logistic, data)
    layout = problem.coordinates()
    prior = torch.logspace(-2, 3, 12, dtype=torch.float64)
    extra = {"weights": torch.ones(12, 200).double(), "prior": prior}
    with isolated(problem.dtype):
        starts = torch.zeros(12, layout.size)
        many = minimize_many(
            objective_of(problem, layout),
            starts,
            extra,
            options=SearchOptions(tolerance=1e-14),
        )
    for end, weight in zip(many.x, prior.tolist(), strict=True):
        single = probsl.fit(logistic, data, probsl.MAP(prior_weight=weight))
        torch.testing.assert_close(end, single.point()["w"], rtol=0, atol=1e-5)


# Starts of a fit, and their basins.


def two_humps(y=None):
    """The sign of the location is lost; its prior prefers one a little."""
    location = pyro.sample("location", dist.Normal(0.2, 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(location.abs(), 0.5), obs=y)


def mixture(y=None):
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    with pyro.plate("rows", len(y)):
        half = dist.Categorical(torch.full((2,), 0.5))
        pyro.sample("y", dist.MixtureSameFamily(half, dist.Normal(means, 0.5)), obs=y)


def wave(x, y=None):
    frequency = pyro.sample("frequency", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(torch.sin(frequency * x), scale), obs=y)


def wave_data():
    generator = torch.Generator().manual_seed(3)
    x = torch.linspace(-3, 3, 100, dtype=torch.float64)
    noise = torch.randn(100, generator=generator, dtype=torch.float64)
    return {"x": x, "y": torch.sin(1.7 * x) + 0.3 * noise}


def clusters():
    generator = torch.Generator().manual_seed(4)
    noise = 0.5 * torch.randn(80, generator=generator, dtype=torch.float64)
    return {"y": noise + torch.tensor([-2.0, 2.0]).double().repeat(40)}


HUMPS = {"y": torch.tensor([1.0, 1.4, 0.8, 1.2], dtype=torch.float64)}


def singles(program, data, method, count, seed=0):
    """Fit from each of the starts by itself; return the fits that converged."""
    problem = Problem.build(program, data)
    layout = problem.coordinates()
    generator = torch.Generator().manual_seed(seed + 1)
    fits = [probsl.fit(program, data, method, seed=seed)]
    for _ in range(count - 1):
        x = 4 * torch.rand(layout.size, generator=generator, dtype=problem.dtype) - 2
        start = layout.constrain(x)
        fits.append(probsl.fit(program, data, replace(method, start=start), seed=seed))
    return [f for f in fits if f.status is Status.CONVERGED]


@pytest.mark.parametrize(
    ("program", "data"),
    [
        (logistic, logistic_data()),
        (two_humps, HUMPS),
        (mixture, clusters()),
        (wave, wave_data()),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
@pytest.mark.parametrize("method", [probsl.MLE(), probsl.MAP()], ids=["MLE", "MAP"])
def test_many_starts_find_the_best_of_single_fits(program, data, method):
    fit = probsl.fit(program, data, replace(method, starts=8))
    best = min(float(f.losses[-1]) for f in singles(program, data, method, 8))
    assert fit.status is Status.CONVERGED
    assert float(fit.losses[-1]) == pytest.approx(best, rel=1e-9)
    assert sum(b.count for b in fit.basins) == 8
    assert fit.basins[0].value == float(fit.losses[-1])
    assert fit.basins[0].status is Status.CONVERGED
    assert fit.note.startswith("8 starts found")


def test_one_basin_is_one():
    fit = probsl.fit(logistic, logistic_data(), probsl.MAP(starts=8))
    assert [b.count for b in fit.basins] == [8]
    assert fit.note.startswith("8 starts found 1 basin: objective ")
    torch.testing.assert_close(fit.basins[0].values["w"], fit.point()["w"])


def test_two_humps_are_two_basins():
    fit = probsl.fit(two_humps, HUMPS, probsl.MAP(starts=12))
    low, high = fit.basins
    assert low.count + high.count == 12
    assert low.values["location"] > 0 > high.values["location"]
    assert low.value < high.value


def test_switched_labels_are_two_basins_of_one_height():
    fit = probsl.fit(mixture, clusters(), probsl.MLE(starts=12))
    low, high = fit.basins
    assert low.value == pytest.approx(high.value, rel=1e-6)
    torch.testing.assert_close(
        low.values["means"], high.values["means"].flip(0), rtol=1e-3, atol=1e-3
    )
    assert low.count + high.count == 12


@pytest.mark.parametrize("form", [torch.add, torch.mul], ids=["line", "hyperbola"])
def test_a_free_direction_is_one_basin(form):
    def program(y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(form(a, b), 1.0), obs=y)

    fit = probsl.fit(program, HUMPS, probsl.MLE(starts=8))
    assert fit.status is Status.UNIDENTIFIED
    assert fit.status_sites == ("a", "b")
    # The two branches of a hyperbola are as low as each other, and count as one.
    assert [b.count for b in fit.basins] == [8]


def test_a_start_that_runs_off_does_not_win():
    def program(y=None):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        # A bowl about -1, and a slope without end on the right.
        depth = torch.where(x < 0, -((x + 1) ** 2), 3 * x - 1)
        pyro.factor("landscape", depth)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    fit = probsl.fit(program, HUMPS, probsl.MLE(starts=8))
    assert fit.status is Status.CONVERGED
    torch.testing.assert_close(fit.point()["x"], torch.tensor(-1.0).double())
    statuses = {b.status for b in fit.basins}
    assert Status.UNBOUNDED in statuses
    assert fit.basins[0].value < float(fit.losses[-1])
    assert "UNBOUNDED" in fit.note


def test_separated_classes_run_off_from_everywhere():
    data = {"x": torch.linspace(-1, 1, 10).double()[:, None]}
    data["y"] = (data["x"][:, 0] > 0).double()
    fit = probsl.fit(logistic, data, probsl.MLE(starts=6))
    assert fit.status is Status.UNBOUNDED
    assert [b.count for b in fit.basins] == [6]


def test_what_vmap_cannot_run_is_searched_in_turn():
    def program(y=None):
        location = pyro.sample("location", dist.Normal(0.2, 2.0))
        side = location if float(location.detach()) > 0 else -location
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(side, 0.5), obs=y)

    together = probsl.fit(two_humps, HUMPS, probsl.MAP(starts=12))
    in_turn = probsl.fit(program, HUMPS, probsl.MAP(starts=12))
    assert "one after another" in in_turn.note
    assert "one after another" not in together.note
    assert [b.count for b in in_turn.basins] == [b.count for b in together.basins]
    torch.testing.assert_close(in_turn.point(), together.point())


def test_laplace_priors_give_exact_zeros_from_many_starts():
    def program(x, y=None):
        prior = dist.Laplace(torch.zeros(x.shape[1]), 0.05).to_event(1)
        w = pyro.sample("w", prior)
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    data = logistic_data()
    one, many = (probsl.fit(program, data, probsl.MAP(starts=n)) for n in (1, 8))
    assert (one.point()["w"] == 0).any()
    torch.testing.assert_close(many.point()["w"], one.point()["w"])
    assert torch.equal(many.point()["w"] == 0, one.point()["w"] == 0)
    assert [b.count for b in many.basins] == [8]


@pytest.mark.parametrize("program", [logistic, programs.problem("own parameters")])
def test_the_same_seed_gives_the_same_fit(program):
    case = (program, logistic_data())
    if not callable(program):
        case = (program.program, program.data)
    first, second = (probsl.fit(*case, probsl.MAP(starts=4)) for _ in range(2))
    assert torch.equal(first.losses, second.losses)
    assert first.steps == second.steps
    assert first.note == second.note
    for name, value in first.point().items():
        assert torch.equal(value, second.point()[name])


@pytest.mark.parametrize("last", [1, 3, 8, None])
def test_callbacks_count_the_steps_of_all_starts(last):
    seen = []

    def callback(step, loss, x):
        seen.append((step, loss))
        return step == last

    method = probsl.MAP(starts=4)
    fit = probsl.fit(wave, wave_data(), method, callbacks=[callback])
    assert [s for s, _ in seen] == list(range(1, fit.steps + 1))
    assert math.isfinite(float(fit.losses[-1]))
    if last is None:
        assert fit.status is Status.CONVERGED
        assert seen[-1][1] == pytest.approx(float(fit.losses[-1]))
    else:
        assert fit.status is Status.INTERRUPTED
        assert fit.steps == last


def test_ctrl_c_returns_the_best_so_far():
    def callback(step, loss, x):
        if step == 4:
            raise KeyboardInterrupt

    fit = probsl.fit(wave, wave_data(), probsl.MAP(starts=4), callbacks=[callback])
    assert fit.status is Status.INTERRUPTED
    assert fit.point()["scale"].isfinite()


def test_max_steps_is_told():
    fit = probsl.fit(wave, wave_data(), probsl.MAP(starts=4, max_steps=2))
    assert fit.status is Status.MAX_STEPS
