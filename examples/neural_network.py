"""
A small neural network, with priors on its weights
==================================================

Five hidden units between ten measurements of diabetes patients and the progress of
their disease (Efron, Hastie, Johnstone and Tibshirani 2004). Half of the patients are
held out. Without a prior the network learns the noise of the half it sees; a normal
prior is weight decay; and the posterior predicts with many networks at once.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import scale

import probsl

x, y = map(scale, load_diabetes(return_X_y=True))
train, test = ({"x": x[half::2], "y": y[half::2]} for half in (0, 1))


def layer(inputs, outputs):
    """Return a linear layer; the more inputs, the smaller the weights."""
    result = PyroModule[torch.nn.Linear](inputs, outputs)
    for name, size in (("weight", inputs**-0.5), ("bias", 1.0)):
        prior = dist.Normal(torch.zeros_like(getattr(result, name)), size)
        setattr(result, name, PyroSample(prior.to_event()))
    return result


class Network(PyroModule):
    """Five hidden units."""

    def __init__(self):
        super().__init__()
        self.hidden, self.output = layer(10, 5), layer(5, 1)

    def forward(self, x, y=None):
        mean = self.output(torch.tanh(self.hidden(x))).squeeze(-1)
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("patients", len(x)):
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)


methods = {"MLE": probsl.MLE(), "MAP": probsl.MAP(), "SVI": probsl.SVI(AutoNormal)}
network = Network()
fits = {name: probsl.fit(network, train, method) for name, method in methods.items()}
comparison = probsl.compare(fits, data=test)
print(comparison.scores.round(2).to_string())
figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), sharex=True, sharey=True)
for ax, (name, fit) in zip(axes, fits.items(), strict=True):
    guess = fit.predict(test)["y"].mean(0).numpy()
    ax.plot(guess, test["y"], ".", [-2, 2], [-2, 2])
    title = f"{name}, error {(guess - test['y']).std():.2f}"
    ax.set(title=title, xlabel="predicted", ylabel="held out")
plt.show()
