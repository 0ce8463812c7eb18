"""Coordinates of a Gaussian guide, whitened by a nearby Gaussian.

In them the bound of a Gaussian posterior has equal curvature along every coordinate,
whatever the units of the data and the correlations of the latents, so that a search by
gradients takes few steps; and the gradient's norm predicts the gain in nats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor
from torch.distributions.transforms import identity_transform

from probsl.methods.guides.elbo import GUIDE
from probsl.program.coordinates import Coordinates, Entry

if TYPE_CHECKING:
    from probsl.methods.guides.elbo import ELBO

_LOC, _SCALE, _TRIL = f"{GUIDE}loc", f"{GUIDE}scale", f"{GUIDE}scale_tril"


class Whitening:
    """Whitened coordinates of a Gaussian guide, with all others unchanged.

    A mean is ``loc + unit @ mean``, and a Cholesky factor ``spread @ T``; T is lower
    triangular with a log diagonal; mean-field guides have only that diagonal.

    Parameters
    ----------
    bound
        The bound of the guide.
    x
        The guide near which they are used, shape ``[p]`` in the layout of `bound`.
    factor
        Scale matrix of the mean, ``[d, d]``; None takes the guide's own factor.

    Attributes
    ----------
    layout
        Layout of the whitened coordinates.
    start
        The guide in whitened coordinates.
    information
        Fisher information of the guide at `start`, diagonal; infinite for coordinates
        that are not the guide's, whose predicted gain is then zero.
    """

    def __init__(self, bound: ELBO, x: Tensor, factor: Tensor | None = None) -> None:
        self._bound = bound
        parts = {n: v.detach() for n, v in bound.layout.unconstrained(x).items()}
        self._transforms = {
            f"{GUIDE}{p.name}": p.transform
            for p in bound.guide.functional.own_parameters
        }
        self._locs = [n for n in parts if n.startswith(_LOC)]
        self._scales = [n for n in parts if n.startswith(_SCALE) and n != _TRIL]
        self._loc = torch.cat([parts[n].reshape(-1) for n in self._locs])
        size = len(self._loc)
        scale = [self._transforms[n](parts[n]).reshape(-1) for n in self._scales]
        self._scale = torch.cat(scale)
        self._tril: Tensor | None = None
        spread, diagonal = size, torch.ones(size, dtype=torch.bool, device=x.device)
        if _TRIL in parts:
            unit = self._transforms[_TRIL](parts[_TRIL])
            self._tril = self._scale[:, None] * unit
            rows, columns = torch.tril_indices(size, size, device=x.device)
            self._places = rows, columns
            spread, diagonal = len(rows), rows == columns
        own = self._tril if self._tril is not None else self._scale.diag()
        self._unit = own if factor is None else factor.to(own)
        guide = {*self._locs, *self._scales, _TRIL}
        others = [e for e in bound.layout.entries if e.name not in guide]
        self.layout = Coordinates(
            [
                Entry(f"{GUIDE}mean", identity_transform, torch.Size([size])),
                Entry(f"{GUIDE}spread", identity_transform, torch.Size([spread])),
                *others,
            ]
        )
        rest = [parts[e.name].reshape(-1) for e in others]
        self.start = torch.cat([x.new_zeros(size + spread), *rest])
        ones = x.new_ones(size)
        squares = torch.where(diagonal, 2.0, 1.0).to(x)
        unknown = torch.full_like(self.start[size + spread :], torch.inf)
        self.information = torch.cat([ones, squares, unknown])

    def raw(self, whitened: Tensor) -> Tensor:
        """Return the same guide in the coordinates of the bound, shape ``[p]``."""
        parts = self.layout.unconstrained(whitened)
        mean, spread = parts.pop(f"{GUIDE}mean"), parts.pop(f"{GUIDE}spread")
        loc = self._loc + self._unit @ mean
        if self._tril is None:
            scale = self._scale * spread.exp()
        else:
            rows, columns = self._places
            spread = torch.where(rows == columns, spread.exp(), spread)
            square = torch.zeros_like(self._tril).index_put((rows, columns), spread)
            tril = self._tril @ square
            scale = tril.diagonal()
            unit = (tril / scale[:, None]).tril()
            parts[_TRIL] = self._transforms[_TRIL].inv(unit)
        parts |= self._cut(loc, self._locs) | self._cut(scale, self._scales)
        return torch.cat(
            [parts[e.name].reshape(-1) for e in self._bound.layout.entries]
        )

    def _cut(self, flat: Tensor, names: list[str]) -> dict[str, Tensor]:
        """Return the guide's unconstrained parameters from one constrained vector."""
        entries = {e.name: e for e in self._bound.layout.entries}
        sizes = [entries[n].flat_shape.numel() for n in names]
        return {
            n: self._transforms[n].inv(part.reshape(entries[n].flat_shape))
            for n, part in zip(names, flat.split(sizes), strict=True)
        }


def whitened(bound: ELBO, x: Tensor, factor: Tensor | None = None) -> Whitening | None:
    """Return whitened coordinates of a guide at x; None if it is not one of Pyro's.

    Parameters
    ----------
    bound, x, factor
        As for `Whitening`; the factor is that of all latents in their order.
    """
    guide = bound.guide.functional.function
    if type(guide) not in (AutoMultivariateNormal, AutoDiagonalNormal, AutoNormal):
        return None
    return Whitening(bound, x, factor)
