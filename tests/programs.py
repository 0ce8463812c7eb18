"""Small programs of every kind, each with a little data: what the laws range over.

Every program takes its observed argument last, with None for its default, and sizes its
plates by its inputs, so that it can predict. Data are of float64 and come from fixed
seeds; a fit of any of them takes a fraction of a second.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

DTYPE = torch.float64


@dataclass(frozen=True, eq=False)
class Case:
    """A program with data.

    Attributes
    ----------
    name
        What to call it in a test's name.
    program
        The program.
    data
        Its arguments; the last one is observed.
    has
        What makes it special:

        - "rows": a vectorized plate around the observed site
        - "batches": its rows can be taken a few at a time
        - "local": a latent in the data plate
        - "effects": latents that depend on others, so that no mode need exist
        - "groups": latents in a plate that is not the data plate
        - "discrete": latents that are summed out
        - "own": parameters of its own
        - "factor", "deterministic": such statements
        - "shared": a discrete latent that all rows share
        - "outside": observed sites or factors outside the data plate
    options
        What `fit` has to be given besides.
    """

    name: str
    program: Callable[..., Any]
    data: Mapping[str, Any]
    has: frozenset[str] = field(default_factory=frozenset)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def observed(self) -> str:
        """The name of the observed argument."""
        return list(self.data)[-1]

    @property
    def inputs(self) -> dict[str, Any]:
        """The data without the observed argument."""
        return {n: v for n, v in self.data.items() if n != self.observed}

    def __str__(self) -> str:
        return self.name


def _normal(seed: int, *shape: int) -> Tensor:
    numbers = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(numbers)


def _uniform(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=shape))


N = 12
X = torch.stack([torch.ones(N, dtype=DTYPE), _normal(1, N)], 1)
W = torch.tensor([0.5, -1.0], dtype=DTYPE)
GROUP = torch.arange(N) % 3
GROUP_EFFECT = torch.tensor([-1.0, 0.2, 1.1], dtype=DTYPE)


def linear(x, y=None):
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.Exponential(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)


def logistic(x, y=None):
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), 1.5).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def poisson(x, y=None):
    with pyro.plate("columns", x.shape[1]):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        rate = pyro.deterministic("rate", (x @ w).exp())
        pyro.sample("y", dist.Poisson(rate), obs=y)


def robust(x, y=None):
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), 2.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(x.new_ones(())))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.StudentT(4.0, x @ w, sigma), obs=y)


def lasso(x, y=None):
    w = pyro.sample("w", dist.Laplace(x.new_zeros(x.shape[1]), 0.3).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def centered_groups(group, y=None, groups=3):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.Gamma(2.0, 2.0))
    with pyro.plate("groups", groups):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Normal(theta[group], 0.5), obs=y)


def noncentered_groups(group, y=None, groups=3):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.Gamma(2.0, 2.0))
    with pyro.plate("groups", groups):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    theta = pyro.deterministic("theta", mu + tau * z)
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Normal(theta[group], 0.5), obs=y)


def factor_model(x, y=None):
    # Loadings whose first entry is positive settle the sign of the factor.
    first = pyro.sample("first", dist.HalfNormal(x.new_ones(())))
    others = pyro.sample("others", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.Gamma(x.new_tensor(3.0), 3.0))
    loadings = torch.cat([first[..., None], others], -1)
    with pyro.plate("data", len(x)):
        f = pyro.sample("f", dist.Normal(x, 1.0))
        mean = f[..., None] * loadings
        pyro.sample("y", dist.Normal(mean, sigma).to_event(1), obs=y)


def horseshoe(x, y=None):
    tau = pyro.sample("tau", dist.HalfCauchy(x.new_ones(())))
    with pyro.plate("columns", x.shape[1]):
        lam = pyro.sample("lam", dist.HalfCauchy(x.new_ones(())))
        w = pyro.sample("w", dist.Normal(0.0, tau * lam))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def mixture(x, y=None):
    share = pyro.sample("share", dist.Dirichlet(x.new_full((2,), 2.0)))
    # One location is below the other: which is which is then no question.
    low = pyro.sample("low", dist.Normal(x.new_zeros(()), 2.0))
    gap = pyro.sample("gap", dist.Gamma(x.new_tensor(2.0), 1.0))
    location = torch.stack([low, low + gap], -1)
    with pyro.plate("data", len(x)):
        which = pyro.sample("which", dist.Categorical(share), infer=PARALLEL)
        pyro.sample("y", dist.Normal(location[which] + x, 0.7), obs=y)


PARALLEL = {"enumerate": "parallel"}


def mixed_model(x, group, y=None, groups=3):
    beta = pyro.sample("beta", dist.Normal(x.new_zeros(x.shape[1]), 2.0).to_event(1))
    tau = pyro.sample("tau", dist.Gamma(x.new_tensor(2.0), 2.0))
    sigma = pyro.sample("sigma", dist.Gamma(x.new_tensor(2.0), 2.0))
    with pyro.plate("groups", groups):
        u = pyro.sample("u", dist.Normal(0.0, tau))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ beta + u[group], sigma), obs=y)


def hidden_markov(x, y=None):
    stay = pyro.sample("stay", dist.Beta(x.new_full((2,), 4.0), 2.0).to_event(1))
    low = pyro.sample("low", dist.Normal(x.new_zeros(()), 2.0))
    gap = pyro.sample("gap", dist.Gamma(x.new_tensor(2.0), 1.0))
    location = torch.stack([low, low + gap], -1)
    transition = torch.stack(
        [torch.stack([stay[0], 1 - stay[0]]), torch.stack([1 - stay[1], stay[1]])]
    )
    with pyro.plate("sequences", len(x)):
        state = 0
        for t in pyro.markov(range(x.shape[1])):
            state = pyro.sample(
                f"state_{t}", dist.Categorical(transition[state]), infer=PARALLEL
            )
            pyro.sample(
                f"y_{t}",
                dist.Normal(location[state] + x[:, t], 0.5),
                obs=None if y is None else y[:, t],
            )


def lkj_covariance(x, y=None):
    mu = pyro.sample("mu", dist.Normal(x.new_zeros(2), 2.0).to_event(1))
    scale = pyro.sample("scale", dist.Gamma(x.new_full((2,), 3.0), 3.0).to_event(1))
    correlation = pyro.sample("correlation", dist.LKJCholesky(2, x.new_tensor(2.0)))
    factor = pyro.deterministic("factor", scale[..., None] * correlation)
    with pyro.plate("data", len(x)):
        mean = mu + x[:, None]
        pyro.sample("y", dist.MultivariateNormal(mean, scale_tril=factor), obs=y)


class Trend(PyroModule):
    """A slope with a prior, an intercept without one, and a positive scale."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = PyroSample(dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
        self.intercept = nn.Parameter(torch.zeros((), dtype=DTYPE))
        self.scale = PyroParam(
            torch.ones((), dtype=DTYPE), constraint=constraints.positive
        )
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return self.slope * x + self.intercept, self.scale


