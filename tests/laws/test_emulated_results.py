"""What follows a fit on a device that is emulated, and what the user holds."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from both_devices import NOISY, fit_on, on_both, same, same_fit
from methods import DEEP
from programs import DTYPE, NET, TREND, problem
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

import probsl
from probsl.scores.leave_one_out import score_fitted_rows

# --- What follows a fit


# A few steps of a distribution give results like any others.
BEGUN = {} if DEEP else {"max_steps": 3}
FITS = {
    "linear": probsl.SVI(AutoNormal, **BEGUN),
    "own parameters": probsl.SVI(AutoNormal, **BEGUN),
    "mixture": probsl.MAP(),
    "centered groups": probsl.SVI(AutoMultivariateNormal, **BEGUN),
    "local scales": probsl.MAP(),
}


@pytest.mark.parametrize("name", FITS)
def test_what_follows_a_fit_is_that_on_the_cpu(name, device):
    case = problem(name)
    fit, plain = on_both(name, FITS[name])
    predicted = fit.predict(case.inputs, draws=4)
    assert {value.device for value in predicted.values()} == {device}
    same(predicted, plain.predict(case.inputs, draws=4))
    scores = [probsl.log_score(each, case.data, draws=20) for each in (fit, plain)]
    same({"score": scores[0]}, {"score": scores[1]})
    assert fit.log_likelihood() == pytest.approx(plain.log_likelihood())
    np.testing.assert_array_equal(fit.summary(), plain.summary())
    assert fit.problem.observed_digest() == plain.problem.observed_digest()
    left_out = [score_fitted_rows(each) for each in (fit, plain)]
    assert left_out[0].log_score == pytest.approx(left_out[1].log_score)
    if left_out[1].left_out is not None:
        elpd = [each.left_out.elpd for each in left_out]
        assert elpd[0] == pytest.approx(elpd[1])
    scores = probsl.compare({"device": fit, "cpu": plain}).scores
    assert scores["log score"].iloc[0] == pytest.approx(scores["log score"].iloc[1])


@pytest.mark.parametrize("name", ["own parameters", "mixture"])
def test_a_fit_is_exported_as_that_on_the_cpu(name, device):
    pytest.importorskip("arviz")
    fit, plain = on_both(name, FITS[name])
    found, expected = (probsl.to_arviz(each, draws=5) for each in (fit, plain))
    for group in ("posterior", "log_likelihood", "prior", "posterior_predictive"):
        for site, value in expected[group].items():
            np.testing.assert_array_equal(found[group][site], value)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("own parameters", probsl.MAP),
        ("linear", partial(probsl.SVI, AutoNormal, **BEGUN)),
    ],
    ids=["MAP", "SVI"],
)
def test_a_fit_goes_on_from_one_on_the_other_device(name, method, device):
    first = on_both(name, method(max_steps=2))
    plain = fit_on("cpu", name, method(start=first[1]))
    for start, where in ((first[0], "cpu"), (first[1], device)):
        found = fit_on(where, name, method(start=start))
        assert found.status is plain.status
        same({"losses": found.losses[:1]}, {"losses": plain.losses[:1]})
        same(found.point(), plain.point())


def test_a_fit_is_drawn_as_that_on_the_cpu(device):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    from probsl import plots

    fits = on_both("linear", probsl.SVI(AutoNormal, max_steps=2))
    for draw in (plots.plot_losses, plots.plot_forest, plots.plot_prior_posterior):
        heights = [np.ravel(draw(fit))[0].get_ylim() for fit in fits]
        pyplot.close("all")
        assert heights[0] == heights[1]


# --- What the user holds


def test_callbacks_are_given_points_on_the_device(device):
    seen = []

    def callback(step, loss, x):
        seen.append((step, type(loss), x.device))
        return step == 3

    for method in (probsl.MAP(), probsl.MAP(**NOISY), probsl.SVI(AutoNormal)):
        seen.clear()
        options = {"callbacks": [callback], "progress": True}
        fit = fit_on(device, "linear", method, **options)
        assert fit.status is probsl.Status.INTERRUPTED
        assert seen == [(step, float, device) for step in (1, 2, 3)]


def test_the_callers_modules_stay_where_and_as_they_are(device):
    def held():
        return {**NET.state_dict(prefix="net."), **TREND.state_dict(prefix="trend.")}

    before = {name: value.clone() for name, value in held().items()}
    for method in (probsl.MAP(), probsl.SVI(AutoNormal, **NOISY)):
        fit = fit_on(device, "own parameters", method)
        fit.predict(problem("own parameters").inputs, draws=2)
    assert {value.device.type for value in held().values()} == {"cpu"}
    same(held(), before)


class ByRows(nn.Module):
    """A guide that learns a slope from the rows by a network of its own."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)
        self.register_buffer("spread", torch.tensor([0.1, 0.2]))

    def forward(self, x, y=None):
        self.spread += 0
        pyro.sample("w", dist.Normal(self.net(x).mean(0), self.spread).to_event(1))
        pyro.sample("sigma", dist.LogNormal(0.0, 0.1))


