"""Optimizers of points are values: whichever is named, the optimum is the same."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from methods import PAIRS, fitted

import probsl
from probsl import Status

OPTIMIZERS = (probsl.LBFGS(), probsl.TrustRegionNewton())
MAP_FITS = [p for p in PAIRS if p.method == "MAP"]
Y = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("pair", MAP_FITS, ids=str)
def test_every_optimizer_finds_the_optimum(pair, optimizer):
    expected, case = fitted(pair), pair.case
    if expected.status is not Status.CONVERGED:
        pytest.skip(f"the default ends {expected.status.name}: there is no optimum")
    method = probsl.MAP(optimizer=optimizer)
    fit = probsl.fit(case.program, case.data, method, **case.options)
    loss = float(expected.losses[-1])
    assert float(fit.losses[-1]) == pytest.approx(loss, rel=1e-7, abs=1e-7)
    assert fit.status is Status.CONVERGED


def redundant(x, y=None):
    """A regression in which two coefficients count only by their sum."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x * w.sum(), 1.0), obs=y)


def test_a_hessian_shows_what_the_data_leave_undetermined():
    status = {
        type(optimizer).__name__: probsl.fit(
            redundant, {"x": Y, "y": Y}, probsl.MLE(optimizer=optimizer)
        ).status
        for optimizer in OPTIMIZERS
    }
    assert status == {
        "LBFGS": Status.CONVERGED,
        "TrustRegionNewton": Status.UNIDENTIFIED,
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_several_starts_use_the_optimizer_that_is_named(optimizer):
    method = probsl.MAP(optimizer=optimizer, starts=5)
    fit = probsl.fit(redundant, {"x": Y, "y": Y}, method)
    assert fit.status is Status.CONVERGED
    assert fit.point()["w"].tolist() == pytest.approx([21 / 43, 21 / 43], rel=1e-6)
    assert [basin.count for basin in fit.basins] == [5]
