"""Published posteriors: densities by Stan, both modes, and the best Gaussian."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from posteriordb_programs import PROGRAMS, arguments, site_values, table
from pyro.infer.autoguide import AutoMultivariateNormal
from references import posteriors

import probsl
from probsl import Status
from probsl.program.problem import Problem

pytestmark = pytest.mark.usefixtures("float64_default")

REFERENCES = posteriors()


def those(what):
    """Return the names of the posteriors of which something holds."""
    return [name for name, reference in REFERENCES.items() if reference[what]]


def load(name):
    """Return a posterior, its program and its data."""
    reference = REFERENCES[name]
    return reference, PROGRAMS[name], arguments(reference["data"])


def distance(estimates, expected, reference):
    """Return the largest difference in posterior standard deviations."""
    return max(
        abs(estimates[name] - value) / reference["params"][name]["sd"]
        for name, value in expected.items()
    )


@pytest.mark.parametrize("name", REFERENCES)
def test_log_densities_are_those_of_stan_with_and_without_the_jacobian(name):
    reference, program, data = load(name)
    problem = Problem.build(program, data)
    layout = problem.coordinates()
    for point in reference["log_density_points"]:
        values = site_values(problem, point["constrained"])
        density = problem.log_density(values, {})
        _, jacobian = layout.constrain_with_jacobian(layout.flatten(values))
        # The same sums in another order; the constants Stan drops are in the offset.
        offset = reference["log_prob_offset"]
        assert_allclose(density - offset, point["log_prob"], rtol=1e-13, atol=1e-9)
        assert_allclose(
            density + jacobian - offset,
            point["log_prob_jacobian"],
            rtol=1e-13,
            atol=1e-9,
        )


@pytest.mark.parametrize("space", ["constrained", "unconstrained"])
@pytest.mark.parametrize("name", REFERENCES)
def test_map_is_the_published_mode(name, space):
    reference, program, data = load(name)
    mode = reference[f"mode_{space}"]
    fit = probsl.fit(program, data, probsl.MAP(space=space))
    if mode is None:
        # The density grows without bound, or is highest where the groups' scale is 0.
        centered = name.endswith("_centered")
        assert fit.status is (Status.UNBOUNDED if centered else Status.BOUNDARY)
        assert fit.status_sites == ("tau",)
        return
    assert fit.status is Status.CONVERGED
    # Differences that move the log density by less than its rounding.
    assert distance(table(fit)["estimate"], mode["params"], reference) < 1e-6
    height = mode["log_prob" if space == "constrained" else "log_prob_jacobian"]
    offset = reference["log_prob_offset"]
    assert_allclose(-fit.losses[-1] - offset, height, rtol=1e-13, atol=1e-9)


@pytest.mark.parametrize("name", those("flat_priors"))
def test_without_priors_maximum_likelihood_is_the_constrained_mode(name):
    reference, program, data = load(name)
    fit = probsl.fit(program, data, probsl.MLE())
    mode = reference["mode_constrained"]["params"]
    assert fit.status is Status.CONVERGED
    assert distance(table(fit)["estimate"], mode, reference) < 1e-6


@pytest.mark.parametrize("name", those("near_gaussian"))
def test_full_rank_svi_of_a_nearly_gaussian_posterior_is_the_best_gaussian(name):
    reference, program, data = load(name)
    fit = probsl.fit(program, data, probsl.SVI(AutoMultivariateNormal))
    summary, best = table(fit), reference["full_rank"]
    assert fit.status is Status.CONVERGED
    # Fixed draws leave errors of the order of what is not Gaussian, divided by the
    # root of their number, 64 at least: over these posteriors and seeds 0 to 3 at most
    # 0.0015 sds, 0.9% of an sd (half of which is the reference's) and 0.009 nats.
    assert distance(summary["estimate"], best["mean"], reference) < 0.005
    sds = np.array([summary["sd"][name] for name in best["sd"]])
    assert_allclose(sds, list(best["sd"].values()), rtol=0.015)
    elbo = -fit.losses[-1] - reference["log_prob_offset"]
    assert_allclose(elbo, best["elbo"], atol=0.02, rtol=0)
    # The distance of the best Gaussian from the draws of the posterior itself.
    exact = {name: p["mean"] for name, p in reference["params"].items()}
    apart = distance(summary["estimate"], exact, reference)
    assert apart < best["max_mean_error_sd"] + 0.005
    assert torch.isfinite(fit.losses).all()
