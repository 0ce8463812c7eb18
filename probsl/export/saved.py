"""Saves fits to files, and loads them."""

from __future__ import annotations

import os
import platform
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from probsl.contract import Basin, Status
from probsl.data.data_options import DataOptions
from probsl.data.missing import complete_rows
from probsl.draws.predictions import deterministic_names, evaluated
from probsl.export.arrays import own_version
from probsl.export.fingerprints import fingerprints
from probsl.export.saved_checks import Checks, checks_of, decoded_checks
from probsl.export.saved_errors import remember_errors
from probsl.export.saved_format import damaged, read, write
from probsl.export.saved_methods import decoded_method, encoded_method
from probsl.export.saved_posteriors import (
    SavedPosterior,
    decoded_posterior,
    encoded_posterior,
    restored,
)
from probsl.export.saved_problems import (
    Bound,
    bound,
    decoded_bound,
    decoded_problem,
    encoded_problem,
    is_data,
)
from probsl.export.saved_values import NoFormError, count, tensors, text
from probsl.fitting import Fit
from probsl.isolation.calls import undisturbed
from probsl.methods.point_posterior import PointPosterior
from probsl.program.dry_run import check_program
from probsl.program.places import Place
from probsl.program.problem import Problem
from probsl.program.saved_problem import SavedProblem, refuse_changed, zeros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from probsl.methods.guides.forms import GuideForm

# The version of the format; those of all older ones can be read.
_VERSION = 1


@undisturbed
def save(fit: Fit, path: str | os.PathLike[str]) -> None:
    """Save a fit to a file; see `probsl.Fit.save`."""
    write(path, _encoded(fit))


@undisturbed
def load(
    path: str | os.PathLike[str],
    program: Callable[..., Any],
    data: Any = None,
    guide: GuideForm = None,
) -> Fit:
    """Load a fit that `Fit.save` saved.

    Without the data the fit can be shown, drawn from, and predict and score new data.
    What needs the data it was fitted to, as leave-one-out scores, plots of the data and
    fitting again, says so.

    Parameters
    ----------
    path
        The file. It is only data: no code in it is run, and what it says is checked.
    program
        The program that was fitted, which a file cannot hold.
    data
        The data that were fitted, in the same form, or None.
    guide
        The guide of an `SVI` fit, if it is not one of Pyro's automatic guides.

    Returns
    -------
    Fit
        On the same kind of machine, with the same versions of torch and Pyro, its
        results are equal to those of the saved fit in every bit.

    Raises
    ------
    ValueError
        If the file is damaged or of another kind; if the program, the data or the guide
        differ from those that were fitted, naming the site or the argument; or if one
        of them is needed.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, tempfile, torch
    >>> def program(x, y=None):
    ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
    >>> data = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([1.0, 2.0])}
    >>> fit = probsl.fit(program, data, probsl.MAP())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fit.save(f"{folder}/slope.fit")
    ...     loaded = probsl.load(f"{folder}/slope.fit", program)
    >>> loaded.point()
    {'slope': tensor(0.8333)}
    >>> loaded.log_likelihood()
    Traceback (most recent call last):
    ValueError: this fit was loaded without its data, ...
    """
    check_program(program)
    document = read(path)
    _refuse_newer(path, document)
    with _reading(path):
        parts = _decoded(document)
    if data is not None:
        problem: Problem = _with_data(parts, program, data)
    elif isinstance(parts.problem, str):
        raise ValueError(
            f"this fit can be loaded only with its data, because {parts.problem}; give "
            "them: probsl.load(path, program, data)"
        )
    else:
        problem = parts.problem(program)
    method = parts.fit["method"]
    posterior, method = restored(parts.posterior, problem, method, guide)
    if isinstance(posterior, PointPosterior):
        ended = {name: parts.fit[name] for name in ("status", "status_sites")}
        posterior = replace(posterior, **ended)
        if parts.posterior.errors is not None:
            remember_errors(posterior, parts.posterior.errors)
    if parts.checks is not None:
        parts.checks.refuse_other(problem, posterior.own)
    return Fit(**parts.fit | {"method": method}, problem=problem, posterior=posterior)


@dataclass(frozen=True, eq=False)
class _Parts:
    """The contents of a file, checked."""

    fit: dict[str, Any]
    bound: Bound
    problem: Callable[[Callable[..., Any]], SavedProblem] | str
    posterior: SavedPosterior
    checks: Checks | None


