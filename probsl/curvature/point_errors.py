"""Standard errors of everything that a point fit reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.curvature.reported import ends_of_reported, is_open, reported

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from probsl.curvature.point_covariance import PointCovariance
    from probsl.program.problem import Problem

__all__ = ["PointErrors", "point_errors", "wald_interval"]

# A sentence names up to this many elements of a site one by one.
_NAMED = 8
# How the covariance of each kind is called in a sentence.
_KIND_WORDS = {
    "observed": "observed information",
    "expected": "expected information",
    "opg": "outer products of scores",
    "sandwich": "sandwich",
    "cluster": "cluster-robust sandwich",
}


@dataclass(frozen=True, eq=False)
class PointErrors:
    """Standard errors of the sites of a point fit.

    Attributes
    ----------
    sentence
        How they were computed, and which sites have none.
    sd
        Site -> standard errors, of the shape of its value, NaN where there are none.
    ends
        Site -> the ends of its support, if it is an interval.
    """

    sentence: str
    sd: Mapping[str, Tensor] = field(default_factory=dict)
    ends: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def tests_zero(self, site: str) -> bool:
        """Return whether zero is a value like others for a site: its z is of use."""
        return is_open(self.ends.get(site))


def point_errors(
    covariance: PointCovariance, deterministics: Sequence[str] = ()
) -> PointErrors:
    """Return the standard errors of latents, own parameters and deterministics.

    Parameters
    ----------
    covariance
        The covariance of the point.
    deterministics
        The deterministic sites to include.
    """
    problem = covariance.problem
    shapes: dict[str, torch.Size] = {}

    def flat(values: Mapping[str, Tensor]) -> Tensor:
        sites = reported(problem, values, deterministics)
        shapes.update({name: value.shape for name, value in sites.items()})
        return torch.cat([value.reshape(-1).double() for value in sites.values()])

    errors = covariance.of(flat).sd
    parts = errors.split([shape.numel() for shape in shapes.values()])
    sd = {n: p.reshape(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}
    withheld = covariance.withheld_elements()
    none: dict[str, list[str]] = {}
    for name in covariance.layout.held:
        sd[name] = torch.full_like(sd[name], torch.nan)
        none.setdefault("held still", []).append(name)
    for name, error in sd.items():
        if name in covariance.layout.held:
            continue
        missing = withheld.get(name, {})
        for reason, elements in missing.items():
            sd[name] = sd[name].masked_fill(elements, torch.nan)
            none.setdefault(reason, []).extend(_labels(problem, name, elements))
        left = error.isnan() & ~sum(missing.values(), torch.zeros_like(error)).bool()
        if left.any():
            reason = "not determined by the data"
            none.setdefault(reason, []).extend(_labels(problem, name, left))
    return PointErrors(_sentence(covariance, none), sd, ends_of_reported(problem))


def _labels(problem: Problem, name: str, elements: Tensor) -> list[str]:
    """Name a site, or single elements of it if there are others."""
    if elements.all():
        return [name]
    labels = problem.names.labels(name, elements.shape)
    every = zip(labels, elements.reshape(-1).tolist(), strict=True)
    chosen = [label for label, here in every if here]
    return chosen if len(chosen) <= _NAMED else [f"{len(chosen)} elements of {name}"]


def _sentence(covariance: PointCovariance, none: Mapping[str, Sequence[str]]) -> str:
    words = _KIND_WORDS.get(covariance.kind, f"sandwich, {covariance.kind}")
    if covariance.penalized:
        words += " of the penalized density"
    missing = [f"none for {', '.join(names)} ({why})" for why, names in none.items()]
    return "; ".join(
        filter(None, [f"standard errors: {words}", *missing, covariance.note])
    )


def wald_interval(
    estimate: Tensor, sd: Tensor, prob: float, ends: tuple[Any, Any] | None
) -> tuple[Tensor, Tensor]:
    """Return estimate -/+ z sd, cut off at the ends of the support.

    Parameters
    ----------
    estimate, sd
        Of one shape.
    prob
        Probability of the interval.
    ends
        The ends of the support; None if it is not an interval.
    """
    tail = torch.tensor((1 + prob) / 2, dtype=torch.float64, device=sd.device)
    reach = torch.special.ndtri(tail) * sd
    lower, upper = estimate - reach, estimate + reach
    if ends is not None:
        low, high = (torch.as_tensor(end).to(lower) for end in ends)
        lower, upper = torch.maximum(lower, low), torch.minimum(upper, high)
    return lower, upper
