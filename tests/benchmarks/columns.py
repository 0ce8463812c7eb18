"""MAP of a logistic regression over its size: python tests/benchmarks/columns.py.

The cost should grow smoothly, so that one column more never costs a multiple. Next to
it is the time of scikit-learn's LogisticRegression with the same penalty, except that
it has none on the intercept. Both use one thread, and alternate.
"""

from __future__ import annotations

import statistics
import time
from functools import partial

import timed_programs as programs
import torch
from sklearn.linear_model import LogisticRegression

import probsl

ROUNDS = 3
# Seconds after which no further round begins.
PATIENCE = 8.0
SIZES = [
    *((1000, columns) for columns in (5, 20, 60, 70, 200, 290, 310, 1000, 5000)),
    *((10_000, columns) for columns in (5, 20, 60, 70, 120, 200, 280)),
    *((10_000, columns) for columns in (290, 300, 320, 500, 1000, 5000)),
    *((100_000, columns) for columns in (5, 20, 70, 290, 310)),
    *((1_000_000, columns) for columns in (5, 20)),
    *((3_000_000, columns) for columns in (5, 20)),
]


def seconds(call: partial[object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    torch.set_num_threads(1)
    probsl.fit(programs.logistic, programs.logistic_data(100, 2), probsl.MAP())
    print(f"{'rows':>10}{'columns':>10}{'probsl':>12}{'scikit-learn':>14}{'ratio':>8}")
    for rows, columns in SIZES:
        data = programs.logistic_data(rows, columns)
        x, y = (value.numpy() for value in data.values())
        rival = LogisticRegression(C=1.0, tol=1e-6, max_iter=1000)
        ours, theirs = [], []
        while len(ours) < ROUNDS and sum(ours + theirs) < PATIENCE:
            ours.append(
                seconds(partial(probsl.fit, programs.logistic, data, probsl.MAP()))
            )
            theirs.append(seconds(partial(rival.fit, x, y)))
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        mine, other = statistics.median(ours), statistics.median(theirs)
        print(
            f"{rows:10,}{columns:10,}{mine:10.2f} s{other:12.2f} s"
            f"{statistics.median(ratios):8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
