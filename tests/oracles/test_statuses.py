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
    assert fit.status_sites == ("b[0]", "b[1]")


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
    assert fit.status_sites == ("unused",)


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


# A first search that fails is not yet the program's fault.


def five_points():
    return {"y": torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0], dtype=torch.float64)}


def shared_scale(y=None):
    w = pyro.sample("w", dist.Dirichlet(0.5 * torch.ones(2)))
    s = pyro.sample("s", dist.LogNormal(0.0, 2.0))
    with pyro.plate("components", 2):
        m = pyro.sample("m", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", 5):
        z = pyro.sample("z", dist.Categorical(w), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(m[z], s), obs=y)


@pytest.mark.parametrize("seed", range(4))
def test_a_mixture_of_five_points(seed):
    """From some starts one component runs off; EM finds the other ending, 8.7269.

    FitArrays of two and three with a common variance: the scale is sqrt(2.5 / 5).
    """
    fit = probsl.fit(shared_scale, five_points(), probsl.MLE(), seed=seed)
    assert fit.status is Status.CONVERGED
    right = 5 * (np.log(2 * np.pi * 0.5) / 2 + 0.5) - 2 * np.log(0.4) - 3 * np.log(0.6)
    assert float(fit.losses[-1]) == pytest.approx(right, rel=1e-6)
    np.testing.assert_allclose(np.sort(fit.point()["m"]), [0.5, 11.0], atol=1e-4)


def test_the_note_says_that_other_starts_were_tried():
    fit = probsl.fit(shared_scale, five_points(), probsl.MLE(), seed=2)
    assert fit.note.startswith(
        "from the first start the search ended BOUNDARY at 15.33"
    )


def test_a_hinge_beyond_the_data():
    """Where no row passes the hinge, its place has no influence: look elsewhere."""
    x = np.linspace(0, 10, 50)
    y = 2 * np.maximum(x - 4, 0) + 0.3 * np.random.default_rng(1).normal(size=50)

    def program(x, y=None):
        c = pyro.sample("c", dist.Normal(0.0, 10.0))
        w = pyro.sample("w", dist.Normal(0.0, 10.0))
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(w * torch.relu(x - c) + b, 1.0), obs=y)

    fit = probsl.fit(program, {"x": x, "y": y}, probsl.MLE(start={"c": 12.0}))
    assert fit.status is Status.CONVERGED
    c = np.linspace(3.5, 4.5, 1001)
    hinges = np.maximum(x - c[:, None], 0)
    least = min(
        np.linalg.lstsq(np.c_[h, np.ones(50)], y, rcond=None)[1][0] for h in hinges
    )
    right = least / 2 + 25 * np.log(2 * np.pi)
    assert float(fit.losses[-1]) == pytest.approx(right, abs=1e-4)


def test_classes_kept_apart_are_unbounded_from_everywhere():
    x = np.array([-3.0, -2, -1, 1, 2, 3])

    def program(x, y=None):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=b * x), obs=y)

    data = {"x": x, "y": (x > 0).astype(float)}
    fit = probsl.fit(program, data, probsl.MLE())
    assert fit.status is Status.UNBOUNDED
    assert fit.status_sites == ("b",)
    assert fit.note == ""


# Density that grows without limit is no free direction.


@point_methods
def test_a_perfect_line_is_unbounded(method):
    x = np.arange(10.0)

    def program(x, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        s = pyro.sample("s", dist.HalfNormal(5.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(a + b * x, s), obs=y)

    fit = probsl.fit(program, {"x": x, "y": 1 + 2 * x}, method)
    assert fit.status is Status.UNBOUNDED
    assert fit.status_sites == ("s",)


@pytest.mark.parametrize("law", [dist.Normal, dist.Laplace, dist.Cauchy])
def test_equal_values_are_unbounded(law):
    def program(y=None):
        m = pyro.sample("m", dist.Normal(0.0, 10.0))
        s = pyro.sample("s", dist.HalfNormal(5.0))
        with pyro.plate("rows", 4):
            pyro.sample("y", law(m, s), obs=y)

    fit = probsl.fit(program, {"y": np.full(4, 3.0)}, probsl.MLE())
    assert fit.status is Status.UNBOUNDED
    assert fit.status_sites == ("s",)


def test_a_component_on_one_point_is_unbounded():
    y = np.random.default_rng(0).normal(size=30)

    def program(y=None):
        m = pyro.sample("m", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
        s = pyro.sample("s", dist.HalfCauchy(1.0).expand([2]).to_event(1))
        half = dist.Categorical(torch.ones(2) / 2)
        with pyro.plate("rows", 30):
            pyro.sample("y", dist.MixtureSameFamily(half, dist.Normal(m, s)), obs=y)

    start = {"m": torch.tensor([y[0], 0.0]), "s": torch.tensor([1e-3, 1.0])}
    fit = probsl.fit(program, {"y": y}, probsl.MLE(start=start))
    assert fit.status is Status.UNBOUNDED
    assert fit.status_sites == ("s[0]",)
