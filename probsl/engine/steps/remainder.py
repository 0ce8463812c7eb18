"""The remaining gain at the point where first-order steps became stationary.

A constant objective proves little: it is constant whenever the learning rate is too
small. So the end is tested by whether a better kind of step would still improve it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from probsl.engine.ending import Ending
from probsl.engine.minimize.minimize import Minimum, SearchOptions, minimize

Objective = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
Given = Mapping[str, Tensor]

# Steps of the better kind, without and with noise; coordinate limit of Newton steps.
_EXACT_STEPS, _NOISY_STEPS, _NEWTON = 20, 8, 100
# Fractions of the step to the better point to test, because noise makes it too long.
_SHARES = (1.0, 0.3)
# Half of the noise samples, in groups, give the step; the other half judges it.
SAMPLES = 64
_GROUPS = 4
# The gap between an average and the optimum rarely exceeds this multiple of its mean.
_SAFETY = 3.0


@dataclass(frozen=True)
class Remainder:
    """The remaining gain at a point.

    Attributes
    ----------
    value, error
        The objective at the point, and its standard error.
    gain
        Further decrease of the objective, minus two standard errors; zero if chance
        alone can explain it.
    distance
        The largest change of a coordinate on the way there.
    chance
        Plausible gap between an average of this many noisy steps and the optimum.
    """

    value: float
    error: float
    gain: float
    distance: float
    chance: float = 0.0

    @property
    def bound(self) -> float:
        """Upper bound on the gap between the point and the optimum."""
        return max(self.gain, self.chance)


def remainder(
    objective: Objective,
    x: Tensor,
    given: Sequence[Given],
    steps: int,
    whole: Callable[[Tensor], Tensor] | None = None,
) -> Remainder:
    """Return the remaining gain at a point.

    Parameters
    ----------
    objective
        Maps a tensor ``[d]`` and the inputs of a step to a scalar.
    x
        The point, an average of iterates.
    given
        The inputs of several steps; empty if steps have no inputs.
    steps
        Number of iterates in the average.
    whole
        The expectation of the objective, if it can be computed.

    Notes
    -----
    An average of n steps is above the optimum by tr(H^-1 C) / 2n for a Hessian H and
    gradients of covariance C: Polyak and Juditsky (1992), SIAM J. Control Optim. 30,
    838-855. The optimum for m samples of the noise is lower by tr(H^-1 C) / 2m, which
    gives an estimate of the trace.
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
    """Return the optimum for a few samples, or a point on the path to it."""
    found = minimize(
        lambda y: torch.stack([s(y) for s in samples]).mean(),
        x,
        SearchOptions(max_steps=_NOISY_STEPS, newton_limit=0),
    )
    if found.ending is Ending.INTERRUPTED:
        raise KeyboardInterrupt
    return found


def _exactly(objective: Callable[[Tensor], Tensor], x: Tensor) -> Remainder:
    options = SearchOptions(max_steps=_EXACT_STEPS, newton_limit=_NEWTON)
    better = minimize(objective, x, options)
    if better.ending is Ending.INTERRUPTED:
        raise KeyboardInterrupt
    fall = better.losses[0] - better.value
    gain = fall if math.isfinite(fall) else math.inf
    return Remainder(better.losses[0], 0.0, gain, float((better.x - x).abs().max()))


def _samples(
    objective: Objective, x: Tensor, given: Sequence[Given]
) -> list[Callable[[Tensor], Tensor]]:
    """Return the objective for the inputs of each of several steps.

    An objective that draws from torch's global generator gets different seeds; if it
    does not vary, one function is returned.
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
        # torch.manual_seed formats the stack for every kind of accelerator.
        torch.default_generator.manual_seed(seed)
        if x.is_cuda:
            torch.cuda.default_generators[x.device.index].manual_seed(seed)
        return objective(x, {})


def _values(samples: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    return torch.stack([sample(x).detach() for sample in samples]).double()
