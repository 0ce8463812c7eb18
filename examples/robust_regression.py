"""
Outliers, and a likelihood that expects them
============================================

Telephone calls from Belgium, in millions a year. From 1964 to 1969 the minutes were
recorded instead (Rousseeuw and Leroy 1987, Robust regression and outlier detection,
table 2). No prior mends that; another likelihood does. With normal noise six years
decide the slope, with Student's t noise the other eighteen.
"""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist

import probsl

calls = [4.4, 4.7, 4.7, 5.9, 6.6, 7.3, 8.1, 8.8, 10.6, 12.0, 13.5, 14.9, 16.1, 21.2]
calls = np.array([*calls, 119, 124, 142, 159, 182, 212, 43, 24, 27, 29])
data = {"year": np.arange(1950.0, 1974.0), "calls": calls}


def line(noise):
    """Return the program: a line, and noise of the given family around it."""

    def program(year, calls=None):
        level = pyro.sample("level", dist.Normal(0.0, 100.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(50.0))
        with pyro.plate("years", len(year)):
            mean = level + slope * (year - 1961.5)
            pyro.sample("calls", noise(mean, sigma), obs=calls)

    return program


normal, student = line(dist.Normal), line(partial(dist.StudentT, 1.5))
fits = {
    "MLE, normal": probsl.fit(normal, data, probsl.MLE()),
    "MLE": probsl.fit(student, data, probsl.MLE()),
    "MAP": probsl.fit(student, data, probsl.MAP()),
    "SVI": probsl.fit(student, data, probsl.SVI()),
}
comparison = probsl.compare(fits)
print(comparison)

# %%
# The band is that of Student's t, the dashed line the normal fit.

ax = probsl.plot_predictive(fits["SVI"], data)
level, slope = (fits["MLE, normal"].point()[name].item() for name in ("level", "slope"))
mean = level + slope * (data["year"] - 1961.5)
ax.plot(data["year"], mean, color="0.4", linestyle="--", label="MLE, normal")
ax.set(ylabel="calls (millions)", ylim=(-40, 230))
ax.legend(loc="upper left", frameon=False)
plt.show()
