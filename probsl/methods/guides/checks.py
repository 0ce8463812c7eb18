"""Checks guides of programs whose observed supports move with latents."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer.autoguide import AutoDelta, AutoGuide

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from probsl.methods.guides.forms import Guide
    from probsl.program.problem import Problem

__all__ = ["refuse_reaching", "refuse_unbounded"]

# The number of points, and their scale in unconstrained space, that show whether
# observed values can be outside their support at all; and the number of draws.
_POINTS, _FAR = 64, 10.0
_DRAWS = 128


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
