"""Noise as an input, standardized draws, and independent draws under vmap.

Seeds are fixed, so that each test passes or fails for good; with another seed a
comparison of a mean or variance at five standard errors fails once in a million.
"""

import math
import random
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from scipy import stats
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from probsl.noise.modes import NoiseMismatchError
from probsl.noise.record import NoiseRecord, record
from probsl.noise.standardized import standardized
from probsl.noise.vmapped import independent_draws

ROWS, BATCH = 20, 2000


@pytest.fixture(autouse=True)
def isolated():
    """Give each test a Pyro and torch state of its own, without validation."""
    settings = pyro.settings.context(
        module_local_params=True,
        validate_distributions_pyro=False,
        validate_distributions_torch=False,
        validate_poutine=False,
        validate_infer=False,
    )
    with settings, pyro.get_param_store().scope(), torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def asked(function, *args):
    return [(r.kind, r.shape, r.dtype) for r in record(function, *args).requests]


# --- Recording


@pytest.mark.parametrize(
    ("function", "kind", "shape", "dtype"),
    [
        (lambda: torch.randn(2, 3), "normal", (2, 3), torch.float32),
        (lambda: torch.randn((2, 3)), "normal", (2, 3), torch.float32),
        (lambda: torch.randn(size=(4,)), "normal", (4,), torch.float32),
        (lambda: torch.randn(()), "normal", (), torch.float32),
        (lambda: torch.randn(0, 3), "normal", (0, 3), torch.float32),
        (lambda: torch.rand(2, dtype=torch.float64), "uniform", (2,), torch.float64),
        (lambda: torch.rand(2, generator=generator()), "uniform", (2,), torch.float32),
        (lambda: torch.randn_like(torch.ones(3)), "normal", (3,), torch.float32),
        (
            lambda: torch.rand_like(torch.ones(3), dtype=torch.float64),
            "uniform",
            (3,),
            torch.float64,
        ),
        (
            lambda: torch.normal(torch.ones(2, 1), torch.ones(3)),
            "normal",
            (2, 3),
            torch.float32,
        ),
        (lambda: torch.normal(torch.ones(3)), "normal", (3,), torch.float32),
        (lambda: torch.normal(0.0, torch.ones(3)), "normal", (3,), torch.float32),
        (lambda: torch.normal(0.0, 1.0, (3,)), "normal", (3,), torch.float32),
        (lambda: torch.empty(3).normal_(), "normal", (3,), torch.float32),
        (lambda: torch.empty(3).log_normal_(), "normal", (3,), torch.float32),
        (lambda: torch.empty(3).uniform_(-1, 1), "uniform", (3,), torch.float32),
        (lambda: torch.empty(3).exponential_(), "uniform", (3,), torch.float32),
        (lambda: torch.empty(3).cauchy_(), "uniform", (3,), torch.float32),
        (lambda: torch.empty(3).geometric_(0.2), "uniform", (3,), torch.float32),
    ],
)
def test_one_call_is_one_request(function, kind, shape, dtype):
    noise = record(function)
    (request,) = noise.requests
    assert (request.kind, request.shape, request.dtype) == (kind, shape, dtype)
    assert noise.dimension == request.count == math.prod(shape)
    assert noise.reparameterizable


def test_requests_are_in_order_and_the_widest_type_is_that_of_the_noise():
    def function():
        torch.randn(2)
        torch.rand(3, dtype=torch.float64)
        torch.empty(1).exponential_()

    noise = record(function)
    assert [r.kind for r in noise.requests] == ["normal", "uniform", "uniform"]
    assert (noise.dimension, noise.dtype) == (6, torch.float64)
    assert noise.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda: torch._standard_gamma(torch.ones(2)), "_standard_gamma"),
        (lambda: dist.Gamma(torch.ones(2), 1.0).rsample(), "_standard_gamma"),
        (lambda: dist.Dirichlet(torch.ones(2)).rsample(), "_sample_dirichlet"),
        (lambda: dist.StudentT(3.0).rsample(), "_standard_gamma"),
        (lambda: torch.poisson(torch.ones(2)), "poisson"),
        (lambda: torch.bernoulli(torch.ones(2) / 2), "bernoulli"),
        (lambda: torch.empty(2).bernoulli_(0.5), "bernoulli_"),
        (lambda: dist.Categorical(torch.ones(2)).sample(), "multinomial"),
        (lambda: dist.Binomial(9.0, torch.ones(2) / 2).sample(), "binomial"),
        (lambda: torch.randint(9, (2,)), "randint"),
        (lambda: torch.randperm(9), "randperm"),
        (lambda: torch.empty(2).random_(), "random_"),
        (lambda: torch.alpha_dropout(torch.ones(9), 0.5, True), "alpha_dropout"),
        (lambda: torch.randn(2, dtype=torch.complex64), "randn"),
        (lambda: torch.randn(2, out=torch.empty(2)), "randn"),
        (lambda: torch.empty(2, dtype=torch.complex64).normal_(), "normal_"),
        (lambda: torch.normal(torch.ones(2) + 0j, 1.0), "normal"),
        (lambda: torch.nn.functional.gumbel_softmax(torch.ones(3)), "gumbel_softmax"),
        (np.random.rand, "numpy"),
        (random.random, "random module"),
    ],
)
def test_other_randomness_is_an_obstacle_with_a_name(function, name):
    noise = record(function)
    assert name in noise.obstacle
    assert not noise.replayable
    assert not noise.reparameterizable
    for use in (
        lambda: noise.supply(torch.zeros(noise.dimension)),
        lambda: noise.draw(2, generator()),
        lambda: standardized(noise, 2, 0),
    ):
        with pytest.raises(ValueError, match=name):
            use()


