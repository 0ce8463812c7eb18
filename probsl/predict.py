"""What draws of the latents imply: predictions, deterministics and log scores."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from probsl.data import bind, by_name
from probsl.isolation import isolated
from probsl.random_functions import independent_draws
from probsl.sites import Role, is_deterministic, is_observation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from probsl.problem import Problem

# Elements that one vectorized pass may hold per site, to bound its memory.
_CHUNK_ELEMENTS = 4_000_000

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
        generating = Generating(values)
        with generating:
            problem.run(own, arguments)
        return {
            name: msg["value"]
            for name, msg in generating.messages.items()
            if is_deterministic(msg) or name in observed
        }

    with isolated(problem.dtype, seed), torch.no_grad():
        return map_draws(generate, kept, count, problem.size)


def deterministics(problem: Problem, draws: Draws, own: Draws, count: int) -> Draws:
    """Return the deterministic sites of each draw, for the fitted data.

    Sites with one entry per row are left to `predictive`.
    """
    chosen = [
        s.name
        for s in problem.sites
        if s.role is Role.DETERMINISTIC
        and not problem.is_local(s)
        and not (problem.has_rows and s.shape[:1] == (problem.size,))
    ]
    if not chosen:
        return {}

    def generate(values: Draws) -> Draws:
        generating = Generating(values)
        with generating:
            problem.run(own, problem.arguments.values)
        return {name: generating.messages[name]["value"] for name in chosen}

    with isolated(problem.dtype), torch.no_grad():
        return map_draws(generate, draws, count, problem.size)


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

    with isolated(problem.dtype, seed), torch.no_grad():
        rows = map_draws(score, kept, count, problem.size)["row"]
    return torch.logsumexp(rows, 0) - math.log(count)


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

    try:
        with independent_draws():
            mapped = torch.func.vmap(one, randomness="different", chunk_size=chunk)
            result: Draws = mapped(index, draws)
            return result
    except Exception:
        # Whatever vmap could not do, a plain loop shows as the program's own error.
        rows = [function({n: v[i] for n, v in draws.items()}) for i in range(count)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class Generating(Messenger):
    """Runs a program forward with some latents given, and notes every site."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._values = values
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


def new_arguments(problem: Problem, data: Any) -> dict[str, Any]:
    """Bind new inputs; observed arguments are left out, constants carried over."""
    observed = _observed_arguments(problem)
    fitted = problem.arguments
    given = problem.program.function
    data = {
        n: v
        for n, v in by_name(problem.program.function, data).items()
        if n not in observed
    }
    for name, value in fitted.values.items():
        if name not in data and name not in problem.rows and name not in observed:
            data[name] = value
    return bind(given, data, labels=fitted.labels).cast(problem.dtype).values


def _observed_arguments(problem: Problem) -> set[str]:
    """Find the arguments without which an observed site is observed no more."""
    values = problem.feasible_values()
    own = {p.name: p.start for p in problem.own}
    arguments = problem.arguments.values

    def observed(given: dict[str, Any]) -> set[str]:
        generating = Generating(values)
        with isolated(problem.dtype), torch.no_grad(), generating:
            problem.run(own, given)
        return {n for n, m in generating.messages.items() if is_observation(m)}

    everything = observed(arguments)
    found = set()
    for name in problem.program.optional_arguments():
        if arguments.get(name) is None:
            continue
        try:
            rest = observed({n: v for n, v in arguments.items() if n != name})
        except Exception:  # the program cannot run without it: it is an input
            continue
        if rest < everything:
            found.add(name)
    return found


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
