"""Collects the sites of a program and their roles, and refuses unsupported ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from torch import Tensor

from probsl.program.dependence import Dependence, dependence_of
from probsl.program.messages import (
    Plate,
    batch_axes_of,
    is_computed,
    is_continuous,
    is_deterministic,
    is_factor,
    plates_of,
    refuse_changing_sites,
    visit,
)
from probsl.program.moving_sites import moving_sites
from probsl.program.supports import bijection, settled, support_of, unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from probsl.program.places import Place


class Role(Enum):
    """The role of a site, which decides whether its prior is dropped or integrated."""

    PARAMETER = "parameter"
    RANDOM_EFFECT = "random effect"
    ENUMERATED = "enumerated"
    OWN_PARAMETER = "own parameter"
    FACTOR = "factor"
    DETERMINISTIC = "deterministic"
    OBSERVED = "observed"


@dataclass(frozen=True, eq=False)
class Site:
    """One site of the program, as found in the dry run.

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
        without a stated support.
    plates
        The plates around it, outermost first.
    parents
        Names of the latent sites on which its distribution depends.
    batch_axes
        The number of dimensions of its log density.
    auxiliary
        Whether it is the noise of a reparameterized site, whose distribution
        is part of the objective of every method.
    scored
        Whether a computed value has a log density, as left by a reparameterization.
    prior
        Whether its log density is, or is part of, the prior of a parameter.
    moving
        Whether it is observed in a support, or at a value, that depends on latents.
    moved_by
        Names of the latents and own parameters on which it depends, if known.
    l1
        Location and scale, each of the value's shape, when its prior is a
        Laplace distribution that depends on no other latent; else None.
    kinked
        Whether its log density has a kink, as for a Laplace distribution.
    """

    name: str
    role: Role
    shape: torch.Size
    support: Any
    plates: tuple[Plate, ...]
    parents: tuple[str, ...] = ()
    batch_axes: int = 0
    auxiliary: bool = False
    scored: bool = False
    prior: bool = False
    moving: bool = False
    moved_by: tuple[str, ...] = ()
    l1: tuple[Tensor, Tensor] | None = None
    kinked: bool = False

    @property
    def latent(self) -> bool:
        """Whether the site is a continuous latent variable."""
        return self.role in (Role.PARAMETER, Role.RANDOM_EFFECT)

    @property
    def plate_axes(self) -> tuple[str | None, ...]:
        """The plate of each axis of its value; None for an axis outside all plates."""
        names: list[str | None] = [None] * len(self.shape)
        for plate in self.plates:
            axis = self.batch_axes + plate.dim if plate.dim is not None else -1
            if 0 <= axis < len(names) and self.shape[axis] == plate.size:
                names[axis] = plate.name
        return tuple(names)


def inventory(
    run: Callable[[Mapping[str, Tensor]], Any],
    own: Mapping[str, Tensor],
    data_plate: Plate | None,
    place: Place,
    bounded: Sequence[str],
) -> tuple[Site, ...]:
    """Find every site of a program and its role.

    Parameters
    ----------
    run
        Calls the program with values of its own parameters; it must be inside
        `probsl.isolation.calls.isolated`.
    own
        Own parameter -> unconstrained value.
    data_plate
        The plate whose elements are the rows of the data, if any.
    place
        The values of the latents.
    bounded
        The observed sites that do not allow all values.

    Returns
    -------
    tuple of Site
        In the order in which the program reaches them.

    Raises
    ------
    ValueError
        If a latent cannot be fitted, or the sites change from run to run.
    """

    def visited(jitter: float) -> dict[str, Any]:
        return visit(lambda: run(own), jitter=jitter, place=place)

    messages, second = visited(0.1), visited(0.3)
    refuse_changing_sites(messages, second)
    _refuse_moving_supports(messages, second)
    dependence = dependence_of(lambda: run(own), messages, second)
    moved = moving_sites(run, own, messages, second, bounded)
    return tuple(
        replace(
            _site(message, messages, dependence, data_plate),
            moving=name in moved,
            moved_by=moved.get(name, ()),
        )
        for name, message in messages.items()
    )


def _site(
    message: Any,
    messages: Mapping[str, Any],
    dependence: Dependence,
    data_plate: Plate | None,
) -> Site:
    plates = plates_of(message)
    parents = dependence.parents.get(message["name"], ())
    inside = data_plate is not None and data_plate.holds(message["name"], plates)
    role = _role(message, inside or _depends(message, messages, dependence))
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
        auxiliary=message["written"] is not None and role is Role.RANDOM_EFFECT,
        scored=role is Role.DETERMINISTIC and _is_scored(message),
        prior=role is Role.PARAMETER or _stands_for(message, messages, dependence),
        kinked=_has_kink(message["fn"]),
        l1=_laplace(message) if role is Role.PARAMETER else None,
    )


def _role(message: Any, local: bool) -> Role:
    if is_computed(message):
        return Role.DETERMINISTIC
    if is_factor(message):
        return Role.FACTOR
    if message["is_observed"]:
        return Role.OBSERVED
    if not is_continuous(message["fn"]):
        return Role.ENUMERATED
    return Role.RANDOM_EFFECT if local else Role.PARAMETER


def _depends(message: Any, messages: Mapping[str, Any], dependence: Dependence) -> bool:
    """Return whether a latent's distribution is more than a prior of its own.

    A reparameterization does not change roles. Noise in one-to-one correspondence with
    the original site represents it; the distribution of other noise is not a prior.
    """
    name, written = message["name"], message["written"]
    if name in dependence.written:  # the noise is not among the user's original sites
        return bool(dependence.written[name])
    if dependence.parents.get(name, ()):
        return True
    if written is None:
        return False
    if written.is_observed or dependence.written.get(written.name, ()):
        return True
    if written.name not in messages or not is_computed(messages[written.name]):
        return True
    noise = sum(_coordinates(m, m["fn"]) for m in _noise_of(written.name, messages))
    return noise != _coordinates(messages[written.name], written.fn)


def _noise_of(name: str, messages: Mapping[str, Any]) -> list[Any]:
    """Return the messages of the noise behind a reparameterized site."""
    return [m for m in messages.values() if m["written"] and m["written"].name == name]


def _stands_for(
    message: Any, messages: Mapping[str, Any], dependence: Dependence
) -> bool:
    """Return whether a computed value has a log density in place of a prior."""
    if not (is_computed(message) and _is_scored(message)):
        return False
    noise = _noise_of(message["name"], messages)
    return bool(noise) and not any(_depends(m, messages, dependence) for m in noise)


def _coordinates(message: Any, fn: Any) -> int:
    """Return how many coordinates a site's value has; -1 if that is unknown."""
    try:
        transform = bijection(support_of(fn))
    except NotImplementedError:  # directions, which are made from unconstrained noise
        return -1
    return torch.Size(transform.inverse_shape(message["value"].shape)).numel()


def _is_scored(message: Any) -> bool:
    """Return whether a computed value has a log density other than zero."""
    fn = unwrap(message["fn"])
    density = getattr(fn, "log_density", None)
    masked = message["mask"] is False or getattr(message["fn"], "_mask", None) is False
    statement = is_deterministic(message) or masked or density is None
    return not statement and bool(torch.as_tensor(density).any())


def _refuse_moving_supports(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> None:
    """Refuse latents whose coordinates would depend on the dry run's support."""
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


def _has_kink(fn: Any) -> bool:
    """Whether a distribution's log density has a kink; that of SoftLaplace has none."""
    fn = unwrap(fn)
    if isinstance(fn, torch.distributions.TransformedDistribution):
        return _has_kink(fn.base_dist)
    if isinstance(fn, torch.distributions.MixtureSameFamily):
        return _has_kink(fn.component_distribution)
    kinked = (torch.distributions.Laplace, dist.AsymmetricLaplace)
    return isinstance(fn, kinked) and not isinstance(fn, dist.SoftAsymmetricLaplace)
