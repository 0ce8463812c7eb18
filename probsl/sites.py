"""The inventory of a program: its sites, their roles, and what cannot be fitted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.parents import parents_of
from probsl.supports import bijection, settled, support_of, unwrap
from probsl.visits import (
    Plate,
    batch_axes_of,
    is_continuous,
    is_deterministic,
    is_factor,
    plates_of,
    refuse_changing_sites,
    visit,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Role(Enum):
    """What a site is to the methods: who drops its prior, who integrates it out."""

    PARAMETER = "parameter"
    RANDOM_EFFECT = "random effect"
    ENUMERATED = "enumerated"
    OWN_PARAMETER = "own parameter"
    FACTOR = "factor"
    DETERMINISTIC = "deterministic"
    OBSERVED = "observed"


@dataclass(frozen=True)
class Site:
    """One site of the program, as the dry run saw it.

    Attributes
    ----------
    name
        The site's name.
    role
        Its role; it decides what each method does with the site.
    shape
        Shape of its value.
    support
        Constraint on its value; None for factors, deterministics, and distributions
        that state none.
    plates
        The plates around it, outermost first.
    parents
        Names of the latent sites on which its distribution depends.
    batch_axes
        How many axes its log density has.
    l1
        Location and scale, each of the value's shape, when its prior is a
        Laplace distribution that depends on no other latent; else None.
    """

    name: str
    role: Role
    shape: torch.Size
    support: Any
    plates: tuple[Plate, ...]
    parents: tuple[str, ...] = ()
    batch_axes: int = 0
    l1: tuple[Tensor, Tensor] | None = None

    @property
    def latent(self) -> bool:
        """Whether the site is a continuous latent variable."""
        return self.role in (Role.PARAMETER, Role.RANDOM_EFFECT)


def inventory(run: Callable[[], Any], data_plate: Plate | None) -> tuple[Site, ...]:
    """Find every site of a program and the role it plays.

    Parameters
    ----------
    run
        Calls the program; it must be inside `probsl.isolation.isolated`.
    data_plate
        The plate whose elements are the rows of the data, if any.

    Returns
    -------
    tuple of Site
        In the order in which the program reaches them.

    Raises
    ------
    ValueError
        If a latent cannot be fitted, or the sites change from run to run.
    """
    messages, second = visit(run, jitter=0.1), visit(run, jitter=0.3)
    refuse_changing_sites(messages, second)
    _refuse_moving_supports(messages, second)
    parents = parents_of(run, messages, second)
    return tuple(
        _site(message, parents.get(name, ()), data_plate)
        for name, message in messages.items()
    )


def _site(message: Any, parents: tuple[str, ...], data_plate: Plate | None) -> Site:
    plates = plates_of(message)
    inside = data_plate is not None and data_plate.holds(message["name"], plates)
    role = _role(message, inside or bool(parents))
    stated = role not in (Role.FACTOR, Role.DETERMINISTIC)
    support = settled(support_of(message["fn"])) if stated else None
    return Site(
        name=message["name"],
        role=role,
        shape=message["value"].shape,
        support=support,
        plates=plates,
        parents=parents,
        batch_axes=batch_axes_of(message),
        l1=_laplace(message) if role is Role.PARAMETER else None,
    )


def _role(message: Any, local: bool) -> Role:
    if is_deterministic(message):
        return Role.DETERMINISTIC
    if is_factor(message):
        return Role.FACTOR
    if message["is_observed"]:
        return Role.OBSERVED
    if not is_continuous(message["fn"]):
        return Role.ENUMERATED
    return Role.RANDOM_EFFECT if local else Role.PARAMETER


def _refuse_moving_supports(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> None:
    """Refuse latents whose coordinates would be those of the dry run's support."""
    for name, message in first.items():
        if message["is_observed"] or not is_continuous(message["fn"]):
            continue
        centers = []
        for fn in (message["fn"], second[name]["fn"]):
            transform = bijection(support_of(fn))
            shape = transform.inverse_shape(message["value"].shape)
            centers.append(transform(torch.zeros(shape)))
        if not torch.equal(*centers):
            raise ValueError(
                f"the support of latent site '{name}' depends on another latent; "
                "sample its share of the range instead, from a distribution on (0, 1), "
                "and multiply"
            )


def _laplace(message: Any) -> tuple[Tensor, Tensor] | None:
    fn = unwrap(message["fn"])
    if not isinstance(fn, torch.distributions.Laplace):
        return None
    value = message["value"].detach()
    if message["scale"] != 1.0 or message["mask"] is not None:
        return None
    # A prior made outside the program may be of another type.
    location, scale = (t.detach().to(value) for t in (fn.loc, fn.scale))
    return location.expand(value.shape), scale.expand(value.shape)
