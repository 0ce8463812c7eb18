"""
Separated classes, and what a prior does for them
=================================================

Thirty measurements of 569 breast tumors tell the malignant from the benign (Street,
Wolberg and Mangasarian 1993). Half of them are separated without an error, so the
likelihood grows for ever as the coefficients do: there is no MLE, and its status says
so. A weak prior makes the problem an ordinary one.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
from pyro.infer.autoguide import AutoNormal
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import scale

import probsl

table = load_breast_cancer(as_frame=True)
x, malignant = scale(table.data), 1.0 - table.target.to_numpy()
train, test = ({"x": x[i::2], "malignant": malignant[i::2]} for i in (0, 1))


def program(x, malignant=None):
    intercept = pyro.sample("intercept", dist.Normal(0.0, 5.0))
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("tumors", len(x)):
        outcome = dist.Bernoulli(logits=intercept + x @ w)
        pyro.sample("malignant", outcome, obs=malignant)


fits = {
    "MLE": probsl.fit(program, train, probsl.MLE()),
    "MAP": probsl.fit(program, train, probsl.MAP()),
    "SVI": probsl.fit(program, train, probsl.SVI(AutoNormal)),
}
comparison = probsl.compare(fits, data=test)
print(comparison)

# %%
# Where MLE stopped is arbitrary, and it is far too sure of the tumors held out, as the
# scores tell. The plot shows the other two.

bayesian = {name: fits[name] for name in ("MAP", "SVI")}
ax = probsl.plot_forest(bayesian)
ax.set_yticks(range(31), ["intercept", *table.feature_names])
plt.show()
