"""The maximum of a density on the surface where a function has a given value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from probsl.curvature.density_parts import density_parts
from probsl.curvature.information import SummedHessian

if TYPE_CHECKING:
    from collections.abc import Callable

    from probsl.program.coordinates import Coordinates
    from probsl.program.target_density import Density

__all__ = ["ConstrainedMaximum", "Found"]

_STEPS, _HALVINGS = 50, 30
# A step that gains fewer nats, on a surface met within this share of a standard
# error, is the last.
_GAIN, _MET = 1e-9, 1e-8


@dataclass(frozen=True, eq=False)
class Found:
    """A maximum under a constraint.

    Attributes
    ----------
    x
        The point, shape ``[d]``.
    value
        The log density there.
    gradient
        The gradient of the log density there, shape ``[d]``.
    """

    x: Tensor
    value: float
    gradient: Tensor


class ConstrainedMaximum:
    """Maximizes a log density under equality constraints.

    Sequential quadratic programming with exact Hessians and an exact penalty in the
    line search (Nocedal and Wright, 2006, algorithm 18.3).

    Parameters
    ----------
    target
        The density; it is evaluated in float64.
    layout
        The layout of its flat vector [d].
    functions
        Maps the flat vector, with gradients, to the constrained values [m].
    units
        The size of a noticeable change of each constrained value, shape ``[m]``.
    """

    def __init__(
        self,
        target: Density,
        layout: Coordinates,
        functions: Callable[[Tensor], Tensor],
        units: Tensor,
    ) -> None:
        self._target = target.in_double()
        self._layout = layout
        self._functions = functions
        self._units = units
        self._hessian = SummedHessian()

    def at(self, values: Tensor, start: Tensor) -> Found | None:
        """Return the maximum where the functions have given values; None if none.

        Parameters
        ----------
        values
            The values, shape ``[m]``.
        start
            A point near it, shape ``[d]``.
        """
        with self._target.problem.isolated():
            try:
                return self._search(values, start)
            except LinAlgError:
                return None

    def density(self, x: Tensor) -> tuple[float, Tensor]:
        """Return the log density and its gradient [d] at a point."""
        total, gradient = 0.0, torch.zeros_like(x)
        for part in density_parts(self._target, self._layout):
            with torch.enable_grad():
                point = x.detach().requires_grad_()
                value = part(point)
                (slope,) = torch.autograd.grad(value, point, materialize_grads=True)
            total += float(value.detach())
            gradient += slope
        return total, gradient

    def _search(self, values: Tensor, start: Tensor) -> Found | None:
        x = start.detach().clone()
        here, gradient = self.density(x)
        for _ in range(_STEPS):
            surface, normals, bend = self._surface(x)
            missing = values - surface
            met = bool((missing.abs() <= _MET * self._units).all())
            hessian = -self._hessian(density_parts(self._target, self._layout), x)
            multipliers = torch.linalg.lstsq(normals.T, gradient[:, None]).solution
            curved = hessian + bend(multipliers[:, 0])
            step, multipliers = _quadratic(curved, normals, gradient, missing)
            if not bool(step.isfinite().all()):
                return None
            gain = float(step @ gradient - step @ curved @ step / 2)
            if met and abs(gain) < _GAIN:
                return Found(x, here, gradient)
            price = 2 * float(multipliers.abs().max()) + 1e-6
            merit = here - price * float(missing.abs().sum())
            ahead = self._stepped(x, step, values, merit, price)
            if ahead is None:
                return Found(x, here, gradient) if met and abs(gain) < 1e-5 else None
            x, here, gradient = ahead
        return None

    def _stepped(
        self, x: Tensor, step: Tensor, values: Tensor, merit: float, price: float
    ) -> tuple[Tensor, float, Tensor] | None:
        """Return the first halving of a step that raises the penalized density."""
        for halvings in range(_HALVINGS):
            ahead = x + 0.5**halvings * step
            with torch.no_grad():
                missing = (values - self._functions(ahead)).abs().sum()
            density, gradient = self.density(ahead)
            reached = density - price * float(missing)
            if reached > merit - 1e-11 * max(1.0, abs(merit)) and bool(
                gradient.isfinite().all()
            ):
                return ahead, density, gradient
        return None

    def _surface(self, x: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Return the functions [m], their Jacobian [m, d], and their curvature.

        The last maps multipliers [m] to the weighted sum of their Hessians [d, d].
        """
        grad = partial(torch.autograd.grad, materialize_grads=True)
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            values = self._functions(point)
            rows = [grad(value, point, create_graph=True)[0] for value in values]
            normals = torch.stack(rows)

        def bend(multipliers: Tensor) -> Tensor:
            with torch.enable_grad():
                weighted = multipliers @ normals
            if not weighted.requires_grad:
                return x.new_zeros(len(x), len(x))
            lines = [grad(each, point, retain_graph=True)[0] for each in weighted]
            return torch.stack(lines)

        return values.detach(), normals.detach(), bend


def _quadratic(
    hessian: Tensor, normals: Tensor, gradient: Tensor, missing: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the step [d] and multipliers [m] of the quadratic problem.

    Maximizes ``gradient @ p - p @ hessian @ p / 2`` under ``normals @ p = missing``, by
    a basis of the directions within the surface, in which the matrix is made positive
    definite if it is not.
    """
    size, count = len(gradient), len(missing)
    basis, triangle = torch.linalg.qr(normals.T, mode="complete")
    across, within = basis[:, :count], basis[:, count:]
    first = torch.linalg.solve_triangular(
        triangle[:count].T, missing[:, None], upper=False
    )[:, 0]
    step = across @ first
    if size > count:
        inner = within.T @ hessian @ within
        values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
        floor = 1e-10 * values.abs().max().clamp(min=1e-300)
        rest = vectors.T @ (within.T @ (gradient - hessian @ step))
        step = step + within @ (vectors @ (rest / values.abs().clamp(min=floor)))
    multipliers = torch.linalg.solve_triangular(
        triangle[:count], (across.T @ (gradient - hessian @ step))[:, None], upper=True
    )[:, 0]
    return step, multipliers
