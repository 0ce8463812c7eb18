"""Expected values of observed sites for new inputs, with intervals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from probsl.data.arguments import by_name
from probsl.draws.predictions import generated
from probsl.options import did_you_mean, several_names
from probsl.program.axis_names import distinct_texts
from probsl.program.sites import Role
from probsl.program.supports import unwrap

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from probsl.draws.mapped import Draws
    from probsl.program.problem import Problem

    Array = NDArray[np.float64]

COLUMNS = ("mean", "lower", "upper", "predictive_lower", "predictive_upper")
# Runs for each posterior draw, if the program draws latents that are not in it.
_RUNS = 20
# Draws of a distribution that does not state its mean.
_SAMPLES = 200


@dataclass(frozen=True, eq=False)
class Expected:
    """One column of an observed site: its mean at each posterior draw, and new values.

    Attributes
    ----------
    site
        The name of the site.
    entry
        The label of the column or class; None if the site has one value per row.
    means
        Shape ``[draws, rows]``.
    new
        New values, ``[draws, rows]``; None for the probability of a class.
    spread
        The means over which intervals are taken, ``[draws, rows]``; None if there are
        none, as for a point without a covariance.
    """

    site: str
    entry: str | None
    means: Array
    new: Array | None
    spread: Array | None = None

    def interval(self, prob: float) -> tuple[Array, Array] | None:
        """Return the limits of the central interval of the mean, ``[rows]`` each."""
        return None if self.spread is None else interval(self.spread, prob)

    @property
    def label(self) -> str:
        """The site, with the column or class in brackets."""
        return self.site if self.entry is None else f"{self.site}[{self.entry}]"


def expected_values(
    problem: Problem,
    draws: Draws,
    own: Draws,
    data: Any,
    *,
    sites: Sequence[str] | None,
    count: int,
    seed: int,
    spread: Draws | None = None,
) -> list[Expected]:
    """Compute the means of the observed sites at each posterior draw.

    If the program draws latents of new rows, or discrete ones, each mean is over them,
    by several runs of the program; their share in the variance of the means is removed.

    Parameters
    ----------
    problem, draws, own, data, count, seed
        See `probsl.draws.predictions.predictive`.
    sites
        The observed sites to include; None includes all.
    spread
        The draws over which intervals of the means are taken, if they are not `draws`:
        those of the estimate of a point. Without any, a point has no intervals.

    Raises
    ------
    ValueError
        If a site is unknown, or has neither a mean nor a sampler.
    """
    columns = _evaluated(problem, draws, own, data, sites=sites, count=count, seed=seed)
    if spread is draws:
        return [replace(column, spread=column.means) for column in columns]
    if spread is None:
        return columns
    others = _evaluated(problem, spread, own, data, sites=sites, count=count, seed=seed)
    return [
        replace(column, spread=other.means)
        for column, other in zip(columns, others, strict=True)
    ]


def _evaluated(
    problem: Problem,
    draws: Draws,
    own: Draws,
    data: Any,
    *,
    sites: Sequence[str] | None,
    count: int,
    seed: int,
) -> list[Expected]:
    """Compute the means of the observed sites at each draw, and new values."""
    observed = _chosen(problem.sites_with_role(Role.OBSERVED), sites)
    local = any(problem.is_local(site) for site in problem.latents)
    runs = _RUNS if local or problem.sites_with_role(Role.ENUMERATED) else 1
    repeated = {n: v.repeat_interleave(runs, 0) for n, v in draws.items()}

    def collect(messages: Mapping[str, Any]) -> Draws:
        found = {n: m for n, m in messages.items() if n in observed}
        means = {f"mean {n}": _mean(n, m) for n, m in found.items()}
        return means | {f"new {n}": m["value"] for n, m in found.items()}

    drawn = generated(
        problem, repeated, own, data, collect, count=count * runs, seed=seed
    )
    return [
        expected
        for name in observed
        if f"mean {name}" in drawn
        for expected in _columns(
            problem, name, drawn[f"mean {name}"], drawn[f"new {name}"], runs
        )
    ]


def expected_table(
    columns: list[Expected], prob: float, index: Any = None
) -> pd.DataFrame:
    """Return one row per row with means and intervals.

    Parameters
    ----------
    columns
        The expected values.
    prob
        Probability of the intervals.
    index
        Labels of the rows; None numbers them.

    Raises
    ------
    ValueError
        If the sites have different numbers of rows.
    """
    import pandas as pd

    lengths = {c.site: c.means.shape[1] for c in columns}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            "the observed sites have different numbers of rows: "
            + ", ".join(f"{site} {length}" for site, length in lengths.items())
            + "; name those of one length with sites="
        )
    if index is not None and len(index) not in lengths.values():
        index = None
    classes = len(lengths) == 1 and all(c.new is None for c in columns)
    tables = {str(c.entry) if classes else c.label: _table(c, prob) for c in columns}
    first, *others = tables.values()
    table = pd.concat(tables, axis=1) if others else first
    return table if index is None else table.set_axis(index, axis=0)


def row_index(problem: Problem, data: Any) -> Any:
    """Return the index of the pandas objects among the data; None if there is none."""
    if isinstance(data, DataLoader):
        return None
    given = by_name(problem.program.function, data)
    indices = [
        value.index
        for name, value in given.items()
        if name in problem.rows and hasattr(value, "index") and hasattr(value, "iloc")
    ]
    same = indices and all(index.equals(indices[0]) for index in indices)
    return indices[0] if same else None


def _chosen(observed: tuple[str, ...], sites: Sequence[str] | None) -> tuple[str, ...]:
    """Return the observed sites with the given names."""
    if sites is None:
        return observed
    names = several_names("sites", sites)
    for name in names:
        if name not in observed:
            raise ValueError(
                f"'{name}' is not an observed site ({', '.join(observed)})"
                f"{did_you_mean(name, observed)}"
            )
    return names


def _table(column: Expected, prob: float) -> pd.DataFrame:
    import pandas as pd

    missing = np.full(column.means.shape[1], np.nan)
    lower, upper = column.interval(prob) or (missing, missing)
    values = [column.means.mean(0), lower, upper]
    if column.new is not None:
        values += interval(column.new, prob)
    return pd.DataFrame(dict(zip(COLUMNS, values, strict=False)))


def _columns(
    problem: Problem, name: str, means: Tensor, new: Tensor, runs: int
) -> Iterator[Expected]:
    """Split a site into its columns or classes."""
    rows = _row_axis(problem, name)
    classes = means.dim() > new.dim()
    means, new = (
        t.movedim(rows, 1) if t.dim() > 1 else t[:, None] for t in (means, new)
    )
    entries = _entries(problem, name, means.shape[2:], classes=classes)
    flat, values = (
        np.asarray(t.reshape(*t.shape[:2], -1).double().cpu()) for t in (means, new)
    )
    for i, entry in enumerate(entries):
        averages = _without_noise(flat[..., i], runs)
        yield Expected(name, entry, averages, None if classes else values[..., i])


def _row_axis(problem: Problem, name: str) -> int:
    """Return the axis of the rows in draws of a site."""
    plate, axes = problem.data_plate, problem.site(name).plate_axes
    return 1 + axes.index(plate.name) if plate and plate.name in axes else 1


def _entries(
    problem: Problem, name: str, shape: torch.Size, *, classes: bool
) -> list[str | None]:
    """Return the labels of the columns or classes of a site."""
    if not shape:
        return [None]
    if classes and len(shape) == 1:
        labels = problem.names.classes.get(name, ())
        texts = distinct_texts(labels)
        return [*texts] if len(texts) == shape[0] else [str(i) for i in range(shape[0])]
    dims = problem.names.dims.get(name, ())
    if len(shape) == 1 and len(dims) > 1:
        return [*problem.names.entries(dims[-1], shape[0])]
    return [",".join(map(str, index)) for index in np.ndindex(*shape)]


def _mean(name: str, message: Any) -> Tensor:
    """Return the mean of an observed site, or the probabilities of its classes."""
    fn = message["fn"]
    base = unwrap(fn)
    value = message["value"]
    if isinstance(base, torch.distributions.Categorical):
        probabilities: Tensor = base.probs
        return probabilities.expand(*value.shape, probabilities.shape[-1])
    try:
        mean: Tensor = fn.mean
        return mean.expand(value.shape)
    except (NotImplementedError, AttributeError):
        pass
    try:
        return torch.stack([fn().double() for _ in range(_SAMPLES)]).mean(0)
    except NotImplementedError:
        raise ValueError(
            f"site '{name}' has no expected value, because its distribution "
            f"{type(base).__name__} has neither a mean nor a sampler"
        ) from None


def _without_noise(means: Array, runs: int) -> Array:
    """Average the runs of each draw, and remove the variance that is left of them.

    The variance of an average over runs is the variance between draws plus that within
    a draw divided by the number of runs; averages are moved to their mean so that
    the former remains (a one-way random-effects analysis of variance).
    """
    if runs == 1:
        return means
    split = means.reshape(-1, runs, means.shape[-1])
    averages = split.mean(1)
    total = averages.var(0)
    between = np.clip(total - split.var(1, ddof=1).mean(0) / runs, 0.0, None)
    share = np.sqrt(
        np.divide(between, total, out=np.zeros_like(total), where=total > 0)
    )
    middle = averages.mean(0)
    kept: Array = middle + share * (averages - middle)
    return kept


def interval(values: Array, prob: float) -> tuple[Array, Array]:
    """Return the limits of the central interval of draws, ``[rows]`` each.

    Parameters
    ----------
    values
        Shape ``[draws, rows]``; if they are whole numbers, so are the limits.
    prob
        Its probability.
    """
    tails = ((1 - prob) / 2, (1 + prob) / 2)
    whole = bool((values == values.round()).all())
    lower, upper = np.quantile(
        values, tails, axis=0, method="inverted_cdf" if whole else "linear"
    )
    return lower, upper
