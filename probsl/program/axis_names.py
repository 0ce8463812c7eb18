"""Names the axes of every variable of a program, and the entries along them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probsl.data.axes import (
    Axes,
    axis_names,
    check_coords,
    check_dims,
    check_mappings,
    sizes_of,
)
from probsl.program.axis_inference import Axis, inferred_axes
from probsl.program.coordinates import element_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from probsl.program.problem import Problem

    Shapes = dict[str, tuple[Axes, torch.Size]]


@dataclass(frozen=True, eq=False)
class AxisNames:
    """The names of all axes, and the labels of the entries along them.

    Attributes
    ----------
    dims
        Variable -> the name of each axis, None for an axis without one. The variables
        are the sites, the program's own parameters, and the array arguments.
    coords
        Dimension -> labels of its entries.
    classes
        Observed site -> labels of its classes, if the data have them.
    note
        What was inferred, as a sentence; empty if nothing was.

    Examples
    --------
    >>> from probsl.program.axis_names import AxisNames
    >>> names = AxisNames({"w": ("column",)}, {"column": ("age", "weight")})
    >>> names.labels("w", (2,))
    ['w[age]', 'w[weight]']
    >>> names.labels("b", (2,))
    ['b[0]', 'b[1]']
    """

    dims: Mapping[str, Axes] = field(default_factory=dict)
    coords: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    classes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    note: str = ""

    def labels(self, name: str, shape: Sequence[int]) -> list[str]:
        """Label every element of a variable, in the order of its flattened value."""
        dims = self.dims.get(name, ())
        if len(dims) != len(shape) or not any(dim in self.coords for dim in dims):
            return element_labels(name, shape)
        along = [self.entries(dim, size) for dim, size in zip(dims, shape, strict=True)]
        return [f"{name}[{','.join(index)}]" for index in product(*along)]

    def entries(self, dim: str | None, size: int) -> list[str]:
        """Return the labels along an axis as distinct texts; numbers without labels."""
        labels = self.coords.get(dim, ()) if dim is not None else ()
        if len(labels) != size:
            return [str(i) for i in range(size)]
        return distinct_texts(labels)

    def renamed(self, labels: Sequence[str], shapes: Mapping[str, Any]) -> list[str]:
        """Return labels such as ``w[0]`` as `labels` states them; others unchanged."""
        known: dict[str, str] = {}
        for label in labels:
            name = label.partition("[")[0]
            if name in shapes and label not in known and label != name:
                plain = element_labels(name, shapes[name])
                known |= zip(plain, self.labels(name, shapes[name]), strict=True)
        return [known.get(label, label) for label in labels]


def distinct_texts(labels: Sequence[Any]) -> list[str]:
    """Return labels as texts, quoted if two of them are the same text, as 1 and "1"."""
    texts = [str(label) for label in labels]
    return texts if len({*texts}) == len(texts) else [repr(label) for label in labels]


def name_axes(
    problem: Problem,
    dims: Mapping[str, Sequence[str]] | None,
    coords: Mapping[str, Sequence[Any]] | None,
) -> AxisNames:
    """Name all axes of a problem: as the user says, or as the data show.

    Parameters
    ----------
    problem
        The program bound to its data.
    dims, coords
        The names and labels of the user, see `probsl.fit`.

    Raises
    ------
    TypeError, ValueError
        If they do not suit the variables of the program.
    """
    dims, coords = dims or {}, coords or {}
    check_mappings(dims, coords)
    variables = _variables(problem)
    check_dims(dims, [{name: axes for name, (axes, _) in variables.items()}])
    inferred = inferred_axes(problem)
    named = _dims(variables, inferred, dims)
    labels = _labels(problem, inferred, named)
    full = {n: axis_names(n, axes, ()) for n, axes in named.items()}
    sizes = sizes_of((n, full[n], shape) for n, (_, shape) in variables.items())
    check_coords(coords, sizes)
    for dim, given in coords.items():
        labels[dim] = _distinct(dim, given)
    return AxisNames(
        {n: axes for n, axes in named.items() if any(axes)},
        labels,
        _classes(problem),
        _note(inferred, dims, variables),
    )


def _variables(problem: Problem) -> Shapes:
    """Return the plates of the axes of every variable, and its shape."""
    found: Shapes = {s.name: (s.plate_axes, s.shape) for s in problem.sites}
    for parameter in problem.own_parameters:
        shape = parameter.constrain(parameter.start).shape
        found[parameter.name] = ((None,) * len(shape), shape)
    for name, value in problem.arguments.values.items():
        if torch.is_tensor(value) and name not in found:
            axes: list[str | None] = [None] * value.dim()
            if name in problem.rows and problem.data_plate:
                axes[0] = problem.data_plate.name
            found[name] = (tuple(axes), value.shape)
    return found


def _dims(
    variables: Shapes,
    inferred: Mapping[Axis, str],
    given: Mapping[str, Sequence[str]],
) -> dict[str, Axes]:
    """Name the axes: by their plates, else as given, else as inferred."""
    named: dict[str, Axes] = {}
    plates = _plates_of(variables, inferred)
    for name, (axes, _) in variables.items():
        free = iter(given.get(name, ()))
        result = list(axes)
        for position, plate in enumerate(axes):
            if plate is not None:
                continue
            source = inferred.get(Axis(name, position))
            if name in given:
                result[position] = next(free)
            elif source is not None:
                dim = plates.get(source) or _dimension(source, variables)
                result[position] = f"{dim}_bis" if dim in result else dim
        named[name] = tuple(result)
    return named


def _plates_of(variables: Shapes, inferred: Mapping[Axis, str]) -> dict[str, str]:
    """Return source of labels -> the plate whose entries have them."""
    found: dict[str, str] = {}
    for axis, source in inferred.items():
        plate = variables[axis.name][0][axis.position]
        if plate is not None:
            found.setdefault(source, plate)
    return found


def _dimension(argument: str, variables: Shapes) -> str:
    """Name a dimension after the argument whose columns or levels it runs over."""
    if len(variables[argument][1]) == 2:
        return f"{argument}_column"
    sites = {name for name, (_, shape) in variables.items() if name != argument}
    return f"{argument}_level" if argument in sites else argument


def _labels(
    problem: Problem, inferred: Mapping[Axis, str], named: Mapping[str, Axes]
) -> dict[str, tuple[Any, ...]]:
    """Return dimension -> labels, for the axes whose labels are in the data."""
    known = problem.arguments.labels
    found = {}
    for axis, source in inferred.items():
        dim = named[axis.name][axis.position]
        if dim is not None:
            found[dim] = known[source]
    return found | _row_labels(problem)


def _row_labels(problem: Problem) -> dict[str, tuple[Any, ...]]:
    """Label the rows by a category that is different in each of them."""
    plate, found = problem.data_plate, {}
    if plate is None or not problem.data.complete:
        return {}
    for argument, categories in problem.arguments.labels.items():
        codes = problem.arguments.values[argument]
        whole = argument in problem.rows and codes.dim() == 1
        if whole and len(codes) == plate.size == len(codes.unique()):
            found[plate.name] = tuple(categories[int(code)] for code in codes)
    return found if len(found) < 2 else {}


def _classes(problem: Problem) -> dict[str, tuple[Any, ...]]:
    """Return observed site -> the levels of the category that it observes."""
    known = problem.arguments.labels
    codes = {
        name: value
        for name, value in problem.arguments.values.items()
        if name in known and torch.is_tensor(value) and value.dim() == 1
    }
    if not codes:
        return {}
    return {
        site: known[name]
        for site, observed in problem.observed_values().items()
        for name, value in codes.items()
        if observed.shape == value.shape and bool((observed == value).all())
    }


def _distinct(dim: str, labels: Sequence[Any]) -> tuple[Any, ...]:
    """Return the labels of a user, which must be different from each other."""
    values = tuple(np.asarray(labels).tolist())
    twice = next((v for i, v in enumerate(values) if v in values[:i]), None)
    if twice is not None:
        raise ValueError(
            f"coords['{dim}'] has the label {twice!r} twice; give each entry its own"
        )
    return values


def _note(
    inferred: Mapping[Axis, str],
    given: Mapping[str, Sequence[str]],
    variables: Shapes,
) -> str:
    """Say which variables have labels from which argument."""
    sources: dict[str, list[str]] = {}
    for axis, source in inferred.items():
        if axis.name != source and axis.name not in given:
            sources.setdefault(source, []).append(axis.name)
    return "; ".join(
        f"{', '.join(dict.fromkeys(names))} labeled by the "
        f"{'columns' if len(variables[source][1]) == 2 else 'levels'} of {source}"
        for source, names in sources.items()
    )