def by_hand(x, y=None):
    loc = pyro.param("loc", torch.zeros(2, dtype=x.dtype))
    shift = WARP(x).mean()
    pyro.sample("w", dist.Normal(loc + shift, 0.1).to_event(1))
    pyro.sample("sigma", dist.LogNormal(0.0, 0.1))


WARP = nn.Linear(2, 1)


@pytest.mark.parametrize("guide", [ByRows, by_hand], ids=["module", "function"])
def test_a_guide_made_elsewhere_is_copied_to_the_device(guide, device):
    made = guide() if guide is ByRows else guide
    held = made if guide is ByRows else WARP
    before = {name: value.clone() for name, value in held.state_dict().items()}
    method = probsl.SVI(made, **NOISY)
    same_fit(*on_both("linear", method))
    assert {value.device.type for value in held.state_dict().values()} == {"cpu"}
    same(held.state_dict(), before)


def test_frozen_parameters_and_buffers_are_brought_to_the_device_once(device):
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval().requires_grad_(False)
    seen = []

    def program(x, y=None):
        seen.append(net[0].weight)
        features = net(x)
        w = pyro.sample("w", dist.Normal(features.new_zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(features @ w, 1.0), obs=y)

    def predictions():
        inputs = {"x": problem("linear").data["x"]}
        return [each.predict(inputs, draws=2) for each in fits]

    data = problem("linear").data
    fits = [
        probsl.fit(program, data, probsl.MAP(), device=where)
        for where in (device, "cpu")
    ]
    same_fit(*fits)
    assert len({id(weight) for weight in seen if weight.device == device}) == 1
    before = predictions()
    same(*before)
    net[0].weight += 1  # what the module has become is seen, too
    after = predictions()
    same(*after)
    assert not torch.equal(before[1]["y"], after[1]["y"])
    assert {value.device.type for value in net.state_dict().values()} == {"cpu"}


def test_a_laplace_prior_made_elsewhere_has_exact_zeros(device):
    prior = dist.Laplace(torch.tensor(0.0), torch.tensor(0.01))

    def program(y=None):
        mu = pyro.sample("mu", prior)
        with pyro.plate("data", 12):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    data = {"y": problem("linear").data["y"]}
    for where in (device, "cpu"):
        fit = probsl.fit(program, data, probsl.MAP(), device=where)
        assert fit.status is probsl.Status.CONVERGED
        assert float(fit.point()["mu"]) == 0


class Net(PyroModule):
    """A network whose priors are made with it, wherever that is."""

    def __init__(self):
        super().__init__()
        self.layer = PyroModule[nn.Linear](2, 3)
        spread = torch.full((3, 2), 2.0)
        self.layer.weight = PyroSample(dist.Normal(0.0, spread).to_event(2))
        self.layer.bias = PyroSample(
            dist.StudentT(3.0, torch.zeros(3), 1.0).to_event(1)
        )

    def forward(self, x, y=None):
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(1), 1.0).to_event(1))
        mean = self.layer(x).tanh().sum(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)


@pytest.mark.parametrize(
    "method", [probsl.MAP(), probsl.SVI(AutoNormal, **NOISY)], ids=["MAP", "SVI"]
)
def test_priors_that_a_network_holds_are_those_on_the_cpu(method, device):
    net, data = Net(), problem("linear").data
    fits = [
        probsl.fit(net, data, method, device=where, dtype=DTYPE, compile=False)
        for where in (device, "cpu")
    ]
    same_fit(*fits)
    predicted = [fit.predict({"x": data["x"]}, draws=4) for fit in fits]
    same(*predicted)
