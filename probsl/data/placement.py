"""The floating type and the device of a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from probsl.data.array_kinds import COMPUTED_IN
from probsl.data.conversion import (
    type_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from probsl.data.arguments import Arguments


def floating_type(
    arguments: Arguments, own: set[torch.dtype], dtype: torch.dtype | None
) -> torch.dtype:
    """Choose the floating type of a fit.

    The requested one; else that of the program's own parameters; else the
    widest of the data; else torch's default.

    Raises
    ------
    ValueError, TypeError
        If the program's own parameters have several types and none is requested,
        or the requested one is not a floating type.
    """
    if dtype is not None:
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype must be such as torch.float64, got {dtype!r}")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating type, got {dtype}")
        if dtype not in COMPUTED_IN:
            raise ValueError(
                f"dtype must be a floating type that torch computes in, such as "
                f"torch.float32, got {dtype}"
            )
        return dtype
    if len(own) > 1:
        names = ", ".join(sorted(str(t) for t in own))
        raise ValueError(
            f"the program's own parameters are of several floating types ({names}); "
            "say which one to compute in, for example dtype=torch.float64"
        )
    if own:
        return next(iter(own))
    types = [type_of(array) for array in arguments.arrays().values()]
    return max(
        (t for t in types if t.is_floating_point),
        key=lambda t: torch.finfo(t).bits,
        default=torch.get_default_dtype(),
    )


def device_of(
    arguments: Arguments, own: Iterable[torch.device], device: Any
) -> torch.device:
    """Choose the device of a fit.

    The requested one; else the accelerator of the program's own parameters;
    else that of the data; else the CPU.

    Raises
    ------
    ValueError, TypeError
        If the requested one is not available, or is not a device.
    """
    if device is not None:
        return _available(device)
    tensors = [v.device for v in arguments.values.values() if torch.is_tensor(v)]
    found = (place for place in [*own, *tensors] if place.type != "cpu")
    return next(found, torch.device("cpu"))


def _available(device: Any) -> torch.device:
    """Return an available device, with its index."""
    if not isinstance(device, str | torch.device):
        raise TypeError(
            f"device must be 'cpu', 'cuda' or a torch.device, got {device!r}"
        )
    try:
        place = torch.device(device)
    except RuntimeError:
        place = None
    if place is None or place.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got '{device}'")
    if place.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not 0 <= (place.index or 0) < count:
        found = (
            f"torch.cuda.device_count() is {count}"
            if count
            else "torch.cuda.is_available() is False"
        )
        raise ValueError(
            f"device='{device}' is not available here ({found}); leave device out to "
            "compute on the CPU"
        )
    # Tensors report a device with its index, which must compare equal.
    if place.index is None:
        place = torch.device("cuda", torch.cuda.current_device())
    return place
