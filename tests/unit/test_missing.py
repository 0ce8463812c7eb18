"""Rows with missing values are refused, or dropped and counted."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import probsl

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 2)), RNG.normal(size=8)
GONE = [1, 4, 6]
KEPT = [0, 2, 3, 5, 7]


def program(x, group=None, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    shift = 0.0
    if group is not None:
        shift = pyro.sample("a", dist.Normal(0.0, 1.0).expand([3]).to_event(1))[group]
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w + shift, 1.0), obs=y)


def holed(values, holes):
    values = values.copy()
    values[holes] = np.nan
    return values


def as_masked(values):
    return np.ma.masked_invalid(values)


FORMS = {
    "arrays": (np.asarray, np.asarray),
    "tensors": (torch.tensor, torch.tensor),
    "lists": (lambda v: v.tolist(), lambda v: [None if np.isnan(i) else i for i in v]),
    "frames": (lambda v: pd.DataFrame(v, columns=["a", "b"]), pd.Series),
    "nullable": (pd.DataFrame, lambda v: pd.Series(v, dtype="Float64")),
    "masked": (as_masked, as_masked),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_fit_is_that_of_the_complete_rows(form):
    of_x, of_y = FORMS[form]
    x = X.copy()
    x[6, 1] = np.nan
    data = {"x": of_x(x), "y": of_y(holed(Y, [1, 4]))}
    weights = np.arange(1.0, 9.0)
    found = probsl.fit(program, data, probsl.MAP(), missing="drop", weights=weights)
    complete = {"x": X[KEPT], "y": Y[KEPT]}
    expected = probsl.fit(program, complete, probsl.MAP(), weights=weights[KEPT])
    assert found.problem.size == 5
    assert torch.equal(found.point()["w"], expected.point()["w"])
    assert "dropped 3 rows of 8 with missing values (1 of x, 2 of y)" in found.note


def test_a_table_and_a_category_may_have_missing_values():
    group = pd.Series(["a", "b", None, "c", "a", "b", "c", "a"], dtype="category")
    data = {"x": X, "group": group, "y": Y}
    fit = probsl.fit(program, data, probsl.MAP(), missing="drop")
    assert fit.problem.size == 7
    assert "(1 of group)" in fit.note
    assert "a[b]" in fit.summary().index

    def by_column(a, y=None):
        with pyro.plate("data", len(a)):
            pyro.sample(
                "y", dist.Normal(pyro.sample("w", dist.Normal(0, 1)) * a, 1.0), obs=y
            )

    table = pd.DataFrame({"a": X[:, 0], "y": holed(Y, GONE), "other": np.nan})
    assert probsl.fit(by_column, table, probsl.MAP(), missing="drop").problem.size == 5


def test_without_missing_values_nothing_changes():
    data = {"x": X, "y": Y}
    fits = [
        probsl.fit(program, data, probsl.MAP(), missing=m) for m in ("drop", "refuse")
    ]
    assert torch.equal(*(fit.point()["w"] for fit in fits))
    assert "dropped" not in fits[0].note


def test_arguments_of_other_lengths_are_left_alone():
    def grouped(size, group, y=None):
        a = pyro.sample("a", dist.Normal(size, 1.0).to_event(1))
        with pyro.plate("data", len(group)):
            pyro.sample("y", dist.Normal(a[group], 1.0), obs=y)

    data = {"size": np.arange(3.0), "group": np.arange(8) % 3, "y": holed(Y, GONE)}
    fit = probsl.fit(grouped, data, probsl.MAP(), missing="drop")
    assert fit.problem.arguments.values["size"].tolist() == [0.0, 1.0, 2.0]
    assert fit.problem.size == 5


def mapped(folder):
    np.save(folder / "x.npy", X)
    return {"x": np.load(folder / "x.npy", mmap_mode="r"), "y": holed(Y, GONE)}


REFUSED = {
    "another word": ({"x": X, "y": Y}, {"missing": "ignore"}, "'refuse' or 'drop'"),
    "no row left": ({"x": X, "y": holed(Y, range(8))}, {}, "every row has a missing"),
    "two lengths": ({"x": holed(X, GONE), "y": holed(Y, GONE)[:7]}, {}, "x 8, y 7"),
    "infinite": ({"x": X, "y": np.where(Y > 0, np.inf, Y)}, {}, "infinite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_dropped_is_refused(case):
    data, options, sentence = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=sentence):
        probsl.fit(program, data, probsl.MAP(), **{"missing": "drop", **options})


def test_data_that_stay_on_disk_or_come_in_batches_are_refused(tmp_path):
    with pytest.raises(ValueError, match="memory-mapped argument 'x'"):
        probsl.fit(program, mapped(tmp_path), probsl.MAP(), missing="drop")
    rows = TensorDataset(torch.tensor(X), torch.tensor(Y))
    with pytest.raises(TypeError, match="in the Dataset"):
        probsl.fit(program, DataLoader(rows), probsl.MAP(), missing="drop")
    fit = probsl.fit(program, {"x": X, "y": Y}, probsl.MAP())
    with pytest.raises(ValueError, match="has its data already"):
        probsl.fit(fit.problem, None, probsl.MAP(), missing="drop")


def test_by_default_missing_values_are_refused():
    with pytest.raises(ValueError, match="argument 'y' has 3 NaN or infinite values"):
        probsl.fit(program, {"x": X, "y": holed(Y, GONE)}, probsl.MAP())
