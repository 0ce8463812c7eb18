"""What is refused, in which words, and the small programs that the cases use."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import probsl

if TYPE_CHECKING:
    from collections.abc import Callable

N = 20
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Refusal:
    """A call that must raise an error with certain words.

    Attributes
    ----------
    call
        Called without arguments.
    error
        The exact type of what it raises.
    words
        The message, or a note of it, holds each of them: the site, the argument or
        the row, and what to do.
    """

    call: Callable[[], Any]
    error: type[Exception]
    words: tuple[str, ...]

    def __str__(self) -> str:
        return self.call.__name__.replace("_", " ")

    def check(self) -> None:
        """Check what is said, and that it is one sentence."""
        with pytest.raises(self.error) as caught:
            self.call()
        assert type(caught.value) is self.error
        message = str(caught.value)
        notes = getattr(caught.value, "__notes__", [])
        text = "\n".join([message, *notes])
        assert [word for word in self.words if word not in text] == [], text
        # A program's own error is raised as it is, with notes.
        if not notes:
            sentence = message.replace("...", "")
            assert "\n" not in sentence
            assert ". " not in sentence
            assert not sentence.endswith(".")

    def check_nothing_is_left(self) -> None:
        """Check that after the error the process is as it was before."""
        before = process_state()
        with pytest.raises(self.error):
            self.call()
        assert process_state() == before


class Refusals(list[Refusal]):
    """A list to which a decorator adds."""

    def case(self, error: type[Exception], *words: str) -> Callable[..., Any]:
        """Add a call that must raise `error`, in a sentence with `words`."""

        def add(call: Callable[[], Any]) -> Callable[[], Any]:
            self.append(Refusal(call, error, words))
            return call

        return add


def process_state() -> dict[str, Any]:
    """Return what a fit may change while it runs, and must put back."""
    return {
        "settings": pyro.settings.get(),
        "parameters": dict(pyro.get_param_store().named_parameters()),
        "handlers": list(pyro.poutine.runtime._PYRO_STACK),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002
        "python": random.getstate(),
    }


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal numbers, of float32, the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = numbers(N, 2)
Y = X @ torch.tensor([1.0, -1.0]) + 0.1 * numbers(N, seed=1)
GROUP = torch.arange(N) % 3


def with_entry(array: Tensor, value: float, row: int = 3) -> Tensor:
    """Return a copy of an array with another value in one row."""
    changed = array.clone()
    changed[row] = value
    return changed


def location(*shape: int) -> Tensor:
    """Return a parameter of a guide."""
    return pyro.param("location", torch.zeros(shape))


def linear(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)


def mean(y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def means(group, y=None):
    with pyro.plate("groups", int(group.max()) + 1):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Normal(mu[group], 1.0), obs=y)


def three_means(group, y=None):
    with pyro.plate("groups", 3):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Normal(mu[group], 1.0), obs=y)


def with_sizes(x, group, size, y=None):
    """Take one row of x and a group per row, and one size per group."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Normal(mu * x[:, 0] + size[group], 1.0), obs=y)


def kernel(k, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(k)):
        pyro.sample("y", dist.Normal(mu * k.sum(1), 1.0), obs=y)


def coin(y=None):
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("tosses", N):
        pyro.sample("y", dist.Bernoulli(p), obs=y)


def die(y=None):
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("throws", N):
        pyro.sample("y", dist.Categorical(p), obs=y)


def joint(y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0).expand([N]).to_event(1), obs=y)


def mixing(matrix):
    """Return a program that multiplies what it is given by a constant."""

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ (matrix @ w), 1.0), obs=y)

    return program


def layer(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> nn.Linear:
    """Return a linear layer, made without torch's global random numbers."""
    with torch.random.fork_rng(devices=[]):
        return nn.Linear(rows, columns, dtype=dtype)


def network(*layers):
    """Return a program whose mean is a network."""
    net = nn.Sequential(*layers)

    def program(x, y=None):
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(net(x)[:, 0], sigma), obs=y)

    return program


def fit(program=linear, method=None, *, data=None, **options) -> probsl.Fit:
    data = {"x": X, "y": Y} if data is None else data
    return probsl.fit(program, data, method or probsl.MAP(), **options)


def fit_y(program, method=None, *, y=Y, **options) -> probsl.Fit:
    return fit(program, method, data={"y": y}, **options)


@cache
def fitted() -> probsl.Fit:
    """Return one fit to predict with."""
    return fit()


@cache
def fitted_labels() -> probsl.Fit:
    """Return a fit with the groups a and b."""
    labels = pd.Series(["a", "b"] * (N // 2), dtype="category")
    return fit(means, data={"group": labels, "y": Y})
