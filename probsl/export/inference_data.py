"""A fit for ArviZ: its groups of arrays as InferenceData (0.x) or DataTree (1.x).

No other module imports arviz, and this one needs no torch: given plain numpy arrays,
it runs wherever arviz does.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from probsl.fitting import Fit

    Axes = Sequence[str | None]
    Arrays = Mapping[str, Mapping[str, tuple[Axes, np.ndarray[Any, Any]]]]
    Named = tuple[tuple[str, ...], np.ndarray[Any, Any]]

# The groups whose arrays have draws on their first axis. ArviZ wants a chain too: its
# summaries, LOO and plots stumble over draws without one.
DRAWN = (
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "log_prior",
    "sample_stats",
    "prior",
)
_SAMPLE = ("chain", "draw")


def to_arviz(
    fit: Fit,
    *,
    draws: int = 1000,
    seed: int = 0,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
) -> Any:
    """Return a fit in the form that ArviZ reads.

    Parameters
    ----------
    fit
        A fit by any method.
    draws
        The number of draws from a distribution. A point is one draw, but has as
        many from its prior and its predictive distribution.
    seed
        Seed of the draws.
    dims
        Variable -> a name for each of its axes that is not in a plate. Axes in a
        plate are named after the plate; those left without a name are called
        ``w_dim_0``, ``w_dim_1``, and so on.
    coords
        Dimension -> labels. A plate has those of the pandas categories of the
        argument with its name, in the singular or the plural; other dimensions
        count from 0.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        InferenceData with ArviZ 0.x, DataTree with 1.x, and in both these groups,
        as far as the fit has them. All draws are one chain.

        - ``posterior``: latents, the program's own parameters, deterministics;
          those that vary with a discrete latent are left out.
        - ``posterior_predictive``: the observed sites of the fitted rows, drawn
          anew. Latents with one entry per row are the fitted ones; discrete
          latents are drawn from the program.
        - ``log_likelihood``: the log density of every observed site, one value per
          row, at each draw. Row weights and the scale of batches are left out;
          ``pyro.poutine.scale`` and masks of the program's own stay. Discrete
          latents are summed out; observed sites that share one have one value
          together, as ``y_0+y_1``. Factors in the data plate are here as well.
        - ``log_prior``: the log density of every latent site given the latents
          that it depends on, as the program states it: without ``prior_weight``,
          and without the Jacobian of a change of variables.
        - ``sample_stats``: ``lp``, the log density of data and latents without any
          weights; where the posterior's own density is known, ``log_q`` has it and
          ``log_p`` is the density that was approximated, with all weights:
          importance weights are ``log_p - log_q``.
        - ``prior``: the latents drawn from the program, whatever it observed. Its
          attribute ``left_out`` names those that cannot be drawn, such as those
          with an improper prior, and says why.
        - ``observed_data``, ``constant_data``: observed sites; all other arguments
          that are arrays.

        The attributes of the whole and of the posterior say how the fit was made.

    Raises
    ------
    TypeError
        If `fit` is no fit, `dims` or `coords` are no mappings, or `dims` gives a
        variable one text instead of names.
    ValueError
        If `dims` or `coords` name what the fit does not have, or do not have the
        length of what they name, or if a site is called "chain" or "draw".

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(x, y=None):
    ...     w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    ...     with pyro.plate("patients", len(x)):
    ...         pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)
    >>> data = {"x": torch.eye(3)[:, :2], "y": torch.tensor([1.0, 2.0, 0.0])}
    >>> fit = probsl.fit(program, data, probsl.SVI())
    >>> names = {"w": ["column"], "x": ["column"]}
    >>> labels = {"column": ["age", "weight"]}
    >>> data = probsl.to_arviz(fit, dims=names, coords=labels)
    >>> data.posterior["w"].dims
    ('chain', 'draw', 'column')
    >>> data.log_likelihood["y"].shape
    (1, 1000, 3)
    """
    # Here, so that the rest of this module can be had without torch.
    from probsl.export.arrays import fit_arrays  # noqa: PLC0415

    groups = fit_arrays(fit, draws=draws, seed=seed)
    return from_groups(
        groups.arrays,
        dims=dims,
        coords=coords,
        labels=groups.labels,
        attrs=groups.attrs,
    )


def from_groups(
    arrays: Arrays,
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    labels: Mapping[str, np.ndarray[Any, Any]] | None = None,
    attrs: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Return groups of arrays in the form that ArviZ reads.

    Parameters
    ----------
    arrays
        Group -> variable -> (name of each axis or None, array). In the groups of
        draws the array has one more axis, the first, which is not named.
    dims
        Variable -> names for its axes that have None, in order.
    coords
        Dimension -> labels.
    labels
        Labels of dimensions for which `coords` has none.
    attrs
        Group -> attributes; those under "" are for the whole.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        With ArviZ 0.x or 1.x.

    Raises
    ------
    TypeError, ValueError
        See `to_arviz`.
    """
    dims, coords, attrs = dims or {}, coords or {}, attrs or {}
    _check_mapping("dims", dims, "variables to names of their axes, {'w': ['column']}")
    _check_mapping("coords", coords, "dimensions to labels, {'column': ['a', 'b']}")
    taken = _taken(arrays)
    _check_dims(arrays, dims, taken)
    named = {
        group: {
            name: (_names(name, axes, dims.get(name, ()), taken), array)
            for name, (axes, array) in variables.items()
        }
        for group, variables in arrays.items()
    }
    sizes = _sizes(named)
    _check_coords(coords, sizes)
    index: dict[str, np.ndarray[Any, Any]]
    index = {dim: np.arange(size) for dim, size in sizes.items()}
    index |= {_dimension(dim, taken): each for dim, each in (labels or {}).items()}
    index |= {dim: np.asarray(each) for dim, each in coords.items()}
    datasets = {
        group: _dataset(group, variables, index, attrs.get(group, {}))
        for group, variables in named.items()
    }
    return _contained(datasets, attrs.get("", {}))


