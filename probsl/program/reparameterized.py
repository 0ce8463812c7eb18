"""Finds the user's original site behind a reparameterization."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.reparam_messenger import ReparamMessenger
from torch import Tensor

from probsl.program.supports import unwrap


@dataclass(frozen=True)
class Written:
    """A site as the user wrote it, before it was reparameterized.

    Attributes
    ----------
    name
        Its name.
    fn
        The distribution that the user gave it.
    is_observed
        Whether the user observed it.
    """

    name: str
    fn: Any
    is_observed: bool

    def density(self, value: Tensor) -> Tensor:
        """Return a number with the same dependences as the log density at `value`.

        That is the log density itself, if the distribution has one.
        """
        try:
            density: Tensor = self.fn.log_prob(value.detach())
        except NotImplementedError:  # a stable distribution
            parts = [t for t in vars(unwrap(self.fn)).values() if torch.is_tensor(t)]
            density = torch.stack([t.sum() for t in parts]).sum()
        return torch.nan_to_num(density)


def written_site() -> Written | None:
    """Return the site that is being reparameterized, while its noise is sampled.

    Pyro's reparameterizations sample auxiliary sites while another one is handled,
    whose distribution no handler around the program sees. The call stack is searched,
    the outermost call first, because the noise may be reparameterized in turn.
    """
    frame, found = sys._getframe(), None
    code = ReparamMessenger._pyro_sample.__code__
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code is code:
            found = frame.f_locals["msg"]
    if found is None:
        return None
    return Written(found["name"], found["fn"], bool(found["is_observed"]))
