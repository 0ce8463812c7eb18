"""
What a prior does to a linear regression
========================================

Ten measurements of 442 patients, and the progress of their diabetes a year later
(Efron, Hastie, Johnstone and Tibshirani 2004, Least angle regression). One program is
fitted without its prior, at the mode of the posterior, and as a posterior; then the
same likelihood is given a prior that sets coefficients to zero.
"""

import pyro
import pyro.distributions as dist
from pyro.infer.autoguide import AutoMultivariateNormal
from sklearn.datasets import load_diabetes

import probsl

table = load_diabetes(as_frame=True)
x, y = table.data, table.target - table.target.mean()


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
train, test = ({"x": x[rows], "y": y[rows]} for rows in (slice(300), slice(300, None)))

fits = {
    "MLE": probsl.fit(ridge, train, probsl.MLE()),
    "MAP": probsl.fit(ridge, train, probsl.MAP()),
    "SVI": probsl.fit(ridge, train, probsl.SVI(AutoMultivariateNormal)),
    "MAP, Laplace": probsl.fit(lasso, train, probsl.MAP()),
}

if __name__ == "__main__":
    print(f"Columns w[0] ... w[9]: {', '.join(table.feature_names)}\n")
    print(probsl.compare(fits, data=test))
