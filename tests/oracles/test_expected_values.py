"""Expected outcomes against closed forms."""

import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from methods import PAIRS, fitted
from pyro.infer.autoguide import AutoMultivariateNormal

import probsl

ROWS = 40
RNG = np.random.default_rng(1)
X = RNG.normal(size=(ROWS, 2))
FULL_RANK = probsl.SVI(AutoMultivariateNormal)
NEW = {"x": np.array([[1.0, 2.0], [0.5, -1.0], [0.0, 0.0]])}
POINT_PAIRS = [p for p in PAIRS if p.method in ("MAP", "MLE")]


def linear_predictor(x):
    return x @ pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


def normal(x, y=None):
    mean = linear_predictor(x)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def bernoulli(x, y=None):
    mean = linear_predictor(x)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=mean), obs=y)


def poisson(x, y=None):
    mean = linear_predictor(x)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson(mean.exp()), obs=y)


def binomial(x, trials, y=None):
    mean = linear_predictor(x)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Binomial(trials, logits=mean), obs=y)


def unstated(x, y=None):
    """A distribution that does not state its mean: the cube of a normal variable."""
    mean = linear_predictor(x)
    cube = dist.transforms.PowerTransform(torch.tensor(3.0))
    positive = dist.TransformedDistribution(dist.LogNormal(mean, 0.2), [cube])
    with pyro.plate("data", len(x)):
        pyro.sample("y", positive, obs=y)


ETA = X @ [0.8, -0.5]
TRIALS = np.full(ROWS, 7.0)
MEANS = {
    normal: ({"y": ETA + 0.5 * RNG.normal(size=ROWS)}, lambda eta: eta),
    bernoulli: (
        {"y": (RNG.uniform(size=ROWS) < 1 / (1 + np.exp(-ETA))) * 1.0},
        torch.sigmoid,
    ),
    poisson: ({"y": RNG.poisson(np.exp(ETA)) * 1.0}, torch.exp),
    binomial: (
        {"y": RNG.binomial(7, 1 / (1 + np.exp(-ETA))) * 1.0, "trials": TRIALS},
        lambda eta: 7 * eta.sigmoid(),
    ),
}


@pytest.mark.parametrize("program", MEANS, ids=lambda p: p.__name__)
def test_means_and_their_intervals_are_those_of_the_linear_predictor(program):
    data, mean = MEANS[program]
    fit = probsl.fit(program, {"x": X, **data}, FULL_RANK)
    new = {**NEW, "trials": np.full(3, 7.0)} if "trials" in data else NEW
    table = fit.expected(new, prob=0.8, draws=500, seed=2)
    w = fit.draw(500, seed=2)["w"]
    values = mean(w @ torch.tensor(new["x"]).T).numpy()
    assert table["mean"].to_numpy() == pytest.approx(values.mean(0))
    lower, upper = np.quantile(values, [0.1, 0.9], axis=0)
    assert table["lower"].to_numpy() == pytest.approx(lower)
    assert table["upper"].to_numpy() == pytest.approx(upper)


@pytest.mark.parametrize("program", MEANS, ids=lambda p: p.__name__)
def test_the_predictive_interval_is_that_of_the_predictions(program):
    data, _ = MEANS[program]
    fit = probsl.fit(program, {"x": X, **data}, probsl.MAP())
    new = {**NEW, "trials": np.full(3, 7.0)} if "trials" in data else NEW
    table = fit.expected(new, prob=0.9, draws=400, seed=1)
    drawn = fit.predict(new, draws=400, seed=1)["y"].numpy()
    whole = program is not normal
    limits = np.quantile(
        drawn, [0.05, 0.95], axis=0, method="inverted_cdf" if whole else "linear"
    )
    found = table[["predictive_lower", "predictive_upper"]].to_numpy().T
    assert found == pytest.approx(limits)


LINKS = {
    normal: lambda eta: eta,
    bernoulli: lambda eta: 1 / (1 + np.exp(-eta)),
    poisson: np.exp,
    binomial: lambda eta: 7 / (1 + np.exp(-eta)),
}


@pytest.mark.parametrize("program", MEANS, ids=lambda p: p.__name__)
def test_the_interval_of_a_point_is_that_of_its_linear_predictor(program):
    """As in generalized linear models: the Wald interval of the predictor, mapped."""
    data, _ = MEANS[program]
    fit = probsl.fit(program, {"x": X, **data}, probsl.MLE())
    new = {**NEW, "trials": np.full(3, 7.0)} if "trials" in data else NEW
    table = fit.expected(new, prob=0.9, draws=20_000)
    w, covariance = fit.point()["w"].numpy(), probsl.covariance(fit).to_numpy()
    eta = NEW["x"] @ w
    sd = np.sqrt(np.einsum("ij,jk,ik->i", NEW["x"], covariance, NEW["x"]))
    for column, z in (("lower", -1.6448536), ("upper", 1.6448536)):
        expected = LINKS[program](eta + z * sd)
        # A quantile of 20,000 draws errs by 0.015 sd; 5 of these are never met by luck.
        slack = np.abs(LINKS[program](eta + (z + 0.075) * sd) - expected)
        assert (np.abs(table[column] - expected) <= slack + 1e-6).all()


@pytest.mark.parametrize("pair", POINT_PAIRS, ids=str)
def test_a_point_has_intervals_if_it_has_errors_and_every_row_a_mean(pair):
    fit = fitted(pair)
    table = fit.expected(pair.case.data, draws=20)
    if table.columns.nlevels == 1:
        table = pd.concat({"y": table}, axis=1)
    lower, upper = (table.xs(n, axis=1, level=1) for n in ("lower", "upper"))
    if fit.summary()["sd"].isna().any():
        assert lower.isna().all(axis=None)
    else:
        assert (lower.to_numpy() <= upper.to_numpy()).all()
    assert table.xs("mean", axis=1, level=1).notna().all(axis=None)
    assert len(table) in (fit.problem.size, len(pair.case.data[pair.case.observed]), 1)


