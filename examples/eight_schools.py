"""
Eight schools: how much to pool
===============================

The effects of coaching on a test in eight schools, with their standard errors (Rubin
1981, Estimation in parallel randomized experiments). The three fits of one program are
the three answers to how alike the schools are. MLE takes every school by itself, and
cannot tell mu and tau. MAP pools them all: the joint density is highest at tau = 0.
SVI, which keeps what is uncertain about tau, pulls each school part of the way.
"""

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist

import probsl

data = {
    "school": np.arange(8),
    "error": np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
    "y": np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
}


def program(school, error, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("tests", len(school)):
        effect = pyro.deterministic("effect", mu + tau * z[school])
        pyro.sample("y", dist.Normal(effect, error), obs=y)


methods = {"MLE": probsl.MLE(), "MAP": probsl.MAP(), "SVI": probsl.SVI()}
rows = ("school", "error", "y")  # as many as schools, so they have to be named
fits = {name: probsl.fit(program, data, m, rows=rows) for name, m in methods.items()}
comparison = probsl.compare(fits)
print(comparison)

# %%
# The effects with their 95% intervals, and as dots what was measured.

with plt.style.context(probsl.plots.STYLE):
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.6), sharey=True)
    for ax, (name, fit) in zip(axes, fits.items(), strict=True):
        probsl.plot_predictive(fit, data, x="school", y="effect", ax=ax)
        ax.set(title=name, xlabel="school")
        ax.set_ylabel("effect (points)" if name == "MLE" else "")
        ax.set_xticks(range(8), list("ABCDEFGH"))
        ax.get_legend().remove()
plt.show()
