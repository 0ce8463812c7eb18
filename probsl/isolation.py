"""One door to everything process-wide: Pyro's handlers and store, torch's flags."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import pyro
import torch

from probsl.validation import validating

if TYPE_CHECKING:
    from collections.abc import Iterator

# Pyro's handler stack and torch's default dtype belong to the process, so two
# fits in two threads must take turns; re-entrant, for a fit inside a callback.
_LOCK = threading.RLock()


@contextmanager
def isolated(
    dtype: torch.dtype,
    seed: int = 0,
    *,
    device: torch.device | None = None,
    validate: bool = False,
) -> Iterator[None]:
    """Run a block in a Pyro and torch state of its own, and put back the old one.

    Inside, Pyro's parameter store is empty, torch's default floating type is
    `dtype` and its default device `device`, the random states of the CPU and of that
    device start from `seed`, gradients are on, and distributions check their
    arguments only if `validate`. Afterwards, also after an error, everything is as it
    was.

    Parameters
    ----------
    dtype
        The default floating type inside the block.
    seed
        Seed of torch's global generators inside the block.
    device
        Where tensors are made inside the block; None leaves that as it is.
    validate
        Whether distributions check their parameters and values.

    Examples
    --------
    >>> import torch
    >>> from probsl.isolation import isolated
    >>> with isolated(torch.float64):
    ...     print(torch.zeros(1).dtype)
    torch.float64
    >>> torch.zeros(1).dtype
    torch.float32
    """
    settings = pyro.settings.context(
        module_local_params=True,
        validate_distributions_pyro=validate,
        # Pyro's own checks refuse a bare `pyro.param` in a module, which works here.
        validate_poutine=False,
        validate_infer=False,
    )
    with (
        _LOCK,
        _default_dtype(dtype),
        settings,
        validating(validate),
        pyro.get_param_store().scope(),
        _default_device(device),
        forked(device),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        # Not torch.manual_seed, which would also reseed every other accelerator.
        torch.default_generator.manual_seed(seed)
        for index in _cuda_index(device):
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def forked(device: torch.device | None) -> AbstractContextManager[None]:
    """Put back the random states of the CPU and of a device after a block."""
    return torch.random.fork_rng(devices=_cuda_index(device))


def _cuda_index(device: torch.device | None) -> list[int]:
    """Return the index of a CUDA device in a list, which is empty for any other."""
    if device is None or device.type != "cuda":
        return []
    if device.index is None:
        return [torch.cuda.current_device()]
    return [device.index]


@contextmanager
def _default_device(device: torch.device | None) -> Iterator[None]:
    # Torch's own mode costs time at every call, so it is entered where it matters only.
    if device is None or device == torch.get_default_device():
        yield
        return
    with device:
        yield


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