def test_randomness_below_torch_functions_is_an_obstacle():
    noise = record(torch.default_generator.manual_seed, 987_654)
    assert "does not show" in noise.obstacle


def test_only_the_first_obstacle_is_named_and_recording_goes_on():
    def function():
        torch.poisson(torch.ones(2))
        torch.randperm(3)
        torch.randn(2)

    noise = record(function)
    assert noise.obstacle == "poisson"
    assert noise.dimension == 2


@pytest.mark.parametrize(
    "draw",
    [
        lambda: dist.Geometric(torch.tensor(0.3)).sample(),
        lambda: dist.VonMises(0.0, torch.tensor(1.0)).sample(),
        lambda: dist.Normal(0.0, torch.tensor(1.0)).sample(),
    ],
)
def test_draws_without_gradient_are_replayable_but_not_reparameterizable(draw):
    with torch.no_grad():  # the answer does not hang on the mode of the caller
        noise = record(draw)
    assert noise.replayable
    assert noise.detached
    assert not noise.reparameterizable


def test_nothing_moves_torchs_generator():
    before = torch.get_rng_state()
    noise = record(lambda: torch.randn(3) + torch.rand(3))
    record(lambda: torch.poisson(torch.ones(3)))
    noise.draw(5, generator())
    standardized(noise, 8, 0)
    with noise.supply(noise.draw(1, generator())[0]):
        torch.randn(3) + torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())


def test_an_error_of_the_program_passes_through():
    def function():
        torch.randn(2)
        raise KeyError("site")

    with pytest.raises(KeyError):
        record(function)
    noise = record(torch.randn, 2)
    with pytest.raises(KeyError), noise.supply(torch.zeros(2)):
        function()
    torch.randn(3)  # no mode is left behind


# --- Replaying


@pytest.mark.parametrize(
    ("fill", "quantile"),
    [
        (lambda x: x.uniform_(-2, 3), stats.uniform(-2, 5)),
        (lambda x: x.uniform_(to=3), stats.uniform(0, 3)),
        (lambda x: x.uniform_(**{"from": -2.0}), stats.uniform(-2, 3)),
        (lambda x: x.uniform_(), stats.uniform()),
        (lambda x: x.exponential_(), stats.expon()),
        (lambda x: x.exponential_(lambd=4.0), stats.expon(scale=0.25)),
        (lambda x: x.cauchy_(1.0, 2.0), stats.cauchy(1.0, 2.0)),
        (lambda x: x.cauchy_(sigma=2.0), stats.cauchy(0.0, 2.0)),
        (lambda x: x.geometric_(0.3), stats.geom(0.3)),
    ],
)
def test_what_uniforms_become_is_the_quantile_function(fill, quantile):
    noise = record(lambda: fill(torch.empty(50, dtype=torch.float64)))
    (u,) = noise.draw(1, generator())
    with noise.supply(u):
        value = fill(torch.empty(50, dtype=torch.float64))
    np.testing.assert_allclose(value, quantile.ppf(u), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("function", "location", "scale"),
    [
        (lambda: torch.randn(2), 0, 1),
        (lambda: torch.empty(2).normal_(), 0, 1),
        (lambda: torch.empty(2).normal_(1.0, 3.0), 1, 3),
        (lambda: torch.empty(2).normal_(std=3.0), 0, 3),
        (lambda: torch.empty(2).log_normal_().log(), 1, 2),
        (lambda: torch.empty(2).log_normal_(0.5).log(), 0.5, 2),
        (lambda: torch.normal(torch.ones(2), 3 * torch.ones(2)), 1, 3),
        (lambda: torch.normal(torch.ones(2), 3.0), 1, 3),
        (lambda: torch.normal(mean=1.0, std=3 * torch.ones(2)), 1, 3),
        (lambda: torch.normal(1.0, 3.0, size=(2,)), 1, 3),
        (lambda: torch.normal(torch.ones(2)), 1, 1),
    ],
)
def test_what_normals_become_is_scaled_and_moved(function, location, scale):
    with record(function).supply(torch.tensor([-1.0, 2.0])):
        value = function()
    expected = location + scale * torch.tensor([-1.0, 2.0])
    torch.testing.assert_close(value, expected)


