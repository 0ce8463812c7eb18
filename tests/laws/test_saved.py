"""A fit that was saved and loaded is the same fit, and a file cannot do harm."""

import dataclasses
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from functools import partial
from pathlib import Path

import emulation
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from methods import DEEP, PAIRS
from methods import fitted as fitted_pair
from pyro.infer.autoguide import AutoDiagonalNormal, AutoIAFNormal, AutoNormal
from saved_programs import (
    DATA,
    STRANGE,
    X,
    Y,
    digest,
    fit,
    fitted,
    mutated,
    places,
    program,
    replaced,
)
from torch import nn

import probsl
from probsl.export import saved_format
from probsl.export.saved_methods import NotSaved

TESTS = Path(__file__).parents[1]

# A point of every program, and distributions over latents of every shape; other methods
# end in the same.
_DISTRIBUTIONS = {
    "SVI AutoNormal-local scales",
    "SVI full rank-LKJ covariance",
    "SVI full rank-own parameters",
    "SVI full rank-simplex",
}
_SAVED = [
    pair
    for pair in PAIRS
    if DEEP or pair.method == "MAP" or str(pair) in _DISTRIBUTIONS
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.fit"


def same(found, expected):
    """Compare dicts of tensors bit by bit."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name].nan_to_num(), value.nan_to_num()), name


# --- The same fit


@pytest.mark.parametrize("pair", _SAVED, ids=str)
def test_a_loaded_fit_is_the_same(pair, path):
    before, case = fitted_pair(pair), pair.case
    before.save(path)
    loaded = probsl.load(path, case.program)
    same(loaded.point(), before.point())
    same(loaded.draw(3, seed=1), before.draw(3, seed=1))
    assert torch.equal(loaded.losses, before.losses)
    assert loaded.summary().equals(before.summary())
    assert (loaded.status, repr(loaded)) == (before.status, repr(before))
    for name in ("steps", "seconds", "note", "status_sites", "compiled_from", "seed"):
        assert getattr(loaded, name) == getattr(before, name)
    assert len(loaded.basins) == len(before.basins)
    if "rows" in case.has:
        same(loaded.predict(case.inputs, draws=4), before.predict(case.inputs, draws=4))
    # With its data it does all that the other does.
    loaded = probsl.load(path, case.program, case.data)
    same(loaded.point(), before.point())
    same(loaded.draw(2), before.draw(2))
    assert loaded.log_likelihood() == before.log_likelihood()
    if "rows" in case.has:
        scores = [
            probsl.log_score(each, case.data, draws=3) for each in (loaded, before)
        ]
        assert torch.equal(*scores)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Return what another process prints of three fits."""
    folder = tmp_path_factory.mktemp("saved")
    names = ("MAP", "MAP w=0.5", "SVI", "SVI AutoNormal")
    files = [str(folder / f"{name}.fit") for name in names]
    for name, file in zip(names, files, strict=True):
        fitted(name).save(file)
    script = str(TESTS / "saved_elsewhere.py")
    command = [sys.executable, script, "200" if DEEP else "10", *files]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    printed = json.loads(run.stdout)
    return dict(zip(names, printed["digests"], strict=True)), printed["left"]


def test_in_a_new_process_every_bit_is_the_same(elsewhere):
    digests, _ = elsewhere
    assert digests == {name: digest(fitted(name)) for name in digests}


def test_a_killed_save_leaves_the_old_file_or_the_new_one(elsewhere):
    _, left = elsewhere
    assert left["old"] + left["new"] == (200 if DEEP else 10)


@pytest.mark.parametrize("name", ["MAP", "SVI AutoNormal"])
def test_on_another_device_the_point_is_exact(name, path, monkeypatch):
    before = fitted(name)
    before.save(path)
    held = saved_format.read(path)
    held["bound"]["device"] = str(emulation.DEVICE)
    saved_format.write(path, held)
    with monkeypatch.context() as patches, emulation.emulated(patches):
        there = probsl.load(path, program)
        assert there.problem.device == emulation.DEVICE
        point = {name: value.cpu() for name, value in there.point().items()}
        drawn = {name: value.cpu() for name, value in there.draw(3).items()}
    same(point, before.point())
    for site, value in before.draw(3).items():
        torch.testing.assert_close(drawn[site], value, rtol=1e-5, atol=1e-5)
    # The device is not there.
    same(probsl.load(path, program).draw(3), before.draw(3))


def test_a_loaded_fit_can_be_saved_again(path):
    before = fitted("SVI")
    before.save(path)
    for data in (None, DATA):
        probsl.load(path, program, data).save(path)
    same(probsl.load(path, program).draw(3), before.draw(3))
    assert probsl.load(path, program, DATA).log_likelihood() == before.log_likelihood()


def test_a_fit_can_start_where_a_loaded_one_ended(path):
    fitted("SVI AutoNormal").save(path)
    loaded = probsl.load(path, program)
    again = fit(probsl.SVI(AutoNormal, start=loaded))
    assert again.steps <= loaded.steps
    again.save(path)
    assert "Fit(SVI" in probsl.load(path, program).method.start.text


# --- Data of every kind

TABLE = pd.DataFrame(
    {
        "group": pd.Categorical(["b", "a", "c"] * 4),
        "x": np.linspace(-1.0, 1.0, 12),
        "kind": pd.Categorical([2, 3] * 6),
    },
    index=[f"row {i}" for i in range(12)],
)


def grouped(group, x, kind=None, levels=3):
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("groups", levels):
        effect = pyro.sample("effect", dist.Normal(0.0, spread))
    pyro.deterministic("mean", x.mean() * spread)
    with pyro.plate("data", len(x)):
        logits = effect[group] * x
        pyro.sample("kind", dist.Bernoulli(logits=logits), obs=kind)


@pytest.mark.parametrize(
    "method", [probsl.MAP(), probsl.SVI(AutoNormal)], ids=["MAP", "SVI"]
)
def test_labels_are_saved_and_rows_are_not(method, path):
    before = probsl.fit(grouped, {**TABLE, "levels": 3}, method)
    before.save(path)
    loaded = probsl.load(path, grouped)
    new = {"group": ["c", "a"], "x": np.ones(2)}
    same(loaded.predict(new, draws=3), before.predict(new, draws=3))
    assert loaded.expected(TABLE[:3]).equals(before.expected(TABLE[:3]))
    assert "effect[b]" in loaded.summary().index
    held = saved_format.read(path)
    assert held["problem"]["arguments"]["x"] == {
        "shape": [12],
        "dtype": "torch.float64",
    }
    assert held["problem"]["arguments"]["levels"] == {"value": 3}
    with_data = probsl.load(path, grouped, {**TABLE, "levels": 3})
    same(with_data.draw(3), before.draw(3))
    assert with_data.summary().equals(before.summary())


def test_a_deterministic_site_of_the_data_needs_them(path):
    before = probsl.fit(grouped, TABLE, probsl.SVI(AutoNormal))
    before.save(path)
    loaded = probsl.load(path, grouped)
    assert loaded.point()["mean"] == before.point()["mean"]
    with pytest.raises(ValueError, match="deterministic site 'mean' depends; give"):
        loaded.draw(2)
    assert loaded.summary()["sd"].isna().tolist() == [False] * 4 + [True]


@pytest.mark.parametrize(
    "labels",
    [
        pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-05"]),
        pd.interval_range(0, 3),
        [f"label {i}" for i in range(3)],
    ],
    ids=["times", "ranges", "texts"],
)
def test_categories_of_every_kind_are_known_again(labels, path):
    group = pd.Categorical.from_codes([0, 1, 2] * 4, categories=labels)
    table = TABLE.assign(group=group)
    before = probsl.fit(grouped, table, probsl.MAP())
    before.save(path)
    loaded = probsl.load(path, grouped)
    assert loaded.problem.arguments.labels == before.problem.arguments.labels
    assert loaded.summary().equals(before.summary())


def test_many_labels_are_saved_in_tensors(path, monkeypatch):
    value = {"texts": tuple(map(str, range(3000))), "numbers": tuple(range(-5, 3000))}
    value["mixed"] = (*range(1500), "x")
    saved_format.write(path, value)
    assert saved_format.read(path) == value
    monkeypatch.setattr(saved_format, "_MAX_PARTS", 5000)
    with pytest.raises(ValueError, match="more than a file has room for"):
        saved_format.write(path, list(range(6000)))
    assert saved_format.read(path) == value


def test_dropped_rows_weights_and_batches_are_known_again(path):
    x = X.clone().numpy()
    x[2, 1] = np.nan
    weights = np.arange(1.0, 9.0)
    data = {"x": x, "y": Y}
    before = probsl.fit(
        program, data, probsl.MAP(), missing="drop", weights=weights, compile=False
    )
    before.save(path)
    loaded = probsl.load(path, program, data)
    assert torch.equal(loaded.problem.weights, before.problem.weights)
    assert loaded.log_likelihood() == before.log_likelihood()


def test_rows_of_a_loader_are_read_again(path):
    rows = torch.utils.data.TensorDataset(X, Y)
    loader = torch.utils.data.DataLoader(rows, batch_size=4, shuffle=True)
    method = probsl.MAP(max_steps=20)
    before = probsl.fit(program, loader, method, compile=False)
    before.save(path)
    loaded = probsl.load(path, program, loader)
    same(loaded.draw(2), before.draw(2))
    assert loaded.log_likelihood() == pytest.approx(before.log_likelihood())
    shorter = torch.utils.data.TensorDataset(X[1:], Y[1:])
    shorter = torch.utils.data.DataLoader(shorter, batch_size=4)
    with pytest.raises(ValueError, match="argument 'x' differs from the data"):
        probsl.load(path, program, shorter)


def test_a_trained_module_is_saved(path):
    def network(module):
        def run(x, y=None):
            scale = pyro.sample("scale", dist.HalfNormal(1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(module(x)[:, 0], scale), obs=y)

        return run

    def made(width):
        layers = nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1)
        return network(nn.Sequential(*layers).double())

    before = probsl.fit(made(3), DATA, probsl.MAP(max_steps=20), compile=False)
    before.save(path)
    loaded = probsl.load(path, made(3))
    new = {"x": X[:3]}
    same(loaded.predict(new, draws=3), before.predict(new, draws=3))
    with pytest.raises(ValueError, match=r"had shape \[3, 2\] .* and has \[4, 2\] now"):
        probsl.load(path, made(4))


# --- Guides and methods


def own_guide(x, y=None):
    loc = pyro.param("loc", torch.zeros(2))
    pyro.sample("w", dist.Normal(loc, 0.1).to_event(1))
    pyro.sample("scale", dist.Beta(2.0, 2.0))
    pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("groups", 3):
        pyro.sample("effect", dist.Normal(pyro.param("a", torch.zeros(3)), 0.1))


def amortized(x, y=None):
    pyro.param("loc", torch.zeros(2)).sum() + x.sum()
    own_guide(x)


def _diagonal(model):
    return AutoDiagonalNormal(model)


GUIDES = {
    "function": own_guide,
    "factory": _diagonal,
    "flow": partial(AutoIAFNormal, hidden_dim=[9]),
}


@pytest.mark.parametrize("name", GUIDES)
def test_an_own_guide_is_given_again(name, path):
    guide = GUIDES[name]
    before = fit(probsl.SVI(guide, max_steps=5))
    before.save(path)
    with pytest.raises(ValueError, match=r"is not in the file; give it again"):
        probsl.load(path, program)
    for data in (None, DATA):
        same(probsl.load(path, program, data, guide).draw(3), before.draw(3))
    with pytest.raises(ValueError, match=r"of the guide '.*' had .* give the guide"):
        probsl.load(path, program, guide=AutoNormal)


def test_a_guide_that_draws_other_values_is_refused(path):
    fit(probsl.SVI(own_guide, max_steps=5)).save(path)

    def shifted(x, y=None):
        with pyro.poutine.reparam(config={}):
            own_guide(x)

    def moved(x, y=None):
        loc = pyro.param("loc", torch.zeros(2))
        pyro.sample("w", dist.Normal(loc + 1.0, 0.1).to_event(1))
        pyro.sample("scale", dist.Beta(2.0, 2.0))
        pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("groups", 3):
            pyro.sample("effect", dist.Normal(pyro.param("a", torch.zeros(3)), 0.1))

    probsl.load(path, program, guide=shifted)
    with pytest.raises(ValueError, match="the guide draws other values of site 'w'"):
        probsl.load(path, program, guide=moved)


def test_a_guide_of_the_data_needs_them(path):
    before = fit(probsl.SVI(amortized, max_steps=5))
    before.save(path)
    with pytest.raises(ValueError, match="without its data, which this needs; give"):
        probsl.load(path, program, guide=amortized)
    same(probsl.load(path, program, DATA, amortized).draw(3), before.draw(3))


ADAM = partial(torch.optim.Adam, lr=0.1, betas=(0.8, 0.99))
DECAY = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)


