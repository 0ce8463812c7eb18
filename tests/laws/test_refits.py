"""A bound problem can be fitted again, wherever its rows are, as if bound again."""

import numpy as np
import pytest
import torch
from methods import ADAM, DEEP
from programs import PROBLEMS, N, problem
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import DataLoader, TensorDataset

import probsl
from probsl.data import binding
from probsl.data.rows import HeldRows, StoredRows
from probsl.data.streamed_rows import StreamedRows
from probsl.program.problem import Problem

SIZE, BATCH = 130, 6
WEIGHTS = torch.arange(SIZE) % 3
STEPS = 20 if DEEP else 6
METHODS = {
    "MAP": probsl.MAP(max_steps=STEPS),
    "MAP Adam": probsl.MAP(optimizer=ADAM, max_steps=STEPS),
    "SVI": probsl.SVI(AutoNormal, max_steps=STEPS),
}
ADAMS = METHODS["MAP Adam"]
PROGRAM = problem("linear").program


def arrays(folder):
    return {n: v[torch.arange(SIZE) % N] for n, v in problem("linear").data.items()}


def mapped(folder):
    for name, array in arrays(folder).items():
        np.save(folder / f"{name}.npy", array.numpy())
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays("")}


def loader(folder):
    return DataLoader(TensorDataset(*arrays(folder).values()), BATCH, shuffle=True)


# How rows are given -> the class that has them, the data, and the options of the fit.
KINDS = {
    "held": (HeldRows, arrays, {}),
    "held, in batches": (HeldRows, arrays, {"batch_size": BATCH}),
    "stored": (StoredRows, arrays, {"batch_size": BATCH}),
    "mapped": (StoredRows, mapped, {"batch_size": BATCH}),
    "streamed": (StreamedRows, loader, {}),
}
WEIGHABLE = [kind for kind in KINDS if kind != "streamed"]


@pytest.fixture
def given(kind, tmp_path, monkeypatch):
    """Fit the data of a kind by some method, with its options."""
    monkeypatch.setattr(binding, "_MANY", SIZE if "held" in kind else SIZE - 1)
    monkeypatch.setattr(binding, "_AT_HAND", BATCH)
    expected, data, options = KINDS[kind]
    options = {"compile": False, "seed": 3, **options}
    data = data(tmp_path)

    def fit(method, **more):
        found = probsl.fit(PROGRAM, data, method, **options, **more)
        assert type(found.problem.data) is expected
        return found

    def refit(bound, method, **more):
        # Nothing is bound again.
        with monkeypatch.context() as patched:
            patched.setattr(Problem, "build", None)
            return probsl.fit(bound, None, method, **{**options, **more})

    return fit, refit


def check_the_same(fit, other):
    assert torch.equal(fit.losses, other.losses)
    assert (fit.steps, fit.status) == (other.steps, other.status)
    for one, two in (
        (fit.point(), other.point()),
        (fit.draw(3, seed=5), other.draw(3, seed=5)),
    ):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert fit.log_likelihood() == other.log_likelihood()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_problem_is_fitted_again_as_if_bound_again(method, given):
    fit, refit = given
    other, fresh = fit(probsl.MAP(max_steps=3)), fit(method)
    check_the_same(refit(other.problem, method), fresh)
    check_the_same(refit(fresh.problem, method), fresh)


@pytest.mark.parametrize("kind", ["stored", "mapped", "streamed"])
def test_rows_left_in_place_come_in_their_batches_again(given):
    """The few rows that are held would be other data."""
    fit, refit = given
    fresh = fit(ADAMS)
    check_the_same(refit(fresh.problem, ADAMS, batch_size=None), fresh)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("kind", WEIGHABLE)
def test_a_problem_is_reweighted_as_if_bound_with_the_weights(method, given):
    fit, refit = given
    plain, fresh = fit(method), fit(method, weights=WEIGHTS)
    assert not torch.equal(plain.losses, fresh.losses)
    check_the_same(refit(plain.problem.reweighted(WEIGHTS), method), fresh)
    check_the_same(refit(plain.problem, method, weights=WEIGHTS), fresh)
    # The problem itself has not changed, and the weights can be taken off again.
    assert plain.problem.weights is None
    check_the_same(refit(fresh.problem.reweighted(None), method), plain)


ROWS = [case for case in PROBLEMS if "rows" in case.has]


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_every_program_is_reweighted_as_if_bound_with_the_weights(case):
    plain = probsl.fit(case.program, case.data, ADAMS, **case.options)
    weights = torch.arange(plain.problem.size) % 3
    options = {"weights": weights, "compile": False}
    fresh = probsl.fit(case.program, case.data, ADAMS, **options, **case.options)
    check_the_same(probsl.fit(plain.problem, None, ADAMS, **options), fresh)


@pytest.mark.parametrize("kind", ["streamed"])
def test_the_rows_of_a_loader_cannot_be_weighted(given):
    bound = given[0](ADAMS).problem
    with pytest.raises(ValueError, match="cannot be matched to the rows of a DataLo"):
        bound.reweighted(WEIGHTS)
    assert bound.reweighted(None).weights is None


@pytest.mark.parametrize("kind", ["stored", "mapped", "streamed"])
def test_a_step_cannot_take_more_rows_than_are_held(given):
    """All rows at once would otherwise be the few that represent them."""
    fit, refit = given
    bound = fit(ADAMS).problem
    held = bound.data.held
    assert held < SIZE
    with pytest.raises(ValueError, match=f"holds only {held} of its {SIZE} rows"):
        refit(bound, ADAMS, batch_size=SIZE)
    assert refit(bound, ADAMS, batch_size=held).steps == STEPS
