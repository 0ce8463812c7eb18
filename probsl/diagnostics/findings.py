"""Findings on a fit: what is not as it should be, and the next action."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.contract import KnowsErrors, Status
from probsl.curvature.inverse import NoCovarianceError
from probsl.fitting import Fit
from probsl.isolation.calls import undisturbed
from probsl.psis import K_LIMIT
from probsl.scores.leave_one_out import score_fitted_rows
from probsl.tables import WIDTH

if TYPE_CHECKING:
    from probsl.curvature.point_covariance import PointCovariance

__all__ = ["Diagnosis", "Finding", "diagnose"]

# Shares of a direction's largest part below which an element is not named.
_PART = 1e-3
# The ratio of curvatures, in units of each parameter, above which digits are lost.
_CONDITION = 1e10
# Nats within which another optimum is worth a word.
_NEAR = 2.0


@dataclass(frozen=True)
class Finding:
    """One finding on a fit.

    Attributes
    ----------
    about
        The sites, elements or combination that it is about.
    verdict
        What was found, in a sentence.
    number
        A number that measures it, if there is one.
    action
        What to do next.
    """

    about: str
    verdict: str
    number: float | None
    action: str

    def __str__(self) -> str:
        return f"{self.about}: {self.verdict}; {self.action}"


class Diagnosis(Sequence[Finding]):
    """The findings on a fit, the gravest first; empty if nothing was found."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self._findings = tuple(findings)

    def __getitem__(self, index: int) -> Finding:  # type: ignore[override]
        return self._findings[index]

    def __len__(self) -> int:
        return len(self._findings)

    def __str__(self) -> str:
        if not self._findings:
            return "nothing found"
        lines = (textwrap.fill(f"- {f}", WIDTH, subsequent_indent="  ") for f in self)
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


@undisturbed
def diagnose(fit: Fit) -> Diagnosis:
    """Return what is not as it should be with a fit, and what to do next.

    Parameters
    ----------
    fit
        Any fit.

    Returns
    -------
    Diagnosis
        A sequence of findings, which prints as sentences: how the search ended, if not
        at an optimum; combinations of parameters that the data do not determine;
        scales so far apart that digits are lost; other optima nearly as good; and for
        distributions, rows that a leave-one-out score cannot do without.

    Raises
    ------
    TypeError
        If `fit` is not a fit.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(x, y=None):
    ...     w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)
    >>> x = torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])
    >>> fit = probsl.fit(program, {"x": x, "y": x[:, 0]}, probsl.MLE())
    >>> probsl.diagnose(fit)
    - w[0], w[1]: the fit is the same if they change together, by +1, -0.5, so the data
      determine only a combination of them; drop one of them, or keep the prior with MAP
      or SVI
    """
    if not isinstance(fit, Fit):
        raise TypeError(f"fit must be what probsl.fit returns, got {fit!r}")
    found = [*_free(fit), *_ends(fit), *_curvature(fit), *_basins(fit), *_rows(fit)]
    return Diagnosis(found)


def _ends(fit: Fit) -> Iterator[Finding]:
    """Find how the search ended, if that is not explained by a direction."""
    if fit.status in (Status.CONVERGED, Status.UNIDENTIFIED):
        return
    verdict, _, action = fit.status.value.partition("; ")
    about = ", ".join(fit.status_sites) or "the search"
    yield Finding(about, verdict, None, action or "go on from here with start=fit")


