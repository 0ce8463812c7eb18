"""The arguments that a program takes."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Return the arguments of a program; a module's are those of its `forward`."""
    if isinstance(function, partial) and isinstance(function.func, nn.Module):
        forward = function.func.forward
        return inspect.signature(partial(forward, *function.args, **function.keywords))
    if isinstance(function, nn.Module):
        return inspect.signature(function.forward)
    return inspect.signature(function)
