"""Finds where a program reads the values of tensors into Python."""

from __future__ import annotations

import linecache
import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from traceback import FrameSummary

# Functions that read a value, and how a user writes them.
_READERS: dict[Any, str] = {
    Tensor.item: ".item()",
    Tensor.tolist: ".tolist()",
    Tensor.numpy: ".numpy()",
    Tensor.__array__: "numpy",
    Tensor.__bool__: "`if`, `while` or bool()",
    Tensor.__int__: "int()",
    Tensor.__float__: "float()",
    Tensor.__complex__: "complex()",
    Tensor.__index__: "range() or an index",
    Tensor.__contains__: "`in`",
    Tensor.__format__: "a formatted string",
    torch.equal: "torch.equal",
    torch.allclose: "torch.allclose",
    torch.is_nonzero: "torch.is_nonzero",
}
# These do not fail during tracing; the graph then contains the values they read.
_SILENT = (Tensor.tolist, Tensor.numpy, Tensor.__array__)

_LIBRARIES = {
    "torch": Path(torch.__file__).parent,
    "pyro": Path(pyro.__file__).parent,
    "probsl": Path(__file__).parents[2],
}
_LISTENERS = ("probsl.", "torch.overrides", "torch._tensor")
_STANDARD = Path(sysconfig.get_paths()["stdlib"])


class ReadError(RuntimeError):
    """A value was read during tracing; the message says by which function."""


class Reading(TorchFunctionMode):
    """Detects the function by which a program reads the value of a tensor.

    Attributes
    ----------
    silent
        The first read of a value that a graph cannot represent, in words.
    """

    def __init__(self) -> None:
        super().__init__()
        self.silent = ""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _SILENT and not self.silent:
            self.silent = _described(_READERS[func], traceback.extract_stack())
        try:
            return func(*args, **(kwargs or {}))
        except Exception as error:
            if func in _READERS:
                raise ReadError(_READERS[func]) from error
            raise


def reason_without_graph(error: BaseException) -> str:
    """Return why a run of a program under `Reading` could not be traced, and where.

    Empty if it was not a line of the program that failed.
    """
    read: BaseException | None = error
    while read is not None and not isinstance(read, ReadError):
        read = read.__cause__ or read.__context__
    if read is not None:
        frames = traceback.extract_tb(read.__traceback__)
        return _described(str(read), frames)
    place = _place(traceback.extract_tb(error.__traceback__))
    if not place:
        return ""
    kind = type(error).__name__
    return f"the program cannot be recorded as a graph ({kind}: {place})"


def _described(by: str, frames: Sequence[FrameSummary]) -> str:
    """Return a message that says by which function a value is read, and where."""
    # The frames inside the reader belong to the functions that observe it.
    readers = (_library(frame.filename) for frame in reversed(frames))
    reader = next((r for r in readers if not r.startswith(_LISTENERS)), "")
    inside = f" in {reader}" if reader else ""
    place = _place(frames)
    by = f"{by}{inside}{place and f': {place}'}"
    return f"the program reads the value of a tensor by {by}"


def _place(frames: Sequence[FrameSummary]) -> str:
    """Return the innermost location outside of libraries, empty if there is none."""
    for frame in reversed(frames):
        if not _library(frame.filename):
            code = _code(frame)
            quoted = f"`{code}`, " if code else ""
            return f"{quoted}{frame.filename}:{frame.lineno} in {frame.name}"
    return ""


def _library(file: str) -> str:
    """Return the dotted name of a library module; empty for the user's own files."""
    path = Path(file)
    for name, folder in _LIBRARIES.items():
        if path.is_relative_to(folder):
            inner = path.relative_to(folder).with_suffix("")
            return ".".join([name, *inner.parts])
    standard = path.is_relative_to(_STANDARD) and "site-packages" not in path.parts
    return path.stem if standard or file.startswith("<frozen") else ""


def _code(frame: FrameSummary) -> str:
    """Return the expression that a frame was executing, or its line."""
    line = linecache.getline(frame.filename, frame.lineno or 0)
    if frame.lineno != frame.end_lineno or frame.colno is None:
        return line.strip()
    # Columns count bytes.
    return line.encode()[frame.colno : frame.end_colno].decode().strip()
