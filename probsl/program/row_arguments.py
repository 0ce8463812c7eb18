"""Finds the arguments with one entry per row, if their lengths do not decide it."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch

from probsl.data.row_names import UnclearRowsError, find_rows
from probsl.program.messages import is_observation, plates_of, visit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from probsl.data.arguments import Arguments
    from probsl.program.messages import Plate
    from probsl.program.sites import Site

# Up to this many arguments, every subset is tried.
_TRIED_ARGUMENTS = 4


def named_rows(
    run: Callable[[Mapping[str, Any]], Any],
    arguments: Arguments,
    plate: Plate,
    sites: tuple[Site, ...],
    rows: Sequence[str] | None,
) -> tuple[tuple[str, ...], str]:
    """Return the arguments with one entry per row, and why that is unclear.

    Parameters
    ----------
    run, arguments, plate, sites
        As for `distinguished`.
    rows
        Their names, if the user gave them.

    Returns
    -------
    tuple
        The names; and a sentence, empty if they are clear. If not, they are all
        candidates.
    """
    others = {p.name: p.size for site in sites for p in site.plates if p.dim}
    others.pop(plate.name, None)
    try:
        return find_rows(arguments, plate.size, rows, others), ""
    except UnclearRowsError as unclear:
        apart = distinguished(run, arguments, plate, sites)
        if apart is not None:
            return apart, ""
        lengths = arguments.lengths().items()
        found = tuple(name for name, length in lengths if length == plate.size)
        return found, str(unclear)


def distinguished(
    run: Callable[[Mapping[str, Any]], Any],
    arguments: Arguments,
    plate: Plate,
    sites: tuple[Site, ...],
) -> tuple[str, ...] | None:
    """Find the arguments that grow with the data plate, and with no other plate.

    Plates of equal length are distinguished by their names: a copy of the first row is
    appended to some arguments. They are the rows if the program then runs with
    one more entry in the data plate and everything else unchanged.

    Parameters
    ----------
    run
        Calls the program with given arguments; in `probsl.isolation.calls.isolated`.
    arguments
        The arguments of the call.
    plate
        The data plate.
    sites
        The program's sites.

    Returns
    -------
    tuple of str or None
        Their names; None if no choice of arguments, or more than one, works.
    """
    names = [n for n, size in arguments.lengths().items() if size == plate.size]
    if len(names) > _TRIED_ARGUMENTS:
        return None
    longer = torch.cat([torch.arange(plate.size), torch.zeros(1, dtype=torch.long)])
    found = []
    for count in range(1, len(names) + 1):
        for chosen in combinations(names, count):
            rows = {name: arguments.values[name][longer] for name in chosen}
            try:
                messages = visit(partial(run, {**arguments.values, **rows}))
            except Exception:  # the program does not run with these
                continue
            if _is_one_row_more(messages, plate, sites):
                found.append(chosen)
    return found[0] if len(found) == 1 else None


def _is_one_row_more(
    messages: Mapping[str, Any], plate: Plate, sites: tuple[Site, ...]
) -> bool:
    """Whether a run has one more entry of the data plate, and no other change."""
    sizes = {each.name: each.size for site in sites for each in site.plates}
    sizes[plate.name] += 1
    for site in sites:
        message = messages.get(site.name)
        if message is None:
            return False
        if any(each.size != sizes.get(each.name) for each in plates_of(message)):
            return False
        inside = plate.holds(site.name, site.plates)
        if site.latent and not inside and message["value"].shape != site.shape:
            return False
        if is_observation(message) and inside:
            shape = message["fn"].batch_shape + message["fn"].event_shape
            if message["value"].shape != shape:
                return False
    return True