@pytest.mark.parametrize(
    "method",
    [
        probsl.MLE(integrate=(), tolerance=1e-3, start={"scale": 1.0}, max_steps=2),
        probsl.MAP(prior_weight={"w": 0.5}, space="unconstrained"),
        probsl.MAP(optimizer=probsl.LBFGS(), max_steps=50),
        probsl.MAP(optimizer=torch.optim.Adam, max_steps=3),
        probsl.MAP(optimizer=ADAM, scheduler=DECAY, clip_norm=2.0, max_steps=3),
        probsl.SVI(partial(AutoNormal, init_scale=0.2), draws=3, max_steps=3),
    ],
    ids=range(6),
)
def test_options_are_saved(method, path):
    fit(method).save(path)
    assert repr(probsl.load(path, program).method) == repr(method)


def test_options_that_cannot_be_saved_are_shown(path):
    def optimizer(parameters):
        return torch.optim.Adam(parameters, lr=0.1)

    fit(probsl.MAP(optimizer=optimizer, max_steps=3)).save(path)
    method = probsl.load(path, program).method
    assert isinstance(method.optimizer, NotSaved)
    assert "optimizer at 0x" in repr(method)
    with pytest.raises(ValueError, match="was not saved with the fit; make a method"):
        fit(method)


class Twice:
    def run(self, problem, run):
        return probsl.MAP().run(problem, run)


