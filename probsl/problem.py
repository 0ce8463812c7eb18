"""A program bound to data: its sites, and its log density."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor

from probsl.conversion import Converted
from probsl.coordinates import Coordinates, Entry
from probsl.data import (
    Arguments,
    UnclearRowsError,
    by_name,
    device_of,
    find_rows,
    floating_type,
    refuse_unequal_rows,
    row_weights,
)
from probsl.data_plate import (
    data_plate_of,
    observed_elements,
    refuse_other_plate,
    why_no_rows,
)
from probsl.declared_supports import DeclaredSupports
from probsl.dry_run import (
    blaming_batches,
    check_program,
    dry_run,
    refuse_nothing_to_fit,
)
from probsl.isolation import isolated
from probsl.loaders import StreamedRows
from probsl.observed_supports import Edge, edges, is_bounded
from probsl.parameters import Functional, OwnParameter
from probsl.places import Place
from probsl.reached import leave_out_unreached
from probsl.row_arguments import told_apart
from probsl.rows import AllRows, StoredRows, at_hand
from probsl.scoring import (
    Batch,
    Scoring,
    by_row,
    is_probability,
    mean_scale,
    named_terms,
    refuse_enumeration,
    site_terms,
    total,
)
from probsl.sites import Role, Site, inventory
from probsl.subsampling import ROW_INDEX, Subsampling
from probsl.supports import bijection
from probsl.visits import (
    Plate,
    Unrolled,
    is_computed,
    is_observation,
    log_density,
    scored_value,
    visit,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

_CPU = torch.device("cpu")


@dataclass(frozen=True, repr=False)
class Problem:
    """A program bound to data.

    Attributes
    ----------
    program
        The program with its own parameters made explicit.
    arguments
        The arguments it is called with, converted and checked.
    dtype
        The floating type of every computation.
    sites
        Its sites in order, from one validated dry run.
    data_plate
        The outermost plate around the observed sites; None without one.
    rows
        Names of the arguments with one entry per row.
    size
        The number of rows; of observed values where there is no data plate.
    weights
        One weight per row, or None.
    source
        Where all rows are, if `arguments` hold only some that stand for them.
    device
        The device of every computation.
    subsampling
        What plates have that would draw a subsample by themselves; None without any.
    row_scale
        How many rows each one stands for: more than one if the program gives its
        data plate more entries than there are rows.
    own_scale
        By what the program multiplies the log densities of what it observes, on
        average.
    discrete
        Observed sites whose log density is that of a probability, and not above 0.
    place
        Around which values of the latents the program can be run.
    unclear_rows
        Why it is not clear which arguments are rows; empty if it is. Then `rows` are
        all that may be, and there can be no batches.
    """

    program: Functional
    arguments: Arguments
    dtype: torch.dtype
    sites: tuple[Site, ...]
    data_plate: Plate | None
    rows: tuple[str, ...]
    size: int
    weights: Tensor | None = None
    source: AllRows | None = None
    device: torch.device = _CPU
    subsampling: Subsampling | None = None
    row_scale: float = 1.0
    own_scale: float = 1.0
    discrete: frozenset[str] = frozenset()
    place: Place = field(default_factory=Place)
    unclear_rows: str = ""

    @classmethod
    def build(
        cls,
        program: Callable[..., Any],
        data: Any,
        *,
        rows: Sequence[str] | None = None,
        weights: Any = None,
        dtype: torch.dtype | None = None,
        labels: Mapping[str, tuple[Any, ...]] | None = None,
        batch_size: int | None = None,
        total: int | None = None,
        device: str | torch.device | None = None,
        place: Place | None = None,
        held_out: bool = False,
    ) -> Problem:
        """Bind a program to data and take the inventory of its sites.

        Parameters
        ----------
        program
            Any Pyro callable.
        data
            Its arguments, see `probsl.fit`.
        rows
            Names of the arguments with one entry per row, where shapes do not say.
        weights
            One weight per row.
        dtype
            The floating type to compute in; None takes the program's or the data's.
        labels
            Name -> the categories behind the codes of an argument, if known.
        batch_size
            Rows per step, if they are to come in batches: many rows then stay where
            they are, and the program is only run on some of them.
        total
            The number of rows, where a DataLoader cannot tell.
        device
            The device to compute on; None takes the program's or the data's.
        place
            Where the latents are in the first run; others are tried if the program
            cannot begin there.
        held_out
            Whether the data are only to be scored: they may then lie outside of a
            support that moves.

        Raises
        ------
        ValueError, TypeError
            If the data or the program cannot be fitted; the sentence names the
            site, the argument or the row.
        """
        check_program(program)
        functional = Functional(program)
        arguments, source = at_hand(
            program,
            data,
            rows=rows,
            labels=labels,
            batch_size=batch_size,
            total=total,
        )
        dtype = floating_type(arguments, functional.floating_types(), dtype)
        device = device_of(arguments, functional.devices(), device)
        arguments = arguments.cast(dtype, device)
        if source is not None:
            source = source.read_as(dtype, device)
        with blaming_batches(source is not None):
            messages, subsampling, place = dry_run(
                functional,
                arguments,
                dtype,
                device,
                rows,
                place=place or Place(),
                held_out=held_out,
            )
        plate = data_plate_of(messages)
        with isolated(dtype, device=device), subsampling():
            sites = inventory(
                lambda own: functional(own, arguments.values),
                {p.name: p.start for p in functional.own},
                plate,
                place,
                [n for n, m in messages.items() if is_observation(m) and is_bounded(m)],
            )
            runs = _runs(functional, arguments.values, place)
            leave_out_unreached(functional, runs)
        refuse_nothing_to_fit(sites, functional)
        size = plate.size if plate else observed_elements(messages)
        if source is not None:
            refuse_other_plate(plate, source, arguments)
        problem = cls(
            program=functional,
            arguments=arguments,
            dtype=dtype,
            sites=sites,
            data_plate=plate,
            rows=() if source is None else source.names,
            size=size if source is None else source.size,
            source=source,
            device=device,
            subsampling=subsampling if subsampling.seen else None,
            row_scale=_row_scale(plate, size if source is None else source.size),
            own_scale=mean_scale(messages),
            discrete=frozenset(n for n, m in messages.items() if is_probability(m)),
            place=place,
        )
        problem._check_enumeration()
        return problem._with_rows(rows).reweighted(weights)

    def _with_rows(self, rows: Sequence[str] | None) -> Problem:
        """Return the same problem with the names of the arguments that are rows."""
        plate = self.data_plate
        if plate is None or isinstance(self.source, StreamedRows):
            return self
        others = {p.name: p.size for s in self.sites for p in s.plates if p.dim}
        others.pop(plate.name, None)
        try:
            found = find_rows(self.arguments, plate.size, rows, others)
        except UnclearRowsError as unclear:
            own = {p.name: p.start for p in self.own}
            with self.isolated(), torch.no_grad():
                apart = told_apart(
                    lambda given: self.run(own, given),
                    self.arguments,
                    plate,
                    self.sites,
                )
            if apart is not None:
                return replace(self, rows=apart)
            lengths = self.arguments.lengths().items()
            found = tuple(name for name, length in lengths if length == plate.size)
            return replace(self, rows=found, unclear_rows=str(unclear))
        return replace(self, rows=found)

    def with_data(self, data: Any) -> Problem:
        """Return the same program bound to other data, the rows unweighted.

        Constants may be left out, and categories are coded as they were.
        """
        given = {**self.constants(), **by_name(self.program.function, data)}
        refuse_unequal_rows(self.rows, given)
        return Problem.build(
            self.program.function,
            given,
            rows=[n for n in self.rows if n in given and not self.unclear_rows] or None,
            dtype=self.dtype,
            device=self.device,
            labels=self.arguments.labels,
            place=self.place,
            held_out=True,
        )

    def complete(self) -> Problem:
        """Return the problem with all its rows at hand.

        Raises
        ------
        ValueError
            If they are in a DataLoader, or too many for what is computed of each.
        """
        if self.source is None:
            return self
        if isinstance(self.source, StreamedRows) or self.size > _MANY_ROWS:
            why = (
                "come from a DataLoader"
                if isinstance(self.source, StreamedRows)
                else f"are {self.size}, too many to hold with the draws of each"
            )
            raise ValueError(
                f"the rows of this fit {why}, so they cannot all be shown; score some "
                "with log_score(fit, data), or fit some of them as arrays"
            )
        held = {**self.arguments.values, **self.source.arrays}
        return Problem.build(
            self.program.function,
            {name: Converted(value) for name, value in held.items()},
            rows=self.rows,
            weights=self.weights,
            dtype=self.dtype,
            device=self.device,
            labels=self.arguments.labels,
            place=self.place,
        )

    def isolated(self, seed: int = 0) -> AbstractContextManager[None]:
        """Compute in the problem's floating type and on its device for a block.

        See `probsl.isolation.isolated`.
        """
        return isolated(self.dtype, seed, device=self.device)

    def parts(self) -> Iterator[Batch]:
        """Yield all rows once, as many at a time as are held, unscaled.

        Together the parts are all rows: each row has its weight, and no more.
        """
        if self.source is None:
            yield Batch(self.arguments.values, self.weights)
            return
        for rows, where in self.source.parts():
            weights = None if self.weights is None else self.weights[where]
            yield Batch({**self.arguments.values, **rows}, weights)

    def constants(self) -> dict[str, Any]:
        """Return the arguments that new rows need not bring along."""
        return {
            name: Converted(value)
            for name, value in self.arguments.values.items()
            if name not in self.rows and (self.has_rows or not torch.is_tensor(value))
        }

    def reweighted(self, weights: Any) -> Problem:
        """Return the same problem with other row weights, None for ones."""
        if weights is not None and isinstance(self.source, StreamedRows):
            raise ValueError(
                "weights cannot be matched to the rows of a DataLoader, which come in "
                "any order; give arrays, and batch_size="
            )
        if weights is None:
            return replace(self, weights=None)
        self.refuse_no_rows("weights=")
        return replace(
            self, weights=row_weights(weights, self.size, self.dtype, self.device)
        )

    def refuse_no_rows(self, option: str = "") -> None:
        """Refuse what needs rows, if there are none.

        Parameters
        ----------
        option
            What the user asked for, if it is an option.

        Raises
        ------
        ValueError
            Saying why there are none, and what would give the program some.
        """
        if not self.has_rows:
            why = why_no_rows(self.sites, self.data_plate)
            asked = f"{option} needs rows, but " if option else ""
            raise ValueError(f"{asked}there are no rows to tell apart: {why}")

    def __repr__(self) -> str:
        sites = ", ".join(f"{s.name}: {s.role.value}" for s in self.sites)
        return f"Problem({self.size} rows, {sites})"

    @property
    def own_batch_size(self) -> int | None:
        """How many rows the program draws by itself; None if it draws none."""
        plate, drawn = self.data_plate, self.subsampling
        if plate is None or drawn is None or not self._indexed:
            return None
        return min(drawn.seen[plate.name], self.size)

    @property
    def _indexed(self) -> bool:
        """Whether the program takes its rows by the index of its data plate."""
        return (
            self.has_rows
            and self.source is None
            and self.subsampling is not None
            and self.data_plate is not None
            and self.data_plate.name in self.subsampling.whole
        )

    @property
    def batch_arrays(self) -> dict[str, Any]:
        """What batches take some rows of: the arguments with one entry per row."""
        if self._indexed:
            return {ROW_INDEX: torch.arange(self.size)}
        return {name: self.arguments.values[name] for name in self.rows}

    @property
    def information(self) -> float:
        """How many rows of weight 1 the rows are, by their weights and scales.

        In units of it a common factor of them changes nothing.
        """
        size = self.size * self.own_scale
        if self.weights is None:
            return size
        mean = float(self.weights.double().mean())
        return size * mean if mean > 0 else size

    @property
    def has_rows(self) -> bool:
        """Whether there is a vectorized data plate, whose elements are rows."""
        return self.data_plate is not None and self.data_plate.dim is not None

    @property
    def count(self) -> int:
        """The number of rows at hand: all of them, unless there is a `source`."""
        if self.source is None:
            return self.size
        return len(self.arguments.values[self.source.names[0]])

    @property
    def latents(self) -> tuple[Site, ...]:
        """The continuous latent sites."""
        return tuple(s for s in self.sites if s.latent)

    @property
    def own(self) -> tuple[OwnParameter, ...]:
        """The program's own parameters, which have no prior."""
        return self.program.own

    def named(self, *roles: Role) -> tuple[str, ...]:
        """Return the names of the sites with one of the given roles."""
        return tuple(s.name for s in self.sites if s.role in roles)

    @property
    def moving(self) -> tuple[str, ...]:
        """The observed sites whose support moves with a latent or own parameter."""
        return tuple(s.name for s in self.sites if s.moving)

    def site(self, name: str) -> Site:
        """Return one site by its name."""
        return next(s for s in self.sites if s.name == name)

    def mixed(self) -> set[str]:
        """Return the names of the deterministics that vary with a discrete latent.

        As that is summed out, they have a distribution given the other latents.
        """
        if not self.named(Role.ENUMERATED):
            return set()
        run = Scoring(self.feasible_values(), {s.name for s in self.sites})
        own = {p.name: p.start for p in self.own}
        with self.isolated(), torch.no_grad():
            named_terms(
                lambda: self.run(own, self.arguments.values), run, self._nesting()
            )
        names = self.named(Role.DETERMINISTIC)
        return {n for n in names if run.values[n].dim() > len(self.site(n).shape)}

    def is_local(self, site: Site) -> bool:
        """Return whether a site has one entry per row."""
        plate = self.data_plate
        return plate is not None and plate.holds(site.name, site.plates)

    def weigh_rows(self, name: str, density: Tensor) -> Tensor:
        """Return a latent's log densities with the weights of their rows."""
        plate = self.data_plate
        if self.batch().plain or plate is None or plate.dim is None:
            return density
        if name not in {s.name for s in self.latents if self.is_local(s)}:
            return density
        return self.batch().weigh(density, plate.dim)

    def coordinates(self, names: Sequence[str] | None = None) -> Coordinates:
        """Return the layout of latents and own parameters in one flat vector.

        Parameters
        ----------
        names
            The latents to lay out; all of them by default. The program's own
            parameters always follow, unconstrained, under their names.
        """
        chosen = [s for s in self.latents if names is None or s.name in names]
        entries = [Entry(s.name, bijection(s.support), s.shape) for s in chosen]
        own = [Entry(p.name, _IDENTITY, p.start.shape) for p in self.own]
        return Coordinates([*entries, *own])

    def feasible_values(self) -> dict[str, Tensor]:
        """Return every latent at the problem's place, which is inside its support."""
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
        """Return some rows as a batch that stands for all of them.

        Parameters
        ----------
        index
            Which rows, shape ``[batch]``; of a DataLoader's rows those at hand.
        """
        if isinstance(self.source, StoredRows):
            rows = self.source.at(index)
        else:
            rows = {name: array[index] for name, array in self.batch_arrays.items()}
        weights = None if self.weights is None else self.weights[index]
        return self.batch_of(rows, weights)

    def batch_of(
        self, rows: Mapping[str, Tensor], weights: Tensor | None = None
    ) -> Batch:
        """Return given rows as a batch that stands for all; all rows without any.

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
        """Return observed site -> its value, for the rows at hand or other ones.

        Where it depends on latents or own parameters, it does at those given by
        `values` and `own`, else at where a search would begin.
        """
        parameters = own or {p.name: p.start for p in self.own}
        given = self.arguments.values if arguments is None else arguments
        with self.isolated(), torch.no_grad():
            messages = visit(
                lambda: self.run(parameters, given), values=values, place=self.place
            )
        return {n: m["value"] for n, m in messages.items() if is_observation(m)}

    def observed_digest(self) -> str:
        """Return a fingerprint of the observed values, to tell data apart."""
        digests: dict[str, Any] = {}
        for part in self.parts():
            values = self.observed_values(part.arguments) or {
                # Of a factor it is not known which arguments it observes.
                n: v
                for n, v in part.arguments.items()
                if torch.is_tensor(v)
            }
            for name, value in values.items():
                digest = digests.setdefault(name, hashlib.sha256(name.encode()))
                digest.update(value.double().cpu().numpy().tobytes())
        return ".".join(digest.hexdigest() for digest in digests.values())

    def batch(self) -> Batch:
        """Return the rows at hand as one batch: all of them, or what stands for them.

        See `source`.
        """
        if self.source is None:
            return Batch(self.arguments.values, self.weights, self.row_scale)
        weights = self.weights
        if weights is not None and isinstance(self.source, StoredRows):
            weights = weights[self.source.index]
        scale = self.row_scale * self.size / self.count
        return Batch(self.arguments.values, weights, scale)

    def continuous_program(self) -> Callable[..., Any]:
        """Return the program without the sites that are summed out, for guides.

        Its latents state their supports as ``probsl.supports`` knows them. Its own
        parameters are at their starts, and its modules stay as they are.
        """
        hidden = list(self.named(Role.ENUMERATED))
        own = {p.name: p.start for p in self.own}

        def program(**arguments: Any) -> Any:
            with DeclaredSupports(), Unrolled():
                return self.run(own, arguments)

        return poutine.block(program, hide=hidden) if hidden else program

    def run(self, own: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Any:
        """Call the program with its own parameters `own` (unconstrained)."""
        return self.call(self.program, own, arguments)

    def call(
        self,
        function: Functional,
        own: Mapping[str, Tensor],
        arguments: Mapping[str, Any],
    ) -> Any:
        """Call the program or a guide on the rows that its arguments say."""
        if self.subsampling is None:
            return function(own, arguments)
        given = dict(arguments)
        with self.taking(given.pop(ROW_INDEX, None)):
            return function(own, given)

    def taking(self, index: Tensor | None = None) -> AbstractContextManager[None]:
        """Let the data plate have certain entries for a block; all without `index`."""
        if self.subsampling is None:
            return nullcontext()
        name = self.data_plate.name if self.data_plate else ""
        return self.subsampling.at(name, index)()

    def log_density(
        self,
        values: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        batch: Batch | None = None,
        *,
        prior_weights: Mapping[str, float | Tensor] | None = None,
    ) -> Tensor:
        """Return the log density of data and latents, a scalar.

        Parameters
        ----------
        values
            Latent site -> constrained value; entries of other names are ignored.
        own
            Own parameter -> unconstrained value.
        batch
            The rows; all of them by default.
        prior_weights
            Site -> factor of its log density, 1 where absent; 0 drops the prior, a
            scalar tensor multiplies it whatever it is.
        """
        weights = prior_weights or {}
        terms = self.terms(values, own, batch or self.batch(), _dropped(weights))
        for name, weight in weights.items():
            if name in terms:
                term, axis = terms[name]
                terms[name] = (term * weight, axis)
        return total(terms)

    def log_likelihood_rows(
        self, values: Mapping[str, Tensor], own: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the log likelihood of each row, unweighted, shape ``[size]``.

        Raises
        ------
        ValueError
            If the program has no vectorized data plate.
        """
        self.refuse_no_rows()
        batch = Batch(self.arguments.values)
        return by_row(self.terms(values, own, batch, self._priors))

    def log_likelihood(
        self, values: Mapping[str, Tensor], own: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the log likelihood of all rows with their weights, a scalar."""
        skip = self._priors
        together: dict[str, tuple[Tensor, int | None]] = {}
        for part in self.parts():
            for name, (term, axis) in self.terms(values, own, part, skip).items():
                # What is not of the rows is in every part, and counts once.
                before = (
                    together[name][0] if axis is not None and name in together else 0
                )
                together[name] = (before + term.sum(), axis)
        return total(together)

    def log_density_by_site(
        self,
        values: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        names: Collection[str],
    ) -> dict[str, tuple[Tensor, tuple[str | None, ...]]]:
        """Return the log density of each of some sites, without any weights.

        Parameters
        ----------
        values
            Latent site -> constrained value.
        own
            Own parameter -> unconstrained value.
        names
            The sites, observed or latent.

        Returns
        -------
        dict
            Site -> (log density, the plate behind each axis or None). Sites joined
            by discrete latents have one term, see `probsl.scoring.named_terms`.
        """
        enumerated = self.named(Role.ENUMERATED)
        skip = {s.name for s in self.sites} - {*names, *enumerated}
        return named_terms(
            lambda: self.run(own, self.arguments.values),
            Scoring(values, skip, self.moving, self.discrete),
            self._nesting() if enumerated else None,
        )

    def terms(
        self,
        values: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        batch: Batch,
        skip: Collection[str] = (),
    ) -> dict[str, tuple[Tensor, int | None]]:
        """Return the weighed log density terms of a batch, see `site_terms`.

        Sites named in `skip` are left out.
        """
        scoring = Scoring(values, skip, self.moving, self.discrete)
        terms = site_terms(
            lambda: self.run(own, batch.arguments),
            scoring,
            self.data_plate,
            batch,
            self._nesting() if self.named(Role.ENUMERATED) else None,
        )
        changed = scoring.messages.keys() ^ {s.name for s in self.sites}
        if changed:
            raise ValueError(
                f"site '{min(changed)}' comes and goes between runs; a program must "
                "reach the same sites whatever the values of its latents and whichever "
                "rows it has, as in loops over the longest length of all rows"
            )
        return terms

    def _check_enumeration(self) -> None:
        """Refuse discrete latents that cannot be summed out."""
        if not self.named(Role.ENUMERATED):
            return
        scoring = Scoring(self.feasible_values())
        own = {p.name: p.start for p in self.own}
        with self.isolated(), torch.no_grad():
            refuse_enumeration(
                lambda: self.run(own, self.arguments.values), scoring, self._nesting()
            )

    @property
    def _priors(self) -> set[str]:
        """Names of the sites whose log density is no part of the likelihood."""
        return {s.name for s in self.sites if s.latent or s.scored}

    def edges(
        self, values: Mapping[str, Tensor], own: Mapping[str, Tensor]
    ) -> list[Edge]:
        """Return the edges of observed supports that move with the given values.

        Parameters
        ----------
        values
            Latent site -> constrained value.
        own
            Own parameter -> unconstrained value.
        """
        scoring = Scoring(values, {s.name for s in self.sites})
        arguments = self.arguments.values
        if self.named(Role.ENUMERATED):
            named_terms(lambda: self.run(own, arguments), scoring, self._nesting())
        else:
            with scoring:
                self.run(own, arguments)
        counts, plate = None, self.data_plate
        if self.weights is not None and plate is not None and plate.dim is not None:
            counts = (self.weights > 0).reshape(-1, *[1] * (-plate.dim - 1))
        messages = [scoring.messages[name] for name in self.moving]
        return [e for m in messages for e in edges(m, scored_value(m), counts)]

    def _nesting(self) -> int:
        """Return how many axes on the right plates and batch shapes take."""
        axes = [-p.dim for s in self.sites for p in s.plates if p.dim is not None]
        return max([*axes, *(s.batch_axes for s in self.sites)], default=0)


# Above so many rows nothing is computed that holds every row.
_MANY_ROWS = 1_000_000
_IDENTITY = torch.distributions.transforms.identity_transform


def _row_scale(plate: Plate | None, size: int) -> float:
    if plate is None or plate.size == plate.full_size:
        return 1.0
    return plate.full_size / size


def _runs(
    functional: Functional, arguments: Mapping[str, Any], place: Place
) -> Iterator[Callable[[Mapping[str, Tensor]], Iterator[Tensor]]]:
    """Yield runs of a program that return its log densities and what it reports."""

    def run(own: Mapping[str, Tensor], jitter: float) -> Iterator[Tensor]:
        call = partial(functional, own, arguments)
        messages = visit(call, jitter=jitter, place=place)
        for message in messages.values():
            if is_computed(message):
                yield message["value"]
            yield log_density(message)

    for jitter in (0.1, 0.3):
        yield partial(run, jitter=jitter)


def _dropped(prior_weights: Mapping[str, float | Tensor]) -> set[str]:
    # A tensor is one of many weights under `vmap`, of which nothing can be asked.
    return {
        name
        for name, weight in prior_weights.items()
        if not torch.is_tensor(weight) and weight == 0
    }
