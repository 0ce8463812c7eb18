"""One search for the optimum, and its ending in the words of a fit."""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor
from torch.distributions.constraint_registry import biject_to

from probsl.engine.batches import rows_of
from probsl.engine.feed import ROW, WEIGHTS, Feed, places_for
from probsl.engine.minimize import Minimum, minimize
from probsl.engine.minimize import Outcome as End
from probsl.engine.stochastic import Ending, Settled, settle
from probsl.fit import Fit, Run, Status
from probsl.options import did_you_mean, finite_number, whole_number
from probsl.sites import Role

if TYPE_CHECKING:
    from probsl.coordinates import Coordinates
    from probsl.engine.first_order import OptimizerFactory, SchedulerFactory
    from probsl.problem import Problem
    from probsl.scoring import Batch

# Up to this many coordinates the exact Hessian is affordable.
NEWTON_LIMIT = 300
# Random parts of a start, ever closer to zero, and what they may cost per row.
_SPREADS = (0.1, 1e-3, 1e-5, 1e-7)
_CALM = 10.0
# First-order steps at most, where no number is given.
NOISY_STEPS = 20_000
# A status names up to this many elements one by one.
_NAMED_ELEMENTS = 8

Start = Mapping[str, Any] | Fit | None
# Called with step, loss, point and, for first-order steps, the learning rate.
Callback = Callable[..., Any]

_STATUSES = {
    End.CONVERGED: Status.CONVERGED,
    End.MAX_STEPS: Status.MAX_STEPS,
    End.NONFINITE: Status.NONFINITE,
    End.NULL_DIRECTIONS: Status.UNIDENTIFIED,
    End.RUNAWAY: Status.UNBOUNDED,
    End.STALLED: Status.MAX_STEPS,
    End.INTERRUPTED: Status.INTERRUPTED,
}
_ENDINGS = {
    Ending.CONVERGED: Status.CONVERGED,
    Ending.MAX_STEPS: Status.MAX_STEPS,
    Ending.NONFINITE: Status.NONFINITE,
    Ending.INTERRUPTED: Status.INTERRUPTED,
}


@dataclass(frozen=True)
class Found:
    """Where a search ended: the point, the status, and what the status is about.

    `flattening` says of coordinates that run off whether the objective levels off.
    """

    x: Tensor
    status: Status
    sites: tuple[str, ...]
    losses: Tensor
    steps: int
    flattening: bool = False
    compiled_from: int | None = None
    trouble: str = ""

    @property
    def value(self) -> float:
        """The last objective."""
        return float(self.losses[-1]) if len(self.losses) else float("inf")


def search_exactly(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    layout: Coordinates,
    size: int,
    *,
    tolerance: float | None,
    max_steps: int | None,
    l1: tuple[Tensor, Tensor] | None = None,
    idle: Literal["ignore", "report"] = "report",
    newton_limit: int = NEWTON_LIMIT,
    ahead: Tensor | None = None,
    callback: Callback | None = None,
) -> Found:
    """Minimize a deterministic objective and tell the status in terms of sites.

    Parameters
    ----------
    objective
        A mean over rows.
    start
        Where to begin.
    layout
        Names the coordinates.
    size
        The number of rows; losses are reported as sums.
    tolerance, max_steps, l1, idle, newton_limit, ahead, callback
        As in `probsl.engine.minimize.minimize`.
    """
    minimum = minimize(
        objective,
        start,
        tolerance=tolerance,
        max_steps=max_steps or 1000,
        l1=l1,
        newton_limit=newton_limit,
        idle=idle,
        ahead=ahead,
        callback=callback,
    )
    status = _STATUSES[minimum.outcome]
    if status is Status.UNBOUNDED and _at_boundary(minimum, layout):
        status = Status.BOUNDARY
    losses = torch.tensor(minimum.losses, dtype=torch.float64, device="cpu") * size
    names = _names(layout, minimum.coordinates)
    return Found(minimum.x, status, names, losses, minimum.steps, minimum.flattening)


