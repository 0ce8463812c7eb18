"""The inventory of a program: its sites, their roles, and what cannot be fitted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import TransformedDistribution, constraints
from torch.distributions.constraint_registry import biject_to

from probsl.isolation import forked

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
class Plate:
    """A `pyro.plate` around a site; `dim` is None for a sequential one."""

    name: str
    size: int
    dim: int | None
    full_size: int


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
        Constraint on its value; None for factors and deterministics.
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


class _Visit(Messenger):
    """Gives every latent a feasible value and notes each sample statement.

    A prior draw would do worse: heavy tails overflow, flat priors cannot draw.
    """

    def __init__(
        self, jitter: float = 0.0, values: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.messages: dict[str, Any] = {}
        self.refusal: Exception | None = None
        self._jitter = jitter
        self._values = values or {}

    @property
    def last(self) -> str | None:
        return next(reversed(self.messages), None)

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            return
        name = msg["name"]
        try:
            if name in self.messages:
                raise ValueError(
                    f"two sample sites are named '{name}'; give each its own name, in "
                    f'a loop for example f"{name}_{{i}}"'
                )
            _refuse_no_distribution(name, msg["fn"])
            if not msg["is_observed"] and name not in self._values:
                _refuse_strange_support(name, msg["fn"])
        except (TypeError, ValueError) as refusal:
            self.refusal = refusal
            raise
        if not msg["is_observed"]:
            if name in self._values:
                msg["value"] = self._values[name]
                msg["done"] = True
            elif _is_continuous(msg["fn"]):
                msg["value"] = self._feasible(msg["fn"])
                msg["done"] = True
        self.messages[name] = msg

    def _feasible(self, fn: Any) -> Tensor:
        transform = biject_to(fn.support)
        shape = transform.inverse_shape(fn.shape())
        noise = torch.randn(shape) if self._jitter else torch.zeros(shape)
        value: Tensor = transform(self._jitter * noise)
        return value


def visit(
    run: Callable[[], Any],
    *,
    jitter: float = 0.0,
    values: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Run a program and return the message of every sample site, in order.

    Parameters
    ----------
    run
        Calls the program; it must be inside `probsl.isolation.isolated`.
    jitter
        Standard deviation of the latents in unconstrained space around zero.
    values
        Latents to hold at given constrained values instead.

    Raises
    ------
    ValueError
        If two sites share a name or a latent has no usable support. An error
        of the program's own is raised as it is, with the site reached added.
    """
    visiting = _Visit(jitter, values)
    try:
        with visiting:
            run()
    except Exception as error:
        if error is not visiting.refusal:
            reached = visiting.last
            where = (
                f"after sample site '{reached}'" if reached else "before its first site"
            )
            error.add_note(f"probsl: the program raised this {where}")
        raise
    return visiting.messages


def is_deterministic(message: Any) -> bool:
    """Return whether a message is a `pyro.deterministic` statement."""
    return bool(message["infer"].get("_deterministic"))


def is_factor(message: Any) -> bool:
    """Return whether a message is a `pyro.factor` statement."""
    return isinstance(unwrap(message["fn"]), dist.Unit)


def is_observation(message: Any) -> bool:
    """Return whether a message is an observed site in the statistician's sense."""
    return (
        message["is_observed"]
        and not is_deterministic(message)
        and not is_factor(message)
    )


