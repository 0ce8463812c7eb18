"""What draws of the latents imply: predictions, deterministics and log scores."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from probsl.data import bind, by_name, refuse_unequal_rows
from probsl.isolation import hold, marked, own_generator
from probsl.random_functions import independent_draws
from probsl.sites import Role
from probsl.visits import is_computed, is_observation

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from probsl.problem import Problem
    from probsl.sites import Site

# Elements that one vectorized pass may hold per site, to bound its memory.
_CHUNK_ELEMENTS = 4_000_000
# Log densities held at a time.
_HELD_ELEMENTS = 20_000_000

# How often to vectorize where another thread gets in the way.
_ATTEMPTS = 3

Draws = dict[str, Tensor]


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
        one entry per row are drawn anew from the program.
    own
        Own parameter -> unconstrained value.
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
    arguments = new_arguments(problem, data)
    kept = _kept(problem, draws)
    own = {name: value.detach() for name, value in own.items()}
    observed = problem.named(Role.OBSERVED)

    def generate(values: Draws) -> Draws:
        # What a program still observes, as it needs its length say, is no prediction.
        generating = Generating(values, anew=observed)
        with generating:
            problem.run(own, arguments)
        return {
            name: msg["value"]
            for name, msg in generating.messages.items()
            if is_computed(msg) or name in observed
        }

    evaluating = problem.program.evaluating()
    try:
        with problem.isolated(seed), torch.no_grad(), evaluating:
            return map_draws(generate, kept, count, _length(problem, arguments))
    except Exception as error:
        _annotate_shapes(error, problem, arguments)
        raise


def deterministics(
    problem: Problem, draws: Draws, own: Draws, count: int, *, by_row: bool = False
) -> Draws:
    """Return the deterministic sites of each draw, for the fitted data.

    Those with one entry per row if `by_row`, else the others. Sites that vary with a
    discrete latent, which is summed out, are left to `predictive`.
    """
    mixed = problem.mixed()
    chosen = [
        s.name
        for s in problem.sites
        if s.role is Role.DETERMINISTIC
        and _by_row(problem, s) is by_row
        and s.name not in mixed
    ]
    if not chosen:
        return {}

    def generate(values: Draws) -> Draws:
        generating = Generating(values)
        with generating:
            problem.run(own, problem.arguments.values)
        return {name: generating.messages[name]["value"] for name in chosen}

    evaluating = problem.program.evaluating()
    with problem.isolated(), torch.no_grad(), evaluating:
        return map_draws(generate, draws, count, problem.count)


def _length(problem: Problem, arguments: Mapping[str, Any]) -> int:
    """Return how many rows new arguments have."""
    given = [arguments[name] for name in problem.rows if name in arguments]
    lengths = [len(value) for value in given if torch.is_tensor(value) and value.ndim]
    return max(lengths, default=problem.count)


def _by_row(problem: Problem, site: Site) -> bool:
    if site.plates or not problem.has_rows:
        return problem.is_local(site)
    # One outside of all plates is told by its length, if no other plate has that.
    others = {
        p.size for s in problem.sites for p in s.plates if p.name != _name(problem)
    }
    return site.shape[:1] == (problem.count,) and problem.count not in others


def _name(problem: Problem) -> str:
    return problem.data_plate.name if problem.data_plate else ""


def replicates(
    problem: Problem, draws: Draws, own: Draws, *, count: int, seed: int
) -> tuple[Draws, tuple[str, ...]]:
    """Draw the observed sites anew for the fitted rows.

    Unlike `predictive`, it takes the latents with one entry per row as they are.

    Parameters
    ----------
    problem, draws, own, count, seed
        As for `predictive`.

    Returns
    -------
    tuple
        Site -> values, draws on the first axis; and the names of the observed
        sites that cannot be drawn, for their distribution has no sampler.
    """
    names = problem.named(Role.OBSERVED)
    return _anew(problem, draws, own, names, count=count, seed=seed)


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
        that cannot be drawn: the improper ones and all that depend on them.
    """
    names = tuple(s.name for s in problem.latents)
    draws, missing = _anew(problem, {}, own, names, count=count, seed=seed)
    for site in problem.latents:
        if site.name in draws and set(site.parents) & set(missing):
            missing = (*missing, site.name)
            del draws[site.name]
    return draws, missing


def _anew(
    problem: Problem,
    given: Draws,
    own: Draws,
    names: tuple[str, ...],
    *,
    count: int,
    seed: int,
) -> tuple[Draws, tuple[str, ...]]:
    """Draw some sites from the program; return them, and the names that cannot be."""
    own = {name: value.detach() for name, value in own.items()}
    missing: set[str] = set()

    def generate(values: Draws) -> Draws:
        drawing = Drawing(values, names, problem.feasible_values(), missing)
        with drawing:
            problem.run(own, problem.arguments.values)
        return {name: drawing.messages[name]["value"] for name in names}

    evaluating = problem.program.evaluating()
    with problem.isolated(seed), torch.no_grad(), evaluating:
        drawn = map_draws(generate, given, count, problem.size)
    return (
        {name: value for name, value in drawn.items() if name not in missing},
        tuple(name for name in names if name in missing),
    )


