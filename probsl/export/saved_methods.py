"""Methods with their options as plain values, from a closed list."""

from __future__ import annotations

import functools
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from pyro.infer import autoguide
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from probsl.methods.optimizers import LBFGS, TrustRegionNewton
from probsl.methods.point import MAP, MLE
from probsl.methods.variational import SVI

if TYPE_CHECKING:
    from collections.abc import Mapping

    from probsl.contract import Method

__all__ = ["NotSaved", "decoded_method", "encoded_method", "with_option"]

_METHODS: dict[str, Any] = {kind.__name__: kind for kind in (MLE, MAP, SVI)}
_VALUES: dict[str, Any] = {kind.__name__: kind for kind in (LBFGS, TrustRegionNewton)}
_GUIDES = (
    "AutoDelta",
    "AutoDiagonalNormal",
    "AutoGaussian",
    "AutoIAFNormal",
    "AutoLaplaceApproximation",
    "AutoLowRankMultivariateNormal",
    "AutoMultivariateNormal",
    "AutoNormal",
    "AutoStructured",
)
# Their options whose cost in memory is known.
_GUIDE_OPTIONS = {"init_loc_fn", "init_scale", "rank"}
_STARTS = (
    "init_to_feasible",
    "init_to_mean",
    "init_to_median",
    "init_to_sample",
    "init_to_uniform",
)
# Classes and functions that options may be, by the name under which they are saved.
_NAMED: dict[str, Any] = {
    **{name: getattr(autoguide, name) for name in (*_GUIDES, *_STARTS)},
    **{
        f"{module.__name__}.{name}": kind
        for module, base in (
            (torch.optim, Optimizer),
            (torch.optim.lr_scheduler, LRScheduler),
        )
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, base)
    },
}
_NAME_OF = {kind: name for name, kind in _NAMED.items()}


class NotSaved:
    """Takes the place of an option that a file cannot hold, and shows what it was.

    Parameters
    ----------
    text
        Its repr.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"NotSaved({self.text!r})"

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse to be used.

        Raises
        ------
        ValueError
            Saying what was not saved.
        """
        raise ValueError(
            f"{self.text} was not saved with the fit; make a method with it again"
        )


class _OtherMethod:
    """A method that is not of this package, of which only the repr was saved."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text

    def run(self, problem: Any, run: Any) -> NoReturn:  # noqa: ARG002
        """Refuse to fit."""
        NotSaved(self._text)()


def encoded_method(method: Method) -> dict[str, Any]:
    """Return a method as plain values.

    Examples
    --------
    >>> import probsl
    >>> from probsl.export.saved_methods import decoded_method, encoded_method
    >>> decoded_method(encoded_method(probsl.MAP(prior_weight=0.5))).prior_weight
    0.5
    """
    kind = type(method)
    if _METHODS.get(kind.__name__) is not kind:
        return {"name": kind.__name__, "text": repr(method)}
    options = {
        field.name: _encoded(getattr(method, field.name))
        for field in fields(kind)
        if getattr(method, field.name) is not field.default
    }
    return {"name": kind.__name__, "options": options}


def decoded_method(value: Mapping[str, Any]) -> Any:
    """Return the method that `encoded_method` was given."""
    name = value["name"]
    if "text" in value:
        if not (isinstance(name, str) and name.isidentifier()):
            raise ValueError(f"a method has the name {name!r}")
        return type(name, (_OtherMethod,), {})(str(value["text"]))
    options = {option: _decoded(v) for option, v in value["options"].items()}
    absent = {o: v for o, v in options.items() if isinstance(v, NotSaved)}
    method = _METHODS[name](**{o: v for o, v in options.items() if o not in absent})
    for option, missing in absent.items():
        method = with_option(method, option, missing)
    return method


def with_option(method: Any, option: str, value: Any) -> Any:
    """Return a method with an option that is not checked."""
    changed = object.__new__(type(method))
    for field in fields(method):
        object.__setattr__(changed, field.name, getattr(method, field.name))
    if option not in vars(changed):
        raise ValueError(f"{type(method).__name__} has no option '{option}'")
    object.__setattr__(changed, option, value)
    return changed


def _encoded(value: Any) -> Any:
    """Return an option as a plain value, or its repr if there is none for it."""
    if _is_plain(value):
        return {"value": value}
    if isinstance(value, NotSaved):
        return {"text": value.text}
    if isinstance(value, type) or callable(value):
        name = _NAME_OF.get(value) if value.__hash__ else None
        if name is not None:
            return {"named": name}
    if isinstance(value, functools.partial) and not value.args:
        made = _encoded(value.func)
        options = {k: _encoded(v) for k, v in value.keywords.items()}
        known = not any("text" in part for part in (made, *options.values()))
        if known and _may_have(made.get("named"), options):
            return {"partial": made, "options": options}
    if _VALUES.get(type(value).__name__) is type(value):
        return {"made": type(value).__name__}
    return {"text": repr(value)}


def _decoded(value: Mapping[str, Any]) -> Any:
    if "text" in value:
        return NotSaved(str(value["text"]))
    if "named" in value:
        return _NAMED[value["named"]]
    if "made" in value:
        return _VALUES[value["made"]]()
    if "partial" in value:
        if not _may_have(value["partial"]["named"], value["options"]):
            raise ValueError("a guide has options of unknown cost")
        options = {k: _decoded(v) for k, v in value["options"].items()}
        return functools.partial(_decoded(value["partial"]), **options)
    return value["value"]


def _may_have(name: str | None, options: Mapping[str, Any]) -> bool:
    """Whether a class may be made with some options by what a file states."""
    return name not in _GUIDES or options.keys() <= _GUIDE_OPTIONS


def _is_plain(value: Any) -> bool:
    """Whether a value consists of numbers, texts and tensors."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    return value is None or isinstance(value, bool | int | float | str | Tensor)
