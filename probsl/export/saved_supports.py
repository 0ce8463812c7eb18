"""Supports and transforms as plain values, from a closed list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro.distributions import constraints, transforms
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


def decoded(value: Mapping[str, Any] | None) -> Any:
    """Return what `encoded` was given."""
    if value is None:
        return None
    name = value["is"]
    if name in _PLAIN:
        return _PLAIN[name]
    made, options = _MADE[name]
    return made(*(_restored(value[option]) for option in options))


def _option(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [encoded(part) for part in value]
    return encoded(value) if type(value) in _NAMED else value


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [decoded(part) for part in value]
    return decoded(value) if isinstance(value, dict) else value


_NAMED = _NAME_OF_PLAIN.keys() | _NAME_OF_MADE.keys()
