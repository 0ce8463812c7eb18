"""Likelihood-ratio, Wald and score tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.contract import Status
from probsl.curvature.information import observed_information
from probsl.curvature.inverse import inverted
from probsl.curvature.reported import reported
from probsl.data.array_kinds import several
from probsl.isolation.calls import undisturbed
from probsl.options import several_names
from probsl.scores.information import information_criteria
from probsl.uncertainty.constrained import ConstrainedMaximum
from probsl.uncertainty.intervals import chosen_labels, elements_of
from probsl.uncertainty.points import (
    check_fit,
    covariance_of,
    point_of,
    value_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probsl.curvature.point_covariance import CovarianceKind, PointCovariance
    from probsl.fitting import Fit

__all__ = ["HypothesisTest", "likelihood_ratio_test", "score_test", "wald_test"]

# Sites or elements -> values, or a function of the sites that is zero.
Hypothesis = Mapping[str, Any] | Callable[[dict[str, Tensor]], Tensor]
# Nats by which a restricted fit may be better, from the tolerances of both.
_SLACK = 1e-3


@dataclass(frozen=True)
class HypothesisTest:
    """The result of a test.

    Attributes
    ----------
    name
        The kind of test.
    statistic
        About chi-square if the hypothesis is true.
    degrees_of_freedom
        Its degrees of freedom.
    p
        The probability of a larger statistic if the hypothesis is true.
    note
        A sentence on the distribution, if it is not chi-square.
    """

    name: str
    statistic: float
    degrees_of_freedom: int
    p: float
    note: str = ""

    def __str__(self) -> str:
        p = f"{self.p:.4f}" if self.p >= 1e-4 else "< 0.0001"
        note = f"; {self.note}" if self.note else ""
        return (
            f"{self.name}: chi-square {self.statistic:.4g} with "
            f"{several(self.degrees_of_freedom, 'degree')} of freedom, p {p}{note}"
        )


@undisturbed
def likelihood_ratio_test(
    restricted: Fit, full: Fit, *, on_boundary: Sequence[str] = ()
) -> HypothesisTest:
    """Test whether a restricted model is enough, by the likelihoods of two fits.

    Parameters
    ----------
    restricted
        A fit by MLE of a program that is a special case of the other.
    full
        A fit by MLE of the larger program to the same data.
    on_boundary
        Parameters of the larger program that have a value on the edge of their support
        in the smaller one, such as the scale of random effects that it leaves out. One
        element at most.

    Returns
    -------
    HypothesisTest
        The statistic is twice the difference of the log likelihoods.

    Raises
    ------
    TypeError, ValueError
        If the fits are not by MLE, not of the same data, or not nested.

    Notes
    -----
    The statistic is about chi-square with as many degrees of freedom as parameters are
    restricted (Wilks, 1938). With one of them on the edge of its support, half of the
    time its estimate is there too, and the distribution is an equal mixture of two
    chi-squares, the other with one degree of freedom less (Self and Liang, 1987).

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(x, y=None, slope=True):
    ...     a = pyro.sample("a", dist.Normal(0.0, 1.0))
    ...     b = pyro.sample("b", dist.Normal(0.0, 1.0)) if slope else 0.0
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("y", dist.Poisson((a + b * x).exp()), obs=y)
    >>> x, y = torch.arange(4.0), torch.tensor([1.0, 2.0, 4.0, 9.0])
    >>> data = {"x": x, "y": y}
    >>> full = probsl.fit(program, data, probsl.MLE())
    >>> level = probsl.fit(program, {**data, "slope": False}, probsl.MLE())
    >>> print(probsl.likelihood_ratio_test(level, full))
    Likelihood-ratio test: chi-square 9.036 with 1 degree of freedom, p 0.0026
    """
    given = {"restricted": restricted, "full": full}
    fits = {name: check_fit(fit, name) for name, fit in given.items()}
    _refuse_other_data(restricted, full)
    table = information_criteria(fits)
    freed = int(table.loc["full", "k"] - table.loc["restricted", "k"])
    if freed < 1:
        raise ValueError(
            f"full has {table.loc['full', 'k']} parameters and restricted "
            f"{table.loc['restricted', 'k']}; give the fit with fewer first"
        )
    maxima = table["log likelihood"]
    rise = float(maxima["full"] - maxima["restricted"])
    if rise < -_SLACK:
        raise ValueError(
            f"the log likelihood of full is {-rise:.4g} below that of restricted, so "
            "restricted is not a special case of it, or full is at another optimum; "
            "fit it with starts="
        )
    edges = _elements_on_boundary(full, on_boundary)
    statistic = 2 * max(rise, 0.0)
    p = _chi_square_tail(statistic, freed)
    if not edges:
        return HypothesisTest("Likelihood-ratio test", statistic, freed, p)
    p = (p + _chi_square_tail(statistic, freed - 1)) / 2
    note = (
        f"{edges[0]} is on the edge of its support, so p is of the equal mixture of "
        f"chi-squares with {freed - 1} and {freed} degrees of freedom"
    )
    return HypothesisTest("Likelihood-ratio test", statistic, freed, p, note)


@undisturbed
def wald_test(
    fit: Fit,
    hypothesis: Hypothesis,
    *,
    kind: CovarianceKind = "observed",
    clusters: Any = None,
) -> HypothesisTest:
    """Test a hypothesis by how far the estimate is from it, in standard errors.

    Parameters
    ----------
    fit
        A fit by MLE or MAP.
    hypothesis
        Sites or elements -> their values, such as ``{"w[age]": 0.0}``; or a function of
        the sites, as in `delta`, that is zero if the hypothesis is true.
    kind, clusters
        The covariance, as for `covariance`.

    Returns
    -------
    HypothesisTest
        The statistic is ``d' C^-1 d``, of the distance d with the covariance C.

    Raises
    ------
    TypeError, ValueError
        If a name is unknown, or a quantity has no standard error.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     p = pyro.sample("p", dist.Beta(2.0, 2.0))
    ...     with pyro.plate("tosses", 10):
    ...         pyro.sample("y", dist.Bernoulli(p), obs=y)
    >>> heads = torch.tensor([1.0] * 9 + [0.0])
    >>> fit = probsl.fit(program, {"y": heads}, probsl.MLE())
    >>> print(probsl.wald_test(fit, {"p": 0.5}))
    Wald test: chi-square 17.78 with 1 degree of freedom, p < 0.0001
    """
    known = covariance_of(fit, kind, clusters)
    distance = _distance(fit, known, hypothesis)
    found = known.of(lambda values: distance(known.layout.flatten(values)))
    if not bool(found.determined.all()):
        raise ValueError(
            "the hypothesis is about a quantity without a standard error: "
            f"{point_of(fit).errors().sentence}"
        )
    gap = found.values
    inverse = inverted(found.covariance)
    count = len(gap) - inverse.free.shape[1]
    if count < len(gap):
        raise ValueError(
            f"the {len(gap)} equations of the hypothesis are not independent; leave "
            f"out {len(gap) - count}"
        )
    statistic = float(gap @ inverse.matrix @ gap)
    tail = _chi_square_tail(statistic, count)
    return HypothesisTest("Wald test", statistic, count, tail)


@undisturbed
def score_test(fit: Fit, hypothesis: Hypothesis) -> HypothesisTest:
    """Test a hypothesis by the slope of the likelihood at the best point that obeys it.

    Parameters
    ----------
    fit
        A fit by MLE or MAP of the larger model, from which the best point that obeys
        the hypothesis is searched.
    hypothesis
        As for `wald_test`.

    Returns
    -------
    HypothesisTest
        The statistic is ``s' I^-1 s``, of the score s with the observed information I,
        both at the restricted estimate (Rao, 1948).

    Raises
    ------
    TypeError, ValueError
        If a name is unknown, or no point that obeys the hypothesis was found.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     p = pyro.sample("p", dist.Beta(2.0, 2.0))
    ...     with pyro.plate("tosses", 10):
    ...         pyro.sample("y", dist.Bernoulli(p), obs=y)
    >>> heads = torch.tensor([1.0] * 9 + [0.0])
    >>> fit = probsl.fit(program, {"y": heads}, probsl.MLE())
    >>> print(probsl.score_test(fit, {"p": 0.5}))
    Score test: chi-square 6.4 with 1 degree of freedom, p 0.0114
    """
    known, target = covariance_of(fit), point_of(fit).target
    distance = _distance(fit, known, hypothesis)
    units = known.of(lambda values: distance(known.layout.flatten(values))).sd
    units = torch.where(units.isfinite() & (units > 0), units, 1.0)
    maximum = ConstrainedMaximum(target, known.layout, distance, units)
    found = maximum.at(torch.zeros_like(units), known.x)
    if found is None:
        raise ValueError(
            "no point was found that obeys the hypothesis; check that its values are "
            "inside the supports, or fit the restricted program and use "
            "likelihood_ratio_test"
        )
    information = observed_information(target.in_double(), known.layout, found.x)
    inverse = inverted(information)
    if inverse.negative:
        raise ValueError(
            "the observed information is not positive definite at the restricted "
            "estimate, so the score test does not exist; use likelihood_ratio_test"
        )
    statistic = float(found.gradient @ inverse.matrix @ found.gradient)
    count = len(units)
    return HypothesisTest(
        "Score test", statistic, count, _chi_square_tail(statistic, count)
    )


def _distance(
    fit: Fit, known: PointCovariance, hypothesis: Hypothesis
) -> Callable[[Tensor], Tensor]:
    """Return a function of the flat vector that is zero if a hypothesis is true."""
    if callable(hypothesis):
        function: Callable[[dict[str, Tensor]], Any] = hypothesis

        def of_sites(x: Tensor) -> Tensor:
            sites = reported(known.problem, known.layout.constrain(x), ())
            value = value_of(function, sites)
            if not torch.is_tensor(value):
                raise TypeError(
                    "the hypothesis must return a tensor that is zero if it is true, "
                    f"got {type(value).__name__}"
                )
            return value.reshape(-1).double()

        return of_sites
    given: Any = hypothesis
    if not isinstance(given, Mapping) or not given:
        raise TypeError(
            'the hypothesis must map sites or elements to values, such as {"w": 0.0}, '
            f"or be a function of the sites, got {hypothesis!r}"
        )
    elements = elements_of(fit, known)
    labels = [element.label for element in elements]
    chosen, values = [], []
    for name, value in hypothesis.items():
        found = chosen_labels(labels, [name])
        mine = [element for element in elements if element.label in found]
        given = torch.as_tensor(value, dtype=torch.float64).reshape(-1)
        if len(given) not in (1, len(mine)):
            raise ValueError(
                f"the hypothesis gives '{name}' {len(given)} values, and it has "
                f"{len(mine)} elements; give one, or one for each"
            )
        chosen += mine
        values += given.expand(len(mine)).tolist()
    wanted = torch.tensor(values, dtype=torch.float64)
    return lambda x: torch.stack([each.value(x) for each in chosen]) - wanted


def _elements_on_boundary(full: Fit, names: Sequence[str]) -> list[str]:
    """Return the elements named, and refuse an end on a boundary that is not."""
    known = covariance_of(full)
    labels = [element.label for element in elements_of(full, known)]
    given = several_names("on_boundary", names) if names else ()
    chosen = chosen_labels(labels, given)
    missing = [
        site
        for site in full.status_sites
        if full.status is Status.BOUNDARY and site not in chosen
    ]
    if missing:
        raise ValueError(
            f"full ended at the boundary of '{missing[0]}', where the statistic is not "
            f"chi-square; if the restricted value is on that edge, name it: "
            f"on_boundary=['{missing[0]}']"
        )
    if len(chosen) > 1:
        raise ValueError(
            f"on_boundary names {len(chosen)} elements, and the distribution of the "
            "statistic is known for one; simulate it from the restricted fit instead"
        )
    return sorted(chosen)


def _refuse_other_data(restricted: Fit, full: Fit) -> None:
    digests = {fit.problem.observed_digest() for fit in (restricted, full)}
    if len(digests) > 1 or restricted.problem.count != full.problem.count:
        raise ValueError(
            "restricted and full observed different data, so their likelihoods cannot "
            "be compared; fit both to the same rows"
        )


def _chi_square_tail(statistic: float, degrees: int) -> float:
    """Return the probability of a larger chi-square; none has 0 degrees of freedom."""
    if degrees == 0:
        return float(statistic <= 0)
    half = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
