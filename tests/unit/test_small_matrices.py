"""Operations that are written out are torch's own."""

import pytest
import torch

from probsl.engine.compile import small_matrices
from probsl.engine.steps.step import Step, Walk

aten = torch.ops.aten


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def positive_definite(*shape):
    root = normal(*shape)
    return root @ root.mT + torch.eye(shape[-1])


def lower(*shape):
    return torch.linalg.cholesky(positive_definite(*shape))


CASES = {
    "product": (aten.mm.default, (normal(4, 7), normal(7, 3)), {}),
    "products": (aten.bmm.default, (normal(2, 4, 7), normal(2, 7, 3)), {}),
    "sum and product": (
        aten.addmm.default,
        (normal(3), normal(4, 7), normal(7, 3)),
        {"beta": 0.5, "alpha": 2.0},
    ),
    "narrow product": (aten.mm.default, (normal(90, 80), normal(80, 9)), {}),
    "narrow products": (aten.bmm.default, (normal(2, 90, 80), normal(2, 80, 9)), {}),
    "product alone": (
        aten.addmm.default,
        (normal(3) * torch.nan, normal(4, 7), normal(7, 3)),
        {"beta": 0},
    ),
    "factor": (aten.linalg_cholesky_ex.default, (positive_definite(5, 5),), {}),
    "factors": (aten.linalg_cholesky_ex.default, (positive_definite(2, 1, 3, 3),), {}),
    "running sum": (aten.cumsum.default, (normal(3, 5), -1), {}),
    "first running sum": (aten.cumsum.default, (normal(3, 5), 0), {}),
    "running count": (aten.cumsum.default, (normal(3, 5) > 0, 1), {}),
    "running product": (aten.cumprod.default, (normal(3, 5), 1), {}),
    "running product before an axis": (aten.cumprod.default, (normal(3, 5), -2), {}),
    "infinite running sum": (aten.cumsum.default, (1 / torch.arange(3.0), 0), {}),
    "running sum of another type": (
        aten.cumsum.default,
        (torch.arange(4), 0),
        {"dtype": torch.float64},
    ),
}
for upper in (False, True):
    for left in (False, True):
        for unitriangular in (False, True):
            factor = lower(2, 4, 4)
            right = normal(2, 4, 3)
            CASES[f"solve {upper} {left} {unitriangular}"] = (
                aten.linalg_solve_triangular.default,
                (factor.mT if upper else factor, right if left else right.mT),
                {"upper": upper, "left": left, "unitriangular": unitriangular},
            )


def written_out(operation, table=None):
    return small_matrices.written_out(table or {})[operation]


@pytest.mark.parametrize("name", CASES)
def test_written_out_is_what_torch_computes(name):
    operation, arguments, options = CASES[name]
    expected = operation(*arguments, **options)
    found = written_out(operation)(*arguments, **options)
    torch.testing.assert_close(found, expected)
    if torch.is_tensor(expected):
        assert found.dtype == expected.dtype
    else:
        assert found[0].stride() == expected[0].stride()


def test_large_matrices_are_left_to_torch_or_to_another_decomposition():
    wide = normal(300, 300)
    for operation, arguments, options in (
        (aten.mm.default, (wide, wide), {}),
        (aten.addmm.default, (wide, wide, wide), {}),
        (aten.linalg_cholesky_ex.default, (wide,), {}),
        (aten.linalg_solve_triangular.default, (wide, wide), {"upper": False}),
        (aten.cumsum.default, (wide, 0), {}),
        (aten.cumprod.default, (wide, 0), {}),
    ):
        made = written_out(operation)(*arguments, **options)
        assert made is NotImplemented
        others = {operation: lambda *_, **__: "another"}
        assert written_out(operation, others)(*arguments, **options) == "another"


def small(state, given):
    """Return a state and a loss by way of everything that is written out."""
    matrix = (state.unsqueeze(-1) * given).cos()
    factor = torch.linalg.cholesky(matrix @ matrix.mT + 3 * torch.eye(3))
    solved = torch.linalg.solve_triangular(factor, matrix, upper=False)
    mask = torch.arange(3).unsqueeze(-1) > torch.arange(3)
    sums = solved[mask].cumsum(0) * state.cumprod(0)
    return (state + sums) / 4, solved.square().sum()


def walk(function):
    given = normal(40, 3, 3).float()
    return Walk(Step(function), torch.ones(3), [given])


def test_a_step_on_small_matrices_is_made_of_loops_alone():
    made, eager = walk(small), walk(small)
    assert made.compile()
    assert not any(call.library for call in made._replay._calls)
    for one in (made, eager):
        one.run(40)
    torch.testing.assert_close(made.state, eager.state)
    torch.testing.assert_close(made.losses, eager.losses)


def test_what_has_no_factor_gives_a_loss_that_is_not_finite():
    def indefinite(state, given):
        matrix = given @ given.mT - given[0, 0] * torch.eye(3)
        return state / 2, torch.linalg.cholesky(matrix).sum() + state.sum()

    made = Walk(Step(indefinite), torch.ones(3), [torch.zeros(40, 3, 3)])
    made.load([torch.eye(3).expand(40, 3, 3) * -1])
    assert made.compile()
    made.load([torch.eye(3).expand(40, 3, 3) * 2])
    made.run(40)
    assert made.losses.isfinite().all()
    made.load([torch.eye(3).expand(40, 3, 3)])
    made.run(40)
    assert not made.losses.isfinite().any()
