"""A method wrapped in another is scored like the method itself."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest

import probsl
from probsl.scores.leave_one_out import score_fitted_rows

Y = np.random.default_rng(3).normal(1.0, 1.0, 12)


def program(y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 0.3))
    with pyro.plate("data", 12):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@dataclass(frozen=True)
class Noted:
    """Another method, with a note of its own."""

    method: Any

    def run(self, problem, run):
        return replace(self.method.run(problem, run), note="wrapped")


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_leave_one_out_is_of_the_density_that_the_guide_approximates(weight):
    method = probsl.SVI(prior_weight=weight)
    plain, wrapped = (
        score_fitted_rows(probsl.fit(program, {"y": Y}, m))
        for m in (method, Noted(method))
    )
    assert wrapped.left_out.elpd == plain.left_out.elpd
    # The posterior of the other rows in closed form.
    precision = weight / 0.3**2 + 11
    means = (Y.sum() - Y) / precision
    variance = 1 + 1 / precision
    exact = -(np.log(2 * np.pi * variance) + (Y - means) ** 2 / variance) / 2
    assert wrapped.left_out.elpd == pytest.approx(exact.sum(), abs=0.05)


def test_exported_statistics_have_the_wrapped_methods_target():
    method = probsl.SVI(prior_weight=0.25)
    plain, wrapped = (
        probsl.to_arviz(probsl.fit(program, {"y": Y}, m), draws=20).sample_stats
        for m in (method, Noted(method))
    )
    assert np.array_equal(plain["log_p"], wrapped["log_p"])
    # A Gaussian guide of a Gaussian posterior is off by a constant only.
    assert float((plain["log_p"] - plain["log_q"]).std()) < 1e-6
