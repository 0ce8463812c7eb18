"""Why which search: python tests/benchmarks/choice.py.

Points: L-BFGS (up to 300 coordinates finished by Newton's method) against first-order
steps, by the number of coordinates.
Distributions: fixed draws against noisy steps, by the number of latents. The answer of
either is scored by its objective; what it lacks is in nats.
"""

from __future__ import annotations

import functools
import time

import timed_programs as programs
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import probsl

ADAM = functools.partial(torch.optim.Adam, lr=0.03)


def points() -> None:
    print("\nMAP of a logistic regression with 2,000 rows, and of a network\n")
    print(f"{'coordinates':>12}{'L-BFGS':>12}{'Adam':>12}{'Adam lacks':>12}")
    cases = [
        (programs.logistic, programs.logistic_data(2000, columns))
        for columns in (20, 100, 300, 600, 3000, 10_000)
    ]
    cases.append((programs.network()[0], programs.network_data()))
    for program, data in cases:
        seconds, fits = [], []
        for method in (probsl.MAP(), probsl.MAP(optimizer=ADAM)):
            began = time.perf_counter()
            fits.append(probsl.fit(program, data, method))
            seconds.append(time.perf_counter() - began)
        lacks = _height(fits[1]) - _height(fits[0])
        size = sum(v.numel() for v in fits[0].posterior.point().values())
        print(f"{size:12}{seconds[0]:10.2f} s{seconds[1]:10.2f} s{lacks:12.4f}")


def _height(fit: probsl.Fit) -> float:
    own = fit.posterior.own
    density = fit.problem.log_density(fit.posterior.point(), own)
    return -float(density)


def distributions() -> None:
    print("\nSVI of a logistic regression with 1,000 rows\n")
    title = f"{'guide':24}{'columns':>8}{'fixed draws':>14}{'noisy':>12}"
    print(f"{title}{'sd ratio':>10}")
    for guide in (AutoNormal, AutoMultivariateNormal):
        for columns in (5, 20, 60):
            data = programs.logistic_data(1000, columns)
            seconds, fits = [], []
            for method in (probsl.SVI(guide), probsl.SVI(guide, optimizer=ADAM)):
                began = time.perf_counter()
                fits.append(probsl.fit(programs.logistic, data, method))
                seconds.append(time.perf_counter() - began)
            ratio = fits[1].summary()["sd"] / fits[0].summary()["sd"]
            print(
                f"{guide.__name__:24}{columns:8}{seconds[0]:12.2f} s"
                f"{seconds[1]:10.2f} s{ratio.mean():10.3f}"
                f"   {fits[0].note.split(', ')[-1]}"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    points()
    distributions()
