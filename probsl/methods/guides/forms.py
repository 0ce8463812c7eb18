"""Makes a guide from any supported form."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuide,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_value,
)
from pyro.infer.autoguide.utils import deep_setattr
from pyro.nn import PyroModule
from torch import Tensor, nn

from probsl.methods.guides.checks import check_sites
from probsl.methods.guides.guide import Guide
from probsl.program.program_errors import annotate
from probsl.program.reached import leave_out_unreached
from probsl.program.stateless_callable import StatelessCallable

if TYPE_CHECKING:
    from probsl.program.problem import Problem
    from probsl.program.scoring import Batch

# An automatic guide is full-rank up to this many latent dimensions, then of low
# rank, then mean-field.
FULL_RANK_LIMIT = 300
LOW_RANK_LIMIT = 5_000

GuideForm = Callable[..., Any] | type[AutoGuide] | nn.Module | None


@dataclass(frozen=True, eq=False)
class GuideStart:
    """The start of an automatic guide.

    Attributes
    ----------
    values
        Latent site -> constrained value at the center.
    factor
        Cholesky factor ``[d, d]`` of the covariance in unconstrained space, if known.
    """

    values: dict[str, Tensor]
    factor: Tensor | None


def prepare(problem: Problem, form: GuideForm, start: GuideStart) -> Guide:
    """Make a guide for a problem from the form that the user gave.

    Parameters
    ----------
    problem
        The program bound to its data.
    form
        An autoguide class or a `functools.partial` of one; a function of the
        program that returns a guide; a guide module; or a guide function with the
        program's arguments. None chooses by the number of latent dimensions.
    start
        The start of an automatic guide.

    Raises
    ------
    ValueError, TypeError
        If the guide's sites are not the program's latents, or it cannot be
        trained by gradients.
    """
    chosen = form is None
    if form is None:
        form = default_guide(sum(s.shape.numel() for s in problem.latents))
    guide = _instance(problem, form, start)
    # The first call of a lazy guide makes its parameters.
    arguments = problem.arguments.values
    try:
        # Wrapped, because modules in its closure may be on another device.
        functional = StatelessCallable(guide)
        known = {
            p.path: p.constrain(p.start) for p in problem.own_parameters if p.statement
        }
        with problem.taking():
            with problem.program.untouched():
                functional.collect(arguments, known)
            functional.found_more()
            _spread(guide, start.factor)
            functional.collect(arguments, known)
    except Exception as error:
        error.add_note(
            "probsl: raised by the guide, which takes the program's arguments"
        )
        annotate(error, problem.arguments, problem.dtype)
        raise
    prepared = Guide(problem, functional, _name(form), chosen=chosen)
    own = {p.name: p.start for p in functional.own_parameters}
    check_sites(problem, prepared.score(own, problem.batch()))
    leave_out_unreached(functional, [partial(_results, prepared, problem.batch())])
    prepared.share(problem.own_parameters)
    return prepared


def _results(guide: Guide, batch: Batch, own: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Yield the draws of a guide, and their log densities."""
    for message in guide.score(own, batch).messages.values():
        yield message["value"]
        if "log_prob" in message:
            yield message["log_prob"]


def default_guide(dimensions: int) -> type[AutoGuide]:
    """Return the automatic guide of a fit whose user named none."""
    if dimensions <= FULL_RANK_LIMIT:
        return AutoMultivariateNormal
    if dimensions <= LOW_RANK_LIMIT:
        return AutoLowRankMultivariateNormal
    return AutoNormal


def _instance(problem: Problem, form: Any, start: GuideStart) -> Callable[..., Any]:
    """Return a guide that can be called with the program's arguments."""
    if isinstance(form, nn.Module):
        return _copied(form, problem)
    if _is_factory(problem, form):
        options = {}
        if _accepts(form, "init_loc_fn"):
            options["init_loc_fn"] = init_to_value(values=start.values)
        made = form(problem.continuous_program(), **options)
        if not callable(made):
            raise TypeError(
                f"guide {_name(form)} returned {type(made).__name__} for the program; "
                "it must return a guide, which is a callable"
            )
        return made  # type: ignore[no-any-return]
    if callable(form):
        return form  # type: ignore[no-any-return]
    raise TypeError(
        "guide must be an autoguide class such as AutoNormal, a functools.partial of "
        f"one, a guide module or a guide function; got {form!r}"
    )


