"""Fits a program to data by a method."""

from __future__ import annotations

import html
import textwrap
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from probsl.contract import (
    Basin,
    KnowsErrors,
    KnowsTarget,
    Method,
    Posterior,
    Run,
    Status,
)
from probsl.data.data_options import DataOptions
from probsl.draws.criteria import criteria_facts
from probsl.draws.expected import (
    Expected,
    expected_table,
    expected_values,
    row_index,
)
from probsl.draws.predictions import (
    deterministics,
    predictive,
    refuse_unreported,
)
from probsl.draws.summary import check_probability, summarize
from probsl.isolation.calls import undisturbed
from probsl.noise.standardized import representative_count
from probsl.options import (
    check_callbacks,
    check_method,
    first_compiled,
    whole_number,
)
from probsl.program.batch_checks import check_batches, own_batches
from probsl.program.binding import bound_problem, complete_data, first_place
from probsl.program.problem import Problem
from probsl.program.saved_problem import SavedProblem
from probsl.progress import phase, progress_shown
from probsl.tables import ROWS, WIDTH, number, parameters

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd

    from probsl.curvature.point_covariance import CovarianceKind
    from probsl.curvature.point_errors import PointErrors

# Above this number of elements a summary has one row per site.
_SUMMARY_ELEMENTS = 1000


