"""Discrete latents that are summed out, against sums by hand."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.testing import assert_allclose
from pyro.infer import config_enumerate
from scipy import optimize

import probsl
from probsl import Status
from probsl.data.data_options import DataOptions
from probsl.program.problem import Problem

pytestmark = pytest.mark.usefixtures("float64_default")

# The same products in another order.
ROUNDING = 1e-12


@config_enumerate
def mixture(y=None, count=None):
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    mean = pyro.sample("mean", dist.Normal(torch.tensor([-1.0, 1.0]), 2.0).to_event(1))
    sd = pyro.sample("sd", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", count if y is None else len(y)):
        z = pyro.sample("z", dist.Bernoulli(share)).long()
        pyro.sample("y", dist.Normal(mean[z], sd), obs=y)


GENERATOR = torch.Generator().manual_seed(0)
CLASS = torch.rand(200, generator=GENERATOR) < 0.3
Y = torch.where(CLASS, 2.0, -1.0).double()
Y += 0.7 * torch.randn(200, generator=GENERATOR).double()
VALUES = {
    "share": torch.tensor(0.4).double(),
    "mean": torch.tensor([-0.5, 1.5]).double(),
    "sd": torch.tensor(0.9).double(),
}


def mixture_rows(values, y=Y):
    """Return the log likelihood of each row, the two classes added by hand."""
    share, mean, sd = values["share"], values["mean"], values["sd"]
    first = torch.log1p(-share) + dist.Normal(mean[0], sd).log_prob(y)
    second = share.log() + dist.Normal(mean[1], sd).log_prob(y)
    return torch.logaddexp(first, second)


def mixture_prior(values):
    return (
        dist.Beta(2.0, 2.0).log_prob(values["share"])
        + dist.Normal(torch.tensor([-1.0, 1.0]), 2.0).log_prob(values["mean"]).sum()
        + dist.LogNormal(0.0, 1.0).log_prob(values["sd"])
    )


def test_the_rows_of_a_mixture_are_sums_over_its_classes():
    problem = Problem.build(mixture, {"y": Y})
    expected = mixture_rows(VALUES)
    assert_allclose(problem.log_likelihood_rows(VALUES, {}), expected, rtol=ROUNDING)
    assert_allclose(problem.log_likelihood(VALUES, {}), expected.sum(), rtol=ROUNDING)
    density = problem.log_density(VALUES, {})
    assert_allclose(density, expected.sum() + mixture_prior(VALUES), rtol=ROUNDING)


def test_the_weights_of_a_mixture_multiply_whole_rows():
    weights = torch.arange(200).double() % 4
    problem = Problem.build(mixture, {"y": Y}, DataOptions(weights=weights))
    expected = (weights * mixture_rows(VALUES)).sum()
    assert_allclose(problem.log_likelihood(VALUES, {}), expected, rtol=ROUNDING)
    batches = [problem.rows_at(index) for index in torch.arange(200).split(40)]
    average = torch.stack([problem.log_density(VALUES, {}, b) for b in batches]).mean()
    assert_allclose(average, expected + mixture_prior(VALUES), rtol=ROUNDING)


def test_the_mle_of_a_mixture_is_that_of_its_summed_likelihood():
    start = {"mean": [-1.0, 1.0]}
    fit = probsl.fit(mixture, {"y": Y}, probsl.MLE(start=start))

    def loss(x):
        x = torch.tensor(x, requires_grad=True)
        values = {"share": x[0].sigmoid(), "mean": x[1:3], "sd": x[3].exp()}
        value = -mixture_rows(values).mean()
        value.backward()
        return value.item(), x.grad.numpy()

    options = {"gtol": 1e-9}
    rival = optimize.minimize(loss, [0.0, -1.0, 1.0, 0.0], jac=True, options=options)
    assert fit.status is Status.CONVERGED
    # The rival leaves a slope of 1e-9 per row, and no curvature per row is below 0.1.
    point = fit.point()
    assert_allclose(point["share"].logit(), rival.x[0], atol=1e-7, rtol=0)
    assert_allclose(point["mean"], rival.x[1:3], atol=1e-7, rtol=0)
    assert_allclose(point["sd"].log(), rival.x[3], atol=1e-7, rtol=0)
    assert_allclose(fit.log_likelihood(), -200 * rival.fun, rtol=1e-12)
    assert_allclose(probsl.log_score(fit, {"y": Y}), mixture_rows(point), rtol=1e-12)


def test_predictions_of_a_mixture_come_from_both_classes():
    fit = probsl.fit(mixture, {"y": Y}, probsl.MLE(start={"mean": [-1.0, 1.0]}))
    point = fit.point()
    draws = fit.predict({"count": 4}, draws=5_000)["y"]
    share, (low, high) = float(point["share"]), point["mean"].tolist()
    mean = (1 - share) * low + share * high
    variance = float(point["sd"]) ** 2 + share * (1 - share) * (high - low) ** 2
    assert draws.shape == (5_000, 4)
    # Five standard errors of 20,000 draws: one seed in two million fails.
    assert_allclose(draws.mean(), mean, atol=5 * math.sqrt(variance / 20_000))


def test_svi_of_a_mixture_finds_the_posterior_of_its_summed_likelihood():
    @config_enumerate
    def program(y=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("y", dist.Normal(mean * z, 1.0), obs=y)

    y = 3.0 * CLASS[:40] + torch.randn(40, generator=torch.Generator().manual_seed(2))
    grid = torch.linspace(-1.0, 6.0, 2001)
    classes = [dist.Normal(grid * z, 1.0).log_prob(y[:, None]) for z in (0, 1)]
    rows = torch.logaddexp(math.log(0.6) + classes[0], math.log(0.4) + classes[1])
    density = rows.sum(0) + dist.Normal(0.0, 3.0).log_prob(grid)
    weight = torch.softmax(density, 0)
    exact_mean = (weight * grid).sum()
    exact_sd = (weight * (grid - exact_mean) ** 2).sum().sqrt()
    fit = probsl.fit(program, {"y": y}, probsl.SVI(start={"mean": 2.0}, max_steps=600))
    # The posterior is not quite Gaussian, the steps are noisy and stopped early; all
    # together shift mean and sd by at most 0.14 sds over seeds 0 to 4.
    assert abs(fit.point()["mean"] - exact_mean) < 0.3 * exact_sd
    assert abs(fit.summary()["sd"]["mean"] - exact_sd) < 0.3 * exact_sd


def three_classes(y=None):
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", 50):
        z = pyro.sample("z", dist.Categorical(share), infer={"enumerate": "parallel"})
        rate = torch.tensor([1.0, 5.0, 20.0])[z]
        pyro.sample("y", dist.Poisson(rate), obs=y)


def test_the_rows_of_three_classes_are_sums_over_them():
    y = torch.poisson(torch.full((50,), 4.0), generator=GENERATOR).double()
    share = torch.tensor([0.2, 0.5, 0.3]).double()
    rates = torch.tensor([1.0, 5.0, 20.0]).double()
    expected = (share.log() + dist.Poisson(rates).log_prob(y[:, None])).logsumexp(1)
    problem = Problem.build(three_classes, {"y": y})
    rows = problem.log_likelihood_rows({"share": share}, {})
    assert_allclose(rows, expected, rtol=ROUNDING)


def test_a_class_shared_by_all_rows_is_summed_after_them():
    def program(y=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Normal(mean + 2 * z, 1.0), obs=y)

    y, mean = Y[:6], torch.tensor(0.2).double()
    whole = [dist.Normal(mean + 2 * z, 1.0).log_prob(y).sum() for z in (0, 1)]
    expected = torch.logaddexp(math.log(0.7) + whole[0], math.log(0.3) + whole[1])
    problem = Problem.build(program, {"y": y})
    density = problem.log_density({"mean": mean}, {}, prior_weights={"mean": 0.0})
    assert_allclose(density, expected, rtol=ROUNDING)


LENGTH = 7


@config_enumerate
def hidden_markov(y=None, count=None):
    """Give every row a sequence y [rows, steps] with a hidden chain of two states."""
    stay = pyro.sample("stay", dist.Beta(2.0, 1.0).expand([2]).to_event(1))
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    move = torch.stack(
        [torch.stack([stay[0], 1 - stay[0]]), torch.stack([1 - stay[1], stay[1]])]
    )
    with pyro.plate("sequences", count if y is None else len(y)):
        state = 0
        for step in pyro.markov(range(LENGTH)):
            state = pyro.sample(f"state_{step}", dist.Categorical(move[state]))
            seen = None if y is None else y[:, step]
            pyro.sample(f"y_{step}", dist.Normal(mean[state], 0.5), obs=seen)


def forward_rows(values, y):
    """Return the log likelihood of each sequence by the forward algorithm."""
    stay, mean = values["stay"], values["mean"]
    move = torch.stack(
        [torch.stack([stay[0], 1 - stay[0]]), torch.stack([1 - stay[1], stay[1]])]
    ).log()
    emission = dist.Normal(mean, 0.5).log_prob(y[..., None])
    weight = move[0] + emission[:, 0]
    for step in range(1, y.shape[1]):
        weight = (weight[:, :, None] + move).logsumexp(1) + emission[:, step]
    return weight.logsumexp(1)


def sequences(rows):
    generator = torch.Generator().manual_seed(1)
    states = [torch.zeros(rows, dtype=torch.long)]
    for _ in range(LENGTH):
        leave = torch.rand(rows, generator=generator) < 0.25
        states.append(torch.where(leave, 1 - states[-1], states[-1]))
    noise = 0.5 * torch.randn(rows, LENGTH, generator=generator).double()
    return 2.0 * torch.stack(states[1:], 1) + noise


HIDDEN = {
    "stay": torch.tensor([0.8, 0.6]).double(),
    "mean": torch.tensor([-0.3, 1.7]).double(),
}


def test_the_rows_of_a_hidden_markov_model_are_those_of_the_forward_algorithm():
    y = sequences(30)
    problem = Problem.build(hidden_markov, {"y": y})
    expected = forward_rows(HIDDEN, y)
    assert_allclose(problem.log_likelihood_rows(HIDDEN, {}), expected, rtol=ROUNDING)
    assert_allclose(problem.log_likelihood(HIDDEN, {}), expected.sum(), rtol=ROUNDING)


def test_the_weights_of_a_hidden_markov_model_multiply_whole_sequences():
    y, weights = sequences(30), torch.arange(30).double() % 3
    problem = Problem.build(hidden_markov, {"y": y}, DataOptions(weights=weights))
    expected = (weights * forward_rows(HIDDEN, y)).sum()
    assert_allclose(problem.log_likelihood(HIDDEN, {}), expected, rtol=ROUNDING)


def test_the_mle_of_a_hidden_markov_model_is_that_of_the_forward_algorithm():
    y = sequences(30)
    fit = probsl.fit(hidden_markov, {"y": y}, probsl.MLE(start={"mean": [0.0, 2.0]}))

    def loss(x):
        x = torch.tensor(x, requires_grad=True)
        value = -forward_rows({"stay": x[:2].sigmoid(), "mean": x[2:]}, y).mean()
        value.backward()
        return value.item(), x.grad.numpy()

    options = {"gtol": 1e-9}
    rival = optimize.minimize(loss, [0.0, 0.0, 0.0, 2.0], jac=True, options=options)
    assert fit.status is Status.CONVERGED
    # The rival leaves a slope of 1e-9 per row, and no curvature per row is below 0.1.
    assert_allclose(fit.point()["stay"].logit(), rival.x[:2], atol=1e-7, rtol=0)
    assert_allclose(fit.point()["mean"], rival.x[2:], atol=1e-7, rtol=0)
    rows = probsl.log_score(fit, {"y": y})
    assert_allclose(rows, forward_rows(fit.point(), y), rtol=ROUNDING)


def test_one_long_sequence_is_summed_by_the_forward_algorithm():
    @config_enumerate
    def program(y=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        move = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
        state = 0
        for step in pyro.markov(range(40)):
            state = pyro.sample(f"state_{step}", dist.Categorical(move[state]))
            seen = None if y is None else y[step]
            pyro.sample(f"y_{step}", dist.Normal(mean[state], 0.5), obs=seen)

    y = sequences(6).reshape(-1)[:40]
    values = {"mean": HIDDEN["mean"], "stay": torch.tensor([0.75, 0.5]).double()}
    problem = Problem.build(program, {"y": y})
    density = problem.log_density(values, {}, prior_weights={"mean": 0.0})
    assert_allclose(density, forward_rows(values, y[None])[0], rtol=ROUNDING)
    fit = probsl.fit(program, {"y": y}, probsl.MLE(start={"mean": [0.0, 2.0]}))
    assert fit.status is Status.CONVERGED
    at_fit = {**values, "mean": fit.point()["mean"]}
    assert_allclose(fit.log_likelihood(), forward_rows(at_fit, y[None])[0], rtol=1e-12)


def test_pyros_own_hidden_markov_distribution_agrees():
    y = sequences(30)

    def program(y=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        stay = pyro.sample("stay", dist.Beta(2.0, 1.0).expand([2]).to_event(1))
        move = torch.stack(
            [torch.stack([stay[0], 1 - stay[0]]), torch.stack([1 - stay[1], stay[1]])]
        )
        chain = dist.DiscreteHMM(
            torch.tensor([0.0, -1e300]),
            move.log(),
            dist.Normal(mean, 0.5),
            duration=LENGTH,
        )
        with pyro.plate("sequences", len(y)):
            pyro.sample("y", chain, obs=y)

    rows = Problem.build(program, {"y": y}).log_likelihood_rows(HIDDEN, {})
    assert_allclose(rows, forward_rows(HIDDEN, y), rtol=ROUNDING)


def test_a_discrete_latent_is_no_part_of_the_answer():
    fit = probsl.fit(mixture, {"y": Y}, probsl.MAP())
    assert set(fit.point()) == {"share", "mean", "sd"}
