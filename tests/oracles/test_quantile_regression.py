"""Likelihoods with kinks against linear programming: medians, quantiles, hinges."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.optimize import linprog, minimize_scalar

import probsl
from probsl import Status

POINTS = [probsl.MLE(), probsl.MAP()]
point_methods = pytest.mark.parametrize("method", POINTS, ids=["MLE", "MAP"])


def quantile_regression(X, y, level=0.5):
    """Return coefficients and the least sum of check losses, by linear programming."""
    n, d = X.shape
    costs = np.r_[np.zeros(2 * d), np.full(n, level), np.full(n, 1 - level)]
    equations = np.hstack([X, -X, np.eye(n), -np.eye(n)])
    found = linprog(costs, A_eq=equations, b_eq=y, bounds=(0, None), method="highs")
    return found.x[:d] - found.x[d : 2 * d], found.fun


def rows(n, d, seed=1):
    rng = np.random.default_rng(seed)
    X = np.c_[np.ones(n), rng.uniform(0, 3, size=(n, d - 1))]
    return X, X @ np.arange(1.0, d + 1) + (1 + X[:, -1]) * rng.normal(size=n)


def median(x, y=None):
    shape = [x.shape[1]]
    b = pyro.sample("b", dist.Normal(0.0, 1e6).expand(shape).to_event(1))
    s = pyro.sample("s", dist.HalfCauchy(5.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Laplace(x @ b, s), obs=y)


def check_medians(fit, X, y, scale=1.0):
    """The coefficients, the scale (a mean absolute residual) and the likelihood."""
    b, total = quantile_regression(X, y)
    n, s = len(y), 2 * total / len(y)
    assert fit.status is Status.CONVERGED
    np.testing.assert_allclose(fit.point()["b"].numpy() * scale, b * scale, atol=1e-4)
    assert float(fit.point()["s"]) == pytest.approx(s, rel=1e-5)
    loss = n * np.log(2 * s) + n
    assert float(fit.losses[-1]) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(5, 2), (21, 1), (81, 3), (300, 5), (2000, 2)])
def test_median_regression(n, d):
    X, y = rows(n, d)
    check_medians(probsl.fit(median, {"x": X, "y": y}, probsl.MLE()), X, y)


@pytest.mark.parametrize("unit", [1e-4, 1e3, 1e6])
def test_columns_in_other_units(unit):
    X, y = rows(80, 2)
    X = X * [1, unit]
    scale = np.array([1, unit])
    check_medians(probsl.fit(median, {"x": X, "y": y}, probsl.MLE()), X, y, scale)


def test_columns_far_from_zero():
    """Two columns that are nearly the same: the way is a narrow valley of kinks."""
    X, y = rows(80, 2)
    X = X + np.array([0, 1e4])
    fit = probsl.fit(median, {"x": X, "y": y}, probsl.MLE())
    b, total = quantile_regression(X, y)
    assert fit.status is Status.CONVERGED
    np.testing.assert_allclose(fit.point()["b"][1], b[1], atol=1e-4)
    assert float(fit.point()["s"]) == pytest.approx(2 * total / 80, rel=1e-5)


def test_rows_that_repeat():
    """More kinks than coefficients meet at one point."""
    rng = np.random.default_rng(0)
    X = np.c_[np.ones(60), rng.integers(0, 4, size=(60, 2))]
    y = X @ [1.0, 2.0, -1.0] + rng.integers(-3, 4, size=60)
    fit = probsl.fit(median, {"x": X, "y": y}, probsl.MLE())
    total = quantile_regression(X, y)[1]
    assert fit.status is Status.CONVERGED
    assert float(fit.point()["s"]) == pytest.approx(2 * total / 60, rel=1e-6)


@point_methods
@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_quantile_regression(level, method):
    """An asymmetric Laplace likelihood is a check loss; its scale is estimated, too.

    Pyro's has the density 1 / s / (k + 1/k) exp(-z k) above, exp(z / k) below, with
    z = (y - m) / s: k / (k + 1/k) of the check loss at the level k^2 / (1 + k^2).
    """
    X, y = rows(80, 2)
    k = np.sqrt(level / (1 - level))

    def program(x, y=None):
        b = pyro.sample("b", dist.Normal(0.0, 1e6).expand([2]).to_event(1))
        s = pyro.sample("s", dist.HalfCauchy(1e6))
        with pyro.plate("rows", len(x)):
            law = dist.AsymmetricLaplace(x @ b, s, torch.tensor(k).double())
            pyro.sample("y", law, obs=y)

    b, total = quantile_regression(X, y, level)
    fit = probsl.fit(program, {"x": X, "y": y}, method)
    assert fit.status is Status.CONVERGED
    np.testing.assert_allclose(fit.point()["b"], b, atol=1e-4)
    s = total * (k + 1 / k) / 80
    assert float(fit.point()["s"]) == pytest.approx(s, rel=1e-5)
    loss = 80 * np.log(s * (k + 1 / k)) + 80
    assert -fit.log_likelihood() == pytest.approx(loss, rel=1e-6)


def test_a_prior_moves_the_scale_off_the_kinks():
    """With a half Cauchy prior on the scale its mode is that of one dimension."""
    X, y = rows(80, 2)

    def program(x, y=None):
        b = pyro.sample("b", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
        s = pyro.sample("s", dist.HalfCauchy(5.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Laplace(x @ b, s), obs=y)

    b, total = quantile_regression(X, y)

    def rest(s):
        return 80 * np.log(2 * s) + 2 * total / s + np.log(1 + (s / 5) ** 2)

    right = minimize_scalar(rest, bounds=(0.1, 10), options={"xatol": 1e-10})
    fit = probsl.fit(program, {"x": X, "y": y}, probsl.MAP())
    assert fit.status is Status.CONVERGED
    np.testing.assert_allclose(fit.point()["b"], b, atol=1e-3)
    assert float(fit.point()["s"]) == pytest.approx(right.x, abs=1e-3)


@pytest.mark.parametrize("seed", range(8))  # each ends elsewhere between the two
def test_a_median_between_two_values_is_one(seed):
    """Of four values all between the second and the third are medians."""
    y = np.array([1.0, 2.0, 4.0, 7.0])
    fit = probsl.fit(median, {"x": np.ones((4, 1)), "y": y}, probsl.MLE(), seed=seed)
    assert fit.status is Status.CONVERGED
    assert 2 <= float(fit.point()["b"]) <= 4
    assert float(fit.point()["s"]) == pytest.approx(2.0, rel=1e-6)


def test_a_column_twice_is_unidentified():
    X, y = rows(40, 2)
    fit = probsl.fit(median, {"x": X[:, [0, 1, 1]], "y": y}, probsl.MLE())
    assert fit.status is Status.UNIDENTIFIED
    assert fit.status_sites == ("b[1]", "b[2]")
    total = quantile_regression(X, y)[1]
    assert float(fit.point()["s"]) == pytest.approx(2 * total / 40, rel=1e-6)


@pytest.mark.parametrize("center", [0.0, 3.0])
def test_a_perfect_fit_is_unbounded(center):
    """All residuals are zero: the smaller the scale, the larger the density."""
    X = np.c_[np.ones(6), np.arange(6.0)]
    y = center + np.arange(6.0)
    fit = probsl.fit(median, {"x": X, "y": y}, probsl.MLE())
    assert fit.status is Status.UNBOUNDED
    assert fit.status_sites == ("s",)


def test_a_hinge_loss():
    """A support vector machine by a factor, against a quadratic program's dual."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    y = np.sign(X @ [1.0, -2.0, 0.5] + 0.5 * rng.normal(size=60))

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("rows", len(x)):
            pyro.factor("hinge", -torch.relu(1 - y * (x @ w)))

    fit = probsl.fit(program, {"x": X, "y": y}, probsl.MAP())
    assert fit.status is Status.CONVERGED
    from sklearn.svm import LinearSVC

    svm = LinearSVC(loss="hinge", fit_intercept=False, tol=1e-10, max_iter=10**6)
    svm.fit(X, y)
    np.testing.assert_allclose(fit.point()["w"], svm.coef_[0], atol=1e-4)
