"""Programs and guides that cannot be fitted are told so, in one sentence."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from refusals import (
    GROUP,
    N,
    Refusals,
    X,
    Y,
    fit,
    fit_y,
    layer,
    linear,
    location,
    mean,
    mixing,
    network,
    numbers,
    three_means,
)
from torch import nn
from torch.distributions import constraints

import probsl

REFUSED = Refusals()
case = REFUSED.case


# --- Programs


for _program in (None, "linear", X, {"x": X}):
    _held = type(_program).__name__

    @case(TypeError, "program must be", "pyro.sample", f"type {_held}")
    def program_that_is_none(program=_program):
        probsl.fit(program, {"x": X, "y": Y}, probsl.MAP())


@case(TypeError, "program must be", "the class Model", "Model()")
def program_as_a_class():
    class Model(pyro.nn.PyroModule):
        def forward(self, x, y=None):
            linear(x, y)

    fit(Model)


@case(ValueError, "no latent site", 'pyro.sample("w"')
def nothing_to_fit():
    def program(y=None):
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    fit_y(program)


@case(ValueError, "two sample sites are named 'mu'")
def two_sites_of_one_name():
    def program(y=None):
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        mean(pyro.sample("mu", dist.Normal(0.0, 1.0)))

    fit_y(program)


@case(ValueError, "two sample sites are named 'y'", 'f"y_{i}"')
def one_name_in_a_loop():
    def program(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", N):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])

    fit_y(program)


@case(ValueError, "'data'", "a sample site and a plate")
def site_named_like_a_plate():
    def program(y=None):
        mu = pyro.sample("data", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit_y(program)


@case(ValueError, "'mu'", "a sample site and a parameter")
def site_named_like_a_parameter():
    def program(y=None):
        pyro.param("mu", torch.tensor(1.0))
        mean(y)

    fit_y(program)


def _with_site_b(reached, y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    if reached(a):
        pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        pyro.sample("y", dist.Normal(a, 1.0), obs=y)


@case(ValueError, "site 'b'", "from run to run", "the same sites")
def branch_on_a_latent():
    def program(y=None):
        _with_site_b(lambda a: a > 0, y)

    fit_y(program)


@case(ValueError, "site 'b'", "from run to run")
def branch_on_a_random_number():
    def program(y=None):
        _with_site_b(lambda _: torch.rand(()) > 0.5, y)

    fit_y(program)


@case(ValueError, "site 'b'", "the same sites")
def branch_on_another_random_number():
    dice = random.Random(0)

    def program(y=None):
        _with_site_b(lambda _: dice.random() > 0.5, y)

    fit_y(program)


@case(ValueError, "site 'b'", "comes and goes", "the same sites")
def branch_late_in_the_fit():
    runs = iter(range(1000))

    def program(y=None):
        _with_site_b(lambda _: next(runs) > 6, y)

    fit_y(program)


@case(ValueError, "latent site 'mu'", "site 'y'", "no gradient", "torch functions")
def latent_read_as_a_number():
    def program(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(mu.item(), 1.0), obs=y)

    fit_y(program)


@case(ValueError, "latent site 'change'", "site 'y'", "a comparison")
def latent_only_compared():
    def program(time, y=None):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        change = pyro.sample("change", dist.Uniform(0.0, 1.0))
        with pyro.plate("data", len(time)):
            mean = torch.where(time < change, mu[0], mu[1])
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    # Dense enough for a small move of the latent to pass a point.
    fit(program, data={"time": torch.linspace(0, 1, 500), "y": numbers(500)})


@case(ValueError, "latent site 'z'", "discrete", 'infer={"enumerate": "parallel"}')
def discrete_latent():
    def program(y=None):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(mu * z, 1.0), obs=y)

    fit_y(program)


@case(ValueError, "latent site 'z'", "Poisson", "cannot be summed out")
def latent_count():
    def program(y=None):
        z = pyro.sample("z", dist.Poisson(3.0), infer={"enumerate": "parallel"})
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    fit_y(program)


@case(ValueError, "latent site 'z'", "complex", "two real sites")
def complex_latent():
    def program(y=None):
        zero = torch.zeros((), dtype=torch.complex64)
        z = pyro.sample("z", dist.Normal(zero, 1.0, validate_args=False))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(z.real, 1.0), obs=y)

    fit_y(program)


@case(TypeError, "site 'mu'", "torch.distributions.Normal", "pyro.distributions.Normal")
def distribution_of_torch():
    def program(y=None):
        pyro.sample("mu", torch.distributions.Normal(0.0, 1.0))

    fit_y(program)


@case(TypeError, "site 'mu'", "a float, which is not a distribution")
def no_distribution():
    def program(y=None):
        pyro.sample("mu", 0.0)

    fit_y(program)


@case(ValueError, "plate 'data'", "5 of 20", "'size' and 'y'", "rows=('y',)")
def plate_of_which_both_lengths_are_given():
    def program(size, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N, subsample_size=5) as index:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])

    probsl.fit(program, {"size": torch.ones(5), "y": Y}, probsl.MAP())


@case(ValueError, "plate 'groups'", "3 of 9", "leave", "subsample_size out")
def groups_with_a_subsample():
    def program(y=None):
        with pyro.plate("groups", 9, subsample_size=3):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(mu.sum(), 1.0), obs=y)

    fit_y(program)


@case(ValueError, "module 'net.1'", "BatchNorm1d", ".eval()")
def batch_norm_in_train_mode():
    fit(network(layer(2, 3), nn.BatchNorm1d(3), layer(3, 1)))


@case(ZeroDivisionError, "mine", "after sample site 'mu'")
def program_that_raises():
    def program(y=None):
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        raise ZeroDivisionError("mine")

    fit_y(program)


@case(RuntimeError, "mine", "before its first site", "called with y of shape (20,)")
def program_that_raises_at_once():
    def program(y=None):
        raise RuntimeError("mine")

    fit_y(program)


@case(AttributeError, "'str' object", "called with x of type str, y of shape (20,)")
def name_of_a_column_for_an_input():
    fit(data={"x": "age", "y": Y})


@case(ValueError, "scale", "after sample site 'mu'")
def negative_scale():
    def program(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, -1.0), obs=y)

    fit_y(program)


# --- Types of numbers


@case(ValueError, "torch.float32, torch.float64", "dtype=torch.float64")
def modules_of_two_precisions():
    first, second = layer(2, 1), layer(2, 1, torch.float64)

    def program(x, y=None):
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            mean = first(x)[:, 0] + second(x)[:, 0]
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)

    fit(program)


@case(RuntimeError, "dtype", "after sample site 'w'", "torch.float64", ".to(x.dtype)")
def constant_of_lower_precision():
    fit(mixing(torch.eye(2)), data={"x": X.double(), "y": Y.double()})


@case(RuntimeError, "dtype", "torch.float32", "probsl.fit(..., dtype=)")
def constant_of_higher_precision():
    fit(mixing(torch.eye(2).double()))


@case(RuntimeError, "dtype", "integers stay what they are (x)")
def integers_in_a_product():
    fit(data={"x": torch.ones(N, 2, dtype=torch.long), "y": Y})


@case(IndexError, "after sample site 'mu'", "'group' holds whole numbers", "integers")
def floats_as_an_index():
    fit(three_means, data={"group": GROUP.float(), "y": Y})


@case(ValueError, "dtype", "floating", "torch.int64")
def integer_precision():
    fit(dtype=torch.int64)


for _dtype in ("float64", np.float64):

    @case(TypeError, "dtype", "torch.float64")
    def precision_of_another_library(dtype=_dtype):
        fit(dtype=dtype)


# --- Guides


def _fit_guide(guide, program=mean):
    fit_y(program, probsl.SVI(guide))


@case(TypeError, "guide must be", "AutoNormal", "got 'AutoNormal'")
def guide_as_a_text():
    _fit_guide("AutoNormal")


@case(TypeError, "guide must be", "got 3")
def guide_as_a_number():
    _fit_guide(3)


@case(ValueError, "guide lacks 'mu'", "pyro.sample('mu', ...)")
def guide_without_a_site():
    _fit_guide(lambda y=None: None)


@case(ValueError, "'nu'", "not a latent site of the program (mu)", "is_auxiliary")
def guide_with_one_site_more():
    def guide(y=None):
        pyro.sample("mu", dist.Normal(location(), 1.0))
        pyro.sample("nu", dist.Normal(0.0, 1.0))

    _fit_guide(guide)


@case(ValueError, "'mu'", "(2,)", "()", "the same shape")
def guide_of_another_shape():
    def guide(y=None):
        pyro.sample("mu", dist.Normal(location(2), 1.0).to_event(1))

    _fit_guide(guide)


@case(ValueError, "'mu'", "Poisson", "reparameterized")
def guide_without_gradients():
    def guide(y=None):
        pyro.sample("mu", dist.Poisson(location().exp()))

    _fit_guide(guide)


@case(ValueError, "guide guide", "without gradients", "rsample")
def guide_that_hides_its_gradients():
    class Detached(dist.Normal):
        def rsample(self, sample_shape=()):
            with torch.no_grad():
                return super().rsample(torch.Size(sample_shape))

    def guide(y=None):
        pyro.sample("mu", Detached(location(), 1.0))

    _fit_guide(guide)


@case(ValueError, "'sigma'", "Normal", "outside the site's support", "LogNormal")
def guide_outside_a_support():
    def program(y=None):
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(0.0, sigma), obs=y)

    def guide(y=None):
        pyro.sample("sigma", dist.Normal(location(), 1.0))

    _fit_guide(guide, program)


@case(
    TypeError,
    "unexpected keyword argument 'y'",
    "raised by the guide",
    "with y of shape (20,)",
)
def guide_with_other_arguments():
    def guide():
        pyro.sample("mu", dist.Normal(location(), 1.0))

    _fit_guide(guide)


@case(ValueError, "SVI needs a latent site", "MLE")
def guide_for_no_latents():
    def program(y=None):
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(location(), 1.0), obs=y)

    _fit_guide(None, program)


# --- The tests


@pytest.mark.parametrize("refusal", REFUSED, ids=str)
def test_bad_programs_are_told(refusal):
    refusal.check()


@pytest.mark.parametrize("refusal", REFUSED, ids=str)
def test_after_the_error_nothing_is_left(refusal):
    refusal.check_nothing_is_left()


# --- What is no error


def test_dtype_settles_modules_of_two_precisions():
    first, second = layer(2, 1), layer(1, 1, torch.float64)
    fitted = fit(network(first, second), probsl.MAP(max_steps=3), dtype=torch.float64)
    assert {v.dtype for v in fitted.point().values()} == {torch.float64}


def test_dtype_settles_a_constant_of_another_precision():
    program = mixing(torch.eye(2))
    data = {"x": X.double(), "y": Y.double()}
    with pytest.raises(RuntimeError):
        fit(program, data=data)
    assert fit(program, data=data, dtype=torch.float32).problem.dtype is torch.float32


def test_batch_norm_in_eval_mode_has_a_likelihood():
    net = nn.Sequential(layer(2, 3), nn.BatchNorm1d(3), layer(3, 1)).eval()
    assert fit(network(net), probsl.MAP(max_steps=3)).steps == 3


def test_a_guide_made_beforehand_is_fitted_and_not_trained():
    guide = AutoNormal(linear)
    fitted = fit(method=probsl.SVI(guide))
    assert fitted.status is probsl.Status.CONVERGED
    assert not list(guide.parameters())


def test_a_guide_may_have_auxiliary_sites():
    def guide(y=None):
        nu = pyro.sample("nu", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("mu", dist.Normal(location() + 0.0 * nu, 1.0))

    assert fit_y(mean, probsl.SVI(guide, max_steps=20)).steps > 0


def test_a_guide_within_a_support_is_taken():
    def program(y=None):
        sigma = pyro.sample("sigma", dist.HalfNormal(torch.ones(2)).to_event(1))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(0.0, sigma.sum()), obs=y)

    def guide(y=None):
        scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
        pyro.sample("sigma", dist.LogNormal(location(2), scale).to_event(1))

    assert fit_y(program, probsl.SVI(guide, max_steps=20)).steps > 0
