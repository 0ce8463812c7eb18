"""Exports a fit to ArviZ, as InferenceData (0.x) or DataTree (1.x).

No other module imports arviz, and this one works without torch: given NumPy arrays,
it depends on arviz only.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from probsl.data.axes import (
    axis_names,
    check_coords,
    check_dims,
    check_mappings,
    sizes_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from probsl.data.axes import Axes
    from probsl.fitting import Fit

    Arrays = Mapping[str, Mapping[str, tuple[Axes, np.ndarray[Any, Any]]]]
    Named = tuple[tuple[str, ...], np.ndarray[Any, Any]]

# The groups whose arrays have draws on their first axis. ArviZ needs a chain axis too:
# its summaries, LOO and plots fail without one.
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
    """Convert a fit to the format of ArviZ.

    Parameters
    ----------
    fit
        A fit by any method.
    draws
        The number of draws from a distribution. A point is one draw, but has this
        many draws from its prior and its predictive distribution.
    seed
        Seed of the draws.
    dims
        Variable -> a name for each of its axes that is not in a plate, instead of the
        names in the fit, see `probsl.fit`. Axes in a plate have the name of the plate;
        unnamed axes are called ``w_dim_0``, ``w_dim_1``, and so on.
    coords
        Dimension -> labels, instead of those in the fit; other dimensions count from 0.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        InferenceData with ArviZ 0.x, DataTree with 1.x, both with those of these
        groups that the fit has. All draws are in one chain.

        - ``posterior``: latents, the program's own parameters, deterministics;
          those that depend on a discrete latent are omitted.
        - ``posterior_predictive``: new draws of the observed sites of the fitted
          rows. Latents with one entry per row have their fitted values; discrete
          latents are drawn from the program.
        - ``log_likelihood``: the log density of every observed site, one value per
          row, at each draw, without row weights and batch scales, but with the
          program's own ``pyro.poutine.scale`` and masks. Discrete latents are
          summed out; observed sites that share one have one joint value, named
          like ``y_0+y_1``. Factors in the data plate are included.
        - ``log_prior``: the log density of every latent site given the latents
          that it depends on, as the program states it: without ``prior_weight``
          and without the Jacobian of a change of variables.
        - ``sample_stats``: ``lp``, the joint log density of data and latents without
          weights; if the density of the posterior is known, ``log_q`` is its log
          and ``log_p`` the approximated log density with all weights. The log
          importance weights are ``log_p - log_q``.
        - ``prior``: the latents drawn from the program, independent of the data. Its
          attribute ``left_out`` names those that cannot be drawn, such as those
          with an improper prior, and the reason.
        - ``observed_data``, ``constant_data``: the observed sites, and all other
          arguments that are arrays.

        The attributes of the whole and of the posterior describe how it was fitted.

    Raises
    ------
    TypeError
        If `fit` is not a `Fit`, `dims` or `coords` are not mappings, or `dims` maps a
        variable to a string instead of a list of names.
    ValueError
        If `dims` or `coords` have names that the fit does not have, or the wrong
        length for a name, or if a site is called "chain" or "draw".

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
    # Imported here, so that the rest of this module works without torch.
    from probsl.export.arrays import fit_arrays  # noqa: PLC0415

    dims, coords = dims or {}, coords or {}
    check_mappings(dims, coords)
    groups = fit_arrays(fit, draws=draws, seed=seed)
    labels = dict(groups.labels)
    for name in groups.dims.keys() & dims.keys():
        for old, new in zip(groups.dims[name], dims[name], strict=False):
            if old in labels:
                labels.setdefault(new, labels[old])
    return from_groups(
        groups.arrays,
        dims={**groups.dims, **dims},
        coords=coords,
        labels=labels,
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
    """Convert groups of arrays to the format of ArviZ.

    Parameters
    ----------
    arrays
        Group -> variable -> (name of each axis or None, array). In the groups of
        draws the array has an additional first axis, which is not named.
    dims
        Variable -> names for its unnamed axes, in order.
    coords
        Dimension -> labels.
    labels
        Labels of dimensions that are not in `coords`.
    attrs
        Group -> attributes; those under "" belong to the whole.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        InferenceData with ArviZ 0.x, DataTree with 1.x.

    Raises
    ------
    TypeError, ValueError
        See `to_arviz`.
    """
    dims, coords, attrs = dims or {}, coords or {}, attrs or {}
    check_mappings(dims, coords)
    taken = _taken(arrays)
    plates = {
        group: {n: _plates(axes, taken) for n, (axes, _) in variables.items()}
        for group, variables in arrays.items()
    }
    check_dims(dims, plates.values(), _SAMPLE)
    named = {
        group: {
            name: (axis_names(name, plates[group][name], dims.get(name, ())), array)
            for name, (_, array) in variables.items()
        }
        for group, variables in arrays.items()
    }
    sizes = sizes_of(
        (name, axes, array.shape[1:] if group in DRAWN else array.shape)
        for group, variables in named.items()
        for name, (axes, array) in variables.items()
    )
    check_coords(coords, sizes)
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
    """Put datasets into the container of the installed ArviZ version."""
    if int(version("arviz").split(".")[0]) >= 1:
        import xarray as xr

        return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **datasets})
    with warnings.catch_warnings():
        # ArviZ 0.23 warns about its successor on the first import of the day.
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        import arviz

    return arviz.InferenceData(attrs=attrs, **datasets)


def _plain(name: str) -> str:
    # A slash separates groups, in files and in data trees.
    return name.replace("/", ".")


def _plates(axes: Axes, taken: Collection[str]) -> Axes:
    """Return the dimension of the plate of each axis, or None."""
    return tuple(None if axis is None else _dimension(axis, taken) for axis in axes)


def _dimension(plate: str, taken: Collection[str]) -> str:
    return f"{plate}_dim" if plate in taken else plate


def _taken(arrays: Arrays) -> set[str]:
    """Return plate names that another object in the same group also has."""
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
