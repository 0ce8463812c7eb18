"""Runs a program forward and draws its sites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


class Generating(Messenger):
    """Runs a program forward with some latents given, and records every site.

    Observed sites named in `redrawn` are drawn.
    """

    def __init__(
        self, values: Mapping[str, Tensor], redrawn: Collection[str] = ()
    ) -> None:
        super().__init__()
        self._values = values
        self._redrawn = redrawn
        self.messages: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            return
        name = msg["name"]
        self.messages[name] = msg
        if name in self._values and not msg["is_observed"]:
            value = self._values[name]
            _check_size(msg, value)
            msg["value"] = value
            msg["done"] = True
        elif name in self._redrawn and msg["is_observed"]:
            self._draw(msg)

    def _draw(self, msg: Any) -> None:
        msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        # A distribution made outside the program may draw in another floating type.
        value, dtype = msg["value"], torch.get_default_dtype()
        if torch.is_tensor(value) and value.is_floating_point():
            msg["value"] = value.to(dtype)


class Drawing(Generating):
    """Runs a program forward and resamples some sites, observed or not.

    A site that cannot be sampled, such as one with an improper prior, keeps its
    observed value or uses that of `instead`, and its name is added to `missing`.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        redrawn: Collection[str],
        instead: Mapping[str, Tensor],
        missing: set[str],
    ) -> None:
        super().__init__(values)
        self._sites = redrawn
        self._instead = instead
        self._missing = missing

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        name = msg["name"]
        if name not in self._sites:
            return
        try:
            msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])
        except (NotImplementedError, AssertionError):
            # Pyro's Gaussian HMM asserts a duration that it needs only for this.
            msg["value"] = self._instead.get(name, msg["value"])
            self._missing.add(name)
        msg["done"] = True


def _check_size(msg: Any, value: Tensor) -> None:
    shape = torch.Size(msg["fn"].shape())
    if value.shape != shape:
        raise ValueError(
            f"site '{msg['name']}' was fitted with shape {tuple(value.shape)}, but the "
            f"new data give it shape {tuple(shape)}; predict for the groups and "
            "columns that were fitted"
        )
