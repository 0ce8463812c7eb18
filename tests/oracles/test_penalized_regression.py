"""Normal and Laplace priors against elastic nets and penalized logistic fits."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.testing import assert_allclose
from references import arrays, cases
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression, PoissonRegressor
from sklearn.preprocessing import scale

import probsl
from probsl import Status

FAMILIES = {
    "gaussian": lambda eta: dist.Normal(eta, 1.0),
    "poisson": lambda eta: dist.Poisson(eta.exp()),
}


# Priors are made inside the programs, in float64; made outside, their scales would be
# rounded to float32.
def penalized(x, y=None, *, family, prior, prior_scale):
    w = pyro.sample("w", prior(0.0, prior_scale).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", FAMILIES[family](x @ w), obs=y)


def elastic_net(x, y=None, *, family, normal_sd, laplace_scale):
    """Give w the product of a normal and a Laplace prior."""
    laplace = dist.Laplace(0.0, laplace_scale)
    w = pyro.sample("w", laplace.expand([x.shape[1]]).to_event(1))
    pyro.factor("normal", dist.Normal(0.0, normal_sd).log_prob(w).sum())
    with pyro.plate("data", len(x)):
        pyro.sample("y", FAMILIES[family](x @ w), obs=y)


def program_of(case):
    sd, scale_ = case["prior_normal_sd"], case["prior_laplace_scale"]
    if sd and scale_:
        program = functools.partial(elastic_net, normal_sd=sd, laplace_scale=scale_)
    else:
        prior = dist.Normal if sd else dist.Laplace
        program = functools.partial(penalized, prior=prior, prior_scale=sd or scale_)
    return functools.partial(program, family=case["family"])


def slopes(case, x, y, w):
    """Return how the mean loss and the normal prior slope at w."""
    eta = x @ w
    mean = eta if case["family"] == "gaussian" else eta.exp()
    return x.T @ (mean - y) / len(y) + case["lam"] * (1 - case["l1_weight"]) * w


CASES = cases("glmnet/glmnet.json")


@pytest.mark.parametrize("name", CASES)
def test_map_is_the_elastic_net_of_glmnet(name):
    case = CASES[name]
    data = arrays(f"glmnet/{case['data']}")
    fit = probsl.fit(program_of(case), data, probsl.MAP())
    w, exact = fit.point()["w"], torch.tensor(case["params_exact"]).double()
    assert fit.status is Status.CONVERGED
    assert torch.equal(w == 0, exact == 0)
    # The reference leaves a slope of up to 3e-8, and the least curvature of the mean
    # loss is 0.7; glmnet itself stops earlier, at up to 7.5e-4.
    assert_allclose(w, exact, atol=5e-8, rtol=0)
    # Ours leaves what rounding leaves of sums of up to 300 terms.
    slope, limit = slopes(case, **data, w=w), case["lam"] * case["l1_weight"]
    kept = w != 0
    assert_allclose(slope[kept], -limit * w[kept].sign(), atol=1e-12, rtol=0)
    assert (slope[~kept].abs() <= limit).all()


X, LABELS = load_breast_cancer(return_X_y=True)
X = scale(X)


def classes(x, y=None, *, prior, prior_scale):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    w = pyro.sample("w", prior(0.0, prior_scale).expand([x.shape[1]]).to_event(1))
    with pyro.plate("patients", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=b + x @ w), obs=y)


# The intercept has no penalty.
FREE_INTERCEPT = {"b": 0.0}


@pytest.mark.parametrize("sd", [0.1, 1.0, 10.0])
def test_logistic_regression_with_a_normal_prior_is_sklearns(sd):
    data = {"x": X, "y": LABELS.astype(float)}
    program = functools.partial(classes, prior=dist.Normal, prior_scale=sd)
    fit = probsl.fit(program, data, probsl.MAP(prior_weight=FREE_INTERCEPT))
    rival = LogisticRegression(
        C=sd**2, solver="newton-cholesky", tol=1e-12, max_iter=1000
    ).fit(X, LABELS)
    assert fit.status is Status.CONVERGED
    assert_allclose(fit.point()["w"], rival.coef_[0], rtol=1e-6)
    assert_allclose(fit.point()["b"], rival.intercept_[0], rtol=1e-6)


def test_logistic_regression_with_a_laplace_prior_meets_the_optimality_conditions():
    # sklearn's own L1 solvers stop at 1e-5 or so, so the conditions are the judge:
    # the slope of the likelihood is 1 / scale toward zero where w is not zero, and
    # smaller where it is.
    slope_limit = 1 / 0.3
    data = {"x": X, "y": LABELS.astype(float)}
    program = functools.partial(
        classes, prior=dist.Laplace, prior_scale=1 / slope_limit
    )
    fit = probsl.fit(program, data, probsl.MAP(prior_weight=FREE_INTERCEPT))
    assert fit.status is Status.CONVERGED
    w, b = fit.point()["w"].numpy(), float(fit.point()["b"])
    residual = LABELS - 1 / (1 + np.exp(-(X @ w + b)))
    slope = X.T @ residual
    kept = w != 0
    assert 0 < kept.sum() < len(w)
    assert_allclose(slope[kept], slope_limit * np.sign(w[kept]), rtol=1e-6)
    assert (np.abs(slope[~kept]) < slope_limit).all()
    # In units of a row's residual, of which there are 569.
    assert abs(residual.sum()) < 1e-6


def test_poisson_regression_with_a_normal_prior_is_sklearns():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 4))
    y = generator.poisson(np.exp(0.5 + x @ [0.3, -0.5, 0.0, 0.2])).astype(float)

    def program(x, y=None):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        w = pyro.sample("w", dist.Normal(0.0, 0.2).expand([4]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Poisson((b + x @ w).exp()), obs=y)

    data = {"x": x, "y": y}
    fit = probsl.fit(program, data, probsl.MAP(prior_weight=FREE_INTERCEPT))
    rival = PoissonRegressor(
        alpha=1 / (300 * 0.2**2), solver="newton-cholesky", tol=1e-12
    ).fit(x, y)
    assert fit.status is Status.CONVERGED
    assert_allclose(fit.point()["w"], rival.coef_, rtol=1e-6)
    assert_allclose(fit.point()["b"], rival.intercept_, rtol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_weight_multiplies_a_laplace_prior_of_one_site_only(weight):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=generator).double()
    y = x @ torch.tensor([0.1, 0.1]).double()

    def program(x, y=None):
        u = pyro.sample("u", dist.Laplace(0.0, 0.1))
        v = pyro.sample("v", dist.Laplace(0.0, 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x[:, 0] * u + x[:, 1] * v, 1.0), obs=y)

    # Weight 0 for u leaves the least squares of y - v x1; v keeps its full prior.
    fit = probsl.fit(program, {"x": x, "y": y}, probsl.MAP(prior_weight={"u": weight}))
    u, v = fit.point()["u"], fit.point()["v"]
    slope = x.T @ (y - x[:, 0] * u - x[:, 1] * v)
    assert v == 0
    assert abs(slope[1]) < 10
    if u == 0:
        assert abs(slope[0]) < 10 * weight
    else:
        assert_allclose(slope[0], 10 * weight, atol=1e-9)


def test_a_laplace_prior_shrinks_exactly_to_its_location():
    x = torch.linspace(-1, 1, 20, dtype=torch.float64)

    def program(x, y=None):
        w = pyro.sample("w", dist.Laplace(torch.tensor([1.5, -2.0]), 0.01).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w[0] + x * w[1], 1.0), obs=y)

    fit = probsl.fit(program, {"x": x, "y": 1.4 + 5 * x}, probsl.MAP())
    center = fit.point()["w"][0]
    # (1.5 - 1.4) * 20 pulls with 2, the prior with 100.
    assert center == 1.5
    # The slope's sum of squares is 7.37: 7.37 * (5 - w) = 100 has w below -2.
    assert fit.point()["w"][1] == -2.0
