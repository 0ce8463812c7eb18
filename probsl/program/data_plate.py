"""Finds the plate whose entries are the rows of the data, or why there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from probsl.program.messages import axis_size, is_factor, is_observation, plates_of
from probsl.program.sites import Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from probsl.data.arguments import Arguments
    from probsl.data.rows import Rows
    from probsl.program.messages import Plate
    from probsl.program.sites import Site

ADD_A_PLATE = (
    'put it in a vectorized plate: with pyro.plate("data", len(x)): pyro.sample(...)'
)


def data_plate_of(messages: Mapping[str, Any]) -> Plate | None:
    """Return the outermost plate, if all observed sites in plates share it.

    An observation outside every plate is a joint one, and belongs to no row. Factors
    count if there are no observations.
    """
    plate = next(iter(_shared(messages).values()), None)
    if plate is None or plate.dim is None:
        return plate
    joint = {
        name
        for name, message in messages.items()
        if plate.size > 1 and axis_size(message, plate.dim) == 1
    }
    return replace(plate, joint=frozenset(joint))


def _shared(messages: Mapping[str, Any]) -> dict[str, Plate]:
    """Return the plates that contain every plated observed site, outermost first."""
    observed = [m for m in messages.values() if is_observation(m)]
    factors = [m for m in messages.values() if is_factor(m)]
    stacks = [plates for m in observed or factors if (plates := plates_of(m))]
    names = [{p.name for p in plates} for plates in stacks]
    return {
        p.name: p
        for plates in stacks[:1]
        for p in plates
        if p.name in set.intersection(*names)
    }


def plates_to_index(
    messages: Mapping[str, Any],
    asked: Mapping[str, int],
    arguments: Arguments,
    rows: Sequence[str] | None,
) -> set[str]:
    """Return the subsampling plates by which all rows are indexed.

    A data plate may instead declare that the arguments are a subset of its rows, as in
    ``plate("data", size, subsample_size=len(x))``; then it is not included.

    Parameters
    ----------
    messages
        Messages of a run of the program.
    asked
        Plate -> its subsample size, if it lets Pyro draw the subsample.
    arguments
        The program's arguments.
    rows
        The names of the arguments with one entry per row, if the user gave them.

    Raises
    ------
    ValueError
        If it is unclear which arguments are rows, or a plate other than the data
        plate is given its subsample.
    """
    data = data_plate_of(messages)
    parts = {
        plate.name: plate
        for message in messages.values()
        for plate in plates_of(message)
        if plate.size != plate.full_size
    }
    shared = set(_shared(messages))
    for plate in parts.values():
        # A subsampled sum is unbiased for a plate around all observations, but not
        # for a plate of latents.
        indexed = plate.name in asked and plate.name in shared
        if not indexed and (data is None or plate.name != data.name):
            raise ValueError(
                f"plate '{plate.name}' has a subsample of {plate.size} of "
                f"{plate.full_size}, but is not around the observed sites; leave "
                "subsample and subsample_size out"
            )
    return {
        name
        for name, plate in parts.items()
        if name in asked
        and not (data and data.name == name and _holds_rows(plate, arguments, rows))
    }


def _holds_rows(plate: Plate, arguments: Arguments, rows: Sequence[str] | None) -> bool:
    """Whether a program's arguments are the entries that its data plate draws."""
    lengths = arguments.lengths()
    if rows is not None and not isinstance(rows, str):
        lengths = {name: lengths[name] for name in rows if name in lengths}
    some, every = (
        [name for name, length in lengths.items() if length == size]
        for size in (plate.size, plate.full_size)
    )
    if some and every:
        raise ValueError(
            f"plate '{plate.name}' takes {plate.size} of {plate.full_size}, and there "
            f"are arguments of both lengths ('{some[0]}' and '{every[0]}'), so it is "
            "not clear which are rows; say it with rows=, for example "
            f"rows={tuple(every)}"
        )
    return bool(some)


def observed_elements(messages: Mapping[str, Any]) -> int:
    """Return the total number of observed values, at least 1."""
    observed = [m["value"] for m in messages.values() if is_observation(m)]
    return max(sum(int(value.numel()) for value in observed), 1)


def refuse_other_plate(plate: Plate | None, rows: Rows) -> None:
    """Refuse a data plate whose length is not the number of rows held."""
    if plate is not None and plate.dim is not None and plate.size != rows.held:
        raise ValueError(
            f"plate '{plate.name}' has size {plate.size} for a batch of {rows.held} "
            "rows; "
            "size it by the program's arguments, as in plate('data', len(x)), or say "
            f"which are the rows, for example rows={rows.names}"
        )


def why_no_rows(sites: Sequence[Site], plate: Plate | None) -> str:
    """Say why a program has no rows, and how to get some.

    Parameters
    ----------
    sites
        Its sites.
    plate
        The plate shared by all observed sites, if any; it is sequential.
    """
    if plate is not None:
        return (
            f"plate '{plate.name}' is sequential, so its elements are not rows; write "
            f"it with pyro.plate('{plate.name}', {plate.size}): instead of a loop"
        )
    observed = [s for s in sites if s.role is Role.OBSERVED]
    shown = observed or [s for s in sites if s.role is Role.FACTOR]
    inside = [s for s in shown if s.plates]
    if not inside:
        kind = "observed" if observed else "a factor"
        return (
            f"site '{shown[0].name}' is {kind} outside a plate, all of it at once; "
            + ADD_A_PLATE
        )
    first = inside[0]
    other = next(s for s in inside if not _share(first, s))
    return (
        f"sites '{first.name}' and '{other.name}' are in different plates, "
        f"'{first.plates[0].name}' and '{other.plates[0].name}', so they have no rows "
        "in common; put both into one plate"
    )


def _share(one: Site, other: Site) -> bool:
    return bool({p.name for p in one.plates} & {p.name for p in other.plates})
