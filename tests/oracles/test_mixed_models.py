"""Mixed models by their marginal likelihood, and generalized linear ones, against R."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.testing import assert_allclose
from pyro.distributions import constraints
from references import cases

import probsl
from probsl import Status

CASES = cases("mixed/mixed.json")
# What R's own optimizers leave.
RELATIVE = 1e-4

pytestmark = pytest.mark.usefixtures("float64_default")


def flat(name, support=constraints.real, *shape):
    return pyro.sample(name, dist.ImproperUniform(support, (), shape))


def indicators(factor):
    """Return a column of zeros and ones for each level of a factor."""
    codes = torch.tensor(factor["codes"])
    return torch.eye(len(factor["levels"]))[codes]


def normal_model(x, designs, y=None):
    """Integrate Normal effects out: y is jointly Normal."""
    b = flat("b", constraints.real_vector, x.shape[1])
    sigma = flat("sigma", constraints.positive)
    covariance = sigma**2 * torch.eye(len(x))
    for name, design in designs.items():
        scale = flat(name, constraints.positive)
        covariance = covariance + scale**2 * design @ design.T
    pyro.sample("y", dist.MultivariateNormal(x @ b, covariance), obs=y)


def deviations(case):
    """Return R's standard deviations by name."""
    return {each["grp"]: each["sdcor"] for each in case["ml"]["components"]}


def fit_intercepts(name, observed, factors):
    """Fit a model of random intercepts."""
    case = CASES[name]
    designs = {factor: indicators(case["data"][factor]) for factor in factors}

    y = torch.tensor(case["data"][observed]).double()

    def program(y=None):
        normal_model(torch.ones(len(case["data"][observed]), 1), designs, y)

    # Its deviation is a start of the right size for every scale.
    sizes = dict.fromkeys(("sigma", *factors), y.std())
    start = {"b": y.mean()[None], **sizes}
    return case, probsl.fit(program, {"y": y}, probsl.MLE(start=start))


@pytest.mark.parametrize(
    ("name", "observed", "factors"),
    [("dyestuff", "Yield", ["Batch"]), ("penicillin", "diameter", ["plate", "sample"])],
)
def test_random_intercepts_are_those_of_lme4(name, observed, factors):
    case, fit = fit_intercepts(name, observed, factors)
    point, expected = fit.point(), deviations(case)
    assert fit.status is Status.CONVERGED
    assert_allclose(float(point["b"][0]), case["ml"]["fixed"], rtol=1e-6)
    assert_allclose(float(point["sigma"]), expected["Residual"], rtol=RELATIVE)
    for factor in factors:
        assert_allclose(float(point[factor]), expected[factor], rtol=RELATIVE)
    assert_allclose(fit.log_likelihood(), case["ml"]["loglik"], rtol=1e-8)


def test_a_variance_of_exactly_zero_is_an_end_at_the_boundary():
    case, fit = fit_intercepts("dyestuff2", "Yield", ["Batch"])
    assert fit.status is Status.BOUNDARY
    assert fit.status_sites == ("Batch",)
    assert_allclose(fit.log_likelihood(), case["ml"]["loglik"], rtol=1e-6)
    assert_allclose(float(fit.point()["b"][0]), case["ml"]["fixed"], rtol=1e-4)


def test_correlated_intercepts_and_slopes_are_those_of_lme4():
    """Of 18 subjects, each seen on the same ten days."""
    case = CASES["sleepstudy"]
    days = torch.tensor(case["data"]["Days"]).double().reshape(18, 10)
    assert (days == days[0]).all()
    x = torch.stack([torch.ones(10), days[0]], 1)

    def program(y=None):
        b = flat("b", constraints.real_vector, 2)
        sigma = flat("sigma", constraints.positive)
        scales = flat("scales", constraints.independent(constraints.positive, 1), 2)
        correlation = flat("correlation", constraints.interval(-1.0, 1.0))
        off = correlation * scales.prod()
        effects = torch.stack([scales[0] ** 2, off, off, scales[1] ** 2]).reshape(2, 2)
        covariance = x @ effects @ x.T + sigma**2 * torch.eye(10)
        with pyro.plate("subjects", 18):
            pyro.sample("y", dist.MultivariateNormal(x @ b, covariance), obs=y)

    y = torch.tensor(case["data"]["Reaction"]).double().reshape(18, 10)
    fit = probsl.fit(program, {"y": y}, probsl.MLE())
    point, expected = fit.point(), [e["sdcor"] for e in case["ml"]["components"]]
    assert fit.status is Status.CONVERGED
    found = [*point["scales"], point["correlation"], point["sigma"]]
    assert_allclose(np.array(found, dtype=float), expected, rtol=RELATIVE)
    assert_allclose(point["b"], case["ml"]["fixed"], rtol=1e-6)
    assert_allclose(fit.log_likelihood(), case["ml"]["loglik"], rtol=1e-8)


def generalized(family):
    """Return a program with a linear predictor."""

    def program(x, y=None):
        eta = x @ flat("b", constraints.real_vector, x.shape[1])
        likelihood = family(eta)
        with pyro.plate("data", len(x)):
            pyro.sample("y", likelihood, obs=y)

    return program


def negative_binomial(eta):
    theta = flat("theta", constraints.positive)
    return dist.GammaPoisson(theta, theta * (-eta).exp())


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("birthwt", lambda eta: dist.Bernoulli(logits=eta)),
        ("quine_nb", negative_binomial),
    ],
)
def test_generalized_linear_models_are_those_of_r(name, family):
    case = CASES[name]
    data = {key.lower(): torch.tensor(case[key]).double() for key in ("X", "y")}
    fit = probsl.fit(generalized(family), data, probsl.MLE())
    assert fit.status is Status.CONVERGED
    distance = fit.point()["b"].numpy() - case["estimate"]
    assert (np.abs(distance) < RELATIVE * np.array(case["se"])).all()
    assert_allclose(fit.log_likelihood(), case["loglik"], rtol=1e-8)
    if "theta" in case:
        assert_allclose(float(fit.point()["theta"]), case["theta"], rtol=RELATIVE)
