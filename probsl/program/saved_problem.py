"""A program that was fitted in another process, bound to no data."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from probsl.data.absent_rows import AbsentArray
from probsl.program.generating import Generating
from probsl.program.messages import is_computed, is_factor, plates_of, visit
from probsl.program.problem import Problem
from probsl.program.scoring import Batch
from probsl.program.supports import bijection, contents, settled, support_of, unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from probsl.program.messages import Plate

__all__ = [
    "SavedProblem",
    "SiteFacts",
    "facts_of",
    "guide_supports",
    "refuse_changed",
    "zeros",
]


@dataclass(frozen=True)
class SiteFacts:
    """The facts by which a site is recognized, which do not depend on the rows.

    Attributes
    ----------
    kind
        "latent", "observed", "factor" or "deterministic".
    distribution
        The class of its distribution.
    shape
        Of a latent; None for the axis of the rows.
    plates
        The names of the plates around it.
    support
        Of a continuous latent, in its simplest form.
    """

    kind: str
    distribution: str = ""
    shape: tuple[int | None, ...] = ()
    plates: tuple[str, ...] = ()
    support: Any = None


@dataclass(frozen=True, repr=False, eq=False)
class SavedProblem(Problem):
    """A program without the data that it was fitted to.

    Attributes
    ----------
    facts
        Site -> what is known of it, to recognize a program that has changed.
    observed
        The arguments that the program observes.
    reported
        The deterministic sites that do not depend on the data.
    known_point
        Site -> the value that `Fit.point` returned.
    fingerprints
        Argument -> the hash of its values.
    supports
        Latent -> the support that the program states to guides.
    """

    facts: Mapping[str, SiteFacts] = field(default_factory=dict)
    observed: tuple[str, ...] = ()
    reported: tuple[str, ...] = ()
    known_point: Mapping[str, Tensor] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    supports: Mapping[str, Any] = field(default_factory=dict)

    def batch(self) -> Batch:
        """Return the arguments, in which the rows are absent."""
        return Batch(self.arguments.values)

    def constants(self) -> dict[str, Any]:
        """Return the arguments that new data may omit, if they were saved."""
        absent = {n for n, v in self._values.items() if isinstance(v, AbsentArray)}
        return {n: v for n, v in super().constants().items() if n not in absent}

    def with_data(self, data: Any) -> Problem:
        """Return the program bound to data; refuse it if it has changed."""
        bound = super().with_data(data)
        refuse_changed(self.facts, bound)
        return bound

    def run(self, own: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Any:
        """Call the program, and refuse it if it has changed."""
        comparing = _Comparing(self.facts)
        with comparing:
            result = super().run(own, arguments)
        comparing.refuse_absent()
        return result

    def zeros(self) -> dict[str, Any]:
        """Return the arguments with zeros in the place of absent arrays."""
        absent = {
            name: value.describe()
            for name, value in self._values.items()
            if isinstance(value, AbsentArray)
        }
        return {**self._values, **zeros(absent, self.device)}

    def continuous_program(self) -> Callable[..., Any]:
        """Return a program with the same latents for guides, which needs no data."""

        def program(**_: Any) -> None:
            for site in self.latents:
                with ExitStack() as stack:
                    for plate in site.plates:
                        if plate.name in site.plate_axes:
                            stack.enter_context(_plate(plate))
                    axes = site.batch_axes
                    stated = _Stated(
                        self.supports[site.name], site.shape[:axes], site.shape[axes:]
                    )
                    pyro.sample(site.name, stated)

        return program

    @property
    def _values(self) -> dict[str, Any]:
        return self.arguments.values


class _Stated(TorchDistribution):
    """A distribution of which only the support and the shape matter."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as torch declares it

    def __init__(
        self, support: Any, batch: Sequence[int], event: Sequence[int]
    ) -> None:
        self._support = support
        super().__init__(torch.Size(batch), torch.Size(event), validate_args=False)

    @property
    def support(self) -> Any:
        return self._support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return _Stated(self._support, batch_shape, self.event_shape)

    def sample(self, sample_shape: Any = torch.Size()) -> Any:  # noqa: B008
        transform = bijection(self._support)
        shape = sample_shape + self.batch_shape + self.event_shape
        return transform(torch.zeros(transform.inverse_shape(shape)))

    def log_prob(self, value: Tensor) -> Any:
        return value.new_zeros(value.shape[: value.dim() - len(self.event_shape)])


def zeros(
    arrays: Mapping[str, tuple[torch.Size, torch.dtype]], device: torch.device
) -> dict[str, Tensor]:
    """Return arrays of zeros by their shapes and types, which take no memory."""
    return {
        name: torch.zeros((), dtype=dtype, device=device).expand(shape)
        for name, (shape, dtype) in arrays.items()
    }


def _plate(plate: Plate) -> Any:
    if plate.size == plate.full_size:
        return pyro.plate(plate.name, plate.size, dim=plate.dim)
    subsample = torch.arange(plate.size)
    return pyro.plate(plate.name, plate.full_size, subsample=subsample, dim=plate.dim)


