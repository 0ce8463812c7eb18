"""Posteriors as plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer.autoguide import (
    AutoGaussian,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoStructured,
)
from torch import Tensor, nn

from probsl.export.saved_errors import decoded_errors, encoded_errors
from probsl.export.saved_methods import NotSaved, with_option
from probsl.export.saved_values import on_device, tensors, text
from probsl.methods.guides.forms import GuideStart, default_guide, prepare
from probsl.methods.guides.posterior import GuidePosterior
from probsl.methods.objective import point_objective
from probsl.methods.point_posterior import PointPosterior
from probsl.methods.variational import SVI
from probsl.program.saved_problem import SavedProblem
from probsl.program.target_density import Space, TargetDensity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from probsl.fitting import Fit
    from probsl.methods.guides.forms import GuideForm
    from probsl.methods.guides.guide import Guide
    from probsl.program.problem import Problem

__all__ = ["SavedPosterior", "decoded_posterior", "encoded_posterior", "restored"]

# Draws by which a guide is recognized, and by how much they may differ elsewhere.
_WITNESSES, _TOLERANCE = 2, 1e-4
# Guide -> the least number of its parameters, by the lengths of its latents; for others
# it is their sum.
_LEAST: dict[Any, Callable[[list[int]], int]] = {
    AutoMultivariateNormal: lambda lengths: sum(lengths) ** 2,
    AutoIAFNormal: lambda lengths: sum(lengths) ** 2,
    AutoGaussian: lambda lengths: sum(length**2 for length in lengths),
    AutoStructured: lambda lengths: sum(length**2 for length in lengths),
}
_REMEDY = (
    "give the guide that was fitted and, if it depends on the data, these too: "
    "probsl.load(path, program, data, guide)"
)


def encoded_posterior(fit: Fit) -> dict[str, Any]:
    """Return the posterior of a fit as plain values.

    Raises
    ------
    TypeError
        If it is of a class from outside this package.
    """
    posterior = fit.posterior
    if not isinstance(posterior, PointPosterior | GuidePosterior):
        raise TypeError(
            f"a fit by {type(fit.method).__name__} cannot be saved, because its "
            f"posterior is a {type(posterior).__name__}, and only points and guides "
            "have a form in a file; save its draws, fit.draw(1000), instead"
        )
    target = posterior.target
    if isinstance(posterior, PointPosterior) and posterior.objective.layout.held:
        raise TypeError(
            "a fit with sites that are held still cannot be saved; save its point, "
            "fit.point(), instead"
        )
    value: dict[str, Any] = {
        "values": posterior.point(),
        "own": posterior.own,
        "prior_weights": dict(target.prior_weights),
        "space": target.space,
    }
    if isinstance(posterior, PointPosterior):
        value["errors"] = encoded_errors(posterior)
    else:
        value["guide"] = {
            "own": posterior.guide_own,
            "buffers": _buffers(posterior.guide),
            "draws": posterior.draw(_WITNESSES, 0),
        }
    return value


@dataclass(frozen=True, eq=False)
class SavedPosterior:
    """The numbers of a posterior.

    Attributes
    ----------
    values
        Latent -> its value, for a distribution its mean.
    own
        Own parameter of the program -> unconstrained value.
    prior_weights, space
        See `probsl.program.target_density.TargetDensity`.
    is_point
        Whether it has no guide, of which the rest is.
    guide_own
        Own parameter of the guide -> unconstrained value.
    buffers
        Buffer of the guide -> its value.
    draws
        Latent -> draws by which the guide is recognized.
    errors
        The standard errors of a point, see `probsl.export.saved_errors`.
    """

    values: dict[str, Tensor]
    own: dict[str, Tensor]
    prior_weights: dict[str, float]
    space: Space
    is_point: bool
    guide_own: dict[str, Tensor]
    buffers: dict[str, Tensor]
    draws: dict[str, Tensor]
    errors: dict[str, Any] | None = None


def decoded_posterior(value: Mapping[str, Any], dtype: torch.dtype) -> SavedPosterior:
    """Return what `encoded_posterior` returned, checked.

    Parameters
    ----------
    value
        The plain values.
    dtype
        The floating type of the fit.
    """
    guide, space = value.get("guide"), value["space"]
    if space not in ("constrained", "unconstrained"):
        raise ValueError(f"there is no space {space!r}")
    values = tensors(value["values"], dtype)
    known = {"own": {}, "buffers": {}, "draws": {}} if guide is None else guide
    draws = tensors(known["draws"], dtype)
    if guide is not None and draws.keys() != values.keys():
        raise ValueError("the draws of the guide are of other latents")
    return SavedPosterior(
        values=values,
        own=tensors(value["own"], dtype),
        prior_weights={text(n): float(w) for n, w in value["prior_weights"].items()},
        space=space,
        is_point=guide is None,
        guide_own=tensors(known["own"], dtype),
        buffers=tensors(known["buffers"], None),
        draws=draws,
        errors=decoded_errors(value.get("errors")),
    )


def restored(
    saved: SavedPosterior, problem: Problem, method: Any, guide: GuideForm
) -> tuple[PointPosterior | GuidePosterior, Any]:
    """Return the posterior of a loaded fit, and its method with the guide in it.

    Parameters
    ----------
    saved
        The numbers of the posterior.
    problem
        The program, with its data or without.
    method
        The method as it was saved.
    guide
        The guide, if the user gave it.

    Raises
    ------
    ValueError
        If the guide is needed, or is another one than that which was fitted.
    """
    device = problem.device
    values, own = on_device(saved.values, device), on_device(saved.own, device)
    _refuse_other_parameters(problem, own)
    target = TargetDensity(problem, saved.prior_weights, saved.space)
    if saved.is_point:
        if guide is not None:
            raise ValueError(
                "this fit is a point, which has no guide; leave out guide="
            )
        objective = point_objective(target, problem.coordinates())
        return PointPosterior(values, own, objective), method
    if guide is not None and isinstance(method, SVI):
        method = with_option(method, "guide", guide)
    guide_own = on_device(saved.guide_own, device)
    alone = guide is None and isinstance(problem, SavedProblem)
    if guide is None:
        guide = _saved_guide(method)
        _refuse_too_large(guide, problem, guide_own)
    try:
        with problem.isolated():
            made = prepare(problem, guide, GuideStart(problem.feasible_values(), None))
    except Exception as error:
        if not alone:  # it is the user's program or guide
            raise
        raise ValueError(
            f"the guide of this fit cannot be made of what the file holds ({error}); "
            "give the data: probsl.load(path, program, data)"
        ) from error
    _restore(made, guide_own, saved.buffers)
    posterior = GuidePosterior(target, made, guide_own, own, values)
    _refuse_other_draws(posterior, on_device(saved.draws, device))
    return posterior, method


def _refuse_other_parameters(problem: Problem, own: Mapping[str, Tensor]) -> None:
    """Refuse a program whose own parameters are not those that were fitted."""
    before = {name: value.shape for name, value in own.items()}
    now = {p.name: p.start.shape for p in problem.own_parameters}
    _refuse_other_shapes(
        "parameter", before, now, "load with the program that was fitted"
    )


def _saved_guide(method: Any) -> GuideForm:
    """Return the guide in the options of a method."""
    form = getattr(method, "guide", NotSaved(repr(method)))
    if isinstance(form, NotSaved):
        raise ValueError(
            f"the guide of this fit, {form.text}, is not in the file; give it again: "
            "probsl.load(path, program, guide=...)"
        )
    return form  # type: ignore[no-any-return]


def _refuse_too_large(form: Any, problem: Problem, own: Mapping[str, Tensor]) -> None:
    """Refuse a file that states a guide for which its numbers are too few."""
    layout = problem.coordinates([s.name for s in problem.latents])
    latents = len(problem.latents)
    lengths = [entry.flat_shape.numel() for entry in layout.entries[:latents]]
    made = getattr(form, "func", form)
    if made is None:
        made = default_guide(sum(lengths))
    options = getattr(form, "keywords", {})
    low = made is AutoLowRankMultivariateNormal
    rank = int(options.get("rank") or (math.isqrt(sum(lengths)) if low else 1))
    least = _LEAST.get(made, sum)(lengths) * rank
    sizes = [plate.full_size for s in problem.latents for plate in s.plates]
    if max([least, *sizes]) > sum(tensor.numel() for tensor in own.values()):
        raise ValueError("the file does not hold the parameters of its guide")


def _buffers(guide: Guide) -> dict[str, Tensor]:
    """Return the random constants of a guide, as the masks of a flow."""
    function = guide.functional.function
    return dict(function.named_buffers()) if isinstance(function, nn.Module) else {}


def _restore(
    guide: Guide, own: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> None:
    """Compare a guide with the one that was fitted, and give it its constants."""
    found = {p.name: p.start.shape for p in guide.functional.own_parameters}
    before = {name: value.shape for name, value in own.items()}
    _refuse_other_shapes("parameter of the guide", before, found, _REMEDY)
    present = _buffers(guide)
    before = {name: value.shape for name, value in buffers.items()}
    shapes = {name: value.shape for name, value in present.items()}
    _refuse_other_shapes("buffer of the guide", before, shapes, _REMEDY)
    for name, buffer in present.items():
        buffer.copy_(buffers[name])


def _refuse_other_shapes(
    kind: str,
    before: Mapping[str, torch.Size],
    now: Mapping[str, torch.Size],
    remedy: str,
) -> None:
    for name in dict.fromkeys([*before, *now]):
        one, other = (
            f"shape {list(shapes[name])}" if name in shapes else "no place"
            for shapes in (before, now)
        )
        if one != other:
            raise ValueError(
                f"{kind} '{name}' had {one} when it was fitted and has {other} now; "
                f"{remedy}"
            )


def _refuse_other_draws(posterior: GuidePosterior, known: Mapping[str, Tensor]) -> None:
    """Refuse a guide that draws other values than the one that was fitted."""
    for name, value in posterior.draw(_WITNESSES, 0).items():
        before = known[name]
        same = before.shape == value.shape and torch.allclose(
            before, value, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True
        )
        if not same:
            raise ValueError(
                f"the guide draws other values of site '{name}' than when it was "
                f"fitted; {_REMEDY}"
            )
