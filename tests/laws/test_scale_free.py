"""A common factor of weights, or of the program's own scale, changes no estimate."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import PROBLEMS
from pyro import poutine

import probsl

FACTORS = (1e-6, 1.0 / 20000, 1e6)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
NAMES = ("linear", "poisson", "mixture")


def logistic_data(dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 3))
    p = 1 / (1 + np.exp(-x @ [1.0, -0.55, 0.2]))
    y = rng.random(2000) < p
    return {"x": torch.tensor(x, dtype=dtype), "y": torch.tensor(y).to(dtype)}


def logistic(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 10.0).expand([3]).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


@DTYPES
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", NAMES)
def test_a_factor_of_the_weights(name, factor, dtype):
    case = next(c for c in PROBLEMS if c.name == name)
    plain = probsl.fit(case.program, case.data, probsl.MLE(), dtype=dtype)
    rows = len(next(iter(case.data.values())))
    weighted = probsl.fit(
        case.program,
        case.data,
        probsl.MLE(),
        dtype=dtype,
        weights=np.full(rows, factor),
    )
    assert weighted.status is plain.status
    tolerance = 1e-3 if dtype is torch.float32 else 1e-6
    for site, value in plain.point().items():
        torch.testing.assert_close(
            weighted.point()[site], value, rtol=tolerance, atol=tolerance
        )


@DTYPES
@pytest.mark.parametrize("factor", FACTORS)
def test_a_scale_of_the_program(factor, dtype):
    data = logistic_data(dtype)

    def scaled(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 10.0).expand([3]).to_event(1))
        with pyro.plate("rows", len(x)), poutine.scale(scale=factor):
            pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    plain = probsl.fit(logistic, data, probsl.MLE())
    found = probsl.fit(scaled, data, probsl.MLE())
    assert found.status is plain.status is probsl.Status.CONVERGED
    torch.testing.assert_close(
        found.point()["w"], plain.point()["w"], atol=1e-4, rtol=0
    )
    assert float(found.losses[-1]) == pytest.approx(factor * float(plain.losses[-1]))


@pytest.mark.parametrize("tolerance", [1.0, 2, 1e3])
@pytest.mark.parametrize("method", [probsl.MLE, probsl.MAP, probsl.SVI])
def test_a_tolerance_that_stops_everything_is_refused(method, tolerance):
    with pytest.raises(ValueError, match="tolerance must be below 1"):
        method(tolerance=tolerance)


def test_a_probability_is_at_most_one():
    """Far out log gammas are rounded to differences that no probability has."""
    y = torch.tensor([15.0, 14.0, 16.0])

    def program(y=None):
        r = pyro.sample("r", dist.Gamma(1.0, 1e-9))
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.BetaBinomial(0.3 * r, 0.7 * r, 50.0), obs=y)

    fit = probsl.fit(program, {"y": y}, probsl.MAP(start={"r": 1e12}, max_steps=1))
    assert probsl.log_score(fit, {"y": y}).max() <= 0


def test_relaxed_values_may_have_more():
    """Where a program switches validation off, values are no draws of the law."""

    def program(y=None):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("rows", 2):
            law = dist.Binomial(2, p, validate_args=False)
            pyro.sample("y", law, obs=y)

    y = torch.tensor([-3.0, 5.0], dtype=torch.float64)
    fit = probsl.fit(program, {"y": y}, probsl.MAP(start={"p": 0.5}, max_steps=1))
    p = fit.point()["p"]
    expected = dist.Binomial(2, p, validate_args=False).log_prob(y)
    torch.testing.assert_close(
        probsl.log_score(fit, {"y": y}), expected, rtol=1e-9, atol=0
    )
