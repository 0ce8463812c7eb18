"""Variational fits by fixed draws: as good as other ways to the same bound."""

import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import probsl
from probsl import Status

DOUBLE = torch.float64
EFFECT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=DOUBLE)
ERROR = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=DOUBLE)


def eight_schools(sigma, y=None):
    """Pyro's example, whose scale has heavy tails."""
    eta = pyro.sample("eta", dist.Normal(sigma.new_zeros(8), 1.0).to_event(1))
    mu = pyro.sample("mu", dist.Normal(sigma.new_zeros(1), 10.0).to_event(1))
    tau = pyro.sample("tau", dist.HalfCauchy(25 * sigma.new_ones(1)).to_event(1))
    pyro.sample("obs", dist.Normal(mu + tau * eta, sigma).to_event(1), obs=y)


def eight_schools_density(z):
    """Return the log density of eta, mu and log tau, ``[draws, 10]``, written out."""
    eta, mu, log_tau = z[:, :8], z[:, 8:9], z[:, 9:]
    prior = dist.Normal(0.0, 1.0).log_prob(eta).sum(1)
    prior += dist.Normal(0.0, 10.0).log_prob(mu).sum(1)
    tau = log_tau.exp()
    prior += (dist.HalfCauchy(25.0).log_prob(tau) + log_tau).sum(1)
    return prior + dist.Normal(mu + tau * eta, ERROR).log_prob(EFFECT).sum(1)


