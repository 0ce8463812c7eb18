"""A program bound to data: its sites, its rows, and how it is run."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor

from probsl.data.conversion import Converted
from probsl.isolation.calls import isolated
from probsl.program.axis_names import AxisNames
from probsl.program.coordinates import Coordinates, Entry
from probsl.program.data_plate import (
    why_no_rows,
)
from probsl.program.declared_supports import DeclaredSupports
from probsl.program.messages import (
    Plate,
    Unrolled,
    is_observation,
    visit,
)
from probsl.program.places import Place
from probsl.program.scoring import (
    Batch,
)
from probsl.program.sites import Role, Site
from probsl.program.subsampling import ROW_INDEX, Subsampling
from probsl.program.supports import bijection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from probsl.data.arguments import Arguments
    from probsl.data.rows import Rows
    from probsl.engine.steps.feed import Blocks
    from probsl.program.stateless_callable import OwnParameter, StatelessCallable

_CPU = torch.device("cpu")

_IDENTITY = torch.distributions.transforms.identity_transform


@dataclass(frozen=True, repr=False, eq=False)
class BoundProgram:
    """A program bound to data.

    Attributes
    ----------
    program
        The program with its own parameters made explicit.
    arguments
        The arguments of its calls, converted and checked.
    dtype
        The floating type of every computation.
    sites
        Its sites in order, from one validated dry run.
    data_plate
        The outermost plate around the observed sites; None without one.
    data
        All rows: those in `arguments`, or more, which these represent.
    device
        The device of every computation.
    subsampling
        State of the plates that would draw a subsample themselves; None without any.
    own_scale
        The factor by which the program scales its observed log densities, on
        average.
    discrete
        Observed sites whose log density is a log probability, so at most 0.
    place
        Values of the latents near which the program can be run.
    names
        The names of all axes, and the labels of the entries along them.
    """

    program: StatelessCallable
    arguments: Arguments
    dtype: torch.dtype
    sites: tuple[Site, ...]
    data_plate: Plate | None
    data: Rows
    device: torch.device = _CPU
    subsampling: Subsampling | None = None
    own_scale: float = 1.0
    discrete: frozenset[str] = frozenset()
    place: Place = field(default_factory=Place)
    names: AxisNames = field(default_factory=AxisNames)

    def isolated(self, seed: int = 0) -> AbstractContextManager[None]:
        """Compute in the problem's floating type and on its device within a block.

        See `probsl.isolation.calls.isolated`.
        """
        return isolated(self.dtype, seed, device=self.device)

    def all_rows(self) -> Iterator[Batch]:
        """Yield all rows once, in parts, unscaled.

        Together the parts are all rows: each row has only its own weight.
        """
        for rows, weights in self.data.parts():
            yield Batch({**self.arguments.values, **rows}, weights)

    def constants(self) -> dict[str, Any]:
        """Return the arguments that new data may omit."""
        return {
            name: Converted(value)
            for name, value in self.arguments.values.items()
            if name not in self.rows and (self.has_rows or not torch.is_tensor(value))
        }

    def refuse_no_rows(self, option: str = "") -> None:
        """Refuse an operation that needs rows, if there are none.

        Parameters
        ----------
        option
            The option that the user set, if it is one.

        Raises
        ------
        ValueError
            Saying why there are none, and how the program would get some.
        """
        if not self.has_rows:
            why = why_no_rows(self.sites, self.data_plate)
            asked = f"{option} needs rows, but " if option else ""
            raise ValueError(f"{asked}there are no rows to tell apart: {why}")

    def __repr__(self) -> str:
        sites = ", ".join(f"{s.name}: {s.role.value}" for s in self.sites)
        return f"Problem({self.size} rows, {sites})"

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the arguments with one entry per row."""
        return self.data.names

    @property
    def size(self) -> int:
        """The number of rows; of observed values if there is no data plate."""
        return self.data.size

    @property
    def weights(self) -> Tensor | None:
        """One weight per row, or None."""
        return self.data.weights

    @property
    def row_scale(self) -> float:
        """How many rows each one represents.

        More than one if the program gives its data plate more entries than there are
        rows.
        """
        plate = self.data_plate
        if plate is None or plate.size == plate.full_size:
            return 1.0
        return plate.full_size / self.size

    @property
    def own_batch_size(self) -> int | None:
        """Number of rows that the program itself subsamples; None if it does not."""
        plate, drawn = self.data_plate, self.subsampling
        if plate is None or drawn is None or not self._indexed:
            return None
        return min(drawn.seen[plate.name], self.size)

    @property
    def _indexed(self) -> bool:
        """Whether the program indexes its rows by its data plate."""
        return (
            self.has_rows
            and self.data.complete
            and self.subsampling is not None
            and self.data_plate is not None
            and self.data_plate.name in self.subsampling.whole
        )

    @property
    def information(self) -> float:
        """Return the total weight of the rows, including the program's own scale.

        If results are divided by it, a common factor of the weights cancels.
        """
        count = self.count
        return self.own_scale * (count if count > 0 else self.size)

    @property
    def count(self) -> float:
        """The number of rows, of which each counts as often as its weight says."""
        if self.weights is None:
            return self.size
        return self.size * float(self.weights.double().mean())

    @property
    def has_rows(self) -> bool:
        """Whether there is a vectorized data plate, whose entries are rows."""
        return self.data_plate is not None and self.data_plate.dim is not None

    @property
    def latents(self) -> tuple[Site, ...]:
        """The continuous latent sites."""
        return tuple(s for s in self.sites if s.latent)

    @property
    def own_parameters(self) -> tuple[OwnParameter, ...]:
        """The program's own parameters, which have no prior."""
        return self.program.own_parameters

    def sites_with_role(self, *roles: Role) -> tuple[str, ...]:
        """Return the names of the sites with one of the given roles."""
        return tuple(s.name for s in self.sites if s.role in roles)

    @property
    def moving(self) -> tuple[str, ...]:
        """The observed sites whose support depends on a latent or own parameter."""
        return tuple(s.name for s in self.sites if s.moving)

    def site(self, name: str) -> Site:
        """Return one site by its name."""
        return next(s for s in self.sites if s.name == name)

    def element_labels(self, name: str, shape: Sequence[int]) -> list[str]:
        """Label every element of a site or own parameter, for people to read."""
        own = any(p.name == name for p in self.own_parameters)
        mark = " (own)" if own else ""
        return [label + mark for label in self.names.labels(name, shape)]

    def renamed(self, sites: Sequence[str]) -> tuple[str, ...]:
        """Return sites and elements, such as ``w[0]``, with the labels of the data."""
        shapes = {site.name: site.shape for site in self.latents}
        shapes |= {p.name: p.start.shape for p in self.own_parameters}
        return tuple(self.names.renamed(sites, shapes))

    def is_local(self, site: Site) -> bool:
        """Return whether a site has one entry per row."""
        plate = self.data_plate
        return plate is not None and plate.holds(site.name, site.plates)

    def weight_rows(self, name: str, density: Tensor) -> Tensor:
        """Return a latent's log densities with the weights of their rows."""
        plate = self.data_plate
        if self.batch().plain or plate is None or plate.dim is None:
            return density
        if name not in {s.name for s in self.latents if self.is_local(s)}:
            return density
        return self.batch().weight(density, plate.dim)

    def coordinates(
        self,
        names: Sequence[str] | None = None,
        held: Mapping[str, Tensor] | None = None,
    ) -> Coordinates:
        """Return the layout of latents and own parameters in one flat vector.

        Parameters
        ----------
        names
            The latents to lay out; all of them by default. The program's own
            parameters always follow, unconstrained, under their names.
        held
            Latent -> value of those that are held still, and not laid out.
        """
        held = held or {}
        chosen = [
            s
            for s in self.latents
            if (names is None or s.name in names) and s.name not in held
        ]
        entries = [Entry(s.name, bijection(s.support), s.shape) for s in chosen]
        own = [Entry(p.name, _IDENTITY, p.start.shape) for p in self.own_parameters]
        return Coordinates([*entries, *own], held)

    def feasible_values(self) -> dict[str, Tensor]:
        """Return the problem's place, a value inside the support of every latent."""
        layout = self.coordinates([s.name for s in self.latents])
        values = layout.constrain(self.center(layout))
        return {s.name: values[s.name] for s in self.latents}

    def center(self, layout: Coordinates) -> Tensor:
        """Return the problem's place as a flat vector, zero for other entries."""
        flat = torch.zeros(layout.size, dtype=self.dtype, device=self.device)
        for entry, part in layout.split(flat):
            if entry.name in self.place.around:
                part.copy_(self.place.around[entry.name])
        return flat

    def rows_at(self, index: Tensor) -> Batch:
        """Return some rows as a batch that represents all of them.

        Parameters
        ----------
        index
            Indices of the rows, shape ``[batch]``; for a DataLoader, of the rows held.
        """
        return self.batch_of(*self.data.at(index))

    def batches(self, batch_size: int, seed: int) -> Blocks:
        """Return the source of batches of rows, shuffled by a seed."""
        return self.data.blocks(batch_size, seed)

    def batch_of(
        self, rows: Mapping[str, Tensor], weights: Tensor | None = None
    ) -> Batch:
        """Return given rows as a batch that represents all; all rows if none are given.

        Parameters
        ----------
        rows
            Row argument -> its values, shape ``[batch, ...]``.
        weights
            Their weights, shape ``[batch]``.
        """
        if not rows:
            return self.batch()
        length = len(next(iter(rows.values())))
        arguments = {**self.arguments.values, **rows}
        return Batch(arguments, weights, self.row_scale * self.size / length)

    def observed_values(
        self,
        arguments: Mapping[str, Any] | None = None,
        *,
        values: Mapping[str, Tensor] | None = None,
        own: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return observed site -> its value, for the rows held or for other ones.

        A value that depends on latents or own parameters is computed at `values` and
        `own` if given, otherwise at the start of a search.
        """
        parameters = own or {p.name: p.start for p in self.own_parameters}
        given = self.arguments.values if arguments is None else arguments
        with self.isolated(), torch.no_grad():
            messages = visit(
                lambda: self.run(parameters, given), values=values, place=self.place
            )
        return {n: m["value"] for n, m in messages.items() if is_observation(m)}

    def observed_digest(self) -> str:
        """Return a fingerprint of the observed values, to distinguish data."""
        digests: dict[str, Any] = {}
        for part in self.all_rows():
            values = self.observed_values(part.arguments) or {
                # It is not known which arguments a factor observes.
                n: v
                for n, v in part.arguments.items()
                if torch.is_tensor(v)
            }
            for name, value in values.items():
                digest = digests.setdefault(name, hashlib.sha256(name.encode()))
                digest.update(value.double().cpu().numpy().tobytes())
        return ".".join(digest.hexdigest() for digest in digests.values())

    def batch(self) -> Batch:
        """Return the rows in `arguments`, which are or represent all, as one batch."""
        scale = self.row_scale * (self.size / self.data.held)
        return Batch(self.arguments.values, self.data.held_weights, scale)

    def continuous_program(self) -> Callable[..., Any]:
        """Return the program without the sites that are summed out, for guides.

        Its latents state their supports as computed by ``probsl.program.supports``. Its
        own parameters are at their start values, and its modules are unchanged.
        """
        hidden = list(self.sites_with_role(Role.ENUMERATED))
        own = {p.name: p.start for p in self.own_parameters}

        def program(**arguments: Any) -> Any:
            with DeclaredSupports(), Unrolled():
                return self.run(own, arguments)

        return poutine.block(program, hide=hidden) if hidden else program

    def run(self, own: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Any:
        """Call the program with its own parameters `own` (unconstrained)."""
        return self.call(self.program, own, arguments)

    def call(
        self,
        function: StatelessCallable,
        own: Mapping[str, Tensor],
        arguments: Mapping[str, Any],
    ) -> Any:
        """Call the program or a guide on the rows in its arguments."""
        if self.subsampling is None:
            return function(own, arguments)
        given = dict(arguments)
        with self.taking(given.pop(ROW_INDEX, None)):
            return function(own, given)

    def taking(self, index: Tensor | None = None) -> AbstractContextManager[None]:
        """Give the data plate certain entries within a block; all without `index`."""
        if self.subsampling is None:
            return nullcontext()
        name = self.data_plate.name if self.data_plate else ""
        return self.subsampling.at(name, index)()

    @property
    def _priors(self) -> set[str]:
        """Names of the sites whose log density is not part of the likelihood."""
        return {s.name for s in self.sites if s.latent or s.scored}

    def _nesting(self) -> int:
        """Return how many rightmost dimensions plates and batch shapes occupy."""
        axes = [-p.dim for s in self.sites for p in s.plates if p.dim is not None]
        return max([*axes, *(s.batch_axes for s in self.sites)], default=0)
