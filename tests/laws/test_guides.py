"""Every form of guide that people write, and what becomes of it."""

import copy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from methods import ADAM, DEEP, Pair, fitted
from programs import DTYPE, linear, problem
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
    init_to_value,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import constraints

import probsl
from probsl import Status

CASE = problem("linear")
ZERO = torch.zeros(2, dtype=DTYPE)
ONE = torch.ones((), dtype=DTYPE)


def two_guides(program):
    """One guide for the coefficients, another for the noise."""
    guide = AutoGuideList(program)
    guide.append(AutoMultivariateNormal(poutine.block(program, expose=["w"])))
    guide.append(AutoNormal(poutine.block(program, expose=["sigma"])))
    return guide


def a_flow(program):
    flow = partial(dist.transforms.affine_autoregressive, hidden_dims=[8])
    return AutoNormalizingFlow(program, flow)


def by_hand(x, y=None):
    """A guide with the program's arguments."""
    loc = pyro.param("loc", ZERO.clone)
    scale = pyro.param(
        "scale", lambda: 0.3 * (ZERO + 1), constraint=constraints.positive
    )
    shape = pyro.param(
        "shape", lambda: 2 * ONE, constraint=constraints.greater_than(1.0)
    )
    pyro.sample("w", dist.Normal(loc, scale).to_event(1))
    pyro.sample("sigma", dist.LogNormal(-shape, 0.2))


class ModuleGuide(nn.Module):
    """A guide with parameters of torch's."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(ZERO.clone())
        self.log_scale = nn.Parameter(torch.full((3,), -1.0, dtype=DTYPE))
        self.log_sigma = nn.Parameter(-ONE)

    def forward(self, x, y=None):
        scale = self.log_scale.exp()
        pyro.sample("w", dist.Normal(self.loc, scale[:2]).to_event(1))
        pyro.sample("sigma", dist.LogNormal(self.log_sigma, scale[2]))


class PyroGuide(PyroModule):
    """A guide with constrained parameters, and a site that is an attribute."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(ZERO.clone())
        self.scale = PyroParam(0.3 * (ZERO + 1), constraint=constraints.positive)
        self.center = nn.Parameter(-ONE)
        self.w = PyroSample(lambda self: dist.Normal(self.loc, self.scale).to_event(1))
        self.sigma = PyroSample(lambda self: dist.LogNormal(self.center, 0.2))

    def forward(self, x, y=None):
        return self.w, self.sigma


def an_instance():
    return AutoNormal(linear, init_scale=0.2)


FORMS = {
    "class": AutoNormal,
    "diagonal": AutoDiagonalNormal,
    "full rank": AutoMultivariateNormal,
    "partial": partial(AutoLowRankMultivariateNormal, rank=1),
    "partial with a start": partial(
        AutoNormal,
        init_loc_fn=init_to_value(values={"w": ZERO, "sigma": ONE}),
    ),
    "function of the program": two_guides,
    "lambda": lambda program: AutoNormal(program),  # noqa: PLW0108
    "instance": an_instance(),
    "list instance": two_guides(linear),
    "flow": partial(AutoIAFNormal, hidden_dim=[4]),
    "normalizing flow": a_flow,
    "guide function": by_hand,
    "module": ModuleGuide(),
    "Pyro module": PyroGuide(),
}
NAMES = {
    "class": "AutoNormal",
    "partial": "AutoLowRankMultivariateNormal",
    "instance": "AutoNormal",
    "list instance": "AutoGuideList",
    "flow": "AutoIAFNormal",
    "guide function": "by_hand",
    "module": "ModuleGuide",
}
# Flows take long to train; here it is enough that they take steps.
FEW_STEPS = {"flow", "normalizing flow"}


def method_of(form):
    if form in FEW_STEPS:
        return probsl.SVI(FORMS[form], optimizer=ADAM, max_steps=150)
    return probsl.SVI(FORMS[form])


