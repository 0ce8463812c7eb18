"""Batches of rows: all of them, or shuffled ones of one size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from probsl.problem import Problem
    from probsl.scoring import Batch


def batches(problem: Problem, batch_size: int | None, seed: int) -> Iterator[Batch]:
    """Yield batches without end.

    Parameters
    ----------
    problem
        The program bound to its data.
    batch_size
        Rows per batch; None for all rows each time.
    seed
        Seed of the shuffling.

    Yields
    ------
    Batch
        Each epoch visits every row once; a batch may reach over into the next
        epoch, so that all have one size and every row the same share.

    Examples
    --------
    >>> import pyro, pyro.distributions as dist, torch
    >>> from probsl.engine.batches import batches
    >>> from probsl.problem import Problem
    >>> def program(y=None):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(y)):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> problem = Problem.build(program, {"y": torch.arange(6.0)})
    >>> rows = batches(problem, 2, seed=0)
    >>> seen = torch.cat([next(rows).arguments["y"] for _ in range(3)])
    >>> sorted(seen.tolist())
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    if batch_size is None:
        whole = problem.batch()
        while True:
            yield whole
    generator = torch.Generator().manual_seed(seed)
    pending = torch.zeros(0, dtype=torch.long)
    while True:
        while len(pending) < batch_size:
            epoch = torch.randperm(problem.size, generator=generator)
            pending = torch.cat([pending, epoch])
        yield problem.rows_at(pending[:batch_size])
        pending = pending[batch_size:]
