"""The standard errors of a point as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.curvature.inverse import Inverse
from probsl.curvature.point_covariance import PointCovariance
from probsl.curvature.point_errors import PointErrors
from probsl.curvature.reported import ends_of_reported
from probsl.export.saved_values import on_device, tensors, text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from probsl.methods.point_posterior import PointPosterior

__all__ = ["decoded_errors", "encoded_errors", "remember_errors"]

# The tensors of a covariance and the number of their axes.
_PARTS = {"matrix": 2, "free": 2, "scale": 1}


def encoded_errors(posterior: PointPosterior) -> dict[str, Any] | None:
    """Return the standard errors that a summary shows; None if it shows none."""
    found = posterior.errors()
    if not found.sd:
        return None
    known = posterior.covariance()
    return {
        "sentence": found.sentence,
        "sd": {name: sd.detach() for name, sd in found.sd.items()},
        "matrix": known.matrix,
        "free": known.inverse.free,
        "scale": known.inverse.scale,
        "left_out": known.left_out,
    }


def decoded_errors(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what `encoded_errors` returned, checked.

    Raises
    ------
    TypeError, ValueError
        If it is of another form.
    """
    if value is None:
        return None
    double = tensors({name: value[name] for name in _PARTS}, torch.float64)
    held = tensors({"left_out": value["left_out"]}, torch.bool)
    size = len(double["scale"])
    for name, axes in _PARTS.items():
        if double[name].dim() != axes or len(double[name]) != size:
            raise ValueError(f"the {name} of the standard errors has another shape")
    if double["matrix"].shape != (size, size) or held["left_out"].shape != (size,):
        raise ValueError("the covariance is of another shape")
    sd = tensors(value["sd"], torch.float64)
    return {"sentence": text(value["sentence"]), "sd": sd, **double, **held}


def remember_errors(posterior: PointPosterior, saved: Mapping[str, Any]) -> None:
    """Give a loaded point the standard errors that it was saved with.

    Raises
    ------
    ValueError
        If they are those of other parameters.
    """
    problem, layout = posterior.target.problem, posterior.objective.layout
    values = {**posterior.values, **posterior.own}
    for entry in layout.entries:
        if entry.name not in values or values[entry.name].shape != entry.shape:
            raise ValueError(f"the file does not hold a value of '{entry.name}'")
    device = problem.device
    parts = {n: v.to(device) for n, v in saved.items() if isinstance(v, Tensor)}
    if len(parts["scale"]) != layout.size:
        raise ValueError("the file holds the covariance of other parameters")
    covariance = PointCovariance(
        problem,
        layout,
        posterior.flat().double(),
        parts["matrix"],
        Inverse(parts["matrix"], parts["free"], parts["scale"], negative=False),
        parts["left_out"],
        "observed",
        withheld=posterior.withheld(),
        penalized=posterior.target.has_priors,
    )
    sd = on_device(saved["sd"], device)
    errors = PointErrors(saved["sentence"], sd, ends_of_reported(problem))
    posterior.remember(covariance, errors)
