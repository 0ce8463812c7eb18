"""Confidence intervals of the parameters of a point fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from probsl.curvature.point_errors import point_errors, wald_interval
from probsl.curvature.reported import reported
from probsl.draws.summary import check_probability
from probsl.isolation.calls import undisturbed
from probsl.options import did_you_mean, several_names
from probsl.progress import phase
from probsl.uncertainty.points import covariance_of, point_of
from probsl.uncertainty.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from probsl.curvature.point_covariance import PointCovariance
    from probsl.curvature.point_errors import PointErrors
    from probsl.fitting import Fit
    from probsl.program.coordinates import Entry
    from probsl.program.target_density import Density

__all__ = ["Element", "chosen_labels", "confidence_intervals", "elements_of"]

IntervalKind = Literal["wald", "profile"]


@undisturbed
def confidence_intervals(
    fit: Fit,
    prob: float = 0.95,
    *,
    kind: IntervalKind = "wald",
    sites: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return confidence intervals of the parameters of a point fit.

    Parameters
    ----------
    fit
        A fit by MLE or MAP.
    prob
        Probability of the intervals.
    kind
        ``"wald"``: the estimate plus and minus a multiple of its standard error.
        ``"profile"``: the values that the data do not reject by a likelihood-ratio
        test, if all else is estimated again. It is not symmetric, respects supports,
        does not change with the parameterization, and takes some fits per limit.
    sites
        Sites or elements to include, such as ``["w[age]", "sigma"]``; None: all.

    Returns
    -------
    DataFrame
        One row per element, with the columns ``estimate, lower, upper``. A profile
        that never falls far enough on one side ends there at the end of the support,
        or at infinity. The limits of Wald intervals are missing where the estimate has
        no standard error.

    Raises
    ------
    TypeError, ValueError
        If the fit is not a point at an optimum, or an option or a name is unknown.

    Notes
    -----
    The profile log likelihood falls by half a quantile of the chi-square distribution
    with one degree of freedom at the limits (Venzon and Moolgavkar, 1988). Of MAP the
    profile is that of the penalized density.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     p = pyro.sample("p", dist.Beta(2.0, 2.0))
    ...     with pyro.plate("tosses", 10):
    ...         pyro.sample("y", dist.Bernoulli(p), obs=y)
    >>> heads = torch.tensor([1.0] * 9 + [0.0])
    >>> fit = probsl.fit(program, {"y": heads}, probsl.MLE())
    >>> probsl.confidence_intervals(fit).round(3)
       estimate  lower  upper
    p       0.9  0.714    1.0
    >>> probsl.confidence_intervals(fit, kind="profile").round(3)
       estimate  lower  upper
    p       0.9  0.628  0.994
    """
    import pandas as pd

    check_probability(prob)
    if kind not in get_args(IntervalKind):
        raise ValueError(
            f"kind must be 'wald' or 'profile', got {kind!r}"
            f"{did_you_mean(str(kind), get_args(IntervalKind))}"
        )
    known = covariance_of(fit)
    elements = elements_of(fit, known)
    chosen = chosen_labels([element.label for element in elements], sites)
    errors, target = point_errors(known), point_of(fit).target
    rows: dict[str, list[float]] = {}
    with phase("intervals", "parameters", len(chosen)) as intervals:
        for element in elements:
            if element.label not in chosen:
                continue
            intervals.report(len(rows), element.label)
            rows[element.label] = (
                _wald_interval(element, errors, prob)
                if kind == "wald"
                else _profile_interval(element, target, prob)
            )
    return pd.DataFrame.from_dict(
        rows, orient="index", columns=["estimate", "lower", "upper"]
    )


