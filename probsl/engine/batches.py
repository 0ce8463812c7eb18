"""Where the rows of each step come from: batches of one shape, shuffled or loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from probsl.engine.loaded_rows import LoadedRows
from probsl.engine.shuffled_rows import ShuffledRows
from probsl.loaders import StreamedRows
from probsl.scoring import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from probsl.problem import Problem

# Steps that the generator of single batches takes at a time.
_AHEAD = 16


class Blocks(Protocol):
    """Where the rows of each step come from, several steps at a time."""

    batch_size: int

    def take(self, steps: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the next batches.

        Parameters
        ----------
        steps
            How many.

        Returns
        -------
        tuple
            Row argument -> ``[steps, batch, ...]``, and the weights of the rows
            ``[steps, batch]``, or None for ones.
        """
        ...


def rows_of(problem: Problem, batch_size: int, seed: int) -> Blocks:
    """Return where the batches of a problem come from.

    Parameters
    ----------
    problem
        The program bound to its data.
    batch_size
        Rows per batch.
    seed
        Seed of the shuffling.
    """
    source = problem.source
    if isinstance(source, StreamedRows):
        return LoadedRows(
            source.loader,
            source.size,
            batch_size,
            seed,
            read=source.read,
            visited=source.visited,
        )
    if source is not None:
        arrays: Mapping[str, Any] = source.arrays
    else:
        arrays = {name: problem.arguments.values[name] for name in problem.rows}
    return ShuffledRows(
        arrays, problem.size, batch_size, seed, problem.weights, dtype=problem.dtype
    )


def batches(problem: Problem, batch_size: int | None, seed: int) -> Iterator[Batch]:
    """Yield batches without end, each as the data of a program.

    Parameters
    ----------
    problem
        The program bound to its data.
    batch_size
        Rows per batch; None for all rows each time.
    seed
        Seed of the shuffling.

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
    blocks = rows_of(problem, batch_size, seed)
    scale = problem.size / batch_size
    # A loader is not read ahead: its rows may be slow to come by.
    ahead = 1 if isinstance(blocks, LoadedRows) else _AHEAD
    while True:
        rows, weights = blocks.take(ahead)
        for step in range(ahead):
            arguments = {n: r[step] for n, r in rows.items()}
            yield Batch(
                {**problem.arguments.values, **arguments},
                None if weights is None else weights[step],
                scale,
            )
