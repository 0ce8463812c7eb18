"""The supports of distributions: stated, as an image, and in coordinates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import (
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
    constraints,
)
from torch.distributions.constraint_registry import biject_to, transform_to
from torch.distributions.transforms import (
    ComposeTransform,
    IndependentTransform,
    Transform,
)

from probsl.program.matrix_coordinates import CholeskyFactor, PositiveDefinite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "Coordinated",
    "bijection",
    "image",
    "settled",
    "stated",
    "support_of",
    "unchecked",
    "unwrap",
]

# The lower and upper bound of an interval, and whether each is included. A bound that
# is a Python number is known without reading data.
Ends = tuple[Any, Any, bool, bool]

_MATRICES: dict[type, type[Transform]] = {
    type(constraints.lower_cholesky): CholeskyFactor,
    type(constraints.positive_definite): PositiveDefinite,
}
_KINDS: dict[Any, Callable[[Any], Ends]] = {
    type(constraints.real): lambda _: (-math.inf, math.inf, False, False),
    type(constraints.positive): lambda c: (c.lower_bound, math.inf, False, False),
    type(constraints.nonnegative): lambda c: (c.lower_bound, math.inf, True, False),
    constraints.less_than: lambda c: (-math.inf, c.upper_bound, False, False),
    constraints.interval: lambda c: (c.lower_bound, c.upper_bound, True, True),
    constraints.half_open_interval: lambda c: (
        c.lower_bound,
        c.upper_bound,
        True,
        False,
    ),
}


class AtMost(constraints.less_than):
    """Numbers up to and including an upper bound."""

    def __init__(self, upper_bound: Any) -> None:
        super().__init__(upper_bound)  # type: ignore[no-untyped-call]

    def check(self, value: Tensor) -> Tensor:
        """Return whether each value is allowed."""
        return value <= self.upper_bound  # type: ignore[no-any-return]


class Image(constraints.Constraint):
    """The image of a constraint's values under transforms.

    Parameters
    ----------
    base
        The constraint on the inputs.
    transforms
        The transforms in order of application; each is a bijection.
    """

    def __init__(
        self, base: constraints.Constraint, transforms: Sequence[Transform]
    ) -> None:
        self.base_constraint = base
        self.transforms = tuple(transforms)
        self.is_discrete = base.is_discrete
        whole = ComposeTransform(list(transforms))
        outer, inner = whole.codomain.event_dim, whole.domain.event_dim
        self.event_dim = max(outer, base.event_dim + outer - inner)
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Return whether each value is allowed."""
        axes = value.dim() - self.event_dim
        checks = []
        for transform in reversed(self.transforms):
            checks.append(transform.codomain.check(value))
            value = transform.inv(value)
        checks.append(self.base_constraint.check(value))
        inside = torch.ones((), dtype=torch.bool, device=value.device)
        for check in checks:
            entire = check.flatten(axes).all(-1) if check.dim() > axes else check
            inside = inside & entire
        return inside


class AnyOf(constraints.Constraint):
    """The values that some component of a mixture allows.

    Parameters
    ----------
    base
        The constraint of the components, which lie along its last batch axis.
    """

    def __init__(self, base: constraints.Constraint) -> None:
        self.base_constraint = base
        self.is_discrete = base.is_discrete
        self.event_dim = base.event_dim
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Return whether each value is allowed."""
        inside = self.base_constraint.check(value.unsqueeze(-1 - self.event_dim))
        return inside.any(-1)  # type: ignore[no-any-return]


class Coordinated(constraints.Constraint):
    """A support with this package's bijection, for Pyro's guides.

    Parameters
    ----------
    support
        The constraint on the values.
    """

    def __init__(self, support: Any) -> None:
        self.support = support
        self.is_discrete = support.is_discrete
        self.event_dim = support.event_dim
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Return whether each value is allowed."""
        return self.support.check(value)  # type: ignore[no-any-return]


for _registry in (biject_to, transform_to):
    _registry.register(Coordinated, lambda constraint: bijection(constraint.support))


def unwrap(fn: Any) -> Any:
    """Return the distribution wrapped by `to_event`, `mask` and `expand`."""
    while True:
        inner = getattr(fn, "base_dist", None)
        if inner is None or isinstance(fn, TransformedDistribution):
            return fn
        fn = inner


