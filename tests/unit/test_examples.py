"""Every example runs, says what it is, and finds what its text says."""

import dataclasses
import re
import runpy
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from methods import DEEP
from sklearn.linear_model import LogisticRegression

import probsl

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def no_windows(monkeypatch):
    backend = mpl.get_backend()
    mpl.use("agg")
    yield
    plt.close("all")
    mpl.use(backend)


def run(name, monkeypatch, *arguments):
    """Run an example as if by itself; return its names."""
    path = EXAMPLES / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    names = runpy.run_path(str(path), run_name="__main__")
    assert plt.get_fignums(), "the example makes no picture"
    return names


def estimates(names):
    table = names["comparison"].estimates
    return {fit: table[fit, "estimate"] for fit in names["fits"]}


def held_out(names):
    return names["comparison"].scores["held out"]


def linear_regression(names):
    x, y = (np.asarray(names["train"][name]) for name in ("x", "y"))
    found = estimates(names)
    mle = np.linalg.lstsq(x, y, rcond=None)[0]
    assert found["MLE"].iloc[:10].to_numpy() == pytest.approx(mle, rel=1e-4)
    # Ridge regression, its penalty the ratio of the two variances.
    penalty = (found["MAP"]["sigma"] / 300.0) ** 2 * np.eye(10)
    ridge = np.linalg.solve(x.T @ x + penalty, x.T @ y)
    assert found["MAP"].iloc[:10].to_numpy() == pytest.approx(ridge, rel=1e-4)
    assert found["MAP, Laplace"][["w[age]", "w[s1]", "w[s4]"]].tolist() == [0, 0, 0]


def logistic_regression(names):
    assert names["fits"]["MLE"].status.name == "UNBOUNDED"
    x, y = (np.asarray(v) for v in names["train"].values())
    found = estimates(names)
    margin = found["MLE"].iloc[0] + x @ found["MLE"].iloc[1:].to_numpy()
    assert ((margin > 0) == y).all()
    # A column of fives gives the intercept the prior of sd 5.
    oracle = LogisticRegression(fit_intercept=False, tol=1e-8, max_iter=1000)
    weights = oracle.fit(np.column_stack([np.full(len(x), 5.0), x]), y).coef_[0]
    assert found["MAP"].iloc[0] == pytest.approx(5 * weights[0], abs=1e-3)
    assert found["MAP"].iloc[1:].to_numpy() == pytest.approx(weights[1:], abs=1e-3)
    assert held_out(names)["MLE"] < held_out(names)["MAP"] - 100


def poisson_regression(names):
    found = estimates(names)
    # Dobson and Barnett (2018), exercise 4.1.
    assert found["MLE"].to_numpy() == pytest.approx([0.996, 1.327], abs=1e-3)
    spread = names["comparison"].estimates["SVI", "sd"]
    for other in ("MAP", "SVI"):
        assert ((found[other] - found["MLE"]).abs() < 0.1 * spread).all()
    x = np.column_stack([np.ones(20), np.log(names["data"]["quarter"])])
    rate = np.exp(x @ found["MLE"].to_numpy())
    assert x.T @ (names["cases"] - rate) == pytest.approx([0, 0], abs=0.1)
    # All cases in the wide band, as the text says.
    wide, _ = names["ax"].collections
    points = np.column_stack([names["data"]["quarter"], names["cases"]])
    # The first and the last lie on the outline itself.
    assert wide.get_paths()[0].contains_points(points[1:-1]).all()


def robust_regression(names):
    found = estimates(names)
    year, calls = names["data"].values()
    least_squares = np.polyfit(year, calls, 1)[0]
    assert found["MLE, normal"]["slope"] == pytest.approx(least_squares, rel=1e-4)
    table = names["comparison"].estimates["SVI"].loc["slope"]
    good = np.r_[0:14, 20:24]
    without = np.polyfit(year[good], calls[good], 1)[0]
    assert table["upper"] < least_squares / 2
    assert found["SVI"]["slope"] == pytest.approx(without, abs=0.5)


def eight_schools(names):
    fits, data = names["fits"], names["data"]
    effects = {
        name: np.asarray(fit.predict(data, draws=4000)["effect"].mean(0))
        for name, fit in fits.items()
    }
    assert fits["MLE"].status.name == "UNIDENTIFIED"
    assert effects["MLE"] == pytest.approx(data["y"], abs=0.05)
    assert fits["MAP"].status.name == "BOUNDARY"
    precision = data["error"] ** -2
    pooled = (precision @ data["y"]) / (precision.sum() + 10.0**-2)
    assert effects["MAP"] == pytest.approx(np.full(8, pooled), abs=0.05)
    # Each part of the way from its own measurement to the mean of all.
    part = (effects["SVI"] - data["y"]) / (effects["MAP"] - data["y"])
    far = np.abs(effects["MAP"] - data["y"]) > 5
    assert ((part[far] > 0.5) & (part[far] < 1)).all()


def neural_network(names):
    scores = held_out(names)
    assert scores["MAP"] > scores["MLE"] + 50
    assert scores["SVI"] > scores["MLE"] + 50


RESULTS = {
    check.__name__: check
    for check in (
        eight_schools,
        linear_regression,
        logistic_regression,
        neural_network,
        poisson_regression,
        robust_regression,
    )
}


def fit_in_few_steps(program, data, method):
    return fit(program, data, dataclasses.replace(method, max_steps=FEW_STEPS))


fit = probsl.fit
# They are run to their ends where the pages are built, and by `make test-deep`.
IN_FEW_STEPS, FEW_STEPS = () if DEEP else ("neural_network",), 60


@pytest.mark.parametrize("name", RESULTS)
def test_an_example_finds_what_it_says(name, monkeypatch, capsys):
    if name in IN_FEW_STEPS:
        monkeypatch.setattr(probsl, "fit", fit_in_few_steps)
    names = run(name, monkeypatch)
    assert {"MLE", "MAP", "SVI"} <= set(names["fits"])
    RESULTS[name](names)
    assert "SVI" in capsys.readouterr().out


def test_every_example_is_tested():
    assert sorted(RESULTS) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", RESULTS)
def test_an_example_is_short_and_has_a_title(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 60
    heading = re.match(r'"""\n(.+)\n(=+)\n\n', text)
    assert heading is not None
    assert len(heading[1]) == len(heading[2])


def test_the_demo_writes_a_picture_and_a_posterior(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "demo"
    run("linear_regression", monkeypatch, folder)
    assert plt.imread(folder / "fits.png").ndim == 3
    path = folder / "posterior.nc"
    with xr.open_dataset(path, group="posterior", engine="h5netcdf") as posterior:
        assert posterior["w"].shape[-1] == 10
    assert str(folder) in capsys.readouterr().out
