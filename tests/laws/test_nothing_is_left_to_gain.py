"""From a point that is called an optimum Pyro's own steps gain nothing."""

import re
import warnings

import pyro
import pytest
import torch
from idioms import IDIOMS
from methods import DEEP, SLOW
from programs import PROBLEMS
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro_oracle import (
    NESTING,
    delta_guide,
    fitted_parameters,
    own_state,
    without_priors,
)

import probsl
from probsl.data.data_options import DataOptions
from probsl.program.problem import Problem
from probsl.program.sites import Role

CASES = [c for c in (*PROBLEMS, *IDIOMS) if DEEP or c.name not in SLOW]
# Without its priors hardly an idiom asks for anything new.
OPTIMA = [(case, "MAP") for case in CASES]
OPTIMA += [
    (case, "MLE")
    for number, case in enumerate(CASES)
    if DEEP or case in PROBLEMS or number % 5 == 0
]
# Of 1e-3 each: thirty gain more than is tolerated where a derivative is above 4e-5.
STEPS = 200 if DEEP else 30
# Per row, in float64; see `probsl.MLE`.
TOLERANCE = torch.finfo(torch.float64).eps ** 0.75


def gain(case, fit, dropped):
    """Return how far below a fit's objective Pyro's SVI gets under AutoDelta."""
    program = without_priors(case.program, dropped)
    problem = Problem.build(case.program, case.data, DataOptions(**case.options))
    discrete = problem.sites_with_role(Role.ENUMERATED)
    latents = {n: v for n, v in fit.point().items() if n in problem_latents(problem)}
    with fitted_parameters(fit) as parameters, own_state(parameters):
        guide = delta_guide(program, case.data, latents, discrete)
        svi = SVI(
            program,
            guide,
            pyro.optim.Adam({"lr": 1e-3}),
            TraceEnum_ELBO(max_plate_nesting=NESTING) if discrete else Trace_ELBO(),
        )
        with pyro.validation_enabled(False):
            losses = [svi.step(**case.data) for _ in range(STEPS)]
    return losses[0] - min(losses)


def problem_latents(problem):
    return {site.name for site in problem.latents}


@pytest.mark.parametrize(("case", "name"), OPTIMA, ids=str)
def test_adam_gains_nothing(case, name):
    method = probsl.MLE(integrate=()) if name == "MLE" else probsl.MAP()
    fit = probsl.fit(case.program, case.data, method, **case.options)
    if fit.status is not probsl.Status.CONVERGED:
        pytest.skip(f"there is no optimum: {fit.status.name}")
    problem = fit.problem
    dropped = problem_latents(problem) if name == "MLE" else ()
    gained = gain_or_skip(case, fit, dropped)
    assert gained <= max(1e-6, TOLERANCE * problem.size)


# A horseshoe in batches takes very many steps, and stalls; any program takes seconds.
FEW = ("linear", "mixture")
IN_BATCHES = [
    case
    for case in CASES
    if "batches" in case.has and case.name != "horseshoe" and (DEEP or case.name in FEW)
]


@pytest.mark.parametrize("case", IN_BATCHES, ids=str)
def test_adam_gains_no_more_than_the_error_of_steps_in_batches(case):
    """The stated error is three times what is likely: see `remainder`."""
    fit = probsl.fit(case.program, case.data, probsl.MAP(), batch_size=2)
    assert fit.status is probsl.Status.CONVERGED
    stated = re.search(r"optimum is at most (\S+) nats", fit.note)
    assert gain_or_skip(case, fit, ()) <= float(stated[1])


def gain_or_skip(case, fit, dropped):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro's own, of guides and shapes
        try:
            return gain(case, fit, dropped)
        except NotImplementedError as error:
            pytest.skip(f"Pyro has no AutoDelta for it: {error}")