def test_a_method_of_the_user_is_shown_and_not_run(path):
    before = fit(Twice())
    before.save(path)
    loaded = probsl.load(path, program)
    assert repr(loaded).startswith("Fit(Twice")
    same(loaded.point(), before.point())
    with pytest.raises(ValueError, match="was not saved with the fit"):
        fit(loaded.method)


def test_a_posterior_of_the_user_is_refused(path):
    class Mine:
        own = {}
        is_point = True

    before = dataclasses.replace(fitted("MAP"), posterior=Mine())
    with pytest.raises(
        TypeError, match="posterior is a Mine, and only points and guides"
    ):
        before.save(path)
    assert not path.exists()


# --- What is refused


@pytest.fixture
def loaded(path):
    fitted("SVI AutoNormal").save(path)
    return probsl.load(path, program)


@pytest.mark.parametrize(
    "use",
    [
        lambda loaded: loaded.log_likelihood(),
        lambda loaded: probsl.compare({"one": loaded, "same": loaded}),
        probsl.to_arviz,
        lambda loaded: probsl.fit(loaded.problem, None, probsl.MAP()),
        probsl.plot_prior_posterior,
        lambda loaded: loaded.posterior.target.log_density(
            loaded.posterior.point(), loaded.posterior.own
        ),
    ],
    ids=["log likelihood", "compare", "arviz", "fit", "prior", "density"],
)
def test_what_needs_the_data_says_so(loaded, use):
    with pytest.raises(
        ValueError, match=r"loaded without its data, .*; give them: probsl\.load"
    ):
        use(loaded)


