"""Collects a fit as groups of NumPy arrays with named axes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch

from probsl.contract import KnowsDensity, KnowsTarget
from probsl.data.axes import axis_names
from probsl.draws.mapped import map_draws
from probsl.draws.predictions import (
    deterministics,
    observed_arguments,
    prior_draws,
    replicates,
)
from probsl.fitting import Fit
from probsl.isolation.calls import undisturbed
from probsl.options import whole_number
from probsl.program.sites import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from torch import Tensor

    from probsl.program.problem import Problem

    Draws = dict[str, Tensor]

Axes = tuple[str | None, ...]
Named = tuple[Axes, "np.ndarray[Any, Any]"]
Group = dict[str, Named]


@dataclass(frozen=True, eq=False)
class FitArrays:
    """Arrays by group and variable, for any library of labeled arrays.

    Attributes
    ----------
    arrays
        Group -> variable -> (name of each axis, array). The name is None for an
        axis outside all plates. In the groups of draws the array has an additional
        first axis over the draws, which is not among the names.
    dims
        Variable -> a name for each of its axes outside all plates, if any is known.
    labels
        Dimension -> labels of its entries, if any are known.
    attrs
        Group -> its attributes; those under "" belong to the whole.
    """

    arrays: dict[str, Group]
    dims: dict[str, list[str]]
    labels: dict[str, np.ndarray[Any, Any]]
    attrs: dict[str, dict[str, str | int]]


@undisturbed
def fit_arrays(fit: Fit, *, draws: int = 1000, seed: int = 0) -> FitArrays:
    """Collect draws, densities and data of a fit.

    Parameters
    ----------
    fit
        The fit.
    draws
        The number of draws; a point has one draw.
    seed
        Seed of the draws.

    Returns
    -------
    FitArrays
        The groups `posterior`, `log_likelihood`, `log_prior`, `sample_stats`,
        `posterior_predictive`, `prior`, `observed_data` and `constant_data`,
        without empty groups. `probsl.to_arviz` describes their contents.

    Raises
    ------
    TypeError
        If `fit` is not a `Fit`.
    """
    if not isinstance(fit, Fit):
        raise TypeError(
            "to_arviz takes what probsl.fit returns, got a value of type "
            f"{type(fit).__name__}"
        )
    draws = whole_number("draws", draws)
    seed = whole_number("seed", seed, least=0)
    fit = replace(fit, problem=fit.problem.with_all_rows())
    collector = _Collector(fit, draws, seed)
    predicted, unpredicted = collector.predictive()
    prior, undrawn = collector.prior()
    arrays = {
        "posterior": collector.posterior(),
        "log_likelihood": collector.log_likelihood(),
        "log_prior": collector.log_prior(),
        "sample_stats": collector.sample_stats(),
        "posterior_predictive": predicted,
        "prior": prior,
        "observed_data": _observed_data(fit),
        "constant_data": _constant_data(fit.problem),
    }
    arrays = {name: group for name, group in arrays.items() if group}
    facts = _facts(fit, seed)
    attrs = {"": facts, "posterior": dict(facts)}
    for group, reason in {
        "prior": undrawn,
        "posterior_predictive": unpredicted,
    }.items():
        if reason:
            # A group that is left out completely cannot have attributes.
            facts[f"{group}_left_out"] = reason
            attrs[group] = {"left_out": reason}
    return FitArrays(
        arrays,
        _dims(fit.problem, arrays),
        {dim: _listed(each) for dim, each in fit.problem.names.coords.items()},
        attrs,
    )


class _Collector:
    """Collects the groups of draws of one fit."""

    def __init__(self, fit: Fit, draws: int, seed: int) -> None:
        self._fit = fit
        self._problem = fit.problem
        self._draws = draws
        self._seed = seed
        self._count = 1 if fit.posterior.is_point else draws
        self._values = fit.posterior.draw(self._count, seed)
        self._own = {n: v.detach() for n, v in fit.posterior.own.items()}
        self._axes = {s.name: s.plate_axes for s in fit.problem.sites}

    def posterior(self) -> Group:
        """Return latents, own parameters and deterministics."""
        drawn = {
            **self._fit.draw(self._count, seed=self._seed),
            **deterministics(
                self._problem, self._values, self._own, self._count, by_row=True
            ),
        }
        return self._named(drawn)

    def predictive(self) -> tuple[Group, str]:
        """Return new draws of observed sites, and a note on those left out."""
        values = self._values
        if self._count != self._draws:
            values = self._fit.posterior.draw(self._draws, self._seed)
        drawn, missing = replicates(
            self._problem, values, self._own, count=self._draws, seed=self._seed
        )
        reason = "their distribution has no sampler"
        return self._named(drawn), _left_out(missing, reason)

    def prior(self) -> tuple[Group, str]:
        """Return latents drawn from the program, and a note on those left out."""
        latents = [s.name for s in self._problem.latents]
        try:
            drawn, missing = prior_draws(
                self._problem, self._own, count=self._draws, seed=self._seed
            )
        except Exception as error:
            # The program ran before; it fails here at a draw far from the data.
            reason = f"the program fails at a draw from the prior: {error}"
            return {}, _left_out(latents, reason)
        reason = "their prior is improper or depends on one that is"
        return self._named(drawn), _left_out(missing, reason)

    def log_likelihood(self) -> Group:
        """Return log densities of observed sites, with their batch axes."""
        problem = self._problem
        factors = [
            name
            for name in problem.sites_with_role(Role.FACTOR)
            if problem.has_rows and problem.is_local(problem.site(name))
        ]
        own = {s.name: s.batch_axes for s in problem.sites}
        return {
            name: _without_unit_axes(named, own.get(name, 0))
            for name, named in self._densities(
                {*problem.sites_with_role(Role.OBSERVED), *factors}
            ).items()
        }

    def log_prior(self) -> Group:
        """Return log densities of the latents given those they depend on."""
        return self._densities({s.name for s in self._problem.latents})

    def sample_stats(self) -> Group:
        """Return joint log densities, and the guide's if it is known."""
        plain, posterior = self._problem.reweighted(None), self._fit.posterior
        stats = {"lp": self._mapped(lambda v: plain.log_density(v, self._own))}
        if isinstance(posterior, KnowsDensity):
            target = posterior.target
            stats["log_p"] = self._mapped(lambda v: target.log_density(v, self._own))
            stats["log_q"] = posterior.log_density(self._count, self._seed)
        return {name: ((), _numpy(value)) for name, value in stats.items()}

    def _densities(self, names: Collection[str]) -> Group:
        if not names:
            return {}
        problem, own = self._problem, self._own
        first = {name: value[0] for name, value in self._values.items()}

        def terms(values: Draws) -> Draws:
            found = problem.log_density_by_site(values, own, names)
            return {name: term for name, (term, _) in found.items()}

        with problem.isolated(), torch.no_grad():
            axes = problem.log_density_by_site(first, own, names)
            drawn = map_draws(terms, self._values, self._count, problem.size)
        return {name: (axes[name][1], _numpy(value)) for name, value in drawn.items()}

    def _mapped(self, function: Callable[[Draws], Tensor]) -> Tensor:
        problem = self._problem
        with problem.isolated(), torch.no_grad():
            return map_draws(
                lambda values: {"value": function(values)},
                self._values,
                self._count,
                problem.size,
            )["value"]

    def _named(self, drawn: Draws) -> Group:
        return {
            name: (
                self._axes.get(name, (None,) * (value.dim() - 1)),
                _numpy(value),
            )
            for name, value in drawn.items()
        }


