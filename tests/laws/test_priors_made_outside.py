"""A distribution that was made outside the program is one made inside it."""

import functools
import threading

import pyro
import pyro.distributions as dist
import pytest
import torch
from methods import ADAM
from pyro.nn import PyroModule, PyroSample
from torch import nn

import probsl
from probsl.engine.steps import step as engine
from probsl.isolation.calls import isolated
from probsl.isolation.validation import validating

X = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
Y = X[:, 0] + torch.randn(60, generator=torch.Generator().manual_seed(1))
DATA = {"x": X, "y": Y}
METHODS = {
    "MAP": probsl.MAP(optimizer=ADAM, max_steps=5),
    "SVI": probsl.SVI(optimizer=ADAM, max_steps=5),
}
# All are made here, where torch's checks are on, and expanded copies keep them.
PRIORS = {
    "normal": dist.Normal(0.0, 1.0).expand([5]).to_event(1),
    "positive": dist.HalfCauchy(1.0).expand([5]).to_event(1),
    "interval": dist.Uniform(-1.0, 1.0).expand([5]).to_event(1),
    "simplex": dist.Dirichlet(torch.ones(3)).expand([2]).to_event(1),
    "covariance": dist.MultivariateNormal(
        torch.zeros(5), precision_matrix=torch.eye(5) + 0.1
    ).expand([2]),
    "transformed": dist.TransformedDistribution(
        dist.Normal(0.0, 1.0).expand([3]),
        [dist.transforms.ExpTransform(cache_size=1)],
    ).to_event(1),
    "factor": dist.LKJCholesky(3, 2.0).expand([2]),
    "masked": dist.Normal(0.0, 1.0)
    .expand([3])
    .mask(torch.tensor([True, False, True]))
    .to_event(1),
    "checked": dist.Normal(0.0, 1.0, validate_args=True),
}


def with_prior(prior):
    def program(x, y=None):
        w = pyro.sample("w", prior.to_event(len(prior.batch_shape)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x[:, 0] * w.sum(), 1.0), obs=y)

    return program


class Network(PyroModule):
    """Priors in the place of weights, as Pyro's tutorials have them."""

    def __init__(self):
        super().__init__()
        self.hidden = PyroModule[nn.Linear](5, 3)
        self.hidden.weight = PyroSample(
            dist.Normal(0.0, 1.0).expand([3, 5]).to_event(2)
        )
        self.hidden.bias = PyroSample(dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        self.scale = PyroSample(dist.HalfNormal(1.0).expand([]))
        self.out = PyroModule[nn.Linear](3, 1)
        self.out.weight = PyroSample(
            lambda _: dist.Normal(0.0, self.scale).expand([1, 3]).to_event(2)
        )

    def forward(self, x, y=None):
        mean = self.out(torch.tanh(self.hidden(x)))[:, 0]
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


chosen = dist.Categorical(torch.ones(3) / 3).expand([])


def mixture(x, y=None):
    means = pyro.sample("means", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", chosen, infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(means[z], 1.0), obs=y)


def checked_inside(x, y=None):
    w = pyro.sample(
        "w", dist.Normal(0.0, 1.0, validate_args=True).expand([5]).to_event(1)
    )
    scale = pyro.sample("scale", dist.HalfNormal(1.0, validate_args=True))
    pyro.factor("more", PRIORS["normal"].log_prob(w))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, scale, validate_args=True), obs=y)


PROGRAMS = {
    **{name: with_prior(prior) for name, prior in PRIORS.items()},
    "network": Network(),
    "mixture": mixture,
    "checked inside": checked_inside,
}


PAIRS = [(name, "MAP") for name in PROGRAMS]
PAIRS += [(name, "SVI") for name in ("normal", "simplex", "network")]


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_its_steps_have_a_graph(name, method, monkeypatch):
    monkeypatch.setattr(engine.Step, "compile", engine.Step.trace)
    run = functools.partial(probsl.fit, PROGRAMS[name], DATA, METHODS[method])
    found = run(compile=True, batch_size=20)
    assert found.compiled_from == 1
    torch.testing.assert_close(
        found.losses, run(compile=False, batch_size=20).losses, rtol=1e-4, atol=1e-4
    )


def test_its_steps_are_compiled():
    """Ridge regression: the mode has a closed form."""
    prior = dist.Normal(0.0, 1.0).expand([5]).to_event(1)

    def program(x, y=None):
        w = pyro.sample("w", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    method = probsl.MAP(optimizer=ADAM, max_steps=2000)
    fit = probsl.fit(program, DATA, method, compile=True)
    assert fit.compiled_from == 1
    assert fit.note == ""
    ridge = torch.linalg.solve(X.T @ X + torch.eye(5), X.T @ Y)
    torch.testing.assert_close(fit.point()["w"], ridge, rtol=1e-3, atol=1e-3)


NAN = torch.full((5,), torch.nan)


def checks(prior=PRIORS["normal"]):
    try:
        prior.log_prob(NAN)
    except ValueError:
        return True
    return False


def test_checks_are_off_within_and_as_they_were_afterwards():
    assert checks()
    with isolated(torch.float32):
        assert not checks()
        assert not checks(dist.Normal(0.0, 1.0, validate_args=True).expand([5]))
        with isolated(torch.float32, validate=True):
            assert checks()
            assert not checks(dist.Normal(0.0, 1.0, validate_args=False).expand([5]))
        assert not checks()
        with isolated(torch.float32):
            assert not checks()
        assert not checks()
    assert checks()


def test_checks_of_other_threads_stay_on():
    seen = []
    with validating(False), validating(False):
        thread = threading.Thread(target=lambda: seen.append(checks()))
        thread.start()
        thread.join()
        assert not checks()
    assert seen == [True]


def test_without_torchs_flag_nothing_is_changed(monkeypatch):
    monkeypatch.setattr("probsl.isolation.validation._FLAG", "renamed")
    with isolated(torch.float32):
        assert checks()
    assert not hasattr(torch.distributions.Distribution, "renamed")
