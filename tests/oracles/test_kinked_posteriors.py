"""SVI of likelihoods with kinks, against numbers from a grid."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import probsl
from probsl import Status

Y = np.random.default_rng(0).laplace(1.0, 2.0, 60)


def location(y=None):
    m = pyro.sample("m", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Laplace(m, 2.0), obs=y)


@pytest.mark.parametrize("law", ["laplace", "asymmetric", "mixture"])
def test_kinks_go_to_noisy_steps_at_once(law):
    def program(y=None):
        m = pyro.sample("m", dist.Normal(0.0, 5.0))
        kinds = {
            "laplace": lambda: dist.Laplace(m, 2.0),
            "asymmetric": lambda: dist.AsymmetricLaplace(
                m, torch.tensor(2.0).double(), torch.tensor(1.5).double()
            ),
            "mixture": lambda: dist.MixtureSameFamily(
                dist.Categorical(torch.ones(2)),
                dist.Laplace(m[..., None] + torch.tensor([0.0, 1.0]), 2.0),
            ),
        }
        with pyro.plate("rows", len(y)):
            pyro.sample("y", kinds[law](), obs=y)

    fit = probsl.fit(program, {"y": Y}, probsl.SVI(AutoNormal, max_steps=100))
    assert "by noisy steps, because the likelihood of 'y' has a kink" in fit.note


def test_the_soft_laplace_has_no_kink():
    def program(y=None):
        m = pyro.sample("m", dist.Normal(0.0, 5.0))
        one = torch.ones(len(y), dtype=torch.float64)
        # In a plate Pyro fails to expand it.
        law = dist.SoftAsymmetricLaplace(m * one, 2 * one, one, one)
        pyro.sample("y", law.to_event(1), obs=y)

    fit = probsl.fit(program, {"y": Y}, probsl.SVI(AutoNormal))
    assert "fixed draws" in fit.note
    assert fit.status is Status.CONVERGED
    assert probsl.fit(program, {"y": Y}, probsl.MLE()).status is Status.CONVERGED


def test_the_best_normal_of_a_kinked_posterior():
    """The least KL divergence to a Normal, over a grid of means and widths.

    Noisy steps end near it; the seed is fixed, so that they always end at one place.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()

    def loss(mean, width):
        m = mean + width * nodes
        likelihood = (np.abs(Y - m[:, None]) / 2 + np.log(4)).sum(axis=1)
        prior = m**2 / 50 + np.log(5)
        return weights @ (likelihood + prior) - np.log(width) - 0.5

    grid = [
        loss(m, w) for m in np.linspace(0.5, 2.0, 61) for w in np.geomspace(0.1, 1, 41)
    ]
    fit = probsl.fit(location, {"y": Y}, probsl.SVI(AutoNormal))
    assert fit.status is Status.CONVERGED
    table = fit.summary().loc["m"]
    assert loss(table.estimate, table.sd) == pytest.approx(min(grid), abs=0.03)
