"""A fit on a device that is emulated is that on the CPU."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from both_devices import FEW, NOISY, fit_on, on_both, same, same_fit
from methods import DEEP, PAIRS
from programs import problem
from pyro.infer.autoguide import (
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import probsl
from probsl.data import binding, shuffled_rows
from probsl.program.problem import Problem

# The mode of every program that makes or keeps tensors in a way of its own, and of the
# distributions each way through the code once: emulation takes its time.
MODES = {
    "lasso",
    "linear",
    "LKJ covariance",
    "local scales",
    "mixture",
    "mixed model",
    "own parameters",
    "sequential plate",
    "simplex",
}
CHOSEN = [
    p
    for p in PAIRS
    if (p.method == "MAP" and (DEEP or p.case.name in MODES))
    or (p.method, p.case.name)
    in {
        ("SVI AutoNormal", "own parameters"),
        ("SVI AutoNormal", "sequential plate"),
        ("SVI full rank", "simplex"),
    }
    or (
        DEEP
        and p.case.name == "linear"
        and p.method in ("SVI AutoNormal", "SVI full rank")
    )
]


# --- Every program


@pytest.mark.parametrize("pair", CHOSEN, ids=str)
def test_a_fit_is_that_on_the_cpu(pair, device):
    same_fit(pair.fit(device=device), pair.fit(device="cpu"))


STEPS = {"MAP": probsl.MAP(**NOISY), "SVI": probsl.SVI(None, **NOISY)}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        (name, method)
        for number, name in enumerate(["lasso", "mixture", "simplex", "own parameters"])
        for method in (STEPS if DEEP else [[*STEPS][number % 2]])
    ],
)
def test_noisy_steps_are_those_on_the_cpu(name, method, device):
    same_fit(*on_both(name, STEPS[method]))


# --- Methods and their options


@pytest.mark.parametrize(
    "method",
    [
        probsl.SVI(AutoLowRankMultivariateNormal, max_steps=4),
        probsl.SVI(AutoMultivariateNormal, **NOISY),
        probsl.SVI(AutoIAFNormal, **NOISY),
        probsl.SVI(AutoNormal, draws=3, **NOISY),
        probsl.SVI(AutoNormal, start={"w": [1.0, 0.0]}),
        probsl.MAP(prior_weight={"w": 0.5}, start={"sigma": 2.0}),
        probsl.MAP(starts=4),
        probsl.MAP(starts=2, **NOISY),
        probsl.MAP(optimizer=torch.optim.SGD, max_steps=FEW),
        probsl.MAP(optimizer=torch.optim.LBFGS, max_steps=3),
        probsl.MAP(optimizer=torch.optim.AdamW, clip_norm=0.1, max_steps=FEW),
        probsl.MAP(clip_norm=0.1, **NOISY),
        probsl.MAP(
            scheduler=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9),
            max_steps=FEW,
        ),
        probsl.MAP(scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau, max_steps=FEW),
    ],
    ids=lambda method: str(method)[:70],
)
def test_every_option_of_a_method_is_that_on_the_cpu(method, device):
    same_fit(*on_both("linear", method))


def test_a_penalty_with_a_kink_can_be_searched_from_several_starts(device):
    same_fit(*on_both("lasso", probsl.MAP(starts=3)))


# --- Rows


def mapped(path):
    """Return the data of the linear program as arrays that are mapped from disk."""
    found = {}
    for name, value in problem("linear").data.items():
        np.save(path / f"{name}.npy", np.tile(value.numpy(), (3, 1)[: value.ndim]))
        found[name] = np.load(path / f"{name}.npy", mmap_mode="r")
    return found


def loader(**options):
    data = TensorDataset(*problem("linear").data.values())
    return DataLoader(data, batch_size=5, **options)


WEIGHTS = np.linspace(0.0, 2.0, 12)


@pytest.mark.parametrize("method", [probsl.MAP(**NOISY), probsl.SVI(None, **NOISY)])
@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 5},
        {"batch_size": 5, "weights": WEIGHTS},
        {"data": loader},
        {"data": partial(loader, shuffle=True, drop_last=True)},
    ],
    ids=["batches", "weighted batches", "loader", "shuffling loader"],
)
def test_batches_are_those_on_the_cpu(method, options, device):
    same_fit(*on_both("linear", method, **options))


@pytest.mark.parametrize("block", [False, True])
def test_batches_of_arrays_on_disk_are_those_on_the_cpu(
    block, device, tmp_path, monkeypatch
):
    monkeypatch.setattr(binding, "_AT_HAND", 10)
    if block:
        monkeypatch.setattr(shuffled_rows, "_SMALL_BYTES", 0)
        monkeypatch.setattr(shuffled_rows, "_BLOCK_BYTES", 64)
        monkeypatch.setattr(shuffled_rows, "_BUFFER_BYTES", 256)
    data = partial(mapped, tmp_path)
    found, plain = on_both(
        "linear", probsl.MAP(**NOISY), data, batch_size=4, weights=np.ones(36)
    )
    assert not found.problem.data.complete
    same_fit(found, plain)
    assert found.log_likelihood() == pytest.approx(plain.log_likelihood())


@pytest.mark.parametrize("method", [probsl.MAP(), probsl.SVI(AutoNormal, max_steps=2)])
def test_weighted_rows_are_those_on_the_cpu(method, device):
    same_fit(*on_both("local scales", method, weights=WEIGHTS))


def test_the_device_of_data_or_parameters_is_that_of_the_fit(device):
    case = problem("linear")
    plain = fit_on("cpu", "linear", probsl.MAP())
    there = {name: value.to(device) for name, value in case.data.items()}
    for data, where, expected in (
        (there, None, device),
        (there, "cpu", torch.device("cpu")),
        ({**case.data, "x": there["x"]}, None, device),
    ):
        fit = probsl.fit(case.program, data, probsl.MAP(), device=where)
        assert {value.device for value in fit.point().values()} == {expected}
        same(fit.point(), plain.point())
    net = nn.Linear(2, 1).to(device)

    def program(x, y=None):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(net(x)[:, 0], 1.0), obs=y)

    assert Problem.build(program, case.data).device == device
    batches = {"batch_size": 5, "weights": torch.ones(12).to(device)}
    moved = probsl.fit(case.program, there, probsl.MAP(**NOISY), **batches)
    same_fit(moved, fit_on("cpu", "linear", probsl.MAP(**NOISY), batch_size=5))


def test_the_emulated_device_refuses_what_is_elsewhere(device):
    constant = torch.ones(10)

    def program(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10):
            pyro.sample("y", dist.Normal(mu * constant, 1.0), obs=y)

    with pytest.raises(RuntimeError, match="same device") as refusal:
        probsl.fit(program, {"y": torch.ones(10)}, probsl.MAP(), device=device)
    assert "constant.to(x.device)" in str(refusal.value.__notes__)


def test_the_emulated_device_refuses_a_generator_that_is_elsewhere(device):
    generator = torch.Generator("cpu").manual_seed(0)
    with pytest.raises(RuntimeError, match="generator of the CPU"):
        torch.randn(2, generator=generator, device=device)
    with pytest.raises(RuntimeError, match="generator of the CPU"):
        torch.zeros(2, device=device).normal_(generator=generator)
