"""Standard errors of many families against statsmodels, lifelines and R's tables."""

import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.testing import assert_allclose
from pyro.distributions import constraints
from references import arrays, cases
from test_certified_regressions import CASES as NIST
from test_certified_regressions import FROM_NEAR, NONLINEAR, fit_polynomial, nonlinear
from test_regression_cases import CASES as REGRESSIONS
from test_regression_cases import load, negative_binomial, parameters

import probsl
from probsl import Status

CASES = cases("standard_errors/standard_errors.json")
# The factor of ours for 7 clusters, which the reference leaves out.
CLUSTERS = math.sqrt(7 / 6)


def flat(name, shape=(), support=constraints.real):
    size = torch.Size(shape)
    return pyro.sample(name, dist.ImproperUniform(support, (), size))


def coefficients(x):
    return pyro.sample("b", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))


def logit(x, y=None):
    b = coefficients(x)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)


def probit(x, y=None):
    b = coefficients(x)
    with pyro.plate("data", len(x)):
        log_odds = torch.special.log_ndtr(x @ b) - torch.special.log_ndtr(-x @ b)
        pyro.sample("y", dist.Bernoulli(logits=log_odds), obs=y)


def poisson(x, y=None):
    b = coefficients(x)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson((x @ b).exp()), obs=y)


def normal(x, y=None):
    b = coefficients(x)
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ b, sigma), obs=y)


def ordinal(x, y=None):
    b = coefficients(x)
    first = flat("first")
    gaps = flat("gaps", (5,), constraints.independent(constraints.positive, 1))
    cuts = pyro.deterministic("cuts", torch.cat([first[None], first + gaps.cumsum(0)]))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.OrderedLogistic(x @ b, cuts), obs=y)


def weibull(x, event, time=None):
    b, intercept, log_rho = coefficients(x), flat("intercept"), flat("log_rho")
    scale, rho = (intercept + x @ b).exp(), log_rho.exp()
    with pyro.plate("data", len(x)):
        lifetime = dist.Weibull(scale, rho)
        survival = -((time / scale) ** rho)
        density = torch.where(event > 0, lifetime.log_prob(time), survival)
        pyro.factor("time", density)


def tobit(x, y=None):
    b, sigma = coefficients(x), flat("sigma", (), constraints.positive)
    mean = x @ b
    with pyro.plate("data", len(x)):
        seen = dist.Normal(mean, sigma).log_prob(y)
        zero = torch.special.log_ndtr(-mean / sigma)
        pyro.factor("y", torch.where(y > 0, seen, zero))


def data_of(file, *names):
    """Return arrays of a reference file."""
    data = arrays(f"{file}.npz")
    return {name: data[name] for name in names}


def anes():
    data = data_of("regression_cases/multinomial_logit_anes96", "x", "y")
    return {**data, "x": data["x"][:, data["x"].std(0) > 0]}


OLD, NEW = "regression_cases", "standard_errors"
PROGRAMS = {
    "logit spector": (logit, lambda: data_of(f"{OLD}/logit_spector", "x", "y")),
    "probit spector": (probit, lambda: data_of(f"{OLD}/logit_spector", "x", "y")),
    "poisson cpunish": (
        poisson,
        lambda: data_of(f"{OLD}/poisson_log_cpunish", "x", "y"),
    ),
    "negative binomial randhie": (
        negative_binomial,
        lambda: data_of(f"{OLD}/negative_binomial_randhie", "x", "y"),
    ),
    "ols longley": (normal, lambda: data_of(f"{OLD}/longley", "x", "y")),
    "ordinal anes96": (ordinal, anes),
    "weibull rossi": (
        weibull,
        lambda: data_of(f"{NEW}/weibull_rossi", "x", "event", "time"),
    ),
    "tobit fair": (tobit, lambda: data_of(f"{NEW}/tobit_fair", "x", "y")),
}
SITES = {
    "negative binomial randhie": ("b", "alpha"),
    "weibull rossi": ("b", "intercept", "log_rho"),
    "tobit fair": ("b", "sigma"),
}


@functools.cache
def fitted(name):
    program, data = PROGRAMS[name]
    fit = probsl.fit(program, data(), probsl.MLE())
    assert fit.status is Status.CONVERGED
    return fit


def ours(name, kind, **options):
    """Return the standard errors of the sites that the reference has."""
    errors = probsl.standard_errors(fitted(name), kind, **options)
    sites = SITES.get(name, ("b",))
    chosen = [label for label in errors.index if label.split("[")[0] in sites]
    return errors[chosen].to_numpy()


