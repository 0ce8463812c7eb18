"""A support that moves with a latent ends where it ends in compiled code, too."""

import functools

import pyro
import pyro.distributions as dist
import torch

import probsl

Y = torch.linspace(0.2, 7.0, 30, dtype=torch.float64)


def pareto(y=None):
    alpha = pyro.sample("alpha", dist.Gamma(2.0, 1.0))
    edge = pyro.sample("edge", dist.HalfNormal(5.0))
    with pyro.plate("data", 30):
        pyro.sample("y", dist.Pareto(edge * 0.01, alpha), obs=y)


def test_steps_that_leave_the_support_are_the_same_and_are_not_made():
    """The edge is pushed up to the smallest value, 20, and tried beyond it."""
    adam = functools.partial(torch.optim.Adam, lr=0.05)
    method = probsl.MAP(optimizer=adam, start={"edge": 15.0}, max_steps=250)
    eager, compiled = (
        probsl.fit(pareto, {"y": Y}, method, compile=c) for c in (False, True)
    )
    assert compiled.compiled_from == 1
    beyond = eager.losses.isnan()
    assert 0 < beyond.sum() < 250
    torch.testing.assert_close(compiled.losses, eager.losses, equal_nan=True)
    assert compiled.point()["edge"] <= 100 * Y.min()