@dataclass(frozen=True, repr=False, eq=False)
class Fit:
    """The result of a fit, in the same form for every method.

    Attributes
    ----------
    problem
        The program bound to its data.
    method
        The method with its options.
    seed
        The seed of the run.
    posterior
        The latents: a point or a distribution.
    status
        How the fit ended.
    status_sites
        The sites or elements that the status is about.
    losses
        The objective at each step, summed over rows: a negative log density, or a
        negative evidence lower bound.
    steps
        Steps taken.
    seconds
        Wall time.
    note
        A sentence on the choices that the method made automatically.
    compiled_from
        The first step that was compiled; None if all steps ran eagerly.
    basins
        The optima that the starts of a point fit reached, the lowest objective first;
        empty for one start.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     p = pyro.sample("p", dist.Beta(10.0, 10.0))
    ...     with pyro.plate("tosses", 10):
    ...         pyro.sample("y", dist.Bernoulli(p), obs=y)
    >>> heads = torch.tensor([1.0] * 6 + [0.0] * 4)
    >>> fit = probsl.fit(program, {"y": heads}, probsl.MAP())
    >>> fit.status is probsl.Status.CONVERGED
    True
    >>> print(fit)  # doctest: +ELLIPSIS
    MAP ended CONVERGED: the optimum was found
    10 rows, 1 parameter, log likelihood -6.814, ... steps in ... s
    standard errors: observed information of the penalized density
    <BLANKLINE>
      estimate       sd   lower   upper
    p   0.5357  0.09425  0.3510  0.7204
    """

    problem: Problem
    method: Method
    seed: int
    posterior: Posterior
    status: Status
    status_sites: tuple[str, ...]
    losses: Tensor
    steps: int
    seconds: float
    note: str = ""
    compiled_from: int | None = None
    basins: tuple[Basin, ...] = ()

    @property
    def sites(self) -> tuple[str, ...]:
        """The former name of `status_sites`."""
        return self.status_sites

    @property
    def message(self) -> str:
        """The status as a sentence that names the sites it is about."""
        about = f" ({', '.join(self.status_sites)})" if self.status_sites else ""
        return f"{self.status.name}{about}: {self.status.value}"

    @undisturbed
    def point(self) -> dict[str, Tensor]:
        """Return one value per site, in constrained space.

        Returns
        -------
        dict
            Site -> tensor: the latents (for a distribution, their means), the
            program's own parameters, and the deterministics that do not have one
            entry per row.

        Examples
        --------
        >>> import probsl, pyro, pyro.distributions as dist, torch
        >>> def program(y=None):
        ...     rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
        ...     with pyro.plate("days", 3):
        ...         pyro.sample("y", dist.Poisson(rate), obs=y)
        >>> y = torch.tensor([2.0, 3.0, 1.0])
        >>> probsl.fit(program, {"y": y}, probsl.MAP()).point()
        {'rate': tensor(1.6000)}
        """
        if isinstance(self.problem, SavedProblem):
            return dict(self.problem.known_point)
        values = self.posterior.point()
        completed = self.completed({n: v[None] for n, v in values.items()})
        return {name: value[0] for name, value in completed.items()}

    def tabulated(self) -> dict[str, Tensor]:
        """Return `point` without the latents that were integrated out."""
        point = self.point()
        return {n: v for n, v in point.items() if n not in self._integrated}

    @undisturbed
    def draw(self, n: int, *, seed: int = 0) -> dict[str, Tensor]:
        """Draw from the posterior; all draws of a point are equal.

        Parameters
        ----------
        n
            The number of draws.
        seed
            Seed of the draws.

        Returns
        -------
        dict
            Site -> tensor ``[n, ...]`` in constrained space.
        """
        n = whole_number("n", n)
        refuse_unreported(self.problem)
        return self.completed(self.posterior.draw(n, seed), n)

    @undisturbed
    def summary(
        self,
        prob: float = 0.95,
        *,
        by: Literal["element", "site"] | None = None,
        kind: CovarianceKind | None = None,
        effects: bool = False,
    ) -> pd.DataFrame:
        """Summarize every parameter.

        Parameters
        ----------
        prob
            Probability of the central interval.
        by
            ``"element"``, or ``"site"`` for the mean of each column over a site's
            elements; None chooses sites above 1,000 elements.
        kind
            How the standard errors of a point are computed, see `probsl.covariance`.
            None is ``"observed"``, unless that would take long.
        effects
            Whether to include latents that were integrated out, at their conditional
            modes, with the standard deviations given the estimated parameters.

        Returns
        -------
        DataFrame
            Index ``w[age]``, or ``w[0]`` if the axis has no labels; columns
            ``estimate, sd, lower, upper``. The program's own parameters are marked
            ``(own)``; a distribution has no spread for them. For a point, sd is the
            standard error, and lower and upper are the ends of the Wald interval
            ``estimate -/+ z sd``, cut off at the ends of the support; there are two
            more columns, ``z``, the estimate over its standard error, and ``p``, the
            probability of one as far from zero under the Normal distribution if the
            parameter is zero. Where a point has no standard errors these are missing,
            and ``print(fit)`` says why.

        Raises
        ------
        ValueError
            If `kind` is given, and the fit has no standard errors of it.

        Examples
        --------
        >>> import probsl, pyro, pyro.distributions as dist, torch
        >>> def program(y=None):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", 4):
        ...         pyro.sample("y", dist.Normal(mu, 2.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> probsl.fit(program, {"y": y}, probsl.MLE()).summary().round(2)
            estimate   sd  lower  upper    z     p
        mu       2.5  1.0   0.54   4.46  2.5  0.01
        """
        if by not in (None, "element", "site"):
            raise ValueError(f"by must be 'element' or 'site', got {by!r}")
        point = self.point() if effects else self.tabulated()
        if by is None:
            many = sum(v.numel() for v in point.values()) > _SUMMARY_ELEMENTS
            by = "site" if many else "element"
        labels = self.problem.element_labels
        spread = self._spread(sum(v.numel() for v in point.values()), kind)
        return summarize(point, spread, prob, by_site=by == "site", labels=labels)

    def _spread(
        self, elements: int, kind: CovarianceKind | None = None
    ) -> dict[str, Tensor] | PointErrors:
        """Return representative draws, or the standard errors of a point."""
        posterior = self.posterior
        if isinstance(posterior, KnowsErrors):
            return posterior.errors(kind)
        if kind is not None:
            raise ValueError(
                f"kind={kind!r} is of the standard errors of points, and this fit has "
                "a spread of its own; leave it out"
            )
        if posterior.is_point:
            return {}
        own = {p.name for p in self.problem.own_parameters}
        count = representative_count(elements)
        completed = self.completed(posterior.representative_draws(count), count)
        return {n: v for n, v in completed.items() if n not in own}

    @undisturbed
    def log_likelihood(self) -> float:
        """Return the log likelihood of the fitted rows, with their weights, at `point`.

        Discrete latents are summed out, and random effects that `MLE` integrates out
        are; other continuous latents are fixed at `point`.
        """
        problem, posterior = self.problem, self.posterior
        with problem.isolated(), torch.no_grad():
            if self._integrated and isinstance(posterior, KnowsTarget):
                target = posterior.target
                return float(target.log_density(posterior.point(), posterior.own))
            return float(problem.log_likelihood(posterior.point(), posterior.own))

    @undisturbed
    def predict(
        self, data: Any, *, draws: int = 1000, seed: int = 0
    ) -> dict[str, Tensor]:
        """Return draws ``[draws, rows, ...]`` of each outcome for new inputs.

        The outcomes are the observed sites, with the noise of the likelihood, and the
        deterministic ones. `expected` returns their means with intervals.

        Parameters
        ----------
        data
            The new inputs, in any form that `fit` accepts. Observed sites are drawn,
            whether or not their values are given; a required argument may be None.
            Constants may be omitted.
        draws
            The number of draws.
        seed
            Seed of the draws.

        Returns
        -------
        dict
            Site -> tensor ``[draws, ...]``, of the shape in the program.

        Raises
        ------
        ValueError
            If an argument is missing, or the size of a group differs from the fit.
        """
        draws = whole_number("draws", draws)
        values = self.posterior.draw(draws, seed)
        return predictive(
            self.problem, values, self.posterior.own, data, count=draws, seed=seed
        )

    @undisturbed
    def expected(
        self,
        data: Any,
        prob: float = 0.95,
        *,
        sites: Sequence[str] | None = None,
        draws: int = 1000,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Return the expected outcome of every row, with intervals.

        Parameters
        ----------
        data
            The new inputs, as for `predict`.
        prob
            Probability of the central intervals.
        sites
            The observed sites to include; None includes all of them.
        draws
            The number of posterior draws.
        seed
            Seed of the draws.

        Returns
        -------
        DataFrame
            One row per row of the data, with the index of the DataFrame or Series
            among them. Columns: ``mean``, the mean of the outcome (the probability of
            a 1, the rate of a count); ``lower, upper``, the interval of that mean over
            the posterior, or over the Normal distribution of the estimate of a point,
            missing if it has no standard errors; and ``predictive_lower,
            predictive_upper``, the interval of a new outcome. With several outcomes
            they are below the name of each. Of a category there are the columns
            ``mean, lower, upper`` of the probability of each class, below its label.

        Raises
        ------
        TypeError, ValueError
            If an option or the data do not suit, or the observed sites have different
            numbers of rows.

        Examples
        --------
        >>> import probsl, pyro, pyro.distributions as dist, torch
        >>> def program(x, y=None):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        >>> data = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([1.0, 2.0])}
        >>> fit = probsl.fit(program, data, probsl.MAP())
        >>> fit.expected({"x": torch.tensor([3.0, 6.0])})["mean"].round(2).tolist()
        [2.5, 5.0]
        """
        check_probability(prob)
        draws = whole_number("draws", draws)
        columns = self.expected_columns(data, sites, draws=draws, seed=seed)
        return expected_table(columns, prob, row_index(self.problem, data))

    @undisturbed
    def expected_columns(
        self, data: Any, sites: Sequence[str] | None = None, *, draws: int, seed: int
    ) -> list[Expected]:
        """Return what `expected` tabulates, column by column; its parameters."""
        posterior = self.posterior
        values = posterior.draw(draws, seed)
        spread = None if posterior.is_point else values
        if isinstance(posterior, KnowsErrors):
            spread = posterior.spread(draws, seed)
        return expected_values(
            self.problem,
            values,
            posterior.own,
            data,
            sites=sites,
            count=draws,
            seed=seed,
            spread=spread,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the fit to one file, from which `probsl.load` loads it.

        The file is in the safetensors format. It holds the posterior, the method, and
        what else the fit states, but neither the program nor the rows of the data.

        Parameters
        ----------
        path
            The file. One that is there is replaced as a whole: if saving is
            interrupted, it is left as it was.

        Raises
        ------
        TypeError
            If the posterior is of a class from outside this package, or a label is
            neither a text, a number nor a time.

        Examples
        --------
        >>> import probsl, pyro, pyro.distributions as dist, tempfile, torch
        >>> def program(y=None):
        ...     rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
        ...     with pyro.plate("days", 3):
        ...         pyro.sample("y", dist.Poisson(rate), obs=y)
        >>> y = torch.tensor([2.0, 3.0, 1.0])
        >>> fit = probsl.fit(program, {"y": y}, probsl.MAP())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fit.save(f"{folder}/rate.fit")
        ...     probsl.load(f"{folder}/rate.fit", program).point()
        {'rate': tensor(1.6000)}
        """
        # A door upward: the rooms below a fit do not know how it is saved.
        from probsl.export.saved import save  # noqa: PLC0415

        save(self, path)

    def completed(self, draws: dict[str, Tensor], count: int = 1) -> dict[str, Tensor]:
        """Return draws of the latents with own parameters and deterministics added."""
        own = self.posterior.own
        with self.problem.isolated(), torch.no_grad():
            shown = {
                p.name: p.constrain(own[p.name]).expand(count, *p.shape)
                for p in self.problem.own_parameters
            }
        return {**draws, **shown, **deterministics(self.problem, draws, own, count)}

    def __repr__(self) -> str:
        name = type(self.method).__name__
        about = f" ({', '.join(self.status_sites)})" if self.status_sites else ""
        loss = f"{float(self.losses[-1]):.6g}" if len(self.losses) else "unknown"
        return (
            f"Fit({name}, {self.status.name}{about}, {self._parameters} parameters, "
            f"{self.problem.size} rows, loss {loss}, {self.steps} steps, "
            f"{self.seconds:.2f} s)"
        )

    def __str__(self) -> str:
        table = parameters(self.summary())
        head = "\n".join(textwrap.fill(line, WIDTH) for line in self._head())
        return f"{head}\n\n{table.to_string(max_rows=ROWS)}"

    def _repr_html_(self) -> str:
        table: str = parameters(self.summary()).to_html(max_rows=ROWS)
        lines = map(html.escape, self._head())
        return f"<p>{'<br>'.join(lines)}</p>{table}"

    @property
    def _parameters(self) -> int:
        """The number of elements of the latents and own parameters."""
        point, own = self.posterior.point(), self.posterior.own
        values = [v for n, v in point.items() if n not in self._integrated]
        return sum(value.numel() for value in [*values, *own.values()])

    @property
    def _integrated(self) -> tuple[str, ...]:
        """The latents that were integrated out."""
        posterior = self.posterior
        return posterior.target.integrated if isinstance(posterior, KnowsTarget) else ()

    def _head(self) -> list[str]:
        """Return the method with the status in words, the sizes, and the note."""
        sizes = {"row": self.problem.size, "parameter": self._parameters}
        facts = [f"{n:,} {what}{'s' * (n != 1)}" for what, n in sizes.items()]
        posterior, sentence = self.posterior, ""
        if self._integrated:
            facts.append(f"{', '.join(self._integrated)} integrated out")
        if self.problem.data.complete:  # otherwise all rows would be read again
            fitted = self.log_likelihood()
            facts.append(f"log likelihood {number(fitted)}")
            if isinstance(posterior, KnowsErrors) and not posterior.target.has_priors:
                count = self.problem.count
                facts += criteria_facts(fitted, posterior.estimated(), count)
        facts.append(f"{self.steps:,} steps in {self.seconds:.2f} s")
        if isinstance(posterior, KnowsErrors):
            sentence = posterior.errors().sentence
        lines = [
            f"{type(self.method).__name__} ended {self.message}",
            ", ".join(facts),
            sentence,
            self.note,
        ]
        return [line for line in lines if line]


