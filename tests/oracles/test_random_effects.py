"""Maximum likelihood with random effects integrated out, against lme4 and glmmTMB."""

import functools
import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.testing import assert_allclose
from pyro.distributions import constraints
from references import cases

import probsl
from probsl import Status
from probsl.curvature.inverse import NoCovarianceError

CASES = cases("mixed/mixed.json")
# Laplace's approximation is exact for Normal models, and R's optimizers leave 1e-4.
RELATIVE = 1e-4

pytestmark = pytest.mark.usefixtures("float64_default")


def flat(name, support=constraints.real, *shape):
    return pyro.sample(name, dist.ImproperUniform(support, (), shape))


def positive(name):
    return flat(name, constraints.positive)


def intercepts(group, y=None, groups=6):
    mu, tau, sigma = flat("mu"), positive("tau"), positive("sigma")
    with pyro.plate("groups", groups):
        u = pyro.sample("u", dist.Normal(0.0, tau))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Normal(mu + u[group], sigma), obs=y)


def centered(group, y=None, groups=6):
    mu, tau, sigma = flat("mu"), positive("tau"), positive("sigma")
    with pyro.plate("groups", groups):
        u = pyro.sample("u", dist.Normal(mu, tau))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Normal(u[group], sigma), obs=y)


def crossed(plate, sample, y=None):
    mu, sigma = flat("mu"), positive("sigma")
    plate_sd, sample_sd = positive("plate_sd"), positive("sample_sd")
    with pyro.plate("plates", 24):
        a = pyro.sample("a", dist.Normal(0.0, plate_sd))
    with pyro.plate("samples", 6):
        b = pyro.sample("b", dist.Normal(0.0, sample_sd))
    with pyro.plate("data", len(plate)):
        pyro.sample("y", dist.Normal(mu + a[plate] + b[sample], sigma), obs=y)


def slopes(days, subject, y=None):
    b = flat("b", constraints.real_vector, 2)
    sigma = positive("sigma")
    sd = flat("sd", constraints.independent(constraints.positive, 1), 2)
    correlation = pyro.sample("L", dist.LKJCholesky(2, 1.0))
    with pyro.plate("subjects", 18):
        scale = sd[:, None] * correlation
        u = pyro.sample("u", dist.MultivariateNormal(torch.zeros(2), scale_tril=scale))
    coefficients = b + u[subject]
    with pyro.plate("data", len(days)):
        mean = coefficients[:, 0] + coefficients[:, 1] * days
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def generalized(x, group, offset, groups, y=None, *, family):
    b = flat("b", constraints.real_vector, x.shape[1])
    tau = positive("tau")
    likelihood = family()
    with pyro.plate("groups", groups):
        u = pyro.sample("u", dist.Normal(0.0, tau))
    with pyro.plate("data", len(x)):
        pyro.sample("y", likelihood(x @ b + u[group] + offset), obs=y)


def negative_binomial():
    size = positive("size")
    return lambda eta: dist.GammaPoisson(size, size * (-eta).exp())


def poisson():
    return lambda eta: dist.Poisson(eta.exp())


def codes(case, factor):
    return torch.tensor(case["data"][factor]["codes"])


def tensor(values):
    return torch.tensor(values).double()


def normal_case(name):
    """Return a program and its data."""
    case = CASES[name]
    if name == "penicillin":
        data = {
            "plate": codes(case, "plate"),
            "sample": codes(case, "sample"),
            "y": tensor(case["data"]["diameter"]),
        }
        return crossed, data
    if name == "sleepstudy":
        data = {
            "days": tensor(case["data"]["Days"]),
            "subject": codes(case, "Subject"),
            "y": tensor(case["data"]["Reaction"]),
        }
        return slopes, data
    return intercepts, {
        "group": codes(case, "Batch"),
        "y": tensor(case["data"]["Yield"]),
    }


@functools.cache
def fitted(name):
    program, data = normal_case(name)
    return probsl.fit(program, data, probsl.MLE())


def scales(name, point):
    """Return the standard deviations and correlations in the order of lme4."""
    if name == "penicillin":
        return [point["plate_sd"], point["sample_sd"], point["sigma"]]
    if name == "sleepstudy":
        return [*point["sd"], point["L"][1, 0], point["sigma"]]
    return [point["tau"], point["sigma"]]


