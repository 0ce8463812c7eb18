"""What `diagnose` finds, and what it says of it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from methods import PAIRS, Pair, fitted
from programs import problem

import probsl
from probsl import Status

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).double()
Y = X[:, 0] + 0.1 * torch.arange(40.0).double().sin()


def linear(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    unused = pyro.sample("unused", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w + 0 * unused, 1.0), obs=y)


def test_a_good_fit_has_no_findings():
    found = probsl.diagnose(fitted(Pair("MAP", problem("linear"))))
    assert len(found) == 0
    assert str(found) == "nothing found"


def test_free_directions_are_told_apart():
    x = torch.cat([X, 2 * X[:, :1] - X[:, 1:]], 1)
    fit = probsl.fit(linear, {"x": x, "y": Y}, probsl.MLE())
    assert fit.status is Status.UNIDENTIFIED
    found = {finding.about: finding for finding in probsl.diagnose(fit)}
    assert set(found) == {"w[0], w[1], w[2]", "unused"}
    assert "nothing in the data bears on it" in found["unused"].verdict
    combined = found["w[0], w[1], w[2]"]
    # The third column is twice the first less the second.
    assert "by +1, -0.5, -0.5" in combined.verdict
    assert "keep the prior" in combined.action
    assert "- unused: nothing" in str(probsl.diagnose(fit))


def test_columns_nearly_the_same_are_named():
    noise = (3.0 * torch.arange(40.0).double()).cos()
    x = torch.stack([X[:, 0], X[:, 0] + 1e-5 * noise, X[:, 1]], 1)

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    fit = probsl.fit(program, {"x": x, "y": Y}, probsl.MLE())
    (finding,) = probsl.diagnose(fit)
    assert set(finding.about.split(", ")) == {"w[0]", "w[1]"}
    assert finding.number > 1e10
    assert "rescale" in finding.action


def test_separated_classes_are_unbounded():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=w * x), obs=y)

    data = {"x": torch.tensor([-1.0, 1.0]), "y": torch.tensor([0.0, 1.0])}
    found = probsl.diagnose(probsl.fit(program, data, probsl.MLE()))
    assert any(f.about == "w" and "infinity" in f.verdict for f in found)


def test_another_optimum_is_found():
    def program(y=None):
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 10):
            pyro.sample("y", dist.Normal(a * a, 1.0), obs=y)

    data = {"y": torch.linspace(3.0, 5.0, 10).double()}
    found = probsl.diagnose(probsl.fit(program, data, probsl.MLE(starts=8)))
    assert any("another optimum" in f.verdict for f in found)


@pytest.mark.parametrize("pair", [p for p in PAIRS if p.is_point], ids=str)
def test_every_point_has_findings_or_none(pair):
    fit = fitted(pair)
    found = probsl.diagnose(fit)
    for finding in found:
        assert finding.about
        assert finding.action
    if fit.status is not Status.CONVERGED:
        assert len(found)


def test_influential_rows_of_a_distribution_are_found():
    def program(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 10):
            pyro.sample("y", dist.Normal(mu, 0.1), obs=y)

    y = torch.zeros(10).double()
    y[3] = 30.0
    fit = probsl.fit(program, {"y": y}, probsl.SVI())
    assert any("row 3" in f.about for f in probsl.diagnose(fit))
    with pytest.raises(TypeError, match="fit must be"):
        probsl.diagnose("fit")
