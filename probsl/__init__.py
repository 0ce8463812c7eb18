"""Probabilistic supervised learning: one Pyro program, fitted by MLE, MAP and SVI."""

from probsl.comparison import Comparison, compare
from probsl.contract import Status
from probsl.diagnostics.findings import diagnose
from probsl.export.inference_data import to_arviz
from probsl.export.saved import load
from probsl.fitting import Fit, fit
from probsl.methods.laplace_approximation import LaplaceApproximation
from probsl.methods.optimizers import LBFGS, TrustRegionNewton
from probsl.methods.per_site import Fixed, PerSite
from probsl.methods.point import MAP, MLE
from probsl.methods.variational import SVI
from probsl.plots.forest import plot_forest
from probsl.plots.losses import plot_losses
from probsl.plots.predictive import plot_predictive
from probsl.plots.prior_posterior import plot_prior_posterior
from probsl.plots.profile import plot_profile
from probsl.plots.shrinkage import plot_shrinkage
from probsl.scores.held_out import log_score
from probsl.scores.information import information_criteria
from probsl.uncertainty.delta import delta
from probsl.uncertainty.hypotheses import (
    likelihood_ratio_test,
    score_test,
    wald_test,
)
from probsl.uncertainty.influence import influence
from probsl.uncertainty.integration import check_integration
from probsl.uncertainty.intervals import confidence_intervals
from probsl.uncertainty.standard_errors import covariance, standard_errors

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Fit",
    "Fixed",
    "LBFGS",
    "LaplaceApproximation",
    "MAP",
    "MLE",
    "PerSite",
    "SVI",
    "Status",
    "TrustRegionNewton",
    "check_integration",
    "compare",
    "confidence_intervals",
    "covariance",
    "delta",
    "diagnose",
    "fit",
    "influence",
    "information_criteria",
    "likelihood_ratio_test",
    "load",
    "log_score",
    "plot_forest",
    "plot_losses",
    "plot_predictive",
    "plot_prior_posterior",
    "plot_profile",
    "plot_shrinkage",
    "score_test",
    "standard_errors",
    "to_arviz",
    "wald_test",
]
