"""Values of the latents at which a program is run, and alternatives if it fails."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from probsl.options import shown
from probsl.program.supports import bijection, settled, support_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = [
    "TRIED",
    "GivenParameters",
    "Place",
    "first_place",
    "others",
    "start_tensor",
    "start_value",
]

# As in Stan: up to this many points, uniform around zero in unconstrained space.
_POINTS, _WIDTH = 100, 2.0
_PRIOR_DRAWS = 20
_REPEATS = 10
TRIED = (
    f"{_POINTS} points drawn uniformly from [-{_WIDTH:g}, {_WIDTH:g}] in unconstrained "
    f"space, and {_PRIOR_DRAWS} draws from the prior"
)
_INVALID = re.compile(r"Expected parameter (\w+) \(.*?\) of distribution (\w+)", re.S)
_UNDEFINED = re.compile(r"^(\w+) is not defined when (.*)$")


@dataclass(frozen=True, eq=False)
class Place:
    """The values of the latents in a run of a program.

    Attributes
    ----------
    given
        Latent site or own parameter -> constrained value, as the user gave it.
    around
        Latent site -> the center of the other values in unconstrained space; zero
        where absent.
    jitter
        Standard deviation of the other values in unconstrained space.
    width
        Half-width of a uniform distribution that is used instead.
    prior
        Whether the other values are drawn from the program instead.
    seed
        Seed of all draws.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    around: Mapping[str, Tensor] = field(default_factory=dict)
    jitter: float = 0.0
    width: float = 0.0
    prior: bool = False
    seed: int = 0

    def value(self, name: str, fn: Any) -> Tensor | None:
        """Return the value of a continuous latent; None: it is drawn.

        Raises
        ------
        ValueError, TypeError
            If the user gave a value that it cannot have.
        """
        support = support_of(fn)
        if name in self.given:
            like = torch.empty(0)
            value, _ = start_value(name, self.given[name], fn.shape(), support, like)
            return value
        if self.prior:
            return None
        transform = bijection(support)
        shape = transform.inverse_shape(fn.shape())
        x = self.around.get(name)
        if x is None or x.shape != shape:
            x = torch.zeros(shape)
        if self.jitter:
            x = x + self.jitter * torch.randn(shape)
        if self.width:
            x = x + self.width * (2 * torch.rand(shape) - 1)
        constrained: Tensor = transform(x)
        return constrained


