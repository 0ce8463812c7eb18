"""Log predictive densities of rows under draws of the latents."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.draws.mapped import Draws, map_draws
from probsl.draws.predictions import _kept
from probsl.noise.streams import stream_seed
from probsl.progress import phase

if TYPE_CHECKING:
    from probsl.program.problem import Problem

# Maximum number of log densities held at a time.
_HELD_ELEMENTS = 20_000_000


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
        Seed of the row's own latents, which are drawn again from the program.

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

    # Some draws at a time: the log densities of all may not fit in memory.
    step, sums = max(1, _HELD_ELEMENTS // max(problem.size, 1)), []
    evaluating = problem.program.evaluating()
    isolated = problem.isolated(stream_seed(seed, "scores"))
    with (
        phase("scoring rows", "draws", count) as scoring,
        isolated,
        torch.no_grad(),
        evaluating,
    ):
        for start in range(0, count, step):
            part = {n: value[start : start + step] for n, value in kept.items()}
            length = min(step, count - start)
            rows = map_draws(score, part, length, problem.size)["row"]
            sums.append(torch.logsumexp(rows, 0))
            sums = [torch.logsumexp(torch.stack(sums), 0)]
            scoring.report(start + length)
    return sums[0] - math.log(count)


def _check_group_sizes(problem: Problem, values: Draws) -> None:
    for site in problem.latents:
        if site.name in values and values[site.name].shape != site.shape:
            raise ValueError(
                f"site '{site.name}' was fitted with shape "
                f"{tuple(values[site.name].shape)}, but the new data give it shape "
                f"{tuple(site.shape)}; score the groups and columns that were fitted"
            )
