"""A search that goes on from its state is the search that was never stopped."""

import io
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import cycle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.distributions.constraints import positive
from torch.optim import LBFGS, SGD, Adam, RMSprop
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

import probsl
from probsl.data.loaded_rows import LoadedRows
from probsl.data.shuffled_rows import ShuffledRows
from probsl.engine.ending import Ending
from probsl.engine.steps.feed import NOISE, ROW, Feed
from probsl.engine.steps.first_order import FirstOrder
from probsl.engine.steps.state import SearchState
from probsl.engine.steps.stochastic import Watch, minimize_stochastic
from probsl.methods import noisy_search
from probsl.noise.streams import stream

N, D = 60, 3
X = torch.randn(N, D, generator=stream(0, "rows"), dtype=torch.float64)
Y = X @ torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64) + 0.3
START = torch.zeros(D, dtype=torch.float64)

HOW = {
    "Adam": FirstOrder(),
    "clipped Adam": FirstOrder(clip_norm=0.1),
    "SGD": FirstOrder(partial(SGD, lr=0.02, momentum=0.9)),
    "SGD StepLR": FirstOrder(
        partial(SGD, lr=0.05, momentum=0.9),
        partial(StepLR, step_size=70, gamma=0.7),
        clip_norm=0.5,
    ),
    "Adam OneCycleLR": FirstOrder(
        Adam, partial(OneCycleLR, max_lr=0.1, total_steps=2000)
    ),
    "RMSprop ReduceLROnPlateau": FirstOrder(
        partial(RMSprop, lr=0.01), partial(ReduceLROnPlateau, patience=5)
    ),
    "LBFGS": FirstOrder(partial(LBFGS, lr=0.1, max_iter=3)),
}


def shuffled():
    return ShuffledRows({"x": X, "y": Y}, N, 7, seed=3)


def loaded():
    loader = DataLoader(TensorDataset(X, Y), batch_size=9, shuffle=True)
    return LoadedRows(loader, N, 7, seed=3, read=as_rows)


def as_rows(batch):
    return dict(zip(("x", "y"), batch, strict=True))


def feed(rows=None, places=50, *, noisy=True):
    noise = normal if noisy else None
    return Feed(places, rows, noise, generator=stream(1, "noise"))


def normal(steps, generator):
    return torch.randn(steps, D, generator=generator).double()


def misfit(x, given):
    rows, y = given.get(f"{ROW}x", X), given.get(f"{ROW}y", Y)
    moved = x + 0.1 * given.get(NOISE, 0.0)
    return (y - rows @ moved).square().mean() + 0.01 * (x**4).sum()


def saved(state):
    """Return a state that went through a file, without running code from it."""
    buffer = io.BytesIO()
    torch.save(vars(state), buffer)
    buffer.seek(0)
    return SearchState(**torch.load(buffer, weights_only=True))


def the_same(one, other):
    assert torch.equal(one.x, other.x)
    # There may be NaN among them.
    assert np.array_equal(one.losses, other.losses, equal_nan=True)
    assert one.ending is other.ending
    assert one.remainder == other.remainder
    assert one.compiled_from == other.compiled_from


# In the middle of a block, at its end, and at the end of a window.
STEPS = (33, 100, 250)


def goes_on_as_if_never_stopped(run, steps=STEPS):
    """Check a search given as a function of the options `watch` and `state`."""
    states = {}

    def read(state):
        now = len(state().losses)
        if now in steps:
            states[now] = state()

    whole = run(watch=Watch(checkpoint=read))
    assert tuple(states) == steps
    for step, copied in zip(steps, cycle((saved, deepcopy)), strict=False):
        copy = copied(states[step])
        the_same(run(state=copy), whole)
        # Going on has not changed it.
        assert equal(vars(copy), vars(states[step]))
    return states, whole