def test_a_mean_that_is_not_stated_is_taken_from_draws():
    y = np.exp(3 * (ETA + 0.2 * RNG.normal(size=ROWS)))
    fit = probsl.fit(unstated, {"x": X, "y": y}, probsl.MAP())
    eta = torch.tensor(NEW["x"]) @ fit.point()["w"]
    expected = (3 * eta + 0.5 * (3 * 0.2) ** 2).exp().numpy()
    # The variance of the cube of a log-normal variable; 100 runs of 200 draws. One such
    # test in a million fails by chance.
    error = expected * math.sqrt(math.expm1(0.36) / (100 * 200))
    found = fit.expected(NEW, draws=100)["mean"].to_numpy()
    assert (abs(found - expected) < 5 * error).all()


def test_classes_have_their_labels_and_probabilities():
    species = pd.Series(RNG.choice(["cat", "dog", "eel"], ROWS), dtype="category")

    def program(x, species=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("species", dist.Categorical(logits=x @ w), obs=species)

    fit = probsl.fit(program, {"x": X, "species": species}, FULL_RANK)
    table = fit.expected(NEW, draws=300)
    assert list(table.columns.get_level_values(0).unique()) == ["cat", "dog", "eel"]
    draws = (torch.tensor(NEW["x"]) @ fit.draw(300)["w"]).softmax(-1).numpy()
    means = table.xs("mean", axis=1, level=1).to_numpy()
    assert means == pytest.approx(draws.mean(0))
    upper = table.xs("upper", axis=1, level=1).to_numpy()
    assert upper == pytest.approx(np.quantile(draws, 0.975, axis=0))
    assert "predictive_lower" not in table.columns.get_level_values(1)


def test_columns_of_an_outcome_have_their_names():
    outcome = pd.DataFrame(RNG.normal(size=(ROWS, 2)), columns=["height", "weight"])

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0).to_event(1), obs=y)

    fit = probsl.fit(program, {"x": X, "y": outcome}, probsl.MAP())
    table = fit.expected(NEW, draws=10)
    assert [*table.columns.get_level_values(0).unique()] == ["y[height]", "y[weight]"]
    expected = (torch.tensor(NEW["x"]) @ fit.point()["w"]).numpy()
    assert table.xs("mean", axis=1, level=1).to_numpy() == pytest.approx(expected)


def mixture(y=None):
    share = pyro.sample("share", dist.Beta(8.0, 4.0))
    with pyro.plate("data", ROWS):
        z = pyro.sample("z", dist.Bernoulli(share), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(6.0 * z, 1.0), obs=y)


def row_effects(y=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", ROWS):
        effect = pyro.sample("effect", dist.Normal(mean, 2.0))
        pyro.sample("y", dist.Normal(effect, 0.5), obs=y)


@pytest.mark.parametrize("program", [mixture, row_effects])
def test_latents_of_new_rows_are_averaged_over_and_do_not_widen_the_interval(program):
    chosen = RNG.uniform(size=ROWS) < 0.6
    y = {
        mixture: 6.0 * chosen + RNG.normal(size=ROWS),
        row_effects: 3.0 + 2.0 * RNG.normal(size=ROWS),
    }[program]
    fit = probsl.fit(program, {"y": y}, FULL_RANK)
    draws = fit.draw(1000)
    means = 6.0 * draws["share"] if program is mixture else draws["mean"]
    table = fit.expected({}, draws=1000)
    spread = float(means.std())
    # 40 rows, each with an error of 20 runs over 1,000 draws, below 3 / 141 each.
    assert table["mean"].to_numpy() == pytest.approx(float(means.mean()), abs=0.1)
    widths = (table["upper"] - table["lower"]) / (2 * 1.96 * spread)
    assert 0.9 < widths.mean() < 1.1


def test_rows_keep_their_index():
    frame = pd.DataFrame(X, index=[f"r{i}" for i in range(ROWS)], columns=["a", "b"])
    y = pd.Series(ETA, index=frame.index)
    fit = probsl.fit(normal, {"x": frame, "y": y}, probsl.MAP())
    table = fit.expected({"x": frame[:3]}, draws=10)
    assert table.index.tolist() == ["r0", "r1", "r2"]


def two_outcomes(x, y=None, z=None):
    mean = linear_predictor(x)
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("others", 3):
        pyro.sample("z", dist.Normal(0.0, scale), obs=z)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def test_sites_with_other_numbers_of_rows_are_named_one_by_one():
    data = {"x": X, "y": ETA, "z": np.array([1.0, -1.0, 0.5])}
    fit = probsl.fit(two_outcomes, data, probsl.MAP(), rows=("x", "y"))
    with pytest.raises(ValueError, match="z 3, y 40; name those of one length"):
        fit.expected(data)
    assert len(fit.expected(data, sites=["z"], draws=5)) == 3
    with pytest.raises(ValueError, match="'v' is not an observed site"):
        fit.expected(data, sites=["v"])


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"prob": 2.0}, ValueError, "prob must lie between 0 and 1"),
        ({"draws": 0}, ValueError, "draws must be at least 1"),
        ({"sites": "y"}, TypeError, "sites must be several names"),
    ],
)
def test_bad_options_are_refused(options, error, sentence):
    fit = probsl.fit(normal, {"x": X, "y": ETA}, probsl.MAP())
    with pytest.raises(error, match=sentence):
        fit.expected(NEW, **options)
