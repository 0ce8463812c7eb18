"""Masks and scales around latents that are summed out: Pyro, and sums by hand."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.testing import assert_allclose
from pyro import poutine
from pyro.infer import config_enumerate
from pyro_oracle import delta_elbo

import probsl
from probsl.data.data_options import DataOptions
from probsl.program.problem import Problem

pytestmark = pytest.mark.usefixtures("float64_default")

GENERATOR = torch.Generator().manual_seed(0)
Y = torch.randn(6, 5, generator=GENERATOR, dtype=torch.float64)
LENGTHS = torch.tensor([5, 3, 4, 2, 5, 1])
STEPS = Y.shape[1]
DATA = {"y": Y, "lengths": LENGTHS}
STAY = torch.tensor([0.8, 0.7], dtype=torch.float64)


def mixture(y, lengths):
    """Latents that do not depend on each other: a masked step adds nothing."""
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("rows", len(lengths)):
        z = 0
        for t in pyro.markov(range(STEPS)):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Categorical(torch.stack([1 - p, p])))
                pyro.sample(f"y_{t}", dist.Normal(2.0 * z, 1.0), obs=y[:, t])


def chain(present):
    """Return a hidden Markov program whose step t is there where `present` says."""

    @config_enumerate
    def program(y, lengths):
        stay = pyro.sample("stay", dist.Beta(torch.full((2,), 3.0), 2.0).to_event(1))
        p = torch.stack([stay, 1 - stay], -1)
        p = torch.stack([p[0], p[1].flip(0)])
        with pyro.plate("rows", len(lengths)):
            z = 0
            for t in pyro.markov(range(STEPS)):
                with poutine.mask(mask=present(t, lengths)):
                    z = pyro.sample(f"z_{t}", dist.Categorical(p[z]))
                    pyro.sample(f"y_{t}", dist.Normal(2.0 * z, 1.0), obs=y[:, t])

    return program


right = chain(lambda t, lengths: t < lengths)
left = chain(lambda t, lengths: t >= STEPS - lengths)


def forward(y, before=0):
    """Return a sequence's log likelihood, after steps of which nothing was seen."""
    p = torch.stack([torch.stack([STAY[0], 1 - STAY[0]]), torch.tensor([0.3, 0.7])])
    state = torch.tensor([1.0, 0.0])
    for _ in range(before):
        state = state @ p
    total = torch.tensor(0.0)
    for value in y:
        state = (state @ p) * dist.Normal(torch.tensor([0.0, 2.0]), 1.0).log_prob(
            value
        ).exp()
        total = total + state.sum().log()
        state = state / state.sum()
    return total


def likelihood(program, values, **options):
    problem = Problem.build(program, DATA, DataOptions(**options))
    with problem.isolated(), torch.no_grad():
        return problem.log_likelihood(values, {})


def test_steps_masked_on_the_right_are_not_there():
    found = likelihood(right, {"stay": STAY})
    expected = [forward(y[:n]) for y, n in zip(Y, LENGTHS, strict=True)]
    assert_allclose(found, sum(expected), rtol=1e-12)
    problem = Problem.build(right, DATA)
    with problem.isolated():
        rows = problem.log_likelihood_rows({"stay": STAY}, {})
    assert_allclose(rows, torch.stack(expected), rtol=1e-12)
    weights = torch.arange(6) / 2
    weighted = likelihood(right, {"stay": STAY}, weights=weights)
    assert_allclose(weighted, weights @ torch.stack(expected), rtol=1e-12)


def test_steps_masked_on_the_left_carry_the_hidden_state():
    found = likelihood(left, {"stay": STAY})
    expected = [
        forward(y[STEPS - n :], before=STEPS - int(n))
        for y, n in zip(Y, LENGTHS, strict=True)
    ]
    assert_allclose(found, sum(expected), rtol=1e-12)
    aligned = [forward(y[STEPS - n :]) for y, n in zip(Y, LENGTHS, strict=True)]
    assert abs(float(found) - float(sum(aligned))) > 0.1


