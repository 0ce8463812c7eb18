"""Posteriors that are known in closed form or by quadrature, and what they predict."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.testing import assert_allclose
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from scipy import optimize, special, stats

import probsl
from probsl import Status

ROUNDING = 1e-9
Y = torch.tensor([2.1, 0.3, 1.7, 3.0, 2.4], dtype=torch.float64)


def normal_mean(y=None, count=5):
    mu = pyro.sample("mu", dist.Normal(0.5, 1.5))
    with pyro.plate("data", count if y is None else len(y)):
        pyro.sample("y", dist.Normal(mu, 0.8), obs=y)


def normal_posterior(y=Y, prior_weight=1.0, weights=1.0):
    """Return mean and variance of mu under `normal_mean`."""
    precision = prior_weight / 1.5**2 + (weights * torch.ones_like(y)).sum() / 0.8**2
    slope = prior_weight * 0.5 / 1.5**2 + (weights * y).sum() / 0.8**2
    return float(slope / precision), float(1 / precision)


@pytest.mark.parametrize("guide", [None, AutoNormal, AutoMultivariateNormal])
@pytest.mark.parametrize("prior_weight", [1.0, 0.25, 4.0])
def test_normal_mean_has_its_normal_posterior(guide, prior_weight):
    method = probsl.SVI(guide, prior_weight=prior_weight)
    fit = probsl.fit(normal_mean, {"y": Y}, method)
    mean, variance = normal_posterior(prior_weight=prior_weight)
    assert fit.status is Status.CONVERGED
    # Standardized fixed draws make the ELBO of a Gaussian exact.
    assert_allclose(fit.point()["mu"], mean, rtol=ROUNDING)
    assert_allclose(fit.summary()["sd"]["mu"], math.sqrt(variance), rtol=ROUNDING)


def test_the_elbo_of_the_exact_posterior_is_the_log_evidence():
    fit = probsl.fit(normal_mean, {"y": Y}, probsl.SVI())
    covariance = 0.8**2 * torch.eye(5).double() + 1.5**2
    evidence = dist.MultivariateNormal(torch.full((5,), 0.5).double(), covariance)
    assert_allclose(-fit.losses[-1], evidence.log_prob(Y), rtol=ROUNDING)


def test_row_weights_count_rows_in_a_posterior():
    weights = torch.tensor([2.0, 0.0, 1.0, 0.5, 3.0]).double()
    fit = probsl.fit(normal_mean, {"y": Y}, probsl.SVI(), weights=weights)
    mean, variance = normal_posterior(weights=weights)
    assert_allclose(fit.point()["mu"], mean, rtol=ROUNDING)
    assert_allclose(fit.summary()["sd"]["mu"], math.sqrt(variance), rtol=ROUNDING)


def test_the_predictive_distribution_of_a_normal_mean_is_normal():
    fit = probsl.fit(normal_mean, {"y": Y}, probsl.SVI())
    mean, variance = normal_posterior()
    draws = fit.predict({"count": 3}, draws=20_000)["y"].numpy()
    expected = stats.norm(mean, math.sqrt(variance + 0.8**2))
    assert draws.shape == (20_000, 3)
    for column in draws.T:
        # The seed is fixed; of other seeds one in 3,000 fails.
        assert stats.kstest(column, expected.cdf).pvalue > 1e-4
    # Rows of one draw share mu: their correlation has a standard error of 0.007.
    shared = variance / (variance + 0.8**2)
    assert_allclose(np.corrcoef(draws.T)[0, 1], shared, atol=5 * 0.007)


def test_the_log_score_of_a_normal_mean_is_its_predictive_density():
    fit = probsl.fit(normal_mean, {"y": Y}, probsl.SVI())
    mean, variance = normal_posterior()
    new = torch.tensor([-1.0, 0.5, 1.9, 4.5], dtype=torch.float64)
    scores = probsl.log_score(fit, {"y": new}, draws=20_000)
    expected = stats.norm(mean, math.sqrt(variance + 0.8**2)).logpdf(new.numpy())
    # The relative variance of the density p(y | mu) over the posterior of mu gives
    # the standard error of the log of its mean.
    square = stats.norm(mean, math.sqrt(variance + 0.8**2 / 2)).logpdf(new.numpy())
    ratio = np.exp(square - 2 * expected) / (2 * 0.8 * math.sqrt(math.pi))
    errors = np.sqrt((ratio - 1) / 20_000)
    # Five standard errors: one seed in half a million fails.
    assert (np.abs(scores.numpy() - expected) < 5 * errors).all()


def quadrature_optimum(log_joint):
    """Return location, scale and ELBO of the best normal of an unconstrained latent."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()

    def loss(parameters):
        location, log_scale = parameters
        values = log_joint(location + np.exp(log_scale) * nodes)
        return -(weights @ values + log_scale + 0.5 * math.log(2 * math.pi * math.e))

    best = optimize.minimize(loss, [0.0, -1.0], method="BFGS", options={"gtol": 1e-9})
    return best.x[0], math.exp(best.x[1]), -best.fun


