"""The programs whose steps are timed, each with data of its own."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import nn


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def logistic_data(rows: int = 1000, columns: int = 20) -> dict[str, torch.Tensor]:
    x = _normal(rows, columns)
    probability = torch.sigmoid(x @ _normal(columns, seed=1) / 2)
    generator = torch.Generator().manual_seed(2)
    return {"x": x, "y": torch.bernoulli(probability, generator=generator)}


def logistic(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w + b), obs=y)


def hierarchical(group, x, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 30):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(theta[group] + slope * x, sigma), obs=y)


def covariance(y=None):
    scale = pyro.sample("scale", dist.HalfNormal(1.0).expand([4]).to_event(1))
    factor = pyro.sample("factor", dist.LKJCholesky(4, 2.0))
    with pyro.plate("data", 300):
        tril = scale.diag_embed() @ factor
        pyro.sample(
            "y", dist.MultivariateNormal(torch.zeros(4), scale_tril=tril), obs=y
        )


def mixture(y=None):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    centers = pyro.sample("centers", dist.Normal(0.0, 3.0).expand([3]).to_event(1))
    scales = pyro.sample("scales", dist.HalfNormal(1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(y) if y is not None else 1):
        components = dist.Normal(centers, scales)
        chosen = dist.MixtureSameFamily(dist.Categorical(weights), components)
        pyro.sample("y", chosen, obs=y)


def series(y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 0.5))
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("data", len(y) - 1):
        pyro.sample("next", dist.Normal(level + slope * y[:-1], sigma), obs=y[1:])


def counts(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson((x @ w).exp()), obs=y)


def network(columns: int = 20, hidden: int = 50):
    """Return a program of a network all of whose weights have priors."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(columns, hidden), nn.Tanh(), nn.Linear(hidden, 1))
    shapes = {n: p.shape for n, p in net.named_parameters()}

    def program(x, y=None):
        weights = {
            n: pyro.sample(n, dist.Normal(0.0, 1.0).expand(s).to_event(len(s)))
            for n, s in shapes.items()
        }
        mean = torch.func.functional_call(net, weights, (x,)).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    return program, net


def network_data(rows: int = 1000, columns: int = 20) -> dict[str, torch.Tensor]:
    x = _normal(rows, columns)
    return {"x": x, "y": torch.sin(x[:, 0]) + x[:, 1] / 2 + 0.1 * _normal(rows, seed=1)}


def six() -> dict[str, tuple]:
    """Return name -> (program, data) of six kinds of program."""
    group = torch.arange(600) % 30
    x = _normal(600)
    y = _normal(30, seed=1)[group] + x / 2 + _normal(600, seed=2)
    design = 0.3 * _normal(800, 8)
    rate = (design @ _normal(8, seed=3)).exp()
    generator = torch.Generator().manual_seed(4)
    walk = _normal(500).cumsum(0) / 10
    return {
        "hierarchical": (hierarchical, {"group": group, "x": x, "y": y}),
        "LKJ covariance": (covariance, {"y": _normal(300, 4)}),
        "mixture": (mixture, {"y": _normal(500) + 3 * (torch.arange(500) % 3 - 1)}),
        "network": (network(10, 200)[0], network_data(500, 10)),
        "time series": (series, {"y": walk}),
        "Poisson": (
            counts,
            {"x": design, "y": torch.poisson(rate, generator=generator)},
        ),
    }


__all__ = ["logistic", "logistic_data", "network", "network_data", "six"]
