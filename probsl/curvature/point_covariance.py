"""The covariance matrix of a point estimate, and of functions of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from probsl.curvature.expected_information import expected_information
from probsl.curvature.information import observed_information, score_products
from probsl.curvature.inverse import Inverse, NoCovarianceError, inverted
from probsl.curvature.leverage import corrected_products
from probsl.engine.minimize.jacobian import jacobian
from probsl.options import did_you_mean
from probsl.program.sites import Role
from probsl.program.target_density import TargetDensity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from probsl.program.coordinates import Coordinates
    from probsl.program.problem import Problem
    from probsl.program.target_density import Density

__all__ = [
    "CovarianceKind",
    "NoCovarianceError",
    "PointCovariance",
    "Propagated",
    "check_kind",
    "point_covariance",
]

CovarianceKind = Literal[
    "observed", "expected", "opg", "sandwich", "cluster", "HC1", "HC2", "HC3"
]
KINDS: tuple[str, ...] = get_args(CovarianceKind)
_ROBUST = ("sandwich", "cluster", "HC1", "HC2", "HC3")
# Maximum number of flat coordinates of a dense matrix.
DENSE = 5000


@dataclass(frozen=True, eq=False)
class Propagated:
    """Functions of an estimate with their covariance, by the delta method.

    Attributes
    ----------
    values
        Their values at the estimate, shape ``[m]``.
    derivatives
        Their Jacobian J, shape ``[m, d]``.
    matrix
        The covariance C of the flat vector, shape ``[d, d]``.
    determined
        Which of them have one: their gradient has no part along a direction that the
        data do not determine, or along a coordinate that was held still, ``[m]``.
    """

    values: Tensor
    derivatives: Tensor
    matrix: Tensor
    determined: Tensor

    @property
    def covariance(self) -> Tensor:
        """J C J', shape ``[m, m]``; NaN in the rows and columns without one."""
        covariance = self.derivatives @ self.matrix @ self.derivatives.T
        both = self.determined[:, None] & self.determined
        return torch.where(both, covariance, torch.nan)

    @property
    def sd(self) -> Tensor:
        """Standard errors, shape ``[m]``; NaN if there are none."""
        variances = ((self.derivatives @ self.matrix) * self.derivatives).sum(1)
        return torch.where(self.determined, variances.clamp(min=0).sqrt(), torch.nan)


@dataclass(frozen=True, eq=False)
class PointCovariance:
    """The covariance of a point estimate in flat coordinates, in float64.

    Attributes
    ----------
    problem
        The problem, in float64.
    layout
        The layout of the flat vector.
    x
        The estimate, shape ``[d]``.
    matrix
        Its covariance, shape ``[d, d]``.
    inverse
        The inverse of the information matrix, with the directions that are free.
    left_out
        Coordinates that were held still, shape ``[d]``.
    kind
        How it was computed.
    withheld
        Reason -> the coordinates whose elements have no errors for it, ``[d]``.
    penalized
        Whether the density has priors.
    note
        A sentence on how it was computed, for people; empty if there is nothing to say.
    """

    problem: Problem
    layout: Coordinates
    x: Tensor
    matrix: Tensor
    inverse: Inverse
    left_out: Tensor
    kind: str
    withheld: Mapping[str, Tensor] = field(default_factory=dict)
    penalized: bool = False
    note: str = ""

    def of(self, function: Callable[[Mapping[str, Tensor]], Tensor]) -> Propagated:
        """Return functions of the estimate with their covariance.

        Parameters
        ----------
        function
            Maps the constrained values of the latents and the unconstrained ones of
            own parameters to a tensor ``[m]``. It is called inside the problem's
            isolation, with gradients.

        Notes
        -----
        The delta method: the covariance of f(x) is J C J', where J is its Jacobian.
        """
        with self.problem.isolated(), torch.enable_grad():
            point = self.x.detach().requires_grad_()
            values = function(self.layout.constrain(point))
            derivatives = jacobian(values, point)
        still = (derivatives[:, self.left_out] != 0).any(1)
        determined = self.inverse.determines(derivatives) & ~still
        return Propagated(values.detach(), derivatives, self.matrix, determined)

    def withheld_elements(self) -> dict[str, dict[str, Tensor]]:
        """Return latent or own parameter -> reason -> its elements withheld for it."""
        found: dict[str, dict[str, Tensor]] = {}
        for reason, mask in self.withheld.items():
            for entry, part in self.layout.split(mask):
                if part.any():
                    same = entry.flat_shape == entry.shape
                    elements = part if same else part.any().expand(entry.shape)
                    found.setdefault(entry.name, {})[reason] = elements
        return found