@pytest.fixture(scope="module")
def fits():
    """Return the fit of a form; it is made once."""
    made = {}

    def fit_of(form):
        if form not in made:
            made[form] = probsl.fit(linear, CASE.data, method_of(form))
        return made[form]

    return fit_of


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_guide_finds_the_posterior(fits, form):
    """Means within a fraction of the full-rank posterior's standard deviations."""
    fit = fits(form)
    if form in FEW_STEPS:
        assert fit.status is Status.MAX_STEPS
        assert fit.losses[-50:].mean() < fit.losses[:50].mean()
    else:
        exact = fitted(Pair("SVI full rank", CASE)).summary()
        assert fit.status is Status.CONVERGED
        distance = (fit.summary()["estimate"] - exact["estimate"]).abs() / exact["sd"]
        assert (distance < 0.25).all()
        assert (fit.summary()["sd"] / exact["sd"]).between(0.4, 1.7).all()
    draws = fit.draw(6)
    assert draws["w"].shape == (6, 2)
    assert (draws["sigma"] > 0).all()
    assert {v.dtype for v in draws.values()} == {DTYPE}


@pytest.mark.parametrize("form", NAMES)
def test_the_note_names_the_guide(fits, form):
    note = fits(form).note
    assert f"guide {NAMES[form]}," in note
    assert "chosen" not in note


def test_the_note_says_what_was_chosen():
    note = fitted(Pair("SVI chosen", CASE)).note
    assert "AutoMultivariateNormal (chosen)" in note


@pytest.mark.parametrize("form", ["function of the program", "instance", "module"])
def test_the_same_guide_gives_the_same_fit(fits, form):
    again = probsl.fit(linear, CASE.data, method_of(form))
    assert torch.equal(again.losses, fits(form).losses)


def snapshot(guide):
    """Return what a guide holds, with the identity of its tensors."""
    tensors = {**dict(guide.named_parameters()), **dict(guide.named_buffers())}
    state = {
        n: (id(t), t.tolist(), t.requires_grad, t.grad) for n, t in tensors.items()
    }
    models = getattr(guide, "_model", None)
    prototype = getattr(guide, "prototype_trace", None)
    return state, guide.training, models, prototype


@pytest.mark.parametrize("form", ["instance", "list instance", "module", "Pyro module"])
def test_the_callers_guide_is_not_trained(fits, form):
    guide = FORMS[form]
    before = snapshot(guide)
    probsl.fit(linear, CASE.data, probsl.SVI(guide, max_steps=3))
    assert snapshot(guide) == before


def test_a_guide_that_was_used_before_begins_where_it_is():
    guide = an_instance()
    with pyro.get_param_store().scope():
        guide(**CASE.data)
        with torch.no_grad():
            guide.locs.w.fill_(0.7)
        before = snapshot(guide)
        first = []
        probsl.fit(
            linear,
            CASE.data,
            probsl.SVI(guide),
            callbacks=[lambda step, loss, x: first.append(x.clone()) or True],
        )
        fit = probsl.fit(linear, CASE.data, probsl.SVI(guide, max_steps=1))
        assert snapshot(guide) == before
    # One step has not left the start altogether.
    assert len(first) == 1
    assert fit.status is Status.MAX_STEPS


def counts(y=None):
    rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
    with pyro.plate("days", 3):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def gamma_guide(y=None):
    shape = pyro.param("shape", 5 * ONE, constraint=constraints.positive)
    rate = pyro.param("rate_of_rate", 3 * ONE, constraint=constraints.positive)
    pyro.sample("rate", dist.Gamma(shape, rate))