def _observed_data(fit: Fit) -> Group:
    """Return observed values; those that depend on latents are at the estimate."""
    problem, posterior = fit.problem, fit.posterior
    values = problem.observed_values(values=posterior.point(), own=posterior.own)
    return {
        name: (problem.site(name).plate_axes, _numpy(value))
        for name, value in values.items()
    }


def _constant_data(problem: Problem) -> Group:
    """Return the arguments that are unobserved arrays."""
    observed = problem.observed_values().values()
    skip = observed_arguments(problem)
    found = {}
    for name, value in problem.arguments.values.items():
        if not torch.is_tensor(value) or name in skip:
            continue
        # Whether a required argument is observed cannot be tested by omitting it.
        if any(value is other for other in observed):
            continue
        axes: list[str | None] = [None] * value.dim()
        if name in problem.rows and problem.data_plate:
            axes[0] = problem.data_plate.name
        found[name] = (tuple(axes), _numpy(value))
    return found


def _without_unit_axes(named: Named, kept_axes: int) -> Named:
    """Drop unnamed axes of length 1, except for the last `kept_axes`."""
    axes, array = named
    spare = axes[: max(len(axes) - kept_axes, 0)]
    units = [i for i, a in enumerate(spare) if a is None and array.shape[i + 1] == 1]
    kept = tuple(a for i, a in enumerate(axes) if i not in units)
    return kept, array.squeeze(tuple(i + 1 for i in units))


def _dims(problem: Problem, arrays: Mapping[str, Group]) -> dict[str, list[str]]:
    """Return the names of the axes outside all plates, of the variables with some."""
    found = {}
    for group in arrays.values():
        for name, (axes, _) in group.items():
            dims = problem.names.dims.get(name, ())
            if len(dims) == len(axes) and None in axes:
                default = axis_names(name, axes, ())
                free = [i for i, plate in enumerate(axes) if plate is None]
                found[name] = [dims[i] or default[i] for i in free]
    return found


def _listed(labels: Sequence[Any]) -> np.ndarray[Any, Any]:
    array = np.asarray(labels)
    plain = array.ndim == 1 and array.dtype.kind in "biufU"
    return array if plain else np.array([*map(str, labels)])


def _facts(fit: Fit, seed: int) -> dict[str, str | int]:
    facts = {
        "inference_library": "probsl",
        "method": repr(fit.method),
        "space": _space(fit),
        "status": fit.status.name,
        "message": fit.message,
        "note": fit.note,
        "seed": fit.seed,
        "draws_seed": seed,
        "inference_library_version": own_version(),
        "pyro_version": pyro.__version__,
        "torch_version": str(torch.__version__),
    }
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _space(fit: Fit) -> str | None:
    """Return the space in which a point maximizes its density; None for others."""
    posterior = fit.posterior
    if not isinstance(posterior, KnowsTarget) or not posterior.is_point:
        return None
    return posterior.target.space


def own_version() -> str | None:
    """Return the version of this package; None if it is not installed."""
    try:
        return version("probsl")
    except PackageNotFoundError:  # run from source, not installed
        return None


def _left_out(names: Collection[str], reason: str) -> str:
    return f"{', '.join(names)}: {reason}" if names else ""


def _numpy(value: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = value.detach().cpu().numpy()
    return array
