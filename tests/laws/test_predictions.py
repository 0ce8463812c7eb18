"""Predictions and log scores of new rows."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from methods import PAIRS, Pair, fitted
from programs import DTYPE, PROBLEMS, N, problem

import probsl
from probsl.program.sites import Role

PREDICTING = [p for p in PAIRS if p.method in ("MAP", "SVI AutoNormal", "SVI Adam")]
every_pair = pytest.mark.parametrize("pair", PREDICTING, ids=str)
NEW_ROWS = 4


def some_inputs(case, rows=NEW_ROWS):
    """Return the inputs of the first few rows."""
    size = len(case.data[case.observed])
    return {n: v[:rows] if len(v) == size else v for n, v in case.inputs.items()}


def predicted_shapes(pair):
    """Return what a prediction of a few rows is to hold."""
    built = fitted(pair).problem
    shapes = {}
    for site in built.sites:
        if site.role is Role.OBSERVED:
            # Sites of a sequential plate have a name for each row, and stay scalars.
            per_row = site.shape[:1] == (built.size,)
            shapes[site.name] = (NEW_ROWS, *site.shape[1:]) if per_row else site.shape
        if site.role is Role.DETERMINISTIC:
            per_row = built.is_local(site) or site.shape[:1] == (built.size,)
            shapes[site.name] = (NEW_ROWS, *site.shape[1:]) if per_row else site.shape
    if pair.case.name == "sequential plate":
        shapes = dict(list(shapes.items())[:NEW_ROWS])
    if pair.case.name == "one joint observation":
        shapes = {"y": (NEW_ROWS,)}
    return shapes


@every_pair
def test_predictions_are_draws_of_observed_sites_and_deterministics(pair):
    fit = fitted(pair)
    predicted = fit.predict(some_inputs(pair.case), draws=7)
    assert {n: tuple(v.shape) for n, v in predicted.items()} == {
        n: (7, *shape) for n, shape in predicted_shapes(pair).items()
    }
    for name, values in predicted.items():
        assert values.dtype == DTYPE
        assert values.isfinite().all()
        site = fit.problem.site(name)
        if site.role is Role.OBSERVED:
            assert site.support.check(values).all()
            assert not (values == values[0]).all()


@every_pair
def test_observed_values_among_the_inputs_are_ignored(pair):
    fit, case = fitted(pair), pair.case
    predicted = fit.predict(case.data, draws=3)
    expected = fit.predict(case.inputs, draws=3)
    for name, values in expected.items():
        assert torch.equal(predicted[name], values)
    observed = fit.problem.sites_with_role(Role.OBSERVED)
    assert not torch.equal(
        predicted[observed[0]][0].reshape(-1)[:3],
        case.data[case.observed].reshape(-1)[:3],
    )


def test_predictions_of_a_point_have_the_noise_of_the_likelihood():
    fit = fitted(Pair("MAP", problem("linear")))
    inputs, values = some_inputs(problem("linear")), fit.point()
    draws = 4000
    y = fit.predict(inputs, draws=draws)["y"]
    # Five standard errors: one such test in a million fails by chance.
    error = 5 * float(values["sigma"]) / math.sqrt(draws)
    assert (y.mean(0) - inputs["x"] @ values["w"]).abs().max() < error
    assert ((y.std(0) - values["sigma"]).abs() < error).all()


def test_predictions_of_a_distribution_have_its_spread_too():
    fit = fitted(Pair("SVI full rank", problem("linear")))
    inputs = some_inputs(problem("linear"))
    draws = 4000
    y = fit.predict(inputs, draws=draws)["y"]
    latents = fit.draw(draws, seed=1)
    mean = latents["w"] @ inputs["x"].T
    expected = mean.var(0) + latents["sigma"].square().mean()
    # The squares' relative error is sqrt(2 / draws), a bit more for heavier tails.
    assert ((y.var(0) / expected - 1).abs() < 6 * math.sqrt(2 / draws)).all()
    assert (expected > 1.05 * latents["sigma"].square().mean()).all()


def test_local_latents_are_drawn_again():
    """A row's factor has variance one, and is not that of a row which was fitted."""
    case = problem("factor model")
    fit = fitted(Pair("MAP", case))
    values, draws = fit.point(), 4000
    loadings = torch.cat([values["first"][None], values["others"]])
    expected = loadings**2 + values["sigma"] ** 2
    for rows in (N, 3 * N):
        y = fit.predict({"x": torch.zeros(rows, dtype=DTYPE)}, draws=draws)["y"]
        assert y.shape == (draws, rows, 3)
        assert ((y.var((0, 1)) / expected - 1).abs() < 6 * math.sqrt(2 / draws)).all()
        # Independent from row to row.
        correlation = torch.corrcoef(y[:, :2, 0].T)[0, 1]
        assert correlation.abs() < 5 / math.sqrt(draws)


@pytest.mark.parametrize("name", ["centered groups", "noncentered groups"])
def test_groups_are_kept(name):
    fit = fitted(Pair("MAP", problem(name)))
    values, draws = fit.point(), 4000
    theta = values["theta"]
    group = torch.tensor([2, 0, 0, 1, 2])
    y = fit.predict({"group": group}, draws=draws)["y"]
    assert (y.mean(0) - theta[group]).abs().max() < 5 * 0.5 / math.sqrt(draws)