def changed(
    width=2, scale=None, drop=False, more=False, noise=dist.Normal, effect="latent"
):
    def run(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(width), 1.0).to_event(1))
        spread = pyro.sample("scale", scale or dist.Uniform(0.0, 3.0))
        if not drop:
            pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        if more:
            pyro.sample("more", dist.Normal(0.0, 1.0))
        pyro.param("shift", torch.tensor(1.0), constraint=dist.constraints.positive)
        pyro.deterministic("double", 2 * w)
        with pyro.plate("groups", 3):
            given = None if effect == "latent" else torch.zeros(3)
            pyro.sample("effect", dist.Normal(0.0, 1.0), obs=given)
        with pyro.plate("data", len(x)):
            pyro.sample("y", noise(x @ w[:2], spread), obs=y)

    return run


CHANGES = {
    "shape": ({"width": 3}, r"site 'w' had shape \[2\] .* and has \[3\] now"),
    "distribution": (
        {"scale": dist.HalfNormal(1.0)},
        "site 'scale' had distribution Uniform .* and has HalfNormal now",
    ),
    "support": (
        {"scale": dist.Uniform(0.0, 4.0)},
        r"site 'scale' had support Interval.*3\.0\) .* and has Interval.*4\.0\) now",
    ),
    "absent": ({"drop": True}, "site 'share' was in the program when .* is not now"),
    "new": ({"more": True}, "site 'more' was not in the program when it was fitted"),
    "likelihood": (
        {"noise": dist.Cauchy},
        "site 'y' had distribution Normal .* and has Cauchy now",
    ),
    "observed": ({"effect": "observed"}, "site 'effect' was latent .* is observed now"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_program_is_refused_by_its_site(change, path):
    options, words = CHANGES[change]
    fitted("MAP").save(path)
    other = changed(**options)
    for use in (
        lambda: probsl.load(path, other, DATA),
        lambda: probsl.load(path, other).predict({"x": X}, draws=2),
        lambda: probsl.log_score(probsl.load(path, other), DATA),
    ):
        with pytest.raises(ValueError, match=words):
            use()


def _slope(spread=1.0, factor=1.0, net=None, by_chance=False):
    net = net or nn.Identity()

    def run(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), spread).to_event(1))
        noise = torch.rand(()) if by_chance else 1.0
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(factor * net(x) @ w, noise + 1.0), obs=y)

    return run


