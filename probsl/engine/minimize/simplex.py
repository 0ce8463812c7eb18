"""Minimizes a quadratic function over weights that add up to one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

__all__ = ["lightest"]

# Maximum number of iterations; 10 to 20 are usual.
ROUNDS = 60


def lightest(quadratic: Array, linear: Array) -> Array:
    """Minimize ``w'Qw / 2 + a'w`` over weights w >= 0 that add up to one.

    A primal-dual interior point method with Mehrotra's predictor and corrector: Nocedal
    and Wright (2006), "Numerical Optimization", algorithm 16.4.

    Parameters
    ----------
    quadratic
        Symmetric positive semidefinite matrix Q [m, m].
    linear
        Linear term a [m].

    Returns
    -------
    NDArray
        The weights [m].

    Examples
    --------
    The point of the triangle (1, 0), (-1, 0), (0, 2) that is nearest to the origin:

    >>> import numpy as np
    >>> from probsl.engine.minimize.simplex import lightest
    >>> corners = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]])
    >>> lightest(corners @ corners.T, np.zeros(3)).round(6) + 0.0
    array([0.5, 0.5, 0. ])
    """
    count = len(linear)
    size = max(float(np.abs(quadratic).max()), float(np.abs(linear).max()), 1e-300)
    quadratic, linear = quadratic / size, linear / size
    w = np.full(count, 1 / count)
    level = float((quadratic @ w + linear).min()) - 1.0
    slack = quadratic @ w + linear - level
    for _ in range(ROUNDS):
        dual = quadratic @ w + linear - level - slack
        missing = 1 - float(w.sum())
        gap = float(w @ slack) / count
        if gap < 1e-16 and abs(missing) < 1e-12 and np.abs(dual).max() < 1e-14:
            break
        matrix = quadratic + np.diag(slack / w)
        try:
            inverse = np.asarray(np.linalg.inv((matrix + matrix.T) / 2), np.float64)
        except np.linalg.LinAlgError:  # only rounding is left to gain
            break
        newton = _Newton(inverse, w, slack, dual, missing)
        step, rise, turn = newton.toward(-w * slack)
        ahead = (w + _reach(w, step) * step) @ (slack + _reach(slack, turn) * turn)
        center = gap * (float(ahead) / count / gap) ** 3
        step, rise, turn = newton.toward(center - w * slack - step * turn)
        near, far = _reach(w, step), _reach(slack, turn)
        w, level, slack = w + near * step, level + far * rise, slack + far * turn
    weights: Array = w / w.sum()
    return weights


class _Newton(NamedTuple):
    """The linear equations of one iteration, solved up to the right-hand side."""

    inverse: Array
    weights: Array
    slack: Array
    dual: Array
    missing: float

    def toward(self, target: Array) -> tuple[Array, float, Array]:
        """Return the steps of weights, multiplier and slack to a target [m]."""
        ones = self.inverse.sum(axis=1)
        ahead = self.inverse @ (target / self.weights - self.dual)
        rise = (self.missing - float(ahead.sum())) / float(ones.sum())
        step: Array = ahead + rise * ones
        return step, rise, (target - self.slack * step) / self.weights


def _reach(values: Array, step: Array) -> float:
    """Return how far values [m] can move along a step [m] and stay positive."""
    falling = step < 0
    if not falling.any():
        return 1.0
    return min(1.0, 0.995 * float((-values[falling] / step[falling]).min()))
