"""Checks that a guide suits its program."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer.autoguide import AutoDelta, AutoGuide
from torch.distributions import constraints

from probsl.isolation.calls import forked
from probsl.program.messages import plates_of
from probsl.program.sites import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from probsl.methods.guides.guide import Guide
    from probsl.program.problem import Problem
    from probsl.program.scoring import Scoring

__all__ = ["check_sites", "refuse_reaching", "refuse_unbounded"]

# The number of points, and their scale in unconstrained space, that show whether
# observed values can be outside their support at all; and the number of draws.
_POINTS, _FAR = 64, 10.0
_DRAWS = 128
# A guide that leaves a support shows it within this many draws, or rarely does.
_SUPPORT_DRAWS = 32


def refuse_unbounded(problem: Problem, form: Any) -> None:
    """Refuse an automatic guide whose evidence lower bound is minus infinity.

    Such a guide has positive density at every value of a latent, including those at
    which an observed value is outside its support.

    Parameters
    ----------
    problem
        The program bound to its data.
    form
        The guide, in any form that `SVI` takes.

    Raises
    ------
    ValueError
        Naming the latent and the observed site.
    """
    while isinstance(form, functools.partial):
        form = form.func
    kind = type(form) if isinstance(form, AutoGuide) else form
    automatic = isinstance(kind, type) and issubclass(kind, AutoGuide)
    if form is not None and (not automatic or issubclass(kind, AutoDelta)):
        return
    if not any(site in _moved(problem) for site in problem.moving):
        return
    layout = problem.coordinates()
    generator = torch.Generator("cpu").manual_seed(0)
    for _ in range(_POINTS):
        x = torch.randn(
            layout.size, generator=generator, dtype=problem.dtype, device="cpu"
        )
        values = layout.constrain(_FAR * x.to(problem.device))
        name = "the automatic guide" if form is None else f"guide {kind.__name__}"
        _refuse(problem, values, values, name)


def refuse_reaching(problem: Problem, guide: Guide) -> None:
    """Refuse a guide that draws latents under which observed values are impossible.

    Parameters
    ----------
    problem
        The program bound to its data.
    guide
        The guide, at its start.

    Raises
    ------
    ValueError
        Naming the latent and the observed site.
    """
    if not any(site in _moved(problem) for site in problem.moving):
        return
    parameters = {p.name: p.start for p in problem.own_parameters}
    own = {p.name: p.start for p in guide.functional.own_parameters}
    for _ in range(_DRAWS):
        with torch.no_grad():
            values = guide.score(own, problem.batch()).values
        _refuse(problem, values, parameters, f"guide {guide.name}")


def _moved(problem: Problem) -> dict[str, tuple[str, ...]]:
    """Return the sites whose support depends on latents, and those latents."""
    latents = {s.name for s in problem.latents}
    moved = {s.name: s.moved_by for s in problem.sites if s.moving}
    return {
        site: tuple(n for n in names if n in latents)
        for site, names in moved.items()
        if not names or latents & set(names)
    }


def _refuse(
    problem: Problem,
    values: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    guide: str,
) -> None:
    """Refuse a guide that draws latents which put an observed value outside."""
    latents = {s.name: s for s in problem.latents}
    leaves = {
        n: v.detach().requires_grad_() if n in latents else v for n, v in values.items()
    }
    with torch.enable_grad():
        found = problem.edges(leaves, own)
    for edge in found:
        if bool((edge.distance.detach() < 0).any()):
            names = _moved(problem).get(edge.site, ())
            which = ", ".join(f"'{n}'" for n in names) or "a latent"
            raise ValueError(
                f"the support of site '{edge.site}' moves with {which}, and {guide} "
                "gives probability to values that exclude observed ones, so that its "
                "evidence lower bound is minus infinity; use MAP, or a guide of your "
                f"own that keeps {which} within what the observed values allow"
            )


def check_sites(problem: Problem, scoring: Scoring) -> None:
    """Refuse a guide whose sites are not the latents of the program."""
    _refuse_subsamples(problem, scoring)
    latents = {s.name: s for s in problem.latents}
    sampled = {}
    for name, message in scoring.messages.items():
        if message["is_observed"] or message["infer"].get("is_auxiliary"):
            continue
        sampled[name] = message
        if name in problem.sites_with_role(Role.ENUMERATED):
            raise ValueError(
                f"the guide samples '{name}', a discrete site that is summed out; "
                "leave it out of the guide"
            )
        if name not in latents:
            raise ValueError(
                f"the guide samples '{name}', which is not a latent site of the "
                f"program ({', '.join(latents)}); remove it, or mark it with "
                'infer={"is_auxiliary": True}'
            )
        if tuple(message["value"].shape) != tuple(latents[name].shape):
            raise ValueError(
                f"the guide gives '{name}' the shape {tuple(message['value'].shape)}, "
                f"the program {tuple(latents[name].shape)}; give both the same shape"
            )
        if not message["fn"].has_rsample:
            raise ValueError(
                f"the guide draws '{name}' from {type(message['fn']).__name__}, "
                "through which gradients do not pass; use a reparameterized "
                "distribution"
            )
        _check_support(message, latents[name].support)
    missing = [n for n in latents if n not in sampled]
    if missing:
        raise ValueError(
            f"the guide lacks '{missing[0]}', a latent site of the program; add "
            f"pyro.sample('{missing[0]}', ...) to the guide"
        )


def _refuse_subsamples(problem: Problem, scoring: Scoring) -> None:
    """Refuse a guide that subsamples rows itself: they differ from the program's."""
    shared = problem.subsampling.seen if problem.subsampling else {}
    for message in scoring.messages.values():
        for plate in plates_of(message):
            if plate.size != plate.full_size and plate.name not in shared:
                raise ValueError(
                    f"plate '{plate.name}' of the guide draws a subsample of "
                    f"{plate.size} of {plate.full_size} by itself, which are other "
                    "rows than the program's; leave subsample_size out, and let fit "
                    "draw batches of rows with batch_size="
                )


def _check_support(message: Any, support: Any) -> None:
    """Refuse a guide whose draws are outside a site's support."""
    with forked(torch.get_default_device()), torch.no_grad():
        draws = message["fn"].sample(torch.Size([_SUPPORT_DRAWS]))
    edges = support
    while isinstance(edges, constraints.independent):
        edges = edges.base_constraint
    # Rows that must sum to one do so only up to rounding.
    if edges.event_dim == 0 and not bool(edges.check(draws).all()):
        raise ValueError(
            f"the guide draws '{message['name']}' from {type(message['fn']).__name__}, "
            f"also outside the site's support, {support}; use a distribution of that "
            "support, such as LogNormal for positive numbers"
        )
