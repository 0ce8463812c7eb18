"""Optima where an observed value meets the edge of its support: closed forms."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch.distributions.transforms import AffineTransform

import probsl
from probsl import Status

PARETO = np.random.default_rng(0).uniform(0, 7.3, 30) + 0.1
UNIFORM = np.random.default_rng(0).uniform(0, 7.0, 40)
SHIFTED = 3 + np.random.default_rng(0).exponential(2.0, 40)

STEPS = probsl.MAP(max_steps=3000)
ADAM = probsl.MAP(optimizer=partial(torch.optim.Adam, lr=0.1), max_steps=3000)


def pareto(y=None):
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    m = pyro.sample("m", dist.HalfNormal(5.0))
    with pyro.plate("data", 30):
        pyro.sample("y", dist.Pareto(m * 0.01, a), obs=y)


def uniform(y=None):
    theta = pyro.sample("theta", dist.HalfNormal(10.0))
    with pyro.plate("data", len(UNIFORM)):
        pyro.sample("y", dist.Uniform(0.0, theta), obs=y)


def both_ends(y=None):
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    b = pyro.sample("b", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(UNIFORM)):
        pyro.sample("y", dist.Uniform(a, b), obs=y)


def from_and_width(y=None):
    """Both edges move with a, one of them up as the other one does."""
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    width = pyro.sample("width", dist.HalfNormal(10.0))
    with pyro.plate("data", len(UNIFORM)):
        pyro.sample("y", dist.Uniform(a, a + width), obs=y)


def exponential(y=None):
    shift = pyro.sample("shift", dist.Normal(0.0, 10.0))
    rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        moved = [AffineTransform(shift, 1.0)]
        fn = dist.TransformedDistribution(dist.Exponential(rate), moved)
        pyro.sample("y", fn, obs=y)


def observed_from_a_shift(y=None):
    """The shift on the other side: the observed value moves, not its support."""
    shift = pyro.sample("shift", dist.Normal(0.0, 10.0))
    rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(SHIFTED)):
        pyro.sample("y", dist.Exponential(rate), obs=y - shift)


RATE = 1 / (SHIFTED.mean() - SHIFTED.min())


@pytest.mark.parametrize(
    ("program", "y", "method", "expected", "sites"),
    [
        (
            pareto,
            PARETO,
            probsl.MAP(),
            # The prior of a is a exp(-a), and m is as large as the data let it.
            {
                "m": 100 * PARETO.min(),
                "a": 31 / (1 + np.log(PARETO / PARETO.min()).sum()),
            },
            ("m", "y"),
        ),
        (
            uniform,
            UNIFORM,
            probsl.MLE(start={"theta": 10.0}),
            {"theta": UNIFORM.max()},
            ("theta", "y"),
        ),
        (
            both_ends,
            UNIFORM,
            probsl.MLE(start={"a": -1.0, "b": 8.0}),
            {"a": UNIFORM.min(), "b": UNIFORM.max()},
            ("a", "b", "y"),
        ),
        (
            from_and_width,
            UNIFORM,
            probsl.MLE(start={"a": -1.0, "width": 9.0}),
            {"a": UNIFORM.min(), "width": np.ptp(UNIFORM)},
            ("a", "width", "y"),
        ),
        (
            exponential,
            SHIFTED,
            probsl.MLE(),
            {"shift": SHIFTED.min(), "rate": RATE},
            ("shift", "y"),
        ),
        (
            observed_from_a_shift,
            SHIFTED,
            probsl.MLE(),
            {"shift": SHIFTED.min(), "rate": RATE},
            ("shift", "y"),
        ),
    ],
    ids=[
        "pareto",
        "uniform",
        "both-ends",
        "width",
        "exponential",
        "shifted-observation",
    ],
)
def test_the_optimum_at_a_moving_edge(program, y, method, expected, sites):
    fit = probsl.fit(program, {"y": y}, method)
    assert fit.status is Status.BOUNDARY
    assert fit.status_sites == sites
    assert np.isfinite(fit.log_likelihood())
    for name, value in expected.items():
        assert float(fit.point()[name]) == pytest.approx(value, rel=1e-6), name


def test_the_edge_in_float32_is_as_near_as_its_numbers_can_tell():
    start = probsl.MLE(start={"theta": 10.0})
    fit = probsl.fit(uniform, {"y": UNIFORM.astype("f4")}, start)
    assert fit.status is Status.BOUNDARY
    above = float(fit.point()["theta"]) - float(UNIFORM.astype("f4").max())
    assert 0 < above < 1e-3


def test_rows_of_weight_zero_hold_no_edge():
    weights = np.where(UNIFORM.max() == UNIFORM, 0.0, 1.0)
    start = probsl.MLE(start={"theta": 10.0})
    fit = probsl.fit(uniform, {"y": UNIFORM}, start, weights=weights)
    assert fit.status is Status.BOUNDARY
    second = np.sort(UNIFORM)[-2]
    assert float(fit.point()["theta"]) == pytest.approx(second, rel=1e-6)


def test_a_density_without_limit_at_the_edge_is_unbounded():
    def weibull(y=None):
        shift = pyro.sample("shift", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(SHIFTED)):
            half = torch.tensor(0.5, dtype=torch.float64)
            fn = dist.Weibull(torch.ones_like(half), half)
            moved = [AffineTransform(shift, 1.0)]
            pyro.sample("y", dist.TransformedDistribution(fn, moved), obs=y)

    fit = probsl.fit(weibull, {"y": SHIFTED}, probsl.MLE())
    assert fit.status is Status.UNBOUNDED
    assert "shift" in fit.status_sites


@pytest.mark.parametrize("guide", [None, AutoNormal])
def test_a_gaussian_guide_over_a_moving_edge_is_refused(guide):
    with pytest.raises(ValueError, match="support of site 'y' moves with 'm'"):
        probsl.fit(pareto, {"y": PARETO}, probsl.SVI(guide))


def test_a_guide_that_reaches_over_the_edge_is_refused():
    def guide(y=None):
        loc = pyro.param("loc", torch.tensor(1.0))
        pyro.sample("a", dist.LogNormal(loc, 0.1))
        pyro.sample("m", dist.LogNormal(loc + 1.5, 1.0))

    with pytest.raises(ValueError, match=r"'y' moves with 'm', and guide guide"):
        probsl.fit(pareto, {"y": PARETO}, probsl.SVI(guide))


def test_a_guide_within_the_edge_is_taken():
    top = 100 * PARETO.min()

    def guide(y=None):
        loc = pyro.param("loc", torch.zeros(2, dtype=torch.float64))
        scale = pyro.param(
            "scale",
            torch.full((2,), 0.1, dtype=torch.float64),
            constraint=dist.constraints.positive,
        )
        pyro.sample("a", dist.LogNormal(loc[0] - 1.0, scale[0]))
        share = [dist.transforms.SigmoidTransform(), AffineTransform(0.0, top)]
        base = dist.Normal(loc[1] + 2.0, scale[1])
        pyro.sample("m", dist.TransformedDistribution(base, share))

    fit = probsl.fit(pareto, {"y": PARETO}, probsl.SVI(guide))
    draws = fit.draw(500)
    assert draws["m"].max() <= top
    # Given m near the edge, a is Gamma(32, 1 + sum of log(y / m)).
    assert float(draws["a"].mean()) == pytest.approx(0.34, abs=0.05)


def test_a_point_as_a_guide_is_not_refused():
    fit = probsl.fit(
        uniform,
        {"y": UNIFORM},
        probsl.SVI(AutoDelta, start={"theta": 10.0}, max_steps=5),
    )
    assert float(fit.point()["theta"]) > UNIFORM.max()


@pytest.mark.parametrize(
    "options", [{"batch_size": 10}, {"method": ADAM}], ids=["batches", "optimizer"]
)
def test_steps_that_cannot_end_at_an_edge_say_so(options):
    """Whoever steps over it has no slope that leads back."""
    fit = probsl.fit(exponential, {"y": SHIFTED}, **{"method": STEPS, **options})
    assert fit.status is Status.NONFINITE
    assert "support of 'y' moves with the parameters" in fit.note
