"""Observed values that depend on latents: Pyro scores them, and so does a fit."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import probsl
from probsl.program.problem import Problem

RNG = np.random.default_rng(0)
X = RNG.normal(size=50)
Y = 1.5 * X + RNG.normal(size=50)
# A normal prior of scale 10 is a ridge penalty of 0.01.
RIDGE = X @ Y / (X @ X + 0.01)


def residuals(x, y):
    b = pyro.sample("b", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("r", dist.Normal(0.0, 1.0), obs=y - b * x)


@pytest.mark.parametrize(
    "method", [probsl.MAP(), probsl.SVI(), probsl.SVI(AutoNormal)], ids=repr
)
def test_a_slope_by_observed_residuals_is_that_of_ridge_regression(method):
    fit = probsl.fit(residuals, {"x": X, "y": Y}, method)
    assert fit.status is probsl.Status.CONVERGED
    assert float(fit.point()["b"]) == pytest.approx(RIDGE, abs=1e-8)


def test_the_slopes_spread_is_that_of_ridge_regression():
    fit = probsl.fit(residuals, {"x": X, "y": Y}, probsl.SVI())
    expected = (X @ X + 0.01) ** -0.5
    assert fit.summary().loc["b", "sd"] == pytest.approx(expected, rel=1e-6)


def test_scores_are_of_the_residuals_of_new_rows():
    fit = probsl.fit(residuals, {"x": X, "y": Y}, probsl.MAP())
    new = {"x": X[:4] + 1, "y": Y[:4]}
    left = new["y"] - float(fit.point()["b"]) * new["x"]
    expected = -(left**2) / 2 - math.log(2 * math.pi) / 2
    assert probsl.log_score(fit, new).numpy() == pytest.approx(expected, abs=1e-12)


def test_what_is_shown_as_observed_is_at_the_estimate():
    fit = probsl.fit(residuals, {"x": X, "y": Y}, probsl.MAP())
    shown = probsl.to_arviz(fit, draws=4).observed_data["r"].to_numpy()
    assert shown == pytest.approx(Y - float(fit.point()["b"]) * X, abs=1e-12)


def test_a_walk_with_its_trend_taken_off_has_the_normal_equations_mode():
    steps = np.arange(len(Y))

    def walk(y):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        drift = pyro.sample("drift", dist.Normal(0.0, 0.3))
        rest = y - level - drift * torch.arange(len(y))
        pyro.sample("rest", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1), obs=rest)

    fit = probsl.fit(walk, {"y": Y}, probsl.SVI())
    design = np.stack([np.ones(len(Y)), steps], 1)
    precision = design.T @ design + np.diag([1.0, 0.3**-2])
    expected = np.linalg.solve(precision, design.T @ Y)
    found = [float(fit.point()[n]) for n in ("level", "drift")]
    assert found == pytest.approx(expected, abs=1e-6)


def test_an_observed_transform_has_no_jacobian_and_a_factor_adds_it():
    """The scale of a lognormal, by the logarithm that is a standard normal."""
    y = np.exp(Y)

    def of_logarithm(y):
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(0.0, 1.0), obs=y.log() / s)

    def with_jacobian(y):
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(0.0, 1.0), obs=y.log() / s)
            pyro.factor("jacobian", -s.log() - y.log())

    values = {"s": torch.tensor(1.7, dtype=torch.float64)}
    plain, whole = (
        Problem.build(program, {"y": y}) for program in (of_logarithm, with_jacobian)
    )
    z = dist.Normal(0.0, 1.0).log_prob(torch.tensor(Y) / values["s"]).sum()
    lognormal = dist.LogNormal(0.0, values["s"]).log_prob(torch.tensor(y)).sum()
    assert float(plain.log_likelihood(values, {})) == pytest.approx(float(z))
    assert float(whole.log_likelihood(values, {})) == pytest.approx(float(lognormal))


def test_an_observed_value_that_jumps_with_a_latent_is_refused():
    def uneven(y):
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("above", dist.Bernoulli(0.2), obs=(y > c).double())

    with pytest.raises(ValueError, match=r"'c' changes site 'above' .* no gradient"):
        probsl.fit(uneven, {"y": Y}, probsl.MAP())
