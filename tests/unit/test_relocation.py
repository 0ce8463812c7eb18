"""Distributions made on one device and used on another."""

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from torch.distributions import Distribution

from probsl.program.relocation import relocated

META = torch.device("meta")
LINE = dist.Normal(torch.zeros(3), torch.ones(3))
WARPED = dist.TransformedDistribution(
    LINE, [transforms.AffineTransform(torch.ones(3), 2.0), transforms.ExpTransform()]
)
MADE = {
    "normal": LINE,
    "event": LINE.to_event(1),
    "expanded": dist.Normal(0.0, 1.0).expand([2, 3]),
    "masked": LINE.mask(torch.ones(3, dtype=torch.bool)),
    "transformed": WARPED,
    "inverse": dist.TransformedDistribution(
        LINE, transforms.AffineTransform(torch.ones(3), 2.0).inv
    ),
    "uniform": dist.Uniform(torch.zeros(3), torch.ones(3)),
    "mixture": dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), LINE),
    "matrix": dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
    "simplex": dist.Dirichlet(torch.ones(3)),
    "correlation": dist.LKJCholesky(3, torch.tensor(2.0)),
    "point": dist.Delta(torch.ones(3)),
}


def tensors(value, seen):
    """Yield every tensor in an object, wherever it holds it."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    parts = vars(value).values() if hasattr(value, "__dict__") else ()
    if isinstance(value, list | tuple):
        parts = value
    for part in parts:
        yield from tensors(part, seen)


@pytest.mark.parametrize("name", MADE)
def test_a_distribution_is_moved_whole_and_the_first_stays(name):
    made = MADE[name]
    made.log_prob(made.sample())
    moved = relocated(made, META)
    assert isinstance(moved, Distribution)
    assert {t.device for t in tensors(moved, set())} == {META}
    assert {t.device.type for t in tensors(made, set())} == {"cpu"}
    assert moved.batch_shape == made.batch_shape
    assert moved.event_shape == made.event_shape
    assert relocated(moved, META) is moved
    if name not in ("mixture", "correlation", "simplex"):  # no sampler without numbers
        assert moved.sample().device == META


def test_a_distribution_that_is_there_is_left_as_it_is():
    for made in MADE.values():
        assert relocated(made, torch.device("cpu")) is made


def test_what_a_transform_remembers_is_not_moved_along():
    made = transforms.AffineTransform(torch.ones(3), 2.0, cache_size=1)
    value = made(torch.zeros(3))
    assert made.inv(value) is not None
    moved = relocated(made, META)
    assert moved.inv(torch.zeros(3, device=META)).device == META
    assert made.inv(value).device.type == "cpu"
