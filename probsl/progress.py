"""Shows what a long computation is doing, in words.

A phase is shown once it has lasted for two seconds, on a terminal or in a notebook, by
a thread that also keeps the elapsed time moving while the phase does not report.
"""

from __future__ import annotations

import sys
import threading
import time
import warnings
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# Seconds until a phase is shown, and between two updates.
_SILENT, _UPDATE = 2.0, 0.5
_PLAIN = "{desc} [{elapsed}]"
_ENDLESS = "{desc}: {n_fmt} {unit} [{elapsed}{postfix}]"
_COUNTED = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed}{postfix}]"
)

_chosen: ContextVar[bool | None] = ContextVar("progress", default=None)


@contextmanager
def progress_shown(progress: bool | None) -> Iterator[None]:
    """Show the phases within a block, or hide them.

    Parameters
    ----------
    progress
        True shows them even if they are short, False never; None shows long ones on a
        terminal or in a notebook.
    """
    before = _chosen.set(progress)
    try:
        yield
    finally:
        _chosen.reset(before)


@contextmanager
def phase(words: str, unit: str = "", total: int | None = None) -> Iterator[Phase]:
    """Show a phase while the block runs, if it lasts.

    Parameters
    ----------
    words
        What is going on, as "compiling the steps".
    unit
        What `Phase.report` counts, in the plural; empty if nothing is counted.
    total
        Their number, if it is known.

    Examples
    --------
    >>> from probsl.progress import phase
    >>> with phase("waiting", "minutes", 2) as waiting:
    ...     waiting.report(1, "half of it")
    """
    chosen = _chosen.get()
    current = Phase(words, unit, total)
    if chosen is False or (chosen is None and not _is_interactive()):
        yield current
        return
    bars = _bars()
    done = threading.Event()
    silent = 0.0 if chosen and unit else _SILENT
    thread = threading.Thread(
        target=_show, args=(bars, current, done, silent), daemon=True
    )
    try:
        thread.start()
        yield current
    finally:
        done.set()
        if thread.is_alive():
            thread.join()


@dataclass
class Phase:
    """A phase of a computation.

    Attributes
    ----------
    words
        What is going on.
    unit, total
        What is counted, and how many there are, if known.
    count, note
        The steps done, and a remark, as last reported.
    """

    words: str
    unit: str = ""
    total: int | None = None
    count: int = 0
    note: str = ""
    started: float = field(default_factory=time.monotonic)

    def report(self, count: int, note: str = "") -> None:
        """Say how many steps are done."""
        self.count, self.note = count, note


def _show(bars: Any, phase: Phase, done: threading.Event, silent: float) -> None:
    """Show a phase once it has lasted, until it is done; run by a thread."""
    if done.wait(silent) and silent:
        return
    bar = bars(
        total=phase.total,
        desc=phase.words,
        unit=phase.unit,
        bar_format=_PLAIN if not phase.unit else _COUNTED if phase.total else _ENDLESS,
        leave=bool(phase.unit),
        file=sys.stderr,
    )
    if bar.disable:  # by TQDM_DISABLE=1
        return
    bar.start_t -= time.monotonic() - phase.started
    while True:
        finished = done.is_set()
        bar.n = phase.count
        bar.set_postfix_str(phase.note, refresh=False)
        bar.refresh()
        if finished:
            break
        done.wait(_UPDATE)
    bar.close()


def _bars() -> Any:
    """Return tqdm's bars for a terminal or notebook."""
    with warnings.catch_warnings():
        # Without ipywidgets there are bars of text in a notebook, as on a terminal.
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

    return tqdm


def _is_interactive() -> bool:
    """Return whether someone watches: on a terminal or in a notebook."""
    if sys.stderr is not None and sys.stderr.isatty():
        return True
    # Only a kernel has loaded it.
    kernel = sys.modules.get("ipykernel.kernelapp")
    return kernel is not None and kernel.IPKernelApp.initialized()
