"""Where the rows of each step come from: batches of one shape, shuffled or loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from probsl.engine.loaded_rows import LoadedRows
from probsl.engine.shuffled_rows import ShuffledRows
from probsl.loaders import StreamedRows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from probsl.problem import Problem


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
        arrays = problem.batch_arrays
    return ShuffledRows(
        arrays, problem.size, batch_size, seed, problem.weights, dtype=problem.dtype
    )