def _spread(guide: Any, factor: Tensor | None) -> None:
    """Set the initial covariance of Pyro's Gaussian guides."""
    if factor is None:
        return
    scale = _conditional_scale(factor)
    if isinstance(guide, AutoMultivariateNormal):
        _set(
            guide,
            scale=factor.diagonal(),
            scale_tril=factor / factor.diagonal()[:, None],
        )
    elif isinstance(guide, AutoLowRankMultivariateNormal):
        # The rest of the covariance beyond the diagonal, by its largest axes.
        axes, lengths, _ = torch.linalg.svd(factor / scale[:, None])
        rank = guide.cov_factor.shape[-1]
        excess = (lengths[:rank].square() - 1).clamp(min=1e-4).sqrt()
        _set(guide, scale=scale, cov_factor=nn.Parameter(axes[:, :rank] * excess))
    elif isinstance(guide, AutoDiagonalNormal):
        _set(guide, scale=scale)
    elif isinstance(guide, AutoNormal) and guide.prototype_trace is not None:
        for name in guide.prototype_trace.stochastic_nodes:
            shape = attrgetter(name)(guide.scales).shape
            mine, scale = scale[: shape.numel()], scale[shape.numel() :]
            deep_setattr(guide.scales, name, mine.reshape(shape))


def _set(guide: AutoGuide, **values: Tensor) -> None:
    """Set a guide's parameters by their constrained values."""
    for name, value in values.items():
        setattr(guide, name, value)


def _conditional_scale(factor: Tensor) -> Tensor:
    """Return the best mean-field scales: of each latent conditional on the others."""
    precision: Tensor = torch.cholesky_inverse(factor)
    return precision.diagonal().rsqrt()


def begins_by_itself(problem: Problem, form: GuideForm) -> bool:
    """Return whether a guide is not an automatic one, and so does not need a mode."""
    if form is None or isinstance(form, AutoGuide):
        return False
    return isinstance(form, nn.Module) or not _is_factory(problem, form)


def _is_factory(problem: Problem, form: Any) -> bool:
    """Whether a callable makes guides from programs and is not a guide itself."""
    form = _unwrapped(form)
    if isinstance(form, type):
        return True
    if not callable(form):
        return False
    parameters = inspect.signature(form).parameters.values()
    required = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return len(required) == 1 and required[0] not in problem.arguments.values


def _unwrapped(form: Any) -> Any:
    while isinstance(form, functools.partial):
        form = form.func
    return form


def _accepts(form: Any, option: str) -> bool:
    if isinstance(form, functools.partial) and option in form.keywords:
        return False
    if AutoIAFNormal in getattr(_unwrapped(form), "__mro__", ()):
        return False  # it takes every option, and warns about unused ones
    return option in inspect.signature(form).parameters


def _name(form: Any) -> str:
    form = _unwrapped(form)
    return getattr(form, "__name__", type(form).__name__)


def _copied(guide: nn.Module, problem: Problem) -> nn.Module:
    """Copy a guide module, so that the caller's is not trained.

    Copying an autoguide clears its reference to the model, in the original too; both
    are restored here. If the guide's model is the program itself, the copy's is the
    version of it that leaves the caller's modules unchanged.
    """
    kept = {
        path: (module._model, module.master)
        for path, module in guide.named_modules()
        if isinstance(module, AutoGuide)
    }
    memo: dict[int, Any] = {
        id(model): model for models, _ in kept.values() for model in models or ()
    }
    # Modules that the program also holds are shared, and are not trained in place.
    memo |= {id(held): held for held in problem.program.held()}
    duplicate = copy.deepcopy(guide, memo)
    copies = dict(duplicate.named_modules())
    for path, module in guide.named_modules():
        if path in kept:
            module._model, module.master = kept[path]
            models = kept[path][0]
            if models[0] is problem.program.function:
                models = (problem.continuous_program(),)
            copies[path]._model = models
    # A guide made outside keeps its parameters in Pyro's store; the copy must not.
    for module in duplicate.modules():
        if isinstance(module, PyroModule):
            vars(module._pyro_context).setdefault(
                "param_state", {"params": {}, "constraints": {}}
            )
    return duplicate.to(problem.device)
