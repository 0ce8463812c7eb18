"""What several laws are given."""

import emulation
import pytest


@pytest.fixture
def device(monkeypatch):
    """Return a device that is emulated for the length of a test."""
    with emulation.emulated(monkeypatch):
        yield emulation.DEVICE
