"""Steps and memory of ten million rows on disk: python tests/benchmarks/memory.py."""

from __future__ import annotations

import functools
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import rates
import torch

import probsl

ROWS, FEW, COLUMNS, BATCH = 10_000_000, 10_000, 10, 512
PART = 500_000


def program(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)


def anonymous() -> float:
    """Return the anonymous memory of this process, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return float("nan")


def written(folder: str, rows: int) -> dict[str, np.ndarray]:
    """Write rows to disk a part at a time, and map them."""
    rng = np.random.default_rng(0)
    paths = {name: Path(folder) / f"{name}{rows}.npy" for name in ("x", "y")}
    opened = functools.partial(np.lib.format.open_memmap, mode="w+", dtype=np.float32)
    x, y = opened(paths["x"], shape=(rows, COLUMNS)), opened(paths["y"], shape=(rows,))
    w = np.linspace(-1, 1, COLUMNS)
    for start in range(0, rows, PART):
        part = slice(start, min(start + PART, rows))
        size = part.stop - part.start
        x[part] = rng.standard_normal((size, COLUMNS))
        y[part] = x[part] @ w + rng.standard_normal(size) / 2
    del x, y
    return {name: np.load(path, mmap_mode="r") for name, path in paths.items()}


def main() -> None:
    adam = functools.partial(torch.optim.Adam, lr=1e-3)
    method = probsl.MAP(optimizer=adam, max_steps=5000)
    before = anonymous()
    print(f"anonymous memory after the imports {before:8.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        many, few = written(folder, ROWS), written(folder, FEW)
        few = {name: np.array(array) for name, array in few.items()}
        before = anonymous()

        def burst(data):
            def run():
                with rates.timed_blocks() as seen:
                    probsl.fit(program, data, method, batch_size=BATCH, compile=True)
                (first, began), (last, ended) = seen[1], seen[-1]
                return last - first, ended - began

            return run

        found = rates.rates({"mapped": burst(many), "in memory": burst(few)}, 5)
        above = anonymous() - before
    for name, values in found.items():
        print(f"{name:24}{1e6 / statistics.median(values):8.1f} us a step")
    slower = 1 / rates.ratio(found, "mapped", "in memory")
    print(f"a step of {ROWS} mapped rows takes {slower:.2f} of one of {FEW} in memory")
    print(f"anonymous memory above that after the imports {above:8.0f} MB")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
