"""Rows come in batches of one shape, each with its share, and stay where they are."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import probsl
from probsl.data import binding, rows, shuffled_rows
from probsl.data.conversion import is_mapped
from probsl.data.loaded_rows import LoadedRows
from probsl.data.loaders import Epochs
from probsl.data.shuffled_rows import ShuffledRows
from probsl.program.problem import Problem

SIZE = 103
ROW = torch.arange(SIZE)
# Blocks of 8 rows that are read into a buffer of 3 of them; the last block is of 7.
BLOCK, BUFFER = 8 * 24, 3 * 8 * 24


@pytest.fixture
def many(monkeypatch):
    """Take few rows for many."""
    monkeypatch.setattr(shuffled_rows, "_SMALL_BYTES", 0)
    monkeypatch.setattr(shuffled_rows, "_BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(shuffled_rows, "_BUFFER_BYTES", BUFFER)
    monkeypatch.setattr(binding, "_MANY", 0)
    monkeypatch.setattr(binding, "_AT_HAND", 30)
    monkeypatch.setattr(rows, "_PART", 40)


def on_disk(path, array, mode="r"):
    np.save(path, array)
    return np.load(path, mmap_mode=mode)


def linear(x, y=None):
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def some_data(size=SIZE, dtype=np.float64):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(size, 2)).astype(dtype)
    y = (x @ [1.0, -0.5] + generator.normal(size=size)).astype(dtype)
    return {"x": x, "y": y}


# --- Shuffled rows of arrays


def wide(array):
    """Return rows of three equal entries."""
    return np.repeat(np.asarray(array)[:, None], 3, 1)


ARRAYS = {
    "tensor": lambda path: torch.from_numpy(wide(ROW)),
    "tensor across": lambda path: torch.from_numpy(wide(ROW).T.copy()).T,
    "mapped": lambda path: on_disk(path, wide(ROW)),
    "mapped, writable": lambda path: on_disk(path, wide(ROW), "r+"),
    "mapped across": lambda path: on_disk(path, np.asfortranarray(wide(ROW))),
    "mapped in another byte order": lambda path: on_disk(path, wide(ROW).astype(">i8")),
    "mapped of uint16": lambda path: on_disk(path, wide(ROW).astype(np.uint16)),
    "mapped of float64": lambda path: on_disk(path, wide(ROW).astype(float)),
}


@pytest.mark.parametrize("block", [True, False])
@pytest.mark.parametrize("kind", ARRAYS)
def test_each_epoch_visits_every_row_once(kind, block, tmp_path, request):
    if block:
        request.getfixturevalue("many")
    array = ARRAYS[kind](tmp_path / "x.npy")
    weights = ROW / 2
    blocks = ShuffledRows({"x": array}, SIZE, 5, 0, weights, dtype=torch.float32)
    batches, weighted = blocks.take(SIZE)
    assert batches["x"].shape == (SIZE, 5, 3)
    assert batches["x"].dtype in (torch.int64, torch.float32)
    seen = batches["x"][..., 0].flatten().double()
    assert torch.equal(seen / 2, weighted.flatten().double())
    epochs = seen.reshape(5, SIZE)
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, ROW.double())
    # Neither in order, nor in the same order again.
    assert not torch.equal(epochs[0], ROW.double())
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("block", [True, False])
def test_the_batches_do_not_depend_on_how_many_are_taken(block, request):
    if block:
        request.getfixturevalue("many")

    def drawn(*steps, seed=0):
        blocks = ShuffledRows({"x": torch.from_numpy(wide(ROW))}, SIZE, 4, seed)
        return torch.cat([blocks.take(s)[0]["x"] for s in steps])

    assert torch.equal(drawn(60), drawn(*[1] * 60))
    assert torch.equal(drawn(60), drawn(7, 50, 3))
    assert not torch.equal(drawn(60), drawn(60, seed=1))


def test_what_was_taken_is_not_written_over(many):
    blocks = ShuffledRows({"x": torch.from_numpy(wide(ROW))}, SIZE, 4, 0)
    first = blocks.take(1)[0]["x"]
    before = first.clone()
    blocks.take(60)
    assert torch.equal(first, before)


def test_the_rows_of_a_batch_come_from_many_places(many):
    """A batch of sorted rows is no run of neighbors: it has rows of every block."""
    blocks = ShuffledRows({"x": torch.from_numpy(wide(ROW))}, SIZE, 24, 0)
    first = blocks.take(1)[0]["x"][0, :, 0]
    assert len(first.unique()) == 24
    assert len((first // 8).unique()) == 3
    assert (first.diff().abs() == 1).sum() < 12


def test_what_does_not_fit_in_memory_is_read_in_large_blocks(monkeypatch, tmp_path):
    array = on_disk(tmp_path / "x.npy", wide(ROW))
    sizes = []
    for pages in (10**9, 0):
        monkeypatch.setattr(shuffled_rows, "_SMALL_BYTES", 0)
        monkeypatch.setattr(shuffled_rows.os, "sysconf", lambda name, n=pages: n)
        sizes.append(ShuffledRows({"x": array}, SIZE, 4, 0)._rows)
    assert sizes[1] > 10 * sizes[0]


# --- Rows of a loader


def loaded(batch_size, *, loader_size=None, seed=0, visited=None, **options):
    loader = DataLoader(
        TensorDataset(ROW), batch_size=loader_size or batch_size, **options
    )
    return LoadedRows(
        loader, SIZE, batch_size, seed, read=lambda b: {"x": b[0]}, visited=visited
    )


@pytest.mark.parametrize("loader_size", [None, 1, 3, 50, SIZE])
@pytest.mark.parametrize("batch_size", [1, 7, 10, 64])
def test_an_epoch_of_a_loader_gives_every_row_the_same_share(batch_size, loader_size):
    steps = math.ceil(SIZE / batch_size)
    blocks = loaded(batch_size, loader_size=loader_size, shuffle=True)
    for _ in range(2):
        batches, weights = blocks.take(steps)
        assert batches["x"].shape == (steps, batch_size)
        share = torch.zeros(SIZE)
        one = torch.ones(steps, batch_size) if weights is None else weights
        share.index_add_(0, batches["x"].flatten(), one.flatten())
        # The mean over the batches, each times N / B, counts each row once.
        expected = torch.ones(SIZE)
        torch.testing.assert_close(share * SIZE / batch_size / steps, expected)


def test_only_a_ragged_loader_has_weights():
    assert loaded(1).take(3)[1] is None
    blocks = loaded(10)
    _, weights = blocks.take(11)
    assert (weights[:10] > 1).all()
    assert (weights[10] > 0).tolist() == [True] * 3 + [False] * 7


def test_epochs_of_a_loader_are_shuffled_again_and_by_the_seed():
    def epochs(**options):
        blocks = loaded(1, shuffle=True, **options)
        return [blocks.take(SIZE)[0]["x"].flatten() for _ in range(2)]

    first, second = epochs()
    assert not torch.equal(first, second)
    assert torch.equal(first, epochs()[0])
    assert not torch.equal(first, epochs(seed=1)[0])


def test_a_loader_that_drops_its_last_batch_has_nothing_to_fill():
    blocks = loaded(10, visited=100, drop_last=True)
    batches, weights = blocks.take(20)
    assert weights is None
    assert torch.equal(batches["x"][:10].flatten(), ROW[:100])
    assert torch.equal(batches["x"][10:].flatten(), ROW[:100])


def test_reading_a_loader_leaves_all_random_numbers():
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(
        TensorDataset(ROW), batch_size=10, shuffle=True, generator=generator
    )
    before = torch.get_rng_state(), generator.get_state()
    epochs = Epochs(loader, 0)
    first, second = (torch.cat([b[0] for b in epochs]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(generator.get_state(), before[1])
    assert not torch.equal(first, second)


class Once(IterableDataset):
    """Rows that can be iterated a given number of times."""

    def __init__(self, times):
        self.times = times

    def __iter__(self):
        self.times -= 1
        return iter(ROW.tolist() if self.times >= 0 else ())


def test_a_loader_that_cannot_begin_anew_is_told():
    loader = DataLoader(Once(1), batch_size=10)
    blocks = LoadedRows(loader, SIZE, 10, 0, read=lambda b: {"x": b})
    with pytest.raises(ValueError, match="start again each time"):
        blocks.take(12)


# --- Fits that leave the rows where they are


def test_a_fit_of_mapped_arrays_never_sees_all_rows(tmp_path):
    size = 200_000
    data = some_data(size, np.float32)
    mapped = {n: on_disk(tmp_path / f"{n}.npy", a) for n, a in data.items()}
    lengths = []

    def program(x, y=None):
        lengths.append(len(x))
        linear(x, y)

    method = probsl.MAP(max_steps=400)
    fit = probsl.fit(program, mapped, method, batch_size=100)
    assert max(lengths) < 2000
    assert fit.problem.size == size
    assert all(is_mapped(array) for array in fit.problem.data.arrays.values())
    torch.testing.assert_close(
        fit.point()["w"], torch.tensor([1.0, -0.5]), atol=0.15, rtol=0
    )
    fit.summary()
    assert fit.predict({"x": mapped["x"][:3]}, draws=5)["y"].shape == (5, 3)
    # Every row counts in the log likelihood, but not all at once.
    whole = Problem.build(linear, data).log_likelihood(fit.point(), {})
    assert fit.log_likelihood() == pytest.approx(float(whole), rel=1e-4)
    assert max(lengths) < size / 2


# Close to the end of noisy steps, in a fraction of the time.
FEW_STEPS = [probsl.MAP(max_steps=1500), probsl.SVI(AutoNormal, max_steps=1500)]


@pytest.mark.parametrize("method", FEW_STEPS)
def test_many_rows_are_fitted_as_few_ones_are(method, many, tmp_path):
    data = some_data()
    mapped = {n: on_disk(tmp_path / f"{n}.npy", a) for n, a in data.items()}
    whole = probsl.fit(linear, data, method)
    weights = np.ones(SIZE)
    fit = probsl.fit(linear, mapped, method, batch_size=20, weights=weights)
    assert not fit.problem.data.complete
    assert fit.problem.dtype is torch.float64
    distance = (fit.summary()["estimate"] - whole.summary()["estimate"]).abs()
    assert (distance < 0.1).all()
    assert fit.log_likelihood() == pytest.approx(whole.log_likelihood(), abs=0.5)
    # What shows every row has them all, where they are not too many.
    complete = fit.problem.with_all_rows()
    assert complete.data.complete
    assert torch.equal(complete.arguments.values["y"], torch.from_numpy(data["y"]))
    assert complete.observed_digest() == fit.problem.observed_digest()
    scores = probsl.compare({"whole": whole, "batches": fit}).scores["log score"]
    assert scores["batches"] == pytest.approx(scores["whole"], abs=0.5)


def test_mapped_arrays_are_read_as_the_type_of_the_fit(many, tmp_path):
    data = some_data(dtype=np.float32)
    mapped = {n: on_disk(tmp_path / f"{n}.npy", a) for n, a in data.items()}
    fit = probsl.fit(
        linear, mapped, probsl.MAP(max_steps=5), batch_size=20, dtype=torch.float64
    )
    assert fit.point()["w"].dtype is torch.float64


def test_mapped_arrays_are_copied_where_all_rows_are_fitted_at_once(tmp_path):
    data = some_data()
    mapped = {n: on_disk(tmp_path / f"{n}.npy", a) for n, a in data.items()}
    fit = probsl.fit(linear, mapped, probsl.MAP())
    expected = probsl.fit(linear, data, probsl.MAP())
    assert torch.equal(fit.point()["w"], expected.point()["w"])


def test_a_bad_number_on_disk_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(probsl.data.conversion, "_CHECKED_ELEMENTS", 10)
    data = some_data()
    data["x"][70, 1] = np.nan
    mapped = {n: on_disk(tmp_path / f"{n}.npy", a) for n, a in data.items()}
    with pytest.raises(ValueError, match=r"'x' has 1 NaN .* row 70, column 1"):
        probsl.fit(linear, mapped, probsl.MAP(), batch_size=5)


def test_a_fit_of_a_loader_has_everything_but_its_rows():
    data = {n: torch.from_numpy(a) for n, a in some_data().items()}
    loader = DataLoader(TensorDataset(*data.values()), batch_size=20, shuffle=True)
    fit = probsl.fit(linear, loader, FEW_STEPS[0])
    whole = probsl.fit(linear, data, FEW_STEPS[0])
    distance = (fit.summary()["estimate"] - whole.summary()["estimate"]).abs()
    assert (distance < 0.1).all()
    assert fit.predict({"x": data["x"][:3]}, draws=5)["y"].shape == (5, 3)
    assert fit.log_likelihood() == pytest.approx(whole.log_likelihood(), abs=0.5)
    assert repr(fit).find(f"{SIZE} rows") > 0
    with pytest.raises(ValueError, match=r"come from a DataLoader.*log_score"):
        probsl.to_arviz(fit)


def test_an_iterable_data_set_is_fitted_with_its_total():
    class Rows(IterableDataset):
        def __iter__(self):
            data = some_data()
            return iter(zip(data["x"], data["y"], strict=True))

    method = probsl.MAP(max_steps=20)
    fit = probsl.fit(linear, DataLoader(Rows(), batch_size=20), method, total=SIZE)
    assert fit.problem.size == SIZE


# --- The audit


def test_a_program_with_random_numbers_of_its_own_is_no_fault():
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Dropout(0.5))

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * net(x).sum(1), 1.0), obs=y)

    data = some_data(dtype=np.float32)
    fit = probsl.fit(program, data, probsl.MAP(max_steps=3), batch_size=10)
    assert fit.losses.isfinite().all()


def test_large_and_tiny_columns_pass_the_audit():
    data = some_data(dtype=np.float32)
    data["x"] = (data["x"] * [1e-4, 10] + [0, 2000]).astype(np.float32)
    fit = probsl.fit(linear, data, probsl.MAP(max_steps=3), batch_size=10)
    assert fit.steps == 3
