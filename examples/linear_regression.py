"""
What a prior does to a linear regression
========================================

Ten measurements of 442 patients, and the progress of their diabetes a year later (Efron
and others 2004, Least angle regression). One program is fitted by MLE, by MAP and by
SVI; then the same likelihood is given a prior that sets coefficients to zero.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
from sklearn.datasets import load_diabetes

import probsl

table = load_diabetes(as_frame=True)
x, y = table.data, table.target - table.target.mean()
train, test = ({"x": x[rows], "y": y[rows]} for rows in (slice(300), slice(300, None)))


def regression(prior):
    """Return the program: coefficients with the given prior, and their noise."""

    def program(x, y=None):
        w = pyro.sample("w", prior.expand([x.shape[1]]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(100.0))
        with pyro.plate("patients", len(x)):
            pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)

    return program


ridge = regression(dist.Normal(0.0, 300.0))
lasso = regression(dist.Laplace(0.0, 100.0))
fits = {
    "MLE": probsl.fit(ridge, train, probsl.MLE()),
    "MAP": probsl.fit(ridge, train, probsl.MAP()),
    "SVI": probsl.fit(ridge, train, probsl.SVI()),
    "MAP, Laplace": probsl.fit(lasso, train, probsl.MAP()),
}
comparison = probsl.compare(fits, data=test)
print(comparison)

with plt.style.context(probsl.plots.STYLE):
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5))
    probsl.plot_forest(comparison, ax=left)
    probsl.plot_shrinkage(comparison, ax=right)

if len(sys.argv) == 1:
    plt.show()
else:  # a folder to write to
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "fits.png")
    probsl.to_arviz(fits["SVI"]).to_netcdf(str(folder / "posterior.nc"))
    print(f"\nIn {folder}/: the picture fits.png, and posterior.nc, which ArviZ reads")
