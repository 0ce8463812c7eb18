"""Runs a program once and reads its Pyro messages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import constraints

from probsl.program.places import Place
from probsl.program.reparameterized import written_site
from probsl.program.supports import bijection, core, support_of, unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping


class Unrolled(Messenger):
    """Removes sequential plates from the sites inside, which have names of their own.

    Pyro's automatic guides refuse sequential plates.
    """

    def _pyro_sample(self, msg: Any) -> None:
        frames = msg["cond_indep_stack"]
        msg["cond_indep_stack"] = tuple(f for f in frames if f.vectorized)


@dataclass(frozen=True)
class Plate:
    """A `pyro.plate` around a site; `dim` is None for a sequential one.

    The sites in `joint` have one entry for all of its elements together, as is possible
    in a plate without a size of its own.
    """

    name: str
    size: int
    dim: int | None
    full_size: int
    joint: frozenset[str] = frozenset()

    def holds(self, name: str, plates: Iterable[Any]) -> bool:
        """Whether a site has one entry per element; `plates` are those around it."""
        return name not in self.joint and any(p.name == self.name for p in plates)


class _Visit(Messenger):
    """Gives every latent a feasible value and records each sample statement.

    Prior draws would be worse: heavy tails overflow, improper priors cannot be drawn.
    """

    def __init__(self, place: Place, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.messages: dict[str, Any] = {}
        self.refusal: Exception | None = None
        self._place = place
        self._values = values

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
            self._give(msg)
        except (TypeError, ValueError) as refusal:
            self.refusal = refusal
            raise
        msg["written"] = written_site()
        self.messages[name] = msg

    def _give(self, msg: Any) -> None:
        """Give a latent its value, unless it is to be drawn."""
        name, fn = msg["name"], msg["fn"]
        if msg["is_observed"]:
            return
        value = self._values.get(name)
        if value is None and is_continuous(fn):
            value = self._place.value(name, fn)
        if value is not None:
            msg["value"] = value
            msg["done"] = True


def visit(
    run: Callable[[], Any],
    *,
    jitter: float = 0.0,
    values: Mapping[str, Tensor] | None = None,
    place: Place | None = None,
) -> dict[str, Any]:
    """Run a program and return the message of every sample site, in order.

    Parameters
    ----------
    run
        Calls the program; it must be inside `probsl.isolation.calls.isolated`.
    jitter
        Standard deviation of the latents in unconstrained space around the place.
    values
        Latents to fix at given constrained values instead.
    place
        The values of the latents; zero in unconstrained space by default.

    Raises
    ------
    ValueError
        If two sites share a name or a latent has no usable support. An error
        raised by the program itself is kept, with the last site added.
    """
    at = replace(place or Place(), jitter=jitter)
    visiting = _Visit(at, values or {})
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
    _size_plates(visiting.messages.values())
    return visiting.messages


def _size_plates(messages: Collection[Any]) -> None:
    """Set the size of each plate without one (-1 in Pyro) to that of its dimension.

    Sites with one entry along it do not determine its size.
    """
    sizes: dict[str, int] = {}
    for message in messages:
        for frame in message["cond_indep_stack"]:
            if frame.size == -1:
                size = axis_size(message, frame.dim)
                sizes[frame.name] = max(size, sizes.get(frame.name, 1))
    if not sizes:
        return
    for message in messages:
        message["cond_indep_stack"] = tuple(
            frame._replace(size=sizes[frame.name], full_size=sizes[frame.name])
            if frame.size == -1
            else frame
            for frame in message["cond_indep_stack"]
        )


def axis_size(message: Any, dim: int) -> int:
    """Return a site's size along a dimension, counted from the right."""
    shapes: list[torch.Size] = [message["fn"].batch_shape]
    if torch.is_tensor(message["value"]):
        axes = message["value"].dim() - len(message["fn"].event_shape)
        shapes.append(message["value"].shape[: max(axes, 0)])
    return max((s[dim] for s in shapes if -dim <= len(s)), default=1)


