"""Errors inside a program are its own, with the site, the line and the arguments."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probsl

Y = torch.tensor([1.0, 2.0, 3.0])


def of_other_shape(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        mean = x @ w
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def out_of_range(x, y=None):
    with pyro.plate("groups", 2):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        mean = level[x]
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def logistic(value):
    return torch.as_tensor(1 / (1 + np.exp(-value.numpy())))


def in_numpy(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(logistic(w * x), 1.0), obs=y)


@pytest.mark.parametrize(
    ("program", "x", "error", "site", "line"),
    [
        (of_other_shape, torch.ones(3, 2), RuntimeError, "w", "mean = x @ w"),
        (out_of_range, torch.tensor([0, 1, 2]), IndexError, "level", "mean = level[x]"),
        (in_numpy, Y, RuntimeError, "w", "np.exp(-value.numpy())"),
    ],
    ids=["shape", "index", "numpy"],
)
def test_an_error_in_a_program_names_site_line_and_shapes(
    program, x, error, site, line
):
    with pytest.raises(error) as caught:
        probsl.fit(program, {"x": x, "y": Y}, probsl.MAP())
    notes = "\n".join(caught.value.__notes__)
    assert f"after sample site '{site}'" in notes
    assert f"the line of the program is {__file__.rpartition('/')[2]}:" in notes
    assert line in notes
    assert f"x of shape {tuple(x.shape)}, y of shape (3,)" in notes


def test_an_error_in_a_guide_names_its_line():
    def program(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y=None):
        location = torch.ones(3) + torch.ones(2)
        pyro.sample("mu", dist.Normal(location.sum(), 1.0))

    with pytest.raises(RuntimeError) as caught:
        probsl.fit(program, {"y": Y}, probsl.SVI(guide))
    notes = "\n".join(caught.value.__notes__)
    assert "raised by the guide" in notes
    assert "location = torch.ones(3) + torch.ones(2)" in notes


def test_a_refusal_has_no_line_of_the_program():
    def program(y=None):
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.raises(ValueError, match="no latent site") as caught:
        probsl.fit(program, {"y": Y}, probsl.MAP())
    assert not getattr(caught.value, "__notes__", [])
