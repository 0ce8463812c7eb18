"""What first-order steps have left to gain at the place where they came to rest.

That their objective stands still proves little: it does so wherever the rate has died.
So the end is asked whether a better kind of step would still improve it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from probsl.engine.ending import Ending
from probsl.engine.minimize.minimize import Minimum, minimize

Objective = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
Given = Mapping[str, Tensor]

# Steps of the better kind, without noise and with it, and coordinates for Newton's.
_EXACT_STEPS, _NOISY_STEPS, _NEWTON = 20, 8, 100
# How far along the way to the better point to look, for chance leads too far.
_SHARES = (1.0, 0.3)
# Half of the noise leads the way, in groups, and the other half judges it.
SAMPLES = 64
_GROUPS = 4
# An average is seldom so many times as high above the optimum as is to be expected.
_SAFETY = 3.0


@dataclass(frozen=True)
class Remainder:
    """What is left to gain at a point.

    Attributes
    ----------
    value, error
        The objective at the point, and its standard error.
    gain
        By how much it falls further, less two standard errors; what chance alone may
        show is zero.
    distance
        The longest move of a coordinate on the way there.
    chance
        How far above the optimum an average of this many noisy steps may well be.
    """

    value: float
    error: float
    gain: float
    distance: float
    chance: float = 0.0

    @property
    def bound(self) -> float:
        """How far above the optimum the point may be."""
        return max(self.gain, self.chance)


def remainder(
    objective: Objective,
    x: Tensor,
    given: Sequence[Given],
    steps: int,
    whole: Callable[[Tensor], Tensor] | None = None,
) -> Remainder:
    """Return what is left to gain at a point.

    Parameters
    ----------
    objective
        Maps a tensor ``[d]`` and what a step is given to a scalar.
    x
        The point, an average of iterates.
    given
        What each of several steps is given; empty where steps are given nothing.
    steps
        How many iterates it is the average of.
    whole
        The expectation of the objective, if there is a way to compute it.

    Notes
    -----
    An average of n steps is higher than the optimum by tr(H^-1 C) / 2n for a Hessian H
    and gradients of covariance C: Polyak and Juditsky (1992), SIAM J. Control Optim.
    30, 838-855. The optimum for m samples of the noise is lower there by tr(H^-1 C) /
    2m, which gives the trace.
    """
    samples = _samples(objective, x, given)
    if len(samples) == 1:
        return _exactly(samples[0], x)
    half = len(samples) // 2
    leading, judging = samples[:half], samples[half:]
    groups = [leading[i::_GROUPS] for i in range(min(_GROUPS, half))]
    best = [_lowest(group, x) for group in groups]
    move = torch.stack([b.x - x for b in best]).mean(0)
    with torch.no_grad():
        here = _values(samples, x)
        falls = [here[half:] - _values(judging, x + s * move) for s in _SHARES]
    error = float(here.std()) / math.sqrt(len(here))
    fitted = sum(b.losses[0] - b.value for b in best) / len(best)
    chance = _SAFETY * max(fitted, 0.0) * (half / len(groups)) / steps
    if whole is not None:
        exact = _exactly(whole, x)
        return replace(exact, error=error, chance=chance)
    sure = [float(f.mean() - 2 * f.std() / math.sqrt(len(f))) for f in falls]
    gain, share = max(zip(sure, _SHARES, strict=True))
    distance = share * float(move.abs().max())
    return Remainder(float(here.mean()), error, max(gain, 0.0), distance, chance)


def _lowest(samples: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Minimum:
    """Return the optimum for a few samples, or a point on the way there."""
    found = minimize(
        lambda y: torch.stack([s(y) for s in samples]).mean(),
        x,
        max_steps=_NOISY_STEPS,
        newton_limit=0,
    )
    if found.ending is Ending.INTERRUPTED:
        raise KeyboardInterrupt
    return found


def _exactly(objective: Callable[[Tensor], Tensor], x: Tensor) -> Remainder:
    better = minimize(objective, x, max_steps=_EXACT_STEPS, newton_limit=_NEWTON)
    if better.ending is Ending.INTERRUPTED:
        raise KeyboardInterrupt
    fall = better.losses[0] - better.value
    gain = fall if math.isfinite(fall) else math.inf
    return Remainder(better.losses[0], 0.0, gain, float((better.x - x).abs().max()))


def _samples(
    objective: Objective, x: Tensor, given: Sequence[Given]
) -> list[Callable[[Tensor], Tensor]]:
    """Return the objective for what each of some steps is given.

    One that draws from torch's own generator is given seeds; one that does not vary is
    one.
    """
    if given:
        return [partial(_given, objective, one) for one in given]
    seeded = [partial(_seeded, objective, seed) for seed in range(SAMPLES)]
    with torch.no_grad():
        first, second = (float(sample(x)) for sample in seeded[:2])
    return [*seeded] if first != second else [partial(_given, objective, {})]


def _given(objective: Objective, given: Given, x: Tensor) -> Tensor:
    return objective(x, given)


def _seeded(objective: Objective, seed: int, x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return objective(x, {})


def _values(samples: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    return torch.stack([sample(x).detach() for sample in samples]).double()