def _dataset(
    group: str,
    variables: Mapping[str, Named],
    index: Mapping[str, Any],
    attrs: Mapping[str, Any],
) -> Any:
    import xarray as xr

    used = dict.fromkeys(dim for axes, _ in variables.values() for dim in axes)
    coords = {_plain(dim): index[dim] for dim in used}
    sample: tuple[str, ...] = ()
    if group in DRAWN:
        sample = _SAMPLE
        count = len(next(iter(variables.values()))[1])
        coords |= {"chain": np.arange(1), "draw": np.arange(count)}
    data = {
        _plain(name): ((*sample, *map(_plain, axes)), array[None] if sample else array)
        for name, (axes, array) in variables.items()
    }
    return xr.Dataset(data, coords, dict(attrs))


def _contained(datasets: Mapping[str, Any], attrs: Mapping[str, Any]) -> Any:
    """Put datasets into the container of the ArviZ that is installed."""
    if int(version("arviz").split(".")[0]) >= 1:
        import xarray as xr

        return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **datasets})
    with warnings.catch_warnings():
        # ArviZ 0.23 announces its successor on the day's first import.
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        import arviz

    return arviz.InferenceData(attrs=attrs, **datasets)


def _names(
    name: str, axes: Axes, given: Sequence[str], taken: Collection[str]
) -> tuple[str, ...]:
    """Name every axis of a variable."""
    unnamed = (*given, *(f"{name}_dim_{i}" for i in range(len(given), len(axes))))
    free = iter(unnamed)
    return tuple(next(free) if a is None else _dimension(a, taken) for a in axes)


def _dimension(plate: str, taken: Collection[str]) -> str:
    return f"{plate}_dim" if plate in taken else plate


def _plain(name: str) -> str:
    # A slash separates groups, in files and in data trees.
    return name.replace("/", ".")


def _taken(arrays: Arrays) -> set[str]:
    """Return names of plates that something else in the same group bears."""
    taken = set(_SAMPLE)
    for group, variables in arrays.items():
        for name in _SAMPLE:
            if group in DRAWN and name in variables:
                raise ValueError(
                    f"site '{name}' has the name of a dimension that all draws have; "
                    "give it another"
                )
        plates = {a for axes, _ in variables.values() for a in axes if a is not None}
        taken |= plates & set(variables)
    return taken


def _sizes(named: Mapping[str, Mapping[str, Named]]) -> dict[str, int]:
    """Return the length of every dimension, which must be one wherever it occurs."""
    first: dict[str, tuple[str, int]] = {}
    for group, variables in named.items():
        for name, (axes, array) in variables.items():
            shape = array.shape[1:] if group in DRAWN else array.shape
            for dim, size in zip(axes, shape, strict=True):
                other, expected = first.setdefault(dim, (name, size))
                if size != expected:
                    raise ValueError(
                        f"dimension '{dim}' has {expected} entries in '{other}' and "
                        f"{size} in '{name}'; give dims of different names"
                    )
    return {dim: size for dim, (_, size) in first.items()}


def _check_mapping(option: str, value: Any, what: str) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{option} must map {what}, got {value!r}")


def _check_dims(
    arrays: Arrays, dims: Mapping[str, Sequence[str]], taken: Collection[str]
) -> None:
    known = dict.fromkeys(name for group in arrays.values() for name in group)
    for name, given in dims.items():
        if name not in known:
            raise ValueError(
                f"dims names '{name}', which is no variable of the fit; those are "
                f"{', '.join(known)}"
            )
        # One text and one number have no axes.
        if np.ndim(given) == 0 or not all(isinstance(g, str) for g in given):
            raise TypeError(
                f"dims['{name}'] must be a list of names, such as ['column'], got "
                f"{given!r}"
            )
        groups = [group for group in arrays.values() if name in group]
        axes = [group[name][0] for group in groups]
        count = max(list(each).count(None) for each in axes)
        if len(given) != count:
            raise ValueError(
                f"dims['{name}'] has length {len(given)}, but '{name}' has {count} "
                "axes that are in no plate; give each of them a name"
            )
        plates = {_dimension(a, taken) for each in axes for a in each if a is not None}
        others = {*_SAMPLE, *plates, *(other for group in groups for other in group)}
        for dim in given:
            if dim in others or list(given).count(dim) > 1:
                raise ValueError(
                    f"dims['{name}'] has the name '{dim}', which another axis or a "
                    "variable has; choose another"
                )


def _check_coords(
    coords: Mapping[str, Sequence[Any]], sizes: Mapping[str, int]
) -> None:
    for dim, labels in coords.items():
        if dim not in sizes:
            raise ValueError(
                f"coords names '{dim}', which is no dimension of the fit; those are "
                f"{', '.join(sizes)}"
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
