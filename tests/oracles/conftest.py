"""What several of these files need."""

import pytest
import torch


@pytest.fixture
def float64_default():
    """Compute in float64 where a problem is asked directly, as a fit asks it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
