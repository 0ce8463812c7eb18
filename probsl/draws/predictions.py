"""Predictions and deterministic sites for draws of the latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from probsl.data.absent_rows import AbsentArray, refuse_absent
from probsl.data.arguments import bind, by_name, refuse_unequal_rows
from probsl.draws.mapped import Draws, map_draws
from probsl.noise.streams import stream_seed
from probsl.program.generating import Drawing, Generating
from probsl.program.messages import is_computed, is_observation
from probsl.program.saved_problem import SavedProblem
from probsl.program.sites import Role
from probsl.progress import phase

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from probsl.program.problem import Problem
    from probsl.program.sites import Site


def predictive(
    problem: Problem, draws: Draws, own: Draws, data: Any, *, count: int, seed: int
) -> Draws:
    """Draw the observed sites and deterministics for new inputs.

    Parameters
    ----------
    problem
        The problem that was fitted.
    draws
        Latent site -> constrained values, draws on the first axis. Latents with
        one entry per row are drawn again from the program.
    own
        Own parameter -> unconstrained value, if it is not among `draws`.
    data
        The new inputs, in any form that `probsl.fit` takes.
    count
        The number of draws.
    seed
        Seed of the predictions.

    Returns
    -------
    dict
        Site -> values, draws on the first axis.

    Raises
    ------
    ValueError
        If an argument is missing, or a group's size differs from the fitted one.
    """
    observed = problem.sites_with_role(Role.OBSERVED)

    def values_of(messages: Mapping[str, Any]) -> Draws:
        return {
            name: msg["value"]
            for name, msg in messages.items()
            if is_computed(msg) or name in observed
        }

    return generated(problem, draws, own, data, values_of, count=count, seed=seed)


def generated(
    problem: Problem,
    draws: Draws,
    own: Draws,
    data: Any,
    collect: Callable[[Mapping[str, Any]], Draws],
    *,
    count: int,
    seed: int,
) -> Draws:
    """Run the program forward for new inputs, and collect what is asked of each run.

    Parameters
    ----------
    problem, draws, own, data, count, seed
        As for `predictive`.
    collect
        Maps the messages of the sites of a run to named tensors.

    Returns
    -------
    dict
        The tensors, draws on the first axis.
    """
    arguments = new_arguments(problem, data)
    kept = _kept(problem, draws)
    own = {name: value.detach() for name, value in own.items()}
    observed = problem.sites_with_role(Role.OBSERVED)

    def generate(values: Draws) -> Draws:
        # Sites that are still observed, for example for a length, are not predicted.
        generating = Generating(values, redrawn=observed)
        with generating:
            problem.run({n: values.get(n, v) for n, v in own.items()}, arguments)
        return collect(generating.messages)

    evaluating = problem.program.evaluating()
    seed = stream_seed(seed, "predictive")
    try:
        with phase("predicting"), problem.isolated(seed), torch.no_grad(), evaluating:
            return map_draws(generate, kept, count, _length(problem, arguments))
    except Exception as error:
        _annotate_shapes(error, problem, arguments)
        raise


def deterministics(
    problem: Problem, draws: Draws, own: Draws, count: int, *, by_row: bool = False
) -> Draws:
    """Return the deterministic sites of each draw, for the fitted data.

    Those with one entry per row if `by_row`, else the others. Sites that depend on a
    discrete latent, which is summed out, are left to `predictive`.
    """
    arguments = problem.arguments.values
    if isinstance(problem, SavedProblem):
        chosen, arguments = problem.reported, problem.zeros()
    else:
        chosen = deterministic_names(problem, by_row=by_row)
    return evaluated(problem, chosen, arguments, draws, own, count=count)


def refuse_unreported(problem: Problem) -> None:
    """Refuse draws that lack a deterministic site, because the data are absent."""
    if not isinstance(problem, SavedProblem):
        return
    for name in problem.known_point:
        site = next((s for s in problem.sites if s.name == name), None)
        computed = site is not None and site.role is Role.DETERMINISTIC
        if computed and name not in problem.reported:
            refuse_absent(f"on which deterministic site '{name}' depends")


def deterministic_names(problem: Problem, *, by_row: bool) -> tuple[str, ...]:
    """Return the names of the sites that `deterministics` returns."""
    mixed = problem.varying_with_discrete()
    return tuple(
        s.name
        for s in problem.sites
        if s.role is Role.DETERMINISTIC
        and _by_row(problem, s) is by_row
        and s.name not in mixed
    )


def evaluated(
    problem: Problem,
    chosen: Sequence[str],
    arguments: Mapping[str, Any],
    draws: Draws,
    own: Draws,
    *,
    count: int,
) -> Draws:
    """Return some deterministic sites of each draw, for given arguments."""
    if not chosen:
        return {}

    def generate(values: Draws) -> Draws:
        generating = Generating(values)
        with generating:
            problem.run(own, arguments)
        return {name: generating.messages[name]["value"] for name in chosen}

    evaluating = problem.program.evaluating()
    with problem.isolated(), torch.no_grad(), evaluating:
        return map_draws(generate, draws, count, problem.data.held)


def _length(problem: Problem, arguments: Mapping[str, Any]) -> int:
    """Return the number of rows of new arguments."""
    given = [arguments[name] for name in problem.rows if name in arguments]
    lengths = [len(value) for value in given if torch.is_tensor(value) and value.ndim]
    return max(lengths, default=problem.data.held)


def _by_row(problem: Problem, site: Site) -> bool:
    if site.plates or not problem.has_rows:
        return problem.is_local(site)
    # A site outside all plates is identified by its length, if no other plate has it.
    others = {
        p.size for s in problem.sites for p in s.plates if p.name != _name(problem)
    }
    return site.shape[:1] == (problem.data.held,) and problem.data.held not in others


def _name(problem: Problem) -> str:
    return problem.data_plate.name if problem.data_plate else ""


def replicates(
    problem: Problem, draws: Draws, own: Draws, *, count: int, seed: int
) -> tuple[Draws, tuple[str, ...]]:
    """Draw the observed sites again for the fitted rows.

    Unlike `predictive`, it keeps the given latents with one entry per row.

    Parameters
    ----------
    problem, draws, own, count, seed
        As for `predictive`.

    Returns
    -------
    tuple
        Site -> values, draws on the first axis; and the names of the observed
        sites that cannot be drawn, because their distribution has no sampler.
    """
    names = problem.sites_with_role(Role.OBSERVED)
    seed = stream_seed(seed, "predictive")
    return _redrawn(problem, draws, own, names, count=count, seed=seed)


def prior_draws(
    problem: Problem, own: Draws, *, count: int, seed: int
) -> tuple[Draws, tuple[str, ...]]:
    """Draw the latents from the program, whatever it observed.

    Parameters
    ----------
    problem
        The program bound to its data.
    own
        Own parameter -> unconstrained value.
    count
        The number of draws.
    seed
        Seed of the draws.

    Returns
    -------
    tuple
        Latent site -> values, draws on the first axis; and the names of those
        that cannot be drawn: those with improper priors, and all that depend on them.
    """
    names = tuple(s.name for s in problem.latents)
    seed = stream_seed(seed, "prior")
    draws, missing = _redrawn(problem, {}, own, names, count=count, seed=seed)
    for site in problem.latents:
        if site.name in draws and set(site.parents) & set(missing):
            missing = (*missing, site.name)
            del draws[site.name]
    return draws, missing


def _redrawn(
    problem: Problem,
    given: Draws,
    own: Draws,
    names: tuple[str, ...],
    *,
    count: int,
    seed: int,
) -> tuple[Draws, tuple[str, ...]]:
    """Draw some sites from the program; return them, and the names of the others."""
    own = {name: value.detach() for name, value in own.items()}
    missing: set[str] = set()

    def generate(values: Draws) -> Draws:
        drawing = Drawing(values, names, problem.feasible_values(), missing)
        with drawing:
            problem.run(own, problem.arguments.values)
        return {name: drawing.messages[name]["value"] for name in names}

    evaluating = problem.program.evaluating()
    drawing_them = phase("drawing from the program")
    with drawing_them, problem.isolated(seed), torch.no_grad(), evaluating:
        drawn = map_draws(generate, given, count, problem.size)
    return (
        {name: value for name, value in drawn.items() if name not in missing},
        tuple(name for name in names if name in missing),
    )


def new_arguments(problem: Problem, data: Any) -> dict[str, Any]:
    """Bind new inputs; observed arguments are omitted, constants are reused."""
    observed = observed_arguments(problem)
    function, labels = problem.program.function, problem.arguments.labels
    given = {**problem.constants(), **by_name(function, data)}
    optional = problem.program.optional_arguments()
    inputs = {n: v for n, v in given.items() if n not in observed}
    inputs |= {n: None for n in given if n in observed and n not in optional}
    absent = [n for n in problem.rows if n not in optional and n not in inputs]
    if absent and all(name in problem.arguments.values for name in inputs):
        name = absent[0]
        remedy = f"give it as None, {{'{name}': None}}, or declare it with a default"
        raise ValueError(
            f"data lacks '{name}', which the program observes and requires; {remedy}, "
            f"{name}=None"
            if name in observed
            else f"data lacks '{name}', an argument of the program; give it or, if it "
            f"is what the program observes, {remedy}, {name}=None"
        )
    refuse_unequal_rows(problem.rows, inputs)
    return (
        bind(function, inputs, labels=labels).cast(problem.dtype, problem.device).values
    )


def observed_arguments(problem: Problem) -> set[str]:
    """Find the arguments without which an observed site is no longer observed.

    An argument with a default is omitted, and a required one is None.
    """
    if isinstance(problem, SavedProblem):
        return set(problem.observed)
    values = problem.feasible_values()
    own = {p.name: p.start for p in problem.own_parameters}
    arguments = problem.arguments.values

    def observed(given: dict[str, Any]) -> set[str]:
        generating = Generating(values)
        with problem.isolated(), torch.no_grad(), generating:
            problem.run(own, given)
        return {n for n, m in generating.messages.items() if is_observation(m)}

    everything = observed(arguments)
    found = set()
    optional = problem.program.optional_arguments()
    for name, value in arguments.items():
        if value is None:
            continue
        rest_given = {n: v for n, v in arguments.items() if n != name}
        if name not in optional:
            rest_given[name] = None
        try:
            rest = observed(rest_given)
        except Exception:  # the program cannot run without it: it is an input
            continue
        if rest < everything:
            found.add(name)
    return found


def _annotate_shapes(
    error: Exception, problem: Problem, arguments: Mapping[str, Any]
) -> None:
    """Add to an error which arguments have other shapes than in the fit."""
    for name in problem.rows:
        fitted, new = (
            _shape(problem.arguments.values[name]),
            _shape(arguments.get(name)),
        )
        if fitted and new and new[1:] != fitted[1:]:
            error.add_note(
                f"probsl: argument '{name}' has shape {new}, and had "
                f"{fitted} in the fit; give the same columns"
            )


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape of an array, even of an absent one; () of everything else."""
    if isinstance(value, AbsentArray):
        return tuple(value.describe()[0])
    return tuple(value.shape) if torch.is_tensor(value) else ()


def _kept(problem: Problem, draws: Draws) -> Draws:
    local = {s.name for s in problem.latents if problem.is_local(s)}
    return {name: value for name, value in draws.items() if name not in local}
