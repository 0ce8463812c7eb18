"""Laplace's approximation against closed forms, full-rank fits and brute force."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from methods import Pair, fitted
from numpy.testing import assert_allclose
from programs import PROBLEMS, problem

import probsl
from probsl import LaplaceApproximation

pytestmark = pytest.mark.usefixtures("float64_default")
RNG = np.random.default_rng(0)
X = torch.from_numpy(np.stack([np.ones(30), RNG.normal(size=30)], 1))
Y = X @ torch.tensor([0.5, -1.0]).double() + torch.from_numpy(RNG.normal(size=30))


def conjugate(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def logistic(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def evidence(fit):
    return float(fit.note.split("log marginal likelihood ")[1].split(" ")[0])


def test_a_normal_posterior_and_its_evidence_are_exact():
    fit = probsl.fit(conjugate, {"x": X, "y": Y}, LaplaceApproximation())
    precision = X.T @ X + torch.eye(2) / 4
    covariance = torch.linalg.inv(precision)
    mean = covariance @ X.T @ Y
    assert_allclose(fit.point()["w"], mean, rtol=1e-8)
    assert_allclose(fit.summary()["sd"], covariance.diagonal().sqrt(), rtol=1e-8)
    draws = fit.draw(20_000)["w"]
    # 20,000 draws err by 0.7 % of a variance: 5 of these.
    assert_allclose(torch.cov(draws.T), covariance, rtol=0.035, atol=2e-4)
    marginal = torch.eye(30) + 4 * X @ X.T
    exact = torch.distributions.MultivariateNormal(torch.zeros(30), marginal)
    assert_allclose(evidence(fit), float(exact.log_prob(Y)), atol=1e-3)


def test_the_densities_of_draws_are_those_of_the_normal_distribution():
    fit = probsl.fit(conjugate, {"x": X, "y": Y}, LaplaceApproximation())
    covariance = torch.linalg.inv(X.T @ X + torch.eye(2) / 4)
    normal = torch.distributions.MultivariateNormal(fit.point()["w"], covariance)
    draws = fit.draw(5, seed=3)["w"]
    found = fit.posterior.log_density(5, 3)
    assert_allclose(found, normal.log_prob(draws), rtol=1e-7)


def positive(y=None):
    rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
    with pyro.plate("days", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def test_a_positive_latent_is_log_normal():
    """The posterior is Gamma(3 + sum, 2 + n): of its log the curvature is the shape."""
    y = torch.tensor([2.0, 3.0, 1.0, 4.0])
    fit = probsl.fit(positive, {"y": y}, LaplaceApproximation())
    shape, rate = 3.0 + float(y.sum()), 2.0 + len(y)
    draws = fit.draw(4000)["rate"].log()
    assert_allclose(float(fit.posterior.mode), math.log(shape / rate), atol=1e-6)
    assert_allclose(float(fit.posterior.root), shape**-0.5, rtol=1e-6)
    assert_allclose(draws.std(), shape**-0.5, rtol=0.06)
    other = probsl.fit(positive, {"y": y}, LaplaceApproximation(space="constrained"))
    assert_allclose(
        float(other.posterior.mode), math.log((shape - 1) / rate), atol=1e-6
    )
    # The densities of draws integrate to one, whatever the transform.
    grid = torch.linspace(-4, 4, 2001)
    values = (other.posterior.mode + grid * other.posterior.root[0]).exp()
    assert values.isfinite().all()
    exact = shape * math.log(rate) - math.lgamma(shape)
    exact = 3 * math.log(2) - math.lgamma(3) - exact
    exact -= sum(math.lgamma(v + 1) for v in y)
    # Stirling's formula for Gamma(13) is short by 1 / (12 * 13).
    assert_allclose(evidence(fit), exact - 1 / (12 * shape), atol=1e-3)


def test_the_gauss_newton_matrix_of_a_canonical_link_is_the_hessian():
    y = (Y > 0).double()
    fits = [
        probsl.fit(
            logistic, {"x": X, "y": y}, LaplaceApproximation(curvature=curvature)
        )
        for curvature in ("hessian", "ggn")
    ]
    assert "Gauss-Newton" in fits[1].note
    assert_allclose(fits[0].posterior.root, fits[1].posterior.root, rtol=1e-6)
    spread = probsl.fit(logistic, {"x": X, "y": y}, probsl.SVI()).summary()["sd"]
    assert_allclose(fits[0].summary()["sd"], spread, rtol=0.1)


def test_a_diagonal_has_the_variance_that_is_left():
    fit = probsl.fit(
        conjugate, {"x": X, "y": Y}, LaplaceApproximation(structure="diagonal")
    )
    precision = X.T @ X + torch.eye(2) / 4
    assert_allclose(fit.summary()["sd"], precision.diagonal().rsqrt(), rtol=1e-8)


@pytest.mark.parametrize("case", PROBLEMS, ids=str)
def test_every_program_has_one_or_a_reason(case):
    fit, reason = None, ""
    try:
        fit = probsl.fit(case.program, case.data, LaplaceApproximation())
    except ValueError as error:
        reason = str(error)
    if fit is None:
        assert "needs a mode" in reason
        return
    table = fit.summary()
    own = {p.name for p in fit.problem.own_parameters}
    for label, line in table.iterrows():
        if label.split("[")[0].removesuffix(" (own)") in own or "correlation" in label:
            continue
        assert np.isnan(line["sd"]) or line["sd"] >= 0
    for site in fit.problem.latents:
        assert site.support.check(fit.draw(3)[site.name]).all()
    if "discrete" not in case.has:  # each draw of these is a sum that takes a while
        comparison = probsl.compare({"L": fit, "MAP": fitted(Pair("MAP", case))})
        assert list(comparison.scores.index) == ["L", "MAP"]


def test_what_it_cannot_do_is_refused_in_a_sentence(tmp_path):
    def separated(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=w * x), obs=y)

    data = {"x": torch.tensor([-1.0, 1.0]), "y": torch.tensor([0.0, 1.0])}
    with pytest.raises(ValueError, match="needs a mode, and the search for it ended"):
        probsl.fit(separated, data, LaplaceApproximation(prior_weight=0.0))
    with pytest.raises(ValueError, match="curvature must be 'hessian' or 'ggn'"):
        LaplaceApproximation(curvature="fisher")
    with pytest.raises(ValueError, match="structure must be"):
        LaplaceApproximation(structure="kron")
    case = problem("linear")
    fit = probsl.fit(case.program, case.data, LaplaceApproximation())
    with pytest.raises(TypeError, match="cannot be saved"):
        fit.save(tmp_path / "laplace.fit")