def by_adam(density, dimension, steps=800, draws=64):
    """Return the negative bound that Adam reaches with fresh draws at every step."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.zeros(dimension, dtype=DOUBLE, requires_grad=True)
    factor = (0.3 * torch.eye(dimension, dtype=DOUBLE)).requires_grad_()
    optimizer = torch.optim.Adam([mean, factor], lr=0.05)
    rate = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / steps))

    def negative_bound(count):
        z = torch.randn(count, dimension, dtype=DOUBLE, generator=generator)
        tril = factor.tril()
        entropy = tril.diagonal().abs().log().sum()
        entropy = entropy + dimension * (1 + math.log(2 * math.pi)) / 2
        return -density(mean + z @ tril.T).mean() - entropy

    for _ in range(steps):
        optimizer.zero_grad()
        negative_bound(draws).backward()
        optimizer.step()
        rate.step()
    with torch.no_grad():
        return float(negative_bound(200_000))


def own_bound(fit, draws=20_000):
    """Return the negative bound of eight schools by draws of the fitted guide."""
    values = fit.draw(draws, seed=9)
    z = torch.cat([values["eta"], values["mu"], values["tau"].log()], 1)
    log_q = fit.posterior.log_density(draws, 9)
    # The guide's density is one of tau: the Jacobian comes back.
    terms = log_q + values["tau"].log().sum(1) - eight_schools_density(z)
    return float(terms.mean()), float(terms.std()) / math.sqrt(draws)


@pytest.mark.parametrize("seed", [0, 1])
def test_eight_schools_is_as_good_as_a_long_run_of_adam(seed):
    """64 draws overfit here by a third of a nat; more are taken until none is left."""
    data = {"sigma": ERROR, "y": EFFECT}
    fit = probsl.fit(eight_schools, data, probsl.SVI(AutoMultivariateNormal), seed=seed)
    assert fit.status is Status.CONVERGED
    found, error = own_bound(fit)
    assert error < 0.02
    assert found < _adams_bound() + 0.05
    # What the fit states is what its guide is worth.
    assert float(fit.losses[-1]) == pytest.approx(found, abs=0.1)


@functools.cache
def _adams_bound():
    return by_adam(eight_schools_density, 10)


@pytest.mark.parametrize("guide", [AutoMultivariateNormal, AutoNormal])
def test_columns_far_from_zero_take_no_more_steps(guide):
    """The intercept and the slope of x = 1e6 + 0..59 correlate to ten digits."""
    rng = np.random.default_rng(0)
    t = np.arange(60.0)
    y = 0.05 * t + 0.5 * rng.normal(size=60)

    def program(x, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1e9))
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        s = pyro.sample("s", dist.HalfNormal(5.0))
        with pyro.plate("d", len(x)):
            pyro.sample("y", dist.Normal(a + b * x, s), obs=y)

    near, far = (
        probsl.fit(program, {"x": shift + t, "y": y}, probsl.SVI(guide))
        for shift in (0.0, 1e6)
    )
    assert near.status is far.status is Status.CONVERGED
    assert far.steps <= 4 * near.steps + 8
    if guide is AutoMultivariateNormal:
        line, expected = far.summary().loc["b"], near.summary().loc["b"]
        assert line["estimate"] == pytest.approx(
            expected["estimate"], abs=0.05 * expected["sd"]
        )
        assert line["sd"] == pytest.approx(expected["sd"], rel=0.05)


RNG = np.random.default_rng(0)
X = torch.tensor(RNG.normal(size=(120, 2)))
LEVEL = torch.tensor(
    np.digitize(X.numpy() @ [1.0, -0.5] + RNG.logistic(size=120), [-1.0, 0.0, 1.0])
)


def _ordered_prior():
    base = dist.Normal(X.new_zeros(3), 3.0).to_event(1)
    ordered = dist.transforms.OrderedTransform()
    return dist.TransformedDistribution(base, [ordered])


def ordinal(x, y=None):
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 3.0).to_event(1))
    cuts = pyro.sample("cuts", _ordered_prior())
    with pyro.plate("d", len(x)):
        pyro.sample("y", dist.OrderedLogistic(x @ w, cuts), obs=y)


def ordinal_by_hand(x, y=None):
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 3.0).to_event(1))
    cuts = pyro.sample("cuts", _ordered_prior())
    below = torch.sigmoid(cuts - (x @ w)[:, None])
    ends = torch.zeros_like(below[:, :1]), torch.ones_like(below[:, :1])
    steps = torch.cat([ends[0], below, ends[1]], 1).diff(dim=1)
    with pyro.plate("d", len(x)):
        pyro.sample("y", dist.Categorical(steps), obs=y)


def in_place(x, y=None):
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 3.0).to_event(1))
    mean = torch.zeros(len(x), dtype=x.dtype)
    mean[:50] = x[:50] @ w
    mean[50:] += x[50:] @ w
    mean += w[1]
    with pyro.plate("d", len(x)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def out_of_place(x, y=None):
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 3.0).to_event(1))
    with pyro.plate("d", len(x)):
        pyro.sample("y", dist.Normal(x @ w + w[1], 1.0), obs=y)


@config_enumerate
def with_a_discrete_latent(x, y=None):
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    p = pyro.sample("p", dist.Beta(x.new_tensor(2.0), 2.0))
    with pyro.plate("d", len(x)):
        z = pyro.sample("z", dist.Bernoulli(p))
        pyro.sample("y", dist.Normal(x @ w + 3 * z, 1.0), obs=y)


def summed_by_hand(x, y=None):
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    p = pyro.sample("p", dist.Beta(x.new_tensor(2.0), 2.0))
    parts = dist.Normal((x @ w)[:, None] + x.new_tensor([0.0, 3.0]), 1.0)
    shares = dist.Categorical(torch.stack([1 - p, p]))
    with pyro.plate("d", len(x)):
        pyro.sample("y", dist.MixtureSameFamily(shares, parts), obs=y)


def reading_a_latent(x, y=None):
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 3.0).to_event(1))
    assert abs(float(w.detach()[0])) < 1e9
    with pyro.plate("d", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


CONTINUOUS = X @ torch.tensor([1.0, -0.5], dtype=DOUBLE) + torch.tensor(
    RNG.normal(size=120)
)
PAIRS = {
    "ordered logistic": (ordinal, ordinal_by_hand, LEVEL),
    "in-place arithmetic": (in_place, out_of_place, CONTINUOUS),
    "a discrete latent": (
        with_a_discrete_latent,
        summed_by_hand,
        CONTINUOUS + 3.0 * (torch.arange(120) % 3 == 0),
    ),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_what_torch_cannot_vectorize_keeps_its_fixed_draws(kind):
    """The same model in other words gives the same fit."""
    program, same, y = PAIRS[kind]
    fit, expected = (
        probsl.fit(p, {"x": X, "y": y}, probsl.SVI()) for p in (program, same)
    )
    assert fit.status is expected.status is Status.CONVERGED
    assert "fixed draws" in fit.note
    assert "one by one" not in fit.note
    assert float(fit.losses[-1]) == pytest.approx(float(expected.losses[-1]), abs=1e-5)
    assert fit.point()["w"].numpy() == pytest.approx(
        expected.point()["w"].numpy(), abs=1e-4
    )


def test_what_no_graph_can_stand_for_is_drawn_one_by_one_and_says_so():
    fit = probsl.fit(
        reading_a_latent, {"x": X[:10], "y": CONTINUOUS[:10]}, probsl.SVI()
    )
    assert "fixed draws, one by one (" in fit.note
    assert fit.status is Status.CONVERGED


def test_the_note_says_why_draws_are_not_fixed():
    def lasso(x, y=None):
        w = pyro.sample("w", dist.Laplace(x.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("d", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    data = {"x": X, "y": CONTINUOUS}
    fit = probsl.fit(lasso, data, probsl.SVI(AutoNormal, max_steps=5))
    assert "noisy steps, because the prior of 'w' has a kink" in fit.note


def test_clip_norm_is_heeded():
    """It is one of steps by gradients, so these are the steps that are taken."""
    data = {"x": X, "y": CONTINUOUS}
    free, clipped = (
        probsl.fit(
            out_of_place, data, probsl.SVI(AutoNormal, clip_norm=norm, max_steps=1)
        )
        for norm in (1e9, 1e-9)
    )
    assert "noisy steps" in clipped.note
    # Adam divides by the gradient's size, but for its epsilon of 1e-8.
    start = torch.zeros(2, dtype=DOUBLE)
    moved = [
        float((f.posterior.guide_own["scales.w"] - start).abs().max())
        for f in (free, clipped)
    ]
    assert moved[0] != moved[1]