def gamma_poisson(y=None):
    rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
    with pyro.plate("days", 3):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def gamma_poisson_joint(u):
    prior = stats.gamma(3, scale=1 / 2).logpdf(np.exp(u)) + u
    return prior + sum(stats.poisson(np.exp(u)).logpmf(y) for y in (2, 3, 1))


def beta_binomial(y=None):
    p = pyro.sample("p", dist.Beta(2.0, 1.0))
    with pyro.plate("groups", 2):
        pyro.sample("y", dist.Binomial(torch.tensor([5.0, 9.0]), p), obs=y)


def beta_binomial_joint(u):
    p = special.expit(u)
    prior = stats.beta(2, 1).logpdf(p) + np.log(p) + np.log1p(-p)
    return prior + stats.binom(5, p).logpmf(4) + stats.binom(9, p).logpmf(6)


@pytest.mark.parametrize(
    ("program", "y", "log_joint", "inverse", "skewness"),
    [
        (gamma_poisson, [2.0, 3.0, 1.0], gamma_poisson_joint, torch.log, 0.33),
        (beta_binomial, [4.0, 6.0], beta_binomial_joint, torch.logit, 0.2),
    ],
)
def test_mean_field_is_the_optimum_by_quadrature(
    program, y, log_joint, inverse, skewness
):
    location, scale, elbo = quadrature_optimum(log_joint)
    fit = probsl.fit(program, {"y": torch.tensor(y).double()}, probsl.SVI(AutoNormal))
    (draws,) = fit.posterior.representative_draws(4096).values()
    ours = inverse(draws)
    assert fit.status is Status.CONVERGED
    # The log density's third derivative, in posterior sds, is at most the skewness k.
    # Standardized draws know the first two moments; the third, sqrt(6) per draw and
    # divided by 3!, moves the ELBO by k sqrt(6) / 6 / sqrt(draws), location and log
    # scale by about as much: 0.017 and 0.010 at 64 draws. Three of those, and the ELBO
    # of the fixed draws, which is better than a fresh one's by their squares.
    error = 3 * skewness * math.sqrt(6) / 6 / 8
    assert abs(ours.mean() - location) < error * scale
    assert abs(ours.std() - scale) < error * scale
    assert_allclose(-fit.losses[-1], elbo, atol=error, rtol=0)


def test_counts_are_predicted_with_the_uncertainty_of_their_rate():
    y = torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64)
    fit = probsl.fit(gamma_poisson, {"y": y}, probsl.SVI(AutoNormal))
    rates = fit.posterior.representative_draws(4096)["rate"]
    draws = fit.predict({}, draws=20_000)["y"]
    mean = float(rates.mean())
    variance = mean + float(rates.var())
    assert draws.shape == (20_000, 3)
    # Days are dependent through their rate, so that three columns count as one at
    # worst. The mean's standard error is the first factor; the variance's relative one
    # is sqrt((kurtosis - 1) / draws), with a kurtosis of 4.5 or so.
    assert_allclose(draws.mean(), mean, atol=5 * math.sqrt(variance / 20_000))
    assert_allclose(draws.var(), variance, rtol=5 * math.sqrt(3.5 / 20_000))
    assert (draws == draws.round()).all()


