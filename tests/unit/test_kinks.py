"""Minima on kinks: where they are, and what is called one."""

import itertools

import numpy as np
import pytest
import torch

from probsl.engine.ending import Ending
from probsl.engine.minimize.l1_penalty import L1Penalty
from probsl.engine.minimize.minimize import minimize
from probsl.engine.minimize.simplex import lightest


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_lightest_weights_are_those_of_all_faces():
    """Against the best of all faces, each solved by its equations."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        corners, linear = rng.normal(size=(5, 3)), 0.1 * rng.random(5)
        Q = corners @ corners.T
        best = np.inf
        for size in range(1, 5):
            for face in map(list, itertools.combinations(range(5), size)):
                system = np.ones((size + 1, size + 1))
                system[:size, :size], system[-1, -1] = Q[np.ix_(face, face)], 0
                right = np.r_[-linear[face], 1.0]
                weights = np.linalg.lstsq(system, right, rcond=None)[0][:size]
                if np.isclose(weights.sum(), 1) and (weights >= 0).all():
                    w = np.zeros(5)
                    w[face] = weights
                    best = min(best, w @ Q @ w / 2 + linear @ w)
        w = lightest(Q, linear)
        assert w.min() >= 0
        assert w.sum() == pytest.approx(1)
        assert w @ Q @ w / 2 + linear @ w == pytest.approx(best, abs=1e-10)


def test_the_largest_of_smooth_functions():
    """Two parabolas cross at the minimum, along a curve: Lemaréchal's picture."""

    def objective(x):
        return torch.maximum(x[0] ** 2 + (x[1] - 1) ** 2, x[0] ** 2 + 2 * x[1] ** 2)

    minimum = minimize(objective, vector(2.0, -1.3))
    assert minimum.ending is Ending.CONVERGED
    root = np.sqrt(2) - 1  # (y - 1)^2 = 2 y^2
    torch.testing.assert_close(minimum.x, vector(0.0, root), atol=1e-6, rtol=0)


def test_a_narrow_valley_of_kinks():
    """Rosenbrock's valley with a kink for its floor; not convex."""

    def objective(x):
        return 8 * (x[0] ** 2 - x[1]).abs() + (1 - x[0]) ** 2

    minimum = minimize(objective, vector(-1.2, 1.0))
    assert minimum.ending is Ending.CONVERGED
    torch.testing.assert_close(minimum.x, vector(1.0, 1.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("start", [0.3, -2.0, 8.0])
def test_a_median(start):
    y = vector(1.0, 2.0, 3.5, 5.0, 9.0)
    minimum = minimize(lambda x: (x - y).abs().mean(), vector(start))
    assert minimum.ending is Ending.CONVERGED
    assert float(minimum.x) == pytest.approx(3.5)


def test_a_jump_is_no_minimum():
    """At a jump no step improves, and the slopes there prove nothing."""

    def objective(x):
        return torch.where(x[0] > 0.5, x[0], 2 - x[0]) + x[1] ** 2

    minimum = minimize(objective, vector(0.9, 1.0))
    assert minimum.ending is Ending.STALLED
    assert minimum.value < 0.51


def test_the_penalty_keeps_exact_zeros_on_kinks():
    """Median regression with an absolute-value penalty, against linear programming."""
    from scipy.optimize import linprog

    rng = np.random.default_rng(3)
    X, weight = rng.normal(size=(50, 5)), 0.15
    y = X @ [2.0, 0.0, 0.0, -1.0, 0.0] + rng.normal(size=50)
    minimum = minimize(
        lambda b: (torch.tensor(y) - torch.tensor(X) @ b).abs().mean(),
        0.1 * torch.ones(5).double(),
        l1=L1Penalty(torch.zeros(5).double(), weight * torch.ones(5).double()),
    )
    costs = np.r_[np.full(10, weight), np.full(100, 1 / 50)]
    equations = np.hstack([X, -X, np.eye(50), -np.eye(50)])
    right = linprog(costs, A_eq=equations, b_eq=y, bounds=(0, None))
    b = right.x[:5] - right.x[5:10]
    assert minimum.ending is Ending.CONVERGED
    assert minimum.value == pytest.approx(right.fun, rel=1e-9)
    torch.testing.assert_close(minimum.x, torch.tensor(b), atol=1e-6, rtol=0)
    assert (minimum.x == 0).tolist() == (np.abs(b) < 1e-9).tolist()
