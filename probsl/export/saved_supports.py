"""Supports and transforms as plain values, from a closed list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import constraints, transforms
from torch import Tensor
from torch.distributions.transforms import identity_transform

from probsl.export.saved_values import NoFormError
from probsl.program.matrix_coordinates import CholeskyFactor, PositiveDefinite
from probsl.program.supports import AnyOf, AtMost, Coordinated, Image

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["decoded", "encoded"]

# Constraints without options.
_PLAIN: dict[str, Any] = {
    name: getattr(constraints, name)
    for name in (
        "boolean",
        "corr_cholesky",
        "corr_matrix",
        "lower_cholesky",
        "lower_triangular",
        "one_hot",
        "ordered_vector",
        "positive_definite",
        "positive_ordered_vector",
        "positive_semidefinite",
        "real",
        "simplex",
        "softplus_lower_cholesky",
        "softplus_positive",
        "sphere",
        "square",
        "symmetric",
        "unit_lower_cholesky",
    )
}
# Name -> class and the options of its constructor, which are attributes too.
_MADE: dict[str, tuple[type, tuple[str, ...]]] = {
    "any of": (AnyOf, ("base_constraint",)),
    "at most": (AtMost, ("upper_bound",)),
    "coordinated": (Coordinated, ("support",)),
    "image": (Image, ("base_constraint", "transforms")),
    "abs": (transforms.AbsTransform, ()),
    "affine": (transforms.AffineTransform, ("loc", "scale", "event_dim")),
    "Cholesky coordinates": (CholeskyFactor, ()),
    "compose": (transforms.ComposeTransform, ("parts",)),
    "covariance coordinates": (PositiveDefinite, ()),
    "exp": (transforms.ExpTransform, ()),
    "identity": (type(identity_transform), ("parts",)),
    "correlation Cholesky": (transforms.CorrCholeskyTransform, ()),
    "factor of correlations": (transforms.CorrMatrixCholeskyTransform, ()),
    "independent transform": (
        transforms.IndependentTransform,
        ("base_transform", "reinterpreted_batch_ndims"),
    ),
    "inverse": (type(transforms.ExpTransform().inv), ("inv",)),
    "lower Cholesky": (transforms.LowerCholeskyTransform, ()),
    "ordered": (transforms.OrderedTransform, ()),
    "positive definite": (transforms.PositiveDefiniteTransform, ()),
    "power": (transforms.PowerTransform, ("exponent",)),
    "sigmoid": (transforms.SigmoidTransform, ()),
    "softmax": (transforms.SoftmaxTransform, ()),
    "softplus": (transforms.SoftplusTransform, ()),
    "softplus lower Cholesky": (transforms.SoftplusLowerCholeskyTransform, ()),
    "stick breaking": (transforms.StickBreakingTransform, ()),
    "tanh": (transforms.TanhTransform, ()),
} | {
    name: (getattr(constraints, name), options)
    for name, options in {
        "greater_than": ("lower_bound",),
        "greater_than_eq": ("lower_bound",),
        "half_open_interval": ("lower_bound", "upper_bound"),
        "independent": ("base_constraint", "reinterpreted_batch_ndims"),
        "integer_interval": ("lower_bound", "upper_bound"),
        "interval": ("lower_bound", "upper_bound"),
        "less_than": ("upper_bound",),
        "multinomial": ("upper_bound",),
    }.items()
}
_NAME_OF_PLAIN = {type(one): name for name, one in _PLAIN.items()}
_NAME_OF_MADE = {kind: name for name, (kind, _) in _MADE.items()}


def encoded(value: Any) -> Any:
    """Return a constraint or transform as a plain value; None stays None.

    Raises
    ------
    NoFormError
        If it is not in the list.

    Examples
    --------
    >>> from torch.distributions import constraints
    >>> from probsl.export.saved_supports import decoded, encoded
    >>> encoded(constraints.interval(0.0, 2.0))
    {'is': 'interval', 'lower_bound': 0.0, 'upper_bound': 2.0}
    >>> decoded(encoded(constraints.simplex))
    Simplex()
    """
    kind = type(value)
    if value is None:
        return None
    if kind in _NAME_OF_PLAIN:
        return {"is": _NAME_OF_PLAIN[kind]}
    if kind not in _NAME_OF_MADE:
        raise NoFormError(f"{value!r} cannot be saved")
    name = _NAME_OF_MADE[kind]
    options = {o: _option(getattr(value, o)) for o in _MADE[name][1]}
    return {"is": name, **options}


def decoded(value: Mapping[str, Any] | None, device: torch.device | None = None) -> Any:
    """Return what `encoded` was given, with its tensors on a device.

    Raises
    ------
    LookupError, TypeError, ValueError
        If it is not as `encoded` returned it.
    """
    if value is None:
        return None
    name = value["is"]
    if name in _PLAIN:
        return _PLAIN[name]
    made, options = _MADE[name]
    return made(*(_restored(option, value[option], device) for option in options))


def _option(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [encoded(part) for part in value]
    return encoded(value) if type(value) in _NAMED else value


def _restored(option: str, value: Any, device: torch.device | None) -> Any:
    """Return an option, which must be of its kind."""
    found: Any = value
    if option in ("parts", "transforms"):
        found = [decoded(part, device) for part in value]
        right = all(isinstance(part, transforms.Transform) for part in found)
    elif option in ("base_transform", "inv"):
        found = decoded(value, device)
        right = isinstance(found, transforms.Transform)
    elif option in ("base_constraint", "support"):
        found = decoded(value, device)
        right = isinstance(found, constraints.Constraint)
    elif option in ("event_dim", "reinterpreted_batch_ndims"):
        right = type(value) is int and 0 <= value < _AXES
    elif isinstance(value, Tensor):
        found, right = value.to(device), True
    else:
        right = type(value) in (int, float)
    if not right:
        raise TypeError(f"{option} is {value!r}")
    return found


# Torch has no tensors of more axes.
_AXES = 64
_NAMED = _NAME_OF_PLAIN.keys() | _NAME_OF_MADE.keys()
