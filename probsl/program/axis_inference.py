"""Finds the axes that run over the columns of a frame or the levels of a category.

An axis of the same length may be another one: a hidden layer with as many units as
there are columns. So each is tried: if the columns of the frame and the entries of the
axis are permuted together, the log density of every row stays the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.program.generating import Generating
from probsl.program.scoring import Batch
from probsl.program.sites import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from probsl.program.problem import Problem

# Up to this many axes of one length are tried in all combinations; of more, only the
# single ones, the pairs and all together.
_TRIED = 5
# This many rows show what depends on what.
_ROWS = 1000
# Distance of the values from the start, in unconstrained space.
_JITTER = 0.3


@dataclass(frozen=True)
class Axis:
    """One axis of a variable.

    Attributes
    ----------
    name
        The site, own parameter or argument.
    position
        Which of its axes, from 0 on.
    """

    name: str
    position: int


# Axes that only make sense together: those of all sites in a plate, or a single one.
Unit = tuple[Axis, ...]


def inferred_axes(problem: Problem) -> dict[Axis, str]:
    """Find the axes whose entries the data have labels for.

    Parameters
    ----------
    problem
        The program bound to its data.

    Returns
    -------
    dict
        Axis -> the argument with the labels: a frame, for its columns, or a category,
        for its levels.
    """
    labels = {
        name: len(each)
        for name, each in problem.arguments.labels.items()
        if torch.is_tensor(problem.arguments.values.get(name))
    }
    if not labels:
        return {}
    found: dict[Axis, str] = {}
    twice: set[Axis] = set()
    probe = _Probe(problem)
    for source, size in labels.items():
        if problem.arguments.values[source].dim() == 2:
            found[Axis(source, 1)] = source
            found |= dict.fromkeys(_observing(problem, source), source)
        alone = list(labels.values()).count(size) == 1
        for axis in _matching(problem, probe, source, size, alone=alone):
            twice |= {axis} & found.keys()
            found[axis] = source
    return {axis: source for axis, source in found.items() if axis not in twice}


def _matching(
    problem: Problem, probe: _Probe, source: str, size: int, *, alone: bool
) -> Iterator[Axis]:
    """Yield the axes that a permutation of one argument permutes."""
    units = _units(problem, source, size)
    if size == 1:  # there is nothing to permute
        if alone and len(units) == 1:
            yield from units[0]
        return
    if not units or not probe.works or probe.unchanged(source, (), size):
        return
    for subsets in _by_number(units):
        fitting = [s for s in subsets if probe.unchanged(source, s, size)]
        if fitting:
            if len(fitting) == 1:
                yield from fitting[0]
                yield from probe.computed(source, fitting[0], size)
            return


def _by_number(units: list[Unit]) -> Iterator[list[Unit]]:
    """Yield the sets of one unit, then of two, and so on, each as its axes."""
    count = len(units)
    numbers = range(1, count + 1) if count <= _TRIED else (1, 2, count)
    for number in numbers:
        yield [tuple(chain(*some)) for some in combinations(units, number)]


def _units(problem: Problem, source: str, size: int) -> list[Unit]:
    """Return the axes of a length that may run over the entries of an argument."""
    plates: dict[str, list[Axis]] = {}
    free: list[Axis] = []
    rows = problem.data_plate.name if problem.data_plate else None
    for site in problem.latents:
        for position, plate in enumerate(site.plate_axes):
            if site.shape[position] == size and plate is None:
                free.append(Axis(site.name, position))
            elif site.shape[position] == size and plate != rows:
                plates.setdefault(str(plate), []).append(Axis(site.name, position))
    shapes = {p.name: p.start.shape for p in problem.own_parameters}
    shapes |= {
        name: value.shape
        for name, value in problem.arguments.values.items()
        if torch.is_tensor(value) and name not in problem.rows and name != source
    }
    for name, shape in shapes.items():
        free += [Axis(name, i) for i, length in enumerate(shape) if length == size]
    return [*map(tuple, plates.values()), *((axis,) for axis in free)]


def _observing(problem: Problem, source: str) -> list[Axis]:
    """Return the last axis of the sites that observe an argument as it is."""
    value = problem.arguments.values[source]
    return [
        Axis(name, 1)
        for name, observed in problem.observed_values().items()
        if observed is value
    ]


class _Probe:
    """Compares a program's log densities at permuted values and arguments."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._skipped = {s.name for s in problem.latents if not s.parents}
        self._arguments = self._few_rows()
        self.works = False
        for jitter in (_JITTER, _JITTER / 30):
            self._values = self._near_the_start(jitter)
            self._plain = self._densities(self._values, self._arguments)
            if self._plain is not None:
                self.works = all(t.isfinite().all() for t in self._plain.values())
            if self.works:
                return

    def unchanged(self, source: str, axes: Iterable[Axis], size: int) -> bool:
        """Return whether no density changes if an argument and axes are permuted."""
        permuted = self._permuted(source, axes, size)
        densities = permuted and self._densities(*permuted)
        if not densities or self._plain is None:
            return False
        return all(_equal(densities[n], term) for n, term in self._plain.items())

    def computed(self, source: str, axes: Iterable[Axis], size: int) -> Iterator[Axis]:
        """Yield the axes of deterministics that are permuted along."""
        permuted = self._permuted(source, axes, size)
        if permuted is None:
            return
        before = self._deterministics(self._values, self._arguments)
        after = self._deterministics(*permuted)
        for name, value in before.items():
            for position, length in enumerate(value.shape):
                free = self._problem.site(name).plate_axes[position] is None
                if free and length == size and not _equal(after[name], value):
                    turned = value.index_select(position, _order(size))
                    if _equal(after[name], turned):
                        yield Axis(name, position)

    def _few_rows(self) -> dict[str, Any]:
        problem = self._problem
        local = any(problem.is_local(site) for site in problem.latents)
        if not problem.has_rows or local or problem.data.held <= _ROWS:
            return problem.arguments.values
        rows = problem.rows_at(torch.arange(_ROWS, device=problem.device)).arguments
        try:
            with problem.isolated(), torch.no_grad():
                problem.run({p.name: p.start for p in problem.own_parameters}, rows)
        except Exception:  # the program needs all of its rows
            return problem.arguments.values
        return rows

    def _near_the_start(self, jitter: float) -> dict[str, Tensor]:
        layout = self._problem.coordinates()
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(layout.size, generator=generator, dtype=torch.float64)
        center = self._problem.center(layout)
        values = layout.constrain(center + jitter * noise.to(center))
        for parameter in self._problem.own_parameters:  # the layout has these at zero
            values[parameter.name] = values[parameter.name] + parameter.start.detach()
        return values

    def _permuted(
        self, source: str, axes: Iterable[Axis], size: int
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return permuted values and arguments; None outside of a support."""
        values, arguments = dict(self._values), dict(self._arguments)
        order = _order(size).to(self._problem.device)
        given = arguments[source]
        arguments[source] = (
            given.index_select(1, order)
            if given.dim() == 2
            else order.argsort()[given.long()].to(given.dtype)
        )
        for axis in axes:
            held = values if axis.name in values else arguments
            held[axis.name] = held[axis.name].index_select(axis.position, order)
        names = {axis.name for axis in axes}
        inside = (
            site.support.check(values[site.name]).all()
            for site in self._problem.latents
            if site.name in names
        )
        return (values, arguments) if all(inside) else None

    def _densities(
        self, values: Mapping[str, Tensor], arguments: dict[str, Any]
    ) -> dict[str, Tensor] | None:
        """Return site -> its log density, by row if it has rows; None if it fails."""
        own = {p.name: values[p.name] for p in self._problem.own_parameters}
        try:
            with self._problem.isolated(), torch.no_grad():
                terms = self._problem.terms(
                    values, own, Batch(arguments), self._skipped
                )
        except Exception:  # the program cannot be run at such values
            return None
        return {
            name: term.sum()
            if axis is None
            else term.movedim(axis, 0).reshape(term.shape[axis], -1).sum(1)
            for name, (term, axis) in terms.items()
        }

    def _deterministics(
        self, values: Mapping[str, Tensor], arguments: dict[str, Any]
    ) -> dict[str, Tensor]:
        problem = self._problem
        own = {p.name: values[p.name] for p in problem.own_parameters}
        generating = Generating(values)
        with problem.isolated(), torch.no_grad(), generating:
            problem.run(own, arguments)
        mixed = problem.varying_with_discrete()
        names = problem.sites_with_role(Role.DETERMINISTIC)
        return {n: generating.messages[n]["value"] for n in names if n not in mixed}


def _order(size: int) -> Tensor:
    """Return a permutation that leaves no entry in its place."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    # Along the cycle through all entries in a random order.
    return order.roll(1)[order.argsort()]


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal up to rounding."""
    if one.shape != other.shape:
        return False
    tolerance = torch.finfo(other.dtype).eps ** 0.5
    scale = 1.0 + float(other.abs().max()) if other.numel() else 1.0
    return bool(((one - other).abs() <= tolerance * scale).all())
