"""Callbacks and the progress bar of a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from probsl.progress import phase

if TYPE_CHECKING:
    from torch import Tensor

    from probsl.contract import Run


# Called with step, loss, point and, for first-order steps, the learning rate.
Callback = Callable[..., Any]


@contextmanager
def watching(run: Run, size: float, total: int | None) -> Iterator[Callback]:
    """Yield the callback of a search: its progress and the user's callbacks.

    Losses are reported as sums over the rows.
    """
    with phase("minimizing", "steps", total) as search:

        def callback(
            step: int, loss: float, x: Tensor, rate: float | None = None
        ) -> bool:
            of_rate = "" if rate is None else f", rate {rate:.2g}"
            search.report(step, f"loss {loss * size:.6g}{of_rate}")
            answers = [each(step, loss * size, x) for each in run.callbacks]
            return any(answers)

        yield callback
