"""Which random effects touch which: the blocks of their Hessian, found by probing.

Effects of different groups do not meet in the log density, so their Hessian is made of
small blocks. Plates propose the blocks, and products of the Hessian with random vectors
show whether it has no other entries; an index such as ``school_of[child]`` is in no
plate, so where the plates' proposal fails, the entries themselves are computed, and
their connected components are the blocks. Columns of all blocks are computed together
(Curtis, Powell and Reid, 1974).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from probsl.program.coordinates import Entry
    from probsl.program.sites import Site

__all__ = ["Blocks", "found_blocks", "proposed_blocks"]

# Effects up to which single entries of the Hessian are computed.
_ENTRIES = 2000
# An entry is zero if it is below this share of the largest.
_ZERO = 1e-12


@dataclass(frozen=True, eq=False)
class Blocks:
    """A partition of effects, in which the Hessian has no entries between blocks.

    Attributes
    ----------
    index
        The places of each block's effects, shape ``[blocks, size]``; shorter blocks are
        filled up with place 0.
    present
        Which entries of `index` are effects, and not filled up.
    """

    index: Tensor
    present: Tensor

    @classmethod
    def of(cls, labels: Tensor) -> Blocks:
        """Return the blocks of effects with equal labels [q], numbers from 0."""
        order = torch.argsort(labels, stable=True)
        sizes = torch.bincount(labels)
        sizes = sizes[sizes > 0]
        size = int(sizes.max())
        inside = torch.arange(size)
        present = inside < sizes[:, None]
        starts = sizes.cumsum(0) - sizes
        places = (starts[:, None] + inside).clamp(max=len(labels) - 1)
        return cls(torch.where(present, order[places], 0), present)

    @property
    def size(self) -> int:
        """The size of the largest block."""
        return self.index.shape[1]

    def hessian(self, gradient: Tensor, u: Tensor, *, graph: bool = False) -> Tensor:
        """Return minus the Jacobian of a gradient [q] by u [q], block by block.

        Shape ``[blocks, size, size]``, with ones on the diagonal where blocks are
        filled up.

        Parameters
        ----------
        gradient
            The gradient, with its graph.
        u
            The effects.
        graph
            Whether the result is to be differentiated further.
        """
        chosen = torch.zeros(self.size, len(u), dtype=u.dtype, device=u.device)
        for place, row in enumerate(chosen):
            row[self.index[:, place][self.present[:, place]]] = 1.0
        columns = products(gradient, u, chosen, graph=graph)[:, self.index]
        matrix = -columns.permute(1, 2, 0)
        both = self.present[:, :, None] & self.present[:, None, :]
        return torch.where(both, matrix, torch.eye(self.size, dtype=u.dtype))

    def gather(self, vector: Tensor) -> Tensor:
        """Return the entries of a vector [q], by blocks ``[blocks, size]``."""
        return torch.where(self.present, vector[self.index], 0.0)

    def scatter(self, parts: Tensor, count: int) -> Tensor:
        """Return the vector [q] whose entries by blocks are given."""
        vector = parts.new_zeros(count)
        return vector.index_put((self.index[self.present],), parts[self.present])


def products(
    gradient: Tensor, u: Tensor, vectors: Tensor, *, graph: bool = False
) -> Tensor:
    """Return the products of a Hessian [q, q] with vectors [k, q], shape ``[k, q]``.

    Parameters
    ----------
    gradient
        The gradient [q], with its graph, which is kept.
    u
        The point [q].
    vectors
        The vectors.
    graph
        Whether the result is to be differentiated further.
    """
    options: dict[str, Any] = {
        "create_graph": graph,
        "retain_graph": True,
        "materialize_grads": True,
    }
    if not gradient.requires_grad:
        return torch.zeros_like(vectors)
    if len(vectors) > 1:
        try:
            (found,) = torch.autograd.grad(
                gradient, u, vectors, is_grads_batched=True, **options
            )
            return found
        except RuntimeError:  # an operation without a batching rule
            pass
    each = [
        torch.autograd.grad(gradient, u, vector, **options)[0] for vector in vectors
    ]
    return torch.stack(each)


def proposed_blocks(entries: Iterable[Entry], sites: Sequence[Site]) -> Tensor:
    """Return a label for each effect: its place in the plates around it, [q].

    Parameters
    ----------
    entries
        The effects' entries of the flat vector.
    sites
        Their sites, in the same order.
    """
    known: dict[tuple[object, ...], int] = {}
    labels = []
    for entry, site in zip(entries, sites, strict=True):
        axes = [i for i, plate in enumerate(site.plate_axes) if plate is not None]
        around = tuple(site.plate_axes[i] for i in axes) or (site.name,)
        for index in product(*map(range, entry.flat_shape)):
            key = (around, *(index[i] for i in axes))
            labels.append(known.setdefault(key, len(known)))
    return torch.tensor(labels)


def found_blocks(
    gradient: Callable[[Tensor], Tensor], points: Sequence[Tensor], proposal: Tensor
) -> Blocks:
    """Return the blocks of a Hessian.

    Parameters
    ----------
    gradient
        Maps effects [q], with gradients, to the gradient [q] of their log density.
    points
        Effects at which the Hessian is probed.
    proposal
        A label for each effect, by which it may have blocks.

    Raises
    ------
    ValueError
        If it has none of these, and there are too many effects for its entries.
    """
    blocks = Blocks.of(proposal)
    if all(_are_blocks(blocks, gradient, point) for point in points):
        return blocks
    count = len(proposal)
    if count > _ENTRIES:
        raise ValueError(
            f"the {count:,} random effects meet across groups, and at most "
            f"{_ENTRIES:,} such effects can be integrated out; use MAP or SVI, or name "
            "fewer sites with integrate="
        )
    linked = torch.zeros(count, count, dtype=torch.bool)
    for point in points:
        u = point.detach().requires_grad_()
        whole = Blocks.of(torch.zeros(count, dtype=torch.long))
        entries = whole.hessian(gradient(u), u)[0].detach().abs()
        linked |= entries > _ZERO * entries.max()
    return Blocks.of(_components(linked))


def _are_blocks(
    blocks: Blocks, gradient: Callable[[Tensor], Tensor], point: Tensor
) -> bool:
    """Return whether the Hessian at a point has no entries between blocks."""
    u = point.detach().requires_grad_()
    slope = gradient(u)
    matrix = blocks.hessian(slope, u).detach()
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(len(u), generator=generator, dtype=u.dtype)
    (product,) = products(slope, u, vector[None])
    parts = matrix @ blocks.gather(vector)[..., None]
    ours = blocks.scatter(parts[..., 0], len(u))
    return bool(((-product - ours).abs() <= 1e-8 * ours.abs().max()).all())


def _components(linked: Tensor) -> Tensor:
    """Return a label for the connected component of each node of a graph, [q]."""
    count = len(linked)
    linked = linked | linked.T | torch.eye(count, dtype=torch.bool)
    labels = torch.arange(count)
    while True:
        lowest = torch.where(linked, labels, count).amin(1)
        if torch.equal(lowest, labels):
            found: Tensor = torch.unique(labels, return_inverse=True)[1]
            return found
        labels = lowest
