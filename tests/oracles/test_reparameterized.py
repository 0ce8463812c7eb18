"""Reparameterizations change no role: what the user wrote is what a method drops."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import (
    HaarReparam,
    LocScaleReparam,
    ProjectedNormalReparam,
    SplitReparam,
    StableReparam,
    StudentTReparam,
    TransformReparam,
)

import probsl
from probsl.program.problem import Problem
from probsl.program.sites import Role

Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SPREAD = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
DATA = {"spread": SPREAD, "y": Y}


def schools(spread, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(spread)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, spread), obs=y)


def location(y):
    v = pyro.sample("v", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    s = pyro.sample("s", dist.LogNormal(1.0, 0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(v @ torch.tensor([1.0, 0.5]), s), obs=y)


def roles(program, data):
    return {s.name: s.role for s in Problem.build(program, data).sites}


@pytest.mark.parametrize("centered", [0.0, 0.4, None])
def test_the_noise_of_a_random_effect_is_a_random_effect(centered):
    program = poutine.reparam(schools, config={"theta": LocScaleReparam(centered)})
    assert roles(program, DATA) == {
        "mu": Role.PARAMETER,
        "tau": Role.PARAMETER,
        "theta_decentered": Role.RANDOM_EFFECT,
        "theta": Role.DETERMINISTIC,
        "y": Role.OBSERVED,
    }
    fit = probsl.fit(program, DATA, probsl.MLE(max_steps=3))
    assert fit.posterior.target.integrated == ("theta_decentered",)


def test_no_method_drops_the_noise_of_a_random_effect():
    program = poutine.reparam(schools, config={"theta": LocScaleReparam(0.0)})
    start = {
        "mu": torch.tensor(4.0),
        "tau": torch.tensor(3.0),
        "theta_decentered": torch.linspace(-1.0, 1.0, 8),
    }
    noise = start["theta_decentered"].double()
    likelihood = dist.Normal(4.0 + 3.0 * noise, torch.tensor(SPREAD))
    expected = likelihood.log_prob(torch.tensor(Y)).sum()
    expected = expected + dist.Normal(0.0, 1.0).log_prob(noise).sum()
    for method in (
        probsl.MLE(integrate=(), start=start),
        probsl.MAP(prior_weight=0.0, start=start),
    ):
        fit = probsl.fit(program, DATA, method, callbacks=[lambda *_: True])
        assert float(fit.losses[0]) == pytest.approx(-float(expected), rel=1e-9)


CHANGES = {
    "loc-scale": {"v": LocScaleReparam(0.0)},
    "transform": {"s": TransformReparam()},
    "rotated": {"v": HaarReparam(-1)},
    "in parts": {"v": SplitReparam([1, 1], -1)},
    "both": {"v": LocScaleReparam(0.3), "s": TransformReparam()},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_reparameterized_parameter_has_the_same_maximum_likelihood(change):
    program = poutine.reparam(location, config=CHANGES[change])
    fit = probsl.fit(program, {"y": Y}, probsl.MLE())
    mean = float(fit.point()["v"] @ torch.tensor([1.0, 0.5], dtype=torch.float64))
    assert mean == pytest.approx(Y.mean(), abs=1e-4)
    assert float(fit.point()["s"]) == pytest.approx(Y.std(), abs=1e-4)


@pytest.mark.parametrize("change", ["loc-scale", "rotated", "in parts"])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_a_linear_change_has_the_same_mode_at_every_weight_of_the_prior(change, weight):
    method = probsl.MAP(prior_weight=weight)
    plain = probsl.fit(location, {"y": Y}, method)
    program = poutine.reparam(location, config=CHANGES[change])
    fit = probsl.fit(program, {"y": Y}, method)
    assert fit.log_likelihood() == pytest.approx(plain.log_likelihood(), abs=1e-8)
    for name, value in plain.point().items():
        assert fit.point()[name].tolist() == pytest.approx(value.tolist(), abs=1e-4)


def test_noise_that_is_more_than_the_site_keeps_its_distribution():
    def program(y):
        direction = pyro.sample("direction", dist.ProjectedNormal(torch.zeros(2)))
        w = pyro.sample("w", dist.StudentT(4.0, 0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(direction[..., 0] + w, 1.0), obs=y)

    config = {"direction": ProjectedNormalReparam(), "w": StudentTReparam()}
    assert roles(poutine.reparam(program, config=config), {"y": Y}) == {
        "direction_normal": Role.RANDOM_EFFECT,
        "direction": Role.DETERMINISTIC,
        "w_gamma": Role.RANDOM_EFFECT,
        "w": Role.PARAMETER,
        "y": Role.OBSERVED,
    }


def test_the_noise_of_an_observed_site_is_no_prior():
    def program(y):
        m = pyro.sample("m", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Stable(1.5, 0.0, 1.0, m), obs=y)

    found = roles(poutine.reparam(program, config={"y": StableReparam()}), {"y": Y})
    assert found.pop("m") is Role.PARAMETER
    assert found.pop("y") is Role.OBSERVED
    assert set(found.values()) == {Role.RANDOM_EFFECT}


def test_a_hyperparameter_whose_name_begins_like_the_noise_is_a_parent():
    def program(spread, y):
        scale = pyro.sample("theta_scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("schools", len(spread)):
            with poutine.reparam(config={"theta": LocScaleReparam(0.0)}):
                theta = pyro.sample("theta", dist.Normal(0.0, scale))
            pyro.sample("y", dist.Normal(theta, spread), obs=y)

    found = roles(program, DATA)
    assert found["theta_scale"] is Role.PARAMETER
    assert found["theta_decentered"] is Role.RANDOM_EFFECT


def test_the_site_that_the_user_wrote_is_reported_and_predicted():
    def program(group, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("groups", 2):
            theta = pyro.sample("theta", dist.Normal(mu, 3.0))
        with pyro.plate("data", len(group)):
            pyro.sample("y", dist.Normal(theta[group], 10.0), obs=y)

    changed = poutine.reparam(program, config={"theta": LocScaleReparam(0.0)})
    data = {"group": np.arange(8) % 2, "y": Y}
    fit = probsl.fit(changed, data, probsl.MAP())
    point = fit.point()
    expected = point["mu"] + 3.0 * point["theta_decentered"]
    assert point["theta"].tolist() == pytest.approx(expected.tolist())
    # A linear change moves no mode.
    plain = probsl.fit(program, data, probsl.MAP()).point()["theta"]
    assert point["theta"].tolist() == pytest.approx(plain.tolist(), abs=1e-6)
    drawn = fit.predict({"group": data["group"]}, draws=2)
    assert drawn["theta"][1].tolist() == pytest.approx(expected.tolist())