def _encoded(fit: Fit) -> dict[str, Any]:
    """Return a fit as plain values."""
    problem = fit.problem
    posterior = encoded_posterior(fit)
    try:
        unbound: Any = encoded_problem(problem)
    except NoFormError as refusal:
        unbound = str(refusal)
    return {
        "version": _VERSION,
        "versions": {
            "probsl": own_version(),
            "python": platform.python_version(),
            "pyro": pyro.__version__,
            "torch": torch.__version__,
        },
        "fit": {
            "method": encoded_method(fit.method),
            "seed": fit.seed,
            "status": fit.status.name,
            "status_sites": list(fit.status_sites),
            "losses": fit.losses,
            "steps": fit.steps,
            "seconds": fit.seconds,
            "note": fit.note,
            "compiled_from": fit.compiled_from,
            "basins": [
                {
                    "value": float(basin.value),
                    "count": basin.count,
                    "values": basin.values,
                    "status": None if basin.status is None else basin.status.name,
                }
                for basin in fit.basins
            ],
        },
        "posterior": posterior,
        "point": fit.point(),
        "bound": bound(problem),
        "problem": unbound,
        "reported": list(_reported(fit)),
        "checks": checks_of(problem, fit.posterior.own).encoded(),
    }


def _refuse_newer(path: str | os.PathLike[str], document: Any) -> None:
    """Refuse a file of a version of the format that is not known yet."""
    version = document.get("version") if isinstance(document, dict) else None
    if type(version) is not int or version < 1:
        damaged(path, "it states no version")
    if version > _VERSION:
        raise ValueError(
            f"'{os.fspath(path)}' is in format {version}, and this probsl reads "
            f"formats up to {_VERSION}; update probsl"
        )


def _reported(fit: Fit) -> tuple[str, ...]:
    """Return the deterministic sites that are equal with zeros for data.

    They are compared at draws of the posterior, where a fit evaluates them.
    """
    problem, own = fit.problem, fit.posterior.own
    if isinstance(problem, SavedProblem):
        return problem.reported
    names = deterministic_names(problem, by_row=False)
    draws, values = fit.posterior.draw(2, 0), dict(problem.arguments.values)
    absent = {
        name: (value.shape, value.dtype)
        for name, value in values.items()
        if is_data(name, problem)
    }
    blank = {**values, **zeros(absent, problem.device)}
    expected = evaluated(problem, names, values, draws, own, count=2)
    try:
        found = evaluated(problem, names, blank, draws, own, count=2)
    except Exception:  # the program cannot be run on zeros
        return ()
    return tuple(name for name in names if _equal(expected[name], found[name]))


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(
        ((one == other) | ((one != one) & (other != other))).all()  # noqa: PLR0124
    )


@contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Refuse a file whose contents are not as they were written."""
    try:
        yield
    except Exception as error:
        damaged(path, "its contents do not fit together", error)


def _decoded(document: Any) -> _Parts:
    """Return the parts of a document, checked."""
    known = decoded_bound(document["bound"])
    point = tensors(document["point"], None)
    problem = document["problem"]
    if not isinstance(problem, str):
        problem = decoded_problem(
            problem,
            known,
            tuple(map(text, document["bound"]["observed"])),
            tuple(map(text, document["reported"])),
            point,
        )
    posterior = decoded_posterior(document["posterior"], known.dtype)
    checks = decoded_checks(document.get("checks"))
    return _Parts(_decoded_fit(document["fit"]), known, problem, posterior, checks)


def _decoded_fit(value: Mapping[str, Any]) -> dict[str, Any]:
    losses, compiled = value["losses"], value["compiled_from"]
    if not (isinstance(losses, Tensor) and losses.is_floating_point()):
        raise TypeError("the losses are not numbers")
    return {
        "method": decoded_method(value["method"]),
        "seed": int(value["seed"]),
        "status": Status[value["status"]],
        "status_sites": tuple(map(text, value["status_sites"])),
        "losses": losses,
        "steps": count(value["steps"]),
        "seconds": float(value["seconds"]),
        "note": text(value["note"]),
        "compiled_from": None if compiled is None else count(compiled),
        "basins": tuple(map(_decoded_basin, value["basins"])),
    }


def _decoded_basin(value: Mapping[str, Any]) -> Basin:
    status = value["status"]
    return Basin(
        value=float(value["value"]),
        count=count(value["count"]),
        values=tensors(value["values"], None),
        status=None if status is None else Status[status],
    )


def _with_data(parts: _Parts, program: Callable[..., Any], data: Any) -> Problem:
    """Bind the program to the data that were fitted."""
    known = parts.bound
    rows = None if known.unclear else known.rows or None
    total = None
    if isinstance(data, DataLoader):
        total = known.size
    else:
        data = complete_rows(program, data, rows, None).data
    options = DataOptions(
        rows, known.weights, known.batch_size, total, known.dtype, known.device
    )
    problem = Problem.build(program, data, options, place=Place(around=known.around))
    refuse_changed(known.facts, problem)
    found = fingerprints(problem)
    for name in dict.fromkeys([*known.fingerprints, *found]):
        if known.fingerprints.get(name) != found.get(name):
            raise ValueError(
                f"argument '{name}' differs from the data that were fitted; give "
                "those, or load the fit without data"
            )
    names = problem.named().names
    coords = {**names.coords, **known.names.coords}
    return replace(problem, names=replace(known.names, coords=coords))
