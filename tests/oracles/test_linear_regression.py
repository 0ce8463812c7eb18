"""Linear regression against least squares, ridge and its closed-form posterior."""

import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import statsmodels.api as sm
import torch
from numpy.testing import assert_allclose
from pyro.infer.autoguide import AutoMultivariateNormal
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso, LinearRegression, Ridge

import probsl
from probsl import Status

SIGMA = 54.0
RIDGE_SD = 300.0
# Chosen so that some coefficients are exactly zero and others far from it.
LASSO_SCALE = 20.0

X, Y = load_diabetes(return_X_y=True)
Y = Y - Y.mean()
DATA = {"x": X, "y": Y}
ROWS, COLUMNS = X.shape


def known_noise(x, y=None, *, prior, prior_scale):
    w = pyro.sample("w", prior(0.0, prior_scale).expand([x.shape[1]]).to_event(1))
    with pyro.plate("patients", len(x)):
        pyro.sample("y", dist.Normal(x @ w, SIGMA), obs=y)


ridge_program = functools.partial(known_noise, prior=dist.Normal, prior_scale=RIDGE_SD)
lasso_program = functools.partial(
    known_noise, prior=dist.Laplace, prior_scale=LASSO_SCALE
)


def unknown_noise(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1000.0).expand([x.shape[1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(100.0))
    with pyro.plate("patients", len(x)):
        pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)


def ridge_posterior(x=X, y=Y):
    """Return the mean and covariance of w under `ridge_program`."""
    precision = x.T @ x / SIGMA**2 + np.eye(x.shape[1]) / RIDGE_SD**2
    covariance = np.linalg.inv(precision)
    return covariance @ x.T @ y / SIGMA**2, covariance


@pytest.mark.parametrize("program", [ridge_program, lasso_program])
def test_mle_is_least_squares_whatever_the_prior(program):
    fit = probsl.fit(program, DATA, probsl.MLE())
    assert fit.status is Status.CONVERGED
    # A quadratic objective: Newton's last step leaves rounding, 1e-16 times the
    # condition of X'X, which is 470.
    assert_allclose(fit.point()["w"], sm.OLS(Y, X).fit().params, rtol=1e-9)


def test_mle_with_unknown_noise_is_least_squares_with_its_log_likelihood():
    fit = probsl.fit(unknown_noise, DATA, probsl.MLE())
    ols = sm.OLS(Y, X).fit()
    assert fit.status is Status.CONVERGED
    assert_allclose(fit.point()["w"], ols.params, rtol=1e-6)
    # Maximum likelihood divides by n, not by n - p.
    assert_allclose(fit.point()["sigma"], math.sqrt(ols.ssr / ROWS), rtol=1e-8)
    assert_allclose(fit.log_likelihood(), ols.llf, rtol=1e-12)
    assert_allclose(-fit.losses[-1], ols.llf, rtol=1e-12)


def test_row_weights_are_weighted_least_squares():
    weights = np.random.default_rng(0).integers(0, 4, ROWS).astype(float)
    fit = probsl.fit(ridge_program, DATA, probsl.MLE(), weights=weights)
    assert_allclose(
        fit.point()["w"], sm.WLS(Y, X, weights=weights).fit().params, rtol=1e-9
    )


def test_map_with_a_normal_prior_is_ridge():
    fit = probsl.fit(ridge_program, DATA, probsl.MAP())
    alpha = SIGMA**2 / RIDGE_SD**2
    ridge = Ridge(alpha=alpha, fit_intercept=False, solver="cholesky").fit(X, Y)
    assert fit.status is Status.CONVERGED
    assert_allclose(fit.point()["w"], ridge.coef_, rtol=1e-9)


@pytest.mark.parametrize("weight", [0.01, 0.3, 7.0])
def test_the_prior_weight_multiplies_the_ridge_penalty(weight):
    fit = probsl.fit(ridge_program, DATA, probsl.MAP(prior_weight=weight))
    alpha = weight * SIGMA**2 / RIDGE_SD**2
    ridge = Ridge(alpha=alpha, fit_intercept=False, solver="cholesky").fit(X, Y)
    assert_allclose(fit.point()["w"], ridge.coef_, rtol=1e-9)


@pytest.mark.parametrize("weight", [0.02, 1.0, 4.0])
def test_map_with_a_laplace_prior_is_the_lasso_with_its_zeros(weight):
    fit = probsl.fit(lasso_program, DATA, probsl.MAP(prior_weight=weight))
    alpha = weight * SIGMA**2 / (LASSO_SCALE * ROWS)
    lasso = Lasso(alpha=alpha, fit_intercept=False, tol=1e-14, max_iter=100_000)
    coefficients = lasso.fit(X, Y).coef_
    w = fit.point()["w"].numpy()
    assert fit.status is Status.CONVERGED
    assert np.array_equal(w == 0, coefficients == 0)
    # Both solve the same equations on the same face; the rival stops at 1e-14 of
    # the objective, a tenth of a millionth of the coefficients.
    assert_allclose(w, coefficients, rtol=1e-6)


def test_a_laplace_prior_of_enough_weight_leaves_nothing():
    # The largest penalty under which a coefficient moves is max |X'y|.
    limit = np.abs(X.T @ Y).max() * LASSO_SCALE / SIGMA**2
    above = probsl.fit(lasso_program, DATA, probsl.MAP(prior_weight=1.0001 * limit))
    below = probsl.fit(lasso_program, DATA, probsl.MAP(prior_weight=0.9999 * limit))
    assert torch.count_nonzero(above.point()["w"]) == 0
    assert torch.count_nonzero(below.point()["w"]) == 1


def test_full_rank_svi_is_the_closed_form_posterior():
    fit = probsl.fit(ridge_program, DATA, probsl.SVI(AutoMultivariateNormal))
    mean, covariance = ridge_posterior()
    sds = np.sqrt(covariance.diagonal())
    assert fit.status is Status.CONVERGED
    # Standardized fixed draws make the ELBO of a Gaussian exact; the search ends
    # within 1e-7 nats of its top, which is 4.5e-4 sds at most.
    assert_allclose((fit.point()["w"].numpy() - mean) / sds, 0.0, atol=4.5e-4)
    assert_allclose(fit.summary()["sd"], sds, rtol=4.5e-4)
    # The marginal density of y.
    evidence = dist.MultivariateNormal(
        torch.zeros(ROWS, dtype=torch.float64),
        torch.from_numpy(SIGMA**2 * np.eye(ROWS) + RIDGE_SD**2 * X @ X.T),
    ).log_prob(torch.from_numpy(Y))
    assert_allclose(-fit.losses[-1], evidence, atol=1e-6, rtol=0)


def test_the_intervals_of_a_gaussian_posterior_are_its_quantiles():
    fit = probsl.fit(ridge_program, DATA, probsl.SVI(AutoMultivariateNormal))
    mean, covariance = ridge_posterior()
    table = fit.summary(prob=0.9)
    sds = np.sqrt(covariance.diagonal())
    # 4,096 draws that are independent but for their moments: a quantile at 5% has a
    # standard error of sqrt(0.05 * 0.95 / 4096) / 0.103 = 0.033 sds. Five of them
    # for 20 quantiles fail for one seed in a hundred thousand.
    error = 5 * 0.033
    assert_allclose((table["lower"] - mean) / sds, -1.6449, atol=error)
    assert_allclose((table["upper"] - mean) / sds, 1.6449, atol=error)


def test_new_rows_are_predicted_with_both_uncertainties():
    train, new = slice(None, -40), slice(-40, None)
    data = {"x": X[train], "y": Y[train]}
    fit = probsl.fit(ridge_program, data, probsl.SVI(AutoMultivariateNormal))
    mean, covariance = ridge_posterior(X[train], Y[train])
    variance = SIGMA**2 + np.einsum("ij,jk,ik->i", X[new], covariance, X[new])
    draws = fit.predict({"x": X[new]}, draws=10_000)["y"].numpy()
    assert draws.shape == (10_000, 40)
    # Five standard errors of a mean and of an sd of 10,000 draws, for 40 rows: one
    # seed in twenty thousand fails.
    sd = np.sqrt(variance)
    assert_allclose((draws.mean(0) - X[new] @ mean) / sd, 0.0, atol=0.05)
    assert_allclose(draws.std(0) / sd, 1.0, atol=5 / math.sqrt(2 * 10_000))
    # Neighboring rows share the uncertainty of w: their joint variance is known too.
    total = X[new].sum(0)
    expected = 40 * SIGMA**2 + total @ covariance @ total
    assert_allclose(
        draws.sum(1).std() / math.sqrt(expected), 1.0, atol=5 / math.sqrt(2 * 10_000)
    )


def test_a_point_predicts_with_the_noise_alone():
    fit = probsl.fit(ridge_program, DATA, probsl.MAP())
    draws = fit.predict({"x": X[:40]}, draws=10_000)["y"].numpy()
    mean = X[:40] @ fit.point()["w"].numpy()
    # As above.
    assert_allclose((draws.mean(0) - mean) / SIGMA, 0.0, atol=0.05)
    assert_allclose(draws.std(0) / SIGMA, 1.0, atol=5 / math.sqrt(2 * 10_000))


def test_the_log_score_of_a_distribution_is_its_predictive_density():
    train, new = slice(None, -40), slice(-40, None)
    data = {"x": X[train], "y": Y[train]}
    fit = probsl.fit(ridge_program, data, probsl.SVI(AutoMultivariateNormal))
    mean, covariance = ridge_posterior(X[train], Y[train])
    shift = np.einsum("ij,jk,ik->i", X[new], covariance, X[new])
    predicted = dist.Normal(
        torch.from_numpy(X[new] @ mean), torch.from_numpy(np.sqrt(SIGMA**2 + shift))
    ).log_prob(torch.from_numpy(Y[new]))
    scores = probsl.log_score(fit, {"x": X[new], "y": Y[new]}, draws=10_000)
    # The density of one draw varies with z shift^0.5 / SIGMA, z the row's residual
    # in sds; the log of its mean over S draws has this standard error, to first order.
    residual = np.abs(Y[new] - X[new] @ mean) / SIGMA
    error = 5 * (residual + 1) * np.sqrt(shift) / SIGMA / math.sqrt(10_000)
    assert ((scores - predicted).abs().numpy() < error).all()


def test_the_log_score_of_a_point_is_its_density():
    fit = probsl.fit(unknown_noise, DATA, probsl.MLE())
    point = fit.point()
    density = dist.Normal(torch.from_numpy(X) @ point["w"], point["sigma"])
    expected = density.log_prob(torch.from_numpy(Y))
    assert_allclose(probsl.log_score(fit, DATA), expected, rtol=1e-13)
    assert_allclose(expected.sum(), fit.log_likelihood(), rtol=1e-13)


def test_an_intercept_is_that_of_least_squares():
    def program(x, y=None):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([COLUMNS]).to_event(1))
        with pyro.plate("patients", len(x)):
            pyro.sample("y", dist.Normal(b + x @ w, SIGMA), obs=y)

    target = Y + 152.0
    fit = probsl.fit(program, {"x": X, "y": target}, probsl.MLE())
    rival = LinearRegression().fit(X, target)
    assert_allclose(fit.point()["b"], rival.intercept_, rtol=1e-9)
    assert_allclose(fit.point()["w"], rival.coef_, rtol=1e-9)