def test_the_likelihood_of_padded_sequences_is_that_of_their_steps():
    fit = probsl.fit(config_enumerate(mixture), DATA, probsl.MLE())
    p = fit.point()["p"]
    zero, two = (dist.Normal(m, 1.0).log_prob(Y) for m in (0.0, 2.0))
    each = torch.logaddexp((1 - p).log() + zero, p.log() + two)
    seen = torch.arange(STEPS) < LENGTHS[:, None]
    assert_allclose(fit.log_likelihood(), each[seen].sum(), atol=1e-6)


@pytest.mark.parametrize("share", [0.5, torch.tensor(0.5)])
def test_a_scale_is_that_of_the_sum(share):
    @config_enumerate
    def scaled(y):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("rows", len(y)), poutine.scale(scale=share):
            z = pyro.sample("z", dist.Bernoulli(p))
            pyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=y)

    data = {"y": Y[:, 0]}
    values = {"p": torch.tensor(0.3, dtype=torch.float64)}
    problem = Problem.build(scaled, data)
    with problem.isolated():
        found = float(problem.log_density(values, {}))
    assert_allclose(found, delta_elbo(scaled, data, values, ["z"]), rtol=1e-12)


def two_mixtures(first, second):
    @config_enumerate
    def program(y):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("rows", len(y)):
            for name, scale, column in (("a", first, 0), ("b", second, 1)):
                with poutine.scale(scale=scale):
                    z = pyro.sample(f"z_{name}", dist.Bernoulli(p))
                    normal = dist.Normal(2.0 * z, 1.0)
                    pyro.sample(f"y_{name}", normal, obs=y[:, column])

    return program


def test_sums_that_share_no_latent_may_differ_in_scale():
    p = torch.tensor(0.3, dtype=torch.float64)
    for first, second in ((0.5, 2.0), (torch.tensor(0.5), torch.tensor(2.0))):
        problem = Problem.build(two_mixtures(first, second), {"y": Y})
        with problem.isolated():
            found = problem.log_likelihood({"p": p}, {})
        zero, two = (dist.Normal(m, 1.0).log_prob(Y[:, :2]) for m in (0.0, 2.0))
        each = torch.logaddexp((1 - p).log() + zero, p.log() + two).sum(0)
        assert_allclose(found, 0.5 * each[0] + 2.0 * each[1], rtol=1e-12)


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (2.0, "share one poutine.scale, but 'z' has 1 and 'y' has 2"),
        (torch.linspace(1.0, 2.0, 6), "site 'y' has a poutine.scale of several"),
    ],
)
def test_a_sum_has_one_scale(scale, said):
    @config_enumerate
    def program(y):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Bernoulli(p))
            with poutine.scale(scale=scale):
                pyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=y)

    with pytest.raises(ValueError, match=said):
        probsl.fit(program, {"y": Y[:, 0]}, probsl.MLE())


@pytest.mark.parametrize(
    "infer",
    [{"enumerate": "sequential"}, {"enumerate": "parallel", "num_samples": 4}],
)
def test_what_would_be_drawn_is_not_summed_out(infer):
    def program(y):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Bernoulli(p), infer=infer)
            pyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"site 'z'.*draws it.*\"parallel\""):
        probsl.fit(program, {"y": Y[:, 0]}, probsl.MLE())


@pytest.mark.parametrize("mask", [False, True])
def test_a_mask_of_one_truth_around_an_enumerated_latent(mask):
    @config_enumerate
    def program(y):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("rows", len(y)):
            with poutine.mask(mask=mask):
                z = pyro.sample("z", dist.Bernoulli(p))
            pyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=y)

    data, values = {"y": Y[:, 0]}, {"p": torch.tensor(0.3, dtype=torch.float64)}
    problem = Problem.build(program, data)
    with problem.isolated():
        found = float(problem.log_density(values, {}))
    assert_allclose(found, delta_elbo(program, data, values, ["z"]), rtol=1e-12)
