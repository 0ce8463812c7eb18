"""L-BFGS for many vectors at once: the state of each, and its next trial point."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.engine.minimize.curvature import curvature_scale
from probsl.engine.minimize.descent import array
from probsl.engine.minimize.landscape import Landscape
from probsl.engine.minimize.limited_memory import LimitedMemory
from probsl.engine.minimize.line_search import DECREASE, STEEPNESS
from probsl.engine.minimize.minimum import Minima
from probsl.engine.minimize.rounding import doubtful
from probsl.engine.minimize.vectorized import each_tensor, single, values_and_gradients

if TYPE_CHECKING:
    from collections.abc import Callable

    from probsl.engine.minimize.l1_penalty import L1Penalty
    from probsl.engine.minimize.search_options import SearchOptions

__all__ = ["Lockstep"]

# Consecutive small steps that end a search.
CALM = 2
# Updates to remember, some of which are of other searches only, and trials along one
# line before it is given up.
MEMORY, TRIALS = 20, 20


@dataclass(eq=False)
class Lines:
    """The line that each active search is on, and its state [k, ...] there.

    Attributes
    ----------
    x, values, gradients
        The start of the line, the objective there with the penalty, and its gradient
        without it.
    pseudo_gradients
        The gradient there, or the pseudo-gradient if there is a penalty.
    directions, along
        The direction of the line, and the directional derivative at its start.
    t, low, high
        The next step length, and the bracket in which the best one lies.
    tries
        Number of trial points on the line.
    calm
        Number of consecutive small steps.
    """

    x: Tensor
    values: Tensor
    gradients: Tensor
    pseudo_gradients: Tensor
    directions: Tensor
    along: Tensor
    t: Tensor
    low: Tensor
    high: Tensor
    tries: Tensor
    calm: Tensor

    @classmethod
    def at(cls, x: Tensor, values: Tensor, gradients: Tensor) -> Lines:
        """Return the state at points from which no search has a direction yet."""
        zero, none = torch.zeros_like(x), torch.zeros_like(values)
        count = torch.zeros_like(values, dtype=torch.long)
        return cls(
            x, values, gradients, zero, zero, none, none, none, none, count, count
        )

    def of(self, chosen: Tensor) -> Lines:
        """Return the state of some searches."""
        return Lines(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def replace(self, where: Tensor, **values: Tensor | float) -> None:
        """Replace some of the state of those searches for which a mask is true."""
        for name, value in values.items():
            old = getattr(self, name)
            mask = where[:, None] if old.dim() == 2 else where
            setattr(self, name, torch.where(mask, value, old))

    def move_along(
        self, low: Tensor, finite: Tensor, rise: Tensor, end: Tensor
    ) -> None:
        """Choose the next point of each line by bracketing and a parabola within.

        Parameters
        ----------
        low
            Whether the last trial [k] was low enough.
        finite
            Whether it was finite.
        rise, end
            The change of the objective, and the directional derivative there.
        """
        t = self.t
        self.replace(low, low=t)
        self.replace(~low, high=t)
        width = self.high - self.low
        # The parabola through the start, with its derivative, and this point.
        bottom = -self.along * t * t / (2 * (rise - t * self.along))
        inside = torch.maximum(bottom, self.low + 0.1 * width)
        inside = torch.minimum(inside, self.low + 0.5 * width)
        inside = torch.where(finite, inside, self.low + 0.1 * width)
        inside = torch.where(inside.isfinite(), inside, self.low + 0.5 * width)
        # Beyond: where the extrapolated directional derivative would vanish.
        bend = (end - self.along) / t
        beyond = torch.where(bend > 0, t - end / bend, 4 * t)
        beyond = torch.maximum(2 * t, torch.minimum(beyond, 10 * t))
        self.t = torch.where(self.high.isinf(), beyond, inside)


class Lockstep:
    """The state of all searches, and of the lines of those that are active."""

    def __init__(
        self,
        objective: Callable[..., Tensor],
        starts: Tensor,
        extra: Any,
        options: SearchOptions,
        l1: L1Penalty | None,
    ) -> None:
        self._objective, self._extra = objective, extra
        self._l1 = None if l1 is None else l1.to(starts)
        self._precision = torch.finfo(starts.dtype).eps
        default = max(1e-9, self._precision**0.75)
        self._tolerance = default if options.tolerance is None else options.tolerance
        self._newton_limit = options.newton_limit
        self._x = starts.detach().clone()
        self._values = starts.new_full((len(starts),), math.nan)
        self.converged = torch.zeros_like(self._values, dtype=torch.bool)
        self._steps = torch.zeros_like(self._values, dtype=torch.long)
        self._losses: list[Tensor] = []
        self.active = torch.arange(len(starts), device=starts.device)
        self.round = 0

    def begin(self) -> None:
        """Evaluate the initial points; searches with nonfinite values end there."""
        self._values, gradients = self._values_and_gradients(self._x)
        self._losses.append(self._values.clone())
        unit = self._measured(self._x[0])
        self._memory = LimitedMemory(unit, len(self._x), MEMORY)
        self._lines = Lines.at(self._x.clone(), self._values.clone(), gradients)
        self._keep(self._values.isfinite() & gradients.isfinite().all(1))
        self._aim(torch.ones_like(self.active, dtype=torch.bool))

    def advance(self) -> None:
        """Try one point for each search; accept it if it is good."""
        self.round += 1
        self._steps[self.active] = self.round
        lines, l1 = self._lines, self._l1
        x = lines.x + lines.t[:, None] * lines.directions
        expected = lines.t * lines.along
        if l1 is not None:
            orthant = l1.orthant(lines.x, lines.pseudo_gradients)
            x = l1.projected(x, orthant)
            expected = (lines.pseudo_gradients * (x - lines.x)).sum(1)
        values, gradients = self._values_and_gradients(x)
        finite = values.isfinite() & gradients.isfinite().all(1)
        end = (gradients * lines.directions).sum(1)
        reached, long = lines.t * end, end >= STEEPNESS * lines.along
        if l1 is not None:  # the penalty is linear in the orthant
            one_sided = gradients + l1.weight * orthant
            reached, long = (one_sided * (x - lines.x)).sum(1), torch.ones_like(long)
        change = values - lines.values
        noise = 10 * self._precision * lines.values.abs().clamp(min=1.0)
        low = change <= DECREASE * expected
        # If rounding hides the decrease, the gradient decides.
        low |= (change <= noise) & (reached.abs() <= STEEPNESS * expected.abs())
        finite &= ~((-change > noise) & doubtful(-change, expected, reached))
        low &= finite & (expected < 0)
        taken = low & (long | (lines.tries >= TRIALS // 2))
        lines.tries = lines.tries + 1
        lines.move_along(low, finite, change, end)
        self._take(taken, x, values, gradients)
        stuck = ~taken & (lines.tries >= TRIALS)
        # A memory misled by a kink or by rounding is cleared, once.
        forgetful = stuck & self._memory.known
        if bool(forgetful.any()):
            self._memory.clear(forgetful)
        self._aim(taken | forgetful, lost=stuck & ~forgetful)

    def best(self) -> tuple[float, Tensor]:
        """Return the lowest objective and its point [d]."""
        values = self._values.nan_to_num(math.inf, math.inf, math.inf)
        lowest = int(values.argmin())
        return float(self._values[lowest]), self._x[lowest].clone()

    def minima(self, *, interrupted: bool) -> Minima:
        """Return the results."""
        losses = torch.stack(self._losses or [self._values])
        return Minima(
            self._x, self._values, self.converged, losses, self._steps, interrupted
        )

    def _values_and_gradients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return values, penalty included, and gradients without it."""
        extra = self._extra
        if extra is not None and len(x) < len(self._x):
            extra = each_tensor(lambda tensor: tensor[self.active], extra)
        values, gradients = values_and_gradients(self._objective, x, extra)
        return values if self._l1 is None else values + self._l1.value(x), gradients

    def _measured(self, x: Tensor) -> Tensor:
        """Return the unit of each coordinate, measured at the first start for all."""
        if len(x) <= self._newton_limit:
            try:
                landscape = Landscape(single(self._objective, self._extra, 0))
                diagonal = landscape.hessian(x).diagonal()
                return torch.tensor(
                    curvature_scale(diagonal, array(x)), device="cpu"
                ).to(x)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                pass
        return x.abs().clamp(min=1.0)

    def _aim(self, fresh: Tensor, lost: Tensor | None = None) -> None:
        """Give searches without a direction a new one, and end those that converged."""
        lines, l1, unit = self._lines, self._l1, self._memory.scale
        pseudo_gradients = lines.gradients
        if l1 is not None:
            pseudo_gradients = l1.pseudo_gradient(lines.x, pseudo_gradients)
        free = None if l1 is None else l1.free(lines.x, pseudo_gradients)
        directions = -self._memory.apply(pseudo_gradients, free)
        if l1 is not None:
            directions = l1.aligned(lines.x, directions, pseudo_gradients, unit)
        along = (pseudo_gradients * directions).sum(1)
        # One such step may be a bend of a curved valley; two in a row are its floor.
        small = -along / 2 < self._tolerance
        calm = torch.where(small, lines.calm + 1, 0)
        over = done = fresh & ((calm >= CALM) | (small & (along == 0)))
        if lost is not None:
            # Rounding may hide the remaining gain, but not if a search is diverging.
            hidden = (10 * self._precision * lines.values.abs()).clamp(max=1e-3)
            done = done | (
                lost & (-lines.along / 2 <= hidden.clamp(min=self._tolerance))
            )
            over = done | lost
        self.converged[self.active[done]] = True
        first = (1 / (directions / unit).norm(dim=1)).clamp(max=1.0)
        lines.replace(
            fresh,
            pseudo_gradients=pseudo_gradients,
            directions=directions,
            along=along,
            t=torch.where(self._memory.known, 1.0, first),
            low=0.0,
            high=math.inf,
            tries=0,
            calm=calm,
        )
        if bool(over.any()):
            self._keep(~over)

    def _keep(self, chosen: Tensor) -> None:
        """Keep some of the active searches."""
        if bool(chosen.all()):
            return
        self.active, self._lines = self.active[chosen], self._lines.of(chosen)
        self._memory.keep(chosen)
        if self._l1 is not None:
            self._l1 = self._l1.of(chosen)

    def _take(
        self, taken: Tensor, x: Tensor, values: Tensor, gradients: Tensor
    ) -> None:
        """Accept the good steps, and remember them."""
        lines, each = self._lines, taken[:, None]
        self._memory.update(
            torch.where(each, x - lines.x, 0.0),
            torch.where(each, gradients - lines.gradients, 0.0),
        )
        lines.replace(taken, x=x, values=values, gradients=gradients)
        self._x[self.active] = lines.x
        self._values[self.active] = lines.values
        self._losses.append(self._values.clone())
