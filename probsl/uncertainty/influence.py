"""The influence of single rows on a point fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from probsl.curvature.inverse import NoCovarianceError
from probsl.curvature.leverage import linear_regression
from probsl.curvature.row_scores import row_scores
from probsl.isolation.calls import undisturbed
from probsl.uncertainty.points import covariance_of

if TYPE_CHECKING:
    import pandas as pd

    from probsl.curvature.point_covariance import PointCovariance
    from probsl.fitting import Fit

__all__ = ["influence"]


@undisturbed
def influence(fit: Fit) -> pd.DataFrame:
    """Return how much each row moves a point estimate.

    Parameters
    ----------
    fit
        A fit by MLE or MAP of independent rows.

    Returns
    -------
    DataFrame
        One row per row. ``cooks_distance``: how far the estimate moves if the row is
        left out, in units of its covariance and per parameter. For linear regressions
        with Normal errors also ``leverage``, the share of the row in its own fitted
        value, and the distance is exact; otherwise it is that of one Newton step.

    Raises
    ------
    TypeError, ValueError
        If the fit is not a point at an optimum, or its rows are not independent.

    Notes
    -----
    Without row i a Newton step moves the estimate by C s, of its score s and the
    covariance C, so the distance is s' C s / d for d parameters (Pregibon, 1981). In
    linear regressions it is e^2 h / (p s^2 (1 - h)^2), of the residual e, the leverage
    h and the residual variance s^2 with n - p degrees of freedom (Cook, 1977).

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(x, y=None):
    ...     w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    ...     sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("y", dist.Normal(w[0] + w[1] * x, sigma), obs=y)
    >>> x, y = torch.tensor([0.0, 1.0, 2.0, 9.0]), torch.tensor([0.0, 1.0, 1.5, 9.0])
    >>> fit = probsl.fit(program, {"x": x, "y": y}, probsl.MLE())
    >>> probsl.influence(fit)["leverage"].round(2).tolist()
    [0.43, 0.33, 0.27, 0.97]
    """
    import pandas as pd

    known = covariance_of(fit)
    if fit.posterior.target.integrated:  # type: ignore[attr-defined]
        raise NoCovarianceError(
            "rows are not independent given the parameters, because random effects are "
            "integrated out, so the influence of one row is not defined"
        )
    try:
        return pd.DataFrame(_linear(known))
    except NoCovarianceError:
        pass
    parts = [scores for scores, _ in row_scores(known.problem, known.layout, known.x)]
    scores = torch.cat(parts)
    moved = ((scores @ known.matrix) * scores).sum(1)
    count = int((~known.left_out).sum()) - known.inverse.free.shape[1]
    return pd.DataFrame({"cooks_distance": (moved / max(count, 1)).cpu().numpy()})


def _linear(known: PointCovariance) -> dict[str, object]:
    """Return leverage and exact distances, of linear regressions with Normal errors."""
    regression = linear_regression(known.problem, known.layout, known.x)
    leverage = regression.leverage
    residuals = regression.residuals
    rows, rank = regression.weights.sum(), regression.rank
    variance = (regression.weights * residuals.square()).sum() / (rows - rank)
    left = (1 - leverage).clamp(min=torch.finfo(leverage.dtype).eps)
    squares = regression.weights * residuals.square()
    distance = squares * leverage / (rank * variance * left.square())
    return {
        "leverage": leverage.cpu().numpy(),
        "cooks_distance": distance.cpu().numpy(),
    }