def test_the_noise_is_cut_and_cast_in_order():
    def function():
        return torch.randn(2, dtype=torch.float64), torch.rand(2, 2), torch.randn(())

    flat = torch.tensor([1, 2, 0.1, 0.2, 0.3, 0.4, 3], dtype=torch.float64)
    supply = record(function).supply(flat)
    for _ in range(2):  # it can be entered again
        with supply:
            a, b, c = function()
        assert a.dtype == torch.float64
        assert b.dtype == torch.float32
        assert a.tolist() == [1, 2]
        torch.testing.assert_close(b, torch.tensor([[0.1, 0.2], [0.3, 0.4]]))
        assert c == 3


def test_a_program_may_change_its_numbers_in_place():
    def function():
        return torch.randn(2).mul_(3), torch.empty(1).uniform_().add_(1)

    flat = torch.tensor([1.0, 2.0, 0.5])
    with record(function).supply(flat):
        assert torch.cat(function()).tolist() == [3, 6, 1.5]
    assert flat.tolist() == [1, 2, 0.5]


def test_noise_of_another_shape_is_refused():
    noise = record(lambda: (torch.randn(2), torch.rand(3)))
    with pytest.raises(ValueError, match=r"shape \[5\], not \[2, 5\].*vmap"):
        noise.supply(torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: torch.randn(3), r"normal \[3\].*normal \[2\]"),
        (lambda: torch.rand(2), r"uniform \[2\].*normal \[2\]"),
        (lambda: torch.randn(2, dtype=torch.float64), r"float64.*float32"),
        (lambda: torch.randn(2), r"1 times.*uniform \[3\]"),
        (lambda: (torch.randn(2), torch.rand(3), torch.rand(3)), "nothing more"),
        (lambda: torch.poisson(torch.ones(2)), "poisson"),
        (lambda: torch.randn(2, out=torch.empty(2)), "randn"),
    ],
)
def test_a_program_that_asks_for_other_noise_is_refused(other, message):
    noise = record(lambda: (torch.randn(2), torch.rand(3)))
    supply = noise.supply(torch.full((5,), 0.5))
    with pytest.raises(NoiseMismatchError, match=message), supply:
        other()


def test_a_geometric_of_probability_one_is_one():
    noise = record(lambda: torch.empty(3).geometric_(1.0))
    with noise.supply(torch.tensor([0.1, 0.5, 0.9])):
        assert torch.empty(3).geometric_(1.0).tolist() == [1, 1, 1]


def test_a_named_tensor_filled_in_place_has_its_numbers():
    def function():
        named = torch.empty(3)
        named.normal_()
        whole = torch.zeros(2, 3)
        whole[0].uniform_()
        last = torch.empty(2)
        last.exponential_()
        return named.exp().log(), whole, last

    noise = record(function)
    (flat,) = noise.draw(1, generator())
    with noise.supply(flat):
        named, whole, last = function()
    torch.testing.assert_close(named, flat[:3])
    torch.testing.assert_close(whole[0], flat[3:6])
    torch.testing.assert_close(last, -torch.log1p(-flat[6:]))


def test_a_named_tensor_filled_in_place_under_vmap_fails_rather_than_being_wrong():
    def function(flat):
        with noise.supply(flat):
            named = torch.empty(3)
            named.normal_()
            return named * 2

    noise = record(lambda: torch.empty(3).normal_())
    with pytest.raises(RuntimeError, match="vmap"):
        vmap(function)(torch.zeros(4, 3))


def test_nameless_tensors_leave_no_mutation_in_a_graph():
    def function():
        return torch.distributions.Normal(torch.zeros(3), 2.0).rsample()

    noise = record(function)

    def supplied(flat):
        with noise.supply(flat):
            return function()

    names = [str(n.target) for n in make_fx(supplied)(torch.zeros(3)).graph.nodes]
    assert not any("copy_" in name or "normal" in name for name in names)


def test_draws_are_seeded_and_stay_inside_the_open_interval():
    noise = record(lambda: (torch.randn(3), torch.rand(2), torch.rand(1)))
    draws = noise.draw(10_000, generator(3))
    assert draws.shape == (10_000, 6)
    assert torch.equal(draws, noise.draw(10_000, generator(3)))
    uniform = draws[:, 3:]
    assert uniform.min() > 0
    assert uniform.max() < 1
    for column in range(3):
        assert stats.kstest(draws[:, column], "norm").pvalue > 1e-3
        assert stats.kstest(uniform[:, column], "uniform").pvalue > 1e-3
    correlation = torch.corrcoef(draws.T) - torch.eye(6)
    assert correlation.abs().max() < 5 / 100


def test_uniforms_stay_inside_after_a_cast_to_a_narrower_type():
    noise = record(lambda: (torch.rand(64), torch.randn(1, dtype=torch.float64)))
    for draws in (noise.draw(4096, generator()), standardized(noise, 4096, 0)):
        narrow = draws[:, :64].to(torch.float32)
        assert narrow.min() > 0
        assert narrow.max() < 1


def test_a_program_without_randomness_has_dimension_zero():
    noise = record(lambda: torch.ones(3))
    assert noise == NoiseRecord(())
    assert noise.draw(4, generator()).shape == (4, 0)
    assert standardized(noise, 4, 0).shape == (4, 0)
    with noise.supply(torch.zeros(0)):
        torch.ones(3)


