"""Every test starts from one seed, and leaves the process as it was."""

import itertools
import os

import pyro
import pytest
import torch
from hypothesis import HealthCheck, settings

from probsl.engine.steps import stochastic

# They are run by hand, in an environment of their own.
collect_ignore = ["benchmarks"]

# Few examples, always the same ones; HYPOTHESIS_PROFILE=deep looks further.
settings.register_profile(
    "quick",
    derandomize=True,
    max_examples=6,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("deep", max_examples=200, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Let one worker have all tests that share fits, which it then makes once."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        group = group_of(item)
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(str(group)))


# All of their tests share fits.
TOGETHER = ("test_guides", "test_isolation", "test_plots")


def group_of(item):
    """Return what tests with the same fits share: a file, a program or its name."""
    module = getattr(item, "module", None)
    if getattr(module, "__name__", None) in TOGETHER:
        return module.__name__
    if not hasattr(module, "fitted"):
        return None
    given = getattr(getattr(item, "callspec", None), "params", {})
    if "pair" in given:
        return given["pair"].case
    return given.get("case", given.get("name"))


@pytest.fixture(autouse=True)
def own_random_numbers_and_no_leftovers():
    """Seed torch for each test alone; no test may leave Pyro parameters behind."""
    store = pyro.get_param_store()
    before = {name: id(value) for name, value in store.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed is slower
        yield
    after = {name: id(value) for name, value in store.named_parameters()}
    assert after == before, "the test changed Pyro's global parameter store"


@pytest.fixture(autouse=True)
def a_clock_of_its_own(monkeypatch):
    """Let each block of noisy steps seem to take half a second, on any machine.

    The clock decides whether steps are compiled, and on a busy machine otherwise.
    """
    clock = itertools.count(0.0, 0.5).__next__
    monkeypatch.setattr(stochastic, "clock", clock)
