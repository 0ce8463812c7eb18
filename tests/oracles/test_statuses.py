"""A status is true: free directions, failed steps and growing densities."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probsl
from probsl import Status

POINTS = [probsl.MLE(), probsl.MAP()]
point_methods = pytest.mark.parametrize("method", POINTS, ids=["MLE", "MAP"])


# Directions without curvature are judged elsewhere than at one point.


@point_methods
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tosses", [2, 10])
def test_half_heads(tosses, dtype, method):
    """The search ends exactly where torch's binomial has no second derivative."""

    def program(k=None):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        pyro.sample("k", dist.Binomial(tosses, p), obs=k)

    fit = probsl.fit(program, {"k": torch.tensor(tosses / 2, dtype=dtype)}, method)
    assert fit.status is Status.CONVERGED
    assert float(fit.point()["p"]) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("start", [None, {"a": 0.0, "b": 0.0}], ids=["near", "at"])
def test_a_balanced_regression_from_its_optimum(start):
    """Two coefficients at once have no second derivative where both are zero."""

    def program(x, k=None):
        a = pyro.sample("a", dist.Normal(0.0, 5.0))
        b = pyro.sample("b", dist.Normal(0.0, 5.0))
        with pyro.plate("rows", 4):
            pyro.sample("k", dist.Binomial(10, logits=a + b * x), obs=k)

    data = {"x": np.array([-1.0, -1, 1, 1]), "k": np.full(4, 5.0)}
    fit = probsl.fit(program, data, probsl.MLE(start=start))
    assert fit.status is Status.CONVERGED
    assert float(fit.point()["a"]) == pytest.approx(0, abs=1e-6)
    assert float(fit.point()["b"]) == pytest.approx(0, abs=1e-6)


def test_one_of_three_that_has_no_curvature_is_free():
    """Two coefficients end where the code has no curvature, a third one is free."""

    def program(x, k=None):
        a = pyro.sample("a", dist.Normal(0.0, 5.0))
        b = pyro.sample("b", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
        with pyro.plate("rows", 4):
            logits = a + (b[0] + b[1]) * x
            pyro.sample("k", dist.Binomial(10, logits=logits), obs=k)

    data = {"x": np.array([-1.0, -1, 1, 1]), "k": np.full(4, 5.0)}
    start = {"a": 0.0, "b": torch.zeros(2)}
    fit = probsl.fit(program, data, probsl.MLE(start=start))
    assert fit.status is Status.UNIDENTIFIED
    assert fit.sites == ("b[0]", "b[1]")


@pytest.mark.parametrize("factors", [2, 3])
def test_a_product_that_starts_at_zero(factors):
    """Where several factors are zero nothing has an influence, and yet all have."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    y = 3 * x + rng.normal(size=30)

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([factors]).to_event(1))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(w.prod() * x, 1.0), obs=y)

    method = probsl.MLE(start={"w": torch.zeros(factors)})
    fit = probsl.fit(program, {"x": x, "y": y}, method)
    assert fit.status is Status.UNIDENTIFIED  # only their product is settled
    assert float(fit.point()["w"].prod()) == pytest.approx(x @ y / (x @ x), rel=1e-6)


def test_a_symmetric_mixture_leaves_its_saddle():
    rng = np.random.default_rng(0)
    y = np.r_[rng.normal(-3, 1, 20), rng.normal(3, 1, 20)]

    def program(y=None):
        m = pyro.sample("m", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
        half = dist.Categorical(torch.ones(2) / 2)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.MixtureSameFamily(half, dist.Normal(m, 1.0)), obs=y)

    method = probsl.MLE(start={"m": torch.full((2,), y.mean())})
    fit = probsl.fit(program, {"y": y}, method)
    assert fit.status is Status.CONVERGED
    low, high = np.sort(fit.point()["m"].numpy())
    assert low == pytest.approx(-3, abs=0.6)
    assert high == pytest.approx(3, abs=0.6)


def test_what_has_no_influence_is_named():
    def program(y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("unused", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4):
            pyro.sample("y", dist.Normal(a, 1.0), obs=y)

    fit = probsl.fit(program, {"y": np.array([-1.0, 1.0, 2.0, -2.0])}, probsl.MLE())
    assert fit.status is Status.UNIDENTIFIED
    assert fit.sites == ("unused",)


# A stalled search says so, and does not ask for more steps.


@point_methods
def test_a_slope_that_is_not_the_densitys_stalls(method):
    def turned(y=None):
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.Normal(2 * z.detach() - z, 1.0), obs=y)

    fit = probsl.fit(turned, {"y": np.array([0.5, 0.6, 0.7])}, method)
    assert fit.status is Status.STALLED
    assert "max_steps" not in fit.message
    assert "no step improves the objective" in fit.message
    assert fit.steps < 100
