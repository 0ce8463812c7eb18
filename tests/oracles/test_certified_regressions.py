"""Maximum likelihood of NIST's certified regressions, from the starts NIST gives."""

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

CASES = cases("nist/nist.json")
NONLINEAR = [name for name, case in CASES.items() if case["kind"] == "nonlinear"]
# The far start leads through hundreds of steps.
FROM_NEAR = {"MGH09", "MGH17", "Nelson"}
FUNCTIONS = {name: getattr(torch, name) for name in ("exp", "cos", "sin", "log")}
FUNCTIONS |= {"arctan": torch.atan, "pi": torch.pi}

pytestmark = pytest.mark.usefixtures("float64_default")


def flat(name, support=constraints.real):
    return pyro.sample(name, dist.ImproperUniform(support, (), ()))


def mean_of(case, x, b):
    """Return the regression function of a set at parameters ``b1``, ``b2``, ..."""
    columns = {f"x{i}": column for i, column in enumerate(x.T, 1)}
    # The formulas are NIST's, as written in the reference file.
    return eval(case["rhs_python"], dict(FUNCTIONS), {**columns, "x": x[:, 0], **b})


def nonlinear(case, given=None):
    """Return a set as a program, its data and the start NIST gives."""

    def program(x, y=None):
        b = {name: flat(name) for name in start}
        sigma = flat("sigma", constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean_of(case, x, b), sigma), obs=y)

    x = np.array(case["x"], dtype=float)
    x = torch.from_numpy(x.T if x.ndim == 2 else x[:, None])
    y = torch.tensor(case["y"])
    y = y.log() if case["lhs"] == "log(y)" else y
    given = given or case["start2" if case["name"] in FROM_NEAR else "start1"]
    start = {f"b{i}": torch.tensor(value) for i, value in enumerate(given, 1)}
    residual = y - mean_of(case, x, start)
    return (
        program,
        {"x": x, "y": y},
        {**start, "sigma": residual.square().mean().sqrt()},
    )


@pytest.mark.parametrize("name", NONLINEAR)
def test_a_nonlinear_regression_has_the_certified_parameters(name):
    case = {**CASES[name], "name": name}
    program, data, start = nonlinear(case)
    fit = probsl.fit(program, data, probsl.MLE(start=start))
    point = fit.point()
    assert fit.status is Status.CONVERGED
    found = [float(point[f"b{i}"]) for i in range(1, len(case["params"]) + 1)]
    # Certified to eleven digits; a Newton decrement below the tolerance leaves seven.
    assert_allclose(found, case["params"], rtol=1e-7)
    assert_allclose(float(point["sigma"]), case["mle_sigma"], rtol=1e-6)


def fit_polynomial(case):
    data = {
        "x": torch.tensor(case["x"]).double(),
        "y": torch.tensor(case["y"]).double(),
    }

    exponents = torch.arange(case["degree"] + 1)

    def program(x, y=None):
        prior = dist.ImproperUniform(constraints.real_vector, (), exponents.shape)
        mean = x[:, None] ** exponents @ pyro.sample("b", prior)
        sigma = flat("sigma", constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)

    return probsl.fit(program, data, probsl.MLE())


def test_a_line_has_the_certified_parameters():
    fit, case = fit_polynomial(CASES["Norris"]), CASES["Norris"]
    assert fit.status is Status.CONVERGED
    assert_allclose(fit.point()["b"], case["exact_params"], rtol=1e-9)
    assert_allclose(float(fit.point()["sigma"]), case["mle_sigma"], rtol=1e-9)


def test_a_polynomial_that_fits_exactly_has_a_likelihood_without_bound():
    """Of degree 5 on 0, ..., 20, where powers reach 3,200,000."""
    fit = fit_polynomial(CASES["Wampler1"])
    assert fit.status is Status.UNBOUNDED
    assert fit.status_sites == ("sigma",)
