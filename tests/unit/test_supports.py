"""The support of a distribution: its image through transforms, and its coordinates."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints, transforms
from torch.distributions.transforms import (
    AffineTransform,
    ExpTransform,
    PowerTransform,
    SigmoidTransform,
)

import probsl
from probsl.program.matrix_coordinates import CholeskyFactor, PositiveDefinite
from probsl.program.supports import bijection, ends_of, settled, support_of, unchecked

INFINITY = math.inf


def transformed(base, *parts):
    return dist.TransformedDistribution(base, list(parts))


@pytest.mark.parametrize(
    ("fn", "lower", "upper"),
    [
        (transformed(dist.Beta(2.0, 2.0), AffineTransform(0.0, 10.0)), 0, 10),
        (transformed(dist.Gamma(2.0, 2.0), AffineTransform(15.0, 1.0)), 15, INFINITY),
        (
            transformed(
                dist.Normal(0.0, 1.0), ExpTransform(), AffineTransform(1.0, 2.0)
            ),
            1,
            INFINITY,
        ),
        (
            transformed(dist.HalfNormal(1.0), AffineTransform(3.0, -2.0)),
            -INFINITY,
            3,
        ),
        (
            transformed(
                dist.Uniform(1.0, 2.0), AffineTransform(0.0, torch.tensor(-3.0))
            ),
            -6,
            -3,
        ),
        (transformed(dist.Uniform(1.0, 2.0), ExpTransform().inv), 0, math.log(2)),
        (transformed(dist.Uniform(2.0, 4.0), PowerTransform(-1.0)), 0.25, 0.5),
        (transformed(dist.Normal(0.0, 1.0), AffineTransform(1.0, 5.0)), None, None),
        (
            transformed(
                dist.Normal(0.0, 1.0), SigmoidTransform(), AffineTransform(-1.0, 2.0)
            ),
            -1,
            1,
        ),
        (dist.LogNormal(0.0, 1.0), 0, INFINITY),
        (
            transformed(dist.LogNormal(0.0, 1.0), AffineTransform(0.5, 1.0)),
            0.5,
            INFINITY,
        ),
    ],
)
def test_the_support_of_a_transformed_interval_is_its_image(fn, lower, upper):
    support = settled(support_of(fn))
    if lower is None:
        assert support is constraints.real
        return
    ends = ends_of(support)
    assert ends[0] == pytest.approx(lower, abs=1e-6)
    assert ends[1] == pytest.approx(upper, abs=1e-6)
    draws = fn.sample((1000,))
    assert support.check(draws).all()
    # Its coordinates fill it: they come near to both finite ends.
    values = bijection(support)(torch.tensor([-12.0, 12.0]))
    for end in (lower, upper):
        if math.isfinite(end):
            assert (values - end).abs().min() < 1e-3


@pytest.mark.filterwarnings("ignore:Singular sample")  # torch says so of any sample
@pytest.mark.parametrize(
    "fn",
    [
        transformed(
            dist.LogNormal(torch.zeros(3), 1.0).to_event(1),
            transforms.Permute(torch.tensor([2, 0, 1])),
        ),
        transformed(dist.Dirichlet(torch.ones(3)), AffineTransform(0.0, 2.0)),
        transformed(
            dist.Normal(torch.zeros(3), 1.0),
            transforms.OrderedTransform(),
            AffineTransform(0.0, torch.tensor([1.0, -2.0, 3.0]), event_dim=1),
        ),
        transformed(dist.Beta(torch.ones(3), 2.0).to_event(1), AffineTransform(0, 10)),
        transformed(dist.Normal(torch.zeros(3), 1.0), transforms.OrderedTransform()),
        dist.LKJ(3, 1.0),
        dist.Wishart(torch.tensor(5.0), torch.eye(3)),
        dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2)), dist.Gamma(torch.ones(2), 1.0)
        ),
        dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2)),
            dist.LogNormal(torch.zeros(2, 3), 1.0).to_event(1),
        ),
    ],
)
def test_coordinates_lead_into_a_support_and_back(fn):
    torch.manual_seed(0)
    support = settled(support_of(fn))
    assert support.event_dim == len(fn.event_shape)
    draws = fn.sample((50,))
    assert support.check(draws).all()
    there = bijection(support)
    x = there.inv(draws.double())
    assert x.shape == there.inverse_shape(draws.shape)
    torch.testing.assert_close(there(x).float(), draws, atol=1e-4, rtol=1e-4)
    # Wherever the coordinates are, the value is inside, and so is its density.
    inside = there(torch.randn(x.shape))
    assert support.check(inside).all() or isinstance(fn, dist.LKJ)
    assert fn.log_prob(inside).isfinite().all()


@pytest.mark.parametrize("transform", [CholeskyFactor(), PositiveDefinite()])
def test_coordinates_of_matrices_have_the_determinant_of_their_jacobian(transform):
    x = torch.randn(6, generator=torch.Generator().manual_seed(0)).double()
    rows, columns = torch.tril_indices(3, 3)

    def entries(x):
        return transform(x)[rows, columns]

    jacobian = torch.autograd.functional.jacobian(entries, x)
    expected = torch.linalg.slogdet(jacobian)[1]
    found = transform.log_abs_det_jacobian(x, transform(x))
    torch.testing.assert_close(found, expected)


def test_validation_is_off_only_where_the_program_says_so():
    off = dist.Bernoulli(torch.ones(3) / 2, validate_args=False)
    for fn in (off, off.to_event(1), off.mask(torch.ones(3) > 0)):
        assert unchecked(fn)
    on = dist.Bernoulli(torch.ones(3) / 2)
    for fn in (on, on.to_event(1), on.expand([4, 3])):
        assert not unchecked(fn)


def test_validation_that_the_program_switched_off_is_off():
    # With numbers between 0 and 1 the likelihood of p is that of their mean.
    y = torch.rand(40, generator=torch.Generator().manual_seed(0)).double()

    def program(y=None):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("pixels", 40):
            pyro.sample("y", dist.Bernoulli(p, validate_args=False), obs=y)

    fit = probsl.fit(program, {"y": y}, probsl.MLE())
    assert fit.status is probsl.Status.CONVERGED
    torch.testing.assert_close(fit.point()["p"], y.mean(), atol=1e-6, rtol=0)


def test_totals_of_a_multinomial_may_differ_without_validation():
    counts = torch.tensor([[3.0, 1.0], [10.0, 4.0], [0.0, 2.0]], dtype=torch.float64)

    def program(counts=None):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("rows", 3):
            fn = dist.Multinomial(14, p, validate_args=False)
            pyro.sample("counts", fn, obs=counts)

    fit = probsl.fit(program, {"counts": counts}, probsl.MLE())
    torch.testing.assert_close(fit.point()["p"], counts.sum(0) / 20, atol=1e-5, rtol=0)


class Unstated(dist.TorchDistribution):
    """An exponential distribution that states no support."""

    arg_constraints = {}

    def __init__(self, rate, batch_shape=None):
        self.rate = rate
        super().__init__(torch.Size(rate.shape if batch_shape is None else batch_shape))

    def expand(self, batch_shape, _instance=None):
        return Unstated(self.rate.expand(batch_shape), batch_shape)

    def sample(self, sample_shape=()):
        return torch.ones(*sample_shape, *self.batch_shape)

    def log_prob(self, value):
        return self.rate.log() - self.rate * value


def test_a_distribution_without_a_support_is_not_asked_for_it():
    y = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)

    def program(y=None):
        rate = pyro.sample("rate", dist.HalfNormal(torch.ones((), dtype=y.dtype)))
        with pyro.plate("rows", 3):
            pyro.sample("y", Unstated(rate.expand(3)), obs=y)

    fit = probsl.fit(program, {"y": y}, probsl.MLE())
    torch.testing.assert_close(float(fit.point()["rate"]), 1 / 3, atol=1e-6, rtol=0)


def test_a_latent_without_a_support_is_refused_with_a_remedy():
    def program(y=None):
        z = pyro.sample("z", Unstated(torch.ones(())))
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"'z' is drawn from Unstated, .* support ="):
        probsl.fit(program, {"y": torch.ones(3)}, probsl.MAP())


def test_a_latent_on_a_sphere_is_refused_with_a_remedy():
    def program(y=None):
        z = pyro.sample("z", dist.ProjectedNormal(torch.ones(3)))
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.Normal(z[0], 1.0), obs=y)

    with pytest.raises(ValueError, match=r"'z' .* ProjectedNormal.* compute its value"):
        probsl.fit(program, {"y": torch.ones(3)}, probsl.MAP())