def _free(fit: Fit) -> Iterator[Finding]:
    """Find the combinations of parameters that the data do not determine."""
    known = _covariance(fit)
    if known is None:
        if fit.status is Status.UNIDENTIFIED:
            verdict, _, action = fit.status.value.partition("; ")
            yield Finding(", ".join(fit.status_sites), verdict, None, action)
        return
    labels = fit.problem.renamed(known.layout.labels())
    directions = known.inverse.scale[:, None] * known.inverse.free
    for direction in _simplified(directions):
        parts = [
            (label, float(share))
            for label, share in zip(labels, direction, strict=True)
            if abs(share) > _PART
        ]
        if len(parts) == 1:
            yield Finding(
                parts[0][0],
                "nothing in the data bears on it",
                0.0,
                "drop it, or keep its prior with MAP or SVI",
            )
        else:
            changes = ", ".join(f"{share / parts[0][1]:+.3g}" for _, share in parts)
            yield Finding(
                ", ".join(label for label, _ in parts),
                f"the fit is the same if they change together, by {changes}, so the "
                "data determine only a combination of them",
                0.0,
                "drop one of them, or keep the prior with MAP or SVI",
            )


def _curvature(fit: Fit) -> Iterator[Finding]:
    """Find scales so far apart that the errors lose their digits."""
    known = _covariance(fit)
    if known is None or known.inverse.free.shape[1]:
        return
    kept = ~known.left_out
    units = known.inverse.scale[kept]
    scaled = known.inverse.matrix[kept][:, kept] / units[:, None] / units
    if not len(scaled):
        return
    values = torch.linalg.eigvalsh(scaled).abs()
    ratio = float(values.max() / values.min().clamp(min=1e-300))
    if ratio > _CONDITION:
        labels = fit.problem.renamed(known.layout.labels())
        worst = torch.linalg.eigh(scaled).eigenvectors[:, -1].abs()
        places = [labels[i] for i in kept.nonzero()[:, 0].tolist()]
        chosen = [places[i] for i in worst.topk(min(2, len(worst))).indices.tolist()]
        yield Finding(
            ", ".join(chosen),
            f"nearly the same in their effect: the ratio of curvatures is {ratio:.1g}, "
            "so errors and digits are lost",
            ratio,
            "center and rescale the data, or use an orthogonal basis",
        )


def _basins(fit: Fit) -> Iterator[Finding]:
    """Find other optima that are nearly as good."""
    if len(fit.basins) < 2:
        return
    gap = fit.basins[1].value - fit.basins[0].value
    if gap < _NEAR:
        yield Finding(
            "the objective",
            f"another optimum is only {gap:.3g} nats worse",
            gap,
            "look at both in Fit.basins; a point tells one of them",
        )


def _rows(fit: Fit) -> Iterator[Finding]:
    """Find rows on which a distribution depends much."""
    if fit.posterior.is_point or isinstance(fit.posterior, KnowsErrors):
        return
    left_out = score_fitted_rows(fit).left_out
    if left_out is None:
        return
    bad = left_out.k_rows >= K_LIMIT
    if bad.any():
        row, count = int(left_out.k_rows.argmax()), int(bad.sum())
        yield Finding(
            f"row {row}" if count == 1 else f"{count} rows, most of all row {row}",
            f"Pareto k is {left_out.worst_k:.2f}, so elpd_loo is unreliable: the rows "
            "are highly influential, or the guide fits poorly",
            left_out.worst_k,
            "score held-out rows, or try a richer guide",
        )


def _covariance(fit: Fit) -> PointCovariance | None:
    posterior = fit.posterior
    if not isinstance(posterior, KnowsErrors) or not posterior.errors().sd:
        return None
    try:
        return posterior.covariance()
    except NoCovarianceError:
        return None


def _simplified(directions: Tensor) -> Tensor:
    """Return a basis [k, d] of the same space with many zeros, largest part 1.

    By Gauss-Jordan elimination with the largest pivots.
    """
    rows = directions.T.clone()
    used: list[int] = []
    for place in range(len(rows)):
        column = int(rows[place].abs().argmax())
        used.append(column)
        rows[place] /= rows[place, column].clone()
        for other in range(len(rows)):
            if other != place:
                rows[other] -= rows[other, column].clone() * rows[place]
    largest = rows.abs().amax(1, keepdim=True).clamp(min=1e-300)
    return rows / largest
