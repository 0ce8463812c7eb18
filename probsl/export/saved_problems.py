"""A problem without its data as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.data.absent_rows import AbsentArray, AbsentRows
from probsl.data.arguments import Arguments
from probsl.data.array_kinds import COMPUTED_IN
from probsl.data.placement import device_of
from probsl.draws.predictions import observed_arguments
from probsl.export.fingerprints import fingerprints
from probsl.export.saved_sites import (
    check_latent,
    decoded_facts,
    decoded_plate,
    decoded_site,
    encoded_facts,
    encoded_plate,
    encoded_site,
)
from probsl.export.saved_supports import decoded, encoded
from probsl.export.saved_values import (
    NoFormError,
    count,
    encodable,
    on_device,
    shape_of,
    tensors,
    text,
)
from probsl.program.axis_names import AxisNames
from probsl.program.places import Place
from probsl.program.saved_problem import (
    SavedProblem,
    SiteFacts,
    facts_of,
    guide_supports,
)
from probsl.program.stateless_callable import (
    OwnParameter,
    Recorded,
    StatelessCallable,
)
from probsl.program.subsampling import Subsampling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from probsl.program.problem import Problem

__all__ = [
    "Bound",
    "bound",
    "decoded_bound",
    "decoded_problem",
    "encoded_problem",
    "is_data",
]

_DTYPES = {str(dtype): dtype for dtype in COMPUTED_IN}


@dataclass(frozen=True, eq=False)
class Bound:
    """What is known of the data that a program was fitted to.

    Attributes
    ----------
    dtype, device
        Of every computation.
    rows
        The names of the arguments with one entry per row.
    unclear
        Why these are only candidates, if they are.
    size, held
        The number of rows, and how many of them the problem's arguments held.
    weights
        One weight per row, or None.
    batch_size
        Rows per step for which rows were stored; None if all were held.
    names
        The names of all axes.
    around
        Latent -> the unconstrained value near which the program can be run.
    facts
        Site -> the facts by which it is recognized.
    fingerprints
        Argument -> the hash of its values.
    """

    dtype: torch.dtype
    device: torch.device
    rows: tuple[str, ...]
    unclear: str
    size: int
    held: int
    weights: Tensor | None
    batch_size: int | None
    names: AxisNames
    around: dict[str, Tensor]
    facts: dict[str, SiteFacts]
    fingerprints: dict[str, str]


def bound(problem: Problem) -> dict[str, Any]:
    """Return what is needed to bind the program to the same data, as plain values."""
    data, saved = problem.data, isinstance(problem, SavedProblem)
    observed = observed_arguments(problem)
    if isinstance(problem, SavedProblem):
        facts, hashes = problem.facts, problem.fingerprints
    else:
        facts, hashes = facts_of(problem, observed), fingerprints(problem)
    return {
        "dtype": str(problem.dtype),
        "device": str(problem.device),
        "rows": list(problem.rows),
        "unclear": data.unclear,
        "size": problem.size,
        "held": data.held,
        "weights": problem.weights,
        "batch_size": None if saved or data.complete else data.batch_size,
        "names": _encoded_names(problem),
        "around": dict(problem.place.around),
        "facts": {name: encoded_facts(fact) for name, fact in facts.items()},
        "fingerprints": dict(hashes),
        "observed": sorted(observed),
    }


def decoded_bound(value: Mapping[str, Any]) -> Bound:
    """Return what `bound` was given, checked."""
    rows, size, held = value["rows"], count(value["size"]), count(value["held"])
    weights, batch_size = value["weights"], value["batch_size"]
    dtype, device = _DTYPES[value["dtype"]], _device(value["device"])
    if weights is not None:
        weights = weights.to(device)
    if weights is not None and (weights.shape != (size,) or weights.dtype != dtype):
        raise ValueError("there is not one weight per row")
    return Bound(
        dtype=dtype,
        device=device,
        rows=tuple(map(text, rows)),
        unclear=text(value["unclear"]),
        size=size,
        held=held,
        weights=weights,
        batch_size=None if batch_size is None else count(batch_size),
        names=_decoded_names(value["names"]),
        around=on_device(tensors(value["around"], dtype), device),
        facts={text(n): decoded_facts(f) for n, f in value["facts"].items()},
        fingerprints={text(n): text(f) for n, f in value["fingerprints"].items()},
    )


def encoded_problem(problem: Problem) -> dict[str, Any]:
    """Return what is needed to draw and predict without the data, as plain values.

    Raises
    ------
    NoFormError
        If a support, or the labels of an argument, have no form in the file.
    """
    plate, recorded = problem.data_plate, problem.program.recorded()
    sampling = problem.subsampling
    supports = (
        problem.supports
        if isinstance(problem, SavedProblem)
        else guide_supports(problem)
    )
    return {
        "arguments": {n: _encoded_argument(n, problem) for n in _values(problem)},
        "labels": problem.arguments.labels,
        "sites": [encoded_site(site) for site in problem.sites],
        "supports": {name: encoded(support) for name, support in supports.items()},
        "plate": None if plate is None else encoded_plate(plate),
        "subsampling": None
        if sampling is None
        else {"whole": sorted(sampling.whole), "seen": dict(sampling.seen)},
        "own_scale": float(problem.own_scale),
        "discrete": sorted(problem.discrete),
        "own_parameters": [
            {
                "name": p.name,
                "start": p.start,
                "transform": encoded(p.transform),
                "statement": p.statement,
                "path": p.path,
            }
            for p in recorded.own_parameters
        ],
        "left_out": recorded.left_out,
        "states_modules": recorded.states_modules,
        "skips_initialization": recorded.skips_initialization,
    }


def decoded_problem(
    value: Mapping[str, Any],
    known: Bound,
    observed: tuple[str, ...],
    reported: tuple[str, ...],
    point: Mapping[str, Tensor],
) -> Callable[[Callable[..., Any]], SavedProblem]:
    """Return a function from the program to the problem without its data.

    Parameters
    ----------
    value
        What `encoded_problem` returned.
    known
        What is known of the data.
    observed, reported, point
        See `probsl.program.saved_problem.SavedProblem`.
    """
    device = known.device
    recorded = Recorded(
        own_parameters=tuple(
            _decoded_parameter(p, device) for p in value["own_parameters"]
        ),
        left_out=on_device(tensors(value["left_out"], None), device),
        states_modules=bool(value["states_modules"]),
        skips_initialization=bool(value["skips_initialization"]),
    )
    sites = tuple(decoded_site(site, device) for site in value["sites"])
    for p in recorded.own_parameters:
        if p.constrain(p.start).shape != point[p.name].shape:
            raise ValueError(f"parameter '{p.name}' has two shapes")
    supports = {text(n): decoded(s, device) for n, s in value["supports"].items()}
    for site in sites:
        if site.latent:
            check_latent(site, point[site.name], supports[site.name])
    seen = value["subsampling"]
    options: dict[str, Any] = {
        "arguments": Arguments(
            {text(n): _decoded_argument(a) for n, a in value["arguments"].items()},
            {text(n): _labels(labels) for n, labels in value["labels"].items()},
        ),
        "dtype": known.dtype,
        "sites": sites,
        "data_plate": None if value["plate"] is None else decoded_plate(value["plate"]),
        "data": AbsentRows(
            known.rows, known.size, known.held, known.weights, known.unclear
        ),
        "device": known.device,
        "subsampling": None
        if seen is None
        else Subsampling(whole=frozenset(seen["whole"]), seen=dict(seen["seen"])),
        "own_scale": float(value["own_scale"]),
        "discrete": frozenset(map(text, value["discrete"])),
        "place": Place(around=known.around),
        "names": known.names,
        "facts": known.facts,
        "fingerprints": known.fingerprints,
        "observed": observed,
        "reported": reported,
        "known_point": point,
        "supports": supports,
    }

    def problem(program: Callable[..., Any]) -> SavedProblem:
        functional = StatelessCallable(program)
        functional.restore(recorded)
        return SavedProblem(program=functional, **options)

    return problem


def _values(problem: Problem) -> dict[str, Any]:
    return problem.arguments.values


def _encoded_argument(name: str, problem: Problem) -> Any:
    """Return a constant argument as it is, and of others the shape and type."""
    value = _values(problem)[name]
    described = value.describe() if isinstance(value, AbsentArray) else None
    if is_data(name, problem):
        described = value.shape, value.dtype
    if described is not None:
        return {"shape": list(described[0]), "dtype": str(described[1])}
    return {"value": value} if encodable(value) else {"absent": True}


def is_data(name: str, problem: Problem) -> bool:
    """Whether an argument is an array of data, which is not saved."""
    value = _values(problem)[name]
    return torch.is_tensor(value) and (name in problem.rows or not problem.has_rows)


def _decoded_argument(value: Mapping[str, Any]) -> Any:
    if "value" in value:
        return value["value"]
    if "absent" in value:
        return AbsentArray((), torch.float32)
    dtype = getattr(torch, value["dtype"].removeprefix("torch."))
    if not isinstance(dtype, torch.dtype):
        raise TypeError("an argument has no type")
    return AbsentArray(shape_of(value["shape"]), dtype)


def _encoded_names(problem: Problem) -> dict[str, Any]:
    """Return the names of axes; labels of rows only if a latent has one of each."""
    names, plate = problem.names, problem.data_plate
    rows = {plate.name} if plate is not None else set()
    rows -= {d for s in problem.latents for d in names.dims.get(s.name, ()) if d}
    coords = {d: c for d, c in names.coords.items() if d not in rows}
    for dim, labels in coords.items():
        if not encodable(labels):
            kind = type(labels[0]).__name__
            raise NoFormError(
                f"the labels of '{dim}' are of type {kind}, which cannot be saved; "
                f"fit with texts or numbers, coords={{'{dim}': [...]}}"
            )
    return {
        "dims": dict(names.dims),
        "coords": coords,
        "classes": dict(names.classes),
        "note": names.note,
    }


def _decoded_names(value: Mapping[str, Any]) -> AxisNames:
    dims, coords, classes = (
        {text(name): _labels(labels) for name, labels in value[kind].items()}
        for kind in ("dims", "coords", "classes")
    )
    for axes in dims.values():
        for axis in axes:
            text(axis or "")
    return AxisNames(dims, coords, classes, text(value["note"]))


def _labels(value: Any) -> tuple[Any, ...]:
    hash(value)  # raises if a label is not a single value
    if not isinstance(value, tuple) or any(isinstance(v, Tensor) for v in value):
        raise TypeError("labels are not a tuple")
    return value


def _decoded_parameter(value: Mapping[str, Any], device: torch.device) -> OwnParameter:
    if not isinstance(value["start"], Tensor):
        raise TypeError("a parameter has no value")
    return OwnParameter(
        name=text(value["name"]),
        start=value["start"].to(device),
        transform=decoded(value["transform"], device),
        statement=bool(value["statement"]),
        path=text(value["path"]),
    )


def _device(value: Any) -> torch.device:
    """Return the device of a fit if it is there, else the CPU."""
    try:
        return device_of(Arguments({}), (), text(value))
    except ValueError:
        return torch.device("cpu")
