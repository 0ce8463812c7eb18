"""The log densities of a program on fixed numbers, to notice that it has changed."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from probsl.program.messages import is_computed, is_continuous
from probsl.program.supports import bijection, support_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from probsl.program.stateless_callable import StatelessCallable

__all__ = ["density_prints", "fixed_prints"]


class _Fixed(Messenger):
    """Gives every site a fixed value, and notes its log density."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.found: dict[str, float | None] = {}
        self._most = most

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, _Subsample):
            size = min(fn.size, fn.subsample_size or fn.size)
        else:
            size = torch.Size(fn.shape()).numel()
        if size > self._most:
            raise ValueError(f"'{msg['name']}' has {size} elements")
        if not isinstance(fn, _Subsample) and not msg["is_observed"]:
            msg["value"] = _value(fn)
            msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if not isinstance(msg["fn"], _Subsample) and not is_computed(msg):
            self.found[msg["name"]] = _density(msg)


def density_prints(run: Callable[[], Any], most: int) -> dict[str, float | None]:
    """Return site -> its log density in a run on fixed numbers, if that is finite.

    Parameters
    ----------
    run
        Calls the program; it must be inside `probsl.isolation.calls.isolated`.
    most
        The most elements that a site or plate may have.

    Raises
    ------
    ValueError
        If one has more. An error of the program is raised as it is.

    Examples
    --------
    >>> import pyro, pyro.distributions as dist, torch
    >>> from probsl.isolation.calls import isolated
    >>> from probsl.program.density_prints import density_prints
    >>> def program():
    ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Poisson(w.exp()))
    >>> with isolated(torch.float32):
    ...     density_prints(program, most=10)
    {'w': -0.9389..., 'y': -1.2214...}
    """
    fixed = _Fixed(most)
    with torch.no_grad(), fixed:
        run()
    return fixed.found


def fixed_prints(functional: StatelessCallable) -> dict[str, str]:
    """Return the hashes of what the modules of a program hold and no fit changes.

    That is their floating-point buffers, as others count calls, and their parameters
    without gradients.
    """
    found: dict[str, Tensor] = {}
    for path, module in functional.named_modules():
        held = [*module.named_buffers(recurse=False)]
        held += module.named_parameters(recurse=False)
        found |= {
            f"{path}.{name}": tensor
            for name, tensor in held
            if tensor.is_floating_point() and not tensor.requires_grad
        }
    return {name: _hash(tensor) for name, tensor in found.items()}


def _hash(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(plain.numpy().tobytes())
    return digest.hexdigest()


def _value(fn: Any) -> Tensor:
    shape, support = torch.Size(fn.shape()), support_of(fn)
    if support is None or not is_continuous(fn):
        if not fn.has_enumerate_support:
            return torch.zeros(shape)
        first: Tensor = fn.enumerate_support(expand=False)[0]
        return first.expand(shape)
    transform = bijection(support)
    inverse = torch.Size(transform.inverse_shape(shape))
    # Zeros would hide by what they are multiplied.
    wave = 0.1 + 0.1 * torch.arange(inverse.numel(), device="cpu").cos()
    like = torch.empty((), dtype=torch.get_default_dtype())
    value: Tensor = transform(wave.to(like).reshape(inverse))
    return value


def _density(msg: Any) -> float | None:
    try:
        total = float(msg["fn"].log_prob(msg["value"]).double().sum())
    except (IndexError, NotImplementedError, RuntimeError, ValueError):
        return None
    return total if math.isfinite(total) else None
