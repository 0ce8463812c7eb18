"""Probabilistic supervised learning: one Pyro program, fitted by MLE, MAP and SVI."""

from probsl.compare import Comparison, compare
from probsl.fit import Fit, Status, fit, log_score
from probsl.methods.point import MAP, MLE
from probsl.methods.variational import SVI

__all__ = [
    "Comparison",
    "Fit",
    "MAP",
    "MLE",
    "SVI",
    "Status",
    "compare",
    "fit",
    "log_score",
]
