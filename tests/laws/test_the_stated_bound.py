"""What a variational fit states of itself is what Pyro finds of its guide."""

import math
import warnings
from contextlib import suppress

import pyro
import pytest
import torch
from idioms import IDIOMS
from methods import DEEP, SLOW
from programs import PROBLEMS
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro_oracle import NESTING, Substituted, fitted_parameters, own_state

import probsl
from probsl import Status
from probsl.program.sites import Role

DRAWS = 2000
# Scales may go to zero in the one; of the other rows nothing is known.
NO_OPTIMUM = {"horseshoe": None, "some rows observed": Status.UNBOUNDED}
# Pyro scores these one draw after the other.
FEW_DRAWS = 50

# Priors with kinks take noisy steps, which these laws see elsewhere. Among every second
# idiom are latents of every kind.
CASES = [
    (case, guide)
    for number, case in enumerate((*PROBLEMS, *IDIOMS))
    if case.name != "lasso"
    and (DEEP or (case.name not in SLOW and (case in PROBLEMS or number % 2)))
    for guide in [AutoMultivariateNormal if number % 3 == 1 else AutoNormal]
]


def log_density_by_pyro(case, values, discrete, parameters):
    """Return Pyro's log density of a program at draws of its latents, ``[draws]``."""

    def one(draw):
        substituted = Substituted(case.program, draw)
        return poutine.trace(substituted).get_trace(**case.data).log_prob_sum()

    with own_state(parameters), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not discrete:
            with suppress(RuntimeError):  # not every program can be vectorized
                return torch.func.vmap(one)(values)
        draws = [{n: v[i] for n, v in values.items()} for i in range(FEW_DRAWS)]
        if not discrete:
            return torch.stack([one(draw) for draw in draws])
        elbo = TraceEnum_ELBO(max_plate_nesting=NESTING)
        losses = [
            elbo.loss(Substituted(case.program, d), _no_guide, **case.data)
            for d in draws
        ]
        return -torch.tensor(losses, dtype=torch.float64)


def _no_guide(**data):
    pass


@pytest.mark.parametrize(
    ("case", "guide"), CASES, ids=[f"{c}-{g.__name__}" for c, g in CASES]
)
def test_the_stated_bound_is_that_of_fresh_draws(case, guide):
    """Within a nat, and the standard error of 2,000 draws within one; or no CONVERGED.

    A gap of a nat is a hundred standard errors of most of these, so chance fails none.
    """
    fit = probsl.fit(case.program, case.data, probsl.SVI(guide), seed=1, **case.options)
    if fit.status is not Status.CONVERGED:
        assert NO_OPTIMUM[case.name] in (None, fit.status)
        return
    latents = {site.name for site in fit.problem.latents}
    draws = {n: v for n, v in fit.draw(DRAWS, seed=5).items() if n in latents}
    discrete = fit.problem.sites_with_role(Role.ENUMERATED)
    with fitted_parameters(fit) as parameters, pyro.validation_enabled(False):
        log_p = log_density_by_pyro(case, draws, discrete, parameters)
    log_q = fit.posterior.log_density(DRAWS, 5)
    terms = (log_q[: len(log_p)] - log_p).double()
    assert float(terms.std()) / math.sqrt(len(terms)) < 1
    assert float(fit.losses[-1]) == pytest.approx(float(terms.mean()), abs=1)
    stated = float(fit.note.split("ELBO ")[1].split(",")[0])
    assert -stated == pytest.approx(float(terms.mean()), abs=1)
