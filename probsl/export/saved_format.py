"""The container of saved fits: plain values and tensors as one safetensors file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import safetensors.torch

from probsl.export.saved_values import DTYPES, decoded, encoded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["damaged", "read", "write"]

# Limits of the header, which is read before all else is checked: its bytes, and the
# parts of its JSON, of which each takes up to 100 bytes of memory.
_MAX_HEADER, _MAX_PARTS = 16 * 2**20, 300_000
# A file of more bytes that takes so many times fewer on its disk holds no numbers.
_LARGE, _HOLES = 1 << 28, 100
_TEXT, _CHECKSUM = "probsl", "sha256"
_CHECKSUM_ENTRY = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_UNKNOWN = "0" * 64


def write(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value to a file, which is replaced as a whole or not at all.

    Parameters
    ----------
    path
        The file. An interrupted write leaves the former one.
    value
        Numbers, texts, times and tensors in dicts, lists and tuples.

    Raises
    ------
    NoFormError
        If the value has a part of another type.
    ValueError
        If everything besides the tensors is too long.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from probsl.export.saved_format import read, write
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder, "values"), {"w": torch.ones(2), "labels": ("a", 1)})
    ...     read(Path(folder, "values"))
    {'w': tensor([1., 1.]), 'labels': ('a', 1)}
    """
    _replace(Path(os.path.realpath(path)), _serialized(value))


def read(path: str | os.PathLike[str]) -> Any:
    """Read a value from a file that `write` wrote.

    Everything that the file states is checked before memory is allocated for it, so
    memory is bounded by the size of the file.

    Raises
    ------
    ValueError
        If the file is of another kind, or not as it was written.
    OSError
        If it cannot be read.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            damaged(path, "it is not a regular file")
        on_disk = 512 * getattr(status, "st_blocks", status.st_size)
        if status.st_size > _LARGE and status.st_size > _HOLES * on_disk:
            damaged(path, "nearly all of it is a hole")
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, status.st_size - 8):
            damaged(path, "it does not begin with the length of a header")
        header = file.read(length)
        if _parts(header) > _MAX_PARTS:
            damaged(path, "its header has too many parts")
        entries, text, checksum = _parsed(path, header)
        _check_entries(path, entries, status.st_size - 8 - length)
        content = start + header + file.read(status.st_size - 8 - length)
    if len(content) != status.st_size or _digest(content) != checksum:
        damaged(path, "its checksum differs")
    try:
        tensors = safetensors.torch.load(content)
    except Exception as error:
        damaged(path, "its tensors cannot be read", error)
    try:
        return decoded(_from_json(text), tensors)
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as err:
        damaged(path, "its text cannot be read", err)


def damaged(
    path: str | os.PathLike[str], why: str, cause: Exception | None = None
) -> NoReturn:
    """Refuse a file.

    Raises
    ------
    ValueError
        Saying why.
    """
    raise ValueError(
        f"'{os.fspath(path)}' is not a fit as probsl saved it: {why}; save the fit "
        "again, or take an undamaged copy"
    ) from cause


def _without_waiting(path: str, flags: int) -> int:
    """Open a file, and do not wait for a writer if it is a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _serialized(value: Any) -> bytes:
    """Return the content of a file; its checksum is of it with zeros in its place."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(encoded(value, tensors), allow_nan=False)
    content = safetensors.torch.save(tensors, {_TEXT: text, _CHECKSUM: _UNKNOWN})
    length = struct.unpack("<Q", content[:8])[0]
    if length > _MAX_HEADER or _parts(content[8 : 8 + length]) > _MAX_PARTS:
        raise ValueError(
            f"the names and labels of this fit take {length / 2**20:.1f} MiB, more "
            "than a file has room for; fit with fewer sites, or with coords= of texts"
        )
    place = _CHECKSUM_ENTRY.search(content, 8, 8 + length)
    assert place is not None
    digest = _digest(content).encode()
    return content[: place.start(1)] + digest + content[place.end(1) :]


def _parts(header: bytes) -> int:
    """Return a bound of the number of values in JSON."""
    return sum(map(header.count, (b"[", b"{", b",")))


def _digest(content: bytes) -> str:
    """Return the checksum of a file, computed with zeros in its place."""
    length = struct.unpack("<Q", content[:8])[0]
    place = _CHECKSUM_ENTRY.search(content, 8, 8 + length)
    if place is None:
        return ""
    digest = hashlib.sha256(content[: place.start(1)])
    digest.update(_UNKNOWN.encode())
    digest.update(memoryview(content)[place.end(1) :])
    return digest.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    """Write a file next to another one and put it in its place, both to the disk."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _parsed(
    path: str | os.PathLike[str], header: bytes
) -> tuple[dict[str, Any], str, str]:
    """Return the entries of the tensors, the text, and the checksum."""
    try:
        entries = _from_json(header.decode())
        metadata = entries.pop("__metadata__")
        text, checksum = metadata[_TEXT], metadata[_CHECKSUM]
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as err:
        damaged(path, "its header cannot be read", err)
    if not isinstance(text, str) or not isinstance(checksum, str):
        damaged(path, "its header holds no text")
    return entries, text, checksum


def _check_entries(
    path: str | os.PathLike[str], entries: Mapping[str, Any], size: int
) -> None:
    """Refuse tensors of unknown types, and of other sizes than the file."""
    try:
        spans = sorted((*_span(entry), name) for name, entry in entries.items())
    except (KeyError, TypeError, ValueError) as error:
        damaged(path, "a tensor in its header is wrong", error)
    end = 0
    for start, stop, name in spans:
        if start != end:
            damaged(path, f"tensor '{name}' does not follow the one before it")
        end = stop
    if end != size:
        damaged(path, f"its tensors take {end} bytes, and there are {size}")


def _span(entry: Mapping[str, Any]) -> tuple[int, int]:
    """Return where the bytes of a tensor start and end, as its shape requires."""
    dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
    start, stop = entry["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (*shape, start, stop)):
        raise ValueError("sizes must be whole numbers")
    if stop - start != math.prod(shape) * dtype.itemsize or len(shape) > 64:
        raise ValueError("the bytes of a tensor differ from its shape")
    return start, stop


def _from_json(text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)
