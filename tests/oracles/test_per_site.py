"""Fits with a method for each site: held still, without and with its prior."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from methods import Pair, fitted
from numpy.testing import assert_allclose
from programs import problem
from references import cases
from test_random_effects import intercepts, normal_case

import probsl
from probsl import MAP, MLE, Fixed, PerSite, Status

pytestmark = pytest.mark.usefixtures("float64_default")
QUINE = cases("mixed/mixed.json")["quine_nb"]
LINEAR = problem("linear")


def test_without_exceptions_it_is_the_other_method():
    for method in (MLE(), MAP(), MAP(prior_weight=0.3)):
        one = probsl.fit(LINEAR.program, LINEAR.data, PerSite({}, otherwise=method))
        other = probsl.fit(LINEAR.program, LINEAR.data, method)
        assert torch.equal(one.losses, other.losses)
        assert one.summary().equals(other.summary())


def test_priors_are_kept_and_dropped_site_by_site():
    method = PerSite({"sigma": MLE()}, otherwise=MAP())
    fit = probsl.fit(LINEAR.program, LINEAR.data, method)
    other = probsl.fit(LINEAR.program, LINEAR.data, MAP(prior_weight={"sigma": 0.0}))
    assert_allclose(fit.point()["w"], other.point()["w"], rtol=1e-8)
    reverse = PerSite({"w": MAP(prior_weight=2.0)}, otherwise=MLE())
    fit = probsl.fit(LINEAR.program, LINEAR.data, reverse)
    weights = {"w": 2.0, "sigma": 0.0}
    other = probsl.fit(LINEAR.program, LINEAR.data, MAP(prior_weight=weights))
    assert_allclose(fit.point()["w"], other.point()["w"], rtol=1e-8)


def test_a_site_held_still_is_a_constant_of_the_program():
    def known(x, y=None):
        w = pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 0.4), obs=y)

    held = PerSite({"sigma": Fixed(0.4)}, otherwise=MLE())
    fit = probsl.fit(LINEAR.program, LINEAR.data, held)
    other = probsl.fit(known, LINEAR.data, MLE())
    assert fit.status is Status.CONVERGED
    assert_allclose(fit.point()["w"], other.point()["w"], rtol=1e-8)
    assert float(fit.point()["sigma"]) == 0.4
    assert_allclose(fit.log_likelihood(), other.log_likelihood())
    table, expected = fit.summary(), other.summary()
    assert_allclose(table.loc[["w[0]", "w[1]"]], expected, rtol=1e-6)
    assert np.isnan(table.loc["sigma", "sd"])
    assert "none for sigma (held still)" in str(fit)
    for kind in ("expected", "opg", "sandwich", "HC3"):
        one, two = (probsl.standard_errors(f, kind) for f in (fit, other))
        assert_allclose(one[["w[0]", "w[1]"]], two, rtol=1e-6)
    one, two = (probsl.information_criteria(f) for f in (fit, other))
    assert_allclose(one, two, rtol=1e-9)
    assert torch.equal(fit.draw(3)["sigma"], torch.full((3,), 0.4).double())
    assert fit.predict(LINEAR.inputs, draws=4)["y"].shape == (4, 12)


def test_a_restricted_fit_is_tested_against_the_full_one():
    full = fitted(Pair("MLE", LINEAR))
    held = PerSite({"sigma": Fixed(0.5)}, otherwise=MLE())
    restricted = probsl.fit(LINEAR.program, LINEAR.data, held)
    found = probsl.likelihood_ratio_test(restricted, full)
    assert found.degrees_of_freedom == 1
    rise = 2 * (full.log_likelihood() - restricted.log_likelihood())
    assert_allclose(found.statistic, rise)


def negative_binomial(x, y=None):
    b = pyro.sample("b", dist.Normal(0.0, 5.0).expand([x.shape[1]]).to_event(1))
    theta = pyro.sample("theta", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.GammaPoisson(theta, theta * (-(x @ b)).exp()), obs=y)


def test_profiles_with_theta_held_are_those_of_r():
    data = {n: torch.tensor(QUINE[n.upper() if n == "x" else n]) for n in ("x", "y")}
    data = {n: v.double() for n, v in data.items()}
    method = PerSite({"theta": Fixed(QUINE["theta"])}, otherwise=MLE())
    fit = probsl.fit(negative_binomial, data, method)
    table = probsl.confidence_intervals(fit, kind="profile", sites=["b"])
    lower, upper = (np.array(QUINE["profile95"][n]) for n in ("lower", "upper"))
    assert (np.abs(table["lower"] - lower) < 1e-3 * (upper - lower)).all()
    assert (np.abs(table["upper"] - upper) < 1e-3 * (upper - lower)).all()
    free = probsl.fit(negative_binomial, data, MLE())
    assert_allclose(free.point()["theta"], QUINE["theta"], rtol=1e-4)


def test_random_effects_are_integrated_with_their_scale_held():
    _, data = normal_case("dyestuff")
    free = probsl.fit(intercepts, data, MLE())
    tau = float(free.point()["tau"])
    held = PerSite({"tau": Fixed(tau)}, otherwise=MLE())
    fit = probsl.fit(intercepts, data, held)
    assert_allclose(fit.log_likelihood(), free.log_likelihood(), rtol=1e-9)
    for name, value in free.point().items():
        assert_allclose(fit.point()[name], value, rtol=1e-4, atol=1e-4)
    assert list(fit.summary().index) == ["mu", "tau", "sigma"]
    kept = PerSite({"u": MAP(), "tau": Fixed(tau)}, otherwise=MLE())
    mode = probsl.fit(intercepts, data, kept)
    assert mode.posterior.target.integrated == ()
    assert_allclose(mode.point()["u"], free.point()["u"], rtol=0.2, atol=3.0)


def test_what_it_cannot_do_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(TypeError, match="method of 'w' must be MLE"):
        PerSite({"w": probsl.SVI()}, otherwise=MLE())
    with pytest.raises(TypeError, match="otherwise must be"):
        PerSite({}, otherwise=Fixed(1.0))
    with pytest.raises(TypeError, match="takes a mapping"):
        PerSite([1], otherwise=MLE())
    run = functools.partial(probsl.fit, LINEAR.program, LINEAR.data)
    for sites, message in (
        ({"v": MLE()}, "names 'v', which is not a latent"),
        ({"sigma": Fixed(-1.0)}, "outside its support"),
        ({"w": Fixed([1.0, 2.0, 3.0])}, r"have the shape \(2,\)"),
        ({"w": Fixed("one")}, "must be a number"),
    ):
        with pytest.raises(ValueError, match=message):
            run(PerSite(sites, otherwise=MLE()))
    fit = run(PerSite({"sigma": Fixed(0.4)}, otherwise=MLE()))
    with pytest.raises(TypeError, match="held still cannot be saved"):
        fit.save(tmp_path / "held.fit")
