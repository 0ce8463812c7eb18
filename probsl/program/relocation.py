"""Moves distributions to the device of a fit, wherever they were made."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import nn
from torch.distributions import Distribution, Transform
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import ExpTransform

# Torch does not export this class.
_InverseTransform = type(ExpTransform().inv)
_Parts = Distribution | Transform | Constraint


def relocated(value: Any, device: torch.device) -> Any:
    """Return a distribution with its tensors on a device; itself if they are there.

    Parameters
    ----------
    value
        A distribution or a part of one: a tensor, transform, constraint, or several.
    device
        The target device.

    Examples
    --------
    >>> import pyro.distributions as dist, torch
    >>> from probsl.program.relocation import relocated
    >>> prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    >>> relocated(prior, torch.device("meta")).base_dist.loc.device
    device(type='meta')
    >>> relocated(prior, torch.device("cpu")) is prior
    True
    """
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, list | tuple):
        items = [relocated(item, device) for item in value]
        same = all(a is b for a, b in zip(items, value, strict=True))
        return value if same else type(value)(items)
    if not isinstance(value, _Parts) or isinstance(value, nn.Module):
        return value  # the parameters of modules are replaced with all others
    parts = _parts_of(value)
    moved = {name: relocated(part, device) for name, part in parts.items()}
    if all(moved[name] is part for name, part in parts.items()):
        return value
    result = copy.copy(value)
    if isinstance(value, Transform):
        # Its caches belong to the original.
        vars(result).update(_inv=None, _cached_x_y=(None, None))
    vars(result).update(moved)
    return result


def _parts_of(value: _Parts) -> dict[str, Any]:
    """Return the attributes that make up a distribution, or a part of one."""
    remembered = {"_cached_x_y"}
    if isinstance(value, Transform) and not isinstance(value, _InverseTransform):
        remembered.add("_inv")  # for an inverse, it is the inverted transform
    return {n: part for n, part in vars(value).items() if n not in remembered}


class Relocation(Messenger):
    """Moves the distribution of every site to the device of the fit.

    Torch makes new tensors there by default, but earlier priors, such as those of a
    module, stay on the device on which they were made.
    """

    def __init__(self) -> None:
        super().__init__()
        # Site -> its distribution, the device, and the moved distribution.
        self._moved: dict[str, tuple[Any, torch.device, Any]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        device, fn = torch.get_default_device(), msg["fn"]
        if device.type == "cpu" or not isinstance(fn, Distribution):
            return
        kept = self._moved.get(msg["name"])
        if kept is None or kept[0] is not fn or kept[1] != device:
            moved = relocated(fn, device)
            if moved is fn:
                return
            kept = self._moved[msg["name"]] = fn, device, moved
        msg["fn"] = kept[2]
