"""Steps a second of each tool, burst by burst in turn, in one process."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoDelta

import probsl
from probsl.engine.steps import stochastic
from probsl.engine.steps.stochastic import Watch
from probsl.methods import noisy_search

RATE = 1e-3
# One burst of steps, after which it is the turn of the next tool.
Burst = Callable[[], tuple[int, float]]


@contextmanager
def timed_blocks() -> Iterator[list[tuple[int, float]]]:
    """Note the step and the time after each block of a search."""
    seen: list[tuple[int, float]] = []

    def minimize_stochastic(*arguments: Any, **options: Any) -> Any:
        def callback(step: int, *_: Any) -> bool:
            seen.append((step, time.perf_counter()))
            return False

        return stochastic.minimize_stochastic(
            *arguments, **{**options, "watch": Watch(callback, every_step=False)}
        )

    kept = noisy_search.minimize_stochastic
    noisy_search.minimize_stochastic = minimize_stochastic
    try:
        yield seen
    finally:
        noisy_search.minimize_stochastic = kept


def probsl_burst(
    program: Any, data: Mapping[str, Any], guide: Any, *, steps: int = 2500, **options
) -> Burst:
    """Return a burst of a compiled fit; the first block is a warm-up."""
    adam = functools.partial(torch.optim.Adam, lr=RATE)
    method: Any
    if guide is AutoDelta:
        method = probsl.MAP(optimizer=adam, max_steps=steps)
    else:
        method = probsl.SVI(guide, optimizer=adam, draws=1, max_steps=steps)

    def burst() -> tuple[int, float]:
        with timed_blocks() as seen:
            fit = probsl.fit(program, data, method, compile=True, **options)
        if fit.compiled_from != 1:
            raise RuntimeError(f"the steps of probsl were not compiled: {fit.note}")
        (first, began), (last, ended) = seen[0], seen[-1]
        return last - first, ended - began

    return burst


def pyro_burst(
    program: Any, data: Mapping[str, Any], guide: Any, *, steps: int = 60
) -> Burst:
    """Return a burst of `pyro.infer.SVI` as it comes."""
    pyro.clear_param_store()
    loss = pyro.infer.Trace_ELBO()
    optimizer = pyro.optim.Adam({"lr": RATE})
    svi = pyro.infer.SVI(program, guide(program), optimizer, loss)
    svi.step(**data)

    def burst() -> tuple[int, float]:
        began = time.perf_counter()
        for _ in range(steps):
            svi.step(**data)
        return steps, time.perf_counter() - began

    return burst


def torch_logistic_burst(data: Mapping[str, torch.Tensor], steps: int = 500) -> Burst:
    """Return a burst of a loop written by hand, of the MAP of the logistic program."""
    x, y = data["x"], data["y"]
    w = torch.zeros(x.shape[1], requires_grad=True)
    b = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([w, b], lr=RATE, fused=True)
    loss_of = torch.nn.BCEWithLogitsLoss(reduction="sum")

    def burst() -> tuple[int, float]:
        began = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_of(x @ w + b, y) + (w.square().sum() + b.square()) / 2
            loss.backward()
            optimizer.step()
        return steps, time.perf_counter() - began

    return burst


def torch_network_burst(
    net: torch.nn.Module, data: Mapping[str, torch.Tensor], batch: int, steps: int = 300
) -> Burst:
    """Return a burst of a training loop written by hand, with weight decay."""
    x, y = data["x"], data["y"]
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-3)
    loss_of = torch.nn.MSELoss()

    def burst() -> tuple[int, float]:
        began, taken = time.perf_counter(), 0
        while taken < steps:
            order = torch.randperm(len(x))
            for start in range(0, len(x) - batch + 1, batch):
                index = order[start : start + batch]
                optimizer.zero_grad()
                loss_of(net(x[index]).squeeze(-1), y[index]).backward()
                optimizer.step()
                taken += 1
        return taken, time.perf_counter() - began

    return burst


def numpyro_logistic_burst(
    data: Mapping[str, torch.Tensor], guide: str, steps: int = 5000
) -> Burst:
    """Return a burst of NumPyro, whose whole loop is one compiled program."""
    import jax
    import numpyro
    from numpyro import distributions as dist
    from numpyro.infer import SVI, Trace_ELBO, autoguide

    x, y = (jax.numpy.asarray(data[n].numpy()) for n in ("x", "y"))

    def program(x, y=None):
        prior = dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1)
        w = numpyro.sample("w", prior)
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Bernoulli(logits=x @ w + b), obs=y)

    made = getattr(autoguide, guide)(program)
    svi = SVI(program, made, numpyro.optim.Adam(RATE), Trace_ELBO())
    state = svi.init(jax.random.PRNGKey(0), x, y)

    @jax.jit
    def run(state):
        return jax.lax.fori_loop(0, steps, lambda _, s: svi.update(s, x, y)[0], state)

    jax.block_until_ready(run(state))

    def burst() -> tuple[int, float]:
        began = time.perf_counter()
        jax.block_until_ready(run(state))
        return steps, time.perf_counter() - began

    return burst


def rates(bursts: Mapping[str, Burst], rounds: int = 5) -> dict[str, list[float]]:
    """Return the steps a second of each tool, round by round."""
    found: dict[str, list[float]] = {name: [] for name in bursts}
    for _ in range(rounds):
        for name, burst in bursts.items():
            steps, seconds = burst()
            found[name].append(steps / seconds)
    return found


def ratio(found: Mapping[str, list[float]], one: str, other: str) -> float:
    """Return the median over the rounds of the ratio of two tools."""
    return statistics.median(
        a / b for a, b in zip(found[one], found[other], strict=True)
    )
