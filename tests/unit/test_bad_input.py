"""Bad data end in one sentence that names the argument, the site or the row."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from refusals import (
    GROUP,
    INF,
    NAN,
    N,
    Refusals,
    X,
    Y,
    coin,
    die,
    fit,
    fit_y,
    kernel,
    linear,
    mean,
    means,
    with_entry,
    with_sizes,
)
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
)

import probsl

REFUSED = Refusals()
case = REFUSED.case


# --- Values that are no finite numbers


@case(ValueError, "'x'", "2 NaN or infinite values", "row 3, column 0", "drop or fill")
def nan_in_a_tensor():
    fit(data={"x": with_entry(X, NAN), "y": Y})


@case(ValueError, "'y'", "1 NaN or infinite value,", "row 3", "drop or fill")
def infinity_in_an_array():
    fit(data={"x": X, "y": with_entry(Y, -INF).numpy()})


@case(ValueError, "'y'", "1 NaN", "row 3")
def nan_in_a_series():
    fit_y(mean, y=pd.Series(with_entry(Y, NAN).numpy()))


@case(ValueError, "'y'", "1 NaN", "row 3")
def nan_in_a_data_frame():
    fit(mean, data=pd.DataFrame({"y": with_entry(Y, NAN).numpy()}))


@case(ValueError, "'x.age'", "1 NaN", "row 3")
def nan_in_a_column():
    x = pd.DataFrame({"sex": np.zeros(N), "age": with_entry(Y, NAN).numpy()})
    fit(data={"x": x, "y": Y})


@case(ValueError, "'y'", "1 missing value,", "row 1", "drop or fill")
def none_in_a_list():
    fit_y(mean, y=[1.0, None])


@case(ValueError, "'y'", "2 missing values", "row 0")
def missing_integers():
    fit_y(mean, y=pd.Series([None, 1, None], dtype="Int64"))


@case(ValueError, "'group'", "1 missing value,", "row 2")
def missing_category():
    labels = pd.Series(["a", "b", None], dtype="category")
    fit(means, data={"group": labels, "y": Y[:3]})


@case(ValueError, "'scale'", "NaN")
def nan_in_a_constant():
    def program(scale, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, scale))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit(program, data={"scale": NAN, "y": Y})


# --- Text, dates, objects, and other arrays that are none


@case(TypeError, "'y'", "text", "'no' in row 0", "astype('category')")
def text_in_a_list():
    fit_y(coin, y=["no", "yes"])


@case(TypeError, "'y'", "text", "'no' in row 0")
def text_in_an_array():
    fit_y(coin, y=np.array(["no", "yes"]))


@case(TypeError, "'y'", "text", "'no' in row 1")
def text_among_objects():
    fit_y(coin, y=pd.Series([1, "no"], dtype=object))


@case(TypeError, "'y'", "text", "'no' in row 0")
def text_of_pandas():
    fit_y(coin, y=pd.Series(["no", "yes"], dtype="string"))


@case(TypeError, "'x.sex'", "text", "'m' in row 0")
def text_in_a_column():
    fit(data={"x": pd.DataFrame({"age": [1.0] * N, "sex": ["m"] * N}), "y": Y})


@case(TypeError, "'y'", "dict in row 0")
def objects_in_an_array():
    fit_y(mean, y=np.array([{}, {}]))


@case(TypeError, "'y'", "numbers as Python objects", "astype(float)")
def numbers_as_objects():
    fit_y(mean, y=pd.Series([1, 2], dtype=object))


@case(TypeError, "'y'", "dates", "Timedelta")
def dates_of_pandas():
    fit_y(mean, y=pd.Series(pd.date_range("2020-01-01", periods=N)))


@case(TypeError, "'y'", "dates", "Timedelta")
def dates_with_a_time_zone():
    fit_y(mean, y=pd.Series(pd.date_range("2020-01-01", periods=N, tz="UTC")))


@case(TypeError, "'y'", "dates", "Timedelta")
def dates_of_numpy():
    fit_y(mean, y=np.arange("2020-01-01", "2020-01-21", dtype="datetime64[D]"))


@case(TypeError, "'y'", "time spans", "Timedelta")
def time_spans():
    fit_y(mean, y=np.arange(N).astype("timedelta64[D]"))


@case(ValueError, "'y'", "entries differ in length")
def ragged_list():
    fit_y(mean, y=[[1.0, 2.0], [3.0]])


@case(TypeError, "'x'", "sparse", "x.to_dense()")
def sparse_tensor():
    fit(data={"x": X.to_sparse(), "y": Y})


@case(TypeError, "'x'", "sparse", "x.toarray()")
def sparse_matrix():
    sparse = pytest.importorskip("scipy.sparse")
    fit(data={"x": sparse.csr_matrix(X.numpy()), "y": Y})


@case(ValueError, "'x'", "two columns 'age'")
def two_columns_of_one_name():
    x = pd.DataFrame(X.numpy(), columns=["age", "age"])
    fit(data={"x": x, "y": Y})


# --- No rows


@case(ValueError, "'x'", "no rows", "(0, 2)", "at least one")
def empty_tensors():
    fit(data={"x": X[:0], "y": Y[:0]})


@case(ValueError, "'x'", "no rows")
def empty_lists():
    fit(data={"x": [], "y": []})


@case(ValueError, "'y'", "no rows")
def data_frame_without_rows():
    fit(mean, data=pd.DataFrame({"y": np.zeros(0)}))


@case(ValueError, "'x'", "DataFrame without columns")
def data_frame_without_columns():
    fit(data={"x": pd.DataFrame(index=range(N)), "y": Y})


@case(ValueError, "data lacks 'x'", "given: nothing")
def empty_data_frame():
    fit(data=pd.DataFrame())


@case(ValueError, "data lacks 'x'", "given: nothing")
def no_data():
    fit(data={})


# --- Arguments


@case(ValueError, "data lacks 'x'", "given: y")
def argument_missing():
    fit(data={"y": Y})


@case(ValueError, "data lacks 'x'", "given: X, y", "did you mean 'X'?")
def column_misspelt():
    fit(data=pd.DataFrame({"X": Y.numpy(), "y": Y.numpy()}))


@case(ValueError, "'xs'", "(x, y)", "did you mean 'x'?")
def argument_misspelt():
    fit(data={"xs": X, "y": Y})


@case(ValueError, "'Y'", "did you mean 'y'?")
def argument_in_capitals():
    fit(data={"x": X, "Y": Y})


@case(ValueError, "'color'", "not an argument of the program", "(x, y)")
def argument_unknown():
    fit(data={"x": X, "y": Y, "color": 1})


@case(TypeError, "key 1", "x, y")
def argument_without_a_name():
    fit(data={1: X})


@case(ValueError, "3 entries", "2 arguments: x, y")
def too_many_positions():
    fit(data=(X, Y, 1))


@case(TypeError, "by name", "'x'", "def program(x, y=None)")
def argument_by_position_only():
    def program(x, /, y=None):
        linear(x, y)

    fit(program)


@case(TypeError, "by name", "'*arrays'")
def any_number_of_arguments():
    def program(*arrays):
        linear(*arrays)

    fit(program)


for _data in (None, X, X.numpy(), [[1.0], [2.0]], [{"x": 1.0}], "data.csv", 3):
    _held = type(_data).__name__

    @case(TypeError, "data must map", '{"x": x, "y": y}', f"got {_held}")
    def data_of_the_wrong_type(data=_data):
        probsl.fit(linear, data, probsl.MAP())


@case(TypeError, "data must map", "DataLoader", "got TensorDataset")
def data_set_without_a_loader():
    fit(data=TensorDataset(X, Y))


# --- Unequal lengths


@case(ValueError, "'x' and 'y'", "unequal lengths, 20 and 19", "one entry per row")
def shorter_y_in_a_plate_of_x():
    fit(data={"x": X, "y": Y[:-1]})


@case(ValueError, "'x' and 'y'", "19 and 20")
def shorter_x_in_a_plate_of_x():
    fit(data={"x": X[:-1], "y": Y})


@case(ValueError, "'x' and 'y'", "20 and 19")
def shorter_y_in_a_plate_of_y():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x[:, 0] * w, 1.0), obs=y)

    fit(program, data={"x": X, "y": Y[:-1]})


@case(ValueError, "'x' and 'y'", "20 and 1;")
def y_of_one_row():
    fit(data={"x": X, "y": Y[:1]})


@case(ValueError, "'x' and 'y'", "20 and 19")
def shorter_y_without_a_plate():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x[:, 0] * w, 1.0).to_event(1), obs=y)

    fit(program, data={"x": X, "y": Y[:-1]})


@case(ValueError, "'x', 'group' and 'y'", "unequal lengths, 18, 20 and 20")
def arguments_that_the_program_adds():
    size = torch.ones(3)
    data = {"x": X[:18], "group": GROUP, "size": size, "y": Y}
    fit(with_sizes, data=data)


@case(ValueError, "'x', 'group' and 'y'", "unequal lengths, 20, 19 and 18")
def three_lengths():
    data = {"x": X, "group": GROUP[:19], "size": torch.ones(3), "y": Y[:18]}
    fit(with_sizes, data=data)


@case(IndexError, "out of bounds")
def groups_beyond_their_number():
    data = {"x": X, "group": GROUP, "size": torch.ones(2), "y": Y}
    fit(with_sizes, data=data)


@case(ValueError, "site 'y'", "(20,)", "plate 'data' is of size 10", "len(x)")
def plate_of_a_fixed_size():
    def program(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit_y(program)


# --- Observed values


@case(ValueError, "site 'y'", "1 value outside", "Bernoulli", "2.0 in row 3")
def outcome_that_is_neither():
    fit_y(coin, y=with_entry(torch.ones(N), 2.0))


@case(ValueError, "site 'y'", "10 values outside", "Bernoulli", "-1.0 in row 1")
def outcomes_of_minus_one():
    fit_y(coin, y=torch.tensor([1.0, -1.0] * 10))


@case(ValueError, "site 'y'", "5 values outside", "Categorical", "3 in row 2")
def classes_from_one():
    fit_y(die, y=torch.tensor([1, 2, 3, 1] * 5))


@case(ValueError, "site 'y'", "1 value outside", "LogNormal", "row 3", "change those")
def event_outside_its_support():
    def program(y=None):
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("data", 10):
            pyro.sample("y", dist.LogNormal(torch.zeros(2), sigma).to_event(1), obs=y)

    fit_y(program, y=with_entry(torch.ones(10, 2), -2.0))


@case(ValueError, "site 'y'", "complex", "two real sites")
def complex_outcomes():
    fit_y(mean, y=Y.to(torch.complex64))


@case(ValueError, "site 'y'", "(20, 1)", "(20,)", ".reshape(20,)")
def y_as_a_column():
    fit(data={"x": X, "y": Y[:, None]})


@case(ValueError, "site 'y'", "(20, 1)", "(20,)", ".reshape(20,)")
def y_as_a_data_frame():
    fit(data={"x": X, "y": pd.DataFrame({"y": Y.numpy()})})


@case(TypeError, "site 'y'", "observes a str", "torch.tensor")
def name_of_a_column_for_the_column():
    fit(data={"x": X, "y": "price"})


@case(TypeError, "site 'y'", "observes a float", "torch.tensor")
def python_number_observed():
    def program(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit_y(program, y=3.0)


@case(ValueError, "observed nothing", "'y' is not in data", "obs=y")
def y_left_out():
    fit(data={"x": X})


@case(ValueError, "observed nothing", "obs=y")
def obs_left_out():
    def program(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * mu)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0))

    fit_y(program)


@case(ValueError, "observed nothing")
def nothing_sampled():
    fit(lambda x, y=None: None)


@case(ValueError, "site 'y'", "axis of 20 is outside a plate", ".to_event()")
def axis_in_no_plate():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("columns", 2):
            pyro.sample("y", dist.Normal(x * w, 1.0), obs=x)

    fit(program)


@case(ValueError, "site 'y'", "plate 'data'", "leave out .to_event() or the plate")
def event_and_plate():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x[:, 0] * w, 1.0).to_event(1), obs=y)

    fit(program)


# --- Which arguments are rows


@case(ValueError, "plate 'groups'", "20", "rows=('spread', 'y')")
def as_many_groups_as_rows():
    def program(spread, y=None):
        with pyro.plate("groups", N):
            mu = pyro.sample("mu", dist.Normal(0.0, spread.mean()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu.sum(), 1.0), obs=y)

    fit(program, data={"spread": torch.ones(N), "y": Y}, batch_size=5)


@case(ValueError, "'k'", "several axes", "rows=('k', 'y')")
def square_matrix():
    def program(k, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu * k.sum(), 1.0), obs=y)

    fit(program, data={"k": torch.eye(N), "y": Y}, batch_size=5)


@case(ValueError, "rows", "'z'", "those are x, y")
def rows_of_an_unknown_argument():
    fit(rows=("x", "z"))


@case(TypeError, "rows", "('x',)")
def rows_as_one_text():
    fit(rows="x")


@case(ValueError, "rows", "'size'", "first axis is 3", "20 rows")
def rows_of_another_length():
    data = {"x": X, "group": GROUP, "size": torch.ones(3), "y": Y}
    fit(with_sizes, data=data, rows=("size", "y"))


# --- DataLoaders


class Empty(IterableDataset):
    def __iter__(self):
        return iter(())


def _loader(batches):
    """Yield given batches."""
    return DataLoader(batches, batch_size=1, collate_fn=lambda batch: batch[0])


@case(ValueError, "DataLoader", "no batches")
def loader_of_nothing():
    fit(data=DataLoader(Empty(), batch_size=4), total=N)


@case(ValueError, "DataLoader", "iterable", "total=")
def loader_of_unknown_length():
    fit(data=DataLoader(Empty(), batch_size=4))


@case(ValueError, "DataLoader", "count batches", "batch_size", "total=")
def loader_without_a_batch_size():
    fit(data=DataLoader([{"x": X, "y": Y}], batch_size=None))


@case(ValueError, "sampler visits 5 rows", "data set of 20", "total=")
def loader_of_a_part():
    sampler = SubsetRandomSampler(range(5))
    fit(data=DataLoader(TensorDataset(X, Y), batch_size=2, sampler=sampler))


@case(ValueError, "first batch has 20 rows", "2 entries in all", "total=")
def loader_of_batches():
    fit(data=_loader([{"x": X, "y": Y}] * 2))


@case(ValueError, "yielded 20 rows in an epoch", "30 were expected", "total=")
def loader_of_another_length():
    loader = DataLoader(TensorDataset(X, Y), batch_size=8)
    fit(data=loader, total=30, method=probsl.MAP(max_steps=10))


@case(
    ValueError, "a batch of the DataLoader has 4 of 'x', 3 of 'y'", "one entry per row"
)
def loader_of_unequal_lengths():
    batches = [{"x": X[:4], "y": Y[:4]}, {"x": X[:4], "y": Y[:3]}]
    fit(data=_loader(batches), total=N, rows=("x", "y"))


@case(ValueError, "without arrays", "one entry per row")
def loader_of_constants():
    fit(data=_loader([{"x": 1.0, "y": 2.0}] * 2), total=N)


@case(ValueError, "total", "DataLoader", "arrays")
def total_of_arrays():
    fit(total=N)


@case(ValueError, "weights", "DataLoader", "arrays", "batch_size=")
def weights_of_a_loader():
    fit(data=DataLoader(TensorDataset(X, Y), batch_size=4), weights=torch.ones(N))


@case(TypeError, "'x'", "text", "'a' in row 0")
def loader_of_text():
    fit(data=DataLoader([{"x": "a", "y": "b"}] * 4, batch_size=2))


@case(ValueError, "batches of x, y and of x;", "collate_fn")
def loader_of_different_names():
    fit(data=_loader([{"x": X, "y": Y}, {"x": X}]), total=2 * N)


@case(ValueError, "entry 'y'", "no row axis", "batch_size")
def loader_of_single_rows():
    fit(data=_loader([{"x": X, "y": 1.0}, {"x": X, "y": 2.0}]), total=2 * N)


# --- The tests


@pytest.mark.parametrize("refusal", REFUSED, ids=str)
def test_bad_data_are_told(refusal):
    refusal.check()


@pytest.mark.parametrize("refusal", REFUSED, ids=str)
def test_after_the_error_nothing_is_left(refusal):
    refusal.check_nothing_is_left()


# --- What is no error


@pytest.mark.parametrize("rows", [None, ("group", "y")])
def test_plates_of_one_length_are_told_apart_by_their_names(rows):
    data = {"group": torch.arange(N), "y": Y}
    found = fit(means, data=data, rows=rows)
    assert found.problem.rows == ("group", "y")
    assert torch.allclose(found.point()["mu"], Y / 2)


@pytest.mark.parametrize("rows", [None, ["k", "y"]])
def test_the_rows_of_a_square_matrix_are_found(rows):
    data = {"k": torch.eye(N), "y": Y}
    assert fit(kernel, data=data, rows=rows).problem.rows == ("k", "y")


def test_arrays_with_one_entry_per_group_are_of_another_length():
    data = {"x": X, "group": GROUP, "size": torch.ones(3), "y": Y}
    assert fit(with_sizes, data=data).problem.rows == ("x", "group", "y")


@pytest.mark.parametrize("kind", [torch.long, torch.bool, torch.uint8, torch.float64])
def test_outcomes_may_be_of_any_type_that_holds_zero_and_one(kind):
    y = (torch.arange(N) < 5).to(kind)
    assert float(fit_y(coin, probsl.MLE(), y=y).point()["p"]) == pytest.approx(0.25)


def test_classes_may_be_floats():
    y = (torch.arange(N) % 2).double()
    p = fit_y(die, y=y).point()["p"]
    assert p.tolist() == pytest.approx([0.5, 0.5, 0.0], abs=1e-2)
