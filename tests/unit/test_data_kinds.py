"""Data that torch cannot hold are refused; new data mean what the fitted ones did."""

import warnings

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from refusals import GROUP, N, Refusals, X, Y, fit, fit_y, fitted, mean, means
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
)

import probsl
from probsl.data.arguments import bind
from probsl.data.conversion import resident

REFUSED = Refusals()
case = REFUSED.case
MASK = np.arange(N) == 3


def numbers(dtype):
    return np.arange(N).astype(dtype)


# --- Masked arrays


@case(ValueError, "'y'", "1 masked value,", "row 3", "what a mask hides is missing")
def masked_values():
    fit_y(mean, y=np.ma.masked_array(np.where(MASK, 1e6, 1.0), mask=MASK))


@case(ValueError, "'x'", "2 masked values", "row 3, column 0", "drop or fill")
def masked_rows_of_a_matrix():
    mask = np.stack([MASK, MASK], 1)
    fit(data={"x": np.ma.masked_array(X.numpy(), mask=mask), "y": Y})


@case(ValueError, "'group'", "1 masked value", "row 3")
def masked_integers():
    fit(means, data={"group": np.ma.masked_array(GROUP.numpy(), mask=MASK), "y": Y})


@case(ValueError, "'y'", "1 masked value", "row 1")
def masked_entry_of_a_list():
    fit_y(mean, y=[1.0, np.ma.masked])


@case(ValueError, "'scale'", "1 masked value", "its only value")
def masked_constant():
    def program(scale, y=None):
        """Never run here."""

    fit(program, data={"scale": np.ma.masked, "y": Y})


@case(ValueError, "'weights'", "1 masked value", "row 3")
def masked_weights():
    fit(weights=np.ma.masked_array(np.ones(N), mask=MASK))


@case(ValueError, "'x'", "1 masked value", "row 3")
def masked_values_to_predict_from():
    fitted_mean().predict({"x": np.ma.masked_array(np.ones(N), mask=MASK)})


@case(ValueError, "'x'", "1 masked value", "row 0, column 1")
def masked_values_to_score():
    x = np.ma.masked_array(np.ones((2, 2)), mask=[[False, True], [False, False]])
    probsl.log_score(fitted(), {"x": x, "y": np.ones(2)})


@case(TypeError, "'y'", "MaskedTensor", "get_data()")
def masked_tensor():
    with warnings.catch_warnings(action="ignore"):
        masked = torch.masked.masked_tensor(Y, torch.ones(N, dtype=torch.bool))
    fit_y(mean, y=masked)


def test_a_masked_array_that_hides_nothing_is_an_array():
    plain = fit_y(mean, y=Y.numpy()).point()["mu"]
    assert fit_y(mean, y=np.ma.masked_array(Y.numpy())).point()["mu"] == plain


# --- Types that torch does not have, or does not compute with


def beyond_int64():
    return np.where(MASK, np.uint64(2**63), np.uint64(1))


@case(ValueError, "'y'", "1 value of 2**63 or more", "row 3", "astype(float)")
def integers_beyond_torchs():
    fit_y(mean, y=beyond_int64())


@case(ValueError, "'y'", "2 values of 2**63 or more", "row 0")
def integers_of_a_column_beyond_torchs():
    fit_y(mean, y=pd.Series([2**63, 1, 2**64 - 1], dtype="UInt64"))


@case(ValueError, "'y'", "1 value of 2**63 or more", "row 3")
def integers_of_a_tensor_beyond_torchs():
    fit_y(mean, y=torch.from_numpy(beyond_int64()))


@case(TypeError, "'y'", "astype(float)")
def long_doubles():
    fit_y(mean, y=numbers(np.longdouble))


@case(TypeError, "'y'", "astype(float)")
def long_doubles_in_a_column():
    fit_y(mean, y=pd.Series(numbers(np.longdouble)))


@case(TypeError, "'y'", "astype(complex)")
def long_complex_numbers():
    fit_y(mean, y=numbers(np.clongdouble))


@case(TypeError, "'y'", "torch.float8_e4m3fn", "y.float()")
def eight_bit_floats():
    fit_y(mean, y=Y.to(torch.float8_e4m3fn))