@pytest.mark.parametrize("name", ["dyestuff", "penicillin", "sleepstudy"])
def test_normal_models_are_those_of_lme4(name):
    fit, expected = fitted(name), CASES[name]["ml"]
    point = fit.point()
    fixed = point["b"] if name == "sleepstudy" else point["mu"]
    assert fit.status is Status.CONVERGED
    assert_allclose(fit.log_likelihood(), expected["loglik"], rtol=1e-9)
    assert_allclose(fixed, expected["fixed"], rtol=1e-6)
    found = [float(scale) for scale in scales(name, point)]
    components = [component["sdcor"] for component in expected["components"]]
    assert_allclose(found, components, rtol=RELATIVE)
    errors = probsl.standard_errors(fit)
    chosen = [n for n in errors.index if n.split("[")[0] in ("b", "mu")]
    assert_allclose(errors[chosen], np.atleast_1d(expected["fixed_se"]), rtol=1e-3)


def test_a_variance_of_zero_is_an_end_at_the_boundary():
    fit = fitted("dyestuff2")
    assert fit.status is Status.BOUNDARY
    assert fit.status_sites == ("tau",)
    assert_allclose(fit.log_likelihood(), -81.4365183269, rtol=1e-9)
    assert_allclose(fit.point()["mu"], CASES["dyestuff2"]["ml"]["fixed"], rtol=1e-6)
    assert fit.summary().loc["tau", "sd"] != fit.summary().loc["tau", "sd"]
    assert fit.summary().loc["mu", "sd"] > 0


def test_effects_are_the_conditional_modes_of_lme4():
    fit, expected = fitted("sleepstudy"), CASES["sleepstudy"]["modes"]
    modes = np.array(expected["Subject"])
    found = fit.point()["u"].numpy()
    sd = fit.summary(effects=True)["sd"].filter(like="u[").to_numpy().reshape(18, 2)
    assert (np.abs(found - modes) < 1e-2 * sd).all()
    assert "u[0,0]" not in fit.summary().index


def test_effects_centered_on_their_mean_are_the_same():
    _, data = normal_case("dyestuff")
    fit, other = fitted("dyestuff"), probsl.fit(centered, data, probsl.MLE())
    assert_allclose(fit.log_likelihood(), other.log_likelihood(), rtol=1e-10)
    expected = fit.point()
    for name, value in other.point().items():
        shift = expected["mu"] if name == "u" else 0.0
        assert_allclose(value, expected[name] + shift, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["penicillin", "sleepstudy"])
def test_restricted_likelihood_integrates_the_fixed_effects(name):
    program, data = normal_case(name)
    fixed = "b" if name == "sleepstudy" else "mu"
    fit = probsl.fit(program, data, probsl.MLE(integrate=(fixed,)))
    expected = CASES[name]["reml"]
    found = [float(scale) for scale in scales(name, fit.point())]
    components = [component["sdcor"] for component in expected["components"]]
    assert_allclose(found, components, rtol=RELATIVE)
    assert_allclose(fit.log_likelihood(), expected["criterion"], rtol=1e-9)
    assert_allclose(fit.point()[fixed], expected["fixed"], rtol=1e-5)
    errors = fit.summary(effects=True)["sd"]
    chosen = [n for n in errors.index if n.split("[")[0] == fixed]
    assert_allclose(errors[chosen], np.atleast_1d(expected["fixed_se"]), rtol=1e-3)


def counts_case(name):
    case, data = CASES[name], CASES["owls" if name == "owls_nb" else name]["data"]
    x = tensor(CASES["owls" if name == "owls_nb" else name]["X"])
    if name == "cbpp":
        counts = tensor(data["counts"])
        totals = counts.sum(1)
        family = lambda: lambda eta: dist.Binomial(totals, logits=eta)  # noqa: E731
        inputs = {"group": torch.tensor(data["herd"]["codes"]), "groups": 15}
        return case, family, {"x": x, **inputs, "offset": 0.0, "y": counts[:, 0]}
    inputs = {
        "x": x,
        "group": torch.tensor(data["Nest"]["codes"]),
        "offset": tensor(data["LogBrood"]),
        "groups": 27,
        "y": tensor(data["SiblingNegotiation"]),
    }
    return case, negative_binomial if name == "owls_nb" else poisson, inputs


