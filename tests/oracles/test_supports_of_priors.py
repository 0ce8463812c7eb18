"""Priors on the image of an interval, mixtures and matrices: against scipy."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch.distributions.transforms import AffineTransform, ExpTransform

import probsl
from probsl import Status


def mean_of(prior, size=50):
    """Return a program whose one latent, with this prior, is a Normal's mean."""

    def program(y=None):
        b = pyro.sample("b", prior())
        with pyro.plate("rows", size):
            pyro.sample("y", dist.Normal(b, 1.0), obs=y)

    return program


def around(mean):
    return mean + np.random.default_rng(0).normal(size=50)


def tenfold_beta():
    return dist.TransformedDistribution(
        dist.Beta(2.0, 2.0), [AffineTransform(0.0, 10.0)]
    )


def shifted_gamma():
    return dist.TransformedDistribution(
        dist.Gamma(2.0, 1.0), [AffineTransform(15.0, 1.0)]
    )


def shifted_lognormal():
    return dist.TransformedDistribution(
        dist.Normal(0.0, 1.0), [ExpTransform(), AffineTransform(1.0, 2.0)]
    )


@pytest.mark.parametrize(
    ("prior", "mean", "edge"),
    [(tenfold_beta, 12.0, 10.0), (shifted_gamma, 12.0, 15.0)],
    ids=["tenfold-beta", "shifted-gamma"],
)
def test_maximum_likelihood_ends_at_the_edge_of_a_transformed_prior(prior, mean, edge):
    fit = probsl.fit(mean_of(prior), {"y": around(mean)}, probsl.MLE())
    assert fit.status is Status.BOUNDARY
    assert fit.status_sites == ("b",)
    assert float(fit.point()["b"]) == pytest.approx(edge, abs=1e-3)


@pytest.mark.parametrize(
    ("prior", "density", "lower", "upper"),
    [
        (tenfold_beta, scipy.stats.beta(2, 2, 0, 10), 0, 10),
        (shifted_gamma, scipy.stats.gamma(2, 15), 15, 40),
        (shifted_lognormal, scipy.stats.lognorm(1, 1, 2), 1, 40),
    ],
    ids=["tenfold-beta", "shifted-gamma", "shifted-lognormal"],
)
def test_a_transformed_prior_has_its_posterior(prior, density, lower, upper):
    # The data know little, so that the prior and its support count.
    program = mean_of(prior, 1)
    y = np.array([(lower + min(upper, lower + 10)) / 2 + 3])
    grid = np.linspace(lower, upper, 400_001)[1:-1]
    log = density.logpdf(grid) + scipy.stats.norm.logpdf(y[0], grid, 1)
    point = probsl.fit(program, {"y": y}, probsl.MAP())
    assert point.status is Status.CONVERGED
    assert float(point.point()["b"]) == pytest.approx(grid[log.argmax()], abs=1e-3)
    weight = np.exp(log - log.max())
    mean = (grid * weight).sum() / weight.sum()
    for guide in (AutoNormal, AutoMultivariateNormal):
        fit = probsl.fit(program, {"y": y}, probsl.SVI(guide))
        assert fit.status is Status.CONVERGED
        draws = fit.draw(2000)["b"]
        assert draws.min() > lower
        assert draws.max() < upper
        assert float(fit.point()["b"]) == pytest.approx(mean, abs=0.1)


def test_the_scale_of_a_transformed_prior_may_be_a_latent():
    # b = a * u with u in (0, 1): the support of b moves, and its share is the remedy.
    def program(y=None):
        a = pyro.sample("a", dist.HalfNormal(10.0))
        scaled = AffineTransform(0.0, a)
        b = pyro.sample(
            "b", dist.TransformedDistribution(dist.Beta(2.0, 2.0), [scaled])
        )
        with pyro.plate("rows", 50):
            pyro.sample("y", dist.Normal(b, 1.0), obs=y)

    with pytest.raises(ValueError, match="support of latent site 'b' depends"):
        probsl.fit(program, {"y": around(2.0)}, probsl.MAP())


def wishart_program(y=None):
    precision = pyro.sample("precision", dist.Wishart(torch.tensor(6.0), torch.eye(2)))
    with pyro.plate("rows", 30):
        pyro.sample(
            "y",
            dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision),
            obs=y,
        )


def test_a_wishart_prior_is_conjugate():
    y = np.random.default_rng(0).multivariate_normal([0, 0], [[2, 0.5], [0.5, 1]], 30)
    # The posterior is Wishart with 36 degrees of freedom; its mode and mean are known.
    scale = np.linalg.inv(np.eye(2) + y.T @ y)
    point = probsl.fit(wishart_program, {"y": y}, probsl.MAP())
    assert point.status is Status.CONVERGED
    np.testing.assert_allclose(
        point.point()["precision"], (36 - 3) * scale, rtol=1e-5, atol=1e-7
    )
    fit = probsl.fit(wishart_program, {"y": y}, probsl.SVI())
    assert fit.status is Status.CONVERGED
    np.testing.assert_allclose(
        fit.point()["precision"], 36 * scale, rtol=0.05, atol=0.02
    )
    assert torch.linalg.eigvalsh(fit.draw(500)["precision"]).min() > 0


def test_a_mixture_as_a_prior_has_its_mode():
    rates = torch.tensor([1.0, 4.0], dtype=torch.float64)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)

    def prior():
        components = dist.Gamma(torch.full_like(rates, 3.0), rates)
        return dist.MixtureSameFamily(dist.Categorical(weights), components)

    y = np.array([1.2])
    grid = np.linspace(0, 5, 500_001)[1:]
    parts = [
        w * scipy.stats.gamma.pdf(grid, 3, scale=1 / r)
        for w, r in zip(weights.numpy(), rates.numpy(), strict=True)
    ]
    log = np.log(sum(parts)) + scipy.stats.norm.logpdf(1.2, grid, 1)
    fit = probsl.fit(mean_of(prior, 1), {"y": y}, probsl.MAP())
    assert fit.status is Status.CONVERGED
    assert float(fit.point()["b"]) == pytest.approx(grid[log.argmax()], abs=1e-4)
    draws = probsl.fit(mean_of(prior, 1), {"y": y}, probsl.SVI()).draw(500)["b"]
    assert draws.min() > 0


def test_a_mixture_of_different_ranges_has_no_coordinates():
    ends = torch.tensor([1.0, 3.0])

    def prior():
        components = dist.Uniform(torch.zeros(2), ends)
        return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), components)

    with pytest.raises(ValueError, match=r"'b' .* has no coordinates"):
        probsl.fit(mean_of(prior), {"y": around(1.0)}, probsl.MAP())
