"""Packs named values into one flat unconstrained vector, and unpacks them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence


@dataclass(frozen=True)
class Entry:
    """One named value of the flat vector.

    Attributes
    ----------
    name
        Site or parameter.
    transform
        From the unconstrained value to the constrained one.
    shape
        Shape of the constrained value.
    """

    name: str
    transform: Any
    shape: torch.Size

    @property
    def flat_shape(self) -> torch.Size:
        """Shape of the unconstrained value."""
        return torch.Size(self.transform.inverse_shape(self.shape))


class Coordinates:
    """The layout of several values in one flat vector.

    Parameters
    ----------
    entries
        The contents of the vector, in order.
    held
        Name -> constrained value of what is not in the vector, but held still: it is
        among the constrained values.

    Examples
    --------
    >>> import torch
    >>> from torch.distributions import constraints, biject_to
    >>> from probsl.program.coordinates import Coordinates, Entry
    >>> positive = biject_to(constraints.positive)
    >>> layout = Coordinates([Entry("scale", positive, torch.Size([2]))])
    >>> layout.constrain(torch.zeros(2))
    {'scale': tensor([1., 1.])}
    """

    def __init__(
        self, entries: Iterable[Entry], held: Mapping[str, Tensor] | None = None
    ) -> None:
        self.entries = tuple(entries)
        self.held = dict(held or {})
        self.sizes = [e.flat_shape.numel() for e in self.entries]
        self.size = sum(self.sizes)

    def split(self, flat: Tensor) -> Iterator[tuple[Entry, Tensor]]:
        """Yield each entry with its unconstrained value from ``flat [size]``."""
        for entry, part in zip(self.entries, flat.split(self.sizes), strict=True):
            yield entry, part.reshape(entry.flat_shape)

    def unconstrained(self, flat: Tensor) -> dict[str, Tensor]:
        """Return name -> unconstrained value."""
        return {entry.name: part for entry, part in self.split(flat)}

    def constrain(self, flat: Tensor) -> dict[str, Tensor]:
        """Return name -> constrained value."""
        values = {entry.name: entry.transform(part) for entry, part in self.split(flat)}
        return {**values, **self._held_as(flat)}

    def constrain_draws(self, flat: Tensor) -> dict[str, Tensor]:
        """Return name -> constrained values of draws, ``[n, ...]``, from ``[n, size]``.

        Every transform is applied to all draws at once.
        """
        parts = zip(self.entries, flat.split(self.sizes, dim=1), strict=True)
        values = {
            entry.name: entry.transform(part.reshape(len(flat), *entry.flat_shape))
            for entry, part in parts
        }
        held = self._held_as(flat)
        return {**values, **{n: v.expand(len(flat), *v.shape) for n, v in held.items()}}

    def constrain_with_jacobian(
        self, flat: Tensor, weight: Callable[[str, Tensor], Tensor] | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the constrained values and the log determinant of the Jacobian.

        Parameters
        ----------
        flat
            Unconstrained values, shape ``[size]``.
        weight
            Weights an entry's log determinants, given its name and their values.
        """
        values, total = self._held_as(flat), flat.new_zeros(())
        for entry, part in self.split(flat):
            value = entry.transform(part)
            values[entry.name] = value
            term = entry.transform.log_abs_det_jacobian(part, value)
            total = total + (weight(entry.name, term) if weight else term).sum()
        return values, total

    def _held_as(self, flat: Tensor) -> dict[str, Tensor]:
        return {name: value.to(flat) for name, value in self.held.items()}

    def flatten(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the flat vector of constrained `values`."""
        parts = [
            entry.transform.inv(values[entry.name]).reshape(-1)
            for entry in self.entries
        ]
        return torch.cat(parts) if parts else torch.zeros(0)

    def labels(self) -> list[str]:
        """Name each coordinate: ``"w[0]"``, or just the name of the value.

        Values whose coordinates are not their elements (a simplex, a Cholesky
        factor) are named as a whole.
        """
        result: list[str] = []
        for entry, size in zip(self.entries, self.sizes, strict=True):
            if entry.flat_shape == entry.shape:
                result += element_labels(entry.name, entry.shape)
            else:
                result += [entry.name] * size
        return result


def element_labels(name: str, shape: Sequence[int]) -> list[str]:
    """Name the elements of an array.

    Examples
    --------
    >>> from probsl.program.coordinates import element_labels
    >>> element_labels("w", (2,))
    ['w[0]', 'w[1]']
    >>> element_labels("sigma", ())
    ['sigma']
    """
    if not shape:
        return [name]
    return [
        f"{name}[{','.join(map(str, index))}]"
        for index in product(*(range(size) for size in shape))
    ]