@pytest.mark.parametrize(
    ("other", "site"), [(_slope(spread=2.0), "w"), (_slope(factor=2.0), "y")]
)
@pytest.mark.parametrize("data", [None, DATA], ids=["without", "with"])
def test_another_density_is_refused_by_its_site(other, site, data, path):
    probsl.fit(_slope(), DATA, probsl.MAP()).save(path)
    probsl.load(path, _slope(), data)
    with pytest.raises(ValueError, match=f"site '{site}' had another log density"):
        probsl.load(path, other, data)


def test_a_program_that_draws_by_itself_is_not_compared_by_its_draws(path):
    probsl.fit(_slope(by_chance=True), DATA, probsl.MAP(max_steps=3)).save(path)
    kept = probsl.load(path, _slope(by_chance=True))
    assert kept.point().keys() == {"w"}
    with pytest.raises(ValueError, match="site 'w' had another log density"):
        probsl.load(path, _slope(by_chance=True, spread=2.0))


def _layer(seed, frozen):
    net = nn.Linear(2, 2, dtype=X.dtype).requires_grad_(not frozen)
    with torch.no_grad():
        net.weight.copy_(torch.eye(2) * seed)
        net.bias.fill_(0.0)
    return net


def test_what_a_fit_does_not_change_must_be_the_same(path):
    probsl.fit(_slope(net=_layer(1, True)), DATA, probsl.MAP()).save(path)
    with pytest.raises(ValueError, match=r"'net.weight', which no fit changes"):
        probsl.load(path, _slope(net=_layer(2, True)))
    method = probsl.MAP(max_steps=2)
    before = probsl.fit(_slope(net=_layer(1, False)), DATA, method)
    before.save(path)
    loaded = probsl.load(path, _slope(net=_layer(2, False)))
    same(loaded.predict({"x": X}, draws=2), before.predict({"x": X}, draws=2))


def test_a_program_that_runs_on_its_data_only_is_loaded_without_them(path):
    def picky(x, y=None):
        assert torch.equal(x, X)
        return _slope()(x, y)

    before = probsl.fit(picky, DATA, probsl.SVI())
    before.save(path)
    loaded = probsl.load(path, picky)
    same(loaded.draw(2), before.draw(2))
    same(loaded.predict({"x": X}, draws=2), before.predict({"x": X}, draws=2))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"x": X, "y": Y + 1}, "argument 'y' differs from the data that were fitted"),
        ({"x": X[:5], "y": Y[:5]}, "argument 'x' differs from the data"),
        ({"x": X.flip(0), "y": Y}, "argument 'x' differs from the data"),
    ],
)
def test_other_data_are_refused_by_their_argument(data, words, path):
    fitted("MAP").save(path)
    with pytest.raises(ValueError, match=words):
        probsl.load(path, program, data)


def test_a_guide_for_a_point_is_refused(path):
    fitted("MAP").save(path)
    with pytest.raises(ValueError, match="a point, which has no guide"):
        probsl.load(path, program, guide=AutoNormal)


# --- Hostile files


def _with_header(header, content=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def _with_tensor(**entry):
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **entry}
    metadata = {"probsl": "{}", "sha256": "0" * 64}
    return _with_header({"__metadata__": metadata, "t": tensor}, bytes(4))


class Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was read')",)


def _zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("../../outside", bytes(50_000_000))


