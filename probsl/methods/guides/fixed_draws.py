"""Maximizes a bound over fixed draws, with as many draws as needed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probsl.contract import Run, Status
from probsl.methods.guides.elbo import ELBO, GUIDE
from probsl.methods.guides.fresh_draws import fresh_bound
from probsl.methods.guides.many_draws import ManyDraws
from probsl.methods.guides.whitening import whitened
from probsl.methods.objective import Objective
from probsl.methods.optimizers import LBFGS, DeterministicOptimizer
from probsl.methods.progress import watching
from probsl.methods.search import Found, search_exactly
from probsl.noise.standardized import standardized
from probsl.noise.streams import stream_seed

if TYPE_CHECKING:
    from collections.abc import Callable

    from probsl.noise.record import NoiseRecord
    from probsl.program.scoring import Batch


# Fixed draws are for problems whose draws times rows fit in memory many times over.
_ELEMENTS = 4_000_000
_DIMENSIONS = 100
_LEAST_DRAWS, _MOST_DRAWS = 64, 16_384
# Evaluation in a loop is limited to this many draws times milliseconds.
_LOOPED_DRAWS = 256
# The remaining gain of the bound, in nats, at which to stop without a tolerance.
_GAIN = 1e-7
# If fresh draws predict a gain of more nats than this, more draws are used.
_PROMISE = 0.02


def obstacle(bound: ELBO, noise: NoiseRecord) -> str:
    """Return why draws cannot be fixed, as a clause; empty if they can."""
    problem = bound.problem
    if not noise.replayable:
        return f"numbers drawn by {noise.obstacle} cannot be fixed"
    if not noise.reparameterizable:
        return "the guide's draws have no gradients"
    kinks = [s for s in problem.sites if s.kinked]
    if kinks:
        # Averaged over fixed draws, one kink becomes many, at which a search stalls.
        what = "prior" if kinks[0].latent else "likelihood"
        return f"the {what} of '{kinks[0].name}' has a kink"
    count, dimension = least_draws(noise), noise.dimension
    if dimension > _DIMENSIONS or not _fits(bound, noise, count):
        return (
            f"{dimension} latent numbers with {problem.size} rows are too many for "
            "fixed draws"
        )
    # With this many parameters, the guide could overfit the draws themselves.
    if bound.layout.size > count * max(dimension, 1) / 2:
        return "the guide has parameters enough to fit the draws themselves"
    return ""


def least_draws(noise: NoiseRecord) -> int:
    """Return the initial number of draws: half of them span the space twice."""
    wanted = max(4 * noise.dimension, _LEAST_DRAWS)
    return int(2 ** math.ceil(math.log2(wanted)))


def _fits(bound: ELBO, noise: NoiseRecord, count: int) -> bool:
    return count * max(bound.problem.size, noise.dimension) <= _ELEMENTS


def search_with_fixed_draws(
    run: Run,
    bound: ELBO,
    noise: NoiseRecord,
    factor: Tensor | None,
    *,
    tolerance: float | None,
    max_steps: int | None,
) -> tuple[Found | None, str]:
    """Maximize the average over fixed draws, adding draws until fresh ones agree.

    Parameters
    ----------
    run, bound, noise
        The seed and callbacks, the bound, and the random numbers of one estimate.
    factor
        Cholesky factor of the latents' covariance at the guide's start, if known.
    tolerance
        The search stops if a step can gain no more than this per row; None: tiny.
    max_steps
        Maximum number of steps in total.

    Returns
    -------
    tuple
        The result of the search, or None if fixed draws are not reliable; and a
        remark on it.
    """
    count = least_draws(noise)
    many = ManyDraws(bound, noise, standardized(noise, 2, seed=0))
    if many.way == "loop" and count > _LOOPED_DRAWS:
        return None, f"draws cannot be taken together ({many.reason})"
    most = _LOOPED_DRAWS if many.way == "loop" else _MOST_DRAWS
    search = _Search(run, bound, noise, many, tolerance, max_steps)
    x, ran_off = bound.start, False
    while True:
        found = search.minimize(x, count, factor if x is bound.start else None)
        note = f"with {count} fixed draws"
        if many.way == "loop":
            note += f", one by one ({many.reason})"
        if search.spent or found.status not in (Status.CONVERGED, Status.UNBOUNDED):
            stalled = found.status is Status.STALLED
            why = f"the search over {count} fixed draws stalled"
            return (None, why) if stalled else (found, note)
        fresh = fresh_bound(bound, many, noise, found.x, run.seed)
        sound = found.status is Status.CONVERGED and fresh.supports(found.value)
        if sound and fresh.promise <= _PROMISE:
            return found, f"{note}; {fresh}"
        again = ran_off and found.status is Status.UNBOUNDED
        if again or 4 * count > most or not _fits(bound, noise, 4 * count):
            break
        count, ran_off = 4 * count, found.status is Status.UNBOUNDED
        x = found.x if sound else bound.start
    if sound:
        more = f"fresh draws promise {fresh.promise:.2g} nats more"
        return found, f"{note}; {fresh}; {more}"
    if found.status is Status.UNBOUNDED:
        if not found.sites:
            note += "; the guide spreads over latents that neither prior nor data hold"
        return found, note
    return None, f"{count} fixed draws give {-found.value:.6g}, fresh ones {fresh}"


@dataclass(eq=False)
class _Search:
    """Successive searches, each over more draws."""

    run: Run
    bound: ELBO
    noise: NoiseRecord
    many: ManyDraws
    tolerance: float | None
    max_steps: int | None
    spent: bool = False
    losses: Tensor | None = None

    def minimize(self, x: Tensor, count: int, factor: Tensor | None) -> Found:
        """Minimize the average over a number of draws, starting from a guide."""
        bound, size = self.bound, self.bound.problem.size
        seed = stream_seed(self.run.seed, "fixed draws")
        draws = standardized(self.noise, count, seed)
        near = whitened(bound, x, factor)
        start, layout = x, bound.layout
        raw: Callable[[Tensor], Tensor] = _same
        if near is not None:
            start, layout, raw = near.start, near.layout, near.raw

        def value(point: Tensor, batch: Batch | None = None) -> Tensor:  # noqa: ARG001
            return size * self.many(raw(point), draws).mean()

        taken = 0 if self.losses is None else len(self.losses) - 1
        left = None if self.max_steps is None else max(self.max_steps - taken, 1)
        with watching(self.run, 1, self.max_steps) as callback:
            found = search_exactly(
                Objective(bound.target, layout, 1.0, value),
                start,
                self._optimizer(whitened=near is not None),
                tolerance=self._nats(value, start),
                max_steps=left,
                idle="ignore",
                callback=lambda step, loss, point: callback(
                    taken + step, loss, raw(point)
                ),
            )
        losses = found.losses
        if self.losses is not None:
            losses = torch.cat([self.losses, losses[1:]])
        self.losses = losses
        self.spent = found.status is Status.INTERRUPTED or (
            found.status is not Status.CONVERGED and found.steps == left
        )
        found = replace(
            found,
            x=raw(found.x).detach(),
            losses=losses,
            steps=len(losses) - 1,
        )
        return _without_guide(found)

    def _nats(self, objective: Callable[[Tensor], Tensor], start: Tensor) -> float:
        """Return the smallest gain worth a step, at least the rounding error."""
        if self.tolerance is not None:
            return self.tolerance * self.bound.problem.size
        with torch.no_grad():
            height = abs(float(objective(start)))
        rounding = 10 * torch.finfo(start.dtype).eps * max(height, 1.0)
        return max(_GAIN, rounding)

    def _optimizer(self, *, whitened: bool) -> DeterministicOptimizer | None:
        """Return L-BFGS if Newton steps need not finish the search.

        Whitened coordinates do not need them, except for parameters without a prior,
        which the data may leave free.
        """
        free = not whitened or self.bound.problem.own_parameters
        return None if free and not self.bound.guide.redundant else LBFGS()


def _same(x: Tensor) -> Tensor:
    return x


def _without_guide(found: Found) -> Found:
    """Judge the result by the distribution, not by the guide's parameters.

    A direction in them that does not change the distribution is harmless, and so is one
    that diverges while the distribution converges.
    """
    own = tuple(name for name in found.sites if not name.startswith(GUIDE))
    harmless = found.status is Status.UNIDENTIFIED or (
        found.status is Status.UNBOUNDED and found.flattening
    )
    status = Status.CONVERGED if harmless and not own else found.status
    return replace(found, status=status, sites=own)