def dirichlet_categorical(y=None):
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0, 1.5])))
    with pyro.plate("data", 12):
        pyro.sample("y", dist.Categorical(p), obs=y)


@pytest.mark.parametrize(
    ("method", "counts"),
    [
        (probsl.MLE(), [3, 1, 6, 2]),
        (probsl.MAP(), [3 + 1, 1 + 2, 6 + 3, 2 + 0.5]),
        # Stick by stick the log odds of independent betas: the posterior mean.
        (probsl.MAP(space="unconstrained"), [3 + 2, 1 + 3, 6 + 4, 2 + 1.5]),
    ],
)
def test_categorical_proportions_are_the_closed_form(method, counts):
    y = torch.tensor([0] * 3 + [1] + [2] * 6 + [3] * 2)
    fit = probsl.fit(dirichlet_categorical, {"y": y}, method, dtype=torch.float64)
    assert fit.status is Status.CONVERGED
    expected = np.array(counts) / sum(counts)
    assert_allclose(fit.point()["p"], expected, rtol=ROUNDING)


def normal_gamma(y=None):
    precision = pyro.sample("precision", dist.Gamma(3.0, 2.0))
    mu = pyro.sample("mu", dist.Normal(0.5, 1 / (4 * precision).sqrt()))
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Normal(mu, precision**-0.5), obs=y)


@pytest.mark.parametrize(
    ("space", "exponents"), [("constrained", 0), ("unconstrained", 1)]
)
def test_normal_with_unknown_mean_and_precision_has_its_normal_gamma_mode(
    space, exponents
):
    fit = probsl.fit(normal_gamma, {"y": Y}, probsl.MAP(space=space))
    # The posterior is normal-gamma with these four numbers.
    count = 4 + 5
    location = (4 * 0.5 + 5 * Y.mean()) / count
    shape = 3 + 5 / 2
    squares = ((Y - Y.mean()) ** 2).sum()
    rate = 2 + squares / 2 + 4 * 5 * (Y.mean() - 0.5) ** 2 / (2 * count)
    assert fit.status is Status.CONVERGED
    assert_allclose(fit.point()["mu"], location, rtol=ROUNDING)
    # At that mean, precision^(shape - 1 + 1/2), and one more from its logarithm.
    precision = (shape - 0.5 + exponents) / rate
    assert_allclose(fit.point()["precision"], precision, rtol=ROUNDING)


def exponential_waits(y=None):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Exponential(rate), obs=y)


@pytest.mark.parametrize(
    ("method", "shape"),
    [
        (probsl.MLE(), None),
        (probsl.MAP(), 2 + 5 - 1),
        (probsl.MAP(space="unconstrained"), 2 + 5),
    ],
)
def test_waits_have_the_closed_form(method, shape):
    rate = probsl.fit(exponential_waits, {"y": Y}, method).point()["rate"]
    expected = 5 / Y.sum() if shape is None else shape / (1 + Y.sum())
    assert_allclose(rate, expected, rtol=ROUNDING)


