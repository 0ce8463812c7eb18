"""Parameters of programs and guides: which are one, trained, and reported."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib import gp
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from pyro_oracle import own_state
from torch import nn
from torch.distributions import constraints

import probsl
from probsl.contract import Run
from probsl.data.data_options import DataOptions
from probsl.methods.guides.initialization import initialized
from probsl.program.problem import Problem
from probsl.program.target_density import TargetDensity

DTYPE = torch.float64
GENERATOR = torch.Generator().manual_seed(0)
Y = 2.0 + torch.randn(20, generator=GENERATOR, dtype=DTYPE)
X = torch.randn(60, 3, generator=GENERATOR, dtype=DTYPE)
SLOPES = torch.tensor([1.0, -1.0, 0.5], dtype=DTYPE)
RESPONSE = X @ SLOPES + 0.1 * torch.randn(60, generator=GENERATOR, dtype=DTYPE)
XY = {"x": X, "y": RESPONSE}
# The likelihood pulls the shared number to each value, and the prior of z once to zero.
SHARED = float(Y.sum()) / 21


def zero():
    return torch.zeros((), dtype=DTYPE)


def sharing(number):
    """A program whose mean is a number, and a guide whose mean it is, too."""

    def program(y):
        pyro.sample("z", dist.Normal(zero(), 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(number(), 1.0), obs=y)

    def guide(y):
        pyro.sample("z", dist.Normal(number(), 1.0))

    return program, guide


def by_statement():
    return sharing(lambda: pyro.param("a", zero()))


def by_tensor():
    a = nn.Parameter(zero())
    return sharing(lambda: a + 0.0)


def by_statements_of_one_tensor():
    a = nn.Parameter(zero())
    program, _ = sharing(lambda: pyro.param("a", a))
    _, guide = sharing(lambda: pyro.param("of_the_guide", a))
    return program, guide


def by_module():
    layer = nn.Linear(1, 1, dtype=DTYPE)
    return sharing(lambda: layer(torch.zeros(1, dtype=DTYPE)).squeeze())


def by_module_statement():
    def number():
        layer = nn.Linear(1, 1, dtype=DTYPE)
        layer = pyro.module("layer", layer, update_module_params=True)
        return layer(torch.zeros(1, dtype=DTYPE)).squeeze()

    return sharing(number)


class Both(PyroModule):
    """The program and its guide as methods of one module."""

    def __init__(self):
        super().__init__()
        self.mean = PyroParam(zero())

    def program(self, y):
        pyro.sample("z", dist.Normal(zero(), 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(self.mean, 1.0), obs=y)

    def guide(self, y):
        pyro.sample("z", dist.Normal(self.mean, 1.0))


def by_methods():
    both = Both()
    return both.program, both.guide


@pytest.mark.parametrize(
    "made",
    [
        by_statement,
        by_tensor,
        by_statements_of_one_tensor,
        by_module,
        by_module_statement,
        by_methods,
    ],
)
def test_a_parameter_of_program_and_guide_is_one_coordinate(made):
    program, guide = made()
    fit = probsl.fit(program, {"y": Y}, probsl.SVI(guide))
    own = [v for n, v in fit.point().items() if n != "z"]
    number = next(v for v in reversed(own) if v.numel() == 1)  # a layer's bias
    assert fit.status is probsl.Status.CONVERGED
    assert float(number) == pytest.approx(SHARED, abs=1e-4)
    assert float(fit.point()["z"]) == pytest.approx(SHARED, abs=1e-4)


def test_one_name_has_the_constraint_of_the_program():
    def program(y):
        rate = pyro.param("rate", torch.ones((), dtype=DTYPE), constraints.positive)
        pyro.sample("z", dist.Normal(zero(), 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Exponential(rate), obs=y)

    def guide(y):
        rate = pyro.param("rate", torch.ones((), dtype=DTYPE))
        pyro.sample("z", dist.Normal(zero(), rate))

    fit = probsl.fit(program, {"y": Y.abs()}, probsl.SVI(guide))
    # 20 log r - r sum(y), and of z: log r - r^2 / 2.
    total = float(Y.abs().sum())
    expected = (-total + (total**2 + 4 * 21) ** 0.5) / 2
    assert float(fit.point()["rate"]) == pytest.approx(expected, abs=1e-3)
    assert float(fit.draw(4000)["z"].std()) == pytest.approx(expected, rel=0.1)


def test_a_statement_of_the_guide_may_leave_its_value_to_the_program():
    program, _ = by_statement()

    def guide(y):
        pyro.sample("z", dist.Normal(pyro.param("a"), 1.0))

    fit = probsl.fit(program, {"y": Y}, probsl.SVI(guide))
    assert float(fit.point()["a"]) == pytest.approx(SHARED, abs=1e-4)


def test_one_name_of_two_shapes_is_refused():
    program, _ = by_statement()

    def guide(y):
        a = pyro.param("a", torch.zeros(2, dtype=DTYPE))
        pyro.sample("z", dist.Normal(a.sum(), 1.0))

    with pytest.raises(ValueError, match=r"'a' has the shape \(2,\) in the guide"):
        probsl.fit(program, {"y": Y}, probsl.SVI(guide))


def test_a_bare_parameter_is_trained_and_the_callers_stays():
    w = nn.Parameter(torch.zeros(3, dtype=DTYPE))

    def program(x, y=None):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 0.1), obs=y)

    fit = probsl.fit(program, XY, probsl.MLE())
    expected = torch.linalg.lstsq(X, RESPONSE[:, None]).solution[:, 0]
    assert fit.point()["w"].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert w.tolist() == [0.0] * 3
    predicted = fit.predict({"x": X}, draws=400)["y"].mean(0)
    assert torch.allclose(predicted, X @ expected, atol=0.05)


class Lazy:
    """A program that makes its network when it is first called."""

    def __init__(self):
        self.net = None

    def __call__(self, x, y=None):
        if self.net is None:
            self.net = nn.Linear(3, 1)
        regression(self.net, x, y)


def regression(net, x, y):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(net(x)[:, 0], 0.1), obs=y)


def made_inside(x, y=None):
    regression(pyro.module("net", nn.Linear(3, 1)), x, y)


@pytest.mark.parametrize("program", [Lazy(), made_inside], ids=["attribute", "inside"])
def test_a_module_made_by_the_program_is_trained(program):
    fit = probsl.fit(program, XY, probsl.MLE())
    design = torch.cat([X, torch.ones(60, 1, dtype=DTYPE)], 1)
    expected = torch.linalg.lstsq(design, RESPONSE[:, None]).solution[:, 0]
    found = [*fit.point()["net.weight"][0].tolist(), float(fit.point()["net.bias"])]
    assert fit.status is probsl.Status.CONVERGED
    assert fit.steps < 20  # no noise, although each run draws an initial layer
    assert found == pytest.approx(expected.tolist(), abs=1e-6)
    rows = probsl.log_score(fit, {"x": X[:4], "y": RESPONSE[:4]})
    mean = design[:4] @ expected
    assert torch.allclose(rows, dist.Normal(mean, 0.1).log_prob(RESPONSE[:4]))


LISTED = [nn.Linear(3, 1, bias=False, dtype=DTYPE), nn.Linear(1, 1, dtype=DTYPE)]
NAMED = {"first": nn.Linear(3, 1, dtype=DTYPE)}


def test_modules_in_lists_dicts_defaults_and_inner_functions_are_found():
    held = nn.Linear(3, 1, dtype=DTYPE)

    def program(x, y=None, net=held):
        def inner():
            return NAMED["first"](x) + LISTED[0](x)

        mean = (inner() + net(x) + LISTED[1](x[:, :1])).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    names = {p.name for p in Problem.build(program, XY).own_parameters}
    layers = ("NAMED_first", "LISTED_1", "net")
    expected = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert names == expected | {"LISTED_0.weight"}


def test_own_parameters_that_the_program_never_reaches_are_left_out():
    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 1, dtype=DTYPE)
            self.unused = nn.Linear(3, 3, dtype=DTYPE)

        def forward(self, x, y=None):
            pyro.module("whole", self)
            pyro.param("idle", lambda: torch.randn(2))
            regression(self.net, x, y)

    fit = probsl.fit(Program(), XY, probsl.MLE())
    assert fit.status is probsl.Status.CONVERGED
    assert set(fit.point()) == {"net.weight", "net.bias"}


def test_a_layer_behind_zeros_is_reached():
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).to(DTYPE)
    with torch.no_grad():
        net[2].weight.zero_()

    def program(x, y=None):
        regression(net, x, y)

    names = {p.name for p in Problem.build(program, XY).own_parameters}
    assert names == {f"net.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}


def test_the_parameters_of_the_guide_alone_are_not_among_the_programs():
    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(3, 1, dtype=DTYPE)
            self.decoder = nn.Linear(1, 3, dtype=DTYPE)

        def model(self, x):
            pyro.module("decoder", self.decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
                mean = self.decoder(z)
                pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("encoder", self.encoder)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))

    whole = Autoencoder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of Pyro's leaks
        fit = probsl.fit(whole.model, {"x": X}, probsl.SVI(whole.guide, max_steps=3))
    own = {p.name for p in fit.problem.own_parameters}
    assert own == {"decoder.weight", "decoder.bias"}
    assert {n.rpartition(".")[0] for n in fit.posterior.guide_own} == {"encoder"}


@pytest.mark.parametrize("kind", ["VariationalGP", "VariationalSparseGP"])
def test_the_bound_of_a_gaussian_process_is_pyros_and_shares_its_parameters(kind):
    inputs = torch.linspace(0.0, 5.0, 8, dtype=DTYPE)
    kernel = gp.kernels.RBF(1, variance=zero() + 1.0, lengthscale=zero() + 0.7)
    options = {"likelihood": gp.likelihoods.Gaussian(zero() + 0.1)}
    if "Sparse" in kind:
        options["Xu"] = inputs[::3].clone()
    process = getattr(gp.models, kind)(inputs, inputs.sin(), kernel, **options)
    problem = Problem.build(process.model, {}, DataOptions(dtype=DTYPE))
    with problem.isolated():
        bound, *_ = initialized(TargetDensity(problem, {}), process.guide, None, Run())
    latent = "u" if "Sparse" in kind else "f"
    shared = {f"{latent}_loc", f"{latent}_scale_tril"}
    assert set(bound.guide.shared) == shared
    assert {e.name for e in bound.layout.entries} == {
        p.name for p in problem.own_parameters
    }
    with problem.isolated(3), torch.no_grad():
        found = float(bound.estimate(bound.start, problem.batch())) * problem.size
    with own_state(), torch.no_grad():
        torch.manual_seed(3)
        expected = Trace_ELBO().loss(process.model, process.guide)
    assert found == pytest.approx(expected, rel=1e-9)