@dataclass(frozen=True, eq=False)
class Element:
    """One element of a latent or own parameter.

    Attributes
    ----------
    label
        Its label in tables.
    name
        Its site.
    place
        Its place in the flattened site.
    known
        The covariance of the fit.
    """

    label: str
    name: str
    place: int
    known: PointCovariance

    @cached_property
    def entry(self) -> tuple[Entry, int]:
        """The entry of its site in the flat vector, and its first coordinate."""
        layout = self.known.layout
        starts = accumulate(layout.sizes, initial=0)
        pairs = zip(layout.entries, starts, strict=False)
        return next(pair for pair in pairs if pair[0].name == self.name)

    @property
    def has_coordinate(self) -> bool:
        """Whether it is a function of one coordinate of the flat vector."""
        entry, _ = self.entry
        return entry.flat_shape == entry.shape

    def quantity(self, x: Tensor) -> Tensor:
        """Return what is profiled: its coordinate if it has one, else its value."""
        return x[self.entry[1] + self.place] if self.has_coordinate else self.value(x)

    def value(self, x: Tensor) -> Tensor:
        """Return its value at a flat vector."""
        values = reported(self.known.problem, self.known.layout.constrain(x), ())
        return values[self.name].reshape(-1)[self.place]

    def from_quantity(self, quantity: float) -> float:
        """Return its value where `quantity` has a value."""
        if not self.has_coordinate:
            return quantity
        x = self.known.x.clone()
        x[self.entry[1] + self.place] = quantity
        with self.known.problem.isolated():
            return float(self.value(x))

    def to_quantity(self, value: float) -> float:
        """Return `quantity` where the element has a value, in the support."""
        if not self.has_coordinate:
            return value
        problem, (entry, _) = self.known.problem, self.entry
        own = [p.transform for p in problem.own_parameters if p.name == self.name]
        transform = own[0] if own else entry.transform
        whole = _values(self.known)[self.name].clone().reshape(-1)
        whole[self.place] = value
        with problem.isolated():
            flat = transform.inv(whole.reshape(entry.shape))
        return float(flat.reshape(-1)[self.place])

    def profile(self, target: Density) -> Profile:
        """Return the profile of `quantity` about the estimate."""
        sd = self.known.of(lambda values: self._flat(values).reshape(1)).sd
        return Profile(target, self.known, self.quantity, float(sd))

    def _flat(self, values: Mapping[str, Tensor]) -> Tensor:
        return self.quantity(self.known.layout.flatten(values))


def _wald_interval(element: Element, errors: PointErrors, prob: float) -> list[float]:
    name, place = element.name, element.place
    value = _values(element.known)[name].reshape(-1)[place]
    sd = errors.sd[name].reshape(-1)[place]
    ends = errors.ends.get(name)
    here = None if ends is None else (_end(ends[0], place), _end(ends[1], place))
    return [float(value), *map(float, wald_interval(value, sd, prob, here))]


def _profile_interval(element: Element, target: Density, prob: float) -> list[float]:
    profile = element.profile(target)
    tail = torch.tensor((1 + prob) / 2, dtype=torch.float64)
    root = float(torch.special.ndtri(tail))
    ends = []
    for sign in (-1, 1):
        limit = profile.limit(sign * root)
        ends.append(element.from_quantity(sign * math.inf if limit is None else limit))
    return [element.from_quantity(profile.estimate), min(ends), max(ends)]


def _values(known: PointCovariance) -> dict[str, Tensor]:
    with known.problem.isolated():
        return reported(known.problem, known.layout.constrain(known.x), ())


def elements_of(fit: Fit, known: PointCovariance) -> list[Element]:
    """Return all elements of the latents and own parameters."""
    return [
        Element(label, name, place, known)
        for name, value in _values(known).items()
        for place, label in enumerate(fit.problem.element_labels(name, value.shape))
    ]


def chosen_labels(labels: Sequence[str], sites: Sequence[str] | None) -> set[str]:
    """Return the labels of the sites or elements that are asked for."""
    if sites is None:
        return set(labels)
    chosen: set[str] = set()
    for name in several_names("sites", sites):
        found = {label for label in labels if name in (label, label.split("[")[0])}
        if not found:
            raise ValueError(
                f"sites names '{name}', which is no parameter of the fit "
                f"({', '.join(labels[:20])}){did_you_mean(name, labels)}"
            )
        chosen |= found
    return chosen


def _end(end: Any, place: int) -> Any:
    """Return the end of the support of one element."""
    if torch.is_tensor(end) and end.numel() > 1:
        return end.reshape(-1)[place]
    return end
