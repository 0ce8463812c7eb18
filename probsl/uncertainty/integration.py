"""Whether Laplace's approximation of a marginal likelihood is good enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from probsl.isolation.calls import undisturbed
from probsl.methods.marginal_posterior import MarginalPosterior
from probsl.noise.streams import stream
from probsl.options import whole_number
from probsl.progress import phase
from probsl.uncertainty.points import check_fit

if TYPE_CHECKING:
    from probsl.fitting import Fit

__all__ = ["IntegrationCheck", "check_integration"]

# Nats of a log likelihood that matter, and the share of draws that must count.
_MATTERS, _ENOUGH = 0.5, 0.05


@dataclass(frozen=True)
class IntegrationCheck:
    """The marginal likelihood by Laplace's approximation and by importance sampling.

    Attributes
    ----------
    laplace
        The log marginal likelihood by Laplace's approximation.
    sampled
        The same by importance sampling.
    error
        Its Monte Carlo standard error, in nats.
    effective_draws
        How many independent draws its weights are worth.
    draws
        The number of draws.
    """

    laplace: float
    sampled: float
    error: float
    effective_draws: float
    draws: int

    @property
    def good_enough(self) -> bool | None:
        """Whether the difference is below half a nat; None if that is not known."""
        if self.effective_draws < _ENOUGH * self.draws:
            return None
        return abs(self.sampled - self.laplace) < _MATTERS + 2 * self.error

    def __str__(self) -> str:
        verdicts = {
            True: "Laplace's approximation is good enough",
            False: "Laplace's approximation misleads; use SVI",
            None: "too few draws count to tell; give more draws=",
        }
        return (
            f"log marginal likelihood {self.laplace:.4f} by Laplace, "
            f"{self.sampled:.4f} by importance sampling (error {self.error:.4f}, "
            f"{self.effective_draws:.0f} effective draws of {self.draws}): "
            f"{verdicts[self.good_enough]}"
        )


@undisturbed
def check_integration(
    fit: Fit, *, draws: int = 2000, seed: int = 0
) -> IntegrationCheck:
    """Check how good Laplace's approximation of the marginal likelihood is.

    Parameters
    ----------
    fit
        A fit by MLE with random effects integrated out.
    draws
        The number of draws of all effects.
    seed
        Seed of the draws.

    Returns
    -------
    IntegrationCheck
        Both values at the estimate; it prints as a sentence.

    Raises
    ------
    TypeError, ValueError
        If nothing was integrated out.

    Notes
    -----
    Effects are drawn in pairs about their conditional mode from the Normal distribution
    of Laplace's approximation, and weighted by their density over its (Durbin and
    Koopman, 1997). With very many effects few of the draws count.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> def program(y=None):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    ...     tau = pyro.sample("tau", dist.HalfNormal(5.0))
    ...     with pyro.plate("groups", 4):
    ...         u = pyro.sample("u", dist.Normal(mu, tau))
    ...         with pyro.plate("rows", 3):
    ...             pyro.sample("y", dist.Normal(u, 1.0), obs=y)
    >>> y = torch.tensor([0.0, 2.0, 4.0, 7.0]) + torch.tensor([[-1.0], [0.0], [1.0]])
    >>> fit = probsl.fit(program, {"y": y}, probsl.MLE())
    >>> check = probsl.check_integration(fit)
    >>> check.good_enough, abs(check.sampled - check.laplace) < 1e-3
    (True, True)
    """
    posterior = check_fit(fit).posterior
    if not isinstance(posterior, MarginalPosterior):
        raise ValueError(
            "nothing was integrated out of this fit, so there is nothing to check; fit "
            "a program with random effects by MLE()"
        )
    draws = whole_number("draws", draws)
    density = posterior.density
    phi = posterior.parameters.flat().double()
    logs = []
    with fit.problem.isolated(), phase("drawing effects", "draws", draws) as drawing:
        laplace = float(density.value(phi))
        center, scaled = posterior.whitened()
        generator = stream(seed, "simulated")
        for place in range((draws + 1) // 2):
            drawing.report(2 * place)
            noise = torch.randn(
                len(center), generator=generator, dtype=torch.float64, device="cpu"
            ).to(center)
            step = scaled(noise)
            normal = -float(noise.square().sum()) / 2
            for sign in (1, -1):
                with torch.no_grad():
                    joint = float(density.log_joint(phi, center + sign * step))
                logs.append(joint - normal)
    weights = torch.tensor(logs, dtype=torch.float64)
    # What Laplace's value has beyond the log density at the mode is the log volume.
    with fit.problem.isolated(), torch.no_grad():
        volume = laplace - float(density.log_joint(phi, center))
    sampled = float(torch.logsumexp(weights, 0)) - math.log(len(weights)) + volume
    shares = (weights - weights.max()).exp()
    pairs = shares.reshape(-1, 2).mean(1)
    error = float(pairs.std() / pairs.mean()) / math.sqrt(len(pairs))
    return IntegrationCheck(
        laplace,
        sampled,
        error,
        float(shares.sum().square() / shares.square().sum()),
        len(weights),
    )
