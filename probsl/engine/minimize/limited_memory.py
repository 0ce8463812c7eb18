"""The inverse Hessian approximations of L-BFGS."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import solve_triangular


class LimitedMemory:
    """Inverse Hessians of several searches, from their last steps.

    The two-loop recursion, Nocedal and Wright (2006), algorithm 7.4. With each pair of
    step and gradient change scaled such that their product is one, the coefficients of
    each loop solve a triangular system, so a product takes few operations.

    Parameters
    ----------
    scale
        Unit of each coordinate [d]: its square is the initial inverse Hessian.
    count
        Number of searches n.
    size
        Number of updates to remember. An update that gives no pair for a search counts.

    Attributes
    ----------
    known
        Whether each search [n] remembers a pair.
    """

    def __init__(self, scale: Tensor, count: int = 1, size: int = 15) -> None:
        self.scale = scale
        self._size = size
        # Steps and changes, the last ones at the end; a missing pair is zero, so it has
        # no effect. Half of the slots are spare, because moving pairs takes time.
        slots = 2 * size
        self._pairs = scale.new_zeros(count, slots, 2, len(scale))
        # Products of each step (row) with each later change (column).
        self._products = scale.new_zeros(count, slots, slots)
        self._factors = scale.new_ones(count, 1, 1)
        self.known = torch.zeros(count, dtype=torch.bool, device=scale.device)
        self._used = 0

    def clear(self, members: Tensor) -> None:
        """Forget every pair of some searches, given by a mask [n]."""
        self._pairs[members] = self._products[members] = 0.0
        self._factors[members] = 1.0
        self.known = self.known & ~members

    def keep(self, members: Tensor) -> None:
        """Drop all searches but some, given by a mask [n]."""
        self._pairs, self._products = self._pairs[members], self._products[members]
        self._factors, self.known = self._factors[members], self.known[members]

    def update(self, steps: Tensor, changes: Tensor) -> None:
        """Remember steps and gradient changes [n, d], if they show curvature."""
        if self._used == self._pairs.shape[1]:
            self._move()
        slot = self._used
        pairs = self._pairs[:, slot]
        torch.div(steps, self.scale, out=pairs[:, 0])
        torch.mul(changes, self.scale, out=pairs[:, 1])
        products = torch.bmm(pairs, pairs.mT)
        length, curvature, _, bend = products.flatten(1).unbind(1)
        curved = curvature > torch.finfo(steps.dtype).eps * (length * bend).sqrt()
        if not bool(curved.any()):
            return  # the slot remains free
        pairs /= curvature.sqrt()[:, None, None]
        if not bool(curved.all()):
            pairs[~curved] = 0.0
        each = curved[:, None, None]
        self._factors = torch.where(
            each, (curvature / bend)[:, None, None], self._factors
        )
        self.known = self.known | curved
        self._products[:, :slot, slot : slot + 1] = torch.bmm(
            self._pairs[:, :slot, 0], pairs[:, 1, :, None]
        )
        self._used += 1

    def _move(self) -> None:
        """Move the last pairs to the front."""
        kept = self._size - 1
        self._pairs[:, :kept] = self._pairs[:, -kept:]
        self._products[:, :kept, :kept] = self._products[:, -kept:, -kept:]
        self._used = kept

    def apply(self, vectors: Tensor, free: Tensor | None = None) -> Tensor:
        """Return the inverse Hessians times vectors [n, d].

        Parameters
        ----------
        vectors
            The vectors.
        free
            Which coordinates [n, d] may change; None: all. The inverse is then that of
            the Hessian of those; the others of the vectors must be zero.
        """
        last = slice(max(0, self._used - self._size), self._used)
        pairs, products = self._pairs[:, last], self._products[:, last, last]
        factors = self._factors
        if free is not None and self._used and not bool(free.all()):
            pairs, products, factors = _restricted(pairs, free)
        steps, changes = pairs.unbind(2)
        columns = (self.scale * vectors)[:, :, None]
        first = solve_triangular(
            products, torch.bmm(steps, columns), upper=True, unitriangular=True
        )
        columns = factors * torch.baddbmm(columns, changes.mT, first, alpha=-1)
        second = solve_triangular(
            products.mT,
            torch.baddbmm(first, changes, columns, alpha=-1),
            upper=False,
            unitriangular=True,
        )
        columns = torch.baddbmm(columns, steps.mT, second)
        return self.scale * columns[:, :, 0]


def _restricted(pairs: Tensor, free: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pairs [n, m, 2, d] of free coordinates, with products and factors."""
    pairs = pairs * free[:, None, None]
    lengths, bends = torch.linalg.vector_norm(pairs, dim=3).unbind(2)
    products = torch.bmm(pairs[:, :, 0], pairs[:, :, 1].mT)
    curvatures = products.diagonal(dim1=1, dim2=2)
    curved = curvatures > torch.finfo(pairs.dtype).eps * lengths * bends
    roots = torch.where(curved, curvatures.rsqrt(), 0.0)
    pairs *= roots[:, :, None, None]
    products = products * roots[:, :, None] * roots[:, None]
    ages = torch.arange(1, 1 + curved.shape[1], device=curved.device)
    last = (curved * ages).argmax(1, keepdim=True)
    bend = (bends * roots).gather(1, last).square()
    return pairs, products, torch.where(bend > 0, 1 / bend, 1.0)[:, :, None]
