"""Steps a second after warm-up, as ratios: python tests/benchmarks/steps.py."""

from __future__ import annotations

import os

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
)

import functools
import statistics
import warnings

import rates
import timed_programs as programs
import torch
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)


def logistic(rounds: int) -> None:
    data = programs.logistic_data()
    print("\nLogistic regression, 1000 x 20: steps a second, and ratios of probsl\n")
    print(f"{'guide':24}{'probsl':>10}{'Pyro':>10}{'torch':>10}{'NumPyro':>10}")
    for guide in (AutoDelta, AutoNormal, AutoMultivariateNormal):
        bursts = {
            "probsl": rates.probsl_burst(programs.logistic, data, guide, steps=10_000),
            "Pyro": rates.pyro_burst(programs.logistic, data, guide),
        }
        if guide is AutoDelta:
            bursts["torch"] = rates.torch_logistic_burst(data)
        try:
            bursts["NumPyro"] = rates.numpyro_logistic_burst(data, guide.__name__)
        except ImportError:
            print("NOT MEASURED: NumPyro, which is not installed")
        found = rates.rates(bursts, rounds)
        rows = {name: statistics.median(v) for name, v in found.items()}
        names = ("probsl", "Pyro", "torch", "NumPyro")
        print(
            f"{guide.__name__:24}"
            + "".join(f"{rows[n]:10.0f}" if n in rows else f"{'':10}" for n in names)
        )
        print(
            f"{'  probsl / other':34}"
            + "".join(
                f"{rates.ratio(found, 'probsl', n):10.2f}" if n in rows else f"{'':10}"
                for n in names[1:]
            )
        )


def six_programs(rounds: int) -> None:
    print("\nSix programs: steps of probsl over steps of pyro.infer.SVI\n")
    guides = {
        "mean-field": AutoNormal,
        "full rank": AutoMultivariateNormal,
        "low rank": functools.partial(AutoLowRankMultivariateNormal, rank=2),
    }
    print(f"{'program':24}" + "".join(f"{name:>12}" for name in guides))
    all_ratios = []
    for name, (program, data) in programs.six().items():
        line = f"{name:24}"
        for label, guide in guides.items():
            # A factor of 2,400 x 2,400 takes either tool its time.
            heavy = name == "network" and label == "full rank"
            own, theirs, turns = (500, 10, 2) if heavy else (1000, 40, rounds)
            bursts = {
                "probsl": rates.probsl_burst(program, data, guide, steps=own),
                "Pyro": rates.pyro_burst(program, data, guide, steps=theirs),
            }
            value = rates.ratio(rates.rates(bursts, turns), "probsl", "Pyro")
            all_ratios.append(value)
            line += f"{value:12.1f}"
        print(line, flush=True)
    print(f"median {statistics.median(all_ratios):.1f}, least {min(all_ratios):.1f}")


def network(rounds: int) -> None:
    program, net = programs.network()
    data = programs.network_data(10_000)
    bursts = {
        "probsl": rates.probsl_burst(program, data, AutoDelta, batch_size=128),
        "torch": rates.torch_network_burst(net, data, 128),
    }
    found = rates.rates(bursts, rounds)
    print("\nNetwork 20-50-1 with priors on all weights, batches of 128\n")
    for name, values in found.items():
        print(f"{name:24}{statistics.median(values):10.0f}")
    print(f"{'probsl / torch':24}{rates.ratio(found, 'probsl', 'torch'):10.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    logistic(5)
    network(5)
    six_programs(3)
