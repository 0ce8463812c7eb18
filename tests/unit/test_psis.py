"""PSIS against ArviZ, 0.x or 1.x, and closed forms; loads neither torch nor probsl."""

import importlib.util
import math
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

FILE = Path(__file__).parents[2] / "probsl" / "psis.py"
SPEC = importlib.util.spec_from_file_location("psis", FILE)
psis = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = psis  # dataclasses look their module up
SPEC.loader.exec_module(psis)

MODERN = int(version("arviz").split(".")[0]) >= 1


def arviz():
    """Return ArviZ, whose older version announces the newer one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz

    return arviz


def log_normal(value, mean, sd=1.0):
    return -0.5 * ((value - mean) / sd) ** 2 - np.log(sd * math.sqrt(2 * math.pi))


def scored_by_arviz(density):
    """Return what ArviZ makes of ``[draws, rows]``; it warns of large k."""
    dims = ("chain", "draw", "row")
    groups = {
        "posterior": xr.Dataset({"mu": (dims[:2], np.zeros((1, len(density))))}),
        "log_likelihood": xr.Dataset({"y": (dims, density[None])}),
    }
    az = arviz()
    data = xr.DataTree.from_dict(groups) if MODERN else az.InferenceData(**groups)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return az.loo(data, pointwise=True, reff=1.0)


def rows_of(found):
    return np.asarray(found.elpd_i if MODERN else found.loo_i)


def densities(kind, draws, rows=40):
    random = np.random.default_rng(draws)
    y = random.standard_normal(rows)
    if kind == "outliers":
        y[:3] += [4.0, 7.0, -12.0]
    if kind == "heavy":
        return -random.standard_exponential((draws, rows)) * random.uniform(0, 2, rows)
    mu = y.mean() + random.standard_normal(draws) / math.sqrt(rows)
    return log_normal(y, mu[:, None])


# Squares: of other numbers, ArviZ 0.x rounds the size of the tail up, 1.x down.
@pytest.mark.parametrize("draws", [30, 400, 900, 2500])
@pytest.mark.parametrize("kind", ["normal", "outliers", "heavy"])
def test_the_numbers_are_those_of_arviz(kind, draws):
    density = densities(kind, draws)
    ours, theirs = psis.leave_one_out(density), scored_by_arviz(density)
    np.testing.assert_allclose(ours.elpd_rows, rows_of(theirs), rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.k_rows, theirs.pareto_k, rtol=0, atol=1e-9)
    elpd, p = (theirs.elpd, theirs.p) if MODERN else (theirs.elpd_loo, theirs.p_loo)
    assert ours.elpd == pytest.approx(float(elpd), abs=1e-8)
    assert ours.p == pytest.approx(float(p), abs=1e-8)
    # ArviZ 0.x divides by the number of rows, 1.x by one less.
    se = theirs.se * (1.0 if MODERN else math.sqrt(40 / 39))
    assert ours.se == pytest.approx(float(se), rel=1e-9)


@pytest.mark.skipif(MODERN, reason="ArviZ 1.x has no k for most of them")
def test_ties_in_the_tail_are_smoothed_as_arviz_does():
    density = densities("normal", 900).round(1)
    ours, theirs = psis.leave_one_out(density), scored_by_arviz(density)
    lengths = {len(np.unique(row)) for row in density.T}
    assert min(lengths) < 100, "there are ties"
    np.testing.assert_allclose(ours.k_rows, theirs.pareto_k, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.elpd_rows, rows_of(theirs), rtol=0, atol=1e-9)


def test_many_rows_are_taken_in_chunks_that_make_no_difference(monkeypatch):
    density = densities("outliers", 500, rows=300)
    whole = psis.leave_one_out(density)
    monkeypatch.setattr(psis, "_CHUNK", 10_000)
    parts = psis.leave_one_out(density)
    np.testing.assert_allclose(parts.elpd_rows, whole.elpd_rows, rtol=1e-14)
    np.testing.assert_allclose(parts.k_rows, whole.k_rows, rtol=1e-12)


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.6, 1.0])
def test_the_shape_of_a_generalized_pareto_is_found(k):
    uniform = np.random.default_rng(0).uniform(size=(200, 400))
    shape, scale = psis.generalized_pareto(np.sort(3.0 * (uniform**-k - 1) / k, 1))
    # Zhang and Stephens: a standard error of about (1 + k) / sqrt(400) for each of
    # 200, so 0.007 for the mean; the pull toward 0.5 is at most 0.02, and taken out.
    mean = (410 * shape.mean() - 5) / 400
    assert mean == pytest.approx(k, abs=0.03)
    assert np.median(scale) == pytest.approx(3.0, abs=0.1)


def exact_rows(y, sd=5.0, weights=None):
    """Closed form of a Normal mean with a prior of sd, each row left out in turn."""
    weights = np.ones(len(y)) if weights is None else weights
    precision = weights.sum() - weights + sd**-2
    mean = ((weights * y).sum() - weights * y) / precision
    return log_normal(y, mean, np.sqrt(1 + 1 / precision))


def posterior(y, sd=5.0, weights=None):
    weights = np.ones(len(y)) if weights is None else weights
    precision = weights.sum() + sd**-2
    return (weights * y).sum() / precision, precision**-0.5


def test_leave_one_out_of_a_normal_mean_is_the_closed_form():
    random = np.random.default_rng(3)
    y = random.standard_normal(25)
    mean, sd = posterior(y)
    mu = mean + sd * random.standard_normal(20_000)
    found = psis.leave_one_out(log_normal(y, mu[:, None]))
    # The largest of 25 errors, each about 0.3 / sqrt(20000) = 0.002 or less.
    np.testing.assert_allclose(found.elpd_rows, exact_rows(y), atol=0.012)
    assert found.worst_k < 0.5
    assert found.p == pytest.approx(1.0, abs=0.4)


def test_draws_from_another_distribution_are_corrected():
    """Without the densities of the draws, the answer would be that of the guide."""
    random = np.random.default_rng(4)
    y = random.standard_normal(25)
    mean, sd = posterior(y)
    off, wide = mean + 0.8 * sd, 1.4 * sd
    mu = off + wide * random.standard_normal(20_000)
    density, exact = log_normal(y, mu[:, None]), exact_rows(y)
    ratio = log_normal(mu, mean, sd) - log_normal(mu, off, wide)
    corrected = psis.leave_one_out(density, ratio)
    np.testing.assert_allclose(corrected.elpd_rows, exact, atol=0.012)
    plain = psis.leave_one_out(density)
    assert np.abs(plain.elpd_rows - exact).max() > 0.1
    # A constant in the ratio makes no difference.
    shifted = psis.leave_one_out(density, ratio - 1234.5)
    np.testing.assert_allclose(shifted.elpd_rows, corrected.elpd_rows, atol=1e-8)


@pytest.mark.skipif(not MODERN, reason="ArviZ 0.x has no such function")
def test_the_correction_is_that_of_arviz():
    random = np.random.default_rng(5)
    y = random.standard_normal(25)
    mean, sd = posterior(y)
    mu = mean + 1.3 * sd * random.standard_normal(2500)
    density = log_normal(y, mu[:, None])
    log_p, log_q = log_normal(mu, mean, sd), log_normal(mu, mean, 1.3 * sd)
    groups = {
        "posterior": xr.Dataset({"mu": (("chain", "draw"), mu[None])}),
        "log_likelihood": xr.Dataset({"y": (("chain", "draw", "row"), density[None])}),
    }
    theirs = arviz().loo_approximate_posterior(
        xr.DataTree.from_dict(groups), log_p, log_q, pointwise=True
    )
    ours = psis.leave_one_out(density, log_p - log_q)
    np.testing.assert_allclose(ours.elpd_rows, theirs.elpd_i, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.k_rows, theirs.pareto_k, rtol=0, atol=1e-9)
    assert ours.p == pytest.approx(float(theirs.p), abs=1e-8)


def test_a_row_is_left_out_with_its_weight():
    random = np.random.default_rng(6)
    y, weights = random.standard_normal(25), random.integers(0, 4, 25).astype(float)
    mean, sd = posterior(y, weights=weights)
    mu = mean + sd * random.standard_normal(20_000)
    found = psis.leave_one_out(log_normal(y, mu[:, None]), weights=weights)
    exact = exact_rows(y, weights=weights)
    np.testing.assert_allclose(found.elpd_rows, exact, atol=0.02)
    # A row of weight zero was left out already.
    zero = weights == 0
    np.testing.assert_allclose(found.elpd_rows[zero], found.lpd_rows[zero], atol=1e-12)
    assert (found.k_rows[zero] == -np.inf).all()


def test_rows_without_a_tail_say_so():
    equal = psis.leave_one_out(np.full((100, 2), -1.5))
    assert (equal.k_rows == -np.inf).all()
    np.testing.assert_allclose(equal.elpd_rows, -1.5)
    few = np.zeros((1, 100))
    few[0, :3] = [1.0, 2.0, 3.0]
    log_weights, k = psis.smoothed(few)
    assert k == [np.inf]
    np.testing.assert_allclose(np.exp(log_weights), np.exp(few) / np.exp(few).sum())


def test_float32_and_single_rows_are_taken():
    density = densities("normal", 500).astype("float32")
    found = psis.leave_one_out(density[:, :1])
    assert found.elpd_rows.dtype == float
    assert found.elpd_rows.shape == (1,)
    assert repr(found).startswith("LeaveOneOut(elpd -")
    assert math.isnan(found.se)


@pytest.mark.parametrize(
    ("density", "ratio", "sentence"),
    [
        (np.zeros((1, 3)), None, "at least two draws, got 1; draw more"),
        (np.array([[0.0, 0.0], [0.0, -np.inf]]), None, "row 1 has a draw"),
        (np.zeros((2, 2)), np.array([0.0, np.nan]), "log_ratio must be finite"),
    ],
)
def test_what_cannot_be_smoothed_gets_a_sentence(density, ratio, sentence):
    with pytest.raises(ValueError, match=sentence):
        psis.leave_one_out(density, ratio)
