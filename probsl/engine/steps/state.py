"""The state of a stochastic search as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class SearchState:
    """The state of a stochastic search after some step.

    It consists of tensors, numbers, strings, lists and dictionaries, so that
    ``torch.save(vars(state), file)`` can be read by
    ``SearchState(**torch.load(file))``, which does not run any code of the file. It
    shares no memory with the search.

    Attributes
    ----------
    kind
        The optimizer, the number of coordinates and the steps per block, which have to
        be the same in a search that goes on from here.
    losses
        The objective at every step, shape ``[steps]``, float64.
    place
        Steps taken of the current block; 0 if the next step begins one.
    walk
        The point, its average, and the state of the optimizer and the scheduler.
    stages
        The fields of `probsl.engine.steps.stages.Stages`.
    feed
        The positions in the rows and in the noise at the beginning of the block.
    digest
        A hash of the inputs of the block's first step; empty if `place` is 0.
    generators
        The states of torch's generators, for objectives that draw from them.
    compiled_from
        The first compiled step; None if there was none.
    """

    kind: str
    losses: Tensor
    place: int
    walk: dict[str, Any]
    stages: dict[str, Any]
    feed: dict[str, Any]
    digest: str
    generators: dict[str, Tensor]
    compiled_from: int | None = None

    def check_kind(self, kind: str) -> None:
        """Refuse to go on with another kind of search.

        Raises
        ------
        ValueError
            Stating both kinds.
        """
        if kind != self.kind:
            raise ValueError(
                f"the state is that of a search by {self.kind}, and this is one by "
                f"{kind}; go on with the same program, rows and optimizer"
            )

    def check_inputs(self, digest: str) -> None:
        """Refuse to go on with other inputs than those of the block under way.

        Raises
        ------
        ValueError
            If the rows or the noise differ.
        """
        if digest != self.digest:
            raise ValueError(
                "the rows or the noise of the block of steps differ from those at "
                "which the state was read; give the same data, seed and batch_size, "
                "and a DataLoader whose epochs are the same whenever they are read "
                "from the same random state"
            )