@pytest.mark.parametrize("name", ["cbpp", "owls", "owls_nb"])
def test_counts_are_those_of_lme4_and_glmmtmb(name):
    case, family, data = counts_case(name)
    program = functools.partial(generalized, family=family)
    fit = probsl.fit(program, data, probsl.MLE())
    expected, point = case["fit"], fit.point()
    assert fit.status is Status.CONVERGED
    errors = np.array(expected["fixed_se"])
    gap = point["b"].numpy() - np.array(expected["fixed"])
    assert (np.abs(gap) < 1e-3 * errors).all()
    scale = expected.get("scale") or expected["components"][0]["sdcor"]
    assert_allclose(point["tau"], scale, rtol=1e-3)
    if "dispersion" in expected:
        assert_allclose(point["size"], expected["dispersion"], rtol=1e-3)
    assert_allclose(fit.log_likelihood(), expected["loglik"], atol=1e-4)
    found = probsl.standard_errors(fit).filter(like="b[")
    # lme4 differentiates the deviance numerically.
    assert_allclose(found, errors, rtol=2e-2 if name == "cbpp" else 1e-4)


SCHOOLS = {
    "y": [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0],
    "s": [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0],
}


def schools(s, y=None, *, center=True):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        if center:
            theta = pyro.sample("theta", dist.Normal(mu, tau))
        else:
            theta = mu + tau * pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(theta, s), obs=y)


@pytest.mark.parametrize("center", [True, False])
def test_eight_schools_have_no_variance(center):
    program = functools.partial(schools, center=center)
    method = probsl.MLE() if center else probsl.MLE(integrate=("z",))
    fit = probsl.fit(program, {n: tensor(v) for n, v in SCHOOLS.items()}, method)
    assert fit.status is Status.BOUNDARY
    assert fit.status_sites == ("tau",)
    # The weighted mean of the schools.
    weights = 1 / np.square(SCHOOLS["s"])
    assert_allclose(fit.point()["mu"], np.average(SCHOOLS["y"], weights=weights), 1e-5)
    assert float(fit.point()["tau"]) < 1e-3


def test_without_integration_the_schools_mean_is_free():
    data = {n: tensor(v) for n, v in SCHOOLS.items()}
    fit = probsl.fit(schools, data, probsl.MLE(integrate=()))
    assert fit.status is Status.UNIDENTIFIED
    assert {"mu", "tau"} <= set(fit.status_sites)


def counts_in_groups(group, y=None, groups=10):
    mu, tau = flat("mu"), positive("tau")
    with pyro.plate("groups", groups):
        u = pyro.sample("u", dist.Normal(0.0, tau))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Poisson((mu + u[group]).exp()), obs=y)


def test_a_poisson_likelihood_is_that_of_quadrature():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(10), 8)
    y = rng.poisson(np.exp(1.0 + rng.normal(0, 0.5, 10)[group])).astype(float)
    fit = probsl.fit(counts_in_groups, {"group": group, "y": y}, probsl.MLE())
    mu, tau = (float(fit.point()[n]) for n in ("mu", "tau"))
    nodes, weights = np.polynomial.hermite_e.hermegauss(50)
    rates = np.exp(mu + tau * nodes)
    total = 0.0
    for each in range(10):
        mine = y[group == each]
        logs = (mine[:, None] * np.log(rates) - rates).sum(0)
        logs -= sum(math.lgamma(v + 1) for v in mine)
        total += np.log((weights * np.exp(logs)).sum() / math.sqrt(2 * math.pi))
    assert_allclose(fit.log_likelihood(), total, rtol=1e-3)
    check = probsl.check_integration(fit, draws=2000)
    assert check.good_enough
    assert check.laplace == pytest.approx(fit.log_likelihood())
    # The Monte Carlo error is below what Laplace misses of the integral.
    assert abs(check.sampled - total) < 5 * check.error
    assert 4 * check.error < abs(check.laplace - total)
    assert "Laplace's approximation is good enough" in str(check)


