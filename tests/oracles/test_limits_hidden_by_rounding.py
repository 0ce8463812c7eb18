"""Likelihoods without a maximum, whose limit rounding hides.

A negative binomial of counts that spread less than Poisson's has its supremum where r
is infinite, a beta-binomial of binomial counts where its concentration is, a Student t
of short-tailed data where its degrees of freedom are. There they are differences of
large log gammas: rounding, that must not be climbed.
"""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

import probsl
from probsl import Status

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
# How r is written, and the status of its end.
FORMS = {
    "r": (lambda: pyro.sample("r", dist.LogNormal(0.0, 2.0)), Status.UNBOUNDED),
    "log": (lambda: pyro.sample("r", dist.Normal(0.0, 2.0)).exp(), Status.UNBOUNDED),
    "inverse": (lambda: 1 / pyro.sample("r", dist.HalfNormal(1.0)), Status.BOUNDARY),
}
forms = pytest.mark.parametrize("form", FORMS)


def mean_of_counts():
    return pyro.sample("mu", dist.LogNormal(0.0, 2.0))


def gamma_poisson(r, y):
    mu = mean_of_counts()
    with pyro.plate("rows", 80):
        pyro.sample("y", dist.GammaPoisson(r, r / mu), obs=y)


def gamma_poisson_by_shape_and_rate(r, y):
    rate = pyro.sample("rate", dist.LogNormal(0.0, 2.0))
    with pyro.plate("rows", 80):
        pyro.sample("y", dist.GammaPoisson(r, rate), obs=y)


def negative_binomial(r, y):
    logits = mean_of_counts().log() - r.log()
    with pyro.plate("rows", 80):
        pyro.sample("y", dist.NegativeBinomial(r, logits=logits), obs=y)


def beta_binomial(r, y):
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("rows", 80):
        pyro.sample("y", dist.BetaBinomial(p * r, (1 - p) * r, 10.0), obs=y)


def student(r, y):
    m = pyro.sample("m", dist.Normal(0.0, 10.0))
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", 80):
        pyro.sample("y", dist.StudentT(r, m, s), obs=y)


def poisson_limit(y):
    return scipy.stats.poisson.logpmf(y, y.mean()).sum()


LIKELIHOODS = {
    gamma_poisson: poisson_limit,
    negative_binomial: poisson_limit,
    beta_binomial: lambda y: scipy.stats.binom.logpmf(y, 10, y.mean() / 10).sum(),
    student: lambda y: scipy.stats.norm.logpdf(y, y.mean(), y.std()).sum(),
}


def data(likelihood, seed):
    if likelihood is student:  # shorter tails than a Normal's
        normal = scipy.stats.norm.ppf((np.arange(80) + 0.5) / 80)
        return seed + np.sign(normal) * np.abs(normal) ** 0.9
    counts = np.random.default_rng(seed).binomial(10, 0.5, 80).astype(float)
    return counts.clip(3, 7)


def fit(likelihood, form, y, dtype=torch.float64, **options):
    def program(y=None):
        likelihood(FORMS[form][0](), y)

    return probsl.fit(
        program, {"y": torch.tensor(y, dtype=dtype)}, probsl.MLE(**options)
    )


@pytest.mark.parametrize("seed", [1, 2])
@forms
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda f: f.__name__)
def test_the_limit_is_reached_and_named(likelihood, form, seed):
    y = data(likelihood, seed)
    found = fit(likelihood, form, y)
    assert found.status is FORMS[form][1]
    assert found.sites == ("r",)
    assert found.log_likelihood() == pytest.approx(LIKELIHOODS[likelihood](y), abs=1e-4)


@forms
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda f: f.__name__)
def test_in_float32_as_near_as_it_resolves(likelihood, form):
    y = data(likelihood, 1)
    found = fit(likelihood, form, y, torch.float32)
    assert found.status in (FORMS[form][1], Status.STALLED)
    assert found.log_likelihood() == pytest.approx(LIKELIHOODS[likelihood](y), abs=1.0)
    if found.status is Status.STALLED:
        assert "float32 cannot resolve this" in found.note


def test_two_parameters_that_run_off_together():
    y = data(gamma_poisson, 1)
    found = fit(gamma_poisson_by_shape_and_rate, "r", y)
    assert found.status is Status.UNBOUNDED
    assert found.sites == ("r", "rate")
    assert found.log_likelihood() == pytest.approx(poisson_limit(y), abs=1e-4)


def test_many_starts_find_no_noise():
    y = data(gamma_poisson, 1)
    found = fit(gamma_poisson, "r", y, starts=6)
    assert found.status is Status.UNBOUNDED
    assert found.log_likelihood() == pytest.approx(poisson_limit(y), abs=1e-4)


@pytest.mark.parametrize("form", ["r", "log"])
def test_a_maximum_among_large_log_gammas_is_one(form):
    """Gamma data so narrow that the shape is 1e9: rounding moves the likelihood."""
    y = 3 + 1e-4 * np.random.default_rng(0).normal(size=50)

    def program(y=None):
        mu = pyro.sample("mu", dist.LogNormal(0.0, 2.0))
        shape = FORMS[form][0]()
        with pyro.plate("rows", 50):
            pyro.sample("y", dist.Gamma(shape, shape / mu), obs=y)

    shape, _, scale = scipy.stats.gamma.fit(y, floc=0)
    found = probsl.fit(program, {"y": y}, probsl.MLE())
    assert found.status is Status.CONVERGED
    expected = scipy.stats.gamma.logpdf(y, shape, scale=scale).sum()
    assert found.log_likelihood() == pytest.approx(expected, abs=1e-2)
    coarse = probsl.fit(program, {"y": y}, probsl.MLE(), dtype=torch.float32)
    assert coarse.status is Status.STALLED
    assert "float32 cannot resolve this: center the data or use dtype=float64" in (
        coarse.note
    )


@pytest.mark.parametrize("seed", range(8))
def test_a_constant_beyond_rounding_errors_is_not_the_limit(seed):
    """At concentrations above 1e13 all terms cancel, and the log likelihood is 0.

    Each seed begins elsewhere; before derivatives were integrated along steps, from
    half of them the search jumped there.
    """
    y = np.random.default_rng(1).binomial(50, 0.3, 100).astype(float)

    def program(y=None):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        k = pyro.sample("k", dist.HalfCauchy(10.0))
        with pyro.plate("rows", 100):
            pyro.sample("y", dist.BetaBinomial(p * k, (1 - p) * k, 50.0), obs=y)

    fit = probsl.fit(program, {"y": y}, probsl.MLE(), seed=seed)
    limit = scipy.stats.binom.logpmf(y, 50, y.mean() / 50).sum()
    assert fit.status is probsl.Status.UNBOUNDED
    assert fit.log_likelihood() == pytest.approx(limit, abs=0.1)