class GivenParameters(Messenger):
    """Sets the start values of `pyro.param` statements in a first run.

    Parameters
    ----------
    given
        Name -> constrained value; entries of other names are ignored.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__()
        self._given = given

    def _pyro_post_param(self, msg: Any) -> None:
        name, value = msg["name"], msg["value"]
        if name in self._given:
            msg["value"] = start_tensor(name, self._given[name], value.shape, value)


def others(place: Place) -> Iterator[Place]:
    """Yield the alternatives to a place where a program cannot be run."""
    for seed in range(_POINTS):
        yield replace(place, around={}, width=_WIDTH, seed=seed)
    for seed in range(_PRIOR_DRAWS):
        yield replace(place, prior=True, seed=seed)


def first_place(
    run: Callable[[Place], dict[str, Any]],
    place: Place,
    doubt: Callable[[dict[str, Any]], str],
) -> tuple[dict[str, Any], Place]:
    """Run a program at the first place that works, the given one first.

    Parameters
    ----------
    run
        Runs the program at a place, and returns the message of every site.
    place
        The first candidate: zero in unconstrained space, except for given values.
    doubt
        From the messages to why a fit cannot start there, as a clause; else "".

    Returns
    -------
    tuple
        The messages, and the place to use from then on.

    Raises
    ------
    ValueError
        If no place works; it names those that were tried. An error that does not
        depend on the place is raised unchanged.
    """
    reason, errors = "", list[Exception]()
    for index, tried in enumerate([place, *others(place)]):
        try:
            messages = run(tried)
        except (ValueError, ArithmeticError, RuntimeError) as error:
            if tried.prior:  # some priors cannot be sampled
                continue
            errors.append(error)
            if not _blames_values(error):
                raise
            if _repeats(errors) and not place.given:
                raise errors[0] from None
            found = _as_clause(error)
        else:
            found = doubt(messages)
        reason = reason or found
        if not found:
            plain = index == 0 and not place.given and not place.around
            around = {} if plain else _unconstrained(messages)
            return messages, Place(around=around)
    at = "at start=" if place.given else "where every latent is at the image of zero"
    raise ValueError(
        f"the program cannot begin: {at}, {reason}; tried besides: {TRIED}, and none "
        "was better; give start= with values at which every distribution of the "
        "program is valid and allows its observed values"
    ) from (errors[0] if errors else None)


def start_value(
    name: str, value: Any, shape: torch.Size, support: Any, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a start value as a tensor, and its unconstrained value.

    Parameters
    ----------
    name
        The latent.
    value
        The value that the user gave.
    shape, support
        Of the latent.
    like
        A tensor with the dtype and device that the value is to have.

    Raises
    ------
    ValueError, TypeError
        If the value has another shape, is not finite, or outside the support.
    """
    constrained = start_tensor(name, value, shape, like)
    support = settled(support)
    if not bool(support.check(constrained).all()):
        raise ValueError(
            f"start of '{name}' is outside its support, {support}: "
            f"{shown(constrained.tolist())}; start inside it"
        )
    unconstrained: Tensor = bijection(support).inv(constrained)
    if not bool(unconstrained.isfinite().all()):
        raise ValueError(
            f"start of '{name}' lies on the edge of its support, {support}; start "
            "inside it"
        )
    return constrained, unconstrained


def start_tensor(name: str, value: Any, shape: torch.Size, like: Tensor) -> Tensor:
    """Return a start value as a tensor of a given shape; see `start_value`."""
    try:
        constrained = torch.as_tensor(value).detach().to(like)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"start of '{name}' must be a number or an array, got {shown(value)}"
        ) from None
    if constrained.shape != shape:
        raise ValueError(
            f"start of '{name}' has shape {tuple(constrained.shape)}, but the site has "
            f"shape {tuple(shape)}; give both the same"
        )
    if not bool(constrained.isfinite().all()):
        raise ValueError(
            f"start of '{name}' is not finite, {shown(constrained.tolist())}; give "
            "finite numbers"
        )
    return constrained


def _unconstrained(messages: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return latent site -> its value in a run, in unconstrained space."""
    around = {}
    for name, message in messages.items():
        support = None if message["is_observed"] else support_of(message["fn"])
        if support is None or support.is_discrete:
            continue
        x = bijection(support).inv(message["value"].detach())
        around[name] = torch.where(x.isfinite(), x, 0.0)
    return around


def _blames_values(error: Exception) -> bool:
    """Whether an error may come from the values of the latents, not the program."""
    if isinstance(error, ArithmeticError | torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return True
    text = str(error)
    known = _INVALID.search(text) or _UNDEFINED.match(text)
    return bool(known) or "math domain error" in text


def _repeats(errors: Sequence[Exception]) -> bool:
    """Whether a program fails in the same way at all values of the latents."""
    texts = {_core_of(str(error)) for error in errors}
    return len(errors) >= _REPEATS and len(texts) == 1 and "nan" not in texts.pop()


def _core_of(text: str) -> str:
    """Return an error's text without the other parameters of a distribution."""
    invalid = _INVALID.search(text)
    if not invalid:
        return text
    return " ".join((*invalid.groups(), text.rpartition("invalid values")[2]))


def _as_clause(error: Exception) -> str:
    """Describe the error of a run as a clause."""
    text = str(error)
    invalid = _INVALID.search(text)
    if invalid:
        parameter, kind = invalid.groups()
        what = "NaN" if "nan" in text.rpartition("invalid values")[2] else "not allowed"
        return f"the {parameter} of a {kind} is {what}"
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return f"it fails ({first})"