@case(TypeError, "'y'", "device 'meta'", "no numbers")
def meta_tensors():
    fit_y(mean, y=Y.to("meta"))


@case(TypeError, "'y'", "nested", "to_padded_tensor")
def nested_tensors():
    with warnings.catch_warnings(action="ignore"):
        nested = torch.nested.nested_tensor([Y[:2], Y[:3]])
    fit_y(mean, y=nested)


@case(TypeError, "'y'", "sparse SparseArray", "y.to_dense()")
def sparse_arrays():
    fit_y(mean, y=pd.arrays.SparseArray(Y.numpy()))


@case(TypeError, "'y'", "sparse Series", "y.sparse.to_dense()")
def sparse_series():
    fit_y(mean, y=pd.Series(pd.arrays.SparseArray(Y.numpy())))


@case(TypeError, "'x.b'", "sparse Series")
def sparse_column():
    x = pd.DataFrame({"a": Y.numpy(), "b": pd.arrays.SparseArray(Y.numpy())})
    fit(data={"x": x, "y": Y})


@case(ValueError, "'y'", "1 missing value,", "row 2")
def missing_value_of_an_array_of_pandas():
    fit_y(mean, y=pd.array([1, 2, None]))


@case(ValueError, "'x'", "no columns", "(20, 0)", "at least one")
def no_columns():
    fit(data={"x": X[:, :0], "y": Y})


@case(ValueError, "'x'", "no columns", "(20, 0)")
def no_columns_of_numpy():
    fit(data={"x": np.empty((N, 0)), "y": Y})


@case(ValueError, "dtype must be a floating type", "torch.float8_e5m2")
def eight_bit_computing():
    fit(dtype=torch.float8_e5m2)


def test_small_unsigned_integers_and_arrays_of_pandas_are_numbers():
    def program(x, y=None):
        """Never run here."""

    for x in (
        torch.arange(3).to(torch.uint32),
        np.arange(3, dtype=np.uint64),
        pd.array([0, 1, 2]),
    ):
        converted = resident(bind(program, {"x": x}).values["x"])
        assert converted.dtype is torch.int64
        assert converted.tolist() == [0, 1, 2]


# --- Numbers too large for the type to compute in


@case(
    ValueError, "'y'", "1 value too large for torch.float32", "row 3", "1e+300",
    "dtype=torch.float64",
)  # fmt: skip
def overflow_under_dtype():
    fit_y(mean, y=np.where(MASK, 1e300, 1.0), dtype=torch.float32)


@case(ValueError, "'y'", "1 value too large for torch.float16", "row 3", "70000")
def overflow_in_half_precision():
    fit_y(mean, y=np.where(MASK, 70000.0, 1.0), dtype=torch.float16)


@case(ValueError, "'weights'", "too large for torch.float32")
def overflow_of_weights():
    fit(weights=np.where(MASK, 1e300, 1.0))


@case(ValueError, "'y'", "1 value too large for torch.float32", "row 3")
def overflow_of_what_is_scored():
    probsl.log_score(fitted(), {"x": X.double(), "y": np.where(MASK, 1e300, 1.0)})


@case(ValueError, "'y'", "1 value too large for torch.float32", "row 9")
def overflow_in_a_loader():
    y = torch.where(torch.arange(N) == 9, 1e300, Y.double())
    loader = DataLoader(TensorDataset(X.double(), y), batch_size=8)
    fit(data=loader, dtype=torch.float32, method=probsl.MAP(max_steps=5))


# --- Categories