def test_a_normal_model_needs_no_check_and_a_plain_fit_has_none():
    check = probsl.check_integration(fitted("sleepstudy"), draws=100)
    assert check.sampled == pytest.approx(check.laplace, abs=1e-8)
    assert check.effective_draws == pytest.approx(100)
    data = {n: tensor(v) for n, v in SCHOOLS.items()}
    fit = probsl.fit(schools, data, probsl.MLE(integrate=()))
    with pytest.raises(ValueError, match="nothing was integrated out"):
        probsl.check_integration(fit)
    with pytest.raises(NoCovarianceError, match="not independent given"):
        probsl.influence(fitted("dyestuff"))


def nested(school, child, y=None):
    """Children in schools, by an index of the children that no plate shows."""
    tau, inner, sigma = positive("tau"), positive("inner"), positive("sigma")
    with pyro.plate("schools", 3):
        u = pyro.sample("u", dist.Normal(0.0, tau))
    with pyro.plate("children", len(school)):
        v = pyro.sample("v", dist.Normal(u[school], inner))
    with pyro.plate("data", len(child)):
        pyro.sample("y", dist.Normal(v[child], sigma), obs=y)


def one_per_row(x, y=None):
    b, tau = flat("b", constraints.real_vector, x.shape[1]), positive("tau")
    with pyro.plate("data", len(x)):
        e = pyro.sample("e", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Poisson((x @ b + e).exp()), obs=y)


def gammas(group, y=None):
    shape, rate = positive("shape"), positive("rate")
    with pyro.plate("groups", 10):
        lam = pyro.sample("lam", dist.Gamma(shape, rate))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Poisson(lam[group]), obs=y)


def problem_of(name):
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(10), 4)
    means = 4.0 * rng.gamma(3.0, 0.5, 10)[group]
    counts = rng.poisson(means).astype(float)
    x = np.stack([np.ones(40), rng.normal(size=40)], 1)
    if name == "one per row":
        return one_per_row, {"x": x, "y": counts}
    if name == "nested":
        school, child = np.arange(10) % 3, group
        return nested, {"school": school, "child": child, "y": rng.normal(size=40)}
    program = {"counts": counts_in_groups, "gammas": gammas}.get(name)
    return program, {"group": group, "y": counts}


NAMES = ("counts", "nested", "one per row", "gammas", "sleepstudy", "penicillin")


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_differences(name):
    """And the Hessian is that of differences of gradients."""
    if name in CASES:
        program, data = normal_case(name)
    else:
        program, data = problem_of(name)
    method = probsl.MLE()
    problem = probsl.fit(program, data, probsl.MLE(max_steps=1)).problem
    objective = method.objective(problem)
    density = objective.target
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x = 0.3 * torch.randn(objective.layout.size, generator=generator)
        with problem.isolated():
            point = x.clone().requires_grad_()
            value = density.at(point, objective.layout)
            (gradient,) = torch.autograd.grad(value, point, create_graph=True)
            hessian = torch.stack(
                [torch.autograd.grad(g, point, retain_graph=True)[0] for g in gradient]
            )
            step = 1e-4
            for place, unit in enumerate(torch.eye(len(x))):
                ahead, behind = (x + sign * step * unit for sign in (1, -1))
                rise = density.at(ahead, None) - density.at(behind, None)
                assert_allclose(
                    gradient[place].detach(),
                    rise / (2 * step),
                    rtol=1e-5,
                    atol=1e-5 * float(gradient.detach().abs().max()),
                )
                turn = density.gradient(ahead) - density.gradient(behind)
                assert_allclose(
                    hessian[place],
                    turn / (2 * step),
                    rtol=1e-4,
                    atol=1e-5 * float(hessian.abs().max()),
                )
            # The gradient without a graph is another computation of the same.
            assert_allclose(
                density.gradient(x), gradient.detach(), rtol=1e-8, atol=1e-8
            )


def test_blocks_are_found_where_no_plate_shows_them():
    program, data = problem_of("nested")
    problem = probsl.fit(program, data, probsl.MLE(max_steps=1)).problem
    density = probsl.MLE().objective(problem).target
    with problem.isolated():
        _, _, blocks = density.conditional(torch.zeros(3))
    # Three schools, of 4, 3 and 3 children, with an effect of their own each.
    assert sorted(blocks.present.sum(1).tolist()) == [4, 4, 5]


