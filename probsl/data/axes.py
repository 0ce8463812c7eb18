"""Checks the names that users give to axes, and the labels along them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

Axes = tuple[str | None, ...]


def check_mappings(dims: Any, coords: Any) -> None:
    """Refuse `dims` and `coords` that are not mappings.

    Raises
    ------
    TypeError
        If one of them is not a mapping.
    """
    _check_mapping("dims", dims, "variables to names of their axes, {'w': ['column']}")
    _check_mapping("coords", coords, "dimensions to labels, {'column': ['a', 'b']}")


def check_dims(
    dims: Mapping[str, Sequence[str]],
    groups: Iterable[Mapping[str, Axes]],
    taken: Collection[str] = (),
) -> None:
    """Check names that a user gives to the axes of variables.

    Parameters
    ----------
    dims
        Variable -> a name for each of its axes that is in no plate.
    groups
        For each group of variables, variable -> plate of each axis or None.
    taken
        Other names that an axis cannot have.

    Raises
    ------
    TypeError
        If the names of a variable are not a list of texts.
    ValueError
        If a variable is unknown, has another number of axes, or a name is taken.
    """
    groups = list(groups)
    known = dict.fromkeys(name for group in groups for name in group)
    for name, given in dims.items():
        if name not in known:
            raise ValueError(
                f"dims names '{name}', which is not a variable of the fit; those are "
                f"{', '.join(known)}"
            )
        # A single string or number has no axes.
        if np.ndim(given) == 0 or not all(isinstance(g, str) for g in given):
            raise TypeError(
                f"dims['{name}'] must be a list of names, such as ['column'], got "
                f"{given!r}"
            )
        within = [group for group in groups if name in group]
        axes = [group[name] for group in within]
        count = max(list(each).count(None) for each in axes)
        if len(given) != count:
            raise ValueError(
                f"dims['{name}'] has length {len(given)}, but '{name}' has {count} "
                "axes that are in no plate; give each of them a name"
            )
        plates = {a for each in axes for a in each if a is not None}
        others = {*taken, *plates, *(other for group in within for other in group)}
        for dim in given:
            if dim in others or list(given).count(dim) > 1:
                raise ValueError(
                    f"dims['{name}'] has the name '{dim}', which another axis or a "
                    "variable has; choose another"
                )


def check_coords(coords: Mapping[str, Sequence[Any]], sizes: Mapping[str, int]) -> None:
    """Check the labels that a user gives to the entries of dimensions.

    Parameters
    ----------
    coords
        Dimension -> labels.
    sizes
        Dimension -> number of entries.

    Raises
    ------
    ValueError
        If a dimension is unknown, or the labels are not one per entry.
    """
    for dim, labels in coords.items():
        if dim not in sizes:
            raise ValueError(
                f"coords names '{dim}', which is not a dimension of the fit; those are "
                f"{', '.join(sizes) or 'none'}"
            )
        shape = np.shape(np.asarray(labels))
        if len(shape) > 1:
            raise ValueError(
                f"coords['{dim}'] has {len(shape)} axes, but labels are a list of "
                "texts or numbers; give one per entry"
            )
        if shape != (sizes[dim],):
            count = shape[0] if shape else 1
            raise ValueError(
                f"coords['{dim}'] has length {count}, but the dimension has "
                f"{sizes[dim]} entries; give each of them a label"
            )


def sizes_of(
    shapes: Iterable[tuple[str, Sequence[str], Sequence[int]]],
) -> dict[str, int]:
    """Return the length of every dimension, which must be the same everywhere.

    Parameters
    ----------
    shapes
        Of each variable its name, the names of its axes, and their lengths.

    Raises
    ------
    ValueError
        If two axes of one name have different lengths.
    """
    first: dict[str, tuple[str, int]] = {}
    for name, axes, shape in shapes:
        for dim, size in zip(axes, shape, strict=True):
            other, expected = first.setdefault(dim, (name, size))
            if size != expected:
                raise ValueError(
                    f"dimension '{dim}' has {expected} entries in '{other}' and "
                    f"{size} in '{name}'; give dims of different names"
                )
    return {dim: size for dim, (_, size) in first.items()}


def axis_names(name: str, axes: Axes, given: Sequence[str]) -> tuple[str, ...]:
    """Name every axis of a variable: by its plate, as given, or by its position.

    Examples
    --------
    >>> from probsl.data.axes import axis_names
    >>> axis_names("w", ("schools", None, None), ["column"])
    ('schools', 'column', 'w_dim_1')
    """
    unnamed = (*given, *(f"{name}_dim_{i}" for i in range(len(given), len(axes))))
    free = iter(unnamed)
    return tuple(next(free) if a is None else a for a in axes)


def _check_mapping(option: str, value: Any, what: str) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{option} must map {what}, got {value!r}")
