"""Whole cold processes, from import to answer: python tests/benchmarks/cold.py.

Every run is a new process. Tools take turns, and the ratios are of the medians.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROWS, COLUMNS = 10_000, 20

LOAD = """
import numpy as np
data = np.load({path!r})
x, y = data["x"], data["y"]
"""

PROBSL = """
import probsl, pyro, pyro.distributions as dist, torch
from pyro.infer.autoguide import AutoNormal
torch.set_num_threads(1)
def program(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w + b), obs=y)
fit = probsl.fit(program, {"x": x, "y": y}, METHOD)
loc = np.append(fit.point()["w"].numpy(), fit.point()["b"].numpy())
sd = 0 * loc
if METHOD_NAME == "SVI":
    sd = fit.summary()["sd"].to_numpy()
"""

NUMPYRO = """
import jax, numpyro, numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO, autoguide
def program(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=x @ w + b), obs=y)
guide = autoguide.GUIDE(program)
svi = SVI(program, guide, numpyro.optim.OPTIMIZER, Trace_ELBO())
result = svi.run(jax.random.PRNGKey(0), STEPS, x, y, progress_bar=False)
p = {n: np.asarray(v) for n, v in result.params.items()}
loc = np.append(p["w_auto_loc"], p["b_auto_loc"])
sd = np.append(p["w_auto_scale"], p["b_auto_scale"]) if "w_auto_scale" in p else 0 * loc
"""

PYMC = """
import pymc as pm
with pm.Model():
    w = pm.Normal("w", 0.0, 1.0, shape=x.shape[1])
    b = pm.Normal("b", 0.0, 1.0)
    pm.Bernoulli("y", logit_p=x @ w + b, observed=y)
    point = pm.find_MAP(progressbar=False)
loc, sd = np.append(point["w"], point["b"]), np.zeros(x.shape[1] + 1)
"""

SKLEARN = """
from sklearn.linear_model import LogisticRegression
model = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(x, y)
loc, sd = np.append(model.coef_[0], model.intercept_), np.zeros(x.shape[1] + 1)
"""

STATSMODELS = """
import statsmodels.api as sm
result = sm.Logit(y, np.column_stack([x, np.ones(len(x))])).fit(disp=0)
loc, sd = result.params, np.zeros(x.shape[1] + 1)
"""

SAVE = """
np.savez({out!r}, loc=loc, sd=sd)
"""


def _numpyro(guide: str, optimizer: str, steps: int) -> str:
    code = NUMPYRO.replace("GUIDE", guide).replace("OPTIMIZER", optimizer)
    return code.replace("STEPS", str(steps))


def _probsl(method: str) -> str:
    name = "SVI" if "SVI" in method else "MAP"
    code = PROBSL.replace("METHOD_NAME", repr(name))
    return code.replace("METHOD", method)


POINTS = {
    "probsl MAP": _probsl("probsl.MAP()"),
    # Its own fastest way to a mode, and the usual one.
    "NumPyro AutoDelta, BFGS": _numpyro("AutoDelta", "Minimize()", 1),
    "NumPyro AutoDelta, 2000 Adam": _numpyro("AutoDelta", "Adam(0.01)", 2000),
    "PyMC find_MAP": PYMC,
    "scikit-learn (no prior on b)": SKLEARN,
    "statsmodels (no prior)": STATSMODELS,
}
DISTRIBUTIONS = {
    "probsl SVI(AutoNormal)": _probsl("probsl.SVI(AutoNormal)"),
    "NumPyro AutoNormal, 5000 Adam": _numpyro("AutoNormal", "Adam(0.005)", 5000),
}
IMPORTS = {"import pyro": "import pyro", "import probsl": "import probsl"}
NEEDS = {
    "NumPyro": "numpyro",
    "PyMC": "pymc",
    "scikit": "sklearn",
    "statsm": "statsmodels",
}


def _missing(name: str) -> bool:
    modules = [m for start, m in NEEDS.items() if name.startswith(start)]
    return any(importlib.util.find_spec(module) is None for module in modules)


def timed(code: str) -> float:
    """Return the wall time of a process that runs the code."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false "
        "intra_op_parallelism_threads=1",
    }
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, env=environment
    )
    return time.perf_counter() - began


def measure(codes: dict[str, str], rounds: int) -> dict[str, float]:
    """Return the median wall time of each tool, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in codes if not _missing(name)}
    for name in codes.keys() - seconds.keys():
        print(f"NOT MEASURED: {name}, which is not installed")
    for _ in range(rounds):
        for name, times in seconds.items():
            times.append(timed(codes[name]))
    return {name: statistics.median(times) for name, times in seconds.items()}


def elbo(x, y, loc, sd, draws: int = 10_000) -> tuple[float, float]:
    """Return the ELBO of a mean-field Gaussian at fresh draws, and its error."""
    rng = np.random.default_rng(1)
    values = []
    for _ in range(draws // 500):
        z = loc + sd * rng.standard_normal((500, len(loc)))
        logits = z[:, :-1] @ x.T + z[:, -1:]
        likelihood = (y * logits - np.logaddexp(0, logits)).sum(1)
        prior = (-(z**2) / 2 - np.log(2 * np.pi) / 2).sum(1)
        values.append(likelihood + prior)
    entropy = (np.log(sd) + np.log(2 * np.pi * np.e) / 2).sum()
    all_values = np.concatenate(values)
    error = all_values.std() / np.sqrt(len(all_values))
    return float(all_values.mean() + entropy), float(error)


def table(seconds: dict[str, float], first: str) -> None:
    for name, value in seconds.items():
        shown = "" if name == first else f"{seconds[first] / value:8.2f}"
        print(f"{name:34}{value:8.2f} s{shown}")


def main(points: int = 5, distributions: int = 3) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    chance = 1 / (1 + np.exp(-x @ rng.standard_normal(COLUMNS) / 2))
    y = (rng.random(ROWS) < chance).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "data.npz")
        np.savez(path, x=x, y=y)

        def whole(code: str, name: str = "answer") -> str:
            out = str(Path(folder) / f"{name}.npz")
            return LOAD.format(path=path) + code + SAVE.format(out=out)

        print("\nImports: the last column is pyro's time over that of the line\n")
        table(measure(IMPORTS, 9), "import pyro")
        print(
            f"\nLogistic regression {ROWS} x {COLUMNS}, whole processes; "
            "the last column is probsl's time over that of the line\n"
        )
        codes = {n: whole(c, n.split(",")[0]) for n, c in POINTS.items()}
        table(measure(codes, points), "probsl MAP")
        print()
        codes = {n: whole(c, n.split(",")[0]) for n, c in DISTRIBUTIONS.items()}
        seconds = measure(codes, distributions)
        table(seconds, "probsl SVI(AutoNormal)")
        for name in seconds:
            answer = np.load(Path(folder) / f"{name.split(',')[0]}.npz")
            value, error = elbo(x, y, answer["loc"], answer["sd"])
            print(f"{name:34}ELBO {value:.3f} +- {error:.3f}")


if __name__ == "__main__":
    main()
