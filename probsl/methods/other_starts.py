"""Other starts of a search, if the objective is not finite near the first one."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from probsl.data.conversion import place as place_of
from probsl.program.messages import visit
from probsl.program.observed_supports import on_edge
from probsl.program.places import TRIED, others
from probsl.program.sites import Role
from probsl.program.supports import unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from probsl.methods.objective import Objective
    from probsl.program.coordinates import Coordinates
    from probsl.program.places import Place
    from probsl.program.problem import Problem
    from probsl.program.scoring import Batch

__all__ = ["has_gradient", "start_elsewhere"]

# How many places are used to find the rows at fault, and how many rows are listed.
_LOOKED_AT, _LISTED = 30, 5


def start_elsewhere(
    objective: Objective, at_rest: Tensor, free: Tensor, batch: Batch | None = None
) -> Tensor:
    """Return the first of several other points at which the gradient is finite.

    Parameters
    ----------
    objective
        The objective.
    at_rest
        The original start of the search [size].
    free
        Which of its coordinates may be changed [size].
    batch
        The rows on which it should be finite; None: all of them.

    Raises
    ------
    ValueError
        If there is none; it names the rows at fault, or the starts that were tried.
    """
    problem, layout = objective.problem, objective.layout

    def value(x: Tensor) -> Tensor:
        return objective(x, batch)

    def points() -> Iterator[Tensor]:
        for place in others(problem.place):
            x = _point(problem, layout, place)
            if x is not None:
                yield torch.where(free, x, at_rest)

    if has_gradient(value, at_rest):
        # If it is finite at one point only, a value may be on a boundary, at which the
        # density is finite by accident.
        _refuse_rows(problem, layout, islice(points(), _LOOKED_AT), on_edges=True)
        return at_rest
    for x in points():
        if has_gradient(value, x):
            return x
    _refuse_rows(problem, layout, islice(points(), _LOOKED_AT))
    raise ValueError(
        "the search cannot begin: the objective is not finite where every latent is "
        f"at the image of zero; tried besides: {TRIED}, and it was finite at none; "
        "give start= with values at which every observed value has a positive density"
    )


def has_gradient(objective: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Return whether an objective and its gradient are finite at a point."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        try:
            value = objective(x)
        except LinAlgError:
            return False
        if not math.isfinite(float(value.detach())):
            return False
        if not value.requires_grad:
            return True
        (gradient,) = torch.autograd.grad(value, x, materialize_grads=True)
    return bool(gradient.isfinite().all())


def _point(problem: Problem, layout: Coordinates, place: Place) -> Tensor | None:
    """Return a place as a flat vector, or None if it cannot be drawn."""
    own = {p.name: p.start for p in problem.own_parameters}
    torch.manual_seed(place.seed)
    try:
        with torch.no_grad():
            messages = visit(
                lambda: problem.run(own, problem.batch().arguments), place=place
            )
        values = {n: m["value"] for n, m in messages.items()}
        parts = [
            own[e.name] if e.name in own else e.transform.inv(values[e.name])
            for e in layout.entries
        ]
    except (ValueError, ArithmeticError, RuntimeError):  # it may not have a sampler
        return None
    flat = torch.cat([part.reshape(-1) for part in parts]).to(problem.dtype)
    return flat if bool(flat.isfinite().all()) else None


def _refuse_rows(
    problem: Problem,
    layout: Coordinates,
    points: Iterable[Tensor],
    *,
    on_edges: bool = False,
) -> None:
    """Refuse rows whose log density is not finite at any values of the latents."""
    messages = _messages(problem)
    blamed: dict[str, Tensor] = {}
    for x in points:
        for name, broken in _broken(problem, layout, x).items():
            before = blamed.get(name, broken)
            if before.shape == broken.shape:
                blamed[name] = before & broken
    for name, found in blamed.items():
        edges = on_edges and name in messages
        broken = found & on_edge(messages[name]) if edges else found
        count = int(broken.sum())
        if not 0 < count < broken.numel():
            continue
        places = broken.nonzero().tolist()
        message = messages.get(name)
        shown = [_shown(message, index) for index in places[:_LISTED]]
        more = f" and {count - _LISTED} more" if count > _LISTED else ""
        raise ValueError(
            f"site '{name}' observes {count} value{'s' * (count > 1)} of zero or "
            f"infinite density wherever the latents are: {', '.join(shown)}{more}; "
            "leave out those rows, move their values inside the support, or use a "
            f"distribution with a finite density there{_instead_of(message)}"
        )


def _broken(problem: Problem, layout: Coordinates, x: Tensor) -> dict[str, Tensor]:
    """Return, for each likelihood term, which of its elements are not finite."""
    values = layout.constrain(x)
    names = problem.sites_with_role(Role.OBSERVED, Role.FACTOR)
    try:
        with torch.no_grad():
            terms = problem.log_density_by_site(values, values, names)
    except (ValueError, RuntimeError):  # a matrix that cannot be factorized
        return {}
    return {name: ~term.isfinite() for name, (term, _) in terms.items()}


def _shown(message: Any, index: list[int]) -> str:
    """Describe the value, if known, and its position."""
    if message is None or message["value"].dim() < len(index):
        return place_of(index)
    return f"{message['value'][tuple(index)].tolist()} in {place_of(index)}"


def _instead_of(message: Any) -> str:
    """Name the distribution of an observed site."""
    return (
        "" if message is None else f" instead of {type(unwrap(message['fn'])).__name__}"
    )


def _messages(problem: Problem) -> dict[str, Any]:
    own = {p.name: p.start for p in problem.own_parameters}
    with torch.no_grad():
        return visit(
            lambda: problem.run(own, problem.batch().arguments), place=problem.place
        )