def inventory(run: Callable[[], Any], data_plate: str | None) -> tuple[Site, ...]:
    """Find every site of a program and the role it plays.

    Parameters
    ----------
    run
        Calls the program; it must be inside `probsl.isolation.isolated`.
    data_plate
        Name of the plate whose elements are the rows of the data, if any.

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
    _refuse_changing_sites(messages, second)
    _refuse_moving_supports(messages, second)
    parents = _parents(run, messages, second)
    return tuple(
        _site(message, parents.get(name, ()), data_plate)
        for name, message in messages.items()
    )


def plates_of(message: Any) -> tuple[Plate, ...]:
    """Return the plates around a message, outermost first."""
    return tuple(
        Plate(
            name=frame.name,
            size=int(frame.size),
            dim=frame.dim,
            full_size=int(frame.full_size or frame.size),
        )
        for frame in message["cond_indep_stack"]
    )


def _site(message: Any, parents: tuple[str, ...], data_plate: str | None) -> Site:
    plates = plates_of(message)
    inside = data_plate is not None and any(p.name == data_plate for p in plates)
    role = _role(message, inside or bool(parents))
    support = message["fn"].support if role is not Role.FACTOR else None
    return Site(
        name=message["name"],
        role=role,
        shape=message["value"].shape,
        support=None if role is Role.DETERMINISTIC else support,
        plates=plates,
        parents=parents,
        batch_axes=len(message["fn"].batch_shape),
        l1=_laplace(message) if role is Role.PARAMETER else None,
    )


def _role(message: Any, local: bool) -> Role:
    if is_deterministic(message):
        return Role.DETERMINISTIC
    if is_factor(message):
        return Role.FACTOR
    if message["is_observed"]:
        return Role.OBSERVED
    if not _is_continuous(message["fn"]):
        return Role.ENUMERATED
    return Role.RANDOM_EFFECT if local else Role.PARAMETER


def _is_continuous(fn: Any) -> bool:
    return not fn.support.is_discrete


def _refuse_no_distribution(name: str, fn: Any) -> None:
    if isinstance(fn, dist.Distribution):
        return
    kind = type(fn).__name__
    if isinstance(fn, torch.distributions.Distribution):
        raise TypeError(
            f"site '{name}' samples from torch.distributions.{kind}; use "
            f"pyro.distributions.{kind}"
        )
    raise TypeError(
        f"site '{name}' samples from a {kind}, which is no distribution; give one of "
        "pyro.distributions"
    )


def _refuse_strange_support(name: str, fn: Any) -> None:
    if not _is_continuous(fn) and not fn.has_enumerate_support:
        raise ValueError(
            f"latent site '{name}' is a discrete {type(unwrap(fn)).__name__} that "
            "cannot be summed out; replace it by its marginal likelihood"
        )
    held: list[Any] = list(vars(unwrap(fn)).values())
    if any(torch.is_tensor(t) and t.is_complex() for t in held):
        raise ValueError(
            f"latent site '{name}' is complex; write it as two real sites, its real "
            "and its imaginary part"
        )


def refuse_unannotated(messages: Mapping[str, Any]) -> None:
    """Refuse discrete latents that the program does not ask to sum out."""
    for name, message in messages.items():
        if (
            not message["is_observed"]
            and not _is_continuous(message["fn"])
            and message["infer"].get("enumerate") is None
        ):
            raise ValueError(
                f"latent site '{name}' is discrete and gradient descent cannot move "
                'it; annotate it with infer={"enumerate": "parallel"}, or decorate '
                "the program with pyro.infer.config_enumerate, to sum it out"
            )


def _refuse_changing_sites(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    shapes = [
        {n: (tuple(m["value"].shape), bool(m["is_observed"])) for n, m in run.items()}
        for run in (first, second)
    ]
    for name in dict.fromkeys([*shapes[0], *shapes[1]]):
        if shapes[0].get(name) != shapes[1].get(name):
            raise ValueError(
                f"site '{name}' changes from run to run (present, then absent or of "
                "another shape); a program must reach the same sites whatever the "
                "values of its latents"
            )


def _refuse_moving_supports(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> None:
    """Refuse latents whose coordinates would be those of the dry run's support."""
    for name, message in first.items():
        if message["is_observed"] or not _is_continuous(message["fn"]):
            continue
        centers = []
        for fn in (message["fn"], second[name]["fn"]):
            transform = biject_to(fn.support)
            shape = transform.inverse_shape(message["value"].shape)
            centers.append(transform(torch.zeros(shape)))
        if not torch.equal(*centers):
            raise ValueError(
                f"the support of latent site '{name}' depends on another latent; "
                "sample its share of the range instead, from a distribution on (0, 1), "
                "and multiply"
            )


