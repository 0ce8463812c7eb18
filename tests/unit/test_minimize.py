"""The smooth minimizer: where it ends, and what it says about that."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import rosen
from torch.nn.functional import softplus

from probsl.engine.ending import Ending
from probsl.engine.minimize.curvature import Spectrum, trust_region
from probsl.engine.minimize.landscape import Landscape
from probsl.engine.minimize.limited_memory import LimitedMemory
from probsl.engine.minimize.minimize import SearchOptions, minimize

DTYPES = [torch.float64, torch.float32]
# Steps for which a program of a few coordinates should do.
FEW = 80


def vector(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def banana(x):
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def gaussian(y, mean, log_sd):
    return (log_sd + 0.5 * ((y - mean) * torch.exp(-log_sd)) ** 2).mean()


class Counted:
    """An objective that counts its calls."""

    def __init__(self, objective):
        self.objective, self.calls = objective, 0

    def __call__(self, x):
        self.calls += 1
        return self.objective(x)


# Minima.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 10])
def test_follows_the_banana(size, dtype):
    start = torch.zeros(size, dtype=dtype)
    start[0] = -1.2 if size == 2 else 0.5  # from -1.2 ten have a local minimum, too
    minimum = minimize(banana, start)
    assert minimum.ending is Ending.CONVERGED
    assert minimum.x.dtype == dtype
    # Quadratic convergence ends at rounding (the condition is 3,500), not at tolerance.
    assert (minimum.x - 1).abs().max() < 1e4 * torch.finfo(dtype).eps
    assert minimum.steps == len(minimum.losses) - 1 < FEW
    assert minimum.losses[0] == pytest.approx(rosen(start.numpy()), rel=1e-5)
    assert minimum.value == minimum.losses[-1] == float(banana(minimum.x))


def test_hessian_is_that_of_the_end():
    minimum = minimize(banana, vector(-1.2, 1.0))
    expected = torch.autograd.functional.hessian(banana, minimum.x)
    torch.testing.assert_close(minimum.hessian, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_badly_scaled_coordinates_need_no_more_steps(dtype):
    scale = torch.logspace(-8, 8, 9, dtype=dtype)
    goal = 1 / scale
    minimum = minimize(
        lambda x: 0.5 * ((scale * (x - goal)) ** 2).sum(),
        torch.zeros(9, dtype=dtype),
    )
    assert minimum.ending is Ending.CONVERGED
    assert minimum.steps < 10
    torch.testing.assert_close(minimum.x * scale, torch.ones(9, dtype=dtype))


def test_correlated_and_badly_scaled():
    rotation = torch.linalg.qr(normal(8, 8)).Q
    curvature = rotation * torch.logspace(-4, 4, 8, dtype=torch.float64) @ rotation.T
    minimum = minimize(
        lambda x: 0.5 * (x - 1) @ curvature @ (x - 1), torch.zeros(8).double()
    )
    assert minimum.ending is Ending.CONVERGED
    torch.testing.assert_close(minimum.x, torch.ones(8).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("goal", [1e6, 1e9, -1e12])
def test_a_far_minimum_is_no_runaway(goal):
    minimum = minimize(lambda x: 0.5 * ((x - goal) ** 2).sum(), vector(0.0))
    assert minimum.ending is Ending.CONVERGED
    assert float(minimum.x) == pytest.approx(goal, rel=1e-12)


def test_a_far_minimum_of_linear_growth_is_no_runaway():
    minimum = minimize(lambda x: softplus(-2 * (x[0] - 1e5)) + x[0], vector(0.0))
    assert minimum.ending is Ending.CONVERGED
    assert float(minimum.x) == pytest.approx(1e5, rel=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mean", "log_sd"), [(1e6, 0.0), (10.0, -12.0), (-1e3, 9.0)])
def test_a_bad_start_of_the_scale(mean, log_sd, dtype):
    y = mean + torch.arange(5, dtype=dtype)
    minimum = minimize(
        lambda x: gaussian(y, x[0], x[1]), vector(0.0, log_sd, dtype=dtype)
    )
    assert minimum.ending is Ending.CONVERGED
    expected = vector(mean + 2, math.log(2) / 2, dtype=dtype)
    torch.testing.assert_close(minimum.x, expected)


@pytest.mark.parametrize(
    ("objective", "start", "goal"),
    [
        (lambda x: x[0] ** 2 + (x[1] ** 2 - 1) ** 2, (1.0, 0.0), (0.0, 1.0)),
        (lambda x: x[0] * x[1] + x[0] ** 4 + x[1] ** 4, (0.0, 0.0), (0.5, 0.5)),
        (lambda x: torch.cos(x).sum(), (0.0, 0.0), (math.pi, math.pi)),
    ],
)
def test_leaves_a_saddle_where_the_gradient_is_zero(objective, start, goal):
    minimum = minimize(objective, vector(*start))
    assert minimum.ending is Ending.CONVERGED
    torch.testing.assert_close(minimum.x.abs(), vector(*goal))


def test_a_flat_minimum_of_fourth_order():
    minimum = minimize(lambda x: (x**4).sum(), vector(1.0, 2.0))
    assert minimum.ending is Ending.CONVERGED
    assert minimum.x.abs().max() < 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
def test_backs_off_where_the_objective_is_no_number(dtype):
    minimum = minimize(
        lambda x: (x - torch.log(x)).sum() - torch.log(4 - x.sum()),
        vector(1e-3, 3.9, dtype=dtype),
    )
    assert minimum.ending is Ending.CONVERGED
    # 1 - 1/x + 1/(4 - 2x) = 0
    expected = torch.full((2,), (7 - math.sqrt(17)) / 4, dtype=dtype)
    torch.testing.assert_close(minimum.x, expected)


def test_backs_off_where_a_matrix_has_no_factor():
    def objective(x):
        factor = torch.linalg.cholesky(torch.eye(2).double() * x[0] + x[1] - 1)
        return x[0] + x[1] ** 2 - torch.log(factor.diagonal()).sum()

    minimum = minimize(objective, vector(20.0, 5.0))
    assert minimum.ending is Ending.CONVERGED
    with pytest.raises(torch.linalg.LinAlgError):
        objective(vector(-1.0, 1.0))
    failing = minimize(objective, vector(-1.0, 1.0))
    assert failing.ending is Ending.NONFINITE


def test_works_under_no_grad():
    with torch.no_grad():
        assert minimize(banana, vector(-1.2, 1.0)).ending is Ending.CONVERGED
        assert not torch.is_grad_enabled()


def test_does_not_touch_the_start():
    start = vector(-1.2, 1.0).requires_grad_()
    minimum = minimize(banana, start)
    assert start.tolist() == [-1.2, 1.0]
    assert not minimum.x.requires_grad


# Many coordinates.


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thousand_coordinates_without_a_hessian(dtype):
    curvature = torch.logspace(-1, 2, 1000, dtype=dtype)
    minimum = minimize(
        lambda x: 0.5 * (curvature * (x - 1) ** 2).mean() * 10,
        torch.zeros(1000, dtype=dtype),
    )
    assert minimum.ending is Ending.CONVERGED
    assert minimum.hessian is None
    assert (minimum.x - 1).abs().max() < (1e-3 if dtype == torch.float64 else 0.1)


def test_without_a_hessian_it_sees_runaways_too():
    X = normal(60, 3)
    sign = torch.where(X[:, 0] > 0, -1.0, 1.0)
    minimum = minimize(
        lambda b: softplus(sign * (X @ b)).mean(),
        torch.zeros(3).double(),
        options=SearchOptions(newton_limit=2),
    )
    assert minimum.ending is Ending.UNBOUNDED
    assert minimum.flattening
    assert 0 in minimum.coordinates


# Null directions.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "spread"), [(300, 0.0), (300, 0.3), (1000, 0.0)])
def test_without_a_hessian_it_sees_separated_classes(rows, spread, dtype):
    x = normal(rows, 500, dtype=dtype)
    y = (x[:, 0] > 0).to(dtype)

    def objective(w, penalty=0.0):
        return (softplus(x @ w) - y * (x @ w)).mean() + penalty * w @ w

    start = spread * normal(500, seed=1, dtype=dtype)
    assert minimize(objective, start).ending is Ending.UNBOUNDED
    penalized = minimize(lambda w: objective(w, 1e-3), start)
    assert penalized.ending is Ending.CONVERGED
    # Nor does it take a minimum for a tail where there is no way to go.
    again = minimize(lambda w: objective(w, 1e-3), penalized.x)
    assert again.ending is Ending.CONVERGED


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_names_collinear_columns(scale, dtype):
    X = normal(50, 3, dtype=dtype)
    X = torch.cat([X, scale * (2 * X[:, :1] - X[:, 2:])], 1)
    y = X[:, :3] @ vector(1.0, 2.0, 3.0, dtype=dtype) + normal(50, seed=1, dtype=dtype)
    minimum = minimize(
        lambda b: 0.5 * ((y - X @ b) ** 2).mean(), torch.zeros(4, dtype=dtype)
    )
    assert minimum.ending is Ending.UNIDENTIFIED
    assert minimum.coordinates == (0, 2, 3)
    fitted = np.linalg.lstsq(X.double().numpy(), y.double().numpy(), rcond=1e-5)[0]
    expected = torch.from_numpy(X.double().numpy() @ fitted).to(dtype)
    torch.testing.assert_close(X @ minimum.x, expected, rtol=1e-4, atol=1e-4)
    null = minimum.null_space
    assert null.shape == (4, 1)
    columns = null / X.norm(dim=0)[:, None]
    assert (X @ columns).abs().max() < 100 * torch.finfo(dtype).eps


def test_names_the_dummy_trap():
    group = torch.arange(60) % 20
    y = normal(60)
    minimum = minimize(
        lambda b: 0.5 * ((y - b[0] - b[1:][group]) ** 2).mean(),
        torch.zeros(21).double(),
    )
    assert minimum.ending is Ending.UNIDENTIFIED
    assert minimum.coordinates == tuple(range(21))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_curved_ridge_counts(dtype):
    minimum = minimize(
        lambda x: (x[0] * x[1] - 2) ** 2 + x[2] ** 2, vector(1.0, 0.5, 3.0, dtype=dtype)
    )
    assert minimum.ending is Ending.UNIDENTIFIED
    assert minimum.coordinates == (0, 1)
    assert minimum.value < 1e-10


def test_a_perfect_fit_with_too_many_coordinates():
    y = vector(28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0) / 10
    minimum = minimize(
        lambda x: 0.5 * ((y - x[0] - torch.exp(x[1]) * x[2:]) ** 2).mean(),
        torch.zeros(10).double(),
    )
    assert minimum.ending is Ending.UNIDENTIFIED
    assert minimum.null_space.shape == (10, 2)
    assert minimum.value < 1e-25


def test_longley_is_no_null_direction():
    from statsmodels.datasets import longley

    data = longley.load_pandas()
    X = torch.tensor(data.exog.to_numpy(dtype=float))
    X = torch.cat([torch.ones(len(X), 1).double(), X], 1)
    y = torch.tensor(data.endog.to_numpy(dtype=float))
    start = torch.zeros(8).double()
    start[-1] = torch.log(y.std())
    minimum = minimize(lambda x: gaussian(y, X @ x[:-1], x[-1]), start)
    assert minimum.ending is Ending.CONVERGED
    # Certified by NIST; eleven digits are what a normal matrix of these data leaves.
    certified = vector(
        -3482258.63459582,
        15.0618722713733,
        -0.358191792925910e-1,
        -2.02022980381683,
        -1.03322686717359,
        -0.511041056535807e-1,
        1829.15146461355,
    )
    torch.testing.assert_close(minimum.x[:-1], certified, rtol=1e-5, atol=0)


@pytest.mark.parametrize("newton_limit", [300, 2])
def test_idle_coordinates(newton_limit):
    def objective(x):
        return torch.exp(x[0]) - x[0] + (x[2] - 1) ** 4 + (x[2] - 1) ** 2

    start = vector(1.0, 0.7, 3.0, -5.0)
    options = SearchOptions(newton_limit=newton_limit)
    ignored = minimize(objective, start, options)
    assert ignored.ending is Ending.CONVERGED
    torch.testing.assert_close(
        ignored.x, vector(0.0, 0.7, 1.0, -5.0), atol=1e-5, rtol=0
    )
    reported = minimize(objective, start, options, idle="report")
    assert reported.ending is Ending.UNIDENTIFIED
    assert reported.coordinates == (1, 3)
    torch.testing.assert_close(reported.x, ignored.x)
    torch.testing.assert_close(reported.null_space, torch.eye(4).double()[:, [1, 3]])


def test_flat_at_the_start_is_not_idle():
    """A curve of the fourth order has one lowest point, though its Hessian is 0."""
    minimum = minimize(lambda x: (x[0] - 1) ** 2 + x[1] ** 4, vector(0.0, 0.0))
    assert minimum.ending is Ending.CONVERGED
    assert minimum.x.tolist() == [1.0, 0.0]


def test_influence_that_only_the_end_shows():
    def objective(x):
        late = torch.where(x[0] > 5, (x[1] - 3) ** 2, torch.zeros_like(x[1]))
        return (x[0] - 8) ** 2 + late

    minimum = minimize(objective, vector(0.0, 0.0), idle="report")
    assert minimum.ending is Ending.CONVERGED
    torch.testing.assert_close(minimum.x, vector(8.0, 3.0))


def test_a_constant_has_only_idle_coordinates():
    def objective(x):
        return torch.ones((), dtype=x.dtype)

    assert minimize(objective, vector(0.0, 1.0)).ending is Ending.CONVERGED
    reported = minimize(objective, vector(0.0, 1.0), idle="report")
    assert reported.coordinates == (0, 1)


# Runaways.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_separated_classes(scale, dtype):
    X = normal(60, 3, dtype=dtype)
    sign = torch.where(X[:, 0] > 0, -1.0, 1.0)
    minimum = minimize(
        lambda b: softplus(sign * (scale * X @ b)).mean(), torch.zeros(3, dtype=dtype)
    )
    assert minimum.ending is Ending.UNBOUNDED
    assert minimum.flattening
    assert 0 in minimum.coordinates
    assert minimum.steps < FEW


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_separating_coordinate_runs(dtype):
    group = (torch.arange(100) < 10).to(dtype)
    X = torch.stack([torch.ones(100, dtype=dtype), normal(100, dtype=dtype), group], 1)
    y = torch.poisson(torch.full((100,), 3.0), torch.Generator().manual_seed(0))
    y = torch.where(group > 0, 0, y).to(dtype)
    minimum = minimize(
        lambda b: (torch.exp(X @ b) - y * (X @ b)).mean(), torch.zeros(3, dtype=dtype)
    )
    assert minimum.ending is Ending.UNBOUNDED
    assert minimum.flattening
    assert minimum.coordinates == (2,)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [0.0, 2.0, -3.0])
def test_a_variance_at_zero(start, dtype):
    """Eight schools: the marginal likelihood is highest where tau is zero."""
    y = vector(28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0, dtype=dtype)
    sd = vector(15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0, dtype=dtype)

    def objective(x):
        variance = sd**2 + torch.exp(2 * x[1])
        return 0.5 * (torch.log(variance) + (y - x[0]) ** 2 / variance).mean()

    minimum = minimize(objective, vector(0.0, start, dtype=dtype))
    assert minimum.ending is Ending.UNBOUNDED
    assert minimum.flattening
    assert minimum.coordinates == (1,)
    assert float(minimum.x[0]) == pytest.approx(7.6856, abs=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("center", [0.0, 3.0])
def test_a_density_without_bound(center, dtype):
    """Eight schools, centered, without priors: the joint mode is a spike."""
    y = center + normal(8, dtype=dtype) - normal(8, dtype=dtype).mean()

    def objective(x):
        theta = x[2:]
        likelihood = 0.5 * (y - theta) ** 2
        return (
            likelihood + x[1] + 0.5 * ((theta - x[0]) / torch.exp(x[1])) ** 2
        ).mean()

    minimum = minimize(objective, torch.zeros(10, dtype=dtype))
    assert minimum.ending is Ending.UNBOUNDED
    assert not minimum.flattening
    assert minimum.coordinates == (1,)
    assert minimum.x.isfinite().all()
    assert minimum.steps < 2 * FEW


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_slope_without_end(dtype):
    minimum = minimize(lambda x: x[0] + (x[1] - 3) ** 2, vector(0.0, 0.0, dtype=dtype))
    assert minimum.ending is Ending.UNBOUNDED
    assert not minimum.flattening
    assert minimum.coordinates == (0,)
    assert minimum.steps < FEW


def test_an_exact_fit():
    X = normal(30, 3)
    y = X @ vector(1.0, 2.0, 3.0)
    minimum = minimize(lambda x: gaussian(y, X @ x[:3], x[3]), torch.zeros(4).double())
    assert minimum.ending is Ending.UNBOUNDED
    assert not minimum.flattening
    assert minimum.coordinates == (3,)
    torch.testing.assert_close(minimum.x[:3], vector(1.0, 2.0, 3.0))


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1e6])
def test_data_in_odd_units_are_no_runaway(unit):
    X = normal(30, 3)
    y = unit * (X @ vector(1.0, 2.0, 3.0) + normal(30, seed=1))
    minimum = minimize(lambda x: gaussian(y, X @ x[:3], x[3]), torch.zeros(4).double())
    assert minimum.ending is Ending.CONVERGED
    expected = torch.linalg.lstsq(X, y[:, None]).solution[:, 0]
    torch.testing.assert_close(minimum.x[:3] / unit, expected / unit)


def test_a_runaway_hidden_by_rounding():
    """Poisson counts as negative binomial: log gamma loses digits before the end."""
    y = torch.poisson(
        torch.full((400,), 5.0), torch.Generator().manual_seed(8)
    ).double()

    def objective(x):
        law = torch.distributions.NegativeBinomial(
            torch.exp(x[1]), logits=x[0] - x[1], validate_args=False
        )
        return -law.log_prob(y).mean()

    minimum = minimize(objective, torch.zeros(2).double())
    assert minimum.ending is Ending.UNBOUNDED
    assert minimum.flattening
    assert minimum.coordinates == (1,)


@pytest.mark.parametrize("start", [0.0, 2.0])
def test_a_plateau(start):
    """Where exp underflows, a coordinate that mattered has no influence left."""
    minimum = minimize(
        lambda x: torch.exp(-torch.exp(x[0])) + x[1] ** 2, vector(start, 1.0)
    )
    assert minimum.ending is Ending.UNBOUNDED
    assert minimum.flattening
    assert minimum.coordinates == (0,)


# Other ends.


def test_names_what_is_not_finite_at_the_start():
    counted = Counted(lambda x: torch.log(x[0]) + x[1] ** 2 + torch.sqrt(x[2]))
    minimum = minimize(counted, vector(-1.0, 1.0, 0.0))
    assert minimum.ending is Ending.NONFINITE
    assert minimum.coordinates == (2,)
    assert counted.calls == 1
    assert minimum.x.tolist() == [-1.0, 1.0, 0.0]


def test_a_kink_is_a_minimum():
    """At the kink itself the square root has no derivative."""
    y = vector(1.0, 2.0, 3.5, 5.0, 9.0)
    minimum = minimize(
        lambda x: torch.sqrt(((x - y) ** 2).clamp(min=0)).mean(), vector(0.3)
    )
    assert minimum.ending is Ending.CONVERGED
    assert float(minimum.x) == pytest.approx(3.5)


@pytest.mark.parametrize("newton_limit", [300, 5])
@pytest.mark.parametrize("max_steps", [0, 1, 7])
def test_max_steps(max_steps, newton_limit):
    start = vector(*[-1.2, 1.0] * 5)
    options = SearchOptions(max_steps=max_steps, newton_limit=newton_limit)
    minimum = minimize(banana, start, options)
    assert minimum.ending is Ending.MAX_STEPS
    assert minimum.steps == max_steps
    assert len(minimum.losses) == max_steps + 1


def test_other_errors_go_through():
    def objective(x):
        raise ValueError("no such site")

    with pytest.raises(ValueError, match="no such site"):
        minimize(objective, vector(0.0))


# The parts.


def test_hessian_of_a_line_is_zero():
    landscape = Landscape(lambda x: x.sum())
    np.testing.assert_array_equal(landscape.hessian(vector(1.0, 2.0)), np.zeros((2, 2)))


@pytest.mark.parametrize("seed", range(20))
def test_trust_region_step_is_the_best_on_the_ball(seed):
    rng = np.random.default_rng(seed)
    values = np.sort(rng.normal(size=5) * 10.0 ** rng.integers(-3, 3))
    slope = rng.normal(size=5) * rng.integers(0, 2, size=5)
    radius = 10.0 ** rng.integers(-2, 3)
    step = trust_region(values, slope, radius)
    assert np.linalg.norm(step) <= radius * (1 + 1e-7)

    def model(p):
        return p @ slope + p**2 @ values / 2

    others = rng.normal(size=(2000, 5))
    others *= radius / np.linalg.norm(others, axis=1, keepdims=True)
    others *= rng.uniform(size=(2000, 1)) ** 0.2
    best = min(model(p) for p in others)
    assert model(step) <= best + 1e-6 * abs(best)


def test_the_hard_case_reaches_the_ball():
    step = trust_region(np.array([-1.0, 1.0]), np.array([0.0, 1.0]), 2.0)
    np.testing.assert_allclose(np.linalg.norm(step), 2.0)
    np.testing.assert_allclose(step[1], -0.5)


def test_spectrum_finds_null_directions_whatever_the_units():
    X = np.random.default_rng(0).normal(size=(30, 2))
    X = np.column_stack([X, 1e7 * X.sum(axis=1)])
    hessian = X.T @ X
    scale = 1 / np.sqrt(np.diag(hessian))
    spectrum = Spectrum(hessian, scale, precision=2.2e-16, negligible=1e-12)
    assert spectrum.null.tolist() == [True, False, False]
    target = hessian @ np.array([1.0, 2.0, 0.0])
    step, decrement = spectrum.newton(-target)
    np.testing.assert_allclose(hessian @ step, target, rtol=1e-6)
    np.testing.assert_allclose(decrement, target @ step / 2)


def test_limited_memory_meets_the_secant_equation():
    memory = LimitedMemory(vector(1.0, 10.0, 0.1), size=2)
    curvature = torch.diag(vector(3.0, 0.2, 50.0)) + 0.1
    for seed in range(4):
        step = normal(1, 3, seed=seed)
        memory.update(step, step @ curvature)
    torch.testing.assert_close(memory.apply(step @ curvature), step)
    memory.update(step, -step)  # no curvature of a minimum
    torch.testing.assert_close(memory.apply(step @ curvature), step)
    memory.clear(memory.known)
    torch.testing.assert_close(memory.apply(step), memory.scale**2 * step)


def inverse_hessian(pairs, scale):
    """Return the dense inverse of BFGS: Nocedal and Wright (2006), equation 6.17."""
    if not pairs:
        return torch.diag(scale**2)
    step, change = pairs[-1]
    inverse = torch.diag(scale**2) * (step @ change) / (scale * change).square().sum()
    for step, change in pairs:
        turn = torch.eye(len(scale)) - torch.outer(step, change) / (step @ change)
        inverse = turn @ inverse @ turn.T + torch.outer(step, step) / (step @ change)
    return inverse


def test_limited_memories_of_a_batch_are_those_of_bfgs():
    """Each with pairs of its own, some of which are missing, forgotten, or replaced."""
    scale, curvature = vector(1.0, 10.0, 0.1, 2.0), torch.diag(vector(3.0, 0.2, 50, 1))
    curvature = curvature + 0.1
    memory = LimitedMemory(scale, 3, size=4)
    updates = [[] for _ in range(3)]
    for k in range(12):
        steps = normal(3, 4, seed=k) * 10.0**-k
        changes = steps @ curvature
        bad = torch.tensor([False, k % 3 == 1, k % 2 == 0])
        changes[bad] *= -1
        memory.update(steps, changes)
        for i, mine in enumerate(updates):
            mine.append(None if bad[i] else (steps[i], changes[i]))
        if k == 5:
            memory.clear(torch.tensor([True, False, False]))
            updates[0] = []
        if k == 9:
            memory.keep(torch.tensor([True, False, True]))
            memory.update(normal(2, 4), normal(2, 4) * math.nan)  # nothing to learn
            break
    del updates[1]
    assert memory.known.tolist() == [True, True]
    vectors = normal(2, 4, seed=99)
    found = memory.apply(vectors)
    for i, mine in enumerate(updates):
        inverse = inverse_hessian([p for p in mine[-4:] if p], scale)
        torch.testing.assert_close(found[i], inverse @ vectors[i], rtol=1e-9, atol=0)


def test_a_restricted_memory_is_that_of_the_free_coordinates():
    """Pairs restricted to some coordinates are those of a memory of these alone."""
    curvature = torch.diag(vector(3.0, 0.2, 50.0, 1.0)) + 0.1
    scale, free = vector(1.0, 10.0, 0.1, 2.0), torch.tensor([True, False, True, True])
    memory, small = LimitedMemory(scale), LimitedMemory(scale[free])
    for seed in range(5):
        step = normal(1, 4, seed=seed)
        memory.update(step, step @ curvature)
        small.update(step[:, free], (step @ curvature)[:, free])
    found = memory.apply(normal(1, 4, seed=9) * free, free[None])
    assert found[0, 1] == 0
    expected = small.apply(normal(1, 4, seed=9)[:, free])
    torch.testing.assert_close(found[:, free], expected)
