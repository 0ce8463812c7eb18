"""Ctrl-C at any instant leaves Pyro and torch as they were, and is a Ctrl-C.

Python looks for an interrupt where a function begins and after a call of C's. Here one
comes at such instants of calls of a program with nine plates: at the very same ones
each time, for a profiler counts them.
"""

import gc
import random
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from methods import DEEP
from pyro import poutine
from pyro.poutine import runtime
from torch import overrides

import probsl

# Where it comes while a generator is forgotten, Python itself drops it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

Y = torch.randn(5, *[2] * 8, generator=torch.Generator().manual_seed(5))


def program(y=None):
    plates = [pyro.plate(f"p{i}", 5 if i == 8 else 2, dim=-1 - i) for i in range(9)]
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with plates[7], plates[6], plates[5]:
        a = pyro.sample("a", dist.Normal(mu, 1.0))
    with plates[8], plates[7], plates[6], plates[5], plates[4]:  # noqa: SIM117
        with plates[3], plates[2], plates[1], plates[0]:
            pyro.sample("y", dist.Normal(a, 1.0), obs=y)


def process_state():
    """Return what an interrupt may leave changed."""
    return {
        "handlers": list(runtime._PYRO_STACK),
        "plates": list(runtime._DIM_ALLOCATOR._stack),
        "classes": [
            type(each) for each in (runtime._PYRO_STACK, runtime._DIM_ALLOCATOR)
        ],
        "parameters": dict(pyro.get_param_store().named_parameters()),
        "settings": pyro.settings.get(),
        "dtype": torch.get_default_dtype(),
        "random": torch.get_rng_state().tolist(),
        "gradients": torch.is_grad_enabled(),
        "function modes": overrides._get_current_function_mode_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "levels of vmap": torch._C._functorch.get_dynamic_layer_stack_depth(),
        "sampler": torch.distributions.dirichlet._Dirichlet,
    }


def instants_of(call):
    """Count the instants at which Python would look for an interrupt."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_return")

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def interrupt(call, instant):
    """Call it, and press Ctrl-C at an instant of it."""
    left = instant

    def profile(frame, event, argument):
        nonlocal left
        left -= event in ("call", "c_return")
        if left == 0:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        return call()
    finally:
        sys.setprofile(None)


def calls():
    fit = probsl.fit(program, {"y": Y}, probsl.MAP(max_steps=2))
    return {
        "fit": lambda: probsl.fit(program, {"y": Y}, probsl.MAP(max_steps=2)),
        "predict": lambda: fit.predict({"y": Y}, draws=2),
        "log score": lambda: probsl.log_score(fit, {"y": Y}),
    }


@pytest.mark.parametrize(
    ("name", "times"),
    [("fit", 24 if DEEP else 12), ("predict", 60), ("log score", 40)],
)
def test_ctrl_c_at_any_instant_leaves_nothing_behind(name, times):
    call = calls()[name]
    first = call()
    count, chosen = instants_of(call), random.Random(0)
    assert count > 1000
    ended = set()
    with poutine.trace(), pyro.plate("p0", 3):  # those of the caller's stay
        before = process_state()
        for _ in range(times):
            instant = chosen.randrange(count)
            try:
                found = interrupt(call, instant)
            except KeyboardInterrupt:
                ended.add("raised")
            else:
                ended.add(getattr(found, "status", None))
            assert process_state() == before, f"instant {instant} of {count}"
            gc.collect(0)
            assert process_state() == before, f"after instant {instant} of {count}"
    assert "raised" in ended
    if name == "fit":
        assert torch.equal(call().losses, first.losses)


def test_an_error_that_comes_of_ctrl_c_is_a_ctrl_c():
    """Pyro's assertion about its plates says nothing to who has pressed Ctrl-C."""

    def entered_by_half(y=None):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 3):
            try:
                pyro.sample("y", dist.Normal(m, 1.0), obs=y)
                raise KeyboardInterrupt
            finally:
                raise AssertionError

    with pytest.raises(KeyboardInterrupt):
        probsl.fit(entered_by_half, {"y": torch.ones(3)}, probsl.MAP())
    assert runtime._DIM_ALLOCATOR._stack == []


def test_an_error_of_a_program_stays_one_while_ctrl_c_is_handled():
    def fails(y=None):
        raise ZeroDivisionError

    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(ZeroDivisionError):
            probsl.fit(fails, {"y": torch.ones(3)}, probsl.MAP())
