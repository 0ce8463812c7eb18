"""A program bound to data, and its log density."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.data.arguments import by_name, refuse_unequal_rows
from probsl.data.binding import bind_rows
from probsl.data.conversion import Converted
from probsl.data.data_options import DataOptions
from probsl.data.placement import device_of, floating_type
from probsl.data.rows import HeldRows
from probsl.isolation.calls import isolated
from probsl.program.axis_names import name_axes
from probsl.program.bound_program import BoundProgram
from probsl.program.data_plate import (
    data_plate_of,
    observed_elements,
    refuse_other_plate,
)
from probsl.program.dry_run import (
    blaming_batches,
    check_program,
    dry_run,
    refuse_nothing_to_fit,
)
from probsl.program.messages import scored_value
from probsl.program.observed_supports import Edge, edges
from probsl.program.places import Place
from probsl.program.program_errors import annotate
from probsl.program.reached import reached_sites
from probsl.program.row_arguments import named_rows
from probsl.program.scoring import (
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
from probsl.program.sites import Role
from probsl.program.stateless_callable import StatelessCallable
from probsl.program.subsampling import ROW_INDEX

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

_AS_THEY_ARE = DataOptions()


@dataclass(frozen=True, repr=False, eq=False)
class Problem(BoundProgram):
    """The density of a program's latents, given data.

    See `probsl.program.bound_program.BoundProgram` for its attributes.
    """

    @classmethod
    def build(
        cls,
        program: Callable[..., Any],
        data: Any,
        options: DataOptions = _AS_THEY_ARE,
        *,
        labels: Mapping[str, tuple[Any, ...]] | None = None,
        place: Place | None = None,
        held_out: bool = False,
    ) -> Problem:
        """Bind a program to data and collect its sites.

        Parameters
        ----------
        program
            Any Pyro callable.
        data
            Its arguments, see `probsl.fit`.
        options
            How to bind them.
        labels
            Name -> the categories behind the codes of an argument, if known.
        place
            The values of the latents in the first run; others are tried if the program
            fails there.
        held_out
            Whether the data are only to be scored: they may then be outside a
            support that depends on latents.

        Raises
        ------
        ValueError, TypeError
            If the data or the program cannot be fitted; the message names the
            site, the argument or the row.
        """
        check_program(program)
        functional = StatelessCallable(program)
        arguments, rows = bind_rows(program, data, options, labels)
        dtype = floating_type(arguments, functional.floating_types(), options.dtype)
        device = device_of(arguments, functional.devices(), options.device)
        arguments, rows = arguments.cast(dtype, device), rows.read_as(dtype, device)
        with blaming_batches(not rows.complete):
            messages, subsampling, place = dry_run(
                functional,
                arguments,
                dtype,
                device,
                options.rows,
                place=place or Place(),
                held_out=held_out,
            )
        plate = data_plate_of(messages)
        with isolated(dtype, device=device), subsampling():
            try:
                sites = reached_sites(functional, arguments, messages, plate, place)
            except Exception as error:
                annotate(error, arguments, dtype)
                raise
        refuse_nothing_to_fit(sites, functional)
        if rows.complete:
            rows = HeldRows(plate.size if plate else observed_elements(messages))
        refuse_other_plate(plate, rows)
        problem = cls(
            program=functional,
            arguments=arguments,
            dtype=dtype,
            sites=sites,
            data_plate=plate,
            data=rows,
            device=device,
            subsampling=subsampling if subsampling.seen else None,
            own_scale=mean_scale(messages),
            discrete=frozenset(n for n, m in messages.items() if is_probability(m)),
            place=place,
        )
        problem._check_enumeration()
        return problem._with_names(options.rows).reweighted(options.weights)

    def _with_names(self, rows: Sequence[str] | None) -> Problem:
        """Return the same problem with the names of the arguments that are rows."""
        plate = self.data_plate
        if plate is None or self.rows:
            return self
        own = {p.name: p.start for p in self.own_parameters}
        with self.isolated(), torch.no_grad():
            found, unclear = named_rows(
                lambda given: self.run(own, given),
                self.arguments,
                plate,
                self.sites,
                rows,
            )
            arrays = {name: self.arguments.values[name] for name in found}
            if self._indexed:
                arrays = {ROW_INDEX: torch.arange(self.size)}
        held = HeldRows(self.size, found, arrays, unclear=unclear)
        return replace(self, data=held)

    def with_data(self, data: Any) -> Problem:
        """Return the same program bound to other data, the rows unweighted.

        Constants may be omitted, and categories keep their codes.
        """
        given = {**self.constants(), **by_name(self.program.function, data)}
        refuse_unequal_rows(self.rows, given)
        rows = [n for n in self.rows if n in given and not self.data.unclear]
        return Problem.build(
            self.program.function,
            given,
            DataOptions(rows=rows or None, dtype=self.dtype, device=self.device),
            labels=self.arguments.labels,
            place=self.place,
            held_out=True,
        )

    def with_all_rows(self) -> Problem:
        """Return the problem with all its rows loaded.

        Raises
        ------
        ValueError
            If they are in a DataLoader, or too many for results per row.
        """
        if self.data.complete:
            return self
        held = {**self.arguments.values, **self.data.load()}
        problem = Problem.build(
            self.program.function,
            {name: Converted(value) for name, value in held.items()},
            DataOptions(self.rows, self.weights, dtype=self.dtype, device=self.device),
            labels=self.arguments.labels,
            place=self.place,
        )
        return replace(problem, names=self.names)

    def named(
        self,
        dims: Mapping[str, Sequence[str]] | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
    ) -> Problem:
        """Return the same problem with names for its axes, see `probsl.fit`."""
        return replace(self, names=name_axes(self, dims, coords))

    def reweighted(self, weights: Any) -> Problem:
        """Return the same problem with other row weights, None for weights of 1."""
        if weights is not None:
            self.refuse_no_rows("weights=")
        data = self.data.reweighted(weights, self.dtype, self.device)
        return replace(self, data=data)

    def in_double(self) -> Problem:
        """Return the same problem, to be computed in float64."""
        dtype = torch.float64
        if self.dtype == dtype:
            return self
        arguments = self.arguments.cast(dtype, self.device)
        data = self.data.read_as(dtype, self.device)
        if isinstance(data, HeldRows):
            arrays = {n: arguments.values.get(n, a) for n, a in data.arrays.items()}
            weights = None if data.weights is None else data.weights.to(dtype)
            data = replace(data, arrays=arrays, weights=weights)
        return replace(self, dtype=dtype, arguments=arguments, data=data)

    def varying_with_discrete(self) -> set[str]:
        """Return the names of the deterministics that depend on a discrete latent.

        Because it is summed out, they have a distribution given the other latents.
        """
        if not self.sites_with_role(Role.ENUMERATED):
            return set()
        run = Scoring(self.feasible_values(), {s.name for s in self.sites})
        own = {p.name: p.start for p in self.own_parameters}
        with self.isolated(), torch.no_grad():
            named_terms(
                lambda: self.run(own, self.arguments.values), run, self._nesting()
            )
        names = self.sites_with_role(Role.DETERMINISTIC)
        return {n for n in names if run.values[n].dim() > len(self.site(n).shape)}

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
            scalar tensor multiplies it whatever its value.
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
        return by_row(self.likelihood_terms(values, own, batch))

    def likelihood_terms(
        self, values: Mapping[str, Tensor], own: Mapping[str, Tensor], batch: Batch
    ) -> dict[str, tuple[Tensor, int | None]]:
        """Return the terms of the log likelihood of a batch, see `terms`."""
        return self.terms(values, own, batch, self._priors)

    def log_likelihood(
        self, values: Mapping[str, Tensor], own: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the log likelihood of all rows with their weights, a scalar."""
        together: dict[str, tuple[Tensor, int | None]] = {}
        for part in self.all_rows():
            for name, (term, axis) in self.likelihood_terms(values, own, part).items():
                # Terms outside the rows are in every part, and count once.
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
            Site -> (log density, the plate of each dimension or None). Sites joined
            by discrete latents have one term, see `probsl.program.scoring.named_terms`.
        """
        enumerated = self.sites_with_role(Role.ENUMERATED)
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
        """Return the weighted log density terms of a batch, see `site_terms`.

        Sites named in `skip` are left out.
        """
        scoring = Scoring(values, skip, self.moving, self.discrete)
        terms = site_terms(
            lambda: self.run(own, batch.arguments),
            scoring,
            self.data_plate,
            batch,
            self._nesting() if self.sites_with_role(Role.ENUMERATED) else None,
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
        if not self.sites_with_role(Role.ENUMERATED):
            return
        scoring = Scoring(self.feasible_values())
        own = {p.name: p.start for p in self.own_parameters}
        with self.isolated(), torch.no_grad():
            refuse_enumeration(
                lambda: self.run(own, self.arguments.values), scoring, self._nesting()
            )

    def edges(
        self, values: Mapping[str, Tensor], own: Mapping[str, Tensor]
    ) -> list[Edge]:
        """Return the moving boundaries of observed supports at the given values.

        Parameters
        ----------
        values
            Latent site -> constrained value.
        own
            Own parameter -> unconstrained value.
        """
        scoring = Scoring(values, {s.name for s in self.sites})
        arguments = self.arguments.values
        if self.sites_with_role(Role.ENUMERATED):
            named_terms(lambda: self.run(own, arguments), scoring, self._nesting())
        else:
            with scoring:
                self.run(own, arguments)
        counts, plate = None, self.data_plate
        if self.weights is not None and plate is not None and plate.dim is not None:
            counts = (self.weights > 0).reshape(-1, *[1] * (-plate.dim - 1))
        messages = [scoring.messages[name] for name in self.moving]
        return [e for m in messages for e in edges(m, scored_value(m), counts)]


def _dropped(prior_weights: Mapping[str, float | Tensor]) -> set[str]:
    # A tensor is one of many weights under `vmap`, whose value cannot be read.
    return {
        name
        for name, weight in prior_weights.items()
        if not torch.is_tensor(weight) and weight == 0
    }
