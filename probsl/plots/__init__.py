"""Plots of fits, one per file; nothing else in probsl imports matplotlib."""

from probsl.plots.canvas import STYLE
from probsl.plots.forest import plot_forest
from probsl.plots.losses import plot_losses
from probsl.plots.predictive import plot_predictive
from probsl.plots.prior_posterior import plot_prior_posterior
from probsl.plots.shrinkage import plot_shrinkage

__all__ = [
    "STYLE",
    "plot_forest",
    "plot_losses",
    "plot_predictive",
    "plot_prior_posterior",
    "plot_shrinkage",
]
