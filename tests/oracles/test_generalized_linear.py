"""Maximum likelihood of generalized linear models against statsmodels."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import statsmodels.api as sm
import torch
from numpy.testing import assert_allclose
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import scale

import probsl
from probsl import Status

GENERATOR = np.random.default_rng(0)
X = np.column_stack([np.ones(400), GENERATOR.normal(size=(400, 3))])
ETA = X @ [0.3, 0.8, -0.5, 0.0]
SHAPE = 2.5


def linear(likelihood):
    """Return a program with a linear predictor."""

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", likelihood(x @ w), obs=y)

    return program


BERNOULLI = (GENERATOR.random(400) < 1 / (1 + np.exp(-ETA))).astype(float)
COUNTS = GENERATOR.poisson(np.exp(ETA)).astype(float)
DURATIONS = GENERATOR.gamma(SHAPE, np.exp(ETA) / SHAPE)

GLMS = {
    "logit": (
        lambda eta: dist.Bernoulli(logits=eta),
        BERNOULLI,
        sm.families.Binomial(),
    ),
    "probit": (
        lambda eta: dist.Bernoulli(dist.Normal(0.0, 1.0).cdf(eta)),
        BERNOULLI,
        sm.families.Binomial(sm.families.links.Probit()),
    ),
    "poisson": (lambda eta: dist.Poisson(eta.exp()), COUNTS, sm.families.Poisson()),
    # With its shape known; the optimum does not depend on it.
    "gamma": (
        lambda eta: dist.Gamma(SHAPE, SHAPE / eta.exp()),
        DURATIONS,
        sm.families.Gamma(sm.families.links.Log()),
    ),
}


@pytest.mark.parametrize("kind", GLMS)
def test_mle_is_the_generalized_linear_model_of_statsmodels(kind):
    likelihood, y, family = GLMS[kind]
    fit = probsl.fit(linear(likelihood), {"x": X, "y": y}, probsl.MLE())
    # The rival's tolerance is on its deviance, of which 1e-14 is rounding.
    rival = sm.GLM(y, X, family=family).fit(tol=1e-14, maxiter=200)
    assert fit.status is Status.CONVERGED
    assert_allclose(fit.point()["w"], rival.params, rtol=1e-6)
    likelihood_scale = 1 / SHAPE if kind == "gamma" else 1.0
    assert_allclose(
        fit.log_likelihood(),
        family.loglike(y, rival.mu, scale=likelihood_scale),
        rtol=1e-12,
    )


@pytest.mark.parametrize("unit", [1e-4, 1e2, 1e3, 1e5])
@pytest.mark.parametrize("seed", range(3))
def test_the_units_of_the_columns_do_not_matter(unit, seed):
    # A coefficient of a tenth would overflow the exponential of columns in thousands.
    program, unscaled = linear(GLMS["poisson"][0]), {"x": X, "y": COUNTS}
    expected = probsl.fit(program, unscaled, probsl.MLE()).point()["w"]
    data = {"x": X * unit, "y": COUNTS}
    fit = probsl.fit(program, data, probsl.MLE(), seed=seed)
    assert fit.status is Status.CONVERGED
    assert_allclose(fit.point()["w"] * unit, expected, rtol=1e-8)


def test_float32_data_are_fitted_to_the_digits_they_have():
    data = {"x": X.astype(np.float32), "y": COUNTS.astype(np.float32)}
    program = linear(GLMS["poisson"][0])
    fit = probsl.fit(program, data, probsl.MLE())
    exact = probsl.fit(
        program, {n: v.astype(float) for n, v in data.items()}, probsl.MLE()
    )
    assert fit.point()["w"].dtype == torch.float32
    assert fit.status is Status.CONVERGED
    # Rounding leaves a slope of about 6e-8 sqrt(rows) per row, and the least
    # curvature per row is about 1.
    assert_allclose(fit.point()["w"], exact.point()["w"], atol=2e-6, rtol=0)


def test_an_offset_and_frequency_weights_are_those_of_statsmodels():
    exposure = GENERATOR.uniform(0.5, 2.0, 400)
    frequency = GENERATOR.integers(0, 4, 400).astype(float)

    def program(x, exposure, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Poisson(exposure * (x @ w).exp()), obs=y)

    data = {"x": X, "exposure": exposure, "y": COUNTS}
    fit = probsl.fit(program, data, probsl.MLE(), weights=frequency)
    rival = sm.GLM(
        COUNTS,
        X,
        family=sm.families.Poisson(),
        exposure=exposure,
        freq_weights=frequency,
    ).fit(tol=1e-14)
    assert_allclose(fit.point()["w"], rival.params, rtol=1e-6)
    assert_allclose(fit.log_likelihood(), rival.llf, rtol=1e-12)


def test_a_row_of_weight_two_is_two_rows():
    program = linear(GLMS["poisson"][0])
    frequency = GENERATOR.integers(0, 4, 400)
    weighted = probsl.fit(
        program, {"x": X, "y": COUNTS}, probsl.MAP(), weights=frequency.astype(float)
    )
    repeated = {"x": X.repeat(frequency, axis=0), "y": COUNTS.repeat(frequency)}
    # The prior counts once in both.
    expected = probsl.fit(program, repeated, probsl.MAP()).point()["w"]
    assert_allclose(weighted.point()["w"], expected, rtol=1e-9)


def test_logistic_regression_on_many_correlated_columns_is_that_of_statsmodels():
    # Thirty columns of this set separate the classes; ten do not.
    features, labels = load_breast_cancer(return_X_y=True)
    x = sm.add_constant(scale(features[:, 10:20]))
    program = linear(GLMS["logit"][0])
    fit = probsl.fit(program, {"x": x, "y": labels.astype(float)}, probsl.MLE())
    rival = sm.Logit(labels, x).fit(method="newton", tol=1e-14, disp=False)
    assert fit.status is Status.CONVERGED
    assert_allclose(fit.point()["w"], rival.params, rtol=1e-6)
    assert_allclose(fit.log_likelihood(), rival.llf, rtol=1e-12)


def test_separated_patients_have_no_maximum_likelihood():
    features, labels = load_breast_cancer(return_X_y=True)
    x = sm.add_constant(scale(features))
    program = linear(GLMS["logit"][0])
    fit = probsl.fit(program, {"x": x, "y": labels.astype(float)}, probsl.MLE())
    assert fit.status is Status.UNBOUNDED


def test_negative_binomial_regression_with_its_shape_is_that_of_statsmodels():
    y = GENERATOR.poisson(GENERATOR.gamma(SHAPE, np.exp(ETA) / SHAPE)).astype(float)

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        alpha = pyro.sample("alpha", dist.Exponential(1.0))
        with pyro.plate("data", len(x)):
            mean = (x @ w).exp()
            pyro.sample("y", dist.GammaPoisson(1 / alpha, 1 / (alpha * mean)), obs=y)

    fit = probsl.fit(program, {"x": X, "y": y}, probsl.MLE())
    model = sm.NegativeBinomial(y, X)
    rough = model.fit(method="bfgs", disp=False).params
    rival = model.fit(rough, method="newton", tol=1e-14, disp=False)
    assert fit.status is Status.CONVERGED
    assert_allclose(fit.point()["w"], rival.params[:-1], rtol=1e-6)
    assert_allclose(fit.point()["alpha"], rival.params[-1], rtol=1e-6)
    assert_allclose(fit.log_likelihood(), rival.llf, rtol=1e-12)
