"""Declares the supports of latents for Pyro's automatic guides."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import MixtureSameFamily, TransformedDistribution
from torch.distributions.constraint_registry import biject_to

from probsl.program.supports import Coordinated, stated, support_of, unwrap

__all__ = ["DeclaredSupports"]


class DeclaredSupports(Messenger):
    """Replaces latents' distributions by ones that state their true support.

    Pyro's automatic guides derive a latent's coordinates from the support that its
    distribution states. That is too wide for a transformed distribution, and torch has
    no bijection for some supports.
    """

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or not _misleads(fn):
            return
        support = support_of(fn)
        if support is not None and not support.is_discrete:
            msg["fn"] = _Declared(fn, Coordinated(support))


def _misleads(fn: Any) -> bool:
    """Whether the stated support of a distribution is wrong or unusable."""
    inner = unwrap(fn)
    if isinstance(inner, MixtureSameFamily):
        return True
    if isinstance(inner, TransformedDistribution):
        return type(inner).support is TransformedDistribution.support
    support = stated(fn)
    if support is None or support.is_discrete:
        return False
    try:
        biject_to(support)
    except NotImplementedError:
        return True
    return False


class _Declared(TorchDistribution):
    """A distribution that states a different support."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as torch declares it

    def __init__(self, base_dist: Any, support: Any) -> None:
        self.base_dist = base_dist
        self._support = support
        super().__init__(
            base_dist.batch_shape, base_dist.event_shape, validate_args=False
        )

    @property
    def support(self) -> Any:
        return self._support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return bool(self.base_dist.has_rsample)

    @property
    def mean(self) -> Any:
        return self.base_dist.mean

    @property
    def variance(self) -> Any:
        return self.base_dist.variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return _Declared(self.base_dist.expand(batch_shape), self._support)

    def sample(self, sample_shape: Any = torch.Size()) -> Any:  # noqa: B008
        return self.base_dist.sample(sample_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Any:  # noqa: B008
        return self.base_dist.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Any:
        return self.base_dist.log_prob(value)