@pytest.mark.parametrize("name", CASES)
def test_estimates_and_observed_errors_are_those_of_other_packages(name):
    case, fit = CASES[name], fitted(name)
    point = fit.point()
    sites = SITES.get(name, ("b",))
    found = np.concatenate([point[site].reshape(-1).numpy() for site in sites])
    rough = name.startswith("ordinal")  # differentiated numerically
    assert_allclose(found, case["params"], rtol=1e-4 if rough else 1e-6)
    if "observed" in case:
        errors = ours(name, "observed")
        assert_allclose(errors, case["observed"], rtol=1e-4 if rough else 1e-6)
    table = fit.summary()
    for label, line in table.iterrows():
        if label.split("[")[0] == "b":
            assert_allclose(line["z"], line["estimate"] / line["sd"])
            reach = (line["upper"] - line["lower"]) / (2 * line["sd"])
            assert_allclose(reach, 1.959963984540054)


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if "aic" in case])
def test_information_criteria_are_those_of_other_packages(name):
    case, fit = CASES[name], fitted(name)
    line = probsl.information_criteria(fit).loc["fit"]
    assert_allclose(line["log likelihood"], case["log_likelihood"], rtol=1e-8)
    assert_allclose(line["AIC"], case["aic"], rtol=1e-8)
    if name != "weibull rossi":  # lifelines counts failures, not rows
        assert_allclose(line["BIC"], case["bic"], rtol=1e-8)
    printed = str(fit)
    assert "AIC " in printed
    assert "BIC " in printed


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if "sandwich" in case])
def test_sandwich_errors_are_those_of_other_packages(name):
    rough = name.startswith(("ordinal", "negative"))
    expected = CASES[name]["sandwich"]
    assert_allclose(ours(name, "sandwich"), expected, rtol=1e-4 if rough else 1e-6)


@pytest.mark.parametrize(
    "name", [n for n, case in CASES.items() if "cluster_uncorrected" in case]
)
def test_cluster_errors_are_those_of_other_packages(name):
    rows = fitted(name).problem.size
    labels = np.array(["a", "b", "c", "d", "e", "f", "g"])[np.arange(rows) % 7]
    found = ours(name, "cluster", clusters=labels)
    rough = name.startswith("negative")
    expected = CLUSTERS * np.array(CASES[name]["cluster_uncorrected"])
    assert_allclose(found, expected, rtol=1e-4 if rough else 1e-6)


@pytest.mark.parametrize("kind", ["sandwich", "HC1", "HC2", "HC3"])
def test_errors_corrected_for_leverage_are_those_of_statsmodels(kind):
    expected = CASES["ols longley"]["HC0" if kind == "sandwich" else kind]
    assert_allclose(ours("ols longley", kind), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "name", [n for n, c in REGRESSIONS.items() if not c["penalty"]]
)
def test_observed_errors_are_the_published_ones(name):
    case, program, data = load(name)
    fit = probsl.fit(program, data, probsl.MLE())
    errors = fit.posterior.errors("observed").sd
    found = parameters(errors, case["family"])
    expected = np.array(case["mle"]["se_observed"], dtype=float).reshape(-1)
    assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "start"),
    [(name, "start2") for name in NONLINEAR]
    + [(name, "start1") for name in NONLINEAR if name not in FROM_NEAR],
)
@pytest.mark.usefixtures("float64_default")
def test_expected_errors_of_nonlinear_regressions_are_the_certified_ones(name, start):
    case = {**NIST[name], "name": name}
    program, data, given = nonlinear(case, case[start])
    fit = probsl.fit(program, data, probsl.MLE(start=given))
    errors = fit.posterior.errors("expected").sd
    found = [float(errors[f"b{i}"]) for i in range(1, len(case["params"]) + 1)]
    # NIST divides the residual sum of squares by its degrees of freedom.
    rows = len(case["y"])
    found = np.array(found) * math.sqrt(rows / case["dof"])
    assert_allclose(found, case["std"], rtol=1e-6)


@pytest.mark.usefixtures("float64_default")
def test_expected_errors_of_a_line_are_the_certified_ones():
    fit, case = fit_polynomial(NIST["Norris"]), NIST["Norris"]
    found = probsl.standard_errors(fit, "expected")[["b[0]", "b[1]"]]
    rows = len(case["y"])
    assert_allclose(found * math.sqrt(rows / case["dof"]), case["std"], rtol=1e-9)


def test_leverage_and_distances_are_those_of_statsmodels():
    table, case = probsl.influence(fitted("ols longley")), CASES["ols longley"]
    assert_allclose(table["leverage"], case["leverage"], rtol=1e-6)
    assert_allclose(table["cooks_distance"], case["cooks_distance"], rtol=1e-5)


def test_distances_are_those_of_fits_without_the_row():
    """To one Newton step, which is near where rows are many."""
    rng = np.random.default_rng(0)
    x = np.stack([np.ones(150), *rng.normal(size=(2, 150))], 1)
    y = rng.poisson(np.exp(0.5 + 0.3 * x[:, 1])).astype(float)
    fit = probsl.fit(poisson, {"x": x, "y": y}, probsl.MLE())
    table = probsl.influence(fit)
    assert list(table.columns) == ["cooks_distance"]
    information = np.linalg.inv(probsl.covariance(fit).to_numpy())
    point = fit.point()["b"].numpy()
    for row in table["cooks_distance"].nlargest(10).index:
        weights = np.ones(150)
        weights[row] = 0.0
        other = probsl.fit(fit.problem, None, probsl.MLE(), weights=weights)
        moved = other.point()["b"].numpy() - point
        expected = moved @ information @ moved / 3
        assert_allclose(table["cooks_distance"][row], expected, rtol=0.25)
