"""Which arguments have one entry per row, where their lengths do not say."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch

from probsl.visits import is_observation, plates_of, visit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from probsl.data import Arguments
    from probsl.sites import Site
    from probsl.visits import Plate

# Of this many arguments every subset is tried.
_TRIED_ARGUMENTS = 4


def told_apart(
    run: Callable[[Mapping[str, Any]], Any],
    arguments: Arguments,
    plate: Plate,
    sites: tuple[Site, ...],
) -> tuple[str, ...] | None:
    """Find the arguments that grow with the data plate, and with no other plate.

    Plates of one length are told apart by their names: a row is added to some
    arguments, a copy of the first. They are the rows if the program then runs with
    one entry more in the data plate, and everything else is as it was.

    Parameters
    ----------
    run
        Calls the program with given arguments; inside `probsl.isolation.isolated`.
    arguments
        What it was called with.
    plate
        The data plate.
    sites
        The program's sites.

    Returns
    -------
    tuple of str or None
        Their names; None if no choice of arguments, or more than one, will do.
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
    """Whether a run differs from that before by one entry of the data plate."""
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
