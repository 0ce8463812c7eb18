"""Posteriors as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoMultivariateNormal
from torch import Tensor, nn

from probsl.export.saved_methods import NotSaved, with_option
from probsl.export.saved_problems import tensors
from probsl.methods.guides.forms import GuideStart, prepare
from probsl.methods.guides.posterior import GuidePosterior
from probsl.methods.objective import point_objective
from probsl.methods.point_posterior import PointPosterior
from probsl.methods.variational import SVI
from probsl.program.target_density import TargetDensity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from probsl.fitting import Fit
    from probsl.methods.guides.forms import GuideForm
    from probsl.methods.guides.guide import Guide
    from probsl.program.problem import Problem

__all__ = ["decoded_posterior", "encoded_posterior"]

# Draws by which a guide is recognized, and by how much they may differ elsewhere.
_WITNESSES, _TOLERANCE = 2, 1e-4


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
    value: dict[str, Any] = {
        "values": posterior.point(),
        "own": posterior.own,
        "prior_weights": dict(target.prior_weights),
        "space": target.space,
    }
    if isinstance(posterior, GuidePosterior):
        value["guide"] = {
            "own": posterior.guide_own,
            "buffers": _buffers(posterior.guide),
            "draws": posterior.draw(_WITNESSES, 0),
        }
    return value


def decoded_posterior(
    value: Mapping[str, Any], problem: Problem, method: Any, guide: GuideForm
) -> tuple[PointPosterior | GuidePosterior, Any]:
    """Return the posterior of a loaded fit, and its method with the guide in it.

    Parameters
    ----------
    value
        What `encoded_posterior` returned.
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
    values = _placed(value["values"], problem)
    own = _placed(value["own"], problem)
    weights = {name: float(w) for name, w in value["prior_weights"].items()}
    target = TargetDensity(problem, weights, value["space"])
    known = value.get("guide")
    if known is None:
        if guide is not None:
            raise ValueError(
                "this fit is a point, which has no guide; leave out guide="
            )
        objective = point_objective(target, problem.coordinates())
        return PointPosterior(values, own, objective), method
    if guide is not None and isinstance(method, SVI):
        method = with_option(method, "guide", guide)
    guide_own = _placed(known["own"], problem)
    if guide is None:
        guide = _saved_guide(method)
        _refuse_too_large(guide, problem, guide_own)
    with problem.isolated():
        made = prepare(problem, guide, GuideStart(problem.feasible_values(), None))
    _restore(made, guide_own, known["buffers"])
    posterior = GuidePosterior(target, made, guide_own, own, values)
    _refuse_other_draws(posterior, _placed(known["draws"], problem))
    return posterior, method


def _placed(value: Mapping[str, Any], problem: Problem) -> dict[str, Tensor]:
    found = tensors(value, problem.dtype)
    return {name: tensor.to(problem.device) for name, tensor in found.items()}


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
    layout = problem.coordinates()
    latents = {s.name for s in problem.latents}
    size = sum(e.flat_shape.numel() for e in layout.entries if e.name in latents)
    made = getattr(form, "func", form)
    options = getattr(form, "keywords", {})
    if made is AutoMultivariateNormal:
        size *= size
    elif made is AutoLowRankMultivariateNormal:
        size *= int(options.get("rank") or 1)
    sizes = [plate.full_size for s in problem.latents for plate in s.plates]
    if max([size, *sizes]) > sum(tensor.numel() for tensor in own.values()):
        raise ValueError("the file does not hold the parameters of its guide")


def _buffers(guide: Guide) -> dict[str, Tensor]:
    """Return the random constants of a guide, as the masks of a flow."""
    function = guide.functional.function
    return dict(function.named_buffers()) if isinstance(function, nn.Module) else {}


def _restore(
    guide: Guide, own: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> None:
    """Compare a guide with the one that was fitted, and give it its constants."""
    found = {p.name: p.start for p in guide.functional.own_parameters}
    present = _buffers(guide)
    for kind, before, now in (("parameter", own, found), ("buffer", buffers, present)):
        for name in dict.fromkeys([*before, *now]):
            shapes = [
                f"shape {list(held[name].shape)}" if name in held else "no place"
                for held in (before, now)
            ]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"{kind} '{name}' of the guide had {shapes[0]} when it was fitted "
                    f"and has {shapes[1]} now; give the guide that was fitted"
                )
    for name, buffer in present.items():
        buffer.copy_(buffers[name])


def _refuse_other_draws(posterior: GuidePosterior, known: Mapping[str, Tensor]) -> None:
    """Refuse a guide that draws other values than the one that was fitted."""
    for name, value in posterior.draw(_WITNESSES, 0).items():
        before = known[name]
        same = before.shape == value.shape and torch.allclose(
            before, value, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True
        )
        if not same:
            raise ValueError(
                f"the guide draws other values of site '{name}' than the one that was "
                "fitted; give that one"
            )
