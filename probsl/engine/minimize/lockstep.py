"""L-BFGS for many vectors at once: the state of each, and its next trial point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.engine.minimize.curvature import curvature_scale
from probsl.engine.minimize.descent import array
from probsl.engine.minimize.landscape import Landscape
from probsl.engine.minimize.vectorized import each_tensor, single, slopes_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Lockstep", "Many"]

# Consecutive small steps that end a search.
CALM = 2
# Steps to remember, and trials along one line before it is given up.
MEMORY, TRIALS = 15, 20
# Up to this many coordinates, the Hessian gives the units.
HESSIAN_LIMIT = 300
# Constants of the Armijo and Wolfe conditions.
DECREASE, STEEPNESS = 1e-4, 0.9


@dataclass(frozen=True, eq=False)
class Many:
    """The results of many minimizations.

    Attributes
    ----------
    x
        Best point of each [k, d].
    values
        Objective there [k], penalty included; NaN or infinite if the start was bad.
    settled
        Whether each [k] reached a point where a step gains less than the tolerance.
    history
        Objective of each at the start and after each round [rounds + 1, k].
    rounds
        Rounds until each ended [k].
    interrupted
        Whether the callback or a keyboard interrupt stopped them all.
    """

    x: Tensor
    values: Tensor
    settled: Tensor
    history: Tensor
    rounds: Tensor
    interrupted: bool = False


class Lockstep:
    """The state of all searches; tensors without an axis of k are for active ones."""

    def __init__(
        self,
        objective: Callable[..., Tensor],
        starts: Tensor,
        extra: Any,
        *,
        tolerance: float | None,
        l1: tuple[Tensor, Tensor] | None,
    ) -> None:
        self._objective, self._extra, self._l1 = objective, extra, l1
        precision = torch.finfo(starts.dtype).eps
        default = max(1e-9, precision**0.75)
        self._tolerance = default if tolerance is None else tolerance
        self._precision = precision
        self._all_x = starts.detach().clone()
        self._all_values = starts.new_full((len(starts),), math.nan)
        self.settled = torch.zeros(len(starts), dtype=torch.bool, device=starts.device)
        self._rounds = torch.zeros(len(starts), dtype=torch.long, device=starts.device)
        self._history: list[Tensor] = []
        self.active = torch.arange(len(starts), device=starts.device)
        self.round = 0
        self._unit = torch.ones_like(starts[0])

    def begin(self) -> None:
        """Evaluate the initial points; searches with nonfinite values end there."""
        x = self._all_x
        values, gradients = self._slopes(x)
        self._all_values = values
        self._history.append(values.clone())
        self._unit = self._measured(x[0])
        size = (len(x), MEMORY, x.shape[1])
        self._steps, self._changes = x.new_zeros(size), x.new_zeros(size)
        self._inverses = x.new_zeros(size[:2])
        self._factors = x.new_ones(len(x))
        self._x, self._values, self._gradients = x.clone(), values, gradients
        self._directions, self._slopes_along = torch.zeros_like(x), x.new_zeros(len(x))
        self._t, self._low, self._high = (x.new_zeros(len(x)) for _ in range(3))
        self._tries = torch.zeros_like(self.active)
        self._calm = torch.zeros_like(self.active)
        self._keep(values.isfinite() & gradients.isfinite().all(1))
        self._aim(torch.ones_like(self.active, dtype=torch.bool))

    def advance(self) -> None:
        """Try one point for each search; accept it if it is good."""
        self.round += 1
        self._rounds[self.active] = self.round
        trial = self._x + self._t[:, None] * self._directions
        if self._l1 is not None:
            trial = self._within_orthant(trial)
        values, gradients = self._slopes(trial)
        finite = values.isfinite() & gradients.isfinite().all(1)
        along = (gradients * self._directions).sum(1)
        change = values - self._values
        noise = 10 * self._precision * self._values.abs().clamp(min=1.0)
        start = self._slopes_along
        if self._l1 is None:
            low = change <= DECREASE * self._t * start
            # If rounding hides the decrease, the gradient decides.
            low |= (change <= noise) & (along.abs() <= STEEPNESS * start.abs())
            long = (along >= STEEPNESS * start) | (self._tries >= TRIALS // 2)
        else:
            expected = (self._pseudo_gradients() * (trial - self._x)).sum(1)
            low = (change <= DECREASE * expected) & (expected < 0)
            long = torch.ones_like(low)
        low &= finite
        taken = low & long
        self._tries += 1
        self._move_along(taken, low, finite, change, along)
        self._take(taken, trial, values, gradients)
        self._all_x[self.active] = self._x
        self._all_values[self.active] = self._values
        self._history.append(self._all_values.clone())
        stuck = ~taken & (self._tries >= TRIALS)
        # A memory misled by a kink or by rounding is cleared, once.
        forgetful = stuck & (self._inverses[:, 0] != 0)
        self._inverses[forgetful], self._factors[forgetful] = 0.0, 1.0
        self._aim(taken | forgetful, lost=stuck & ~forgetful)

    def best(self) -> tuple[float, Tensor]:
        """Return the lowest objective and its point [d]."""
        values = self._all_values.nan_to_num(math.inf, math.inf, math.inf)
        lowest = int(values.argmin())
        return float(self._all_values[lowest]), self._all_x[lowest].clone()

    def ends(self, *, interrupted: bool) -> Many:
        """Return the results."""
        history = self._history or [self._all_values]
        return Many(
            self._all_x,
            self._all_values,
            self.settled,
            torch.stack(history),
            self._rounds,
            interrupted,
        )

    def _slopes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return values, penalty included, and gradients without it."""
        values, gradients = slopes_of(self._objective, x, self._mine())
        if self._l1 is not None:
            center, weight = self._l1
            values = values + (weight * (x - center).abs()).sum(1)
        return values, gradients

    def _measured(self, x: Tensor) -> Tensor:
        """Return the unit of each coordinate, measured at the first start for all."""
        if len(x) <= HESSIAN_LIMIT:
            try:
                landscape = Landscape(single(self._objective, self._extra, 0))
                diagonal = landscape.hessian(x).diagonal()
                return torch.tensor(
                    curvature_scale(diagonal, array(x)), device="cpu"
                ).to(x)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                pass
        return x.abs().clamp(min=1.0)

    def _mine(self) -> Any:
        """Return the extra arguments of the active searches."""
        if self._extra is None or len(self.active) == len(self._all_x):
            return self._extra
        return each_tensor(lambda tensor: tensor[self.active], self._extra)

    def _aim(self, fresh: Tensor, lost: Tensor | None = None) -> None:
        """Give searches without a direction a new one, and end those that converged."""
        slopes = self._pseudo_gradients()
        directions = -self._inverse_hessian_times(slopes)
        if self._l1 is not None:
            wrong = (self._l1[1] > 0) & (directions * slopes >= 0)
            directions = torch.where(wrong, 0.0, directions)
        along = (slopes * directions).sum(1)
        # One such step may be a bend of a curved valley; two in a row are its floor.
        small = -along / 2 < self._tolerance
        self._calm = torch.where(
            fresh, torch.where(small, self._calm + 1, 0), self._calm
        )
        done = fresh & ((self._calm >= CALM) | (small & (along == 0)))
        if lost is not None:
            # Rounding may hide the remaining gain, but not if a search is diverging.
            hidden = (10 * self._precision * self._values.abs()).clamp(max=1e-3)
            done |= lost & (
                -self._slopes_along / 2 <= hidden.clamp(min=self._tolerance)
            )
        self.settled[self.active[done]] = True
        length = (directions / self._unit).norm(dim=1)
        known = self._inverses[:, 0] != 0
        first = torch.where(known, 1.0, (1 / length).clamp(max=1.0))
        self._directions = torch.where(fresh[:, None], directions, self._directions)
        self._slopes_along = torch.where(fresh, along, self._slopes_along)
        self._t = torch.where(fresh, first, self._t)
        self._low = torch.where(fresh, 0.0, self._low)
        self._high = torch.where(fresh, math.inf, self._high)
        self._tries = torch.where(fresh, 0, self._tries)
        over = done if lost is None else done | lost
        if bool(over.any()):
            self._keep(~over)

    def _keep(self, chosen: Tensor) -> None:
        """Keep some of the active searches."""
        if bool(chosen.all()):
            return
        self.active = self.active[chosen]
        for name in _STATE:
            setattr(self, name, getattr(self, name)[chosen])

    def _move_along(
        self,
        taken: Tensor,
        low: Tensor,
        finite: Tensor,
        change: Tensor,
        along: Tensor,
    ) -> None:
        """Choose the next point of each line by bracketing and a parabola within."""
        t = self._t
        self._low = torch.where(low & ~taken, t, self._low)
        self._high = torch.where(low, self._high, t)
        width = self._high - self._low
        # The parabola through the start, with its derivative, and this point.
        curved = 2 * (change - t * self._slopes_along)
        bottom = -self._slopes_along * t * t / curved
        inside = torch.maximum(bottom, self._low + 0.1 * width)
        inside = torch.minimum(inside, self._low + 0.5 * width)
        inside = torch.where(finite, inside, self._low + 0.1 * width)
        inside = torch.where(inside.isfinite(), inside, self._low + 0.5 * width)
        # Beyond: where the extrapolated directional derivative would vanish.
        bend = (along - self._slopes_along) / t
        beyond = torch.where(bend > 0, t - along / bend, 4 * t)
        beyond = torch.maximum(2 * t, torch.minimum(beyond, 10 * t))
        self._t = torch.where(self._high.isinf(), beyond, inside)

    def _take(
        self, taken: Tensor, x: Tensor, values: Tensor, gradients: Tensor
    ) -> None:
        """Accept the good steps, and remember them."""
        step = torch.where(taken[:, None], x - self._x, 0.0)
        change = torch.where(taken[:, None], gradients - self._gradients, 0.0)
        curvature = (step * change).sum(1)
        scaled = self._unit * change
        bend = (scaled * scaled).sum(1)
        reach = ((step / self._unit) ** 2).sum(1)
        curved = curvature > self._precision * (bend * reach).sqrt()
        if bool(curved.any()):
            inverse = torch.where(curved, 1 / curvature, 0.0)
            each, row = curved[:, None, None], curved[:, None]
            self._steps = torch.where(each, _pushed(self._steps, step), self._steps)
            self._changes = torch.where(
                each, _pushed(self._changes, change), self._changes
            )
            self._inverses = torch.where(
                row, _pushed(self._inverses, inverse), self._inverses
            )
            self._factors = torch.where(curved, curvature / bend, self._factors)
        self._x = torch.where(taken[:, None], x, self._x)
        self._values = torch.where(taken, values, self._values)
        self._gradients = torch.where(taken[:, None], gradients, self._gradients)

    def _inverse_hessian_times(self, vectors: Tensor) -> Tensor:
        """Return the L-BFGS inverse Hessians times vectors [k, d], latest step first.

        The two-loop recursion; a missing pair has a reciprocal curvature of zero.
        """
        used = int((self._inverses != 0).any(0).sum()) if len(vectors) else 0
        weights = []
        for i in range(used):
            inverse = self._inverses[:, i, None]
            weight = inverse * (self._steps[:, i] * vectors).sum(1, keepdim=True)
            vectors = vectors - weight * self._changes[:, i]
            weights.append(weight)
        vectors = self._factors[:, None] * self._unit**2 * vectors
        for i in reversed(range(used)):
            inverse = self._inverses[:, i, None]
            back = inverse * (self._changes[:, i] * vectors).sum(1, keepdim=True)
            vectors = vectors + (weights[i] - back) * self._steps[:, i]
        return vectors

    def _pseudo_gradients(self) -> Tensor:
        """Return the steepest one-sided derivatives; without a penalty, gradients."""
        if self._l1 is None:
            return self._gradients
        center, weight = self._l1
        side, gradients = torch.sign(self._x - center), self._gradients
        within = torch.sign(gradients) * (gradients.abs() - weight).clamp(min=0.0)
        return torch.where(side == 0, within, gradients + weight * side)

    def _within_orthant(self, trial: Tensor) -> Tensor:
        """Stop penalized coordinates at the center if they would cross it."""
        assert self._l1 is not None
        center, weight = self._l1
        offset = self._x - center
        orthant = torch.sign(offset)
        orthant = torch.where(offset == 0, self._directions.sign(), orthant)
        outside = (weight > 0) & ((trial - center) * orthant <= 0)
        return torch.where(outside, center, trial)


_STATE = (
    "_x",
    "_values",
    "_gradients",
    "_directions",
    "_slopes_along",
    "_t",
    "_low",
    "_high",
    "_tries",
    "_calm",
    "_steps",
    "_changes",
    "_inverses",
    "_factors",
)


def _pushed(rows: Tensor, first: Tensor) -> Tensor:
    """Insert a row before the others [k, rows, ...], and drop the last one."""
    return torch.cat([first[:, None], rows[:, :-1]], 1)