HOSTILE = {
    "empty": b"",
    "text": b"a fit",
    "pickle": pickle.dumps(Harmful()),
    "long header": struct.pack("<Q", 2**62) + b"{}",
    "no header": struct.pack("<Q", 0) + b"{}",
    "no JSON": _with_header(b"{" * 1000),
    "no Unicode": _with_header(b"\xff" * 1000),
    "deep JSON": _with_header(b"[" * 200_000),
    "large JSON": _with_header(b"[" + b"[]," * 4_000_000 + b"[]]"),
    "no metadata": _with_header({}),
    "wrong metadata": _with_header({"__metadata__": {"probsl": 1, "sha256": 2}}),
    "huge shape": _with_tensor(shape=[2**40, 2**20]),
    "huge tensor": _with_tensor(shape=[10**12], data_offsets=[0, 4 * 10**12]),
    "overflowing shape": _with_tensor(shape=[2**63, 2**63]),
    "negative shape": _with_tensor(shape=[-1]),
    "shape of texts": _with_tensor(shape=["1"]),
    "wrong dtype": _with_tensor(dtype="C64"),
    "other dtype": _with_tensor(dtype="F64"),
    "outside": _with_tensor(data_offsets=[4, 8]),
    "path": _with_header({"__metadata__": {}, "../../outside": {}}),
}


@pytest.mark.parametrize("kind", [*HOSTILE, "zip bomb", "truncated", "longer"])
def test_a_hostile_file_is_refused_in_little_memory(kind, path):
    if kind == "zip bomb":
        _zip_bomb(path)
    elif kind in ("truncated", "longer"):
        fitted("MAP").save(path)
        content = path.read_bytes()
        path.write_bytes(content[:-9] if kind == "truncated" else content + b"\0")
    else:
        path.write_bytes(HOSTILE[kind])
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="is not a fit as probsl saved it"):
            probsl.load(path, program)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000 + 4 * path.stat().st_size
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="files without holes")
def test_a_file_of_holes_is_not_read(path):
    size = 1 << 38
    start = _with_tensor(shape=[size // 4], data_offsets=[0, size])[:-4]
    path.write_bytes(start)
    os.truncate(path, len(start) + size)
    with pytest.raises(ValueError, match="nearly all of it is a hole"):
        probsl.load(path, program)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError):
        probsl.load(tmp_path, program)
    with pytest.raises(FileNotFoundError):
        probsl.load(tmp_path / "nothing", program)
    with pytest.raises(ValueError, match="it is not a regular file"):
        probsl.load("/dev/zero", program)


def test_a_newer_format_is_named(path):
    fitted("MAP").save(path)
    saved_format.write(path, {**saved_format.read(path), "version": 99})
    with pytest.raises(ValueError, match=r"format 99.*update probsl"):
        probsl.load(path, program)


@pytest.mark.parametrize("name", ["MAP", "SVI"])
def test_every_mutation_of_a_file_is_found(name, path):
    fitted(name).save(path)
    content, rng = path.read_bytes(), random.Random(0)
    for _ in range(5000 if DEEP else 250):
        other = mutated(content, rng)
        if other == content:
            continue
        path.write_bytes(other)
        with pytest.raises(ValueError, match="is not a fit as probsl saved it"):
            probsl.load(path, program)


@pytest.mark.parametrize("name", ["MAP", "SVI AutoNormal"])
def test_a_file_that_states_nonsense_is_refused_or_harmless(name, path):
    fitted(name).save(path)
    held, rng = saved_format.read(path), random.Random(1)
    parts, refused = list(places(held))[1:], 0
    tries = 5000 if DEEP else 60
    for _ in range(tries):
        new = rng.choice([*STRANGE, replaced])
        saved_format.write(path, replaced(held, rng.choice(parts), new))
        try:
            probsl.load(path, program)
        except ValueError:
            refused += 1
    assert tries / 2 < refused < tries


# --- Interrupted saves


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_old_file(step, error, path, monkeypatch):
    fitted("MAP").save(path)
    before = path.read_bytes()

    def fails(*_):
        raise error

    owner = saved_format.os if step == "fsync" else Path
    monkeypatch.setattr(owner, step, fails)
    with pytest.raises(type(error)):
        fitted("MAP w=0.5").save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


# --- Files of older versions

STORED = TESTS / "unit" / "saved"


@pytest.mark.parametrize("name", ["version1-map.fit", "version1-svi.fit"])
def test_files_of_all_versions_can_be_read(name):
    expected = json.loads((STORED / name).with_suffix(".json").read_text())
    for data in (None, DATA):
        loaded = probsl.load(STORED / name, program, data)
        found = {"point": loaded.point(), "draws": loaded.draw(2)}
        for kind, values in expected.items():
            assert values.keys() == found[kind].keys()
            for site, value in values.items():
                np.testing.assert_allclose(found[kind][site], value, 1e-5, 1e-8)