def test_a_guide_that_no_standard_noise_drives_finds_the_exact_posterior():
    """Gamma(3, 2) and three counts that add up to six: Gamma(9, 5)."""
    data = {"y": torch.tensor([2.0, 3.0, 1.0], dtype=DTYPE)}
    # Its thousands of steps take ten seconds.
    few = {} if DEEP else {"optimizer": ADAM, "max_steps": 1000}
    fit = probsl.fit(counts, data, probsl.SVI(gamma_guide, **few))
    assert fit.status is (Status.CONVERGED if DEEP else Status.MAX_STEPS)
    assert "noisy steps" in fit.note
    # Adam's last stages scatter by some hundredths; a mean-field guide of the logarithm
    # would be as far off in the standard deviation alone.
    line = fit.summary().loc["rate"]
    assert line["estimate"] == pytest.approx(1.8, abs=0.06)
    assert line["sd"] == pytest.approx(0.6, abs=0.06)
    # At the exact posterior the bound is the evidence, whatever the draw.
    evidence = (
        dist.Gamma(3.0, 2.0).log_prob(ONE)
        + dist.Poisson(ONE).log_prob(data["y"]).sum()
        - dist.Gamma(9.0, 5.0).log_prob(ONE)
    )
    bound = -float(fit.losses[-50:].mean())
    assert bound == pytest.approx(float(evidence), abs=0.02 if DEEP else 0.1)


def test_a_delta_guide_is_a_point_of_the_guides():
    fit = probsl.fit(linear, CASE.data, probsl.SVI(AutoDelta))
    draws = fit.draw(4)
    assert all((v == v[0]).all() for v in draws.values())


def test_a_guide_may_learn_from_the_data():
    """An amortized guide: the latents of a row are read off the row."""

    def program(x, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("y", dist.Normal(z + x, 1.0), obs=y)

    def guide(x, y=None):
        slope = pyro.param("slope", 0 * ONE)
        scale = pyro.param("scale", ONE, constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * (y - x), scale))

    data = {"x": CASE.data["x"][:, 1], "y": CASE.data["y"]}
    fit = probsl.fit(program, data, probsl.SVI(guide))
    assert fit.status is Status.CONVERGED
    # Precision 2, so half of the residual, and a standard deviation of 1 / sqrt(2).
    expected = (data["y"] - data["x"]) / 2
    torch.testing.assert_close(fit.point()["z"], expected, rtol=0, atol=0.01)
    assert fit.summary()["sd"].to_numpy() == pytest.approx(0.5**0.5, abs=0.01)


WRONG = {
    "lacks a site": (
        lambda x, y=None: pyro.sample("sigma", dist.LogNormal(-ONE, 1.0)),
        "lacks 'w'",
    ),
    "has a site too many": (
        lambda x, y=None: (by_hand(x), pyro.sample("v", dist.Normal(ONE, 1.0))),
        "samples 'v'",
    ),
    "has another shape": (
        lambda x, y=None: (
            pyro.sample("w", dist.Normal(ONE, 1.0)),
            pyro.sample("sigma", dist.LogNormal(-ONE, 1.0)),
        ),
        r"'w' the shape \(\)",
    ),
    "draws without gradients": (
        lambda x, y=None: (
            pyro.sample("w", dist.Normal(ZERO, 1.0).to_event(1)),
            pyro.sample("sigma", dist.Poisson(ONE)),
        ),
        "gradients do not pass",
    ),
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_guide_that_does_not_fit_is_refused_in_a_sentence(reason):
    guide, message = WRONG[reason]
    with pytest.raises(ValueError, match=message):
        probsl.fit(linear, CASE.data, probsl.SVI(guide))


@pytest.mark.parametrize("guide", [3, "AutoNormal", lambda program: 3])
def test_what_is_no_guide_is_refused(guide):
    with pytest.raises(TypeError, match="guide"):
        probsl.fit(linear, CASE.data, probsl.SVI(guide))


def test_a_copied_guide_gives_the_same_fit(fits):
    guide = copy.deepcopy(FORMS["module"])
    again = probsl.fit(linear, CASE.data, probsl.SVI(guide))
    assert torch.equal(again.losses, fits("module").losses)
