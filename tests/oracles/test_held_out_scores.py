"""Scores of held-out rows on the splits of a public data set."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from references import arrays, cases

import probsl

CASE = cases("uci/uci.json")["yacht"]


def linear(x, y=None):
    w = pyro.sample("w", dist.ImproperUniform(constraints.real_vector, (), (7,)))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)


@pytest.mark.parametrize("split", range(CASE["splits"]))
def test_held_out_rows_have_the_score_of_least_squares(split):
    held = arrays(f"uci/{CASE['file']}")
    x, y, test = held["x"], held["y"], held[f"test_{split}"].long()
    x = torch.cat([torch.ones_like(x[:, :1]), x], 1)
    train = torch.ones(len(y), dtype=torch.bool)
    train[test] = False
    fit = probsl.fit(linear, {"x": x[train], "y": y[train]}, probsl.MLE())
    assert fit.status is probsl.Status.CONVERGED
    score = probsl.log_score(fit, {"x": x[test], "y": y[test]}).mean()
    error = (y[test] - x[test] @ fit.point()["w"]).square().mean().sqrt()
    # Published to six digits after the point.
    assert float(score) == pytest.approx(CASE["log_score"][split], abs=1e-6)
    assert float(error) == pytest.approx(CASE["rmse"][split], abs=1e-6)