def network() -> nn.Module:
    """Return two weights that always begin the same."""
    net = nn.Linear(1, 1, dtype=DTYPE)
    with torch.no_grad():
        net.weight.fill_(0.3)
        net.bias.fill_(0.0)
    return net


NET = network()
TREND = Trend()


def own_parameters(x, y=None):
    shift = pyro.param("shift", lambda: torch.zeros((), dtype=DTYPE))
    mean, scale = TREND(x)
    curve = NET(x[:, None].square()).squeeze(-1)
    # A penalty: the network's two weights and the shift stay small.
    penalty = shift**2 + NET.weight.square().sum() + NET.bias.square().sum()
    pyro.factor("penalty", -penalty)
    pyro.deterministic("double", 2 * shift)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean + curve + shift, scale), obs=y)


def simplex(exposure, y=None):
    share = pyro.sample("share", dist.Dirichlet(exposure.new_full((3,), 2.0)))
    with pyro.plate("data", len(exposure)):
        pyro.sample("y", dist.Poisson(exposure[:, None] * share).to_event(1), obs=y)


def sequential(x, y=None):
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    for i in pyro.plate("data", len(x)):
        observed = None if y is None else y[i]
        pyro.sample(f"y_{i}", dist.Normal(x[i] @ w, 1.0), obs=observed)