# --- Guides


def program(x, y=None):
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("groups", 4):
        a = pyro.sample("a", dist.Laplace(0.0, tau))
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("rows", ROWS):
        pyro.sample("y", dist.Normal(x @ w + a.mean() + p[0], tau), obs=y)


def guide_list(model):
    guides = autoguide.AutoGuideList(model)
    expose = pyro.poutine.block
    guides.append(autoguide.AutoNormal(expose(model, expose=["tau", "a"])))
    guides.append(autoguide.AutoMultivariateNormal(expose(model, expose=["w", "p"])))
    return guides


def structured(model):
    return autoguide.AutoStructured(
        model,
        conditionals={"tau": "normal", "w": "mvn", "a": "delta", "p": "normal"},
        dependencies={"w": {"tau": "linear"}},
    )


def spline_flow(model):
    coupling = partial(dist.transforms.spline_coupling, count_bins=4)
    return autoguide.AutoNormalizingFlow(model, coupling)


class HandWritten(pyro.nn.PyroModule):
    """A guide with a LogNormal for tau, and a Laplace and a Uniform."""

    def __init__(self, model):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(()))
        self.w = torch.nn.Parameter(torch.full((3,), 0.3))

    def forward(self, x, y=None):
        tau = pyro.sample("tau", dist.LogNormal(self.loc, self.w[0].exp()))
        pyro.sample("w", dist.Laplace(self.w, tau).to_event(1))
        with pyro.plate("groups", 4):
            pyro.sample("a", dist.Uniform(self.loc - tau, self.loc + tau))
        logits = self.w + pyro.sample("q", dist.Gumbel(self.loc, 1.0))
        pyro.sample("p", dist.Delta(torch.softmax(logits, -1)).to_event(1))


GUIDES = {
    "AutoNormal": (autoguide.AutoNormal, 10),
    "AutoDiagonalNormal": (autoguide.AutoDiagonalNormal, 10),
    "AutoMultivariateNormal": (autoguide.AutoMultivariateNormal, 10),
    "AutoLowRank": (partial(autoguide.AutoLowRankMultivariateNormal, rank=2), 12),
    "AutoIAFNormal": (partial(autoguide.AutoIAFNormal, hidden_dim=[20]), 10),
    "AutoNormalizingFlow": (spline_flow, 10),
    "AutoDelta": (autoguide.AutoDelta, 0),
    "AutoGuideList": (guide_list, 10),
    "AutoStructured": (structured, 6),
    "AutoGaussian": (autoguide.AutoGaussian, 10),
    "HandWritten": (HandWritten, 9),
}


@pytest.fixture(params=GUIDES)
def guide(request):
    """Give (name, run, parameters, record): run returns the values of the sites."""
    make, dimension = GUIDES[request.param]
    x = torch.randn(ROWS, 3, generator=generator())
    module = make(program)
    module(x, x.sum(-1))
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def run(parameters, flat=None):
        def call(*args):
            return functional_call(module, parameters, args)

        def values():
            trace = pyro.poutine.trace(call).get_trace(x, x.sum(-1))
            names = trace.stochastic_nodes
            return {name: trace.nodes[name]["value"] for name in names}

        if flat is None:
            return values()
        with noise.supply(flat):
            return values()

    noise = record(run, parameters)
    assert noise.dimension == dimension
    assert noise.reparameterizable
    return request.param, run, parameters, noise


def test_a_guide_given_torchs_numbers_is_the_guide(guide):
    _, run, parameters, noise = guide
    torch.manual_seed(3)
    drawn = run(parameters)
    torch.manual_seed(3)
    pieces = [
        torch.empty(r.shape).normal_() if r.kind == "normal" else torch.rand(r.shape)
        for r in noise.requests
    ]
    flat = torch.cat([torch.empty(0), *(piece.reshape(-1) for piece in pieces)])
    supplied = run(parameters, flat)
    assert drawn.keys() == supplied.keys()
    for name, value in drawn.items():
        torch.testing.assert_close(supplied[name], value)


def test_a_guide_is_a_pure_function_of_its_noise(guide):
    name, run, parameters, noise = guide
    draws = noise.draw(7, generator())
    one_by_one = [run(parameters, flat) for flat in draws]
    assert all(
        torch.equal(one_by_one[0][site], value)
        for site, value in run(parameters, draws[0]).items()
    )
    if name == "AutoNormalizingFlow":  # Pyro's spline indexes by a mask
        with pytest.raises(RuntimeError, match="dynamic shape"):
            vmap(partial(run, parameters))(draws)
        return

    def total(parameters, draws):
        values = vmap(partial(run, parameters))(draws)
        return sum(value.square().sum() for value in values.values())

    vectorized = vmap(partial(run, parameters))(draws)
    for site, values in vectorized.items():
        expected = torch.stack([values[site] for values in one_by_one])
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
    other = noise.draw(7, generator(5))
    graph = make_fx(grad(total))(parameters, draws)
    expected = grad(total)(parameters, other)
    for site, value in graph(parameters, other).items():
        torch.testing.assert_close(value, expected[site], rtol=1e-4, atol=1e-5)


