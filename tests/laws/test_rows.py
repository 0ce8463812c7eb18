"""Rows are a set with weights: order, copies, units and batches change nothing."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods import DEEP, METHODS, PAIRS, Pair, fitted
from programs import DTYPE, PROBLEMS, N, problem
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import DataLoader, Dataset

import probsl
from probsl import Status
from probsl.isolation.calls import isolated
from probsl.program.problem import Problem

# Fits that end where the objective ends, of programs with rows: each program's mode, a
# distribution for rows of each kind, and what the other methods make of two of them.
OF_EACH_KIND = ("LKJ covariance", "mixture", "own parameters")
EXACT = [
    p
    for p in PAIRS
    if "rows" in p.case.has
    and not p.method.endswith("Adam")
    and (
        DEEP
        or p.method == "MAP"
        or p.case.name in ("linear", "mixed model")
        or (p.method == "SVI AutoNormal" and p.case.name in OF_EACH_KIND)
    )
]
POINTS = [p for p in EXACT if p.is_point]


def at(case, index):
    """Return the data of some rows, in the order of the index."""
    size = len(case.data[case.observed])
    return {
        n: v[index] if torch.is_tensor(v) and len(v) == size else v
        for n, v in case.data.items()
    }


def check_same_optimum(fit, other, *, local_index=None):
    """Compare two fits of one objective, which end where rounding lets them.

    A decrement below the tolerance leaves some 1e-5 of an estimate to chance. Where the
    data leave directions free, only the objective is the same.
    """
    assert fit.status is other.status
    if fit.status is Status.UNBOUNDED:
        return  # how far a runaway went says nothing
    assert float(fit.losses[-1]) == pytest.approx(float(other.losses[-1]), abs=1e-6)
    if fit.status is not Status.CONVERGED:
        return
    expected, found = fit.point(), other.point()
    for name, value in expected.items():
        site = next((s for s in fit.problem.latents if s.name == name), None)
        if site is not None and fit.problem.is_local(site):
            value = value[local_index]
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pair", EXACT, ids=str)
def test_the_order_of_the_rows_does_not_matter(pair):
    if "factor model" in str(pair):
        pytest.skip("the sign of a factor is free, and the start decides it")
    if "local" in pair.case.has and not pair.is_point:
        pytest.skip("each row's latent has fixed draws of its own")
    index = torch.randperm(len(pair.case.data[pair.case.observed]))
    other = probsl.fit(pair.case.program, at(pair.case, index), METHODS[pair.method])
    check_same_optimum(fitted(pair), other, local_index=index)


@given(index=st.permutations(range(N)))
def test_no_order_of_the_rows_matters_to_a_point(index):
    pair = Pair("MAP", problem("mixed model"))
    index = torch.tensor(index)
    other = probsl.fit(pair.case.program, at(pair.case, index), probsl.MAP())
    check_same_optimum(fitted(pair), other)


@pytest.mark.parametrize("pair", POINTS, ids=str)
def test_two_copies_of_every_row_are_weights_of_two(pair):
    size = len(pair.case.data[pair.case.observed])
    index = torch.arange(2 * size) % size
    copied = probsl.fit(pair.case.program, at(pair.case, index), METHODS[pair.method])
    weighted = pair.fit(weights=torch.full((size,), 2.0))
    check_same_optimum(weighted, copied, local_index=index)


@pytest.mark.parametrize("name", ["linear", "centered groups", "own parameters"])
def test_two_copies_of_every_row_are_weights_of_two_to_a_distribution(name):
    case = problem(name)
    index = torch.arange(2 * N) % N
    copied = probsl.fit(case.program, at(case, index), probsl.SVI(AutoNormal))
    weighted = Pair("SVI AutoNormal", case).fit(weights=[2] * N)
    check_same_optimum(weighted, copied)


@given(
    weights=st.lists(st.integers(0, 3), min_size=N, max_size=N).filter(
        # Some rows must stay for the fit to have an optimum.
        lambda weights: sum(w > 0 for w in weights) >= N // 2
    )
)
def test_a_weight_is_a_number_of_copies(weights):
    pair = Pair("MAP", problem("linear"))
    index = torch.arange(N).repeat_interleave(torch.tensor(weights))
    copied = probsl.fit(pair.case.program, at(pair.case, index), probsl.MAP())
    check_same_optimum(pair.fit(weights=weights), copied)


@pytest.mark.parametrize("pair", POINTS, ids=str)
def test_rows_of_weight_zero_are_left_out(pair):
    if "local" in pair.case.has and pair.method == "MLE":
        pytest.skip("without priors the latents of rows left out are free")
    size = len(pair.case.data[pair.case.observed])
    weights = torch.ones(size, dtype=DTYPE)
    weights[1] = 0
    kept = torch.arange(size)[weights > 0]
    # The shapes alone may leave open which arguments are rows.
    fewer = probsl.fit(
        pair.case.program,
        at(pair.case, kept),
        METHODS[pair.method],
        rows=fitted(pair).problem.rows,
    )
    weighted = pair.fit(weights=weights)
    if "local" in pair.case.has:
        # The row's own latent has no say in anything, and is said to be free.
        assert weighted.status is Status.UNIDENTIFIED
        assert all(site.endswith("[1]") for site in weighted.sites)
    else:
        check_same_optimum(weighted, fewer)


@pytest.mark.parametrize("name", ["linear", "own parameters", "mixed model"])
def test_rows_of_weight_zero_are_left_out_of_a_distribution(name):
    case = problem(name)
    weights = [0, *[1] * (N - 1)]
    fewer = probsl.fit(
        case.program, at(case, torch.arange(1, N)), probsl.SVI(AutoNormal)
    )
    check_same_optimum(Pair("SVI AutoNormal", case).fit(weights=weights), fewer)


@given(unit=st.floats(0.01, 100))
@pytest.mark.parametrize("name", ["linear", "logistic", "poisson", "robust"])
def test_a_unit_of_measurement_changes_only_its_coefficient(name, unit):
    pair = Pair("MLE", problem(name))
    scale = torch.tensor([1.0, unit], dtype=DTYPE)
    other = probsl.fit(
        pair.case.program,
        {**pair.case.data, "x": pair.case.data["x"] * scale},
        probsl.MLE(),
    )
    fit = fitted(pair)
    assert fit.status is other.status is Status.CONVERGED
    assert fit.log_likelihood() == pytest.approx(other.log_likelihood(), abs=1e-6)
    torch.testing.assert_close(
        other.point()["w"] * scale, fit.point()["w"], rtol=1e-4, atol=1e-4
    )


BATCHED = {
    "MLE": probsl.MLE(integrate=()),
    "MAP": probsl.MAP(),
    "SVI": probsl.SVI(AutoNormal),
}


# Single rows, and SVI, are held to closed forms by the golden numbers and the tests of
# resting places.
@pytest.mark.parametrize(
    ("method", "batch_size"),
    [("MLE", 1), ("MAP", 7), ("SVI", 7)] if DEEP else [("MAP", 7)],
)
def test_batches_lead_to_the_optimum_of_all_rows(method, batch_size):
    """The end of noisy steps lies around it, within a fraction of the posterior's sd.

    Seven rows do not divide twelve, so batches reach over from one epoch to the next.
    """
    case = problem("linear")
    whole = probsl.fit(case.program, case.data, BATCHED[method])
    fit = probsl.fit(case.program, case.data, BATCHED[method], batch_size=batch_size)
    spread = fitted(Pair("SVI AutoNormal", case)).summary()["sd"]
    distance = (fit.summary()["estimate"] - whole.summary()["estimate"]).abs()
    assert fit.status is Status.CONVERGED
    assert (distance < 0.25 * spread).all()
    # And not by taking all rows at once after all.
    assert fit.steps > whole.steps


@pytest.mark.parametrize(
    "pair", [p for p in POINTS if "batches" in p.case.has], ids=str
)
def test_one_batch_of_each_row_adds_up_to_all_rows(pair):
    """The objective of a batch stands for all rows: its mean over batches is theirs."""
    fit = fitted(pair)
    built = fit.problem
    values, own = fit.posterior.point(), fit.posterior.own
    half = built.size // 2
    parts = [torch.arange(half), torch.arange(half, 2 * half)]
    if built.size != 2 * half:
        pytest.skip("an odd number of rows has no halves")
    with isolated(built.dtype), torch.no_grad():
        whole = built.log_density(values, own)
        halves = [built.log_density(values, own, built.rows_at(i)) for i in parts]
    assert float(sum(halves)) / 2 == pytest.approx(float(whole), rel=1e-6)


@pytest.mark.parametrize("name", [c.name for c in PROBLEMS if "batches" in c.has])
def test_every_program_with_rows_can_be_fitted_in_batches(name):
    case = problem(name)
    method = probsl.MAP(optimizer=torch.optim.Adam, max_steps=3)
    fit = probsl.fit(case.program, case.data, method, batch_size=2)
    assert fit.losses.isfinite().all()
    assert len(fit.losses) == 3


def test_batches_of_all_rows_are_no_batches():
    pair = Pair("MAP", problem("linear"))
    for batch_size in (N, 10 * N):
        assert torch.equal(pair.fit(batch_size=batch_size).losses, fitted(pair).losses)


@pytest.mark.parametrize("name", ["local scales", "sequential plate"])
def test_what_has_no_batches_is_refused_in_a_sentence(name):
    case = problem(name)
    with pytest.raises(ValueError, match=r"batch"):
        probsl.fit(case.program, case.data, probsl.MAP(), batch_size=2)


class Rows(Dataset):
    """Rows one by one, by name or by position."""

    def __init__(self, data, form):
        self.data, self.form = data, form

    def __len__(self):
        return len(next(iter(self.data.values())))

    def __getitem__(self, i):
        row = {n: v[i] for n, v in self.data.items()}
        return row if self.form is dict else tuple(row.values())


@pytest.mark.parametrize("form", [dict, tuple])
def test_a_data_loader_of_all_rows_is_all_rows_at_once(form):
    pair = Pair("MAP", problem("linear"))
    loader = DataLoader(Rows(pair.case.data, form), batch_size=N)
    fit = probsl.fit(pair.case.program, loader, METHODS[pair.method])
    assert torch.equal(fit.losses, fitted(pair).losses)
    # The argument goes before the size of the loader's batches.
    loader = DataLoader(Rows(pair.case.data, form), batch_size=4)
    fit = probsl.fit(pair.case.program, loader, METHODS[pair.method], batch_size=N)
    assert torch.equal(fit.losses, fitted(pair).losses)


def test_a_ragged_last_batch_leads_to_the_optimum_of_all_rows():
    case = problem("linear")
    loader = DataLoader(Rows(case.data, dict), batch_size=7, shuffle=True)
    whole = probsl.fit(case.program, case.data, probsl.MAP())
    fit = probsl.fit(case.program, loader, probsl.MAP())
    spread = fitted(Pair("SVI AutoNormal", case)).summary()["sd"]
    distance = (fit.summary()["estimate"] - whole.summary()["estimate"]).abs()
    assert fit.status is Status.CONVERGED
    assert (distance < 0.25 * spread).all()
    assert fit.log_likelihood() == pytest.approx(whole.log_likelihood(), abs=0.5)


def gradient(problem, x, batch=None):
    """Return the gradient of a log density in unconstrained space."""
    layout = problem.coordinates()
    x = x.clone().requires_grad_()
    with isolated(problem.dtype):
        values = layout.constrain(x)
        density = problem.log_density(values, values, batch)
        return torch.autograd.grad(density, x)[0]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 5, 7, 11])
@pytest.mark.parametrize("form", ["arrays", "loader"])
def test_the_gradients_of_an_epoch_add_up_to_that_of_all_rows(
    form, batch_size, shuffle
):
    """Batches that reach over into the next epoch do so once in B epochs of N rows."""
    case = problem("linear")
    built = Problem.build(case.program, case.data)
    steps = N
    if form == "loader":
        loader = DataLoader(
            Rows(case.data, dict), batch_size=batch_size, shuffle=shuffle
        )
        built = Problem.build(case.program, loader)
        steps = -(-N // batch_size)
    x = torch.tensor([0.3, -0.2, 0.1], dtype=DTYPE)
    rows, weights = built.batches(batch_size, seed=1).take(steps)
    mean = 0
    for step in range(steps):
        batch = built.batch_of(
            {name: values[step] for name, values in rows.items()},
            None if weights is None else weights[step],
        )
        mean += gradient(built, x, batch) / steps
    whole = gradient(Problem.build(case.program, case.data), x)
    torch.testing.assert_close(mean, whole)


def test_a_data_loader_that_shuffles_leaves_the_random_state():
    case = problem("linear")
    loader = DataLoader(Rows(case.data, dict), batch_size=5, shuffle=True)
    before = torch.get_rng_state()
    fit = probsl.fit(case.program, loader, probsl.MAP(max_steps=5))
    assert torch.equal(torch.get_rng_state(), before)
    assert fit.problem.size == N


def test_weights_do_not_leak_into_log_scores():
    case = problem("linear")
    fit = Pair("MAP", case).fit(weights=[3.0] * N)
    values = fit.point()
    exact = functools.partial(torch.distributions.Normal, validate_args=False)
    rows = exact(case.data["x"] @ values["w"], values["sigma"]).log_prob(case.data["y"])
    torch.testing.assert_close(probsl.log_score(fit, case.data), rows)
    assert fit.log_likelihood() == pytest.approx(3 * float(rows.sum()))
