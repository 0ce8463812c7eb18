"""What a variational fit states of itself is what Pyro finds of its guide."""

import math
import warnings

import pyro
import pytest
import torch
from programs import PROBLEMS
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import probsl
from probsl import Status

DRAWS = 2000
# Pyro scores these one draw after the other.
FEW_DRAWS = 50

# Priors with kinks take noisy steps, which these laws see elsewhere.
CASES = [
    (case, guide)
    for number, case in enumerate(PROBLEMS)
    if case.name not in ("lasso", "own parameters")
    for guide in [AutoMultivariateNormal if number % 2 else AutoNormal]
]


def log_density_by_pyro(case, values):
    """Return Pyro's log density of a program at draws of its latents, ``[draws]``."""

    def one(draw):
        conditioned = poutine.condition(case.program, draw)
        return poutine.trace(conditioned).get_trace(**case.data).log_prob_sum()

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "discrete" not in case.has:
            return torch.func.vmap(one)(values)
        elbo = TraceEnum_ELBO(max_plate_nesting=2)
        draws = [{n: v[i] for n, v in values.items()} for i in range(FEW_DRAWS)]
        losses = [
            elbo.loss(poutine.condition(case.program, d), _no_guide, **case.data)
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
    fit = probsl.fit(case.program, case.data, probsl.SVI(guide), seed=1)
    if fit.status is not Status.CONVERGED:
        assert case.name == "horseshoe"
        return
    with pyro.validation_enabled(False):
        log_p = log_density_by_pyro(case, fit.draw(DRAWS, seed=5))
    log_q = fit.posterior.log_density(DRAWS, 5)
    terms = (log_q[: len(log_p)] - log_p).double()
    assert float(terms.std()) / math.sqrt(DRAWS) < 1
    assert float(fit.losses[-1]) == pytest.approx(float(terms.mean()), abs=1)
    stated = float(fit.note.split("ELBO ")[1].split(",")[0])
    assert -stated == pytest.approx(float(terms.mean()), abs=1)
