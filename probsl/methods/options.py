"""Checks the options that methods share."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from probsl.fitting import Fit
from probsl.methods.optimizers import (
    LBFGS,
    DeterministicOptimizer,
    TrustRegionNewton,
)
from probsl.options import did_you_mean, finite_number, shown, whole_number

if TYPE_CHECKING:
    from probsl.program.problem import Problem


def check_options(method: Any, *, deterministic: bool = True) -> None:
    """Refuse invalid options.

    Parameters
    ----------
    method
        The method.
    deterministic
        Whether it can use deterministic optimizers.

    Raises
    ------
    ValueError, TypeError
        Naming the option.
    """
    if method.max_steps is not None:
        whole_number("max_steps", method.max_steps)
    if method.tolerance is not None:
        tolerance = finite_number("tolerance", method.tolerance)
        if tolerance >= 1:
            raise ValueError(
                "tolerance must be below 1: it is what the best next step may still "
                "gain per row, in nats, of which a whole one leaves nothing "
                f"optimized; 1e-6 is usual, got {method.tolerance}"
            )
    _check_optimizer(method, deterministic=deterministic)
    if method.scheduler is not None and not callable(method.scheduler):
        raise TypeError(
            "scheduler must be a class of torch.optim.lr_scheduler or a "
            "functools.partial of one, such as functools.partial("
            "torch.optim.lr_scheduler.ExponentialLR, gamma=0.999), got "
            f"{shown(method.scheduler)}"
        )
    if method.clip_norm is not None:
        finite_number("clip_norm", method.clip_norm)
    if not isinstance(method.start, Mapping | Fit | None):
        raise TypeError(
            'start must map sites to values, such as {"w": 0.5}, or be a fit, got '
            f"{shown(method.start)}"
        )


def _check_optimizer(method: Any, *, deterministic: bool) -> None:
    """Refuse optimizers of the wrong kind, and options that do not apply to one."""
    optimizer = method.optimizer
    if isinstance(optimizer, type) and issubclass(optimizer, LBFGS | TrustRegionNewton):
        raise TypeError(
            f"optimizer must be a value, optimizer=probsl.{optimizer.__name__}(), got "
            f"the class {optimizer.__name__}"
        )
    if isinstance(optimizer, DeterministicOptimizer):
        if not deterministic:
            raise TypeError(
                f"optimizer={optimizer!r} is for MLE and MAP; {type(method).__name__} "
                "needs a torch.optim class, or None for L-BFGS on fixed draws where "
                "these suffice"
            )
        for option in ("scheduler", "clip_norm"):
            if getattr(method, option) is not None:
                raise ValueError(
                    f"{option}= applies to first-order steps, which "
                    f"optimizer={optimizer!r} does not take; leave out one of them"
                )
    elif optimizer is not None and not _makes_optimizers(optimizer):
        raise TypeError(
            "optimizer must be a torch.optim class or a functools.partial of one, such "
            "as functools.partial(torch.optim.Adam, lr=0.01), got "
            f"{shown(optimizer)}"
        )


def _makes_optimizers(form: Any) -> bool:
    """Whether calling it with parameters may return a `torch.optim` optimizer."""
    while isinstance(form, functools.partial):
        form = form.func
    if isinstance(form, type):
        return issubclass(form, torch.optim.Optimizer)
    # Pyro's own optimizers wrap torch's, and have a different interface.
    return callable(form) and not str(form.__module__).startswith("pyro.")


def check_prior_weight(weight: float | Mapping[str, float]) -> None:
    """Refuse prior weights that are negative or not numbers."""
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
    return dict.fromkeys((s.name for s in problem.sites if s.prior), float(weight))


def check_latent_names(problem: Problem, names: Any, argument: str) -> None:
    """Refuse names that are not latent sites."""
    latents = [s.name for s in problem.latents]
    for name in names:
        if name not in latents:
            raise ValueError(
                f"{argument} names '{name}', which is not a latent site of the "
                f"program; those are {', '.join(latents)}{did_you_mean(name, latents)}"
            )
