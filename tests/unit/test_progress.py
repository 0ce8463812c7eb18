"""What a person sees while a computation lasts."""

import io
import sys
import threading
import time
import types
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from tqdm import tqdm

import probsl
from probsl import progress
from probsl.progress import phase, progress_shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


def watch(monkeypatch, screen):
    """Let the screen be standard error, which pytest would replace by its own."""
    seen = types.SimpleNamespace(stderr=screen, modules=sys.modules)
    monkeypatch.setattr(progress, "sys", seen)


@pytest.fixture
def terminal(monkeypatch):
    """Return what a terminal shows, on which phases are shown at once."""
    screen = Terminal()
    watch(monkeypatch, screen)
    monkeypatch.setattr(progress, "_SILENT", 1e-3)
    monkeypatch.setattr(progress, "_UPDATE", 1e-3)
    return screen


def waited(screen, words):
    """Wait until the screen shows some words; the suite's time limit ends it."""
    while words not in screen.getvalue():
        time.sleep(1e-3)
    return screen.getvalue()


def program(y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


DATA = {"y": torch.tensor([1.0, 2.0, 3.0])}


def test_a_phase_that_lasts_is_shown_in_words(terminal):
    with phase("compiling the steps"):
        waited(terminal, "compiling the steps [00:00")


def test_counted_steps_have_a_bar_and_a_remark(terminal):
    with phase("minimizing", "steps", 200) as search:
        search.report(50, "loss 1.5")
        shown = waited(terminal, "50/200")
    assert "minimizing:  25%|" in shown
    assert "loss 1.5" in shown
    assert "?" not in shown
    assert "/s" not in shown


def test_a_short_phase_is_not_shown(terminal, monkeypatch):
    monkeypatch.setattr(progress, "_SILENT", 1e6)
    with phase("predicting"):
        pass
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("chosen", [False, None])
def test_nothing_is_shown_if_it_is_hidden_or_nobody_watches(chosen, monkeypatch):
    screen = Terminal() if chosen is False else io.StringIO()
    watch(monkeypatch, screen)
    monkeypatch.setattr(progress, "_SILENT", 0.0)
    with progress_shown(chosen), phase("predicting") as predicting:
        predicting.report(1)
    probsl.fit(program, DATA, probsl.MAP(), progress=chosen)
    assert screen.getvalue() == ""


def test_a_fit_shows_its_steps_if_asked_even_where_nobody_watches(monkeypatch):
    screen = io.StringIO()
    watch(monkeypatch, screen)
    fit = probsl.fit(program, DATA, probsl.MAP(), progress=True)
    shown = screen.getvalue()
    assert "minimizing" in shown
    assert f"loss {float(fit.losses[-1]):.6g}" in shown
    assert "?" not in shown


def test_a_notebook_counts_as_a_person(monkeypatch):
    watch(monkeypatch, io.StringIO())
    assert not progress._is_interactive()
    kernel = types.SimpleNamespace(
        IPKernelApp=types.SimpleNamespace(initialized=lambda: True)
    )
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", kernel)
    assert progress._is_interactive()


CALLS = {
    "running the program once": lambda fit: probsl.fit(program, DATA, probsl.MAP()),
    "computing the curvature": lambda fit: probsl.fit(program, DATA, probsl.MAP()),
    "compiling the steps": lambda fit: probsl.fit(
        program, DATA, probsl.MAP(optimizer=torch.optim.Adam, max_steps=2), compile=True
    ),
    "predicting": lambda fit: fit.predict({}, draws=2),
    "scoring rows": lambda fit: probsl.log_score(fit, DATA),
    "scoring the fitted rows": lambda fit: probsl.compare({"fit": fit}),
    "drawing from the program": lambda fit: probsl.to_arviz(fit, draws=2),
}


@pytest.mark.parametrize("words", CALLS)
def test_every_phase_of_a_fit_and_its_results_says_what_it_is(
    words, terminal, monkeypatch
):
    fit = probsl.fit(program, DATA, probsl.SVI(max_steps=2), progress=False)
    said = []
    monkeypatch.setattr(
        progress, "_show", lambda bars, shown, done, silent: said.append(shown.words)
    )
    CALLS[words](fit)
    assert words in said


def test_bars_that_are_switched_off_are_not_shown(terminal, monkeypatch):
    failed = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    monkeypatch.setattr(progress, "_bars", lambda: partial(tqdm, disable=True))
    with progress_shown(True), phase("minimizing", "steps") as search:
        search.report(1)
    assert terminal.getvalue() == ""
    assert failed == []


def interrupted(terminal):
    with phase("minimizing", "steps"):
        waited(terminal, "minimizing")
        raise KeyboardInterrupt


def test_an_interrupted_phase_ends_its_thread(terminal):
    with pytest.raises(KeyboardInterrupt):
        interrupted(terminal)
    before = terminal.getvalue()
    with phase("predicting"):
        waited(terminal, "predicting")
    assert "minimizing" not in terminal.getvalue()[len(before) :]