def test_gammas_with_poisson_counts_have_a_closed_form():
    """The marginal is negative binomial; Laplace's error is that of Stirling's."""
    program, data = problem_of("gammas")
    fit = probsl.fit(program, data, probsl.MLE())
    shape, rate = (float(fit.point()[n]) for n in ("shape", "rate"))
    total = 0.0
    for each in range(10):
        mine = data["y"][data["group"] == each]
        total += math.lgamma(shape + mine.sum()) - math.lgamma(shape)
        total += shape * math.log(rate) - (shape + mine.sum()) * math.log(rate + 4)
        total -= sum(math.lgamma(v + 1) for v in mine)
    # log Gamma(a) less Stirling's formula is 1 / (12 a), here of a above 4.
    assert fit.status is Status.CONVERGED
    assert abs(fit.log_likelihood() - total) < 10 / (12 * 4)


def test_draws_of_effects_have_their_conditional_distribution():
    fit = fitted("sleepstudy")
    draws = fit.draw(4000, seed=1)
    table = fit.summary(effects=True)
    sd = table["sd"].filter(like="u[").to_numpy().reshape(18, 2)
    # 4,000 draws err by 1.1 % of a deviation, and 1.6 % of a mean: 5 of these.
    assert_allclose(draws["u"].std(0), sd, rtol=0.056)
    gap = (draws["u"].mean(0) - fit.point()["u"]).abs().numpy()
    assert (gap < 5 * sd / math.sqrt(4000)).all()
    for name in ("b", "sigma", "sd"):
        assert torch.equal(draws[name], fit.point()[name].expand(draws[name].shape))


def test_predictions_keep_the_fitted_groups():
    fit = fitted("sleepstudy")
    _, data = normal_case("sleepstudy")
    new = {"days": tensor([0.0, 9.0]), "subject": torch.tensor([3, 8])}
    table = fit.expected(new)
    point = fit.point()
    coefficients = point["b"] + point["u"][[3, 8]]
    expected = coefficients[:, 0] + coefficients[:, 1] * new["days"]
    assert_allclose(table["mean"], expected, atol=2.0)
    assert (table["lower"] < table["upper"]).all()
    scores = probsl.log_score(fit, data)
    assert scores.shape == (180,)
    assert probsl.compare({"ML": fit}).reference == "ML"


def test_what_cannot_be_integrated_is_refused_in_a_sentence():
    program, data = problem_of("counts")
    with pytest.raises(ValueError, match=r"'u' are integrated out of all rows at once"):
        probsl.fit(program, data, probsl.MLE(), batch_size=5)

    def absolute(group, y=None):
        tau = positive("tau")
        with pyro.plate("groups", 10):
            u = pyro.sample("u", dist.Normal(0.0, tau))
        with pyro.plate("data", len(group)):
            pyro.sample("y", dist.Laplace(u[group], 1.0), obs=y)

    with pytest.raises(ValueError, match="'y' has a kink"):
        probsl.fit(absolute, data, probsl.MLE())
    program, rows = problem_of("one per row")
    with pytest.raises(ValueError, match="site 'e' has one effect per row"):
        probsl.fit(program, rows, probsl.MLE(), weights=np.ones(40))
    fit = fitted("dyestuff")
    for kind in ("sandwich", "expected", "opg"):
        with pytest.raises(NoCovarianceError, match="'u' are integrated out"):
            probsl.covariance(fit, kind)


def test_repeated_rows_count_as_weights_say():
    program, data = problem_of("counts")
    counts = np.arange(40) % 2 + 1
    weighted = probsl.fit(program, data, probsl.MLE(), weights=counts)
    index = np.repeat(np.arange(40), counts)
    repeated = probsl.fit(program, {n: v[index] for n, v in data.items()}, probsl.MLE())
    for name in itertools.chain(("mu", "tau"), ("u",)):
        one, other = (f.point()[name] for f in (weighted, repeated))
        assert_allclose(one, other, rtol=1e-5, atol=1e-6)
