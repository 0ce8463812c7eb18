"""Plot of the profile likelihood of one parameter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from probsl.draws.summary import check_probability
from probsl.isolation.calls import undisturbed
from probsl.options import did_you_mean
from probsl.plots.canvas import canvas, check_axes, color, legend_above
from probsl.progress import phase
from probsl.uncertainty.intervals import confidence_intervals, elements_of
from probsl.uncertainty.points import covariance_of, point_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from probsl.fitting import Fit
    from probsl.uncertainty.intervals import Element
    from probsl.uncertainty.profile import Profile

__all__ = ["plot_profile", "profile_curve"]

# Points of the curve, and how far it reaches beyond the interval, in roots.
_POINTS, _BEYOND = 31, 1.25


@dataclass(frozen=True, eq=False)
class ProfileCurve:
    """The data of `plot_profile`.

    Attributes
    ----------
    label
        The parameter.
    values, profile
        Values of the parameter, and the log density maximized over all others there,
        less its maximum, in nats; missing where no maximum was found.
    quadratic
        The parabola of the standard error at the same values; None without one.
    estimate
        The estimate.
    cut
        The log density at the ends of the profile interval, less its maximum.
    profile_interval, wald_interval
        The intervals.
    """

    label: str
    values: NDArray[np.float64]
    profile: NDArray[np.float64]
    quadratic: NDArray[np.float64] | None
    estimate: float
    cut: float
    profile_interval: tuple[float, float]
    wald_interval: tuple[float, float]


@undisturbed
def profile_curve(fit: Fit, parameter: str, prob: float) -> ProfileCurve:
    """Compute the data of `plot_profile`; its parameters are the same."""
    check_probability(prob)
    known = covariance_of(fit)
    elements = {element.label: element for element in elements_of(fit, known)}
    if parameter not in elements:
        raise ValueError(
            f"'{parameter}' is no element of the fit's parameters "
            f"({', '.join([*elements][:20])}){did_you_mean(str(parameter), elements)}"
        )
    element = elements[parameter]
    profile = element.profile(point_of(fit).target)
    tables = {
        kind: confidence_intervals(fit, prob, kind=kind, sites=[parameter])
        for kind in ("profile", "wald")
    }
    intervals = {
        kind: (float(table["lower"].iloc[0]), float(table["upper"].iloc[0]))
        for kind, table in tables.items()
    }
    root = float(torch.special.ndtri(torch.tensor((1 + prob) / 2, dtype=torch.float64)))
    estimate = element.from_quantity(profile.estimate)
    low, high = _range(element, profile, root)
    values, heights, near = np.linspace(low, high, _POINTS), [], None
    with phase("profile", "points", _POINTS) as points:
        for place, value in enumerate(values):
            points.report(place, parameter)
            found = profile.at(element.to_quantity(float(value)), near)
            heights.append(np.nan if found is None else -(found.root**2) / 2)
            near = near if found is None else found
    sd = float(fit.summary(by="element").loc[parameter, "sd"])
    parabola = -(((values - estimate) / sd) ** 2) / 2 if np.isfinite(sd) else None
    return ProfileCurve(
        parameter,
        values,
        np.asarray(heights),
        parabola,
        estimate,
        -(root**2) / 2,
        intervals["profile"],
        intervals["wald"],
    )


def _range(element: Element, profile: Profile, root: float) -> tuple[float, float]:
    """Return the values between which the profile is drawn.

    They are a little beyond its interval; where it is level, near the end of the
    support, or as far from the estimate as on the other side.
    """
    estimate = element.from_quantity(profile.estimate)
    ends: list[float] = []
    for sign in (-1, 1):
        limit = profile.limit(sign * _BEYOND * root)
        ends.append(element.from_quantity(sign * math.inf if limit is None else limit))
    low, high = sorted(ends)
    reach = [abs(end - estimate) for end in (low, high) if math.isfinite(end)]
    width = max(reach, default=5 * root * profile.unit)
    low, high = (
        end if math.isfinite(end) else estimate + sign * width
        for sign, end in zip((-1, 1), (low, high), strict=True)
    )
    inset = 1e-3 * (high - low)  # the end itself is not in an open support
    return low + inset, high - inset


def plot_profile(
    fit: Fit,
    parameter: str,
    prob: float = 0.95,
    *,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot the profile likelihood of one parameter, with its two intervals.

    The profile is the log likelihood maximized over all other parameters, less its
    maximum; of MAP it is the penalized one. The dashed parabola is what the standard
    error makes of it. Each crosses the gray line at the ends of its interval, which are
    bars below the curves. Where the two differ, the Wald interval misleads.

    Parameters
    ----------
    fit
        A fit by MLE or MAP.
    parameter
        The label of an element, as in the summary, such as ``"w[age]"``.
    prob
        Probability of the intervals.
    figsize
        Width and height of a new figure, in inches.
    title
        A title above the legend.
    ax
        The axes to draw in; None makes a figure.

    Returns
    -------
    Axes
        The axes. Its `get_label` is an alternative text.

    Raises
    ------
    TypeError, ValueError
        If the fit is not a point at an optimum, or the parameter is unknown.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     p = pyro.sample("p", dist.Beta(2.0, 2.0))
    ...     with pyro.plate("tosses", 10):
    ...         pyro.sample("y", dist.Bernoulli(p), obs=y)
    >>> heads = torch.tensor([1.0] * 9 + [0.0])
    >>> fit = probsl.fit(program, {"y": heads}, probsl.MLE())
    >>> probsl.plot_profile(fit, "p").get_xlabel()
    'p'
    """
    check_axes(ax)
    curve = profile_curve(fit, parameter, prob)
    share = f"{100 * prob:g}%"
    with canvas(ax, *(figsize or (5.5, 3.6))) as axes:
        axes.axhline(curve.cut, color="0.7", linewidth=1)
        axes.plot(curve.values, curve.profile, color=color(0), label="profile")
        if curve.quadratic is not None:
            axes.plot(
                curve.values,
                curve.quadratic,
                color=color(1),
                linestyle="--",
                label="standard error",
            )
        axes.axvline(curve.estimate, color="0.7", linewidth=1, linestyle=":")
        bottom = 1.9 * curve.cut
        intervals = (curve.profile_interval, curve.wald_interval)
        for place, (lower, upper) in enumerate(intervals):
            height = bottom * (0.93 - 0.06 * place)
            axes.plot(
                np.clip([lower, upper], curve.values[0], curve.values[-1]),
                [height, height],
                color=color(place),
                linewidth=3,
                solid_capstyle="butt",
            )
        axes.set_ylim(bottom, -0.06 * bottom)
        axes.set_xlabel(curve.label)
        axes.set_ylabel("log likelihood less its maximum")
        legend_above(axes, title=title)
        axes.set_label(
            f"Profile likelihood of {curve.label} with its {share} interval, and the "
            "parabola of the standard error with that of Wald"
        )
    return axes