def equal(one, other):
    """Whether nested values are the same."""
    if torch.is_tensor(one):
        nan = one.isnan() & other.isnan()
        return one.shape == other.shape and bool(((one == other) | nan).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.parametrize("kind", HOW)
def test_any_optimizer(kind):
    how = replace(HOW[kind], max_steps=270)
    exact = kind == "LBFGS"  # its line search needs the same objective in each call

    def run(**options):
        given = feed(None if exact else shuffled(), noisy=not exact)
        return minimize_stochastic(misfit, START, feed=given, how=how, **options)

    goes_on_as_if_never_stopped(run)


@pytest.mark.parametrize("compile", [1, 60])
@pytest.mark.parametrize("kind", ["Adam", "SGD StepLR"])
def test_compiled_steps(kind, compile):
    how = replace(HOW[kind], max_steps=270)

    def run(**options):
        given = feed(shuffled())
        return minimize_stochastic(
            misfit, START, feed=given, how=how, compile=compile, **options
        )

    _, whole = goes_on_as_if_never_stopped(run)
    assert whole.compiled_from == {1: 1, 60: 101}[compile]


def test_reading_the_state_changes_nothing():
    def run(**options):
        how = FirstOrder(max_steps=270)
        given = feed(shuffled())
        return minimize_stochastic(misfit, START, feed=given, how=how, **options)

    states, whole = goes_on_as_if_never_stopped(run)
    the_same(run(), whole)
    for step, state in states.items():
        stopped = run(watch=Watch(lambda now, *_, last=step: now == last))
        assert (stopped.ending, stopped.steps) == (Ending.INTERRUPTED, step)
        assert equal(vars(stopped.state), vars(state))


def test_up_to_the_end():
    """Through all stages, and verdicts that use up blocks of the feed."""

    def run(**options):
        return minimize_stochastic(misfit, START, feed=feed(), **options)

    whole = run()
    assert whole.ending is Ending.CONVERGED
    assert whole.state is None
    goes_on_as_if_never_stopped(run, (999, whole.steps - 250, whole.steps))


def test_more_steps_than_were_asked_for_at_first():
    """Whether the first search ended within a block, at its end, or at a window's."""

    def run(max_steps, **options):
        return minimize_stochastic(
            misfit,
            START,
            feed=feed(shuffled()),
            how=FirstOrder(max_steps=max_steps),
            **options,
        )

    whole = run(270)
    for steps in (130, 250):
        first = run(steps)
        assert first.ending is Ending.MAX_STEPS
        the_same(run(270, state=first.state), whole)
        the_same(run(steps, state=first.state), first)


def test_after_steps_that_were_not_finite():
    """And in the middle of what leads to a retreat."""

    def objective(x, given):
        broken = (given[NOISE][0] > 1.0) | (x[0] > 0.05)
        return misfit(x, given) * torch.where(broken, torch.nan, 1.0)

    def run(**options):
        return minimize_stochastic(
            objective,
            START,
            feed=feed(places=25),
            how=FirstOrder(max_steps=300),
            **options,
        )

    _, whole = goes_on_as_if_never_stopped(run, (1, 30, 75))
    # It did retreat, and then took steps again.
    assert np.isnan(whole.losses[10:25]).all()
    assert np.isfinite(whole.losses[25:50]).any()


@pytest.mark.parametrize("places", [1, 10])
def test_rows_in_blocks_of_the_buffer(places, monkeypatch):
    """Arrays that are large: some of their blocks are in a buffer, the rest is not."""
    monkeypatch.setattr("probsl.data.shuffled_rows._SMALL_BYTES", 0)
    monkeypatch.setattr("probsl.data.shuffled_rows._BLOCK_BYTES", 8 * D * 4)
    monkeypatch.setattr("probsl.data.shuffled_rows._BUFFER_BYTES", 8 * D * 12)
    rows = shuffled()
    for _ in range(40):
        state = deepcopy(rows.state())
        expected = [rows.take(places) for _ in range(3)]
        after = deepcopy(rows.state())
        for source in (shuffled(), rows):  # a new one, and one that went on
            source.restore(state)
            assert equal([source.take(places) for _ in range(3)], expected)
            assert equal(source.state(), after)


def test_rows_of_a_loader():
    def run(**options):
        return minimize_stochastic(
            misfit,
            START,
            feed=feed(loaded(), places=5),
            how=FirstOrder(max_steps=90),
            **options,
        )

    # Its epochs have nine batches.
    goes_on_as_if_never_stopped(run, (1, 33, 45, 46))


def test_a_loader_that_does_not_repeat_its_epochs_is_refused():
    class Changing(TensorDataset):
        def __getitems__(self, index):
            return [(X[i] + torch.rand(1, generator=NOISY), Y[i]) for i in index]

    NOISY = torch.Generator()
    loader = DataLoader(Changing(X, Y), batch_size=9)

    def run(**options):
        rows = LoadedRows(loader, N, 7, seed=3, read=as_rows)
        return minimize_stochastic(
            misfit, START, feed=feed(rows), how=FirstOrder(max_steps=90), **options
        )

    state = run(watch=Watch(lambda step, *_: step == 33)).state
    with pytest.raises(ValueError, match="a DataLoader whose epochs are the same"):
        run(state=state)


@pytest.mark.parametrize(
    ("how", "start", "places"),
    [
        (FirstOrder(SGD), START, 50),
        (FirstOrder(scheduler=partial(StepLR, step_size=9)), START, 50),
        (FirstOrder(), torch.zeros(D + 1), 50),
        (FirstOrder(), START, 25),
    ],
)
def test_the_state_of_another_search_is_refused(how, start, places):
    watch = Watch(lambda step, *_: step == 3)
    state = minimize_stochastic(misfit, START, feed=feed(), watch=watch).state
    with pytest.raises(ValueError, match="by Adam in 3 coordinates, in blocks of 50"):
        minimize_stochastic(
            misfit, start, feed=feed(places=places), how=how, state=state
        )


def linear(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(D), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)


class Dropping(pyro.nn.PyroModule):
    """A network with dropout, whose own parameters are fitted."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(D, 4), torch.nn.Dropout(0.5))

    def forward(self, x, y=None):
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("n", len(x)):
            pyro.sample("y", dist.Normal(self.net(x).sum(-1), sigma), obs=y)


def by_gamma(x, y=None):
    """A guide whose draws are no transformation of noise: torch's generator is used."""
    shape = pyro.param("shape", torch.tensor(2.0), constraint=positive)
    pyro.sample("sigma", dist.Gamma(shape, 2.0))
    loc = pyro.param("loc", torch.zeros(D))
    pyro.sample("w", dist.Normal(loc, 0.1).to_event(1))


def a_loader():
    tensors = TensorDataset(X, Y)
    return DataLoader(tensors, batch_size=9, shuffle=True)


ADAM = partial(Adam, lr=0.02)
FITS = {
    "SVI": (linear, probsl.SVI(AutoNormal, optimizer=ADAM, max_steps=270), {}),
    "SVI compiled": (
        linear,
        probsl.SVI(AutoNormal, optimizer=ADAM, max_steps=270, draws=1),
        {"compile": True},
    ),
    "SVI by gamma": (linear, probsl.SVI(by_gamma, max_steps=270), {}),
    "batches": (linear, probsl.MAP(max_steps=270), {"batch_size": 7}),
    "SVI in batches": (
        linear,
        probsl.SVI(AutoNormal, optimizer=partial(SGD, lr=1e-3), max_steps=270),
        {"batch_size": 7},
    ),
    "dropout": (Dropping(), probsl.MAP(max_steps=270), {"batch_size": 7}),
    "loader": (linear, probsl.MAP(max_steps=270), {"batch_size": 7}),
}


@pytest.mark.parametrize("kind", FITS)
def test_fits(kind, monkeypatch):
    """Of guides with noise, of dropout, in batches and of a DataLoader."""
    program, method, options = FITS[kind]
    options = {"compile": False, **options}

    def run(**more):
        found = []

        def minimized(*given, **known):
            found.append(minimize_stochastic(*given, **{**known, **more}))
            return found[-1]

        data = a_loader() if kind == "loader" else {"x": X, "y": Y}
        with monkeypatch.context() as patch:
            patch.setattr(noisy_search, "minimize_stochastic", minimized)
            probsl.fit(program, data, method, **options)
        return found[-1]

    goes_on_as_if_never_stopped(run, (133, 250))
