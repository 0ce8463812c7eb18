"""Controls whether distributions check their parameters and values."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.distributions import Distribution

if TYPE_CHECKING:
    from collections.abc import Iterator

# Torch's flag: a class attribute for the default, and an instance attribute of a
# distribution for which checks were requested, or which was expanded with checks on.
_FLAG = "_validate_args"


@contextmanager
def validating(validate: bool) -> Iterator[None]:
    """Turn the checks of all distributions on or off in a block.

    See `replace_default`.

    Examples
    --------
    >>> import pyro.distributions as dist, torch
    >>> from probsl.isolation.validation import validating
    >>> prior = dist.Uniform(0.0, torch.ones(())).expand([2])
    >>> with validating(False):
    ...     prior.log_prob(torch.tensor([0.5, 2.0]))
    tensor([0., -inf])
    """
    before = default()
    replace_default(validate)
    try:
        yield
    finally:
        put_back(before)


def default() -> Any:
    """Return the default of torch's classes, or its replacement."""
    return vars(Distribution).get(_FLAG)


def put_back(before: Any) -> None:
    """Restore a result of `default`."""
    if before is not None:  # else this version of torch has another name
        setattr(Distribution, _FLAG, before)


def replace_default(validate: bool) -> None:
    """Turn the checks of all distributions on or off.

    A check reads whether values lie in a support, which is impossible in a traced graph
    or a vectorized run. The default of torch's classes does not affect a distribution
    that was expanded before, because that has copied the default.

    Parameters
    ----------
    validate
        True makes checks the default, which a distribution may override; False turns
        them off for every distribution, in this thread.
    """
    before = default()
    if before is not None:
        put_back(True if validate else _Off(before))


class _Off:
    """Replaces the flag: off in one thread, unchanged in all others."""

    def __init__(self, before: Any) -> None:
        self._default: Any = before._default if isinstance(before, _Off) else before
        self._thread = threading.get_ident()

    def __get__(self, holder: Any, kind: Any = None) -> Any:
        if threading.get_ident() == self._thread:
            return False
        return self._default if holder is None else self._own(holder)

    def __set__(self, holder: Any, value: Any) -> None:
        vars(holder)[_FLAG] = value

    def _own(self, holder: Any) -> Any:
        return vars(holder).get(_FLAG, self._default)
