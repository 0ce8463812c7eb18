"""Plain values as JSON, with their tensors apart."""

from __future__ import annotations

import datetime
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "DTYPES",
    "MOST_AXES",
    "NoFormError",
    "count",
    "decoded",
    "encodable",
    "encoded",
    "on_device",
    "shape_of",
    "tensors",
    "text",
]

# The types of tensors, by their names in the safetensors format.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
# Sizes above are mistakes: torch counts elements by 64 bits, and has few axes.
_MOST, MOST_AXES = 1 << 40, 64
# From this many on, labels are in a tensor, which takes less than JSON to read.
_MANY = 1000


class NoFormError(TypeError):
    """A value for which there is no form in a file."""


def encoded(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Return a value in the types of JSON, and put its tensors into a dict.

    What JSON lacks is a dict with one key, as ``{"$float": "nan"}``.

    Parameters
    ----------
    value
        Numbers, texts, times and tensors in dicts, lists and tuples.
    tensors
        Takes the tensors, by names made of the keys that lead to them.
    path
        The keys that lead to the value.

    Raises
    ------
    NoFormError
        If a part of it is of another type.

    Examples
    --------
    >>> import torch
    >>> from probsl.export.saved_values import decoded, encoded
    >>> tensors = {}
    >>> encoded({"w": torch.ones(2), "limits": (0, float("inf"))}, tensors)
    {'w': {'$tensor': 'w'}, 'limits': {'$tuple': [0, {'$float': 'inf'}]}}
    >>> tensors
    {'w': tensor([1., 1.])}
    """
    if isinstance(value, np.generic):
        value = value.item()
    found: Any
    if value is None or isinstance(value, bool | int | str):
        found = value
    elif isinstance(value, float):
        finite = math.isfinite(value)
        found = float(value) if finite else {"$float": repr(float(value))}
    elif isinstance(value, Tensor):
        found = {"$tensor": _put(value, tensors, path)}
    elif _are_many(value, str):
        letters = np.frombuffer("\0".join(value).encode(), np.uint8)
        found = {"$texts": encoded(torch.tensor(letters), tensors, path)}
    elif _are_many(value, int):
        found = {"$numbers": encoded(torch.tensor(value), tensors, path)}
    elif isinstance(value, list | tuple):
        items = [encoded(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]
        found = {"$tuple": items} if isinstance(value, tuple) else items
    elif isinstance(value, dict):
        found = _encoded_dict(value, tensors, path)
    else:
        found = _encoded_time(value)
    return found


def decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the value that `encoded` was given.

    Raises
    ------
    LookupError, TypeError, ValueError
        If it is not as `encoded` returned it.
    """
    if isinstance(value, list):
        return [decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind = next(iter(value), "")
    if not kind.startswith("$"):
        return {name: decoded(item, tensors) for name, item in value.items()}
    (held,) = value.values()
    if kind == "$tensor":
        return tensors[held]
    return _DECODERS[kind](decoded(held, tensors))


def encodable(value: Any) -> bool:
    """Return whether there is a form for a value in a file."""
    try:
        encoded(value, {})
    except NoFormError:
        return False
    return True


def _are_many(value: Any, kind: type) -> bool:
    """Whether a value is a long tuple of texts, or of numbers, which a tensor holds."""
    if not isinstance(value, tuple) or len(value) < _MANY:
        return False
    if kind is int:
        return all(type(v) is int and abs(v) < 2**63 for v in value)
    return all(type(v) is str and "\0" not in v for v in value)


def _texts(letters: Tensor) -> tuple[str, ...]:
    return tuple(letters.numpy().tobytes().decode().split("\0"))


def tensors(value: Mapping[str, Any], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return a dict of tensors, all of one type if it is given."""
    for name, tensor in value.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"'{name}' is not a tensor")
        if dtype is not None and tensor.dtype != dtype:
            raise TypeError(f"'{name}' is of type {tensor.dtype}, and not {dtype}")
    return dict(value)


def on_device(values: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return tensors on a device."""
    return {name: value.to(device) for name, value in values.items()}


def text(value: Any) -> str:
    """Return a text; refuse everything else."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def count(value: Any) -> int:
    """Return a number of things; refuse everything else."""
    if type(value) is not int or not 0 <= value <= _MOST:
        raise ValueError(f"{value!r} is not a size")
    return value


def shape_of(value: Any) -> torch.Size:
    """Return a shape; refuse one that torch cannot have."""
    shape = torch.Size(map(count, value))
    if len(shape) > MOST_AXES or shape.numel() > _MOST or shape.numel() < 0:
        raise ValueError("a shape is too large")
    return shape


def _put(value: Tensor, tensors: dict[str, Tensor], path: str) -> str:
    """Put a tensor among those of the file, and return its name there."""
    if value.dtype not in DTYPES.values() or value.layout is not torch.strided:
        raise NoFormError(f"a tensor of type {value.dtype} cannot be saved")
    first = name = path.lstrip("/")
    number = 1
    while name in tensors or name in ("", "__metadata__"):
        name, number = f"{first}#{number}", number + 1
    # No two may share memory.
    tensors[name] = value.detach().cpu().contiguous().clone()
    return name


def _encoded_dict(value: dict[Any, Any], tensors: dict[str, Tensor], path: str) -> Any:
    items = {k: encoded(v, tensors, f"{path}/{k}") for k, v in value.items()}
    if all(isinstance(k, str) and not k.startswith("$") for k in items):
        return items
    return {"$items": [[encoded(k, tensors, path), v] for k, v in items.items()]}


def _encoded_time(value: Any) -> Any:
    """Return the parts of a label that is a time or a range."""
    kind, module = type(value).__name__, type(value).__module__.partition(".")[0]
    if kind == "Interval" and module == "pandas":
        ends = [value.left, value.right, value.closed]
        return {"$Interval": [encoded(end, {}) for end in ends]}
    # The exact types: others have more parts than their text.
    exact = type(value) in (datetime.datetime, datetime.date)
    if exact or (kind == "Timestamp" and module == "pandas"):
        return {f"${kind}": value.isoformat()}
    raise NoFormError(f"a value of type {kind} cannot be saved")


def _of_pandas(kind: str, parts: list[Any]) -> Any:
    import pandas as pd

    return getattr(pd, kind)(*parts)


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "$float": {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}.__getitem__,
    "$tuple": tuple,
    "$texts": _texts,
    "$numbers": lambda numbers: tuple(numbers.tolist()),
    "$items": dict,
    "$datetime": datetime.datetime.fromisoformat,
    "$date": datetime.date.fromisoformat,
    "$Timestamp": lambda text: _of_pandas("Timestamp", [text]),
    "$Interval": lambda ends: _of_pandas("Interval", ends),
}
