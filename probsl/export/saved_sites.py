"""Sites and plates as plain values."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions.constraint_registry import biject_to

from probsl.export.saved_supports import decoded, encoded
from probsl.export.saved_values import MOST_AXES, NoFormError, count, shape_of, text
from probsl.program.messages import Plate
from probsl.program.saved_problem import SiteFacts
from probsl.program.sites import Role, Site
from probsl.program.supports import bijection, contents

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "check_latent",
    "decoded_facts",
    "decoded_plate",
    "decoded_site",
    "encoded_facts",
    "encoded_plate",
    "encoded_site",
]


def encoded_facts(facts: SiteFacts) -> dict[str, Any]:
    """Return the facts of a site as plain values."""
    try:
        support = encoded(facts.support)
    except NoFormError:  # it is not compared then
        support = None
    held = {field.name: getattr(facts, field.name) for field in fields(facts)}
    return held | {"support": support}


def decoded_facts(value: Mapping[str, Any]) -> SiteFacts:
    """Return the facts of a site, checked."""
    return SiteFacts(
        kind=text(value["kind"]),
        distribution=text(value["distribution"]),
        shape=tuple(None if n is None else count(n) for n in value["shape"]),
        plates=tuple(map(text, value["plates"])),
        support=decoded(value["support"]),
    )


def encoded_site(site: Site) -> dict[str, Any]:
    """Return a site as plain values."""
    held = {field.name: getattr(site, field.name) for field in fields(site)}
    return held | {
        "role": site.role.value,
        "shape": list(site.shape),
        "support": encoded(site.support) if site.latent else None,
        "plates": [encoded_plate(plate) for plate in site.plates],
        "l1": None,  # only a search needs it
    }


def decoded_site(value: Mapping[str, Any], device: torch.device) -> Site:
    """Return a site, checked, with its support on a device."""
    return Site(
        name=text(value["name"]),
        role=Role(value["role"]),
        shape=shape_of(value["shape"]),
        support=decoded(value["support"], device),
        plates=tuple(map(decoded_plate, value["plates"])),
        parents=tuple(map(text, value["parents"])),
        batch_axes=count(value["batch_axes"]),
        auxiliary=bool(value["auxiliary"]),
        scored=bool(value["scored"]),
        prior=bool(value["prior"]),
        moving=bool(value["moving"]),
        moved_by=tuple(map(text, value["moved_by"])),
        kinked=bool(value["kinked"]),
    )


def check_latent(site: Site, point: Tensor, stated: Any) -> None:
    """Refuse a latent whose shape and supports do not fit together."""
    if point.shape != site.shape or site.batch_axes > len(site.shape):
        raise ValueError(f"site '{site.name}' has two shapes")
    for support, bijection_to in ((site.support, bijection), (stated, biject_to)):
        for part in contents(support):
            if torch.is_tensor(part):
                part.expand(site.shape)  # raises if it is not of that shape
        transform = bijection_to(support)
        center = transform(torch.zeros(transform.inverse_shape(site.shape)))
        if center.shape != site.shape:
            raise ValueError(f"site '{site.name}' has another shape than its support")


def encoded_plate(plate: Plate) -> dict[str, Any]:
    """Return a plate as plain values."""
    held = {field.name: getattr(plate, field.name) for field in fields(plate)}
    return held | {"joint": sorted(plate.joint)}


def decoded_plate(value: Mapping[str, Any]) -> Plate:
    """Return a plate, checked."""
    dim = value["dim"]
    if dim is not None and not -MOST_AXES <= dim < 0:
        raise ValueError("a plate has no axis")
    return Plate(
        name=text(value["name"]),
        size=count(value["size"]),
        dim=dim,
        full_size=count(value["full_size"]),
        joint=frozenset(map(text, value["joint"])),
    )
