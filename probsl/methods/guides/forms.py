"""All supported forms of guides, as functions of their own parameters."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import MultivariateNormal
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
from torch.distributions import constraints

from probsl.isolation.calls import forked
from probsl.program.messages import plates_of
from probsl.program.program_errors import annotate
from probsl.program.reached import leave_out_unreached
from probsl.program.scoring import Batch, Scoring
from probsl.program.sites import Role
from probsl.program.stateless_callable import OwnParameter, StatelessCallable

if TYPE_CHECKING:
    from probsl.program.problem import Problem

# An automatic guide is full-rank up to this many latent dimensions, then of low
# rank, then mean-field.
FULL_RANK_LIMIT = 300
LOW_RANK_LIMIT = 5_000
# A guide that leaves a support shows it within this many draws, or rarely does.
_SUPPORT_DRAWS = 32

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


class Guide:
    """A guide whose parameters are explicit.

    Attributes
    ----------
    functional
        The guide as a function of its own parameters and the program's arguments.
    name
        Its name in messages.
    chosen
        Whether it was chosen by default and not by the user.
    shared
        Own parameter of the guide -> the parameter of the program that it is, too.
    """

    def __init__(
        self,
        problem: Problem,
        functional: StatelessCallable,
        name: str,
        *,
        chosen: bool,
    ) -> None:
        self.functional = functional
        self.name = name
        self.chosen = chosen
        self._problem = problem
        self.shared: dict[str, str] = {}

    def share(self, own: Sequence[OwnParameter]) -> None:
        """Find the parameters that are shared with the program.

        Raises
        ------
        ValueError
            If the shapes of a shared one differ.
        """
        places = {key: p for p in own for key in p.keys}
        transforms = {}
        for mine in self.functional.own_parameters:
            theirs = next((places[k] for k in mine.keys if k in places), None)
            if theirs is None:
                continue
            if theirs.start.shape != mine.start.shape:
                raise ValueError(
                    f"parameter '{mine.name}' has the shape {tuple(mine.shape)} in the "
                    f"guide and {tuple(theirs.shape)} in the program, where one name "
                    "is one parameter; give both one shape, or each its own name"
                )
            self.shared[mine.name] = theirs.name
            transforms[mine.name] = theirs.transform
        self.functional.adopt(transforms)

    @property
    def redundant(self) -> bool:
        """Whether different parameters give the same distribution (rotations)."""
        return isinstance(self.functional.function, AutoLowRankMultivariateNormal)

    def score(self, own: Mapping[str, Tensor], batch: Batch) -> Scoring:
        """Run the guide and return the values and log densities of its sites."""
        scoring = _GuideScoring({})
        with scoring:
            self._problem.call(self.functional, own, batch.arguments)
        return scoring


class _GuideScoring(Scoring):
    """Draws multivariate normals explicitly, and scores them by their components.

    The density of ``loc + L z`` is known from z and the diagonal of L. From the value
    alone it requires solving a triangular system, the most expensive step.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__(values)
        self._white: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        fn = msg["fn"]
        if type(fn) is not MultivariateNormal or msg["done"] or msg["is_observed"]:
            return
        shape = fn.batch_shape + fn.event_shape
        white = torch.randn(shape, dtype=fn.loc.dtype, device=fn.loc.device)
        tril = fn._unbroadcasted_scale_tril
        # A compiler fuses a matrix-vector product with the surrounding operations.
        plain = tril.dim() == 2 and white.dim() == 1
        spread = tril.mv(white) if plain else (tril @ white[..., None]).squeeze(-1)
        msg["value"] = fn.loc + spread
        msg["done"] = True
        self._white[msg["name"]] = white

    def density(self, msg: Any) -> Tensor:
        """Return the log density of a site's value, without scale and mask."""
        white = self._white.get(msg["name"])
        if white is None:
            return super().density(msg)
        diagonal = msg["fn"]._unbroadcasted_scale_tril.diagonal(dim1=-2, dim2=-1)
        constant = white.shape[-1] * math.log(2 * math.pi)
        squares: Tensor = white.square().sum(-1)
        half_log_determinant: Tensor = diagonal.log().sum(-1)
        return -(squares + constant) / 2 - half_log_determinant


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
        form = _choose(sum(s.shape.numel() for s in problem.latents))
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
    _check_sites(problem, prepared.score(own, problem.batch()))
    leave_out_unreached(functional, [partial(_results, prepared, problem.batch())])
    prepared.share(problem.own_parameters)
    return prepared


def _results(guide: Guide, batch: Batch, own: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Yield the draws of a guide, and their log densities."""
    for message in guide.score(own, batch).messages.values():
        yield message["value"]
        if "log_prob" in message:
            yield message["log_prob"]


def _choose(dimensions: int) -> type[AutoGuide]:
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


def _check_sites(problem: Problem, scoring: Scoring) -> None:
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
                f"the guide samples '{name}', which is no latent site of the program "
                f"({', '.join(latents)}); remove it, or mark it with "
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
