"""Many minimizations in parallel, with one vectorized call per evaluation.

Several starts of one problem, or a batch of problems that differ only in numbers (the
weights of the rows, of a prior), are minimized in lockstep by L-BFGS. Each round
evaluates one trial point per search. A good point is accepted; otherwise the trial
moves along its line, so no search waits for the line search of another. Results are
accurate to a tolerance; `probsl.engine.minimize.minimize` classifies a single one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from probsl.engine.minimize.lockstep import Lockstep
from probsl.engine.minimize.search_options import SearchOptions
from probsl.engine.minimize.vectorized import vectorizes
from probsl.isolation.calls import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from probsl.engine.minimize.l1_penalty import L1Penalty
    from probsl.engine.minimize.minimum import Minima

__all__ = ["minimize_many", "vectorizes"]

# Minimum number of rounds for each search, however few the others took.
FEWEST = 20
_DEFAULT = SearchOptions()


def minimize_many(
    objective: Callable[..., Tensor],
    starts: Tensor,
    extra: Any = None,
    options: SearchOptions = _DEFAULT,
    *,
    patience: float = math.inf,
    l1: L1Penalty | None = None,
    callback: Callable[[int, float, Tensor], bool | None] | None = None,
) -> Minima:
    """Minimize a function from many starts, or many functions, in lockstep.

    Parameters
    ----------
    objective
        Maps a tensor [d], and its slice of `extra` if there is one, to a scalar tensor;
        must support `torch.func.vmap` and `torch.func.grad`.
    starts
        Initial points [k, d].
    extra
        Tensors in any nesting of tuples, lists and dicts, each with k entries along its
        first axis: the arguments in which the k problems differ.
    options
        When to stop, and up to how many coordinates a Hessian gives their units. The
        default tolerance is 1e-9, or the 3/4 power of the machine precision if that is
        larger; a step is a round.
    patience
        Once half have converged, the others get this many times the rounds those took,
        but at least 20; searches that lag behind are often on an infinite tail.
    l1
        A penalty, the same for all searches or one per search.
    callback
        Called after each round with its number, the best objective so far and its
        point. Returning True ends the search, like a keyboard interrupt.

    Returns
    -------
    Minima
        The result of each search.

    Notes
    -----
    Each evaluation takes the memory of k single evaluations.

    References
    ----------
    Nocedal and Wright (2006), "Numerical Optimization", chapters 3 and 7. Lewis and
    Overton (2013), Math. Program. 141, on the line search by bisection. Andrew and Gao
    (2007), "Scalable training of L1-regularized log-linear models", ICML.

    Examples
    --------
    >>> import torch
    >>> from probsl.engine.minimize.many import minimize_many
    >>> def distance(x, goal):
    ...     return ((x - goal) ** 2).sum()
    >>> goals = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> minimize_many(distance, torch.zeros(2, 2), goals).x
    tensor([[1., 2.],
            [3., 4.]])
    """
    lockstep = Lockstep(objective, starts, extra, options, l1)
    interrupted = False
    limit: float = options.max_steps
    before = Snapshot()
    try:
        lockstep.begin()
        while len(lockstep.active) and lockstep.round < limit:
            lockstep.advance()
            if callback is not None and callback(lockstep.round, *lockstep.best()):
                raise KeyboardInterrupt  # handled like an interrupt by the user
            half = 2 * int(lockstep.converged.sum()) >= len(starts)
            if half and limit == options.max_steps:
                limit = min(limit, max(FEWEST, patience * lockstep.round))
    except KeyboardInterrupt as error:
        before.recover(error)
        interrupted = True
    return lockstep.minima(interrupted=interrupted)
