"""MAP of a logistic regression over its size: python tests/benchmarks/columns.py.

The cost is to grow smoothly, so that one column more never costs a multiple. Beside it
is the time of scikit-learn's LogisticRegression with the same penalty.
"""

from __future__ import annotations

import statistics
import time
from functools import partial

import torch
from sklearn.linear_model import LogisticRegression
from timed_programs import logistic, logistic_data

import probsl

ROUNDS = 3
SIZES = [
    *((1000, columns) for columns in (5, 20, 60, 70, 200, 290, 310, 1000, 5000)),
    *((10_000, columns) for columns in (5, 20, 60, 70, 120, 200, 290, 310, 1000)),
    *((100_000, columns) for columns in (5, 20, 70, 290, 310)),
    (1_000_000, 20),
    (3_000_000, 5),
]


def seconds(call: partial[object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'rows':>10}{'columns':>10}{'probsl':>12}{'scikit-learn':>14}{'ratio':>8}")
    for rows, columns in SIZES:
        data = logistic_data(rows, columns)
        x, y = (value.numpy() for value in data.values())
        rival = LogisticRegression(C=1.0, tol=1e-6, max_iter=1000)
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(seconds(partial(probsl.fit, logistic, data, probsl.MAP())))
            theirs.append(seconds(partial(rival.fit, x, y)))
        mine, other = statistics.median(ours), statistics.median(theirs)
        print(
            f"{rows:10,}{columns:10,}{mine:10.2f} s{other:12.2f} s{mine / other:8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