def point_covariance(
    target: Density,
    layout: Coordinates,
    x: Tensor,
    kind: CovarianceKind = "observed",
    *,
    left_out: Tensor | None = None,
    clusters: Tensor | None = None,
) -> PointCovariance:
    """Return the covariance of the maximum of a density.

    Parameters
    ----------
    target
        The density.
    layout
        The layout of the point.
    x
        The point, shape ``[d]``.
    kind
        ``"observed"``: the inverse of the negative Hessian. ``"expected"``: that of its
        expectation, the Fisher information. ``"opg"``: that of the outer products of
        the rows' scores. ``"sandwich"``: the outer products between two inverse
        negative Hessians (White, 1982), also for weights that are not frequencies.
        ``"cluster"``: scores are added up within clusters first, with the factor
        G / (G - 1) for G clusters. ``"HC1"``, ``"HC2"``, ``"HC3"``: the sandwich of
        linear Normal regressions, corrected for the leverage of rows (MacKinnon and
        White, 1985).
    left_out
        Coordinates to hold still, at the edge of a support or at a kink.
    clusters
        The cluster of each row, counted from 0; for kind "cluster".

    Raises
    ------
    NoCovarianceError
        If that kind does not exist for the program, or the point is not a maximum.
    ValueError
        If the kind is unknown, or the clusters do not suit.
    """
    check_kind(kind)
    if layout.size > DENSE:
        raise NoCovarianceError(
            f"the covariance of {layout.size:,} parameters would be a matrix of "
            f"{layout.size:,} x {layout.size:,}, and at most {DENSE:,} are computed; "
            "use SVI with a mean-field guide for their spread"
        )
    _refuse_kinks(target.problem, kind)
    _refuse_no_scores(target, kind)
    target = target.in_double()
    x = x.detach().double()
    if left_out is None:
        left_out = torch.zeros_like(x, dtype=torch.bool)
    note = ""
    if kind == "expected" and isinstance(target, TargetDensity):
        information, note = expected_information(target, layout, x)
    elif kind == "opg":
        information = score_products(target, layout, x)
    else:
        information = observed_information(target, layout, x)
    inverse = inverted(information, left_out)
    if inverse.negative:
        raise NoCovarianceError(
            "the density curves upward in some direction at the estimate, so it is "
            "not a maximum; fit with a smaller tolerance= or other starts="
        )
    matrix = inverse.matrix
    if kind in _ROBUST:
        if kind == "sandwich":
            products = score_products(target, layout, x, power=2)
        elif kind == "cluster":
            products = _clustered(target, layout, x, clusters)
        else:
            products = corrected_products(target, layout, x, kind)
        matrix = matrix @ products @ matrix
    return PointCovariance(
        target.problem,
        layout,
        x,
        matrix,
        inverse,
        left_out,
        kind,
        penalized=target.has_priors,
        note=note,
    )


def check_kind(kind: str) -> None:
    """Refuse an unknown kind of covariance."""
    if kind in KINDS:
        return
    known = ", ".join(f"'{k}'" for k in KINDS)
    hint = "; HC0 is kind='sandwich'" if kind == "HC0" else ""
    raise ValueError(
        f"kind must be one of {known}, got {kind!r}"
        f"{hint or did_you_mean(str(kind), KINDS)}"
    )


def _clustered(
    target: Density, layout: Coordinates, x: Tensor, clusters: Tensor | None
) -> Tensor:
    if clusters is None:
        raise ValueError("kind='cluster' needs clusters=, the cluster of each row")
    count = len(clusters.unique())
    if count < 2:
        raise ValueError(
            "clusters= holds one cluster only, and errors that are robust to clusters "
            "need several; use kind='sandwich' for independent rows"
        )
    products = score_products(target, layout, x, clusters=clusters)
    return products * count / (count - 1)


def _refuse_no_scores(target: Density, kind: str) -> None:
    """Refuse what supposes that rows are independent, if they share random effects."""
    if target.integrated and kind != "observed":
        names = ", ".join(f"'{name}'" for name in target.integrated)
        raise NoCovarianceError(
            f"kind='{kind}' supposes that rows are independent given the parameters, "
            f"and they are not, because {names} are integrated out; use kind='observed'"
        )


def _refuse_kinks(problem: Problem, kind: str) -> None:
    """Refuse derivatives of a likelihood that has a kink."""
    if kind in ("expected", "opg"):
        return
    for site in problem.sites:
        if site.role is Role.OBSERVED and site.kinked:
            raise NoCovarianceError(
                f"the log density of site '{site.name}' has a kink, so the curvature "
                f"that kind='{kind}' needs does not exist there; use a profile or a "
                "bootstrap interval, or kind='expected'"
            )
