"""The dial from the data alone to the prior, and what the prior's weight means."""

from functools import partial
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods import Pair, fitted
from programs import PROBLEMS, problem
from pyro.infer.autoguide import AutoDelta, AutoNormal

import probsl
from probsl import Status

WITHOUT_EFFECTS = [c.name for c in PROBLEMS if not c.has & {"effects", "local"}]


@pytest.mark.parametrize("name", WITHOUT_EFFECTS)
def test_prior_weight_zero_is_mle_where_nothing_is_integrated(name):
    case = problem(name)
    mle = probsl.fit(case.program, case.data, probsl.MLE())
    zero = probsl.fit(case.program, case.data, probsl.MAP(prior_weight=0))
    assert torch.equal(zero.losses, mle.losses)
    assert zero.status is mle.status
    for site, value in mle.point().items():
        assert torch.equal(zero.point()[site], value)


@pytest.mark.parametrize("name", WITHOUT_EFFECTS)
def test_the_prior_has_a_say_in_map(name):
    mle, posterior = (fitted(Pair(m, problem(name))) for m in ("MLE", "MAP"))
    assert any(
        not torch.allclose(mle.point()[site], value, rtol=1e-6, atol=1e-6)
        for site, value in posterior.point().items()
    )


def ridge(x, y=None, s=1.0):
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), s).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def lasso(x, y=None, s=1.0):
    w = pyro.sample("w", dist.Laplace(x.new_zeros(x.shape[1]), s).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def kinds():
    yield "MAP", lambda weight: probsl.MAP(prior_weight=weight)
    yield "SVI", lambda weight: probsl.SVI(AutoNormal, prior_weight=weight)


every_kind = pytest.mark.parametrize(
    "make", [pytest.param(m, id=i) for i, m in kinds()]
)


@every_kind
@pytest.mark.parametrize("weight", [0.25, 3.0])
def test_a_weight_of_a_gaussian_prior_is_another_width(make, weight):
    data, s = problem("logistic").data, 0.8
    weighted = probsl.fit(partial(ridge, s=s), data, make(weight))
    narrower = probsl.fit(partial(ridge, s=s / weight**0.5), data, make(1.0))
    # The objectives differ by a constant; their optima by what tolerance leaves.
    torch.testing.assert_close(
        weighted.point()["w"], narrower.point()["w"], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        torch.tensor(weighted.summary().to_numpy()),
        torch.tensor(narrower.summary().to_numpy()),
        rtol=1e-3,
        atol=1e-4,
        equal_nan=True,
    )


@pytest.mark.parametrize("weight", [0.25, 3.0])
def test_a_weight_of_a_laplace_prior_is_another_scale(weight):
    data, s = problem("logistic").data, 0.5
    weighted = probsl.fit(partial(lasso, s=s), data, probsl.MAP(prior_weight=weight))
    narrower = probsl.fit(partial(lasso, s=s / weight), data, probsl.MAP())
    torch.testing.assert_close(
        weighted.point()["w"], narrower.point()["w"], rtol=1e-4, atol=1e-5
    )


@given(weights=st.lists(st.floats(0, 30), min_size=2, max_size=3, unique=True))
def test_more_weight_on_a_gaussian_prior_never_lengthens_the_weights(weights):
    data = problem("logistic").data
    norms = [
        float(probsl.fit(ridge, data, probsl.MAP(prior_weight=w)).point()["w"].norm())
        for w in sorted(weights)
    ]
    # Rounding may hide a difference, but not turn it round by more than this.
    assert all(b <= a + 1e-5 for a, b in pairwise(norms))


@pytest.mark.parametrize(
    "name",
    ["linear", "centered groups", "LKJ covariance", "own parameters", "simplex"],
)
def test_svi_with_a_point_for_a_guide_is_map(name):
    case = problem(name)
    fit = probsl.fit(case.program, case.data, probsl.SVI(AutoDelta))
    expected = fitted(Pair("MAP", case))
    assert fit.status is expected.status is Status.CONVERGED
    assert float(fit.losses[-1]) == pytest.approx(float(expected.losses[-1]), abs=1e-6)
    for site, value in expected.point().items():
        torch.testing.assert_close(fit.point()[site], value, rtol=1e-4, atol=1e-4)


def test_spaces_differ_by_the_jacobian():
    """Gamma(3, 2) and three counts of mean 2: the mode of the rate, and of its log."""

    def program(y=None):
        rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
        with pyro.plate("days", 3):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    data = {"y": torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64)}
    constrained = probsl.fit(program, data, probsl.MAP())
    unconstrained = probsl.fit(program, data, probsl.MAP(space="unconstrained"))
    assert float(constrained.point()["rate"]) == pytest.approx(1.6, abs=1e-5)
    assert float(unconstrained.point()["rate"]) == pytest.approx(1.8, abs=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        probsl.MLE(),
        probsl.MAP(prior_weight=0),
        probsl.MAP(prior_weight={"mu": 0}),
        probsl.SVI(AutoDelta, prior_weight=0),
    ],
    ids=["MLE", "MAP", "MAP by name", "SVI"],
)
def test_a_dropped_prior_of_density_zero_spoils_nothing(method):
    """Zero times an infinite log density would be NaN."""

    def program(y=None):
        # Its square overflows float32 wherever mu is not zero.
        mu = pyro.sample("mu", dist.Normal(0.0, 1e-30))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit = probsl.fit(program, {"y": torch.tensor([1.0, 2.0])}, method)
    assert fit.status is Status.CONVERGED
    assert float(fit.point()["mu"]) == pytest.approx(1.5, abs=1e-3)


def test_a_weight_by_name_leaves_the_other_priors_alone():
    case = problem("linear")
    named = probsl.fit(case.program, case.data, probsl.MAP(prior_weight={"w": 0.0}))
    plain, dropped = fitted(Pair("MAP", case)), fitted(Pair("MLE", case))
    values = named.point()

    def program(x, y=None):
        """The same with a flat prior for w."""
        w = pyro.sample("w", dist.ImproperUniform(dist.constraints.real, (), (2,)))
        sigma = pyro.sample("sigma", dist.Exponential(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)

    flat = probsl.fit(program, case.data, probsl.MAP()).point()
    for site, value in flat.items():
        torch.testing.assert_close(values[site], value, rtol=1e-4, atol=1e-4)
    for other in (plain, dropped):
        assert not torch.allclose(
            values["sigma"], other.point()["sigma"], rtol=1e-6, atol=1e-6
        )
