"""Data in every form become the same tensors, and keep what their labels meant."""

import tracemalloc
from functools import partial

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from refusals import GROUP, N, X, Y, fit, means
from torch.utils.data import DataLoader, Dataset, TensorDataset

import probsl
from probsl.data.arguments import bind
from probsl.data.binding import bind_rows
from probsl.data.conversion import resident
from probsl.data.data_options import DataOptions
from probsl.data.placement import floating_type
from probsl.data.row_names import find_rows
from probsl.data.rows import row_weights

VALUES = [1.0, 2.0, 3.0]


def program(x, y=None):
    """Take two arguments; never run here."""


def x_of(value, **options):
    converted = bind(program, {"x": value}, **options).values["x"]
    return resident(converted) if isinstance(converted, np.ndarray) else converted


# --- Modules as programs


class Line(PyroModule):
    def __init__(self):
        super().__init__()
        self.slope = PyroSample(dist.Normal(0.0, 1.0))

    def forward(self, x, y=None):
        mean = self.slope * x
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize("line", [Line(), partial(Line())], ids=["module", "partial"])
def test_the_arguments_of_a_module_are_those_of_its_forward(line):
    x, y = torch.linspace(-1, 1, 4), torch.ones(4)
    fitted = probsl.fit(line, pd.DataFrame({"x": x, "y": y, "other": y}), probsl.MAP())
    assert fitted.problem.rows == ("x", "y")
    with pytest.raises(ValueError, match="z"):
        probsl.fit(line, {"x": x, "z": y}, probsl.MAP())
    # What was observed is not an input of a prediction, given or not.
    draws = fitted.predict({"x": x, "y": y})["y"]
    assert draws.std(0).min() > 0.5
    assert (draws == fitted.predict({"x": x})["y"]).all()


# --- Arrays of every kind


def backwards():
    return np.array(VALUES[::-1])[::-1]


def read_only():
    array = np.array(VALUES)
    array.flags.writeable = False
    return array


FLOATS = {
    "list": VALUES,
    "tuple": tuple(VALUES),
    "list of tensors": [torch.tensor(v).double() for v in VALUES],
    "tensor": torch.tensor(VALUES).double(),
    "tensor with gradient": torch.tensor(VALUES, requires_grad=True).double(),
    "array": np.array(VALUES),
    "array with negative strides": backwards(),
    "read-only array": read_only(),
    "array in another byte order": np.array(VALUES, dtype=">f8"),
    "series": pd.Series(VALUES),
    "series of another index": pd.Series(VALUES, index=[7, 7, 8]),
    "nullable series": pd.Series(VALUES, dtype="Float64"),
    "index": pd.Index(VALUES),
}


@pytest.mark.parametrize("value", FLOATS.values(), ids=FLOATS)
def test_floats_of_every_kind_are_the_same_tensor(value):
    converted = x_of(value)
    assert converted.dtype is torch.float64
    assert not converted.requires_grad
    assert converted.tolist() == VALUES


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([1, 0, 1], torch.int64),
        ([True, False, True], torch.bool),
        (np.array([1, 0, 1], dtype=np.int32), torch.int32),
        (np.array([1, 0, 1], dtype=np.uint32), torch.int64),
        (np.array([1, 0, 1], dtype=np.float32), torch.float32),
        (pd.Series([1, 0, 1], dtype="Int32"), torch.int32),
        (pd.Series([True, False, True], dtype="boolean"), torch.bool),
    ],
)
def test_integers_booleans_and_precisions_stay(value, dtype):
    converted = x_of(value)
    assert converted.dtype is dtype
    assert converted.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "value",
    [
        pd.Series(["b", "a", "b"], dtype="category").cat.codes,
        torch.tensor([1, 0, 1], dtype=torch.uint8),
        np.array([1, 0, 1], dtype=np.int16),
    ],
    ids=["int8", "uint8", "int16"],
)
def test_a_column_of_narrow_integers_can_be_an_index(value):
    codes = x_of(value)
    assert codes.dtype is torch.int64
    assert torch.tensor([5.0, 6.0])[codes].tolist() == [6.0, 5.0, 6.0]


def test_pictures_of_narrow_integers_keep_their_type():
    assert x_of(np.zeros((3, 2, 2), dtype=np.uint8)).dtype is torch.uint8


@pytest.mark.parametrize(
    "value", [3, 2.5, float("inf"), "logit", None, max, {"a": 1}], ids=str
)
def test_constants_pass_through(value):
    assert x_of(value) is value


