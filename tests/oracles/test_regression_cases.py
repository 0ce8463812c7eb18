"""Maximum likelihood of many families on published data, raw columns and all."""

import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.testing import assert_allclose
from pyro.distributions import constraints
from references import arrays, cases

import probsl
from probsl import Status

CASES = cases("regression_cases/cases.json")


class InverseGaussian(dist.TorchDistribution):
    """Inverse Gaussian distribution with a mean and a shape, for its density only."""

    arg_constraints = {"mean": constraints.positive, "shape": constraints.positive}
    support = constraints.positive

    def __init__(self, mean, shape, validate_args=None):
        self._mean, self._shape = torch.broadcast_tensors(mean, shape)
        super().__init__(self._mean.shape, validate_args=False)

    mean = property(lambda self: self._mean)
    shape_parameter = property(lambda self: self._shape)

    def log_prob(self, value):
        mean, shape = self._mean, self._shape
        constant = (shape.log() - math.log(2 * math.pi) - 3 * value.log()) / 2
        return constant - shape * (value - mean) ** 2 / (2 * mean**2 * value)

    def expand(self, batch_shape, _instance=None):
        return InverseGaussian(
            self._mean.expand(batch_shape), self._shape.expand(batch_shape)
        )


class PositivePoisson(dist.Poisson):
    """Poisson distribution given that it is greater than 0."""

    support = constraints.positive_integer

    def log_prob(self, value):
        return super().log_prob(value) - torch.log(-torch.expm1(-self.rate))

    def expand(self, batch_shape, _instance=None):
        return PositivePoisson(self.rate.expand(batch_shape))


def coefficients(count, name="b"):
    """Sample coefficients; maximum likelihood drops the prior."""
    return pyro.sample(name, dist.Normal(0.0, 1.0).expand([count]).to_event(1))


def positive(name):
    return pyro.sample(name, dist.HalfNormal(1.0))


# Linear predictor -> likelihood.
FAMILIES = {
    ("gaussian", "identity"): lambda eta: dist.Normal(eta, positive("sigma")),
    ("gaussian", "log"): lambda eta: dist.Normal(eta.exp(), positive("sigma")),
    ("bernoulli", "logit"): lambda eta: dist.Bernoulli(logits=eta),
    ("poisson", "log"): lambda eta: dist.Poisson(eta.exp()),
    ("truncated_poisson", "log"): lambda eta: PositivePoisson(eta.exp()),
    ("inverse_gaussian", "log"): lambda eta: InverseGaussian(
        eta.exp(), positive("shape")
    ),
}


def generalized(x, y=None, *, family):
    eta = x @ coefficients(x.shape[1])
    likelihood = FAMILIES[family](eta)
    with pyro.plate("data", len(x)):
        pyro.sample("y", likelihood, obs=y)


def gamma(x, y=None):
    mean, shape = (x @ coefficients(x.shape[1])).exp(), positive("shape")
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Gamma(shape, shape / mean), obs=y)


def negative_binomial(x, y=None):
    mean, alpha = (x @ coefficients(x.shape[1])).exp(), positive("alpha")
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.GammaPoisson(1 / alpha, 1 / (alpha * mean)), obs=y)


def zero_inflated(x, x_inflation, y=None):
    g = coefficients(x_inflation.shape[1], "g")
    rate = (x @ coefficients(x.shape[1])).exp()
    with pyro.plate("data", len(x)):
        inflated = dist.ZeroInflatedPoisson(rate, gate_logits=x_inflation @ g)
        pyro.sample("y", inflated, obs=y)


def multinomial(x, y=None):
    prior = dist.Normal(0.0, 1.0).expand([x.shape[1], 6]).to_event(2)
    logits = x @ pyro.sample("b", prior)
    logits = torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=logits), obs=y)


OTHERS = {
    "gamma": gamma,
    "negative_binomial": negative_binomial,
    "zero_inflated_poisson": zero_inflated,
    "categorical": multinomial,
}


def load(name):
    """Return a case with its program and its data."""
    case = CASES[name]
    program = OTHERS.get(case["family"]) or functools.partial(
        generalized, family=(case["family"], case["link"])
    )
    return case, program, arrays(f"regression_cases/{case['file']}")


def parameters(point, family):
    """Return the site values in the order of the reference."""
    order = {"zero_inflated_poisson": ["g", "b"], "negative_binomial": ["b", "alpha"]}
    sites = order.get(family, ["b"])
    return np.concatenate([point[site].reshape(-1).numpy() for site in sites])


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if not c["penalty"]])
def test_maximum_likelihood_is_the_published_one(name):
    case, program, data = load(name)
    exact = case["mle"]
    fit = probsl.fit(program, data, probsl.MLE())
    ours = parameters(fit.point(), case["family"])
    params, errors = (
        np.array(exact[key], dtype=float).reshape(-1)
        for key in ("params", "se_observed")
    )
    assert fit.status is Status.CONVERGED
    # The optimum is given to ten digits, and a slope that rounding leaves moves it by
    # far less than a millionth of a standard error.
    digits = 0.6e-9 * np.abs(params) + 1e-6 * errors
    assert (np.abs(ours - params) < digits).all()
    assert_allclose(fit.log_likelihood(), exact["log_likelihood"], rtol=1e-9)
    assert_allclose(-fit.losses[-1], exact["log_likelihood"], rtol=1e-9)
    for scale in ("sigma", "shape"):
        if scale in exact:
            assert_allclose(fit.point()[scale], exact[scale], rtol=1e-8)
    # What R or Stata printed agrees with the optimum within 0.002 standard errors.
    printed = np.array(case["params"], dtype=float).reshape(-1)
    assert (np.abs(ours - printed) < 0.002 * errors + digits).all()


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c["penalty"]])
def test_penalized_likelihood_has_the_published_zeros(name):
    case, _, data = load(name)
    penalty = torch.tensor(case["penalty"]).double()

    def program(x, y=None):
        flat = pyro.sample("flat", dist.ImproperUniform(constraints.real, (), ()))
        shrunk = pyro.sample("shrunk", dist.Laplace(0.0, 1 / penalty[1:]).to_event(1))
        eta = x @ torch.cat([flat[None], shrunk])
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=eta), obs=y)

    assert penalty[0] == 0
    fit = probsl.fit(program, data, probsl.MAP())
    point, exact = fit.point(), np.array(case["mle"]["params"])
    ours = np.array([float(point["flat"]), *point["shrunk"].tolist()])
    assert fit.status is Status.CONVERGED
    assert np.array_equal(ours == 0, exact == 0)
    # The reference was found by an objective that agrees within 2e-9; its parameters
    # are then good to the square root of that.
    assert_allclose(ours, exact, rtol=1e-4)
    # The conditions of the optimum itself, to rounding in sums of 32 terms of up to 30.
    x, y = data["x"].numpy(), data["y"].numpy()
    slope = x.T @ (y - 1 / (1 + np.exp(-x @ ours)))
    kept = ours != 0
    expected = np.array(case["penalty"]) * np.sign(ours)
    assert_allclose(slope[kept], expected[kept], atol=1e-9, rtol=0)
    assert (np.abs(slope[~kept]) < np.array(case["penalty"])[~kept]).all()
