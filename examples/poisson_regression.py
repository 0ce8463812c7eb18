"""
Counts that grow: a Poisson regression
======================================

New cases of AIDS in Australia in the 20 quarters from 1984 to 1988 (Dobson and Barnett
2018, An introduction to generalized linear models, exercise 4.1). Their logarithm is
nearly linear in that of time. The data say so much about the two coefficients that the
prior hardly matters: the three fits agree.
"""

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist

import probsl

cases = [1, 6, 16, 23, 27, 39, 31, 30, 43, 51, 63, 70, 88, 97, 91, 104, 110, 113]
cases = np.array([*cases, 149, 159], dtype=float)
data = {"quarter": np.arange(1.0, 21.0), "cases": cases}


def program(quarter, cases=None):
    level = pyro.sample("level", dist.Normal(0.0, 2.0))
    growth = pyro.sample("growth", dist.Normal(0.0, 1.0))
    with pyro.plate("quarters", len(quarter)):
        rate = (level + growth * quarter.log()).exp()
        pyro.sample("cases", dist.Poisson(rate), obs=cases)


fits = {
    "MLE": probsl.fit(program, data, probsl.MLE()),
    "MAP": probsl.fit(program, data, probsl.MAP()),
    "SVI": probsl.fit(program, data, probsl.SVI()),
}
comparison = probsl.compare(fits)
print(comparison)

# %%
# The bands are what the posterior expects of a quarter; all 20 lie in the wide one.

ax = probsl.plot_predictive(fits["SVI"], data)
ax.set(xlabel="quarter since 1984", ylabel="new cases", xticks=range(4, 21, 4))
plt.show()
