"""The penalized minimizer: exact zeros, and the same answers as elsewhere."""

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from probsl.engine.ending import Ending
from probsl.engine.minimize.l1_penalty import L1Penalty
from probsl.engine.minimize.minimize import SearchOptions, minimize
from probsl.engine.minimize.proximal import quadratic_lasso

LIMITS = [300, 5]  # with the exact Hessian, and by OWL-QN alone


@pytest.fixture(scope="module")
def diabetes():
    from sklearn.datasets import load_diabetes

    X, y = load_diabetes(return_X_y=True)
    return torch.from_numpy((X - X.mean(0)) / X.std(0)), torch.from_numpy(y - y.mean())


def with_intercept(X):
    return torch.cat([torch.ones(len(X), 1).to(X), X], 1)


def zeros(size):
    return torch.zeros(size, dtype=torch.float64)


def constant(size, value):
    return torch.full((size,), value, dtype=torch.float64)


def assert_stationary(objective, minimum, center, weight, tolerance):
    """Check the conditions of Karush, Kuhn and Tucker, which are sufficient here."""
    x = minimum.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(x), x)
    offset = minimum.x - center
    free = (offset != 0) | (weight == 0)
    slope = gradient + weight * offset.sign()
    assert slope[free].abs().max() <= tolerance if free.any() else True
    assert (gradient.abs() <= weight + tolerance)[~free].all()


@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0, 5.0, 20.0, 44.0, 46.0])
@pytest.mark.parametrize("newton_limit", LIMITS)
def test_lasso_equals_scikit_learn(alpha, newton_limit, diabetes):
    from sklearn.linear_model import Lasso

    X, y = diabetes
    lasso = Lasso(alpha=alpha, fit_intercept=False, tol=1e-14, max_iter=10**6)
    expected = torch.from_numpy(lasso.fit(X.numpy(), y.numpy()).coef_)
    minimum = minimize(
        lambda b: 0.5 * ((y - X @ b) ** 2).mean(),
        zeros(10),
        l1=L1Penalty(zeros(10), constant(10, alpha)),
        options=SearchOptions(newton_limit=newton_limit),
    )
    assert minimum.ending is Ending.CONVERGED
    assert torch.equal(minimum.x == 0, expected == 0)
    size = float(expected.abs().max())
    accuracy = 1e-11 if newton_limit == 300 else 1e-6
    torch.testing.assert_close(minimum.x, expected, rtol=0, atol=accuracy * size)


def test_float32(diabetes):
    X, y = (part.float() for part in diabetes)
    minimum = minimize(
        lambda b: 0.5 * ((y - X @ b) ** 2).mean(),
        torch.zeros(10),
        l1=L1Penalty(torch.zeros(10), torch.full((10,), 5.0)),
    )
    assert minimum.ending is Ending.CONVERGED
    assert minimum.x.dtype == torch.float32
    assert minimum.x.eq(0).sum() == 5


