"""The leverage of rows in linear Normal regressions, and errors corrected for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.curvature.inverse import NoCovarianceError
from probsl.curvature.row_scores import row_scores
from probsl.engine.minimize.jacobian import jacobian
from probsl.program.scoring import Scoring
from probsl.program.sites import Role
from probsl.program.supports import unwrap

if TYPE_CHECKING:
    from probsl.program.coordinates import Coordinates
    from probsl.program.problem import Problem
    from probsl.program.target_density import Density

__all__ = ["LinearRegression", "corrected_products", "linear_regression"]

# How far a linear function may be from its tangent, relative to its size.
_LINEAR = 1e-9


class LinearRegression:
    """A Normal regression whose mean is linear in some coordinates.

    Parameters
    ----------
    design
        The derivatives of the means by the flat coordinates, shape ``[rows, d]``, over
        the scale of each row.
    weights
        The weights of the rows, shape ``[rows]``.
    residuals
        The observed values less their means, over the scale of each row.

    Attributes
    ----------
    columns
        The coordinates that the means depend on, shape ``[d]``.
    """

    def __init__(self, design: Tensor, weights: Tensor, residuals: Tensor) -> None:
        self.design = design
        self.weights = weights
        self.residuals = residuals
        self.columns = (design != 0).any(0)

    @property
    def leverage(self) -> Tensor:
        """The diagonal of the hat matrix, shape ``[rows]``."""
        root = self.weights.sqrt()[:, None] * self.design[:, self.columns]
        basis: Tensor = torch.linalg.qr(root / root.norm(dim=0)).Q
        return basis.square().sum(1)

    @property
    def rank(self) -> int:
        """The number of coefficients."""
        return int(self.columns.sum())


def linear_regression(
    problem: Problem, layout: Coordinates, x: Tensor
) -> LinearRegression:
    """Return the design of a linear Normal regression.

    Parameters
    ----------
    problem
        The problem, in float64.
    layout, x
        The flat coordinates, and the estimate [d].

    Raises
    ------
    NoCovarianceError
        Saying why the program is not such a regression.
    """
    problem.refuse_no_rows()
    observed = problem.sites_with_role(Role.OBSERVED)
    if len(observed) != 1 or problem.sites_with_role(Role.FACTOR, Role.ENUMERATED):
        _refuse("it has more than one observed site, factors or discrete latents")
    if not problem.data.complete:
        _refuse("its rows are not all in memory")
    (name,) = observed

    def parameters(point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = layout.constrain(point)
        scoring = Scoring(values, {s.name for s in problem.sites})
        with scoring:
            problem.run(values, problem.batch().arguments)
        fn: Any = unwrap(scoring.messages[name]["fn"])
        value = scoring.messages[name]["value"]
        if not isinstance(fn, torch.distributions.Normal) or value.dim() != 1:
            _refuse(f"site '{name}' is not Normal with one value per row")
        return fn.loc.expand(value.shape), fn.scale.expand(value.shape), value

    with problem.isolated(), torch.enable_grad():
        point = x.detach().requires_grad_()
        loc, scale, value = parameters(point)
        design = jacobian(loc, point)
        columns = (design != 0).any(0)
        if (jacobian(scale, point)[:, columns] != 0).any():
            _refuse("its scale depends on the coefficients of its mean")
        moved = x + columns * (1.0 + x.abs())
        change = parameters(moved)[0] - loc - design @ (moved - x)
        reach = design.abs() @ (moved - x).abs() + loc.abs()
        if (change.abs() > _LINEAR * reach.max()).any():
            _refuse("its mean is not linear in the parameters")
    weights = problem.data.held_weights
    if weights is None:
        weights = torch.ones_like(loc)
    scale = scale.detach()
    residuals = (value - loc).detach() / scale
    return LinearRegression(design / scale[:, None], weights.detach(), residuals)


def corrected_products(
    target: Density, layout: Coordinates, x: Tensor, kind: str
) -> Tensor:
    """Return the outer products of scores, corrected for leverage, [d, d].

    Parameters
    ----------
    target, layout, x
        As in `probsl.curvature.information.score_products`.
    kind
        ``"HC1"`` multiplies them by n / (n - k), ``"HC2"`` and ``"HC3"`` divide the
        score of each row by a power 1/2 or 1 of one minus its leverage (MacKinnon and
        White, 1985).
    """
    problem = target.problem
    regression = linear_regression(problem, layout, x)
    parts = [scores for scores, _ in row_scores(problem, layout, x)]
    scores = torch.cat(parts) * regression.weights[:, None]
    if kind == "HC1":
        count = len(scores)
        return scores.T @ scores * count / (count - regression.rank)
    left = 1 - regression.leverage
    if (left < torch.finfo(left.dtype).eps ** 0.5).any():
        row = int(left.argmin())
        raise NoCovarianceError(
            f"row {row} has a leverage of 1: its residual is zero whatever its value, "
            f"so kind='{kind}' does not exist; use kind='sandwich' or kind='HC1'"
        )
    powers = {"HC2": 1.0, "HC3": 2.0}
    return scores.T @ (scores / left[:, None] ** powers[kind])


def _refuse(why: str) -> None:
    raise NoCovarianceError(
        "corrections for leverage, kinds HC1 to HC3, exist for linear regressions with "
        f"Normal errors, and this program is not one: {why}; use kind='sandwich'"
    )