class Noisy(Protocol):
    """The options of a method that may search by first-order steps."""

    @property
    def optimizer(self) -> OptimizerFactory | None:
        """Makes the optimizer; None chooses."""
        ...

    @property
    def scheduler(self) -> SchedulerFactory | None:
        """Makes what moves the rate; None lowers it at plateaus."""
        ...

    @property
    def clip_norm(self) -> float | None:
        """The longest gradient."""
        ...

    @property
    def tolerance(self) -> float | None:
        """The progress that counts as none."""
        ...

    @property
    def max_steps(self) -> int | None:
        """Steps at most."""
        ...


def search_noisily(
    objective: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
    start: Tensor,
    layout: Coordinates,
    *,
    problem: Problem,
    method: Noisy,
    run: Run,
    noise: Callable[[int], Tensor] | None = None,
    numbers: int = 0,
    obstacle: str = "",
) -> Found:
    """Minimize by first-order steps, with or without noise in the objective.

    Parameters
    ----------
    objective
        Maps a point and what its step is given (`batch_at` and `NOISE` read it) to
        a mean over rows.
    start, layout
        As in `search_exactly`.
    problem, method, run
        The rows, and the options.
    noise
        From a number of steps to the noise of each, ``[steps, ...]``.
    numbers
        How many random numbers one step takes.
    obstacle
        Why no graph can stand for the objective, in a sentence, if it is known.
    """
    if obstacle and run.compile is True:
        warnings.warn(obstacle, UserWarning, stacklevel=2)
    with watching(run, problem.size, method.max_steps or NOISY_STEPS) as callback:
        settled: Settled = settle(
            objective,
            start,
            feed=_feed(problem, run, noise, numbers),
            optimizer=method.optimizer,
            scheduler=method.scheduler,
            clip_norm=method.clip_norm,
            max_steps=method.max_steps or NOISY_STEPS,
            tolerance=1e-6 if method.tolerance is None else method.tolerance,
            compile=False if obstacle else run.compile,
            callback=callback,
            every_step=bool(run.callbacks),
        )
    losses = (
        torch.tensor(settled.losses, dtype=torch.float64, device="cpu") * problem.size
    )
    return Found(
        settled.x,
        _ENDINGS[settled.ending],
        _names(layout, settled.coordinates),
        losses,
        settled.steps,
        compiled_from=settled.compiled_from,
        trouble=obstacle or settled.trouble,
    )


def batch_at(problem: Problem, given: Mapping[str, Tensor]) -> Batch:
    """Return the rows that a step is given; all of them where it is given none."""
    rows = {n.removeprefix(ROW): v for n, v in given.items() if n.startswith(ROW)}
    return problem.batch_of(rows, given.get(WEIGHTS))