def schools(y=None, count=5):
    """Give every row an effect of its own around an unknown mean."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", count if y is None else len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, 1.2))
        pyro.sample("y", dist.Normal(theta, 0.8), obs=y)


def schools_posterior(y=Y):
    """Return mean and covariance of (mu, theta)."""
    count = len(y)
    precision = torch.zeros(count + 1, count + 1, dtype=torch.float64)
    precision[0, 0] = 1 / 2.0**2 + count / 1.2**2
    precision[0, 1:] = precision[1:, 0] = -1 / 1.2**2
    precision[1:, 1:] = torch.eye(count).double() * (1 / 1.2**2 + 1 / 0.8**2)
    covariance = torch.linalg.inv(precision)
    slope = torch.cat([torch.zeros(1), y / 0.8**2])
    return covariance @ slope, covariance


def test_random_effects_have_their_joint_posterior():
    fit = probsl.fit(schools, {"y": Y}, probsl.SVI(AutoMultivariateNormal))
    mean, covariance = schools_posterior()
    draws = fit.posterior.representative_draws(4096)
    joint = torch.cat([draws["mu"][:, None], draws["theta"]], 1)
    # The search ends within 1e-7 nats of the top, which is 4.5e-4 sds at most; the
    # last Newton step squares that.
    assert_allclose(joint.mean(0), mean, atol=1e-6)
    assert_allclose(torch.cov(joint.T, correction=0), covariance, atol=1e-6)


def test_random_effects_have_their_joint_mode():
    fit = probsl.fit(schools, {"y": Y}, probsl.MAP())
    mean, _ = schools_posterior()
    assert_allclose(fit.point()["mu"], mean[0], rtol=ROUNDING)
    assert_allclose(fit.point()["theta"], mean[1:], rtol=ROUNDING)


def test_new_rows_get_new_random_effects():
    fit = probsl.fit(schools, {"y": Y}, probsl.SVI(AutoMultivariateNormal))
    mean, covariance = schools_posterior()
    spread = math.sqrt(covariance[0, 0] + 1.2**2 + 0.8**2)
    expected = stats.norm(float(mean[0]), spread)
    draws = fit.predict({"count": 2}, draws=20_000)["y"].numpy()
    for column in draws.T:
        # The seed is fixed; of other seeds one in 5,000 fails.
        assert stats.kstest(column, expected.cdf).pvalue > 1e-4
    new = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    scores = probsl.log_score(fit, {"y": new}, draws=20_000).numpy()
    # The density N(y | theta, 0.8) over the spread of theta, as for a normal mean.
    location, variance = float(mean[0]), float(covariance[0, 0]) + 1.2**2
    exact = stats.norm(location, math.sqrt(variance + 0.8**2)).logpdf(new)
    square = stats.norm(location, math.sqrt(variance + 0.8**2 / 2)).logpdf(new)
    ratio = np.exp(square - 2 * exact) / (2 * 0.8 * math.sqrt(math.pi))
    errors = np.sqrt((ratio - 1) / 20_000)
    assert (np.abs(scores - exact) < 5 * errors).all()


def test_a_row_with_an_effect_of_its_own_and_weight_two_is_two_rows():
    weights = torch.tensor([2.0, 1.0, 3.0, 1.0, 1.0]).double()
    weighted = probsl.fit(schools, {"y": Y}, probsl.SVI(AutoNormal), weights=weights)
    repeated = {"y": Y.repeat_interleave(weights.long())}
    expected = probsl.fit(schools, repeated, probsl.SVI(AutoNormal))
    # Both are exact but for what the searches leave.
    assert_allclose(weighted.point()["mu"], expected.point()["mu"], rtol=1e-6)
    sds = [fit.summary()["sd"]["mu"] for fit in (weighted, expected)]
    assert_allclose(*sds, rtol=1e-6)
    assert_allclose(weighted.losses[-1], expected.losses[-1], rtol=1e-6)


def test_correlated_latents_have_their_full_rank_posterior():
    prior = torch.tensor([[1.0, 0.6, 0.0], [0.6, 2.0, -0.4], [0.0, -0.4, 0.5]]).double()
    x = torch.tensor([[1.0, 0.2, 0.0], [0.0, 1.0, 1.0]]).double()
    y = torch.tensor([1.0, -0.5]).double()

    def program(x, y=None):
        w = pyro.sample("w", dist.MultivariateNormal(torch.zeros(3), prior))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    fit = probsl.fit(program, {"x": x, "y": y}, probsl.SVI(AutoMultivariateNormal))
    covariance = torch.linalg.inv(torch.linalg.inv(prior) + x.T @ x / 0.25)
    draws = fit.posterior.representative_draws(4096)["w"]
    # As above.
    assert_allclose(draws.mean(0), covariance @ x.T @ y / 0.25, atol=1e-6)
    assert_allclose(torch.cov(draws.T, correction=0), covariance, atol=1e-6)