def one_joint_observation(x, y=None):
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.Gamma(x.new_tensor(2.0), 2.0))
    pyro.sample("y", dist.Normal(x @ w, sigma).to_event(1), obs=y)


def local_scales(x, y=None):
    """A scale per row, as a Student t likelihood is made of."""
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        s = pyro.sample("s", dist.LogNormal(x.new_zeros(()), 0.5))
        pyro.sample("y", dist.Normal(x @ w, s), obs=y)


NOISE = 0.4 * _normal(2, N)
BINARY = (_uniform(3, N) < torch.sigmoid(X @ W)).to(DTYPE)
COUNTS = torch.tensor([1, 0, 5, 3, 2, 0, 3, 1, 1, 2, 0, 4], dtype=DTYPE)
MEMBER = (torch.arange(N) % 3 == 0).to(DTYPE)
SERIES = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 0, 0], [1, 1, 1]], dtype=DTYPE)


def _case(name: str, program: Callable[..., Any], has: str, **data: Any) -> Case:
    return Case(name, program, data, frozenset(has.split()))


PROBLEMS: tuple[Case, ...] = (
    _case("linear", linear, "rows batches", x=X, y=X @ W + NOISE),
    _case("logistic", logistic, "rows batches", x=X, y=BINARY),
    _case("poisson", poisson, "rows batches deterministic", x=X, y=COUNTS),
    _case("robust", robust, "rows batches", x=X, y=X @ W + NOISE / 2),
    _case("lasso", lasso, "rows batches", x=X, y=X @ W + NOISE),
    _case(
        "centered groups",
        centered_groups,
        "rows batches effects groups",
        group=GROUP,
        y=GROUP_EFFECT[GROUP] + NOISE,
    ),
    _case(
        "noncentered groups",
        noncentered_groups,
        "rows batches groups deterministic",
        group=GROUP,
        y=GROUP_EFFECT[GROUP] + NOISE,
    ),
    _case(
        "factor model",
        factor_model,
        "rows local effects",
        x=torch.zeros(N, dtype=DTYPE),
        y=_normal(4, N, 1) * torch.tensor([1.0, 0.8, -0.6]) + 0.4 * _normal(5, N, 3),
    ),
    _case(
        "horseshoe",
        horseshoe,
        "rows batches effects groups",
        x=torch.stack([_normal(6, N), _normal(7, N)], 1),
        y=2 * _normal(6, N) + _normal(8, N),
    ),
    _case(
        "mixture",
        mixture,
        "rows batches discrete",
        x=torch.zeros(N, dtype=DTYPE),
        y=3 * MEMBER + NOISE,
    ),
    _case(
        "mixed model",
        mixed_model,
        "rows batches effects groups",
        x=X,
        group=GROUP,
        y=X @ W + GROUP_EFFECT[GROUP] + NOISE,
    ),
    _case(
        "hidden Markov model",
        hidden_markov,
        "rows batches discrete",
        x=torch.zeros(4, 3, dtype=DTYPE),
        y=2 * SERIES + 0.3 * _normal(9, 4, 3),
    ),
    _case(
        "LKJ covariance",
        lkj_covariance,
        "rows batches deterministic",
        x=torch.zeros(N, dtype=DTYPE),
        y=_normal(10, N, 2) @ torch.tensor([[1.0, 0.6], [0.0, 0.8]], dtype=DTYPE),
    ),
    _case(
        "own parameters",
        own_parameters,
        "rows batches own factor deterministic",
        x=X[:, 1],
        y=X @ W + NOISE,
    ),
    _case(
        "simplex",
        simplex,
        "rows batches",
        exposure=torch.full((6,), 10.0, dtype=DTYPE),
        y=torch.tensor(
            [[5, 3, 2], [6, 2, 1], [4, 4, 3], [7, 2, 2], [5, 1, 3], [4, 3, 1]],
            dtype=DTYPE,
        ),
    ),
    _case("sequential plate", sequential, "", x=X[:5], y=(X @ W + NOISE)[:5]),
    _case("one joint observation", one_joint_observation, "", x=X, y=X @ W + NOISE),
    _case("local scales", local_scales, "rows local", x=X, y=X @ W + NOISE),
)


def problem(name: str) -> Case:
    """Return the case of a name."""
    return next(case for case in PROBLEMS if case.name == name)
