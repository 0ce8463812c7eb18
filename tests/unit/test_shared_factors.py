"""Products that a batch shares a factor of: the same numbers, by one product."""

import pytest
import torch

from probsl.engine.minimize import shared_factors
from probsl.engine.minimize.landscape import FEW, Landscape

DOUBLE = torch.float64
SIZE = FEW + 6
MATRIX = torch.randn(40, SIZE, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def objective(x):
    """One that multiplies from the left, from the right, and by another batch."""
    left, right = MATRIX @ x, x.square() @ MATRIX.T
    pairs = torch.bmm(x.reshape(2, -1, 1), x.reshape(2, 1, -1))
    return left.tanh().sum() + right.cos().sum() + pairs.square().sum()


@pytest.mark.parametrize("available", [True, False])
def test_the_hessian_is_that_of_single_rows(available, monkeypatch):
    if not available:  # torch has no such mode
        monkeypatch.setattr(shared_factors, "_mode", lambda: None)
    x = torch.linspace(-1, 1, SIZE, dtype=DOUBLE)
    single = Landscape(objective)
    single._batched = False
    landscape = Landscape(objective)
    found = torch.from_numpy(landscape.hessian(x))
    torch.testing.assert_close(found, torch.from_numpy(single.hessian(x)))
    assert landscape._batched


def test_a_batch_that_shares_a_matrix_takes_one_product():
    vectors = torch.eye(SIZE, dtype=DOUBLE)
    with (
        shared_factors.shared_factors_multiplied_once(),
        torch.profiler.profile() as profile,
    ):
        found = torch.func.vmap(lambda v: MATRIX @ v)(vectors)
    torch.testing.assert_close(found, MATRIX.T.contiguous())
    names = {event.key for event in profile.key_averages()}
    assert "aten::mm" in names
    assert "aten::bmm" not in names
