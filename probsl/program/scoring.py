"""The log density of one run of a program or guide, site by site and row by row."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from probsl.program.enumeration import (
    connected,
    of_one_scale,
    refuse_scales,
    sum_out,
    touches_enumerated,
    trace_enumerated,
)
from probsl.program.messages import (
    Plate,
    is_computed,
    is_continuous,
    is_deterministic,
    is_observation,
    scored_value,
)
from probsl.program.observed_supports import log_prob_within
from probsl.program.supports import unchecked

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

# Name of the sum over discrete latents and the sites that depend on them.
SUMMED_OUT = "summed out"


@dataclass(frozen=True, eq=False)
class Batch:
    """The rows of one evaluation.

    Attributes
    ----------
    arguments
        The program's arguments.
    weights
        One weight per row of this batch, shape ``[rows]``, or None for ones.
    scale
        Total number of rows divided by the rows in this batch.
    """

    arguments: dict[str, Any]
    weights: Tensor | None = None
    scale: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether every row counts once."""
        return self.weights is None and self.scale == 1.0

    def weight(
        self, density: Tensor, axis: int, *, bounded: bool | None = False
    ) -> Tensor:
        """Multiply a log density by the weights of the rows along one dimension.

        If it is `bounded`, rows of weight 0 may have a density of zero.
        """
        if self.weights is not None:
            behind = density.dim() - 1 - axis % density.dim()
            weights = self.weights.reshape(-1, *[1] * behind)
            if bounded:
                density = torch.where(weights > 0, density, 0.0)
            density = density * weights
        return density * self.scale


class Scoring(Messenger):
    """Substitutes latents and records the values and log densities of a run.

    Parameters
    ----------
    values
        Site -> value to give it.
    skip
        Sites whose log density is not wanted. A dropped prior is skipped and
        not multiplied by zero, because 0 * -inf is NaN.
    moving
        Observed sites whose support moves; outside it their density is zero.
    discrete
        Sites whose log density is a log probability. If rounding of large log
        gamma functions makes it positive, it is set to zero.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        skip: Collection[str] = (),
        moving: Collection[str] = (),
        discrete: Collection[str] = (),
    ) -> None:
        super().__init__()
        self._given = values
        self._skip = skip
        self._discrete = discrete
        self._moving = moving
        self.messages: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._given and not msg["is_observed"]:
            msg["value"] = self._given[msg["name"]]
            msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            return
        self.messages[msg["name"]] = msg
        if msg["name"] in self._skip or is_deterministic(msg):
            return
        density = self.density(msg)
        msg["scale"] = _without_subsampling(msg)
        msg["bounded"] = msg["name"] in self._moving
        msg["unscaled_log_prob"] = density
        msg["log_prob"] = scale_and_mask(density, msg["scale"], msg["mask"])

    def density(self, msg: Any) -> Tensor:
        """Return the log density of a site's value, without scale and mask."""
        value, score = scored_value(msg), msg["fn"].log_prob
        if msg["name"] in self._moving:
            score = functools.partial(log_prob_within, msg["fn"])
        result: Tensor = score(value, *msg["args"], **msg["kwargs"])
        return result.clamp(max=0.0) if msg["name"] in self._discrete else result

    @property
    def values(self) -> dict[str, Tensor]:
        """Site -> its value in this run."""
        return {name: msg["value"] for name, msg in self.messages.items()}


def mean_scale(messages: Mapping[str, Any]) -> float:
    """Return the average factor by which a program scales its data's log densities."""
    scales = [
        float(torch.as_tensor(_without_subsampling(m)).detach().double().abs().mean())
        for m in messages.values()
        if m["is_observed"] and not is_computed(m)
    ]
    mean = sum(scales) / len(scales) if scales else 1.0
    return mean if 0 < mean < math.inf else 1.0


def is_probability(msg: Any) -> bool:
    """Return whether a site's log density is that of an observed discrete value.

    Relaxed values, for which a program switches validation off, do not count.
    """
    return (
        is_observation(msg)
        and not is_continuous(msg["fn"])
        and not unchecked(msg["fn"])
    )


def _without_subsampling(msg: Any) -> Any:
    """Return a site's scale without that of plates that hold only some entries.

    The batch contains that factor.
    """
    scale = msg["scale"]
    for frame in msg["cond_indep_stack"]:
        if frame.full_size is not None and frame.size != frame.full_size:
            scale = scale * frame.size / frame.full_size
    return scale


def refuse_enumeration(run: Callable[[], Any], scoring: Scoring, nesting: int) -> None:
    """Refuse a program whose discrete latents cannot be summed out.

    Parameters
    ----------
    run, scoring, nesting
        As for `site_terms`.

    Raises
    ------
    ValueError
        See `probsl.program.enumeration.refuse_scales`.
    """
    trace, together = _traced(run, scoring, nesting)
    refuse_scales(trace, together)


def site_terms(
    run: Callable[[], Any],
    scoring: Scoring,
    data_plate: Plate | None,
    batch: Batch,
    nesting: int | None,
) -> dict[str, tuple[Tensor, int | None]]:
    """Run a program and return its weighted log density terms.

    Parameters
    ----------
    run
        Calls the program or guide.
    scoring
        Gives the latents their values and records the densities.
    data_plate
        The plate whose elements are rows.
    batch
        Weights of the rows.
    nesting
        Dimensions used by plates, if discrete latents are to be summed out; else None.

    Returns
    -------
    dict
        Site -> (log density, its dimension that runs over the rows or None).
    """
    trace, together = _traced(run, scoring, nesting)
    apart = {site["name"] for site in together}
    terms = weighted_terms(scoring, data_plate, batch, apart=apart)
    if together:
        terms.update(_summed_terms(trace, together, data_plate, batch))
    return terms