def unchecked(fn: Any) -> bool:
    """Return whether the program switched off the validation of a distribution.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> from probsl.program.supports import unchecked
    >>> unchecked(dist.Bernoulli(0.5, validate_args=False).to_event(0))
    True
    >>> unchecked(dist.Bernoulli(0.5))
    False
    """
    while True:
        if vars(fn).get("_validate_args") is False:
            return True
        inner = getattr(fn, "base_dist", None)
        if inner is None or isinstance(fn, TransformedDistribution):
            return False
        fn = inner


def support_of(fn: Any) -> Any:
    """Return the constraint on a distribution's values; None if it states none.

    For a transformed distribution it is the image of the base's support under all
    transforms, not the whole codomain of the last transform.

    Parameters
    ----------
    fn
        The distribution.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> from probsl.program.supports import settled, support_of
    >>> tenfold = dist.transforms.AffineTransform(0.0, 10.0)
    >>> fn = dist.TransformedDistribution(dist.Beta(2.0, 2.0), [tenfold])
    >>> settled(support_of(fn))
    Interval(lower_bound=0.0, upper_bound=10.0)
    """
    inner = getattr(fn, "base_dist", None)
    if isinstance(fn, TransformedDistribution):
        if type(fn).support is not TransformedDistribution.support:
            return stated(fn)
        support = support_of(inner)
        for transform in fn.transforms if support is not None else ():
            support = image(support, transform)
        return None if support is None else _widened(support, len(fn.event_shape))
    if isinstance(fn, MixtureSameFamily):
        return _of_mixture(support_of(fn.component_distribution))
    if inner is None:
        return stated(fn)
    support = support_of(inner)
    if support is None or not isinstance(fn, Independent):
        return support
    return constraints.independent(support, fn.reinterpreted_batch_ndims)


def stated(fn: Any) -> Any:
    """Return the support that a distribution states itself, or None."""
    try:
        support = fn.support
        support.is_discrete  # noqa: B018 - a dependent one may not define it
    except (AttributeError, NotImplementedError):
        return None
    return support


def bijection(support: Any) -> Any:
    """Return the bijection from all real vectors to a support.

    Parameters
    ----------
    support
        A constraint.

    Raises
    ------
    NotImplementedError
        If there is none.

    Examples
    --------
    >>> import torch
    >>> from torch.distributions import constraints
    >>> from probsl.program.supports import bijection
    >>> bijection(constraints.positive_definite)(torch.zeros(3))
    tensor([[1., 0.],
            [0., 1.]])
    """
    support = settled(support)
    found: Any
    match support:
        case constraints.independent():
            inner = bijection(support.base_constraint)
            found = IndependentTransform(inner, support.reinterpreted_batch_ndims)
        case Image():
            inner = bijection(support.base_constraint)
            found = ComposeTransform([inner, *support.transforms])
        case Coordinated():
            found = bijection(support.support)
        case AtMost():
            found = biject_to(constraints.less_than(support.upper_bound))
        case _ if type(support) in _MATRICES:
            found = _MATRICES[type(support)]()
        case _:
            found = biject_to(support)
    return found


def settled(support: Any) -> Any:
    """Return a support in its simplest form, with numbers as bounds if possible.

    It reads the data of the bounds, which captured code must not do.
    """
    if isinstance(support, constraints.independent):
        base = settled(support.base_constraint)
        return constraints.independent(base, support.reinterpreted_batch_ndims)
    ends = None if support is None else ends_of(support)
    if ends is None:
        return support
    lower, upper, *closed = ends
    return _interval(_plain(lower), _plain(upper), *closed)


def ends_of(support: Any) -> Ends | None:
    """Return the bounds of an interval, or None if the support is not one."""
    found = next((k for k in _KINDS if isinstance(support, k)), None)
    if found is None:
        return None
    ends: Ends = _KINDS[found](support)
    return (*ends[:3], True) if isinstance(support, AtMost) else ends


