"""Fits side by side: estimates, movements and scores."""

import math

import pytest
from methods import METHODS, Pair, fitted
from programs import problem

import probsl

CASES = ["linear", "own parameters", "noncentered groups", "one joint observation"]
EXACT = [m for m in METHODS if m not in ("MAP Adam", "SVI Adam", "SVI full rank")]


def fits_of(name):
    case = problem(name)
    methods = ["MLE", "MAP", "SVI AutoNormal"]
    return {method: fitted(Pair(method, case)) for method in methods}


@pytest.mark.parametrize("name", CASES)
def test_estimates_are_the_summaries_side_by_side(name):
    fits = fits_of(name)
    estimates = probsl.compare(fits).estimates
    for method, fit in fits.items():
        assert estimates[method].equals(fit.summary())
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
        assert (f"{method}: {fit.message}" in text) is not converged


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