def test_tensors_of_different_shapes_stay_a_list():
    layers = [torch.zeros(2), torch.zeros(3)]
    assert x_of(layers) is layers


def test_a_data_frame_is_a_matrix_of_the_widest_type():
    frame = pd.DataFrame({"a": [1, 2], "b": np.array([0.5, 1.5], dtype=np.float32)})
    converted = x_of(frame)
    assert converted.dtype is torch.float32
    assert converted.tolist() == [[1.0, 0.5], [2.0, 1.5]]


def test_cast_changes_floating_tensors_alone():
    arguments = bind(program, {"x": torch.ones(2), "y": torch.arange(2)})
    cast = arguments.cast(torch.float64, torch.device("cpu")).values
    assert (cast["x"].dtype, cast["y"].dtype) == (torch.float64, torch.int64)


# --- Labels


SHARED = {
    "tensor": torch.from_numpy,
    "array": lambda a: a,
    "array in columns": np.asfortranarray,
}
COPIED = {
    "array of another precision": lambda a: a.astype(np.float64),
    "read-only array": lambda a: np.broadcast_to(a, a.shape),
    "read-only array of another precision": lambda a: np.broadcast_to(
        a.astype(np.float64), a.shape
    ),
    "array in another byte order": lambda a: a.astype(">f8"),
    "mapped array": lambda a: a.astype(np.float64),
}
CPU = torch.device("cpu")


@pytest.mark.parametrize("form", SHARED.values(), ids=SHARED)
def test_arrays_of_the_type_of_the_fit_are_not_copied(form):
    given = form(np.ones((30, 2), dtype=np.float32))
    cast = bind(program, {"x": given}).cast(torch.float32, CPU).values["x"]
    assert cast.data_ptr() == torch.as_tensor(given).data_ptr()