def core(support: Any) -> Any:
    """Return the constraint inside those that declare axes as one event."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def contents(support: Any) -> Iterator[Any]:
    """Yield the types, numbers and tensors that make up a constraint."""
    yield type(support)
    for held in vars(support).values() if hasattr(support, "__dict__") else ():
        for part in held if isinstance(held, list | tuple) else (held,):
            if isinstance(part, constraints.Constraint | Transform):
                yield from contents(part)
            elif torch.is_tensor(part) or isinstance(part, int | float):
                yield part


def _plain(end: Any) -> Any:
    """Return a bound as a number if all its elements are equal."""
    if not torch.is_tensor(end):
        return end
    end = end.detach()
    same = end.numel() > 0 and bool((end == end.reshape(-1)[0]).all())
    return float(end.reshape(-1)[0]) if same else end


def _interval(
    lower: Any, upper: Any, lower_closed: bool, upper_closed: bool
) -> constraints.Constraint:
    if _equal(lower, -math.inf) and _equal(upper, math.inf):
        return constraints.real
    if _equal(upper, math.inf):
        if _equal(lower, 0.0):
            return constraints.nonnegative if lower_closed else constraints.positive
        kind = constraints.greater_than_eq if lower_closed else constraints.greater_than
        return kind(lower)
    if _equal(lower, -math.inf):
        return AtMost(upper) if upper_closed else constraints.less_than(upper)
    if lower_closed and not upper_closed:
        return constraints.half_open_interval(lower, upper)
    return constraints.interval(lower, upper)


def _equal(one: Any, other: Any) -> bool:
    """Whether two bounds are known to be equal without reading data."""
    return not torch.is_tensor(one) and not torch.is_tensor(other) and one == other


def image(base: Any, transform: Transform) -> Any:
    """Return the image of a support under one transform."""
    if isinstance(transform, ComposeTransform):
        for part in transform.parts:
            base = image(base, part)
        return base
    if isinstance(transform, IndependentTransform):
        inside, outside = core(transform.domain), core(transform.codomain)
    else:
        inside, outside = transform.domain, transform.codomain
    if _covers(base, inside):
        return outside
    ends = ends_of(core(base))
    if ends is not None and inside.event_dim == outside.event_dim == 0:
        if not transform.bijective:
            return outside
        return _interval(*_moved(ends, transform, inside, outside))
    return Image(base, [transform]) if transform.bijective else outside


def _covers(base: Any, domain: Any) -> bool:
    """Whether a support is the whole domain of a transform, up to its bounds."""
    one, other = core(base), core(domain)
    ends, limits = ends_of(one), ends_of(other)
    if ends is not None and limits is not None:
        return not any(map(torch.is_tensor, (*ends, *limits))) and (
            ends[:2] == limits[:2]
        )
    return type(one) is type(other) and not isinstance(one, Image | AnyOf)


def _moved(ends: Ends, transform: Transform, domain: Any, codomain: Any) -> Ends:
    """Return the bounds of an interval's image under a monotone transform."""
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    try:
        sign = transform.sign
    except NotImplementedError:
        sign = None
    lower, upper, *closed = ends
    if not isinstance(sign, int):  # only the data show which bound comes first
        both = [torch.as_tensor(_moved_end(end, transform)) for end in ends[:2]]
        return torch.minimum(*both), torch.maximum(*both), True, True
    limits, goals = ends_of(core(domain)), ends_of(core(codomain))
    images: list[Any] = []
    for side, end in enumerate((lower, upper)):
        at_limit = limits is not None and _equal(end, limits[side])
        if at_limit and goals is not None:
            images.append(goals[side if sign > 0 else 1 - side])
        else:
            images.append(_moved_end(end, transform))
    order = slice(None) if sign > 0 else slice(None, None, -1)
    return (*images[order], *closed[order])


def _moved_end(end: Any, transform: Transform) -> Tensor:
    if torch.is_tensor(end):
        image: Tensor = transform(end)
        return image
    at = torch.tensor(float(end), dtype=torch.get_default_dtype())
    if math.isfinite(end):
        image = transform(at)
        return image
    with torch.no_grad():  # the derivative at infinity is NaN
        image = transform(at)
    return image


def _widened(support: Any, event_dim: int) -> Any:
    """Return a support with this many dimensions declared as one event."""
    base = core(support)
    missing = event_dim - base.event_dim
    return constraints.independent(base, missing) if missing > 0 else base


def _of_mixture(support: Any) -> Any:
    """Return the support of a mixture of components along the last batch axis."""
    held = [] if support is None else list(contents(support))
    if not any(torch.is_tensor(t) for t in held):
        return support
    ends = ends_of(core(support))
    if ends is not None:
        lower, upper = (_shared(end, -1 - support.event_dim) for end in ends[:2])
        if lower is not None and upper is not None:
            base = _interval(lower, upper, *ends[2:])
            return _widened(base, support.event_dim)
    return AnyOf(support)


def _shared(end: Any, axis: int) -> Any:
    """Return a bound without its component dimension; None if components differ."""
    if not torch.is_tensor(end) or end.dim() < -axis:
        return end
    first = end.select(axis, 0)
    return first if bool((end == first.unsqueeze(axis)).all()) else None
