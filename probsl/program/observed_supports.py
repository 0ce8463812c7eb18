"""Checks observed values against their supports, which may depend on latents."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import MixtureSameFamily, constraints

from probsl.program.supports import contents, core, ends_of, support_of, unchecked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "Edge",
    "edges",
    "is_bounded",
    "log_prob_within",
    "movers",
    "moves",
    "on_edge",
    "outside",
]


def outside(message: Any, value: Tensor) -> Tensor | None:
    """Return which observed values are outside their support; None if not checked.

    Sites that the program masks, or does not validate, are not checked.

    Parameters
    ----------
    message
        Of the observed site.
    value
        Its value, as its distribution can score it.
    """
    if not is_bounded(message):
        return None
    found: Tensor = ~support_of(message["fn"]).check(value)
    for mask in _masks(message):
        found = found & mask
    return found


def on_edge(message: Any) -> Tensor:
    """Return which observed values are at a boundary of their support."""
    value, support = message["value"], support_of(message["fn"])
    ends = None if support is None else ends_of(core(support))
    if ends is not None:
        at_end = (value == ends[0]) | (value == ends[1])
    else:
        at_end = value == 0.0  # the boundary of a simplex
    axes = value.dim() - (0 if support is None else support.event_dim)
    found: Tensor = at_end.flatten(axes).any(-1) if at_end.dim() > axes else at_end
    return found


def moves(one: Any, other: Any) -> bool:
    """Return whether a site's support, or its value in it, differs between two runs."""
    supports = [support_of(message["fn"]) for message in (one, other)]
    if any(s is None for s in supports):
        return False
    if type(core(supports[0])) is type(constraints.real):
        return not isinstance(core(supports[1]), type(constraints.real))
    before = [*contents(supports[0]), one["value"]]
    after = [*contents(supports[1]), other["value"]]
    if len(before) != len(after):
        return True
    return not all(_same(a, b) for a, b in zip(before, after, strict=True))


def is_bounded(message: Any) -> bool:
    """Return whether an observed site does not allow all values.

    The message must be of a run with validation: a distribution that was expanded
    without it does not show whether the user switched it off.
    """
    fn = message["fn"]
    support = support_of(fn)
    if support is None or unchecked(fn):
        return False
    return type(core(support)) is not type(constraints.real)


def movers(message: Any, leaves: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the tensors that an observed site's support depends on.

    Parameters
    ----------
    message
        Of a run in which the site's distribution was computed from the tensors.
    leaves
        Name -> tensor that requires a gradient.
    """
    held = [*contents(support_of(message["fn"])), message["value"]]
    found: dict[str, None] = {}
    for part in held:
        if torch.is_tensor(part) and part.requires_grad:
            gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
                part.sum(), list(leaves.values()), allow_unused=True, retain_graph=True
            )
            names = zip(leaves, gradients, strict=True)
            found.update({n: None for n, s in names if s is not None})
    return tuple(name for name in leaves if name in found)


def log_prob_within(fn: Any, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return a distribution's log density, minus infinity outside its support.

    Gradients stay finite there: the density is evaluated at a value inside instead.
    """
    if isinstance(fn, MaskedDistribution):
        density = log_prob_within(fn.base_dist, value)
        return scale_and_mask(density, mask=fn._mask)  # type: ignore[no-any-return]
    if isinstance(fn, MixtureSameFamily):
        axes = len(fn.event_shape)
        each = log_prob_within(fn.component_distribution, value.unsqueeze(-1 - axes))
        weights = torch.log_softmax(fn.mixture_distribution.logits, -1)
        return torch.logsumexp(each + weights, -1)
    support = support_of(fn)
    inside = support.check(value)
    ends = ends_of(core(support))
    if ends is not None:
        value = torch.where(core(support).check(value), value, _middle(*ends[:2]))
    density = fn.log_prob(value, *args, **kwargs)
    return torch.where(inside, density, -math.inf)


@dataclass(frozen=True, eq=False)
class Edge:
    """The distances of observed values from a moving boundary of their support.

    Attributes
    ----------
    site
        The observed site.
    distance
        From each value that counts to the boundary, positive inside [k].
    unit
        The floating-point spacing at the largest value [k].
    """

    site: str
    distance: Tensor
    unit: Tensor

    def places(self) -> Tensor:
        """Return the distances in units of the floating-point spacing of the values."""
        return self.distance / self.unit


def edges(message: Any, value: Tensor, counts: Tensor | None) -> Iterator[Edge]:
    """Yield the moving boundaries of an observed site's support.

    Parameters
    ----------
    message
        Of the observed site.
    value
        Its value, as its distribution can score it.
    counts
        Which elements of its log density count; None: all do.
    """
    fn = message["fn"]
    support = support_of(fn)
    ends = ends_of(core(support))
    if ends is None:
        return
    for mask in _masks(message):
        counts = mask if counts is None else counts & mask
    shape = torch.broadcast_shapes(value.shape, fn.batch_shape + fn.event_shape)
    for sign, end in ((1.0, ends[0]), (-1.0, ends[1])):
        distance = sign * (value - end)
        finite = torch.is_tensor(end) or math.isfinite(end)
        if finite and distance.requires_grad:
            largest = value.detach().abs().max()
            places = torch.finfo(value.dtype).eps * largest.expand(value.shape)
            far, unit = distance.expand(shape), places.expand(shape)
            if counts is not None:
                kept = counts.reshape(*counts.shape, *[1] * support.event_dim)
                kept = kept.expand(shape)
                far, unit = far[kept], unit[kept]
            smallest = torch.finfo(value.dtype).tiny
            yield Edge(message["name"], far.reshape(-1), unit.reshape(-1) + smallest)


def _masks(message: Any) -> Iterator[Tensor]:
    """Yield the masks of a site: those around it, and those of its distribution."""
    fn, device = message["fn"], message["value"].device
    if message["mask"] is not None:
        yield torch.as_tensor(message["mask"], device=device)
    while isinstance(fn, MaskedDistribution):
        yield torch.as_tensor(fn._mask, device=device)
        fn = fn.base_dist


def _middle(lower: Any, upper: Any) -> Any:
    """Return a value between two bounds, detached."""
    lower, upper = (t.detach() if torch.is_tensor(t) else t for t in (lower, upper))
    if not torch.is_tensor(upper) and upper == math.inf:
        return lower + 1.0
    if not torch.is_tensor(lower) and lower == -math.inf:
        return upper - 1.0
    return (lower + upper) / 2


def _same(one: Any, other: Any) -> bool:
    if torch.is_tensor(one) and torch.is_tensor(other):
        return one.shape == other.shape and bool((one == other).all())
    return bool(one == other)