@pytest.mark.parametrize("form", COPIED)
def test_arrays_of_another_form_are_copied_once(form, tmp_path):
    """The allocations of NumPy are one result, or none if torch converts."""
    size = 10_000_000
    given = COPIED[form](np.ones(size, dtype=np.float32))
    if form == "mapped array":
        np.save(tmp_path / "x.npy", given)
        given = np.load(tmp_path / "x.npy", mmap_mode="r")
    tracemalloc.start()
    cast = bind(program, {"x": given}).cast(torch.float32, CPU).values["x"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert torch.equal(cast, torch.ones(size))
    # The checks take parts of 1 << 20 numbers, of which some are converted.
    assert peak < 4 * size + 3 * 8 * (1 << 20)


def test_categories_become_codes_and_keep_their_labels():
    arguments = bind(program, {"x": pd.Categorical(["b", "a", "b"])})
    assert arguments.values["x"].tolist() == [1, 0, 1]
    assert arguments.labels == {"x": ("a", "b")}


@pytest.mark.parametrize(
    "later",
    [
        pd.Series(["b", "b"], dtype="category"),
        pd.Series(["b", "b"]),
        pd.Categorical(["b", "b"]),
        np.array(["b", "b"]),
        ["b", "b"],
        [1, 1],
        torch.tensor([1, 1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_later_categories_have_the_codes_of_the_fit(later):
    arguments = bind(program, {"x": pd.Categorical(["b", "a", "b"])})
    again = bind(program, {"x": later}, labels=arguments.labels)
    assert again.values["x"].tolist() == [1, 1]


def test_categories_that_are_numbers_are_known_by_their_values():
    arguments = bind(program, {"x": pd.Categorical([20, 10, 20])})
    again = bind(program, {"x": np.array([20, 20])}, labels=arguments.labels)
    assert again.values["x"].tolist() == [1, 1]


def test_columns_are_taken_in_the_order_of_the_fit():
    frame = pd.DataFrame({"age": [1.0], "sex": [0.0]})
    arguments = bind(program, {"x": frame})
    later = frame[["sex", "age"]].assign(other=5.0)
    again = bind(program, {"x": later}, labels=arguments.labels)
    assert again.values["x"].tolist() == [[1.0, 0.0]]


def test_predictions_and_scores_know_the_labels():
    labels = pd.Series(["a", "b"] * (N // 2), dtype="category")
    fitted = fit(means, data={"group": labels, "y": Y})
    of_labels = fitted.predict({"group": ["a", "b", "b"]}, draws=3)
    of_codes = fitted.predict({"group": torch.tensor([0, 1, 1])}, draws=3)
    assert torch.equal(of_labels["y"], of_codes["y"])


# --- Arguments by name, by position, by column


@pytest.mark.parametrize(
    "data",
    [
        {"x": VALUES, "y": VALUES},
        (VALUES, VALUES),
        pd.DataFrame({"other": ["a"] * 3, "y": VALUES, "x": VALUES}),
    ],
    ids=["mapping", "tuple", "data frame"],
)
def test_every_form_names_the_same_arguments(data):
    values = bind(program, data).values
    assert {name: value.tolist() for name, value in values.items()} == {
        "x": VALUES,
        "y": VALUES,
    }


def test_optional_arguments_may_be_left_out():
    assert list(bind(program, {"x": VALUES}).values) == ["x"]
    assert list(bind(program, (VALUES,)).values) == ["x"]


def test_a_program_with_any_keywords_takes_any_name():
    def takes_all(*arrays, **named):
        """Never run here."""

    assert list(bind(takes_all, {"any": VALUES}).values) == ["any"]


def test_constants_may_be_bound_beforehand():
    def with_constant(x, number, y=None):
        """Never run here."""

    assert list(bind(partial(with_constant, number=3), {"x": VALUES}).values) == ["x"]


# --- Loaders


class Mappings(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, index):
        return {"x": X[index], "y": Y[index]}


def as_arrays(rows):
    return {
        "x": np.stack([r["x"].numpy() for r in rows]),
        "y": [float(r["y"]) for r in rows],
        "number": 3,
    }


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(TensorDataset(X, Y), batch_size=8),
        DataLoader(Mappings(), batch_size=8),
        DataLoader(Mappings(), batch_size=8, collate_fn=as_arrays),
    ],
    ids=["tuples", "mappings", "arrays"],
)
def test_the_rows_of_a_loader_are_arguments(loader):
    """Where one batch holds all rows, they are kept, and the constants with them."""

    def program(x, y=None, number=None):
        """Never run here."""

    arguments, found = bind_rows(program, loader, DataOptions(batch_size=N))
    values = arguments.values
    assert found.complete
    assert torch.equal(values["x"], X)
    torch.testing.assert_close(values["y"].float(), Y)
    assert values.get("number", 3) == 3
    arguments, found = bind_rows(program, loader, DataOptions())
    assert (found.batch_size, found.size, found.names) == (8, N, ("x", "y"))
    assert len(arguments.values["x"]) >= 16


def test_a_loader_is_fitted_in_batches_of_its_size():
    sizes = []

    def callback(step, loss, parameters):
        sizes.append(step)
        return step == 3

    loader = DataLoader(Mappings(), batch_size=8)
    assert fit(data=loader, callbacks=[callback]).problem.size == N
    assert sizes == [1, 2, 3]


# --- Types, rows, weights


def test_the_floating_type_is_asked_for_else_own_else_the_widest():
    arguments = bind(program, {"x": torch.ones(2), "y": torch.ones(2).double()})
    own = {torch.float32}
    assert floating_type(arguments, own, torch.float16) is torch.float16
    assert floating_type(arguments, own, None) is torch.float32
    assert floating_type(arguments, set(), None) is torch.float64
    integers = bind(program, {"x": [1, 2]})
    assert floating_type(integers, set(), None) is torch.get_default_dtype()


def test_rows_are_the_arguments_of_that_length():
    arguments = bind(program, {"x": torch.ones(3, 2), "y": torch.ones(2)})
    assert find_rows(arguments, 3, None, {}) == ("x",)
    assert find_rows(arguments, 2, None, {}) == ("y",)
    assert find_rows(arguments, 5, None, {"groups": 5}) == ()


def test_one_row_is_never_ambiguous():
    arguments = bind(program, {"x": torch.ones(1, 1), "y": torch.ones(1)})
    assert find_rows(arguments, 1, None, {"groups": 1}) == ("x", "y")


@pytest.mark.parametrize(
    "weights", [[2, 0, 1], pd.Series([2, 0, 1]), torch.tensor([2.0, 0.0, 1.0])]
)
def test_row_weights_become_floats(weights):
    converted = row_weights(weights, 3, torch.float64, torch.device("cpu"))
    assert converted.dtype is torch.float64
    assert converted.tolist() == [2.0, 0.0, 1.0]


def test_lengths_are_those_of_arrays():
    arguments = bind(program, {"x": GROUP, "y": torch.tensor(1.0)})
    assert arguments.lengths() == {"x": N}