@case(TypeError, "'x'", "the category 'city'", "an argument of its own", "get_dummies")
def category_among_the_columns_of_a_matrix():
    x = pd.DataFrame({"age": Y.numpy(), "city": pd.Categorical(["a", "b"] * (N // 2))})
    fit(data={"x": x, "y": Y})


@case(TypeError, "'x'", "the category 'stage'")
def numbered_category_among_the_columns_of_a_matrix():
    x = pd.DataFrame({"stage": pd.Categorical([1, 2] * (N // 2), ordered=True)})
    fit(data={"x": x, "y": Y})


def test_truths_among_the_columns_of_a_matrix_are_zero_and_one():
    x = pd.DataFrame({"age": X[:, 0].numpy(), "old": X[:, 0].numpy() > 0})
    truths = fit(data={"x": x, "y": Y}).problem.arguments.values["x"]
    assert truths[:, 1].tolist() == (X[:, 0] > 0).float().tolist()


CENTERS = [30, 10, 20]
LATER = {
    "Series": pd.Series,
    "Categorical": pd.Categorical,
    "Index": pd.Index,
    "array of pandas": pd.array,
    "array": np.array,
    "list": list,
    "tuple": tuple,
    "tensor": torch.tensor,
    "tensor of floats": lambda v: torch.tensor(v, dtype=torch.float32),
    "list of tensors": lambda v: [torch.tensor(each) for each in v],
}


@pytest.fixture(scope="module")
def by_center():
    center = pd.Categorical([10, 20, 30, 20] * (N // 4))
    y = 10.0 * np.asarray(center, dtype="f4") + Y.numpy()
    return fit(means, data={"group": center, "y": y}, method=probsl.MLE())


@pytest.mark.parametrize("container", LATER.values(), ids=LATER)
def test_categories_that_are_integers_are_labels_in_every_container(
    container, by_center
):
    new = {"group": container(CENTERS)}
    predicted = by_center.predict(new, draws=200)["y"].mean(0)
    np.testing.assert_allclose(predicted, [300.0, 100.0, 200.0], atol=1.0)
    score = probsl.log_score(by_center, {**new, "y": predicted})
    assert (score > -1.0).all()


def test_a_column_of_a_new_table_has_labels_too(by_center):
    table = pd.DataFrame({"group": CENTERS})
    predicted = by_center.predict(table, draws=200)["y"].mean(0)
    np.testing.assert_allclose(predicted, [300.0, 100.0, 200.0], atol=1.0)


@pytest.mark.parametrize("container", LATER.values(), ids=LATER)
def test_an_integer_that_is_no_category_is_told(container, by_center):
    with pytest.raises(ValueError, match=r"'group' has the category 1.*10, 20, 30"):
        by_center.predict({"group": container([1, 10])})


@case(ValueError, "'group'", "the code 7", "2 categories, 'a', 'b'", "their labels")
def a_code_that_is_none():
    from refusals import fitted_labels

    fitted_labels().predict({"group": torch.tensor([0, 7])})


# --- Predictions


def slopes(x, z, y):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(b * x + z, 1.0), obs=y)


def fitted_mean():
    def program(x, y=None):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(b * x, 1.0), obs=y)

    return fit(program, data={"x": X[:, 0], "y": Y})


def fitted_slopes():
    return fit(slopes, data={"x": X[:, 0], "z": X[:, 1], "y": Y})


@case(ValueError, "'x' and 'z' have unequal lengths, 5 and 4", "one entry per row")
def predictions_for_unequal_lengths():
    fitted_slopes().predict({"x": X[:5, 0], "z": X[:4, 1], "y": None})


@case(ValueError, "'x' and 'z' have unequal lengths, 5 and 1", "one entry per row")
def predictions_for_one_entry_that_would_be_repeated():
    fitted_slopes().predict({"x": [1.0] * 5, "z": [2.0], "y": None})


@case(ValueError, "'x', 'z' and 'y' have unequal lengths, 5, 1 and 5")
def scores_of_unequal_lengths():
    data = {"x": X[:5, 0], "z": X[:1, 1], "y": Y[:5]}
    probsl.log_score(fitted_slopes(), data)


@case(
    ValueError, "data lacks 'y'", "observes and requires", "as None, {'y': None}",
    "y=None",
)  # fmt: skip
def predictions_without_a_required_observed_argument():
    fitted_slopes().predict({"x": X[:5, 0], "z": X[:5, 1]})


def test_a_required_observed_argument_may_be_none_and_its_values_are_ignored():
    fit = fitted_slopes()
    new = {"x": X[:5, 0], "z": X[:5, 1]}
    absent = fit.predict({**new, "y": None}, draws=500)["y"]
    given = fit.predict({**new, "y": Y[:5]}, draws=500)["y"]
    assert torch.equal(absent, given)
    assert (absent.std(0) > 0.8).all()


def test_what_is_observed_is_predicted_even_where_the_program_needs_its_length():
    """`len(y)` sizes the plate, so y cannot be None; its values are no predictions."""

    def program(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit = probsl.fit(program, {"y": Y}, probsl.MLE())
    drawn = fit.predict({"y": torch.full((5,), 100.0)}, draws=2000)["y"]
    assert drawn.shape == (2000, 5)
    # Five standard errors of a mean of 2,000 draws.
    assert (drawn.mean(0) - Y.mean()).abs().max() < 5 / 2000**0.5
    assert (drawn.std(0) - 1.0).abs().max() < 0.1


# --- Loaders


@case(ValueError, "batch 2", "'x' of shape (8, 3)", "(8, 2)", "the same columns")
def loader_of_changing_width():
    wider = torch.cat([X, X[:, :1]], 1)
    batches = [{"x": X[:8], "y": Y[:8]}] * 2 + [{"x": wider[:8], "y": Y[:8]}]
    loader = DataLoader(batches, batch_size=1, collate_fn=lambda batch: batch[0])
    fit(data=loader, total=24, method=probsl.MAP(max_steps=5))


@case(ValueError, "batch 1", "'y' of type torch.int64", "torch.float32", "one type")
def loader_of_changing_types():
    batches = [{"x": X[:8], "y": Y[:8]}, {"x": X[:8], "y": torch.arange(8)}]
    loader = DataLoader(batches, batch_size=1, collate_fn=lambda batch: batch[0])
    fit(data=loader, total=16, method=probsl.MAP(max_steps=5))


@case(ValueError, "batch 1", "'y' has 1 NaN", "row 1")
def loader_with_a_hole():
    y = torch.where(torch.arange(N) == 9, torch.nan, Y)
    fit(data=DataLoader(TensorDataset(X, y), batch_size=8))


@pytest.mark.parametrize("batch_size", [5, 20, 50])
def test_total_says_for_how_many_rows_a_sample_stands(batch_size):
    """A normal mean with the prior N(0, 1): N ybar / (N + 1), at any batch size."""
    y = torch.arange(20.0) / 10.0

    def program(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    sampler = SubsetRandomSampler(range(10), torch.Generator().manual_seed(0))
    loader = DataLoader(
        y,
        batch_size=5,
        sampler=sampler,
        collate_fn=lambda rows: {"y": torch.stack(rows)},
    )
    method = probsl.MAP(max_steps=2000)
    fit = probsl.fit(program, loader, method, batch_size=batch_size, total=20)
    assert fit.problem.size == 20
    # In batches the last iterates are averaged: good to a hundredth.
    expected = 20 * float(y[:10].mean()) / 21
    assert float(fit.point()["mu"]) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("batch_size", [8, 30])
def test_a_total_that_the_loader_contradicts_is_told(batch_size):
    class Rows(IterableDataset):
        def __iter__(self):
            return iter(zip(X, Y, strict=True))

    with pytest.raises(ValueError, match=r"yielded 20 rows in an epoch, where 30"):
        fit(
            data=DataLoader(Rows(), batch_size=8),
            method=probsl.MAP(max_steps=10),
            batch_size=batch_size,
            total=30,
        )


# --- The tests


@pytest.mark.parametrize("refusal", REFUSED, ids=str)
def test_data_that_cannot_be_held_are_told(refusal):
    refusal.check()


@pytest.mark.parametrize("refusal", REFUSED[:4], ids=str)
def test_a_refusal_leaves_the_process_as_it_was(refusal):
    refusal.check_nothing_is_left()


def test_a_packed_sequence_reaches_the_program_as_it_is():
    lengths = torch.tensor([3, 1, 2])
    padded = torch.arange(9.0).reshape(3, 3)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        padded, lengths, batch_first=True, enforce_sorted=False
    )

    def program(packed, y=None):
        sums = torch.nn.utils.rnn.pad_packed_sequence(packed, True)[0].sum(1)
        w = pyro.sample("w", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(w * sums, 1.0), obs=y)

    sums = torch.tensor([3.0, 3.0, 13.0])
    fit = probsl.fit(program, {"packed": packed, "y": 2 * sums}, probsl.MLE())
    assert float(fit.point()["w"]) == pytest.approx(2.0, rel=1e-5)
    # A constant may be left out of what is new.
    assert fit.predict({}, draws=2)["y"].shape == (2, 3)
