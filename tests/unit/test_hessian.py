"""Every way to compute a Hessian gives the same matrix."""

import subprocess
import sys

import pytest
import torch

from probsl.engine.minimize import hessian
from probsl.engine.minimize.hessian import Hessian, nodes_of, rows_by

DOUBLE = torch.float64


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=DOUBLE, generator=generator)


ROWS, SIZE = 40, 66
MATRIX = normal(ROWS, SIZE)
Y = normal(ROWS, seed=1).sign()
GROUP = torch.arange(ROWS) % (SIZE - 2)


def regression(x):
    """One linear predictor from the left, one from the right."""
    left, right = MATRIX @ x, x.square() @ MATRIX.T
    return torch.nn.functional.softplus(-Y * left).sum() + right.cos().sum()


def hierarchy(x):
    means, spread = x[2:] * x[0].exp(), x[1].exp()
    return ((Y - means[GROUP]) / spread).square().sum() + ROWS * x[1] + x.square().sum()


def network(x):
    first, last = x[:60].reshape(6, 10), x[60:]
    return (Y - (MATRIX[:, :10] @ first.T).tanh() @ last).square().sum()


def covariance(x):
    factor = torch.bmm(x[:64].reshape(4, 4, 4), x[:64].reshape(4, 4, 4).mT)
    factor = torch.linalg.cholesky(factor + torch.eye(4, dtype=DOUBLE))
    return factor.diagonal(dim1=1, dim2=2).log().sum() + (x[64] * x[65]).sin()


OBJECTIVES = [regression, hierarchy, network, covariance]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_way_gives_the_same_matrix(objective):
    x = torch.linspace(-1, 1, SIZE, dtype=DOUBLE)
    expected = torch.autograd.functional.hessian(objective, x)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(leaf), leaf, create_graph=True)
    chosen = Hessian(objective)
    found = {together: rows_by(gradient, leaf, together) for together in (1, 2, 7, 99)}
    found |= {"first": chosen(x), "second": chosen(x)}
    assert chosen.together > 1
    for way, matrix in found.items():
        distance = float((matrix - expected).abs().max() / expected.abs().max())
        assert distance < 1e-10, way


def test_large_tensors_are_not_multiplied(monkeypatch):
    """The larger the tensors of a pass, the fewer passes are made at once."""
    monkeypatch.setattr(hessian, "CACHED", 5 * 8 * SIZE)
    monkeypatch.setattr(hessian, "KEPT", 20 * 8 * SIZE)
    x = torch.linspace(-1, 1, SIZE, dtype=DOUBLE)
    by_matrix, in_cache = (
        Hessian(regression),
        Hessian(lambda x: (x @ x + Y).tanh().sum()),
    )
    by_matrix(x), in_cache(x)
    assert in_cache.together == 5  # what the cache holds
    assert by_matrix.together == 20  # half of the bytes of the matrix
    monkeypatch.setattr(hessian, "KEPT", 8 * SIZE // 2)
    large = Hessian(regression)
    large(x)
    assert large.together == hessian.SEVERAL


def test_what_cannot_be_vectorized_is_computed_row_by_row():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, slope):
            (x,) = ctx.saved_tensors
            return slope * 3 * x**2 if bool(slope.detach().sum() < 1e9) else slope

    found = Hessian(lambda x: Cube.apply(Cube.apply(x)).sum() + x[0] * x[1])
    x = torch.tensor([1.0, 2.0], dtype=DOUBLE)
    expected = torch.tensor([[72.0, 1.0], [1.0, 72.0 * 2**7]], dtype=DOUBLE)
    for _ in range(2):  # the second time it is known
        torch.testing.assert_close(found(x), expected)
        assert found.together == 1


def test_nothing_stays_behind_on_the_graph():
    x = torch.linspace(-1, 1, SIZE, dtype=DOUBLE).requires_grad_()
    (gradient,) = torch.autograd.grad(regression(x), x, create_graph=True)
    rows_by(gradient, x, 8)
    assert len(nodes_of(gradient)) > 3
    assert not gradient._backward_hooks


def test_no_symbolic_algebra_is_imported():
    """At the first use of a vectorized `torch.autograd.grad` torch imports sympy."""
    script = """
import sys, torch
from probsl.engine.minimize.landscape import Landscape
found = Landscape(lambda x: x.square().sum()).hessian(torch.zeros(70))
assert found[0, 0] == 2, found
sys.exit("sympy" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