def _feed(
    problem: Problem, run: Run, noise: Callable[[int], Tensor] | None, numbers: int
) -> Feed:
    blocks, row_bytes = None, 0
    if run.batch_size is not None:
        blocks = rows_of(problem, run.batch_size, run.seed)
        held = [problem.arguments.values[name] for name in problem.rows]
        row_bytes = sum(array.nbytes // max(len(array), 1) for array in held)
    needed = row_bytes * (run.batch_size or 0) + numbers * problem.dtype.itemsize
    return Feed(places_for(needed), blocks, noise, problem.device)


def broken_sites(
    problem: Problem, values: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Name the sites whose log density is not finite at some values.

    Parameters
    ----------
    problem
        The program bound to its data.
    values, own
        As in `Problem.log_density`.
    """
    names = {s.name for s in problem.sites}
    try:
        with torch.no_grad():
            terms = problem.log_density_by_site(values, own, names)
    except (ValueError, RuntimeError):  # a matrix that cannot be factorized
        return ()
    return tuple(n for n, (term, _) in terms.items() if not term.isfinite().all())


def _names(layout: Coordinates, coordinates: Sequence[int]) -> tuple[str, ...]:
    """Name elements where they are few, else the sites that hold them."""
    labels = layout.labels()
    elements = tuple(dict.fromkeys(labels[i] for i in coordinates))
    if len(elements) <= _NAMED_ELEMENTS:
        return elements
    sites = [
        e.name
        for e, s in zip(layout.entries, layout.sizes, strict=True)
        for _ in range(s)
    ]
    return tuple(dict.fromkeys(sites[i] for i in coordinates))


def _at_boundary(minimum: Minimum, layout: Coordinates) -> bool:
    """Whether all that runs off does so toward a finite edge at a finite density."""
    if not minimum.flattening:
        return False
    offset = 0
    for entry, size in zip(layout.entries, layout.sizes, strict=True):
        mine = [i - offset for i in minimum.coordinates if offset <= i < offset + size]
        part = minimum.x[offset : offset + size].detach()
        offset += size
        if mine and not _toward_edge(entry.transform, entry.flat_shape, part, mine):
            return False
    return True


def _toward_edge(
    transform: Any, shape: torch.Size, part: Tensor, running: list[int]
) -> bool:
    """Whether the constrained value stays put as coordinates run on."""
    further = part.clone()
    further[running] += 20 * part[running].sign()
    here, there = (transform(p.reshape(shape)) for p in (part, further))
    return bool(torch.allclose(here, there, rtol=0, atol=1e-3)) and not torch.equal(
        part, here.reshape(-1)[: len(part)]
    )


def check_options(method: Any) -> None:
    """Refuse options that no search can honor.

    Raises
    ------
    ValueError, TypeError
        Naming the option.
    """
    if method.max_steps is not None:
        whole_number("max_steps", method.max_steps)
    if method.tolerance is not None:
        finite_number("tolerance", method.tolerance)
    if method.optimizer is not None and not _makes_optimizers(method.optimizer):
        raise TypeError(
            "optimizer must be a torch.optim class or a functools.partial of one, such "
            "as functools.partial(torch.optim.Adam, lr=0.01), got "
            f"{_shown(method.optimizer)}"
        )
    if method.scheduler is not None and not callable(method.scheduler):
        raise TypeError(
            "scheduler must be a class of torch.optim.lr_scheduler or a "
            "functools.partial of one, such as functools.partial("
            "torch.optim.lr_scheduler.ExponentialLR, gamma=0.999), got "
            f"{_shown(method.scheduler)}"
        )
    if method.clip_norm is not None:
        finite_number("clip_norm", method.clip_norm)
    if not isinstance(method.start, Mapping | Fit | None):
        raise TypeError(
            'start must map sites to values, such as {"w": 0.5}, or be a fit, got '
            f"{_shown(method.start)}"
        )


def _makes_optimizers(form: Any) -> bool:
    """Whether calling it with parameters may return a `torch.optim` optimizer."""
    while isinstance(form, functools.partial):
        form = form.func
    if isinstance(form, type):
        return issubclass(form, torch.optim.Optimizer)
    # Pyro's own optimizers wrap torch's, and are asked differently.
    return callable(form) and not str(form.__module__).startswith("pyro.")


def _shown(value: Any) -> str:
    """Return a short text as it is, and of anything longer what it is."""
    text = repr(value)
    return text if len(text) < 60 else f"a value of type {type(value).__name__}"


def check_prior_weight(weight: float | Mapping[str, float]) -> None:
    """Refuse prior weights that are negative or no numbers."""
    named = weight if isinstance(weight, Mapping) else {None: weight}
    for name, value in named.items():
        option = "prior_weight" if name is None else f"prior_weight of '{name}'"
        finite_number(option, value, zero=True)


def prior_weights(
    problem: Problem, weight: float | Mapping[str, float]
) -> dict[str, float]:
    """Return the factor of each prior that MLE would drop.

    Raises
    ------
    ValueError
        If a named site is not a latent.
    """
    if isinstance(weight, Mapping):
        check_latent_names(problem, weight, "prior_weight")
        return {n: float(w) for n, w in weight.items()}
    return dict.fromkeys(problem.named(Role.PARAMETER), float(weight))


def check_latent_names(problem: Problem, names: Any, argument: str) -> None:
    """Refuse names that are no latent sites."""
    latents = [s.name for s in problem.latents]
    for name in names:
        if name not in latents:
            raise ValueError(
                f"{argument} names '{name}', which is not a latent site of the "
                f"program; those are {', '.join(latents)}{did_you_mean(name, latents)}"
            )


def calm_start(
    objective: Callable[[Tensor], Tensor],
    problem: Problem,
    layout: Coordinates,
    start: Start,
    seed: int,
) -> Tensor:
    """Return where to begin, no farther from zero than the objective bears.

    On columns in thousands a coefficient of 0.1 overflows an exponential.

    Parameters
    ----------
    objective
        A mean over rows.
    problem, layout, start, seed
        As in `start_vector`.
    """

    def value(x: Tensor) -> float:
        with torch.no_grad():
            try:
                return float(objective(x))
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                return math.nan

    at_rest = start_vector(problem, layout, start, seed, 0.0)
    limit = value(at_rest) + _CALM
    for spread in _SPREADS:
        x = start_vector(problem, layout, start, seed, spread)
        here = value(x)
        if math.isfinite(here) and not here > limit:
            return x
    return at_rest


def start_vector(
    problem: Problem, layout: Coordinates, start: Start, seed: int, spread: float
) -> Tensor:
    """Return where to begin, in unconstrained space.

    Parameters
    ----------
    problem
        The program bound to its data.
    layout
        Of the latents and own parameters.
    start
        Site -> constrained value, or a fit; sites left out begin near zero in
        unconstrained space, own parameters at their own values.
    seed
        Of the small random part, which takes symmetric programs off their saddle.
    spread
        Its standard deviation.

    Raises
    ------
    ValueError
        If a start has another shape than its site, is outside its support, or is
        not finite.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    given = start.point() if isinstance(start, Fit) else dict(start or {})
    own = {p.name: p for p in problem.own}
    parts = []
    for entry in layout.entries:
        shape = entry.flat_shape
        noise = spread * torch.randn(
            shape, generator=generator, dtype=problem.dtype, device="cpu"
        )
        if entry.name in given:
            part = _start_of(problem, entry.name, given.pop(entry.name))
        else:
            part = own[entry.name].start if entry.name in own else noise
        parts.append(part.reshape(-1).to(problem.device, problem.dtype))
    if given and not isinstance(start, Fit):
        check_latent_names(problem, given, "start")
    if not parts:
        return torch.zeros(0, dtype=problem.dtype, device=problem.device)
    return torch.cat(parts)


def _start_of(problem: Problem, name: str, value: Any) -> Tensor:
    """Return a start value in unconstrained space, checked."""
    own = {p.name: p for p in problem.own}
    try:
        constrained = torch.as_tensor(value).detach()
        constrained = constrained.to(problem.device, problem.dtype)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"start of '{name}' must be a number or an array, got {_shown(value)}"
        ) from None
    shape = own[name].shape if name in own else problem.site(name).shape
    if constrained.shape != shape:
        raise ValueError(
            f"start of '{name}' has shape {tuple(constrained.shape)}, but the site has "
            f"shape {tuple(shape)}; give both the same"
        )
    if not bool(constrained.isfinite().all()):
        raise ValueError(
            f"start of '{name}' is not finite, {_shown(constrained.tolist())}; give "
            "finite numbers"
        )
    if name in own:
        unconstrained: Tensor = own[name].transform.inv(constrained)
        return unconstrained
    support = problem.site(name).support
    if not bool(support.check(constrained).all()):
        raise ValueError(
            f"start of '{name}' is outside its support, {support}: "
            f"{_shown(constrained.tolist())}; start inside it"
        )
    transform = biject_to(support)
    unconstrained = transform.inv(constrained)
    if not bool(unconstrained.isfinite().all()):
        raise ValueError(
            f"start of '{name}' lies on the edge of its support, {support}; start "
            "inside it"
        )
    return unconstrained


@contextmanager
def watching(run: Run, size: int, total: int | None) -> Iterator[Callback]:
    """Yield the callback of a search: a progress bar and the user's callbacks.

    Losses are passed on as sums over the rows.
    """
    show = sys.stderr.isatty() if run.progress is None else run.progress
    bar = None
    if show:
        from tqdm.auto import tqdm

        bar = tqdm(total=total, unit="step")

    def callback(step: int, loss: float, x: Tensor, rate: float | None = None) -> bool:
        if bar is not None:
            bar.update(step - bar.n)
            told = {} if rate is None else {"rate": f"{rate:.2g}"}
            bar.set_postfix(loss=f"{loss * size:.6g}", **told, refresh=False)
        answers = [each(step, loss * size, x) for each in run.callbacks]
        return any(answers)

    try:
        yield callback
    finally:
        if bar is not None:
            bar.close()