def test_a_hand_written_guide_with_a_gamma_has_an_obstacle():
    noise = record(lambda: pyro.sample("tau", dist.Gamma(torch.tensor(2.0), 1.0)))
    assert noise.obstacle == "_standard_gamma"


def test_a_subsampled_plate_is_an_obstacle():
    def subsampled():
        with pyro.plate("rows", 9, subsample_size=3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    assert record(subsampled).obstacle == "randperm"


def test_derivatives_with_respect_to_parameters_are_those_of_the_formula():
    def function(location, scale):
        return dist.Normal(location, scale).rsample()

    noise = record(function, torch.zeros(2), torch.ones(2))
    z = torch.tensor([-1.0, 2.0])

    def total(location, scale):
        with noise.supply(z):
            return function(location, scale).sum()

    location, scale = grad(total, argnums=(0, 1))(torch.zeros(2), torch.ones(2))
    torch.testing.assert_close(location, torch.ones(2))
    torch.testing.assert_close(scale, z)


# --- Standardized draws


def normals(dimension, dtype=torch.float64):
    return record(partial(torch.randn, dimension, dtype=dtype))


@pytest.mark.parametrize(
    ("dimension", "count"),
    [(1, 2), (1, 3), (3, 4), (3, 5), (3, 6), (3, 7), (5, 64), (50, 100), (50, 51)],
)
def test_moments_are_exact_where_there_are_more_draws_than_dimensions(dimension, count):
    draws = standardized(normals(dimension), count, seed=1)
    assert draws.shape == (count, dimension)
    assert draws.dtype == torch.float64
    mean, second = draws.mean(0), draws.T @ draws / count
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-13)
    identity = torch.eye(dimension, dtype=torch.float64)
    torch.testing.assert_close(second, identity, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dimension", "count"), [(6, 2), (6, 5), (6, 6), (40, 32)])
def test_variances_are_exact_where_there_are_fewer(dimension, count):
    draws = standardized(normals(dimension), count, seed=1)
    ones = torch.ones(dimension, dtype=torch.float64)
    torch.testing.assert_close(draws.square().mean(0), ones, rtol=0, atol=1e-12)
    torch.testing.assert_close(draws.mean(0), 0 * ones, rtol=0, atol=1e-13)


def test_a_single_draw_is_the_center():
    noise = record(lambda: (torch.randn(2), torch.rand(1)))
    assert standardized(noise, 1, 0).tolist() == [[0, 0, 0.5]]


def test_draws_are_paired_and_seeded():
    noise = record(lambda: (torch.randn(3), torch.rand(2)))
    draws = standardized(noise, 64, seed=4).to(torch.float64)
    assert torch.equal(draws[:32, :3], -draws[32:, :3])
    torch.testing.assert_close(draws[:32, 3:], 1 - draws[32:, 3:], rtol=0, atol=1e-7)
    assert torch.equal(standardized(noise, 64, 4), standardized(noise, 64, 4))
    assert not torch.equal(standardized(noise, 64, 4), standardized(noise, 64, 5))


def test_draws_are_spread_as_their_distributions():
    noise = record(lambda: (torch.randn(3), torch.rand(2), torch.randn(1)))
    draws = standardized(noise, 4096, seed=0)
    for column in range(6):
        name = "uniform" if column in {3, 4} else "norm"
        # Far closer than the 0.02 of independent draws.
        assert stats.kstest(draws[:, column], name).statistic < 0.004
    assert (torch.corrcoef(draws.T) - torch.eye(6)).abs().max() < 0.01


def test_above_the_dimensions_of_sobol_draws_are_independent():
    draws = standardized(normals(21_202, torch.float32), 8, seed=0)
    assert draws.dtype == torch.float32
    torch.testing.assert_close(
        draws.square().mean(0), torch.ones(21_202), rtol=0, atol=1e-5
    )
    assert draws.mean(0).abs().max() < 1e-6
    assert torch.equal(draws, standardized(normals(21_202, torch.float32), 8, seed=0))


def test_no_draws_are_refused():
    with pytest.raises(ValueError, match="At least one draw"):
        standardized(normals(2), 0, 0)


def test_the_elbo_of_a_gaussian_posterior_has_its_exact_optimum():
    # With the right second moments the average over few draws is the expectation.
    precision = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    draws = standardized(normals(2), 8, seed=0)
    cholesky = torch.linalg.cholesky(torch.linalg.inv(precision))
    error = mean + draws @ cholesky.T
    average = torch.einsum("ni,ij,nj->", error, precision, error) / 8
    expected = 2 + mean @ precision @ mean
    torch.testing.assert_close(average, expected, rtol=1e-13, atol=0)


# --- Independent draws under vmap

P = torch.tensor([0.3, 0.5, 0.9])
TABLE = torch.stack([P, P.flip(0), torch.ones(3), P**2])
SPD = torch.tensor([[2.0, 0.5, 0.1], [0.5, 1.0, 0.3], [0.1, 0.3, 1.5]])
FREE = torch.ones(2, 3)

# Each takes a scale, which is one, and is a tensor with or without a batch dimension.
DISTRIBUTIONS = {
    "Normal": lambda s: dist.Normal(P * s, s.expand(3)),
    "Laplace": lambda s: dist.Laplace(P, s * P),
    "Exponential": lambda s: dist.Exponential(P * s),
    "Gamma": lambda s: dist.Gamma(P * 4 * s, s),
    "InverseGamma": lambda s: dist.InverseGamma(P * 4 + 6, s),
    "Beta": lambda s: dist.Beta(P * 4 * s, 2 * s),
    "Dirichlet": lambda s: dist.Dirichlet(P * 4 * s),
    "Dirichlet to_event": lambda s: dist.Dirichlet(FREE * P * 4 * s).to_event(1),
    "StudentT": lambda s: dist.StudentT(12 * s, P, s),
    "Cauchy": lambda s: dist.Cauchy(P, s),
    "HalfCauchy": lambda s: dist.HalfCauchy(P * s),
    "HalfNormal": lambda s: dist.HalfNormal(P * s),
    "LogNormal": lambda s: dist.LogNormal(P * s, 0.3 * s),
    "MultivariateNormal": lambda s: dist.MultivariateNormal(P * s, SPD),
    "MultivariateNormal covariance": lambda s: dist.MultivariateNormal(P, SPD * s),
    "MultivariateNormal Cholesky": lambda s: dist.MultivariateNormal(
        P, scale_tril=torch.linalg.cholesky(SPD * s)
    ),
    "LowRank": lambda s: dist.LowRankMultivariateNormal(P * s, FREE.T * s, P * s),
    "Uniform": lambda s: dist.Uniform(-P * s, P * s),
    "Weibull": lambda s: dist.Weibull(P * s, 3 * s),
    "Gumbel": lambda s: dist.Gumbel(P, s),
    "Pareto": lambda s: dist.Pareto(P, 12 * s),
    "Chi2": lambda s: dist.Chi2(P * 8 * s),
    "Poisson": lambda s: dist.Poisson(P * 8 * s),
    "Bernoulli": lambda s: dist.Bernoulli(P * 0.5 * s),
    "Bernoulli logits": lambda s: dist.Bernoulli(logits=P * s),
    "Binomial": lambda s: dist.Binomial(20, P * 0.5 * s),
    "Binomial counts": lambda s: dist.Binomial(torch.tensor([9, 5, 2.0]), P * 0.5 * s),
    "Categorical": lambda s: dist.Categorical(TABLE**s),
    "OneHotCategorical": lambda s: dist.OneHotCategorical(TABLE**s),
    "Multinomial": lambda s: dist.Multinomial(10, TABLE**s),
    "Geometric": lambda s: dist.Geometric(P * 0.5 * s),
    "NegativeBinomial": lambda s: dist.NegativeBinomial(6 * s, P * 0.5),
    "BetaBinomial": lambda s: dist.BetaBinomial(6 * P, 4 * s, 20),
    "GammaPoisson": lambda s: dist.GammaPoisson(6 * P * s, s),
    "DirichletMultinomial": lambda s: dist.DirichletMultinomial(6 * P * s, 10),
    "ZeroInflatedPoisson": lambda s: dist.ZeroInflatedPoisson(P * 8 * s, gate=0.3 * s),
    "ZeroInflatedNegativeBinomial": lambda s: dist.ZeroInflatedNegativeBinomial(
        6 * s, probs=P * 0.5, gate=0.3 * s
    ),
    "MixtureSameFamily": lambda s: dist.MixtureSameFamily(
        dist.Categorical(TABLE**s), dist.Normal(TABLE * 3, s.expand(4, 3))
    ),
    "LKJCholesky": lambda s: dist.LKJCholesky(3, 2 * s),
    "OrderedLogistic": lambda s: dist.OrderedLogistic(
        P * s, torch.tensor([-1.0, 0.0, 1.0])
    ),
    "Delta": lambda s: dist.Delta(P * s),
    "TransformedDistribution": lambda s: dist.TransformedDistribution(
        dist.Laplace(P, s * 0.2), [dist.transforms.ExpTransform()]
    ),
    "expand": lambda s: dist.Exponential(s * 2).expand([4, 3]),
    "mask": lambda s: dist.StudentT(12.0, s).expand([4]).mask(False),
    "Logistic": lambda s: dist.Logistic(P, s),
    "SoftLaplace": lambda s: dist.SoftLaplace(P, s),
    "AsymmetricLaplace": lambda s: dist.AsymmetricLaplace(P, s, 1.5 * s),
    "MultivariateStudentT": lambda s: dist.MultivariateStudentT(12 * s, P, SPD),
    "FisherSnedecor": lambda s: dist.FisherSnedecor(10 * P * s, 30 * s),
    "Kumaraswamy": lambda s: dist.Kumaraswamy(P * 4 * s, 2 * s),
    "ContinuousBernoulli": lambda s: dist.ContinuousBernoulli(P * s),
}
DISCRETE = {
    *("Poisson", "Bernoulli", "Bernoulli logits", "Binomial", "Binomial counts"),
    *("Categorical", "OneHotCategorical", "Multinomial", "Geometric"),
    *("NegativeBinomial", "BetaBinomial", "GammaPoisson", "DirichletMultinomial"),
    *("ZeroInflatedPoisson", "ZeroInflatedNegativeBinomial", "OrderedLogistic"),
}


def draw_vectorized(make, batched):
    """Draw once for each of BATCH entries."""
    one = torch.tensor(1.0)

    def draw(scale):
        return make(scale if batched else one).sample()

    with independent_draws(), torch.no_grad():
        return vmap(draw, randomness="different")(torch.ones(BATCH))


def moments(draws):
    """Mean, variance and the variances of these two, each of one draw."""
    centered = draws - draws.mean(0)
    variance = centered.square().mean(0)
    fourth = centered.pow(4).mean(0) - variance.square()
    return draws.mean(0), variance, fourth.clamp_min(0)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_draws_under_vmap_are_independent_and_have_the_right_law(name, batched):
    make = DISTRIBUTIONS[name]
    one = make(torch.tensor(1.0))
    draws = draw_vectorized(make, batched)
    looped = torch.stack([one.sample() for _ in range(3)])
    assert draws.shape[1:] == looped.shape[1:]
    assert draws.dtype == looped.dtype
    if name == "Delta":
        assert torch.equal(draws, P.expand(BATCH, 3))
        return
    reference = one.sample((10 * BATCH,)).flatten(1).double()
    draws = draws.flatten(1).double()
    if "Cauchy" in name:  # has no moments itself
        reference, draws = reference.atan(), draws.atan()
    mean, variance, fourth = moments(draws)
    true_mean, true_variance, true_fourth = moments(reference)
    rounding = 1e-6
    error = (1.1 * true_variance / BATCH).sqrt() + rounding
    assert ((mean - true_mean).abs() < 5 * error).all()
    error = ((fourth + 0.1 * true_fourth) / BATCH).sqrt() + rounding
    assert ((variance - true_variance).abs() < 5 * error).all()
    # Neighbors in the batch, and elements of one draw, are as they should be.
    varied = true_variance > rounding
    scaled = ((draws - true_mean) / true_variance.sqrt())[:, varied]
    lagged = scaled[1:].T @ scaled[:-1] / BATCH
    assert lagged.abs().max() < 5 / math.sqrt(BATCH)
    within = ((reference - true_mean) / true_variance.sqrt())[:, varied]
    products = scaled[:, :, None] * scaled[:, None, :]
    expected = within.T @ within / len(within)
    error = 1.05 * products.std(0) / math.sqrt(BATCH) + rounding
    assert ((products.mean(0) - expected).abs() < 5 * error).all()
    if name not in DISCRETE:
        assert len(draws.unique(dim=0)) == BATCH


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: dist.VonMises(P * s, s), "data-dependent"),
        (lambda s: torch.distributions.Wishart(6 * s, SPD), "data-dependent"),
        (lambda s: dist.Stable(1.7 * s, 0.1 * P, s, P), "vmap"),
        (lambda s: dist.ProjectedNormal(P * s), "vmap"),
        (
            lambda s: dist.MixtureOfDiagNormals(
                torch.zeros(2, 3), s.expand(2, 3), torch.zeros(2)
            ),
            "autograd.Function",
        ),
    ],
)
def test_what_cannot_be_drawn_under_vmap_fails_with_torchs_own_error(
    make, message, batched
):
    with pytest.raises(RuntimeError, match=message):
        draw_vectorized(make, batched)


