"""Sums discrete latents out of a log density, by Pyro's tensor contraction."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.packed import pack
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pyro.poutine.messenger import Messenger

# Rounding error allowed when a scale is divided by that of a plate.
_ROUNDING = 1e-6


def trace_enumerated(
    run: Callable[[], Any], handler: Messenger, nesting: int
) -> poutine.Trace:
    """Run a program with every annotated discrete latent enumerated.

    Parameters
    ----------
    run
        Calls the program.
    handler
        Gives the continuous latents their values and records log densities.
    nesting
        Number of rightmost dimensions used by plates and batch shapes.

    Returns
    -------
    pyro.poutine.Trace
        Values of the enumerated sites have extra dimensions on the left.
    """
    # The outermost handler finishes first, so the trace copies its records.
    with (
        handler,
        poutine.trace() as tracer,
        poutine.enum(first_available_dim=-1 - nesting),
    ):
        run()
    trace: poutine.Trace = tracer.trace
    trace.symbolize_dims()
    return trace


def touches_enumerated(density: Tensor, nesting: int) -> bool:
    """Return whether a site's log density depends on an enumerated latent."""
    return density.dim() > nesting


def connected(trace: poutine.Trace, sites: Iterable[Any]) -> list[list[Any]]:
    """Split sites into groups that share enumerated latents.

    Parameters
    ----------
    trace
        From `trace_enumerated`.
    sites
        Messages of the enumerated sites and of those that depend on them, with
        their ``log_prob``.

    Returns
    -------
    list of list
        The messages; `sum_out` makes one term of each group.
    """
    plates = set(trace.plate_to_symbol.values())
    sites = list(sites)
    groups: list[tuple[set[str], list[int]]] = []
    for index, site in enumerate(sites):
        packed = pack(site["log_prob"], site["infer"]["_dim_to_symbol"])
        symbols, members = set(packed._pyro_dims) - plates, [index]
        apart = []
        for others, group in groups:
            if others & symbols:
                symbols, members = symbols | others, members + group
            else:
                apart.append((others, group))
        groups = [*apart, (symbols, members)]
    return [[sites[index] for index in sorted(members)] for _, members in groups]


def of_one_scale(trace: poutine.Trace, sites: Iterable[Any]) -> list[list[Any]]:
    """Split sites into groups that can be summed out together.

    Sites with different `pyro.poutine.scale` cannot; see `refuse_scales`.
    """
    sites = list(sites)
    scales = [site["scale"] for site in sites]
    # A tensor's value must not be read while steps are compiled.
    if any(isinstance(s, Tensor) for s in scales) or len(set(scales)) > 1:
        return connected(trace, sites)
    return [sites] if sites else []


def refuse_scales(trace: poutine.Trace, sites: Iterable[Any]) -> None:
    """Refuse sites that share an enumerated latent but differ in scale.

    Parameters
    ----------
    trace, sites
        As for `connected`.

    Raises
    ------
    ValueError
        If they differ, or a scale has several entries: a sum over the latent's values
        is then not a likelihood. Pyro refuses the same.
    """
    for group in of_one_scale(trace, sites):
        first = group[0]
        for site in group:
            if isinstance(site["scale"], Tensor) and site["scale"].numel() > 1:
                raise ValueError(
                    f"site '{site['name']}' has a poutine.scale of several entries, "
                    "which cannot be where a discrete latent is summed out; scale by "
                    "one number, or give weights="
                )
            one, other = (float(s["scale"]) for s in (first, site))
            if not math.isclose(one, other, rel_tol=_ROUNDING):
                raise ValueError(
                    "sites that are summed out together must share one poutine.scale, "
                    f"but '{first['name']}' has {one:g} and '{site['name']}' has "
                    f"{other:g}; scale all of them alike"
                )


def sum_out(
    trace: poutine.Trace,
    sites: Iterable[Any],
    *,
    before: Callable[[Any, Tensor], Tensor] | None = None,
) -> list[tuple[Tensor, tuple[str, ...]]]:
    """Sum the enumerated latents out of the product of several sites' densities.

    Parameters
    ----------
    trace
        From `trace_enumerated`.
    sites
        Messages of the enumerated sites and of those that depend on them, with
        their ``unscaled_log_prob``.
    before
        Weighs a site's log density before the sum, if weights apply there.

    Returns
    -------
    list of (Tensor, tuple of str)
        Terms whose sum is the log density, and the plate of each dimension.

    Notes
    -----
    As in `pyro.infer.TraceEnum_ELBO`, an enumerated site is never masked, so that its
    probabilities add up to one; sites that depend on it are. The sum keeps their scale.
    Obermeyer et al. (2019), Tensor variable elimination for plated factor graphs.
    """
    plates = {symbol: name for name, symbol in trace.plate_to_symbol.items()}
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    sites = list(sites)
    symbols: set[str] = set()
    for site in sites:
        enumerated = site["infer"].get("_enumerate_dim") is not None
        mask = None if enumerated else site["mask"]
        density = scale_and_mask(site["unscaled_log_prob"], mask=mask)
        if before is not None:
            density = before(site, density)
        ordinal = frozenset(
            trace.plate_to_symbol[frame.name]
            for frame in site["cond_indep_stack"]
            if frame.vectorized
        )
        packed = pack(density, site["infer"]["_dim_to_symbol"])
        symbols.update(packed._pyro_dims)
        factors.setdefault(ordinal, []).append(packed)
    scale = sites[0]["scale"] if sites else 1.0
    contracted = contract_tensor_tree(factors, symbols - set(plates))
    return [
        (term * scale, tuple(plates[d] for d in term._pyro_dims))
        for group in contracted.values()
        for term in group
    ]
