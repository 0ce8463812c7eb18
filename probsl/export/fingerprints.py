"""Fingerprints of data, by which other data are noticed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probsl.data.conversion import is_array
from probsl.data.streamed_rows import StreamedRows

if TYPE_CHECKING:
    from probsl.program.problem import Problem

# Rows per part of an array that may be on the disk.
_PART = 1 << 16


def fingerprints(problem: Problem) -> dict[str, str]:
    """Return argument -> the hash of its values and labels.

    Left out are objects other than arrays, numbers and texts. The rows of a DataLoader
    may come in any order, so only their number, form and type are in the hash.

    Parameters
    ----------
    problem
        The program bound to its data.

    Examples
    --------
    >>> import probsl, pyro, pyro.distributions as dist, torch
    >>> from probsl.export.fingerprints import fingerprints
    >>> def program(y=None):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", 2):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> fits = [
    ...     probsl.fit(program, {"y": torch.tensor([1.0, y])}, probsl.MAP())
    ...     for y in (2.0, 2.0, 3.0)
    ... ]
    >>> one, same, other = (fingerprints(fit.problem)["y"] for fit in fits)
    >>> one == same, one == other
    (True, False)
    """
    streamed = isinstance(problem.data, StreamedRows)
    values = dict(problem.arguments.values)
    if not problem.data.complete and not streamed:
        # All rows, and not only those that are held.
        values |= getattr(problem.data, "arrays", {})
    if streamed:
        values |= {name: _form(problem, values[name]) for name in problem.rows}
    return {
        name: _hash(value, problem.arguments.labels.get(name, ()))
        for name, value in values.items()
        if (
            is_array(value)
            or value is None
            or isinstance(value, bool | int | float | str)
        )
    }


def _form(problem: Problem, held: Any) -> str:
    """Describe the rows of a loader, of which some are held."""
    assert isinstance(problem.data, StreamedRows)
    try:
        length = len(problem.data.loader.sampler)  # type: ignore[arg-type]
    except TypeError:  # an iterable data set does not say
        length = problem.size
    return f"{length} rows of {held.dtype} {tuple(held.shape[1:])}"


def _hash(value: Any, labels: tuple[Any, ...]) -> str:
    digest = hashlib.sha256(repr(labels).encode())
    if not is_array(value):
        digest.update(repr(value).encode())
        return digest.hexdigest()
    kind = str(value.dtype).removeprefix("torch.")
    digest.update(f"{kind} {tuple(value.shape)}".encode())
    whole = value if value.ndim else value.reshape(1)
    for start in range(0, len(whole), _PART):
        digest.update(_bytes(whole[start : start + _PART]))
    return digest.hexdigest()


def _bytes(part: Any) -> bytes:
    if not torch.is_tensor(part):
        return np.ascontiguousarray(part).tobytes()
    flat = part.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