@pytest.mark.parametrize("method", ["MAP", "SVI AutoNormal"])
@pytest.mark.parametrize("name", ["centered groups", "noncentered groups"])
def test_another_number_of_groups_is_refused_with_the_sizes(name, method):
    case = problem(name)
    fit = fitted(Pair(method, case))
    more = {**case.inputs, "groups": 4}
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\)"):
        fit.predict(more, draws=2)
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\)"):
        probsl.log_score(fit, {**case.data, "groups": 4}, draws=2)


def test_constants_may_be_left_out_of_new_inputs():
    case = problem("mixed model")
    data = {**case.data, "groups": 3}
    fit = probsl.fit(case.program, data, probsl.MAP())
    inputs = some_inputs(case)
    with_constant = fit.predict({**inputs, "groups": 3}, draws=3)["y"]
    assert torch.equal(fit.predict(inputs, draws=3)["y"], with_constant)
    with pytest.raises(ValueError, match="data lacks 'group'"):
        fit.predict({"x": inputs["x"]}, draws=3)


def test_deterministics_of_rows_belong_to_predictions():
    case = problem("poisson")
    fit = fitted(Pair("SVI AutoNormal", case))
    inputs = some_inputs(case)
    rate = fit.predict(inputs, draws=5, seed=3)["rate"]
    w = fit.draw(5, seed=3)["w"]
    torch.testing.assert_close(rate, (w @ inputs["x"].T).exp())


def test_predictions_leave_dropout_off_and_modules_in_their_mode():
    net = torch.nn.Sequential(torch.nn.Linear(1, 1, dtype=DTYPE), torch.nn.Dropout(0.5))

    def program(x, y=None):
        sigma = pyro.sample("sigma", dist.Gamma(x.new_tensor(3.0), 3.0))
        mean = pyro.deterministic("mean", net(x[:, None]).squeeze(-1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)

    data = {"x": problem("linear").data["x"][:, 1], "y": problem("linear").data["y"]}
    method = probsl.MAP(optimizer=torch.optim.Adam, max_steps=3)
    fit = probsl.fit(program, data, method)
    mean = fit.predict({"x": data["x"]}, draws=20)["mean"]
    assert (mean == mean[0]).all()
    assert net.training


SCORED = [p for p in PREDICTING if "rows" in p.case.has]


@pytest.mark.parametrize("pair", SCORED, ids=str)
def test_log_scores_have_one_entry_per_row(pair):
    fit = fitted(pair)
    score = probsl.log_score(fit, pair.case.data, draws=8)
    assert score.shape == (fit.problem.size,)
    assert score.dtype == DTYPE
    assert score.isfinite().all()


@pytest.mark.parametrize(
    "name", [c.name for c in PROBLEMS if "rows" in c.has and "local" not in c.has]
)
def test_the_log_score_of_a_point_is_its_log_likelihood(name):
    fit = fitted(Pair("MAP", problem(name)))
    score = probsl.log_score(fit, problem(name).data)
    # The factor of a penalty belongs to no row.
    penalty = 0.0
    if "factor" in problem(name).has:
        own = fit.point()
        names = ("shift", "NET.weight", "NET.bias")
        penalty = -float(sum(own[n].square().sum() for n in names))
    assert float(score.sum()) + penalty == pytest.approx(fit.log_likelihood())


def test_the_log_score_of_a_distribution_averages_densities():
    case = problem("linear")
    fit = fitted(Pair("SVI AutoNormal", case))
    held_out = {"x": case.data["x"][:5] + 0.5, "y": case.data["y"][:5]}
    draws = fit.draw(50, seed=4)
    mean = draws["w"] @ held_out["x"].T
    density = dist.Normal(mean, draws["sigma"][:, None]).log_prob(held_out["y"])
    expected = density.logsumexp(0) - math.log(50)
    score = probsl.log_score(fit, held_out, draws=50, seed=4)
    torch.testing.assert_close(score, expected)


def test_the_log_score_integrates_over_local_latents():
    """The factor model's marginal likelihood has a closed form."""
    case = problem("factor model")
    fit = fitted(Pair("MAP", case))
    values = fit.point()
    loadings = torch.cat([values["first"][None], values["others"]])
    covariance = torch.outer(loadings, loadings) + values["sigma"] ** 2 * torch.eye(3)
    exact = dist.MultivariateNormal(torch.zeros(3, dtype=DTYPE), covariance)
    score = probsl.log_score(fit, case.data, draws=20_000)
    # Draws of the prior where the likelihood is some three times as narrow: at 20,000
    # of them the estimates scatter by some hundredths.
    torch.testing.assert_close(score, exact.log_prob(case.data["y"]), rtol=0, atol=0.15)


@pytest.mark.parametrize("name", ["sequential plate", "one joint observation"])
def test_without_rows_there_is_nothing_to_score_by_row(name):
    case = problem(name)
    fit = fitted(Pair("MAP", case))
    with pytest.raises(ValueError, match="no rows to tell apart"):
        probsl.log_score(fit, case.data)
    assert math.isfinite(fit.log_likelihood())


@pytest.mark.parametrize("count", [0, -1])
def test_there_is_at_least_one_draw(count):
    case = problem("linear")
    fit = fitted(Pair("MAP", case))
    for call in (
        lambda: fit.draw(count),
        lambda: fit.predict(case.inputs, draws=count),
        lambda: probsl.log_score(fit, case.data, draws=count),
    ):
        with pytest.raises(ValueError, match="at least 1"):
            call()