@undisturbed
def fit(
    program: Callable[..., Any] | Problem,
    data: Any,
    method: Method,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    rows: Sequence[str] | None = None,
    total: int | None = None,
    weights: Any = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    missing: Literal["refuse", "drop"] = "refuse",
    compile: Literal["auto"] | int = "auto",
    progress: bool | None = None,
    callbacks: Sequence[Callable[[int, float, Tensor], Any]] = (),
) -> Fit:
    """Fit a Pyro program to data.

    Parameters
    ----------
    program
        Any Pyro callable: a function, a partial or a module. Its observed argument
        should default to None, so that the program can also predict. Or the `problem`
        of another fit, with None for `data`, which is fitted again as it is bound.
    data
        A mapping from the program's argument names to torch tensors, numpy arrays,
        pandas objects or constants; a DataFrame whose columns are named like the
        arguments; or a `torch.utils.data.DataLoader` of mappings or tuples, which
        is fitted in its own batches and read again in every epoch. Memory-mapped
        NumPy arrays stay on disk if `batch_size` is given.
    method
        `probsl.MLE`, `probsl.MAP`, `probsl.SVI`, or your own object with a `run`
        method.
    seed
        Seed of all random numbers; the same seed gives the same fit.
    batch_size
        Rows per step; None uses all rows, or the ``subsample_size=`` of the program's
        data plate if it has one.
    rows
        Names of the arguments with one entry per row, if shapes are ambiguous.
    total
        The number of rows of a DataLoader whose data set has no length, or whose
        sampler visits only some of the rows.
    weights
        One nonnegative weight per row, shape ``[rows]``: a row of weight 2
        counts as two rows.
    dtype
        Floating type of all computations; None uses that of the program's own
        parameters, or else the widest type in the data.
    device
        The device of all computations, ``"cpu"`` or ``"cuda"``: arguments, weights,
        parameters and buffers are moved there, batches a block at a time. None uses
        the accelerator that holds the program's own parameters or the data, else the
        CPU. Random numbers of guides, starts and shuffles are drawn on the CPU, so
        that they are the same on every device.
    dims
        Variable -> a name for each of its axes that is in no plate, as in ArviZ. An
        axis that runs over the columns of a DataFrame, or over the levels of a pandas
        category, is found without it; `note` says which.
    coords
        Name of an axis or plate -> labels of its entries. They name the elements in
        summaries, comparisons and plots: ``w[age]`` instead of ``w[0]``.
    missing
        What to do with rows in which a value is missing: refuse them, or drop them, and
        say in `note` how many of which argument.
    compile
        Whether to compile first-order steps: True from the first one, False never,
        "auto" once the expected savings exceed the compile time. Searches that end
        in tens of steps are not compiled. A number compiles from that step on:
        passing `compiled_from` of an "auto" fit repeats that fit bit for bit.
    progress
        Whether to show what is going on, with a bar for the steps; None shows whatever
        takes more than two seconds, on a terminal or in a notebook.
    callbacks
        Called as ``callback(step, loss, parameters)`` after every step; a true
        return value stops the fit.

    Returns
    -------
    Fit
        The result; its `status` says how the fit ended. Ctrl-C stops the fit and
        returns the current state.

    Raises
    ------
    ValueError, TypeError
        If data, program or method cannot be fitted; the message names the site,
        the argument or the row. Errors raised by the program are not wrapped.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     p = pyro.sample("p", dist.Beta(10.0, 10.0))
    ...     with pyro.plate("tosses", 10):
    ...         pyro.sample("y", dist.Bernoulli(p), obs=y)
    >>> heads = torch.tensor([1.0] * 6 + [0.0] * 4)
    >>> probsl.fit(program, {"y": heads}, probsl.MLE()).point()
    {'p': tensor(0.6000)}
    >>> probsl.fit(program, {"y": heads}, probsl.MAP()).point()
    {'p': tensor(0.5357)}
    """
    check_method(method)
    check_callbacks(callbacks)
    seed = whole_number("seed", seed, least=0)
    if compile != "auto":
        compile = first_compiled(compile)
    started = time.perf_counter()
    if batch_size is not None:
        batch_size = whole_number("batch_size", batch_size)
    complete = complete_data(missing, program, data, rows, weights)
    data, weights = complete.data, complete.weights
    options = DataOptions(rows, weights, batch_size, total, dtype, device)
    with progress_shown(progress), phase("running the program once"):
        problem = bound_problem(program, data, options, first_place(method))
        if dims or coords or not isinstance(program, Problem):
            problem = problem.named(dims, coords)
    batch_size = batch_size or problem.data.batch_size or problem.own_batch_size
    if batch_size is not None:
        check_batches(problem, batch_size)
        batch_size = None if batch_size >= problem.size else batch_size
    run = Run(seed, batch_size, progress, tuple(callbacks), compile)
    with progress_shown(progress), problem.isolated(seed):
        outcome = method.run(problem, run)
    notes = (
        outcome.note,
        own_batches(problem, batch_size),
        complete.note,
        problem.names.note,
    )
    return Fit(
        problem=problem,
        method=method,
        seed=seed,
        posterior=outcome.posterior,
        status=outcome.status,
        status_sites=problem.renamed(outcome.sites),
        losses=outcome.losses,
        steps=outcome.steps,
        seconds=time.perf_counter() - started,
        note="; ".join(filter(None, notes)),
        compiled_from=outcome.compiled_from,
        basins=outcome.basins,
    )
