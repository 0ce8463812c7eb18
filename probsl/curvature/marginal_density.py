"""The density of data and parameters with random effects integrated out.

Laplace's approximation of the integral over the effects u, at their conditional mode
(Tierney and Kadane, 1986; Kristensen et al., 2016, for its use by automatic
differentiation):

    log p(y | phi) = log p(y, u | phi) - log det(H / (2 pi)) / 2,

where H is the negative Hessian by u of the log density. It is exact if data and effects
are jointly Normal.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.curvature.effect_blocks import Blocks, found_blocks, proposed_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from probsl.program.coordinates import Coordinates
    from probsl.program.problem import Problem
    from probsl.program.scoring import Batch
    from probsl.program.target_density import Space, TargetDensity

__all__ = ["MarginalDensity"]

# Newton steps to the conditional mode, and halvings of one.
_STEPS, _HALVINGS = 100, 40
# A step that promises fewer nats than this changes neither mode nor Hessian.
_NOTHING = 1e-20
# One that promises fewer than this may be a rounding error.
_SMALL = 1e-12


@dataclass(frozen=True, eq=False)
class _Mode:
    """The conditional mode of the effects, with the factors of its Hessian.

    It is `sound` if that is positive definite. `phi` are the parameters, and `density`
    is the log density there.
    """

    phi: Tensor
    u: Tensor
    density: Tensor
    factor: Tensor
    sound: bool


@dataclass(frozen=True, eq=False)
class MarginalDensity:
    """A density of data and latents from which some latents are integrated out.

    It has the attributes and methods of a
    `probsl.program.target_density.TargetDensity`.

    Attributes
    ----------
    joint
        The density of data and all latents.
    integrated
        The latents that are integrated out.
    held
        Latent -> value of those that are held still.
    """

    joint: TargetDensity
    integrated: tuple[str, ...]
    held: Mapping[str, Tensor] = field(default_factory=dict)
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def problem(self) -> Problem:
        """The program bound to its data."""
        return self.joint.problem

    @property
    def prior_weights(self) -> Mapping[str, float]:
        """Site -> factor of its log prior, see `TargetDensity`."""
        return self.joint.prior_weights

    @property
    def space(self) -> Space:
        """The space in which a point maximizes the density."""
        return self.joint.space

    @property
    def has_priors(self) -> bool:
        """Whether the prior of any parameter counts, which is not integrated out."""
        sites = (s for s in self.problem.latents if not s.auxiliary)
        out = {*self.integrated, *self.held}
        others = (s.name for s in sites if s.name not in out)
        return any(self.prior_weights.get(name, 1.0) != 0 for name in others)

    def in_double(self) -> MarginalDensity:
        """Return the same density, computed in float64."""
        return MarginalDensity(self.joint.in_double(), self.integrated, self.held)

    @cached_property
    def layout(self) -> Coordinates:
        """The layout of the latents that are not integrated out, and own parameters."""
        names = [s.name for s in self.problem.latents if s.name not in self.integrated]
        return self.problem.coordinates(names, self.held)

    def log_density(
        self,
        values: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        batch: Batch | None = None,
    ) -> Tensor:
        """Return the log marginal density in constrained space, a scalar.

        Parameters
        ----------
        values, own
            As in `TargetDensity.log_density`; integrated latents are ignored.
        batch
            Must be None: the effects belong to all rows.
        """
        with self.problem.isolated():
            x = self.layout.flatten({**values, **own})
        return self.at(x, self.layout, batch)

    def at(
        self,
        x: Tensor,
        layout: Coordinates,  # noqa: ARG002 - as of other densities
        batch: Batch | None = None,
    ) -> Tensor:
        """Return the log marginal density, a scalar, at a flat vector [p].

        Parameters
        ----------
        x
            The parameters, in the layout of `layout`, with gradients if those of the
            result are wanted: they are exact, up to the second.
        layout
            The layout of the parameters.
        batch
            Must be None or all rows.
        """
        if batch is not None and batch.scale != self.problem.batch().scale:
            raise ValueError(
                "random effects are integrated out of all rows at once, so rows cannot "
                "come in batches; leave out batch_size="
            )
        value: Tensor = _Laplace.apply(x.double(), self)  # type: ignore[no-untyped-call]
        return value.to(x.dtype)

    def value(self, phi: Tensor) -> Tensor:
        """Return the log marginal density at a flat vector [p] of float64, a scalar."""
        mode = self._mode(phi)
        if not mode.sound:
            return phi.new_full((), torch.nan)
        constant = len(mode.u) * math.log(2 * math.pi) / 2
        return mode.density - _half_log_determinant(mode.factor) + constant

    def gradient(self, phi: Tensor) -> Tensor:
        """Return the gradient [p] of `value`.

        The derivative of the mode by the parameters, by the implicit function theorem,
        is the inverse Hessian times mixed derivatives, of which only the product with
        one vector is needed.
        """
        mode = self._mode(phi)
        with torch.enable_grad():
            phi = phi.detach().requires_grad_()
            density, slope, u = self._gradient(phi, mode.u)
            matrix = self._blocks.hessian(slope, u, graph=True)
            half = _half_log_determinant(torch.linalg.cholesky(matrix))
            by_phi, by_u = _derivatives(half, (phi, u))
            adjoint = _solved(self._blocks, mode.factor, by_u)
            (direct,) = _derivatives(density, (phi,))
            (through,) = _derivatives((slope * adjoint).sum(), (phi,))
        return direct - by_phi - through

    def differentiable_gradient(self, phi: Tensor) -> Tensor:
        """Return the gradient [p] with a graph, from which the Hessian is computed.

        Two steps with a constant Hessian make the mode a function of the parameters
        with the right first and second derivatives.
        """
        mode = self._mode(phi.detach())
        u = mode.u
        for _ in range(2):
            _, slope, u = self._gradient(phi, u)
            u = u + _solved(self._blocks, mode.factor, slope)
        density, slope, u = self._gradient(phi, u)
        factor = torch.linalg.cholesky(self._blocks.hessian(slope, u, graph=True))
        value = density - _half_log_determinant(factor)
        (gradient,) = torch.autograd.grad(value, phi, create_graph=True)
        return gradient

    def conditional(self, x: Tensor) -> tuple[Tensor, Tensor, Blocks]:
        """Return the effects' conditional mode [q], and the factors of its Hessian.

        Parameters
        ----------
        x
            The parameters, shape ``[p]``.

        Returns
        -------
        tuple
            The mode in unconstrained space; the Cholesky factors of its negative
            Hessian, ``[blocks, size, size]``; and the blocks.
        """
        mode = self._mode(x.detach().double())
        return mode.u, mode.factor, self._blocks

    def constrained(self, u: Tensor) -> dict[str, Tensor]:
        """Return effect -> constrained draws ``[n, ...]``, from ``[n, q]``."""
        with self.problem.isolated():
            return self.effects.constrain_draws(u.to(self.problem.dtype))

    @cached_property
    def _double(self) -> TargetDensity:
        return self.joint.in_double()

    @cached_property
    def effects(self) -> Coordinates:
        """The layout of the effects alone."""
        full = self.problem.coordinates(held=self.held)
        return type(full)(e for e in full.entries if e.name in self.integrated)

    @cached_property
    def _order(self) -> Tensor:
        """The place in ``[phi, u]`` of each coordinate of the full flat vector."""
        full = self.problem.coordinates(held=self.held)
        counts = [0, self.layout.size]
        places = []
        for entry, size in zip(full.entries, full.sizes, strict=True):
            kind = int(entry.name in self.integrated)
            places.append(torch.arange(counts[kind], counts[kind] + size))
            counts[kind] += size
        return torch.cat(places)

    @cached_property
    def _blocks(self) -> Blocks:
        sites = [s for s in self.problem.latents if s.name in self.integrated]
        proposal = proposed_blocks(self.effects.entries, sites)
        generator = torch.Generator().manual_seed(0)
        phi = self._kept["phi"]
        points = [
            self.start_of_effects()
            + scale
            * torch.randn(len(proposal), generator=generator, dtype=torch.float64)
            for scale in (0.1, 0.3)
        ]
        return found_blocks(lambda u: self._gradient(phi, u)[1], points, proposal)

    def start_of_effects(self) -> Tensor:
        """Return the problem's place for the effects, unconstrained, [q]."""
        full = self.problem.coordinates(held=self.held)
        center = self.problem.center(full).double()
        kept = [entry.name in self.integrated for entry in full.entries]
        parts = zip(center.split(full.sizes), kept, strict=True)
        return torch.cat([part for part, here in parts if here])

    def log_joint(self, phi: Tensor, u: Tensor) -> Tensor:
        """Return the log density with the effects in unconstrained space."""
        flat = torch.cat([phi, u])[self._order]
        values = {name: value.to(flat) for name, value in self.held.items()}
        jacobian = flat.new_zeros(())
        same = torch.get_default_dtype() == torch.float64
        with nullcontext() if same else self._double.problem.isolated():
            for entry, part in self._double.problem.coordinates(held=self.held).split(
                flat
            ):
                value = entry.transform(part)
                values[entry.name] = value
                unconstrained = self.space == "unconstrained"
                if unconstrained or entry.name in self.integrated:
                    term = entry.transform.log_abs_det_jacobian(part, value)
                    jacobian = jacobian + term.sum()
            return self._double.log_density(values, values) + jacobian

    def _gradient(self, phi: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the log density, its gradient [q] by the effects, and these."""
        with torch.enable_grad():
            u = u if u.requires_grad else u.detach().requires_grad_()
            density = self.log_joint(phi, u)
            (slope,) = torch.autograd.grad(
                density, u, create_graph=True, materialize_grads=True
            )
        return density, slope, u

    def _mode(self, phi: Tensor) -> _Mode:
        """Return the conditional mode, by Newton's method from the last one."""
        self._kept["phi"] = phi
        last: _Mode | None = self._kept.get("mode")
        if last is not None and torch.equal(last.phi, phi):
            return last
        start = self.start_of_effects() if last is None else last.u
        density, slope, at = self._gradient(phi, start)
        before = math.inf
        for _ in range(_STEPS):
            matrix = self._blocks.hessian(slope, at).detach()
            factor, sound = _positive_factor(matrix)
            found = _Mode(phi, at.detach(), density.detach(), factor, sound)
            step = _solved(self._blocks, factor, slope.detach())
            gain = float((slope.detach() * step).sum())
            # Near the mode each gain is the square of the last, until rounding errors.
            if not gain > _NOTHING or (gain < _SMALL and gain > before / 10):
                break
            here = (float(density.detach()), gain)
            ahead = self._stepped(phi, at.detach(), step, here)
            if ahead is None:
                break
            (density, slope, at), before = ahead, gain
        if found.sound and bool(found.u.isfinite().all()):
            self._kept["mode"] = found
        return found

    def _stepped(
        self, phi: Tensor, u: Tensor, step: Tensor, here: tuple[float, float]
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return `_gradient` after the longest halving of a step that gains enough.

        Parameters
        ----------
        phi, u
            The parameters and the effects.
        step
            The Newton step.
        here
            The log density, and the gain that a whole step promises at first.
        """
        value, gain = here
        for halvings in range(_HALVINGS):
            length = 0.5**halvings
            ahead = self._gradient(phi, u + length * step)
            if float(ahead[0].detach()) - value >= 1e-4 * length * gain - 1e-12 * abs(
                value
            ):
                return ahead
        return None


class _Laplace(torch.autograd.Function):
    """The log marginal density as an operation of torch, differentiable twice."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, density: MarginalDensity) -> Tensor:
        ctx.save_for_backward(phi)
        ctx.density = density
        return density.value(phi.detach())

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        (phi,) = ctx.saved_tensors
        try:
            if torch.is_grad_enabled():  # a second derivative is wanted
                return outer[0] * ctx.density.differentiable_gradient(phi), None
            return outer[0] * ctx.density.gradient(phi), None
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return torch.full_like(phi, torch.nan), None


def _derivatives(value: Tensor, by: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not value.requires_grad:
        return tuple(map(torch.zeros_like, by))
    return torch.autograd.grad(value, by, retain_graph=True, materialize_grads=True)


def _solved(blocks: Blocks, factor: Tensor, vector: Tensor) -> Tensor:
    """Return the inverse Hessian times a vector [q]."""
    parts = torch.cholesky_solve(blocks.gather(vector)[..., None], factor)
    return blocks.scatter(parts[..., 0], len(vector))


def _half_log_determinant(factor: Tensor) -> Tensor:
    """Return half the log determinant of matrices with given Cholesky factors."""
    return factor.diagonal(dim1=1, dim2=2).log().sum()


def _positive_factor(matrix: Tensor) -> tuple[Tensor, bool]:
    """Return Cholesky factors of matrices, and whether they are positive definite.

    If they are not, the factors are those of matrices with the absolute eigenvalues.
    """
    if not matrix.isfinite().all():
        return torch.full_like(matrix, torch.nan), False
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not failed.any():
        return factor, True
    values, vectors = torch.linalg.eigh(matrix)
    floor = 1e-8 * values.abs().amax(-1, keepdim=True).clamp(min=1e-300)
    positive = torch.maximum(values.abs(), floor)
    absolute = (vectors * positive[:, None]) @ vectors.mT
    return torch.linalg.cholesky_ex((absolute + absolute.mT) / 2).L, False
