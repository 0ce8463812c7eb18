"""Covariances and standard errors of point fits, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.curvature.point_errors import point_errors
from probsl.curvature.reported import reported
from probsl.isolation.calls import undisturbed
from probsl.uncertainty.points import covariance_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from probsl.curvature.point_covariance import CovarianceKind
    from probsl.fitting import Fit

__all__ = ["covariance", "standard_errors"]


@undisturbed
def covariance(
    fit: Fit, kind: CovarianceKind = "observed", *, clusters: Any = None
) -> pd.DataFrame:
    """Return the covariance matrix of a point estimate.

    Parameters
    ----------
    fit
        A fit by MLE or MAP.
    kind
        ``"observed"``: the inverse of the observed information, the negative Hessian of
        the log density; that of MAP includes the curvature of the prior.
        ``"expected"``: the inverse of its expectation over new data, the Fisher
        information. ``"opg"``: the inverse of the sum of outer products of the scores
        of rows. ``"sandwich"``: that sum between two inverses of the observed
        information, which holds even if the likelihood is wrong; also called HC0.
        ``"cluster"``: the sandwich for rows that are independent between clusters only.
        ``"HC1"``, ``"HC2"``, ``"HC3"``: the sandwich of linear regressions with Normal
        errors, corrected for few rows.
    clusters
        The cluster of each row, shape ``[rows]``, of any labels; for kind "cluster".

    Returns
    -------
    DataFrame
        One row and one column per element of the latents and own parameters, in the
        units in which they are stated. Missing where an element has no error: on the
        edge of its support, at infinity, at a kink of its prior, or not determined by
        the data.

    Raises
    ------
    TypeError, ValueError
        If the fit is not a point, did not end at an optimum, or has no covariance of
        that kind; the message says why, and what to do.

    Notes
    -----
    Derivatives are computed in float64 in unconstrained space, and carried over to the
    sites by the delta method. Row weights are frequencies, except in the sandwich:
    there the weighted score of a row counts as one observation, as precision and
    sampling weights require. The sandwich is due to Huber (1967) and White (1982), its
    corrections to MacKinnon and White (1985); clusters have the factor G / (G - 1) for
    G clusters.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    ...     sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    ...     with pyro.plate("data", 4):
    ...         pyro.sample("y", dist.Normal(mu, sigma), obs=y)
    >>> y = torch.tensor([1.0, 2.0, 3.0, 4.0])
    >>> fit = probsl.fit(program, {"y": y}, probsl.MLE())
    >>> probsl.covariance(fit).round(4).abs()
               mu   sigma
    mu     0.3125  0.0000
    sigma  0.0000  0.1562
    """
    import pandas as pd

    known = covariance_of(fit, kind, clusters)
    problem = known.problem
    shapes: dict[str, torch.Size] = {}

    def flat(values: Mapping[str, Tensor]) -> Tensor:
        sites = reported(problem, values, ())
        shapes.update({name: value.shape for name, value in sites.items()})
        return torch.cat([value.reshape(-1) for value in sites.values()])

    matrix = known.of(flat).covariance
    errors = point_errors(known).sd.values()
    missing = torch.cat([error.isnan().reshape(-1) for error in errors])
    matrix[missing] = torch.nan
    matrix[:, missing] = torch.nan
    labels = [
        label for n, s in shapes.items() for label in fit.problem.element_labels(n, s)
    ]
    return pd.DataFrame(matrix.cpu().numpy(), index=labels, columns=labels)


@undisturbed
def standard_errors(
    fit: Fit, kind: CovarianceKind = "observed", *, clusters: Any = None
) -> pd.Series:
    """Return the standard error of every element of a point estimate.

    Parameters
    ----------
    fit, kind, clusters
        As for `covariance`.

    Returns
    -------
    Series
        The square roots of the diagonal of `covariance`, named after the elements.

    Raises
    ------
    TypeError, ValueError
        As `covariance` does.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
    ...     with pyro.plate("days", 4):
    ...         pyro.sample("y", dist.Poisson(rate), obs=y)
    >>> y = torch.tensor([2.0, 3.0, 1.0, 10.0])
    >>> fit = probsl.fit(program, {"y": y}, probsl.MLE())
    >>> float(probsl.standard_errors(fit)["rate"])
    1.0
    >>> float(probsl.standard_errors(fit, "sandwich")["rate"].round(4))
    1.7678
    """
    import pandas as pd

    found = point_errors(covariance_of(fit, kind, clusters)).sd
    values, labels = [], []
    for name, error in found.items():
        values += error.reshape(-1).tolist()
        labels += fit.problem.element_labels(name, error.shape)
    return pd.Series(values, index=labels, name=kind)