def log_score_rows(
    problem: Problem, draws: Draws, own: Draws, *, count: int, seed: int = 0
) -> Tensor:
    """Return the log predictive density of each row under draws of the latents.

    Parameters
    ----------
    problem
        The program bound to the rows to score.
    draws
        Latent site -> constrained values, draws on the first axis.
    own
        Own parameter -> unconstrained value.
    count
        The number of draws.
    seed
        Seed of the row's own latents, which are drawn anew from the program.

    Returns
    -------
    Tensor
        ``log mean_s p(row | draw s)``, shape ``[rows]``.
    """
    kept = _kept(problem, draws)
    own = {name: value.detach() for name, value in own.items()}

    def score(values: Draws) -> Draws:
        _check_group_sizes(problem, values)
        return {"row": problem.log_likelihood_rows(values, own)}

    # The log densities of some draws at a time: those of all may not fit in memory.
    step, sums = max(1, _HELD_ELEMENTS // max(problem.size, 1)), []
    evaluating = problem.program.evaluating()
    with problem.isolated(seed), torch.no_grad(), evaluating:
        for start in range(0, count, step):
            part = {name: value[start : start + step] for name, value in kept.items()}
            length = min(step, count - start)
            rows = map_draws(score, part, length, problem.size)["row"]
            sums.append(torch.logsumexp(rows, 0))
            sums = [torch.logsumexp(torch.stack(sums), 0)]
    return sums[0] - math.log(count)


def map_draws(
    function: Callable[[Draws], Draws], draws: Draws, count: int, size: int
) -> Draws:
    """Apply a function to every draw, vectorized where torch can.

    Parameters
    ----------
    function
        From the values of one draw to a dict of tensors.
    draws
        Values with draws on the first axis.
    count
        The number of draws.
    size
        The number of rows, which bounds how many draws are taken at a time.

    Returns
    -------
    dict
        The results with draws on a new first axis. A function that
        `torch.func.vmap` refuses (a branch on a value, a rejection sampler) is
        applied to one draw after the other.
    """
    chunk = max(1, min(count, _CHUNK_ELEMENTS // max(size, 1)))
    index = torch.arange(count)

    def one(position: Tensor, values: Draws) -> Draws:
        # A result that varies with no draw still needs one entry per draw.
        blank = (position * 0).to(torch.get_default_dtype())
        return {
            name: value + (blank if value.is_floating_point() else (position * 0))
            if value.dtype != torch.bool
            else value | (position < 0)
            for name, value in function(values).items()
        }

    hold()
    rewind = marked()
    with independent_draws(own_generator):
        for _ in range(_ATTEMPTS):
            try:
                mapped = torch.func.vmap(one, randomness="different", chunk_size=chunk)
                result: Draws = mapped(index, draws)
                return result
            except Exception:
                # It may have failed by a flag that another thread has changed.
                if not hold():
                    break
                rewind()
        # Whatever vmap could not do, a plain loop shows as the program's own error.
        rows = [function({n: v[i] for n, v in draws.items()}) for i in range(count)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class Generating(Messenger):
    """Runs a program forward with some latents given, and notes every site.

    Observed sites named in `anew` are drawn.
    """

    def __init__(
        self, values: Mapping[str, Tensor], anew: Collection[str] = ()
    ) -> None:
        super().__init__()
        self._values = values
        self._anew = anew
        self.messages: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            return
        name = msg["name"]
        self.messages[name] = msg
        if name in self._values and not msg["is_observed"]:
            value = self._values[name]
            _check_size(msg, value)
            msg["value"] = value
            msg["done"] = True
        elif name in self._anew and msg["is_observed"]:
            self._draw(msg)

    def _draw(self, msg: Any) -> None:
        msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        # A distribution made outside the program may draw in another floating type.
        value, dtype = msg["value"], torch.get_default_dtype()
        if torch.is_tensor(value) and value.is_floating_point():
            msg["value"] = value.to(dtype)


class Drawing(Generating):
    """Runs a program forward and draws some sites anew, observed or not.

    A site without a sampler, such as one with an improper prior, keeps its observed
    value or takes that of `instead`, and its name is added to `missing`.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        anew: Collection[str],
        instead: Mapping[str, Tensor],
        missing: set[str],
    ) -> None:
        super().__init__(values)
        self._sites = anew
        self._instead = instead
        self._missing = missing

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        name = msg["name"]
        if name not in self._sites:
            return
        try:
            msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])
        except NotImplementedError:
            msg["value"] = self._instead.get(name, msg["value"])
            self._missing.add(name)
        msg["done"] = True


def new_arguments(problem: Problem, data: Any) -> dict[str, Any]:
    """Bind new inputs; observed arguments are left out, constants carried over."""
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
    """Find the arguments without which an observed site is observed no more.

    An argument with a default is left out, and a required one is None.
    """
    values = problem.feasible_values()
    own = {p.name: p.start for p in problem.own}
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
    """Add to an error which arguments have other columns than in the fit."""
    for name in problem.rows:
        fitted, new = problem.arguments.values[name], arguments.get(name)
        if torch.is_tensor(new) and new.shape[1:] != fitted.shape[1:]:
            error.add_note(
                f"probsl: argument '{name}' has shape {tuple(new.shape)}, and had "
                f"{tuple(fitted.shape)} in the fit; give the same columns"
            )


def _kept(problem: Problem, draws: Draws) -> Draws:
    local = {s.name for s in problem.latents if problem.is_local(s)}
    return {name: value for name, value in draws.items() if name not in local}


def _check_size(msg: Any, value: Tensor) -> None:
    shape = torch.Size(msg["fn"].shape())
    if value.shape != shape:
        raise ValueError(
            f"site '{msg['name']}' was fitted with shape {tuple(value.shape)}, but the "
            f"new data give it shape {tuple(shape)}; predict for the groups and "
            "columns that were fitted"
        )


def _check_group_sizes(problem: Problem, values: Draws) -> None:
    for site in problem.latents:
        if site.name in values and values[site.name].shape != site.shape:
            raise ValueError(
                f"site '{site.name}' was fitted with shape "
                f"{tuple(values[site.name].shape)}, but the new data give it shape "
                f"{tuple(site.shape)}; score the groups and columns that were fitted"
            )
