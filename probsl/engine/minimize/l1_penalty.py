"""An absolute-value penalty, and the steps that respect its kinks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class L1Penalty:
    """The penalty ``sum(weight * abs(x - center))``.

    All methods take one point [d] or a batch of points [n, d], and return tensors of
    the same shape except where noted.

    Parameters
    ----------
    center
        Center [d], or of each member of a batch [n, d].
    weight
        Weight [d] or [n, d], at least 0; 0 means no penalty.

    References
    ----------
    Andrew and Gao (2007), "Scalable training of L1-regularized log-linear models",
    ICML.

    Examples
    --------
    >>> import torch
    >>> from probsl.engine.minimize.l1_penalty import L1Penalty
    >>> penalty = L1Penalty(torch.zeros(2), torch.tensor([1.0, 2.0]))
    >>> x = torch.tensor([[3.0, -1.0], [0.0, 1.0]])
    >>> penalty.value(x)
    tensor([5., 2.])
    >>> penalty.proximal_step(x, torch.zeros(2), size=torch.ones(2))
    tensor([[-1.,  1.],
            [ 0., -1.]])
    """

    center: Tensor
    weight: Tensor

    def to(self, like: Tensor) -> L1Penalty:
        """Return the penalty in the dtype and on the device of a tensor."""
        return L1Penalty(self.center.to(like), self.weight.to(like))

    def of(self, members: Tensor) -> L1Penalty:
        """Return the penalty of some members of a batch, by index or mask."""
        center, weight = self.center, self.weight
        return L1Penalty(
            center if center.dim() == 1 else center[members],
            weight if weight.dim() == 1 else weight[members],
        )

    def value(self, x: Tensor) -> Tensor:
        """Return the penalty [] or [n]."""
        return (self.weight * (x - self.center).abs()).sum(-1)

    def pseudo_gradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Return the steepest one-sided derivative; 0 if both sides go up.

        Andrew and Gao (2007), equation 4.
        """
        side = torch.sign(x - self.center)
        within = torch.sign(gradient) * (gradient.abs() - self.weight).clamp(min=0.0)
        return torch.where(side == 0, within, gradient + self.weight * side)

    def free(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Return whether a coordinate is off the kink, or a descent leaves it."""
        return (x != self.center) | (gradient != 0)

    def aligned(
        self, x: Tensor, direction: Tensor, gradient: Tensor, unit: Tensor
    ) -> Tensor:
        """Return the direction without the components that leave a kink upward.

        If what remains does not go down, the steepest descent in the units [d] of the
        coordinates. Andrew and Gao (2007), section 3.2, drop all components that go up;
        but off the kinks the penalty is linear, and such a component may be right.
        """
        up = (self.weight > 0) & (x == self.center) & (direction * gradient >= 0)
        kept = torch.where(up, 0.0, direction)
        downhill = (kept * gradient).sum(-1, keepdim=True) < 0
        return torch.where(downhill, kept, -(unit**2) * gradient)

    def orthant(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Return the side of the center on which a descent from a point stays."""
        offset = x - self.center
        return torch.where(offset == 0, -torch.sign(gradient), torch.sign(offset))

    def projected(self, x: Tensor, orthant: Tensor) -> Tensor:
        """Return the point, with coordinates outside the orthant at the center."""
        outside = (self.weight > 0) & ((x - self.center) * orthant <= 0)
        return torch.where(outside, self.center, x)

    def proximal_step(self, x: Tensor, gradient: Tensor, size: Tensor) -> Tensor:
        """Return the proximal gradient step for sizes [d] of the coordinates.

        That is a gradient step, followed by soft thresholding.
        """
        offset = x - self.center
        ahead = offset - size * gradient
        shrunk = (ahead.abs() - self.weight * size).clamp(min=0.0)
        return ahead.sign() * shrunk - offset
