"""The methods that the laws range over, and their fits of every program."""

import os
from dataclasses import dataclass
from functools import cache, partial

import torch
from programs import PROBLEMS, Case
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import probsl

# Whether the laws range over all of their grid, as `make test-deep` lets them; else
# over every program and every method, but not over each method of each program.
DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"

ADAM = partial(torch.optim.Adam, lr=0.05)

METHODS = {
    "MLE": probsl.MLE(integrate=()),
    "MAP": probsl.MAP(),
    "MAP w=0.3": probsl.MAP(prior_weight=0.3),
    "MAP unconstrained": probsl.MAP(space="unconstrained"),
    "MAP Adam": probsl.MAP(optimizer=ADAM, max_steps=60),
    "SVI AutoNormal": probsl.SVI(AutoNormal),
    "SVI full rank": probsl.SVI(AutoMultivariateNormal),
    "SVI chosen": probsl.SVI(),
    "SVI Adam": probsl.SVI(AutoNormal, optimizer=ADAM, max_steps=60),
}


@dataclass(frozen=True)
class Pair:
    """A method and a program."""

    method: str
    case: Case

    @property
    def is_point(self) -> bool:
        return not self.method.startswith("SVI")

    def __str__(self) -> str:
        return f"{self.method}-{self.case}"

    def fit(self, **options) -> probsl.Fit:
        """Fit it again, by steps that do not depend on the clock."""
        options = {"compile": False, **options}
        return probsl.fit(
            self.case.program, self.case.data, METHODS[self.method], **options
        )


# Idioms whose like is among the others, and that Pyro sums or draws for seconds.
SLOW = {
    "hidden Gaussian states",
    "padding on the left",
    "sequences one by one",
    "tones of padded sequences",
}

# A prior weight meets priors of every kind, an added Jacobian supports of every kind,
# and a full-rank guide latents of every shape. Without priors, and to AutoNormal, one
# regression is like another.
QUICK = {
    "MLE": {case.name for case in PROBLEMS}
    - {"factor model", "horseshoe", "local scales", "logistic", "poisson", "robust"},
    "MAP w=0.3": {"linear", "mixed model", "mixture", "own parameters", "lasso"},
    "MAP unconstrained": {
        "linear",
        "LKJ covariance",
        "mixture",
        "noncentered groups",
        "simplex",
    },
    # The scales of a horseshoe go to zero, for seconds.
    "SVI AutoNormal": {case.name for case in PROBLEMS}
    - {"horseshoe", "logistic", "poisson", "robust"},
    "SVI full rank": {
        "linear",
        "LKJ covariance",
        "mixed model",
        "one joint observation",
        "own parameters",
        "simplex",
    },
}

# Methods that go the way of others, and the programs that show theirs.
_FEW = ("linear", "mixed model", "own parameters", "simplex")
_ONLY = {
    "SVI chosen": ("linear", "own parameters", "one joint observation"),
    "SVI Adam": _FEW,
    "MAP Adam": _FEW,
}


def _says_something(method: str, case: Case) -> bool:
    """Whether a pair takes a way through the code that no other takes."""
    if "discrete" in case.has and method.startswith("SVI"):
        # Tracing a sum over discrete latents takes seconds, so each way is gone once.
        return (method, case.name) in (
            ("SVI Adam", "hidden Markov model"),
            ("SVI AutoNormal", "mixture"),
            ("SVI Adam", "mixture"),
        )
    if case.name == "lasso" and method.startswith("SVI"):
        # A kink takes the noisy steps too.
        return method == "SVI Adam"
    if method in ("SVI full rank", "MAP w=0.3"):
        return case.name not in ("factor model", "local scales", "robust", "poisson")
    return method not in _ONLY or case.name in _ONLY[method]


PAIRS = tuple(
    Pair(method, case)
    for case in PROBLEMS
    for method in METHODS
    if _says_something(method, case)
    and (DEEP or case.name in QUICK.get(method, {case.name}))
)


@cache
def fitted(pair: Pair) -> probsl.Fit:
    """Return the fit of a pair; it is made once for all laws, and none changes it."""
    return pair.fit()
