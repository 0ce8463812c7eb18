"""The covariance of a point fit, for what is computed from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from probsl.contract import KnowsErrors
from probsl.fitting import Fit
from probsl.options import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from probsl.curvature.point_covariance import CovarianceKind, PointCovariance

__all__ = ["Sites", "check_fit", "covariance_of", "point_of", "value_of"]


def check_fit(fit: Any, name: str = "fit") -> Fit:
    """Return a fit; refuse everything else.

    Raises
    ------
    TypeError
        If it is not what `probsl.fit` returns.
    """
    if not isinstance(fit, Fit):
        raise TypeError(f"{name} must be what probsl.fit returns, got {fit!r}")
    return fit


def point_of(fit: Any, name: str = "fit") -> KnowsErrors:
    """Return the posterior of a point fit; refuse everything else.

    Raises
    ------
    TypeError, ValueError
        If it is not a fit, or a distribution.
    """
    posterior = check_fit(fit, name).posterior
    if not isinstance(posterior, KnowsErrors):
        raise ValueError(
            f"{name} is by {type(fit.method).__name__}, which has no standard errors; "
            "they are of MLE and MAP, and the spread of a distribution is in its "
            "summary() and draw()"
        )
    return posterior


def covariance_of(
    fit: Any, kind: CovarianceKind = "observed", clusters: Any = None
) -> PointCovariance:
    """Return the covariance of a point fit, see `probsl.covariance`.

    Raises
    ------
    TypeError, ValueError
        If it is not a point fit, has no covariance, or the clusters do not suit.
    """
    posterior = point_of(fit)
    if clusters is None:
        return posterior.covariance(kind)
    if kind != "cluster":
        raise ValueError(
            f"clusters= is of kind='cluster', and kind is {kind!r}; give that kind, or "
            "leave out clusters="
        )
    return posterior.covariance(kind, clusters=_numbered(clusters, fit.problem.size))


def _numbered(clusters: Any, rows: int) -> Tensor:
    """Return the cluster of each row, counted from 0."""
    if torch.is_tensor(clusters):
        clusters = clusters.cpu().numpy()
    labels = np.asarray(clusters)
    if labels.shape != (rows,):
        raise ValueError(
            f"clusters must have one entry per row, shape ({rows},), got {labels.shape}"
        )
    if labels.dtype == object:
        texts = [str(label) for label in labels]
        absent = [i for i, text in enumerate(texts) if text in ("None", "nan", "NaT")]
        if absent:
            raise ValueError(f"clusters has no value in row {absent[0]}; give one")
        labels = np.asarray(texts)
    _, numbers = np.unique(labels, return_inverse=True)
    return torch.from_numpy(numbers.reshape(-1))


class Sites(dict[str, "Tensor"]):
    """Site -> value, as a user's function receives them."""

    def __missing__(self, name: str) -> NoReturn:
        known = ", ".join(self)
        raise KeyError(
            f"the function asks for site '{name}', and the fit has {known}"
            f"{did_you_mean(str(name), self)}"
        )


def value_of(function: Callable[[dict[str, Tensor]], Any], sites: Any) -> Any:
    """Return the value of a user's function of the sites.

    Its errors are its own, with a note that it must compute with torch.
    """
    try:
        return function(Sites(sites))
    except RuntimeError as error:
        error.add_note(
            "probsl: the function is differentiated, so it must compute with torch, "
            "such as torch.exp in the place of numpy.exp"
        )
        raise