def test_a_program_of_many_sites_is_drawn_as_by_a_loop():
    def model(shift):
        scale = pyro.sample("scale", dist.HalfCauchy(shift.exp()))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1 + scale))
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3) + rate))
        with pyro.plate("groups", 4):
            k = pyro.sample("k", dist.Categorical(p))
            location = pyro.sample("location", dist.StudentT(8.0, k * 1.0, 0.1))
        with pyro.plate("rows", 5):
            pyro.sample("y", dist.Poisson(rate + location.exp().mean()))
            pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))

    def draw(shift):
        trace = pyro.poutine.trace(model).get_trace(shift)
        return {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}

    with torch.no_grad():
        with independent_draws():
            draws = vmap(draw, randomness="different")(torch.zeros(BATCH))
        looped = [draw(torch.zeros(())) for _ in range(BATCH // 2)]
    assert draws.keys() == looped[0].keys()
    for name, values in draws.items():
        expected = torch.stack([values[name] for values in looped])
        assert values.shape[1:] == expected.shape[1:]
        ours, theirs = (
            x.double().atan().reshape(len(x), -1) for x in (values, expected)
        )
        error = (3 * theirs.var(0) / BATCH).sqrt()
        assert ((ours.mean(0) - theirs.mean(0)).abs() <= 5 * error).all()
    # Within an entry y has the mean and variance that this entry's rate gives it.
    rate = (draws["rate"] + draws["location"].exp().mean(-1))[:, None]
    residual = (draws["y"] - rate) / rate.sqrt()
    assert abs(residual.mean()) < 5 / math.sqrt(5 * BATCH)
    assert abs(residual.var() - 1) < 0.1


def test_nothing_changes_where_nothing_is_vectorized():
    def draw():
        torch.manual_seed(1)
        return [
            dist.Normal(0.0, P).rsample(),
            dist.Dirichlet(P).rsample(),
            dist.Multinomial(9, P).sample(),
            dist.Exponential(P).rsample(),
            P.new([1.0, 2.0]),
            P.new(P),
            P.new(2, 2).fill_(1),
            torch.empty(3, dtype=torch.int64).random_(),
            torch.zeros(2, 3, device="cpu"),
            torch.zeros((2,), dtype=torch.bool),
            torch.zeros(size=(2,)),
            torch.zeros_like(P, memory_format=torch.preserve_format),
            torch.zeros_like(P, dtype=torch.float64),
            P.new_zeros((2, 1)),
            P.new_zeros(2, requires_grad=True),
        ]

    with independent_draws():
        ours = draw()
    for mine, theirs in zip(ours, draw(), strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.requires_grad == theirs.requires_grad
        assert torch.equal(mine, theirs)


def test_gradients_of_a_dirichlet_pass_through_outside_vmap():
    def gradient():
        torch.manual_seed(0)
        concentration = P.clone().requires_grad_()
        dist.Dirichlet(concentration).rsample()[0].backward()
        return concentration.grad

    expected = gradient()
    with independent_draws():
        torch.testing.assert_close(gradient(), expected)


def test_torchs_dirichlet_is_put_back_after_an_error():
    original = torch.distributions.dirichlet._Dirichlet
    with pytest.raises(KeyError), independent_draws(), independent_draws():
        raise KeyError
    assert torch.distributions.dirichlet._Dirichlet is original


def test_nested_and_chunked_vmap_draw_independently():
    def draw(scale):
        return dist.Laplace(0.0, scale).sample()

    different = partial(vmap, randomness="different")
    with independent_draws():
        nested = different(different(draw))(torch.ones(20, 30))
        inner = different(lambda _: different(draw)(torch.ones(30)))(torch.ones(20))
        chunked = different(draw, chunk_size=7)(torch.ones(30))
    assert len(nested.unique()) == len(inner.unique()) == 600
    assert len(chunked.unique()) == 30


def test_the_randomness_that_vmap_was_asked_for_is_kept():
    def draw(scale):
        return dist.Laplace(0.0, torch.ones(())).sample() * scale

    def jacobian(scale):
        weights = torch.func.jacrev(lambda x: x + torch.zeros(3))(scale.expand(3))
        return draw(scale) + weights.sum()

    with independent_draws():
        same = vmap(draw, randomness="same")(torch.ones(9))
        with pytest.raises(RuntimeError, match="randomness"):
            vmap(draw)(torch.ones(9))
        inside = vmap(jacobian, randomness="different")(torch.ones(9))
    assert len(same.unique()) == 1
    assert len(inside.unique()) == 9


def test_a_loop_and_a_seed_give_the_same_draws_again():
    make = DISTRIBUTIONS["Gamma"]
    torch.manual_seed(5)
    first = draw_vectorized(make, batched=True)
    torch.manual_seed(5)
    assert torch.equal(first, draw_vectorized(make, batched=True))


def test_noise_can_be_supplied_inside_independent_draws():
    noise = record(lambda: torch.empty(3).normal_())

    def draw(flat):
        with noise.supply(flat):
            location = torch.empty(3).normal_()
        return dist.Poisson(location.exp()).sample()

    with independent_draws():
        flat = torch.full((50, 3), 3.0)
        assert len(vmap(draw, randomness="different")(flat).unique(dim=0)) > 40


@pytest.mark.parametrize("drop", [torch.dropout, torch.nn.functional.dropout])
@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_dropout_is_made_of_uniform_numbers(drop, p):
    values = torch.arange(1.0, 5.0)
    noise = record(drop, values, p, True)
    assert noise.replayable
    assert noise.dimension == (4 if p else 0)
    with noise.supply(torch.tensor([0.1, 0.2, 0.3, 0.9])[: noise.dimension]):
        dropped = drop(values, p, True)
    kept = torch.tensor([0.1, 0.2, 0.3, 0.9]) >= p
    expected = values * kept / (1 - p) if p < 1 else torch.zeros(4)
    torch.testing.assert_close(dropped, expected)
    assert record(drop, values, p, False).dimension == 0


def test_dropout_in_place_changes_its_argument():
    values = torch.ones(4)
    noise = record(lambda: torch.nn.functional.dropout(values.clone(), 0.5, True, True))
    with noise.supply(torch.tensor([0.1, 0.6, 0.2, 0.9])):
        torch.nn.functional.dropout(values, 0.5, True, True)
    assert values.tolist() == [0.0, 2.0, 0.0, 2.0]