def named_terms(
    run: Callable[[], Any], scoring: Scoring, nesting: int | None
) -> dict[str, tuple[Tensor, tuple[str | None, ...]]]:
    """Run a program and return its log density terms by site, unweighted.

    Parameters
    ----------
    run, scoring, nesting
        As for `site_terms`.

    Returns
    -------
    dict
        Site -> (log density, the plate of each dimension or None). Sites that share
        discrete latents, which are summed out, have one joint term, under their
        names joined by a plus; the names between the first and the last of more
        than two are left out.
    """
    trace, together = _traced(run, scoring, nesting)
    apart = {site["name"] for site in together}
    terms = {
        name: (msg["log_prob"], _plate_names(msg))
        for name, msg in scoring.messages.items()
        if name not in apart and "log_prob" in msg
    }
    for group in connected(trace, together) if together else ():
        names = [s["name"] for s in group if s["infer"].get("_enumerate_dim") is None]
        if names:
            ((term, plates),) = sum_out(trace, group)
            joined = names if len(names) <= 2 else (names[0], "...", names[-1])
            terms["+".join(joined)] = (term, plates)
    return terms


def _plate_names(msg: Any) -> tuple[str | None, ...]:
    density = msg["log_prob"]
    names: list[str | None] = [None] * density.dim()
    for frame in msg["cond_indep_stack"]:
        if frame.dim is None or -frame.dim > len(names):
            continue
        # A plate without a size may hold one entry for all of its elements.
        if frame.size != -1 or density.shape[frame.dim] > 1:
            names[frame.dim] = frame.name
    return tuple(names)


def _traced(
    run: Callable[[], Any], scoring: Scoring, nesting: int | None
) -> tuple[Any, list[Any]]:
    """Run a program; return its trace and the sites joined by discrete latents.

    Without discrete latents, that is if `nesting` is None, there is no trace.
    """
    if nesting is None:
        with scoring:
            run()
        return None, []
    trace = trace_enumerated(run, scoring, nesting)
    return trace, [
        site
        for site in trace.nodes.values()
        if "log_prob" in site and touches_enumerated(site["log_prob"], nesting)
    ]


def weighted_terms(
    scoring: Scoring,
    data_plate: Plate | None,
    batch: Batch,
    *,
    apart: Collection[str] = (),
) -> dict[str, tuple[Tensor, int | None]]:
    """Return the weighted log density terms of a finished run.

    Sites named in `apart` are left out. The result is that of `site_terms`.
    """
    return {
        name: _weighted(msg, msg["log_prob"], data_plate, batch)
        for name, msg in scoring.messages.items()
        if name not in apart and "log_prob" in msg
    }


def _weighted(
    msg: Any, density: Tensor, data_plate: Plate | None, batch: Batch
) -> tuple[Tensor, int | None]:
    if data_plate is None or data_plate.dim is None:
        return density, None
    inside = data_plate.holds(msg["name"], msg["cond_indep_stack"])
    if not inside or density.dim() < -data_plate.dim:
        return density, None
    if not batch.plain:
        density = batch.weight(density, data_plate.dim, bounded=msg.get("bounded"))
    return density, data_plate.dim


def _summed_terms(
    trace: Any, together: list[Any], data_plate: Plate | None, batch: Batch
) -> dict[str, tuple[Tensor, int | None]]:
    """Sum out discrete latents, and apply the rows' weights at the right level.

    A discrete latent of one row is summed out before the row is weighted; one
    shared by all rows after it.
    """
    plate = data_plate.name if data_plate else None
    enumerated = [s for s in together if s["infer"].get("_enumerate_dim") is not None]
    local = [
        data_plate is not None and data_plate.holds(s["name"], s["cond_indep_stack"])
        for s in enumerated
    ]
    if not batch.plain and any(local) and not all(local):
        raise ValueError(
            "rows cannot be weighted or drawn in batches where some discrete latents "
            "belong to a row and others to all rows "
            f"({', '.join(s['name'] for s in enumerated)})"
        )
    shared = bool(local) and not any(local)

    def before(site: Any, density: Tensor) -> Tensor:
        return _weighted(site, density, data_plate, batch)[0]

    weigh_before = before if shared and not batch.plain else None
    terms = {}
    summed = (
        sum_out(trace, group, before=weigh_before)
        for group in of_one_scale(trace, together)
    )
    for index, (term, plates) in enumerate(chain.from_iterable(summed)):
        axis = plates.index(plate) if plate in plates else None
        late = axis is not None and not batch.plain and weigh_before is None
        weighted = batch.weight(term, axis) if late and axis is not None else term
        terms[f"{SUMMED_OUT} {index}"] = (weighted, axis)
    return terms


def total(terms: Mapping[str, tuple[Tensor, int | None]]) -> Tensor:
    """Add up log density terms."""
    return torch.stack([term.sum() for term, _ in terms.values()]).sum()


def by_row(terms: Mapping[str, tuple[Tensor, int | None]]) -> Tensor:
    """Add up, row by row, the log density terms that run over the rows.

    Raises
    ------
    ValueError
        If none does.
    """
    rows = []
    for term, axis in terms.values():
        if axis is not None:
            others = [i for i in range(term.dim()) if i != axis % term.dim()]
            rows.append(term.sum(others) if others else term)
    if not rows:
        raise ValueError(
            "the rows share a discrete latent that is summed out, so none has a log "
            "likelihood of its own; put that latent into the data plate"
        )
    return torch.stack(rows).sum(0)
