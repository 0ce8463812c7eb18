"""Callbacks and the progress bar of a search."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from probsl.contract import Run


# Called with step, loss, point and, for first-order steps, the learning rate.
Callback = Callable[..., Any]


@contextmanager
def watching(run: Run, size: float, total: int | None) -> Iterator[Callback]:
    """Yield the callback of a search: a progress bar and the user's callbacks.

    Losses are reported as sums over the rows.
    """
    show = sys.stderr.isatty() if run.progress is None else run.progress
    bar = None
    if show:
        from tqdm.auto import tqdm

        bar = tqdm(total=total, unit="step")

    def callback(step: int, loss: float, x: Tensor, rate: float | None = None) -> bool:
        if bar is not None:
            bar.update(step - bar.n)
            details = {} if rate is None else {"rate": f"{rate:.2g}"}
            bar.set_postfix(loss=f"{loss * size:.6g}", **details, refresh=False)
        answers = [each(step, loss * size, x) for each in run.callbacks]
        return any(answers)

    try:
        yield callback
    finally:
        if bar is not None:
            bar.close()
