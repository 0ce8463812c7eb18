"""Profile intervals and tests against R, closed forms and each other."""

import functools
import math

import matplotlib as mpl
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from methods import Pair, fitted
from numpy.testing import assert_allclose
from programs import problem
from pyro.distributions import constraints
from references import cases
from test_random_effects import fitted as mixed
from test_random_effects import flat, normal_case, positive

import probsl
from probsl import Status
from probsl.plots.profile import profile_curve

mpl.use("Agg")
CASES = cases("mixed/mixed.json")

pytestmark = pytest.mark.usefixtures("float64_default")


def generalized(x, y=None, *, family):
    eta = x @ flat("b", constraints.real_vector, x.shape[1])
    with pyro.plate("data", len(x)):
        pyro.sample("y", family(eta), obs=y)


def against(table, expected, tolerance):
    """Compare intervals by their widths, which R finds to about 1e-4."""
    lower, upper = (np.array(expected[name]) for name in ("lower", "upper"))
    width = upper - lower
    assert (np.abs(table["lower"] - lower) < tolerance * width).all()
    assert (np.abs(table["upper"] - upper) < tolerance * width).all()


@pytest.mark.parametrize("name", ["birthwt", "quine_nb"])
def test_profiles_of_generalized_linear_models_are_those_of_r(name):
    case = CASES[name]
    x = torch.tensor(case["X"]).double()
    if name == "birthwt":
        y = torch.tensor(case["y"] if "y" in case else case["data"]["low"]).double()
        family = lambda eta: dist.Bernoulli(logits=eta)  # noqa: E731
    else:
        y = torch.tensor(case["y"] if "y" in case else case["data"]["Days"]).double()
        theta = torch.tensor(case["theta"])
        family = lambda eta: dist.GammaPoisson(theta, theta * (-eta).exp())  # noqa: E731
    program = functools.partial(generalized, family=family)
    fit = probsl.fit(program, {"x": x, "y": y}, probsl.MLE())
    table = probsl.confidence_intervals(fit, kind="profile")
    against(table, case["profile95"], 1e-3)


def test_profiles_of_random_effects_are_those_of_lme4():
    expected = CASES["dyestuff"]["ml"]["profile95"]
    table = probsl.confidence_intervals(mixed("dyestuff"), kind="profile")
    against(table.loc[["tau", "sigma", "mu"]], expected, 1e-3)


def test_the_profile_of_a_correlation_is_that_of_lme4():
    """It is no coordinate of the flat vector, but a function of several."""
    expected = CASES["sleepstudy"]["ml"]["profile95"]
    table = probsl.confidence_intervals(
        mixed("sleepstudy"), kind="profile", sites=["L[1,0]"]
    )
    against(table, {n: expected[n][1:2] for n in ("lower", "upper")}, 1e-3)


def test_a_profile_that_stays_high_ends_at_the_end_of_the_support():
    table = probsl.confidence_intervals(
        mixed("dyestuff2"), kind="profile", sites=["tau"]
    )
    assert table.loc["tau", "lower"] == 0
    assert 1.5 < table.loc["tau", "upper"] < 3


def normal(y=None):
    mu, sigma = flat("mu"), positive("sigma")
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def test_the_profile_of_a_mean_is_a_t_interval():
    """The log likelihood falls by n/2 log(1 + t^2 / (n - 1))."""
    y = torch.from_numpy(np.random.default_rng(0).normal(size=10))
    fit = probsl.fit(normal, {"y": y}, probsl.MLE())
    table = probsl.confidence_intervals(fit, 0.9, kind="profile", sites=["mu"])
    z = 1.6448536269514722
    reach = float(y.std(correction=0)) * math.sqrt(math.expm1(z**2 / 10))
    mean = float(y.mean())
    found = table.loc["mu", ["lower", "upper"]].astype(float)
    assert_allclose(found, [mean - reach, mean + reach], rtol=1e-4)


def test_profiles_do_not_change_with_the_parameterization():
    fit = fitted(Pair("MLE", problem("linear")))

    def by_log(x, y=None):
        w = pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        log_sigma = pyro.sample("log_sigma", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, log_sigma.exp()), obs=y)

    other = probsl.fit(by_log, problem("linear").data, probsl.MLE())
    one, two = (probsl.confidence_intervals(f, kind="profile") for f in (fit, other))
    assert_allclose(np.log(one.loc["sigma"]), two.loc["log_sigma"], rtol=1e-4)
    assert_allclose(one.loc["w[0]"], two.loc["w[0]"], rtol=1e-4)


def test_directions_that_the_data_leave_free_are_open():
    def redundant(y=None):
        a, b = flat("a"), flat("b")
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    fit = probsl.fit(redundant, {"y": torch.ones(5)}, probsl.MLE())
    assert fit.status is Status.UNIDENTIFIED
    table = probsl.confidence_intervals(fit, kind="profile")
    assert (table["lower"] == -math.inf).all()
    assert (table["upper"] == math.inf).all()


def test_wald_intervals_are_those_of_the_summary():
    for name in ("linear", "own parameters", "simplex"):
        fit = fitted(Pair("MLE", problem(name)))
        table, summary = probsl.confidence_intervals(fit, 0.8), fit.summary(0.8)
        columns = ["estimate", "lower", "upper"]
        assert_allclose(table, summary.loc[table.index, columns], rtol=1e-12)


def tosses(y=None):
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("tosses", 10):
        pyro.sample("y", dist.Bernoulli(p), obs=y)


COIN = {"y": torch.tensor([1.0] * 9 + [0.0])}