class _Comparing(Messenger):
    """Compares the sites of a run with those that were fitted."""

    def __init__(self, facts: Mapping[str, SiteFacts]) -> None:
        super().__init__()
        self._facts = facts
        self._seen: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            return
        name = msg["name"]
        self._seen.add(name)
        known, now = self._facts.get(name), _facts(msg)
        if known is None:
            if now.kind == "latent":
                _refuse(name, "was not in the program when it was fitted")
            return
        words = _difference(known, now)
        if words:
            _refuse(name, words)

    def refuse_absent(self) -> None:
        """Refuse a run that has not reached all latents."""
        for name, known in self._facts.items():
            if known.kind == "latent" and name not in self._seen:
                _refuse(name, "was in the program when it was fitted and is not now")


def refuse_changed(facts: Mapping[str, SiteFacts], problem: Problem) -> None:
    """Refuse a program bound to data whose sites differ from those that were fitted.

    Parameters
    ----------
    facts
        What is known of the sites that were fitted.
    problem
        The program as it is now.

    Raises
    ------
    ValueError
        Naming the first site that differs.
    """
    comparing = _Comparing(facts)
    _run(problem, problem.arguments.values, comparing)
    comparing.refuse_absent()


def facts_of(problem: Problem, observed: Collection[str]) -> dict[str, SiteFacts]:
    """Return the facts by which the sites of a program are recognized.

    Parameters
    ----------
    problem
        The program bound to its data.
    observed
        The arguments that it observes. It may have more sites without these.
    """
    given, optional = problem.arguments.values, problem.program.optional_arguments()
    found = _run(problem, given)
    without = {n: v for n, v in given.items() if n not in observed}
    without |= {n: None for n in observed if n not in optional}
    try:
        more = _run(problem, without)
    except Exception:  # it cannot predict, so nothing will be compared there
        more = {}
    messages = {**more, **found}
    plate = problem.data_plate
    return {
        name: _facts(message, plate.name if plate else "")
        for name, message in messages.items()
    }


def guide_supports(problem: Problem) -> dict[str, Any]:
    """Return latent -> the support that the program states to automatic guides."""
    program, arguments = problem.continuous_program(), problem.arguments.values
    with problem.isolated(), torch.no_grad(), problem.taking():
        messages = visit(lambda: program(**arguments), place=problem.place)
    return {s.name: messages[s.name]["fn"].support for s in problem.latents}


def _run(
    problem: Problem, arguments: Mapping[str, Any], inside: Messenger | None = None
) -> dict[str, Any]:
    """Run a program at a feasible place, and return its messages."""
    own = {p.name: p.start for p in problem.own_parameters}
    # A changed shape is refused by the comparison before a value is given.
    generating = Generating(problem.feasible_values())
    with problem.isolated(), torch.no_grad(), generating, inside or nullcontext():
        problem.run(own, arguments)
    return generating.messages


def _facts(message: Any, rows: str | None = None) -> SiteFacts:
    """Return the facts of one site; its axis of the plate `rows` is left open."""
    if is_computed(message):
        return SiteFacts("deterministic")
    if is_factor(message):
        return SiteFacts("factor")
    fn, plates = message["fn"], plates_of(message)
    kind = "observed" if message["is_observed"] else "latent"
    shape: list[int | None] = [*fn.batch_shape, *fn.event_shape]
    for plate in plates:
        axis = len(fn.batch_shape) + (plate.dim or 0)
        if plate.name == rows and plate.dim is not None and axis >= 0:
            shape[axis] = None
    return SiteFacts(
        kind=kind,
        distribution=type(unwrap(fn)).__name__,
        shape=tuple(shape),
        plates=tuple(plate.name for plate in plates),
        support=settled(support_of(fn)) if kind == "latent" else None,
    )


def _difference(known: SiteFacts, now: SiteFacts) -> str:
    """Return in which fact a site differs, as the end of a sentence; "" for none."""
    # What was observed is drawn if it is predicted.
    if known.kind != now.kind and (known.kind, now.kind) != ("observed", "latent"):
        return f"was {known.kind} when it was fitted and is {now.kind} now"
    for fact in ("distribution", "plates"):
        before, after = getattr(known, fact), getattr(now, fact)
        if before != after:
            return f"had {fact} {before} when it was fitted and has {after} now"
    if known.kind != "latent":
        return ""
    if not _same_shape(known.shape, now.shape):
        before, after = list(known.shape), list(now.shape)
        return f"had shape {before} when it was fitted and has {after} now"
    if not _same_support(known.support, now.support):
        before, after = known.support, now.support
        return f"had support {before} when it was fitted and has {after} now"
    return ""


def _same_shape(known: tuple[int | None, ...], now: tuple[int | None, ...]) -> bool:
    pairs = zip(known, now, strict=False)
    return len(known) == len(now) and all(k in (None, n) for k, n in pairs)


def _same_support(known: Any, now: Any) -> bool:
    """Compare the types and numbers in two supports; tensors in them are not read."""
    if known is None or now is None:
        return True
    one, other = (
        [part for part in contents(support) if not torch.is_tensor(part)]
        for support in (known, now)
    )
    return one == other


def _refuse(name: str, words: str) -> NoReturn:
    raise ValueError(f"site '{name}' {words}; load with the program that was fitted")
