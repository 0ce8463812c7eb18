"""Distributions on the device of a fit, wherever a program has made them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import nn
from torch.distributions import Distribution, Transform
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import ExpTransform

# Torch keeps the name of this class to itself.
_InverseTransform = type(ExpTransform().inv)
_Parts = Distribution | Transform | Constraint


def relocated(value: Any, device: torch.device) -> Any:
    """Return a distribution with its tensors on a device; itself if they are there.

    Parameters
    ----------
    value
        A distribution; or a part of one: a tensor, a transform, a constraint, several.
    device
        Where its tensors shall be.

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
        return value  # of modules the parameters are replaced, with all others
    parts = _parts_of(value)
    moved = {name: relocated(part, device) for name, part in parts.items()}
    if all(moved[name] is part for name, part in parts.items()):
        return value
    result = copy.copy(value)
    if isinstance(value, Transform):
        # What it remembers belongs to the one that it was copied from.
        vars(result).update(_inv=None, _cached_x_y=(None, None))
    vars(result).update(moved)
    return result


def _parts_of(value: _Parts) -> dict[str, Any]:
    """Return what a distribution, or a part of one, is made of."""
    remembered = {"_cached_x_y"}
    if isinstance(value, Transform) and not isinstance(value, _InverseTransform):
        remembered.add("_inv")  # of an inverse it is what is inverted
    return {n: part for n, part in vars(value).items() if n not in remembered}


class Relocation(Messenger):
    """Moves the distribution of every site to the device of the fit.

    Torch makes tensors there by default, but priors made before, as those that a module
    holds, are where they were made.
    """

    def __init__(self) -> None:
        super().__init__()
        # Site -> its distribution, the device, and what has become of it there.
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