def unwrap(fn: Any) -> Any:
    """Return the distribution inside `to_event`, `mask` and `expand`."""
    while True:
        inner = getattr(fn, "base_dist", None)
        if inner is None or isinstance(fn, TransformedDistribution):
            return fn
        fn = inner


def _laplace(message: Any) -> tuple[Tensor, Tensor] | None:
    fn = unwrap(message["fn"])
    if not isinstance(fn, torch.distributions.Laplace):
        return None
    value = message["value"].detach()
    if message["scale"] != 1.0 or message["mask"] is not None:
        return None
    # A prior made outside the program may be of another type, and on another device.
    location, scale = (t.detach().to(value) for t in (fn.loc, fn.scale))
    return location.expand(value.shape), scale.expand(value.shape)


def _parents(
    run: Callable[[], Any], messages: Mapping[str, Any], second: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
    """Return, for each latent, the latents on which its distribution depends.

    Continuous parents are found by the existence of a derivative of the log
    density; discrete ones, which have none, by changing their value.
    """
    latents = {n: m for n, m in messages.items() if not m["is_observed"]}
    continuous = {
        n: m["value"].detach().clone().requires_grad_()
        for n, m in latents.items()
        if _is_continuous(m["fn"])
    }
    discrete = {n: m["value"] for n, m in latents.items() if n not in continuous}
    values = {**continuous, **discrete}
    device = torch.get_default_device()
    with forked(device):  # all runs see the same random numbers, on any device
        traced = visit(run, values=values)
    _refuse_changing_sites(messages, traced)
    reached = {
        name: _reached(log_density(message), continuous, name)
        for name, message in traced.items()
        if not is_deterministic(message)
    }
    parents = {name: list(reached[name]) for name in latents}
    used = {name for names in reached.values() for name in names}
    for name in [n for n in continuous if n not in used]:
        with forked(device):
            moved = visit(run, values={**values, name: second[name]["value"]})
        _refuse_detached(name, traced, moved)
    for name, value in discrete.items():
        changed = {**values, name: _other_value(traced[name], value)}
        with forked(device):
            visited = visit(run, values=changed)
        for other, message in visited.items():
            if other in latents and other != name:
                before = log_density(traced[other])
                after = log_density(message)
                if before.shape != after.shape or not torch.equal(before, after):
                    parents[other].append(name)
    return {n: tuple(p) for n, p in parents.items()}


def _reached(
    density: Tensor, continuous: Mapping[str, Tensor], itself: str
) -> tuple[str, ...]:
    """Return the latents of which a log density has a derivative."""
    others = [name for name in continuous if name != itself]
    if not density.requires_grad or not others:
        return ()
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
        density.sum(),
        [continuous[name] for name in others],
        allow_unused=True,
        retain_graph=True,
    )
    return tuple(n for n, g in zip(others, gradients, strict=True) if g is not None)


def _refuse_detached(
    name: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    """Refuse a latent that moves another site's density without a derivative."""
    for other, message in after.items():
        if other == name or is_deterministic(message):
            continue
        if not torch.equal(log_density(before[other]), log_density(message)):
            raise ValueError(
                f"latent site '{name}' changes site '{other}' in a way that has no "
                "gradient (a comparison, .item(), float(), math or numpy); compute "
                "with torch functions"
            )


def log_density(message: Any) -> Tensor:
    """Return the log density of a site's value, held constant, entry by entry."""
    density: Tensor = message["fn"].log_prob(scored_value(message).detach())
    return torch.nan_to_num(density)


def scored_value(message: Any) -> Tensor:
    """Return a site's value as its distribution can score it: 0 and 1 as floats."""
    value: Tensor = message["value"]
    support = message["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    truth = value.dtype is torch.bool or isinstance(support, type(constraints.boolean))
    return value.to(torch.get_default_dtype()) if truth else value


def _other_value(message: Any, value: Tensor) -> Tensor:
    """Return a value of a discrete site that differs from `value` everywhere."""
    values = message["fn"].enumerate_support(expand=True)
    different = (values != value).reshape(values.shape[0], *value.shape)
    index = different.long().argmax(0, keepdim=True)
    other: Tensor = values.gather(0, index).squeeze(0)
    return other