@pytest.mark.parametrize("family", ["poisson", "logistic"])
@pytest.mark.parametrize("alpha", [1e-3, 1e-2, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("newton_limit", LIMITS)
def test_generalized_linear_models(family, alpha, newton_limit, diabetes):
    X, y = diabetes
    X = with_intercept(X)
    counts, classes = (20 + y / 10).round().clamp(min=0), (y > 0).double()

    def objective(b):
        eta = X @ b
        if family == "poisson":
            return (torch.exp(eta) - counts * eta).mean()
        return (softplus(eta) - classes * eta).mean()

    weight = constant(11, alpha)
    weight[0] = 0
    minimum = minimize(
        objective,
        zeros(11),
        l1=L1Penalty(zeros(11), weight),
        options=SearchOptions(newton_limit=newton_limit),
    )
    assert minimum.ending is Ending.CONVERGED
    accuracy = 1e-11 if newton_limit == 300 else 1e-4
    assert_stationary(objective, minimum, zeros(11), weight, accuracy)
    if newton_limit == 300:
        assert minimum.steps < 20


def test_logistic_equals_scikit_learn(diabetes):
    from sklearn.linear_model import LogisticRegression

    X, y = diabetes
    classes = (y > 0).double()
    reference = LogisticRegression(
        C=1 / (0.03 * len(y)), l1_ratio=1, solver="saga", tol=1e-8, max_iter=10**5
    ).fit(X.numpy(), classes.numpy())
    design = with_intercept(X)
    weight = torch.cat([zeros(1), constant(10, 0.03)])
    minimum = minimize(
        lambda b: (softplus(design @ b) - classes * (design @ b)).mean(),
        zeros(11),
        l1=L1Penalty(zeros(11), weight),
    )
    expected = torch.from_numpy(
        np.concatenate([reference.intercept_, reference.coef_[0]])
    )
    torch.testing.assert_close(minimum.x, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(minimum.x == 0, expected == 0)


def test_other_centers_and_partial_weights(diabetes):
    X, y = diabetes
    X = with_intercept(X)
    center = torch.linspace(-3, 3, 12).double()
    weight = (
        torch.tensor([0, 1, 0, 1, 90, 0, 90, 90, 0, 1, 1, 0], dtype=torch.float64)
        / 1000
    )

    def objective(x):
        return (x[-1] + 0.5 * ((y - X @ x[:-1]) * torch.exp(-x[-1])) ** 2).mean()

    minimum = minimize(objective, zeros(12), l1=L1Penalty(center, weight))
    assert minimum.ending is Ending.CONVERGED
    assert_stationary(objective, minimum, center, weight, 1e-12)
    at_center = minimum.x == center
    assert 0 < at_center.sum() < 7
    penalty = float((weight * (minimum.x - center).abs()).sum())
    assert minimum.value == pytest.approx(float(objective(minimum.x)) + penalty)


def test_all_zero_is_found_without_a_step(diabetes):
    X, y = diabetes
    minimum = minimize(
        lambda b: 0.5 * ((y - X @ b) ** 2).mean(),
        zeros(10),
        l1=L1Penalty(zeros(10), constant(10, 50.0)),
    )
    assert minimum.ending is Ending.CONVERGED
    assert minimum.steps == 0


def test_duplicates_share_a_null_direction(diabetes):
    X, y = diabetes
    X = torch.cat([X, X[:, 2:3]], 1)
    minimum = minimize(
        lambda b: 0.5 * ((y - X @ b) ** 2).mean(),
        zeros(11),
        l1=L1Penalty(zeros(11), constant(11, 1.0)),
    )
    assert minimum.ending is Ending.UNIDENTIFIED
    assert minimum.coordinates == (2, 10)


def test_idle_coordinates_go_to_their_center():
    weight = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    start = torch.tensor([0.0, 5.0, 5.0], dtype=torch.float64)
    minimum = minimize(
        lambda x: (x[0] - 1) ** 2, start, l1=L1Penalty(zeros(3), weight), idle="report"
    )
    assert minimum.ending is Ending.UNIDENTIFIED
    assert minimum.coordinates == (1,)
    assert minimum.x.tolist() == [1.0, 5.0, 0.0]


def test_a_penalty_stops_only_the_runaways_it_is_on():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(60, 3, generator=generator).double()
    sign = torch.where(X[:, 0] > 0, -1.0, 1.0)

    def objective(b):
        return softplus(sign * (X @ b)).mean()

    weight = torch.tensor([0.0, 0.01, 0.01], dtype=torch.float64)
    free = minimize(objective, zeros(3), l1=L1Penalty(zeros(3), weight))
    assert free.ending is Ending.UNBOUNDED
    assert free.coordinates == (0,)
    assert free.flattening
    held = minimize(objective, zeros(3), l1=L1Penalty(zeros(3), weight.clamp(min=0.01)))
    assert held.ending is Ending.CONVERGED


def test_leaves_a_saddle():
    def objective(x):
        return x[0] ** 2 + (x[1] ** 2 - 1) ** 2 + 0.1 * (x[2] - 1) ** 2

    start = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    weight = torch.tensor([0.1, 0.0, 0.1], dtype=torch.float64)
    minimum = minimize(objective, start, l1=L1Penalty(zeros(3), weight))
    assert minimum.ending is Ending.CONVERGED
    expected = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(minimum.x.abs(), expected)
    assert minimum.x[0] == 0


@pytest.mark.parametrize("newton_limit", [300, 1])
def test_backs_off_where_the_objective_is_no_number(newton_limit):
    start = torch.tensor([30.0, 0.01], dtype=torch.float64)
    weight = torch.tensor([0.1, 0.5], dtype=torch.float64)
    minimum = minimize(
        lambda x: (x - torch.log(x)).sum(),
        start,
        l1=L1Penalty(zeros(2), weight),
        options=SearchOptions(newton_limit=newton_limit),
    )
    assert minimum.ending is Ending.CONVERGED
    torch.testing.assert_close(minimum.x, 1 / (1 + weight), rtol=1e-5, atol=0)


def test_a_thousand_columns():
    from sklearn.linear_model import Lasso

    generator = torch.Generator().manual_seed(0)
    X = torch.randn(200, 1000, generator=generator, dtype=torch.float64)
    y = 2 * X[:, :10].sum(1) + torch.randn(200, generator=generator).double()
    minimum = minimize(
        lambda b: 0.5 * ((y - X @ b) ** 2).mean(),
        zeros(1000),
        l1=L1Penalty(zeros(1000), constant(1000, 0.3)),
    )
    lasso = Lasso(alpha=0.3, fit_intercept=False, tol=1e-12, max_iter=10**5)
    expected = torch.from_numpy(lasso.fit(X.numpy(), y.numpy()).coef_)
    assert minimum.ending is Ending.CONVERGED
    assert torch.equal(minimum.x == 0, expected == 0)
    torch.testing.assert_close(minimum.x, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_quadratic_lasso_is_stationary(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 30))
    root = rng.normal(size=(size, size)) * 10.0 ** rng.uniform(-3, 3, size=size)
    hessian = root.T @ root + 1e-9 * np.eye(size)
    linear = rng.normal(size=size) * np.sqrt(np.diag(hessian))
    weight = np.abs(linear) * rng.uniform(0, 1.2, size=size) * rng.integers(0, 2, size)
    v = quadratic_lasso(hessian, linear, weight, start=rng.normal(size=size))
    slope = hessian @ v + linear
    free = (weight == 0) | (v != 0)
    scale = np.abs(linear) + np.abs(hessian) @ np.abs(v)
    np.testing.assert_array_less(
        np.abs(slope + weight * np.sign(v))[free] / scale[free], 1e-9
    )
    assert np.all(np.abs(slope[~free]) <= weight[~free] * (1 + 1e-9))