def batch_axes_of(message: Any) -> int:
    """Return the number of dimensions of a site's log density."""
    fn = message["fn"]
    axes: int = message["value"].dim() - len(fn.event_shape)
    return max(len(fn.batch_shape), axes)


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


def is_deterministic(message: Any) -> bool:
    """Return whether a message is a `pyro.deterministic` statement."""
    return bool(message["infer"].get("_deterministic"))


def is_computed(message: Any) -> bool:
    """Return whether a message reports a value that the program has computed.

    That is a `pyro.deterministic` statement, or the site that a reparameterization
    replaced: a Delta at the very tensor that it observes.
    """
    if is_deterministic(message):
        return True
    fn = unwrap(message["fn"])
    observed = message["is_observed"] and isinstance(fn, dist.Delta)
    return observed and fn.v is message["value"]


def is_factor(message: Any) -> bool:
    """Return whether a message is a `pyro.factor` statement."""
    return isinstance(unwrap(message["fn"]), dist.Unit)


def is_observation(message: Any) -> bool:
    """Return whether a message is an observed site in the statistical sense."""
    return (
        message["is_observed"] and not is_computed(message) and not is_factor(message)
    )


def is_continuous(fn: Any) -> bool:
    """Return whether a distribution is continuous."""
    support = support_of(fn)
    return support is None or not support.is_discrete


def scored_value(message: Any) -> Tensor:
    """Return a site's value in the type that its distribution scores: 0/1 as floats."""
    value: Tensor = message["value"]
    support = core(support_of(message["fn"]))
    truth = value.dtype is torch.bool or isinstance(support, type(constraints.boolean))
    return value.to(torch.get_default_dtype()) if truth else value


def log_density(message: Any) -> Tensor:
    """Return the log density of a site's value, entry by entry."""
    density: Tensor = message["fn"].log_prob(scored_value(message))
    return torch.nan_to_num(density)


def refuse_unannotated(messages: Mapping[str, Any]) -> None:
    """Refuse discrete latents that are not annotated for enumeration."""
    for name, message in messages.items():
        if message["is_observed"] or is_continuous(message["fn"]):
            continue
        infer = message["infer"]
        if infer.get("enumerate") is None:
            raise ValueError(
                f"latent site '{name}' is discrete and gradient descent cannot move "
                'it; annotate it with infer={"enumerate": "parallel"}, or decorate '
                "the program with pyro.infer.config_enumerate, to sum it out"
            )
        # Pyro samples these.
        if infer["enumerate"] != "parallel" or infer.get("num_samples") is not None:
            given = {n: infer[n] for n in ("enumerate", "num_samples") if n in infer}
            raise ValueError(
                f"latent site '{name}' is annotated with infer={given}, by which a "
                "program draws it and does not sum it out; annotate it with "
                'infer={"enumerate": "parallel"}'
            )


def refuse_changing_sites(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Refuse a program whose sites, or their shapes, differ between two runs."""
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
        f"site '{name}' samples from a {kind}, which is not a distribution; give one "
        "of pyro.distributions"
    )


def _refuse_strange_support(name: str, fn: Any) -> None:
    support, kind = support_of(fn), type(unwrap(fn)).__name__
    if support is None:
        raise ValueError(
            f"latent site '{name}' is drawn from {kind}, which states no support; give "
            "that class one, for example support = pyro.distributions.constraints.real"
        )
    if not is_continuous(fn) and not fn.has_enumerate_support:
        raise ValueError(
            f"latent site '{name}' is a discrete {kind} that "
            "cannot be summed out; replace it by its marginal likelihood"
        )
    held: list[Any] = list(vars(unwrap(fn)).values())
    if any(torch.is_tensor(t) and t.is_complex() for t in held):
        raise ValueError(
            f"latent site '{name}' is complex; write it as two real sites, its real "
            "and its imaginary part"
        )
    if is_continuous(fn):
        try:
            bijection(support)
        except NotImplementedError:
            raise ValueError(
                f"latent site '{name}' is drawn from {kind}, whose support, {support}, "
                "has no coordinates that run over all real numbers; compute its value "
                "from latents that do, on the real line, an interval or a simplex"
            ) from None
