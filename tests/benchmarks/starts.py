"""Many starts against one: python tests/benchmarks/starts.py."""

from __future__ import annotations

import statistics
import time

import timed_programs as programs
import torch

import probsl

STARTS, ROUNDS = 32, 7


def main() -> None:
    logistic = (programs.logistic, programs.logistic_data())
    mixture = programs.six()["mixture"]
    print(f"{'fit':32}{'1 start':>10}{f'{STARTS} starts':>12}{'ratio':>8}")
    for name, (program, data) in {"logistic": logistic, "mixture": mixture}.items():
        for method in (probsl.MLE, probsl.MAP):
            seconds: dict[int, list[float]] = {1: [], STARTS: []}
            for _ in range(ROUNDS + 1):
                for starts, times in seconds.items():
                    began = time.perf_counter()
                    probsl.fit(program, data, method(starts=starts))
                    times.append(time.perf_counter() - began)
            pairs = zip(seconds[STARTS][1:], seconds[1][1:], strict=True)
            ratio = statistics.median(many / one for many, one in pairs)
            one, many = (statistics.median(t[1:]) for t in seconds.values())
            title = f"{name} {method.__name__}"
            print(f"{title:32}{one * 1e3:7.0f} ms{many * 1e3:9.0f} ms{ratio:8.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
