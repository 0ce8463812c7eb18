"""Fits side by side: estimates, movements and scores."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from methods import METHODS, Pair, fitted
from programs import PARALLEL, problem
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal

import probsl
from probsl.comparison import movements
from probsl.psis import leave_one_out

CASES = ["linear", "own parameters", "noncentered groups", "one joint observation"]
EXACT = [m for m in METHODS if m not in ("MAP Adam", "SVI Adam", "SVI full rank")]


def unwrapped(text):
    return " ".join(str(text).split())


def fits_of(name):
    case = problem(name)
    methods = ["MLE", "MAP", "SVI AutoNormal"]
    return {method: fitted(Pair(method, case)) for method in methods}


@pytest.mark.parametrize("name", CASES)
def test_estimates_are_the_summaries_side_by_side(name):
    fits = fits_of(name)
    estimates = probsl.compare(fits).estimates
    for method, fit in fits.items():
        columns = ["estimate", "sd", "lower", "upper"]
        assert estimates[method].equals(fit.summary()[columns])
    assert list(estimates.columns.get_level_values(0).unique()) == list(fits)


@pytest.mark.parametrize("name", CASES)
def test_scores_have_a_line_for_every_fit(name):
    fits = fits_of(name)
    comparison = probsl.compare(fits)
    scores = comparison.scores
    assert list(scores.index) == list(fits)
    for method, fit in fits.items():
        line = scores.loc[method]
        assert line["status"] == fit.status.name
        assert line["log likelihood"] == pytest.approx(fit.log_likelihood())
        assert line["steps"] == fit.steps
        if fit.problem.has_rows:
            training = probsl.log_score(fit, fit.problem.arguments.values)
            assert line["log score"] == pytest.approx(float(training.sum()))
        else:
            assert math.isnan(line["log score"])
    assert "held out" not in scores


def test_held_out_rows_are_scored_where_given():
    fits, data = fits_of("linear"), problem("linear").data
    held_out = {"x": data["x"] + 0.1, "y": data["y"]}
    scores = probsl.compare(fits, held_out).scores
    for method, fit in fits.items():
        expected = float(probsl.log_score(fit, held_out).sum())
        assert scores.loc[method, "held out"] == pytest.approx(expected)


def test_the_maximum_has_the_highest_likelihood_and_the_prior_the_shortest_weights():
    comparison = probsl.compare(fits_of("linear"))
    likelihood = comparison.scores["log likelihood"]
    assert likelihood["MLE"] == likelihood.max()
    w = comparison.estimates.loc[["w[0]", "w[1]"]]
    assert (w["MAP", "estimate"].abs() < w["MLE", "estimate"].abs()).all()


@pytest.mark.parametrize("reference", [None, "MAP"])
def test_movements_are_measured_from_the_reference(reference):
    fits = fits_of("linear")
    comparison = probsl.compare(fits, reference=reference)
    start = reference or "MLE"
    assert comparison.reference == start
    moved = comparison.shrinkage
    estimates = comparison.estimates
    assert set(moved.columns.get_level_values(0)) == fits.keys() - {start}
    for method in fits.keys() - {start}:
        difference = estimates[method, "estimate"] - estimates[start, "estimate"]
        assert moved[method, "moved"].tolist() == difference.tolist()


def test_fits_with_different_parameters_leave_gaps():
    linear, own = (
        fitted(Pair("MAP", problem(n))) for n in ("linear", "own parameters")
    )
    estimates = probsl.compare({"a": linear, "b": own}).estimates
    assert list(estimates.index) == [*linear.summary().index, *own.summary().index]
    assert estimates["a"].loc["slope"].isna().all()
    assert estimates["b"].loc["w[0]"].isna().all()


@pytest.mark.parametrize("name", CASES)
def test_a_comparison_prints_itself(name):
    fits = fits_of(name)
    comparison = probsl.compare(fits)
    text = str(comparison)
    assert repr(comparison) == text
    for label in comparison.estimates.index:
        assert f"\n{label} " in text
    assert "nan" not in text.lower()
    page = comparison._repr_html_()
    assert page.count("<table") >= 2
    for method, fit in fits.items():
        assert method in text
        assert method in page
        # What did not converge says what to do.
        converged = fit.status is probsl.Status.CONVERGED
        assert (f"{method}: {fit.message}" in unwrapped(text)) is not converged


@pytest.mark.parametrize("method", EXACT)
def test_every_method_can_be_compared_with_itself(method):
    fit = fitted(Pair(method, problem("linear")))
    comparison = probsl.compare({"one": fit, "two": fit})
    assert (comparison.shrinkage["two", "moved"] == 0).all()


def test_what_is_no_fit_is_refused():
    fit = fitted(Pair("MAP", problem("linear")))
    with pytest.raises(TypeError, match="fits must map names to fits"):
        probsl.compare([fit])
    with pytest.raises(ValueError, match="fits is empty"):
        probsl.compare({})
    with pytest.raises(TypeError, match=r"fits\['a'\]"):
        probsl.compare({"a": fit.point()})
    with pytest.raises(ValueError, match="reference 'c'"):
        probsl.compare({"a": fit}, reference="c")


def regression(x, y=None):
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def correlated(rows=30, apart=2.0):
    """Two columns with a part in common, so that their posterior is correlated."""
    random = np.random.default_rng(0)
    first = random.standard_normal(rows)
    x = np.stack([first, first + apart * random.standard_normal(rows)], 1)
    return {"x": x, "y": x @ [1.0, -0.5] + random.standard_normal(rows)}


def exact_left_out(data, weights=None, prior_weight=1.0):
    """Log predictive density of each row given the others: Normal, in closed form."""
    x, y = data["x"], data["y"]
    weights = np.ones(len(y)) if weights is None else weights
    found = []
    for row in range(len(y)):
        rest = np.where(np.arange(len(y)) == row, 0.0, weights)
        precision = (x.T * rest) @ x + prior_weight * np.eye(2) / 4
        mean = x[row] @ np.linalg.solve(precision, x.T @ (rest * y))
        variance = 1 + x[row] @ np.linalg.solve(precision, x[row])
        found.append(-0.5 * np.log(2 * np.pi * variance))
        found[-1] -= 0.5 * (y[row] - mean) ** 2 / variance
    return np.array(found)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("prior_weight", [1.0, 0.2])
@pytest.mark.parametrize("guide", [AutoMultivariateNormal, AutoNormal])
def test_leaving_one_row_out_is_the_closed_form(guide, prior_weight, weighted):
    """Under any guide, prior weight and row weights."""
    data = correlated()
    weights = 1.0 + np.arange(30) % 3 if weighted else None
    method = probsl.SVI(guide, prior_weight=prior_weight)
    fit = probsl.fit(regression, data, method, weights=weights)
    comparison = probsl.compare({"SVI": fit})
    found = comparison.left_out["SVI"]
    exact = exact_left_out(data, weights, prior_weight)
    # 1000 draws: an error of 0.01 in a row is typical, and 30 are looked at.
    np.testing.assert_allclose(found.elpd_rows, exact, atol=0.08)
    assert found.elpd == pytest.approx(exact.sum(), abs=0.25)
    line = comparison.scores.loc["SVI"]
    assert line["elpd_loo"] == found.elpd
    assert line["se_loo"] == found.se
    assert line["p_loo"] == found.p
    assert line["worst k"] == found.worst_k == found.k_rows.max()
    assert comparison.notes == {}


def test_a_guide_that_is_too_narrow_is_corrected_for():
    data = correlated(apart=1.0)
    fit = probsl.fit(regression, data, probsl.SVI(AutoNormal))
    exact = exact_left_out(data)
    rows = probsl.to_arviz(fit, draws=1000).log_likelihood["y"].values[0]
    plain = leave_one_out(rows)
    corrected = probsl.compare({"SVI": fit}).left_out["SVI"]
    errors = [np.abs(f.elpd_rows - exact).mean() for f in (plain, corrected)]
    assert errors[1] < 0.75 * errors[0]


def test_draws_and_weights_are_those_that_arviz_is_given():
    fit = fitted(Pair("SVI AutoNormal", problem("linear")))
    data = probsl.to_arviz(fit, draws=1000, seed=0)
    stats = data.sample_stats
    ratio = (stats["log_p"] - stats["log_q"]).values[0]
    expected = leave_one_out(data.log_likelihood["y"].values[0], ratio)
    found = probsl.compare({"SVI": fit}).left_out["SVI"]
    np.testing.assert_allclose(found.elpd_rows, expected.elpd_rows, atol=1e-9)
    np.testing.assert_allclose(found.k_rows, expected.k_rows, atol=1e-9)


@pytest.mark.parametrize("name", ["linear", "mixed model", "local scales", "simplex"])
def test_distributions_can_leave_rows_out_and_points_cannot(name):
    fits = {m: fitted(Pair(m, problem(name))) for m in ("MAP", "SVI AutoNormal")}
    comparison = probsl.compare(fits)
    assert set(comparison.left_out) == {"SVI AutoNormal"}
    loo = ["elpd_loo", "se_loo", "p_loo", "worst k"]
    assert comparison.scores.loc["MAP", loo].isna().all()
    assert comparison.scores.loc["SVI AutoNormal", loo[:3]].notna().all()
    assert "use elpd_loo where worst k is below 0.7" in comparison.caution
    told = "elpd_loo is unreliable" in unwrapped(comparison)
    assert told == (comparison.scores.loc["SVI AutoNormal", "worst k"] >= 0.7)


def shared_switch(y=None):
    switch = pyro.sample("switch", dist.Bernoulli(0.3), infer=PARALLEL)
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 6):
        pyro.sample("y", dist.Normal(mu + switch, 1.0), obs=y)


def test_where_rows_cannot_be_left_out_it_says_why(monkeypatch):
    joint = fitted(Pair("SVI AutoNormal", problem("one joint observation")))
    said = "SVI has no elpd_loo: there are no rows to tell apart: site 'y' is observed"
    assert said in unwrapped(probsl.compare({"SVI": joint}))
    switched = probsl.fit(shared_switch, {"y": torch.ones(6)}, probsl.MAP())
    comparison = probsl.compare({"MAP": switched})
    assert "rows share a discrete latent" in comparison.notes["MAP"]
    assert math.isnan(comparison.scores.loc["MAP", "log score"])
    with pytest.raises(ValueError, match="rows share a discrete latent"):
        probsl.log_score(switched, {"y": torch.ones(6)})
    constant = probsl.fit(regression, correlated(), probsl.SVI(AutoDelta))
    assert probsl.compare({"a": constant}).notes == {"a": "all its draws are the same"}
    weighted = probsl.fit(
        problem("local scales").program,
        problem("local scales").data,
        probsl.SVI(AutoNormal, max_steps=5),
        weights=[2.0] * 12,
    )
    comparison = probsl.compare({"a": weighted})
    assert "weights and latents of their own" in comparison.notes["a"]

    fit = fitted(Pair("SVI AutoNormal", problem("linear")))
    score = probsl.compare({"SVI": fit}).scores["log score"]
    monkeypatch.setattr("probsl.scores.leave_one_out._WEIGHED", 11_999)
    monkeypatch.setattr("probsl.draws.log_scores._HELD_ELEMENTS", 120)
    comparison = probsl.compare({"SVI": fit})
    assert comparison.notes["SVI"].startswith("1,000 draws of 12 rows are too many")
    assert "elpd_loo" not in comparison.scores
    assert comparison.scores["log score"]["SVI"] == pytest.approx(score["SVI"])


def test_an_outlier_has_a_k_that_is_told():
    data = correlated()
    data["y"][3] += 40.0
    data["x"][3] *= 10.0
    fit = probsl.fit(regression, data, probsl.SVI(AutoMultivariateNormal))
    comparison = probsl.compare({"SVI": fit})
    assert comparison.scores.loc["SVI", "worst k"] >= 0.7
    k = comparison.left_out["SVI"].k_rows
    assert np.argmax(k) == 3
    said = f"SVI: elpd_loo is unreliable: {(k >= 0.7).sum()} of 30 rows"
    assert said in unwrapped(comparison)


def test_fits_of_different_data_are_not_to_be_compared():
    data = correlated()
    fits = {
        n: probsl.fit(regression, {k: v[r] for k, v in data.items()}, probsl.MAP())
        for n, r in {"a": slice(20), "b": slice(10, None)}.items()
    }
    assert probsl.compare(fits).caution == (
        "The fits observed different data, so their scores cannot be compared."
    )
    assert "except held out" in probsl.compare(fits, data).caution


def network(x, y=None):
    w = pyro.sample("w", dist.Normal(x.new_zeros(1, 1000), 1.0).to_event(2))
    b = pyro.sample("b", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        mean = (x[:, None] * w).sum(1) / 100 + b
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_above_a_thousand_elements_there_is_one_row_per_site():
    x = torch.linspace(-1, 1, 20, dtype=torch.float64)
    data = {"x": x, "y": 2 * x + 1}
    start = {"w": torch.ones(1, 1000), "b": 0.0}
    fits = {
        "MLE": probsl.fit(network, data, probsl.MLE(max_steps=1, start=start)),
        "MAP": probsl.fit(network, data, probsl.MAP(max_steps=5)),
        "SVI": probsl.fit(network, data, probsl.SVI(AutoNormal, max_steps=5)),
        "few": probsl.fit(regression, correlated(), probsl.MAP()),
    }
    comparison = probsl.compare(fits)
    assert list(comparison.estimates.index) == ["w [1, 1000]", "b []", "w [2]"]
    moved = comparison.shrinkage.loc["w [1, 1000]"]
    points = {name: fit.point()["w"].numpy() for name, fit in fits.items()}
    expected = np.sqrt(((points["MAP"] - points["MLE"]) ** 2).mean())
    sd = comparison.estimates.loc["w [1, 1000]", ("SVI", "sd")]
    assert moved["MAP", "moved"] == pytest.approx(expected)
    assert moved["MAP", "moved / sd"] == pytest.approx(expected / sd)
    assert np.isnan(moved["few", "moved"])
    assert comparison.shrinkage.loc["w [2]"].isna().all()
    assert "Moved from MLE, root mean square over each site" in str(comparison)


def test_a_comparison_fits_a_terminal():
    fits = fits_of("linear")
    many = {f"{name} {i}": fit for i in range(4) for name, fit in fits.items()}
    text = str(probsl.compare(many, problem("linear").data))
    assert max(map(len, text.splitlines())) <= 100
    for name in many:
        assert name in text


def test_many_parameters_are_printed_in_part():
    random = np.random.default_rng(0)
    x = random.standard_normal((20, 300))
    fit = probsl.fit(regression, {"x": x, "y": x[:, 0]}, probsl.MAP())
    text = str(probsl.compare({"a": fit, "b": fit}))
    assert len(text.splitlines()) < 160


def test_names_are_no_markup():
    fit = fitted(Pair("MAP", problem("linear")))
    page = probsl.compare({"<b>": fit, "w < 1": fit})._repr_html_()
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


def test_what_the_held_out_rows_lack_is_named():
    fit = fitted(Pair("MAP", problem("linear")))
    x, y = problem("linear").data["x"], problem("linear").data["y"]
    with pytest.raises(ValueError, match="'y'"):
        probsl.compare({"a": fit}, {"x": x})
    with pytest.raises(ValueError, match="y"):
        probsl.compare({"a": fit}, {"x": x, "y": y[:3]})
    with pytest.raises(ValueError, match=r"reference '\['MAP'\]' names none"):
        probsl.compare({"MAP": fit}, reference=["MAP"])
    with pytest.raises(TypeError, match="data must map"):
        probsl.compare({"MAP": fit}, 3)
    with pytest.raises(ValueError, match="did you mean 'MAP'"):
        probsl.compare({"MAP": fit}, reference="map")


def test_rounding_errors_print_as_zero_and_movements_of_vague_parameters_do_not():
    columns = pd.MultiIndex.from_product([["MLE", "SVI"], ["estimate", "sd"]])
    estimates = pd.DataFrame(
        [[1.0, float("nan"), 1.0 + 1e-15, float("nan")], [0.0, 1e7, 4e6, 1e7]],
        index=["a", "b"],
        columns=columns,
    )
    comparison = replace(
        probsl.compare(fits_of("linear")),
        estimates=estimates,
        shrinkage=movements(estimates, "MLE"),
        reference="MLE",
    )
    shrinkage = dict(comparison._tables())["Moved from MLE"]
    assert shrinkage["SVI", "moved"].tolist() == ["0", "4000000"]
    assert shrinkage["SVI", "moved / sd"].tolist() == ["", "0.40"]
