"""Whether distributions check their parameters and values, whatever they hold."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.distributions import Distribution

if TYPE_CHECKING:
    from collections.abc import Iterator

# Torch's name for it: a default of the class, and of a distribution that was asked for
# checks, or expanded while they were on, an attribute of its own.
_FLAG = "_validate_args"


@contextmanager
def validating(validate: bool) -> Iterator[None]:
    """Let distributions check themselves in a block, or keep all of them from it.

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
    """Return the default of torch's classes, or what stands in its place."""
    return vars(Distribution).get(_FLAG)


def put_back(before: Any) -> None:
    """Make what `default` returned the default again."""
    if before is not None:  # torch calls it something else by now
        setattr(Distribution, _FLAG, before)


def replace_default(validate: bool) -> None:
    """Let distributions check themselves, or keep all of them from it.

    A check reads whether values lie in a support, which no graph of operations and no
    vectorized run can. The default of torch's classes does not reach a distribution
    that was expanded before, since that has copied the default.

    Parameters
    ----------
    validate
        True makes checks the default, which a distribution may overrule; False turns
        them off for every distribution, in this thread.
    """
    before = default()
    if before is not None:
        put_back(True if validate else _Off(before))


class _Off:
    """In the place of the flag: off in one thread, and what it was in all others."""

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
