"""The validated run of a program before a fit, and its refusals."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from probsl.data.conversion import place as place_of
from probsl.isolation.calls import isolated
from probsl.program.data_plate import ADD_A_PLATE, plates_to_index
from probsl.program.messages import (
    is_factor,
    is_observation,
    plates_of,
    refuse_unannotated,
    visit,
)
from probsl.program.observed_supports import moves, outside
from probsl.program.places import GivenParameters, Place, first_place
from probsl.program.program_errors import annotate, refuse_unequal_lengths
from probsl.program.subsampling import Subsampling
from probsl.program.supports import settled, support_of, unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from probsl.data.arguments import Arguments
    from probsl.program.sites import Site
    from probsl.program.stateless_callable import StatelessCallable

# Distance, in unconstrained space, at which a support is evaluated again.
_ELSEWHERE = 0.3
_OF_SHAPES = re.compile(r"\b(shapes?|sizes?|bounds|dimensions?)\b", re.IGNORECASE)


def check_program(program: Any) -> None:
    """Refuse an object that is not a program, before it is called.

    Raises
    ------
    TypeError
        Naming its type.
    """
    expected = "program must be a function or module with pyro.sample statements"
    if isinstance(program, type):
        raise TypeError(
            f"{expected}, got the class {program.__name__}; make one of it: "
            f"{program.__name__}()"
        )
    if not callable(program):
        raise TypeError(
            f"{expected}, got a value of type {type(program).__name__}; call "
            "probsl.fit(program, data, method)"
        )


def dry_run(
    functional: StatelessCallable,
    arguments: Arguments,
    dtype: torch.dtype,
    device: torch.device,
    rows: Sequence[str] | None = None,
    *,
    place: Place,
    held_out: bool = False,
) -> tuple[dict[str, Any], Subsampling, Place]:
    """Run a program once with all checks enabled, and return its messages.

    Parameters
    ----------
    functional
        The program; the run records its own parameters in it.
    arguments
        The arguments of the call.
    dtype
        The floating type to compute in.
    device
        The device to compute on.
    rows
        The names of the arguments with one entry per row, if the user gave them.
    place
        The values of the latents; others are tried if the program fails there.
    held_out
        Whether the data are only to be scored: observed values may then be outside
        a support that depends on latents.

    Returns
    -------
    tuple
        The message of every site, the state of the plates that would draw a
        subsample themselves, and a place where the program can be run.

    Raises
    ------
    ValueError
        If the data do not fit this program, or the program cannot be
        fitted. An error raised by the program itself is kept, with notes added.
    """
    _refuse_batch_norm(functional)

    subsampling = Subsampling()

    def rehearse(values: Mapping[str, Any], at: Place = place) -> dict[str, Any]:
        checked = isolated(dtype, at.seed, device=device, validate=True)
        with checked, GivenParameters(place.given), subsampling():
            messages = visit(lambda: functional.collect(values), place=at)
        for message in _observations(messages):
            _check_shape(message)
        return messages

    def moves_away(message: Any) -> bool:
        """Whether the support of an observed site differs elsewhere."""
        own = {p.name: p.start + _ELSEWHERE for p in functional.own_parameters}
        with isolated(dtype, device=device), subsampling():
            other = visit(lambda: functional(own, arguments.values), jitter=_ELSEWHERE)
        return moves(message, other[message["name"]])

    def doubt(messages: dict[str, Any]) -> str:
        for message in () if held_out else _observations(messages):
            words = _outside_in_words(message)
            if words and moves_away(message):
                return words
        return ""

    def run(at: Place) -> tuple[dict[str, Any], Place]:
        try:
            return first_place(lambda at: rehearse(arguments.values, at), at, doubt)
        except Exception as error:
            refuse_unequal_lengths(rehearse, arguments, error)
            annotate(error, arguments, dtype)
            raise

    messages, found = run(place)
    if functional.found_more():
        messages, found = run(place)
    indexed = plates_to_index(messages, subsampling.seen, arguments, rows)
    if indexed:
        subsampling = replace(subsampling, whole=frozenset(indexed))
        messages, found = run(place)
    refuse_unannotated(messages)
    _refuse_nothing_observed(messages, functional, arguments)
    _refuse_shared_names(messages, functional)
    for message in _observations(messages):
        _check_plates(message)
        _check_support(message, moves_away)
    return messages, subsampling, found


@contextmanager
def blaming_batches(blame: bool) -> Iterator[None]:
    """Add to a shape error that the program was run on only some rows.

    Raises
    ------
    ValueError
        Saying how to size the plate; other errors are raised as they are.
    """
    try:
        yield
    except (IndexError, RuntimeError, ValueError) as error:
        if not blame or not _OF_SHAPES.search(str(error)):
            raise
        raise ValueError(
            f"the program does not run on a batch of rows ({error}); size its data "
            "plate by its arguments, as in plate('data', len(x)), and take the data "
            "from them"
        ) from error


def _observations(messages: Mapping[str, Any]) -> Iterator[Any]:
    return (m for m in messages.values() if is_observation(m))


def _refuse_batch_norm(functional: StatelessCallable) -> None:
    for name, module in functional.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"module '{name}' is a {type(module).__name__} in train mode: its rows "
                "depend on each other, so there is no likelihood to maximize; call "
                ".eval() on it, or use LayerNorm or GroupNorm instead"
            )


def _refuse_nothing_observed(
    messages: Mapping[str, Any], functional: StatelessCallable, arguments: Arguments
) -> None:
    if any(is_observation(m) or is_factor(m) for m in messages.values()):
        return
    absent = [
        name
        for name in functional.optional_arguments()
        if arguments.values.get(name) is None
    ]
    which = f" ('{absent[-1]}' is not in data)" if absent else ""
    raise ValueError(
        f"the program observed nothing: no site has obs=; give the observed argument"
        f"{which}, and write pyro.sample(name, distribution, obs=y)"
    )


def _refuse_shared_names(
    messages: Mapping[str, Any], functional: StatelessCallable
) -> None:
    plates = {p.name for m in messages.values() for p in plates_of(m)}
    own = {p.name for p in functional.own_parameters}
    for name in messages:
        other = "a plate" if name in plates else "a parameter" if name in own else None
        if other:
            raise ValueError(
                f"'{name}' names both a sample site and {other}; give each its own name"
            )


def _check_shape(message: Any) -> None:
    """Refuse a value that is not an array, or whose shape is not the distribution's."""
    name, fn, value = message["name"], message["fn"], message["value"]
    if not torch.is_tensor(value):
        raise TypeError(
            f"site '{name}' observes a {type(value).__name__}; give it an array, for "
            "example torch.tensor(...)"
        )
    expected = fn.batch_shape + fn.event_shape
    if value.shape == expected or _stands_for_all(message):
        return
    if not _takes_any_length(fn, value):
        raise ValueError(
            f"site '{name}' observes an array of shape {tuple(value.shape)}, but its "
            f"distribution has shape {tuple(expected)}; {_remedy(message, expected)}"
        )