def test_three_tests_of_a_coin_have_closed_forms():
    fit = probsl.fit(tosses, COIN, probsl.MLE())
    wald = probsl.wald_test(fit, {"p": 0.5})
    assert_allclose(wald.statistic, 0.4**2 / (0.9 * 0.1 / 10), rtol=1e-6)
    score = probsl.score_test(fit, {"p": 0.5})
    assert_allclose(score.statistic, 0.4**2 / (0.25 / 10), rtol=1e-6)
    assert_allclose(score.p, math.erfc(math.sqrt(6.4 / 2)), rtol=1e-6)
    assert (wald.degrees_of_freedom, score.degrees_of_freedom) == (1, 1)


def regression(x, y=None, columns=3):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([columns]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson((x[:, :columns] @ w).exp()), obs=y)


@functools.cache
def nested_fits():
    rng = np.random.default_rng(2)
    x = np.stack([np.ones(200), *rng.normal(size=(2, 200))], 1)
    y = rng.poisson(np.exp(0.5 + 0.2 * x[:, 1])).astype(float)
    data = {"x": torch.from_numpy(x), "y": torch.from_numpy(y)}
    return [
        probsl.fit(regression, {**data, "columns": columns}, probsl.MLE())
        for columns in (1, 3)
    ]


def test_tests_of_several_parameters_agree_in_large_samples():
    small, full = nested_fits()
    ratio = probsl.likelihood_ratio_test(small, full)
    hypotheses = [{"w[1]": 0.0, "w[2]": 0.0}, lambda sites: sites["w"][1:]]
    rise = 2 * (full.log_likelihood() - small.log_likelihood())
    assert_allclose(ratio.statistic, rise)
    for hypothesis in hypotheses:
        for test in (probsl.wald_test, probsl.score_test):
            found = test(full, hypothesis)
            assert found.degrees_of_freedom == ratio.degrees_of_freedom == 2
            assert_allclose(found.statistic, ratio.statistic, rtol=0.1)
    assert "with 2 degrees of freedom" in str(ratio)
    # The survival function of a chi-square with 2 degrees is an exponential.
    assert_allclose(ratio.p, math.exp(-ratio.statistic / 2), rtol=1e-9)


def test_robust_wald_tests_use_the_covariance_asked_for():
    _, full = nested_fits()
    robust = probsl.wald_test(full, {"w[1]": 0.0}, kind="sandwich")
    table = full.summary(kind="sandwich")
    assert_allclose(robust.statistic, table.loc["w[1]", "z"] ** 2)
    assert_allclose(robust.p, table.loc["w[1]", "p"])


def without_batches(group, y=None, groups=6):
    mu, sigma = flat("mu"), positive("sigma")
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def test_a_variance_is_tested_by_a_mixture():
    _, data = normal_case("dyestuff")
    small, full = probsl.fit(without_batches, data, probsl.MLE()), mixed("dyestuff")
    plain = probsl.likelihood_ratio_test(small, full)
    edge = probsl.likelihood_ratio_test(small, full, on_boundary=["tau"])
    assert_allclose(edge.p, plain.p / 2)
    assert "mixture of chi-squares with 0 and 1" in str(edge)
    _, data = normal_case("dyestuff2")
    small, full = probsl.fit(without_batches, data, probsl.MLE()), mixed("dyestuff2")
    with pytest.raises(ValueError, match=r"on_boundary=\['tau'\]"):
        probsl.likelihood_ratio_test(small, full)
    none = probsl.likelihood_ratio_test(small, full, on_boundary=["tau"])
    assert none.statistic < 1e-6


def test_what_cannot_be_tested_is_refused_in_a_sentence():
    small, full = nested_fits()
    with pytest.raises(ValueError, match="give the fit with fewer first"):
        probsl.likelihood_ratio_test(full, small)
    coin = probsl.fit(tosses, COIN, probsl.MLE())
    with pytest.raises(ValueError, match="observed different data"):
        probsl.likelihood_ratio_test(coin, full)
    with pytest.raises(ValueError, match="no parameter of the fit"):
        probsl.wald_test(full, {"v": 0.0})
    with pytest.raises(ValueError, match="gives 'w' 2 values"):
        probsl.wald_test(full, {"w": [0.0, 1.0]})
    with pytest.raises(TypeError, match="must map sites or elements"):
        probsl.wald_test(full, 3)
    with pytest.raises(TypeError, match="must return a tensor"):
        probsl.score_test(full, lambda sites: 1.0)
    with pytest.raises(ValueError, match="not independent"):
        probsl.wald_test(full, lambda sites: torch.stack([sites["w"][1]] * 2))
    with pytest.raises(ValueError, match="kind must be 'wald' or 'profile'"):
        probsl.confidence_intervals(full, kind="profil")
    with pytest.raises(ValueError, match="by SVI"):
        probsl.confidence_intervals(fitted(Pair("SVI AutoNormal", problem("linear"))))
    with pytest.raises(ValueError, match="is no element"):
        probsl.plot_profile(full, "w")


def test_a_profile_is_drawn_with_its_parabola_and_both_intervals():
    fit = probsl.fit(tosses, COIN, probsl.MLE())
    curve = profile_curve(fit, "p", 0.95)
    logs = 9 * np.log(curve.values / 0.9) + np.log((1 - curve.values) / 0.1)
    assert_allclose(curve.profile, logs, atol=1e-6)
    sd = math.sqrt(0.9 * 0.1 / 10)
    parabola = -(((curve.values - 0.9) / sd) ** 2) / 2
    assert_allclose(curve.quadratic, parabola, rtol=1e-5, atol=1e-6)
    axes = probsl.plot_profile(fit, "p", title="A coin", ax=Figure().subplots())
    labels = [line.get_label() for line in axes.lines]
    assert "profile" in labels
    assert "standard error" in labels
    assert axes.get_xlabel() == "p"