def _takes_any_length(fn: Any, value: Any) -> bool:
    """Whether a distribution is over series of any length, as Pyro's `GaussianHMM`.

    Its own check then accepts values whose shape is not its event shape.
    """
    axes = value.dim() - len(fn.event_shape)
    if axes < 0 or value.shape[:axes] != fn.batch_shape:
        return False
    try:
        fn._validate_sample(value)
    except (AttributeError, ValueError, NotImplementedError):
        return False
    return True


def _stands_for_all(message: Any) -> bool:
    """Whether Pyro broadcasts one distribution over several values here.

    It does in a plate without a size, and outside all plates.
    """
    fn, value = message["fn"], message["value"]
    shape = value.shape[: value.dim() - len(fn.event_shape)]
    try:
        same = torch.broadcast_shapes(fn.batch_shape, shape) == shape
    except RuntimeError:
        return False
    plates = {p.dim: p.size for p in plates_of(message) if p.dim is not None}
    repeated = [
        axis
        for axis in range(-len(shape), 0)
        if axis < -len(fn.batch_shape) or fn.batch_shape[axis] != shape[axis]
    ]
    return (
        same
        and value.shape[len(shape) :] == fn.event_shape
        and all(plates.get(axis) == shape[axis] for axis in repeated if plates)
    )


def _remedy(message: Any, expected: torch.Size) -> str:
    """Say how to make the shapes of an observed value and its distribution equal."""
    fn, shape = message["fn"], message["value"].shape
    plates = [p for p in plates_of(message) if p.dim is not None]
    if shape.numel() == expected.numel():
        return f"give both the same shape, for example with .reshape{tuple(expected)}"
    if fn.event_shape and shape == fn.event_shape and plates:
        return (
            f"each entry of plate '{plates[0].name}' is an event of shape "
            f"{tuple(fn.event_shape)}, so leave out .to_event() or the plate"
        )
    for plate in plates:
        axis = plate.dim - len(fn.event_shape) if plate.dim else 0
        if -len(shape) <= axis and shape[axis] != plate.size:
            return (
                f"plate '{plate.name}' is of size {plate.size}, so give "
                f"{plate.size} rows, or write pyro.plate('{plate.name}', len(x))"
            )
    return "give both the same shape"


def _check_plates(message: Any) -> None:
    """Refuse dimensions outside plates next to plated ones; all unplated are joint."""
    fn, declared = message["fn"], {p.dim for p in plates_of(message)} - {None}
    axes = range(-len(fn.batch_shape), 0)
    undeclared = [a for a in axes if a not in declared and fn.batch_shape[a] > 1]
    if declared and undeclared:
        length = fn.batch_shape[undeclared[0]]
        raise ValueError(
            f"site '{message['name']}' observes an array of shape "
            f"{tuple(message['value'].shape)}, whose axis of {length} is outside a "
            f"plate; {ADD_A_PLATE}, or declare it part of one observation with "
            ".to_event()"
        )


def _check_support(message: Any, moves_away: Callable[[Any], bool]) -> None:
    name, value = message["name"], message["value"]
    if value.is_complex():
        raise ValueError(
            f"site '{name}' observes complex values; write it as two real sites, one "
            "for the real and one for the imaginary part"
        )
    words = _outside_in_words(message)
    if words and not moves_away(message):
        raise ValueError(f"{words}; change those values or the distribution")


def _outside_in_words(message: Any) -> str:
    """Say how many observed values of a site are outside its support, "" for none."""
    fn, value = message["fn"], message["value"]
    found = None if value.is_complex() else outside(message, value)
    count = 0 if found is None else int(found.sum())
    if found is None or not count:
        return ""
    first = found.nonzero()[0].tolist()
    kind, support = type(unwrap(fn)).__name__, settled(support_of(fn))
    return (
        f"site '{message['name']}' observes {count} value{'s' * (count > 1)} outside "
        f"the support of its {kind}, {support}; the first is "
        f"{value[tuple(first)].tolist()} in {place_of(first)}"
    )


def refuse_nothing_to_fit(sites: Sequence[Site], functional: StatelessCallable) -> None:
    """Refuse a program without latents and without parameters of its own."""
    if not any(s.latent for s in sites) and not functional.own_parameters:
        raise ValueError(
            "the program has no latent site and no parameter of its own, so there is "
            'nothing to fit; declare one, for example pyro.sample("w", '
            "dist.Normal(0.0, 1.0))"
        )
