"""Makes a callable's own parameters (`pyro.param`, `nn.Parameter`) explicit."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraint_registry import transform_to
from torch.distributions.transforms import identity_transform

from probsl.data.conversion import resident
from probsl.data.signature import signature_of
from probsl.isolation.calls import hold
from probsl.program.parameter_statements import (
    Answered,
    Initialized,
    Noted,
    Statement,
    Swapped,
    of_module,
    plain_name,
    unwarned,
)
from probsl.program.reachable import SELF, reachable
from probsl.program.relocation import Relocation

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping


@dataclass(frozen=True, eq=False)
class OwnParameter:
    """One parameter of a callable, without a prior.

    Attributes
    ----------
    name
        `pyro.param`'s name, or the module's path such as ``"net.0.weight"``.
    start
        Unconstrained value to start from.
    transform
        From the unconstrained to the constrained value.
    statement
        Whether it is a `pyro.param` statement (else a module's parameter).
    path
        Its path for torch: the module's path behind the name, or the statement's.
    keys
        Names of its statements, and identities of its tensors: a parameter of another
        callable with one of them is the same one.
    """

    name: str
    start: Tensor
    transform: Any
    statement: bool
    path: str
    keys: frozenset[Any] = frozenset()

    def constrain(self, unconstrained: Tensor) -> Tensor:
        """Return the constrained value."""
        value: Tensor = self.transform(unconstrained)
        return value

    @property
    def shape(self) -> torch.Size:
        """Shape of the constrained value."""
        return torch.Size(self.transform.forward_shape(self.start.shape))


@dataclass(frozen=True, eq=False)
class Recorded:
    """What a run of a callable has shown of its parameters.

    Attributes
    ----------
    own_parameters
        Its own parameters.
    left_out
        Statement that is fixed -> its value.
    states_modules
        Whether it has `pyro.module` statements.
    skips_initialization
        Whether it makes modules whose initialization can be skipped.
    """

    own_parameters: tuple[OwnParameter, ...]
    left_out: dict[str, Tensor]
    states_modules: bool
    skips_initialization: bool


class StatelessCallable:
    """A Pyro callable as a function of its own parameters and its arguments.

    Every `nn.Module` that the callable is, holds, closes over or reads from
    its globals is found; calls substitute other tensors for theirs, so that
    the caller's modules are never trained, nor their buffers changed.

    Parameters
    ----------
    function
        A program or a guide: a function, a partial, a method or a module.

    Examples
    --------
    >>> import pyro, torch
    >>> from probsl.isolation.calls import isolated
    >>> from probsl.program.stateless_callable import StatelessCallable
    >>> def program(x):
    ...     return x * pyro.param("scale", torch.tensor(2.0))
    >>> functional = StatelessCallable(program)
    >>> with isolated(torch.float32):
    ...     functional.collect({"x": torch.ones(2)})
    ...     functional({"scale": torch.tensor(5.0)}, {"x": torch.ones(2)})
    tensor([5., 5.])
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.own_parameters: tuple[OwnParameter, ...] = ()
        self._copies: dict[str, tuple[Tensor, Any, Tensor]] = {}
        self._container = _Container(function)
        self._relocation = Relocation()
        # Statements of `pyro.param` that are no longer among the own parameters.
        self._left_out: dict[str, Tensor] = {}
        self._states_modules = False
        self._skips_initialization = False

    def floating_types(self) -> set[torch.dtype]:
        """Return the floating types of the modules' parameters."""
        return {
            p.dtype for p in self._container.parameters() if p.dtype.is_floating_point
        }

    def devices(self) -> list[torch.device]:
        """Return the devices of the modules' parameters."""
        return [p.device for p in self._container.parameters()]

    def held(self) -> Iterator[nn.Module | nn.Parameter]:
        """Yield every reachable module and parameter."""
        yield from (m for m in self._container.modules() if m is not self._container)
        yield from self._container.parameters()

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the name and the module of everything reachable, nested ones too."""
        for path, module in self._container.named_modules():
            if path:
                yield path.removeprefix(f"{SELF}."), module

    def recorded(self) -> Recorded:
        """Return what `collect` has found, to be restored in another process."""
        return Recorded(
            self.own_parameters,
            dict(self._left_out),
            self._states_modules,
            self._skips_initialization,
        )

    def restore(self, recorded: Recorded) -> None:
        """Restore what another process has collected, without a run.

        Raises
        ------
        ValueError
            If a parameter of a module is absent, or of another shape.
        """
        tensors = dict(self._container.named_parameters())
        for p in recorded.own_parameters:
            if not p.statement:
                _refuse_other_parameter(p, tensors.get(p.path))
        self.own_parameters = tuple(
            replace(p, keys=frozenset({p.path if p.statement else id(tensors[p.path])}))
            for p in recorded.own_parameters
        )
        self._left_out = dict(recorded.left_out)
        self._states_modules = recorded.states_modules
        self._skips_initialization = recorded.skips_initialization

    def optional_arguments(self) -> tuple[str, ...]:
        """Return the names of the arguments that have a default."""
        parameters = signature_of(self.function).parameters
        return tuple(n for n, p in parameters.items() if p.default is not p.empty)

    def collect(
        self, arguments: Mapping[str, Any], known: Mapping[str, Tensor] | None = None
    ) -> None:
        """Run the callable once and record all its parameters.

        Parameters
        ----------
        arguments
            The arguments of the call.
        known
            Name -> value of parameters that another callable has declared: a statement
            may omit its value if Pyro's store would know it.
        """
        noted, tensors = Noted(known or {}), {}
        for path, parameter in self._container.named_parameters():
            tensors[path] = self._brought(path, parameter)
            if parameter.requires_grad:  # pyro.module declares only those
                tensors[path] = tensors[path].detach().requires_grad_()
        paths = {id(tensor): path for path, tensor in tensors.items()}
        filling = Initialized(skip=False)
        self._skips_initialization = False
        with noted, filling:
            self._call(tensors, arguments)
        stated = {id(s.given) for n, s in noted.found.items() if of_module(n)}
        filled = {id(parameter) for parameter in filling.found}
        self._skips_initialization = bool(filled) and filled <= stated
        names: dict[str, set[Any]] = {}
        statements: list[OwnParameter] = []
        for name, statement in noted.found.items():
            self._states_modules = self._states_modules or of_module(name)
            held = paths.get(id(statement.given)) if of_module(name) else None
            if held is not None:
                names.setdefault(held, set()).add(name)
                continue
            statements.append(
                OwnParameter(
                    name=plain_name(name),
                    start=statement.start,
                    transform=statement.transform,
                    statement=True,
                    path=name,
                    keys=frozenset({name, *self._identity(statement)}),
                )
            )
        self.own_parameters = (*self._module_parameters(names), *statements)
        self._left_out = {}

    def _identity(self, statement: Statement) -> Iterator[int]:
        """Yield the identity of the bare parameter passed to a statement."""
        given = statement.given
        free = statement.transform == identity_transform
        if free and any(given is bare for bare in self._container.bare):
            yield id(given)

    def found_more(self) -> bool:
        """Search for modules again, as a program may make some in its first run."""
        again = _Container(self.function)
        same = [*map(id, again.modules())][1:] == [*map(id, self._container.modules())][
            1:
        ] and len(again.bare) == len(self._container.bare)
        self._container = again
        return not same

    def keep(self, names: Collection[str]) -> None:
        """Keep some of the own parameters, and fix all others at their values."""
        self._left_out |= {
            p.path: p.constrain(p.start)
            for p in self.own_parameters
            if p.statement and p.name not in names
        }
        self.own_parameters = tuple(p for p in self.own_parameters if p.name in names)

    def adopt(self, transforms: Mapping[str, Any]) -> None:
        """Adopt the transforms of some own parameters from another callable."""
        self.own_parameters = tuple(
            replace(p, transform=transforms.get(p.name, p.transform))
            for p in self.own_parameters
        )

    def __call__(self, own: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Any:
        """Run the callable with `own` (name -> unconstrained) in place."""
        given = [(p, own.get(p.name, p.start)) for p in self.own_parameters]
        tensors = {p.path: value for p, value in given if not p.statement}
        values = {p.path: p.constrain(value) for p, value in given if p.statement}
        with Answered({**self._left_out, **values}):
            return self._call(tensors, arguments)

    def _call(self, tensors: dict[str, Tensor], arguments: Mapping[str, Any]) -> Any:
        """Run the callable with `tensors` (path -> value) in its modules."""
        hold()
        # All other parameters and buffers are passed cloned or cast, never in place.
        for path, tensor in self._container.named_buffers():
            tensors[path] = self._brought(path, tensor).clone()
        for path, tensor in self._container.named_parameters():
            if path not in tensors:
                tensors[path] = self._brought(path, tensor)
        with ExitStack() as stack:
            stack.enter_context(_module_contexts(self._container))
            stack.enter_context(self._relocation)
            if self._container.bare:
                stack.enter_context(Swapped(self._container.in_place_of(tensors)))
            if self._skips_initialization:
                stack.enter_context(Initialized(skip=True))
            if self._states_modules:
                stack.enter_context(unwarned())
            return torch.func.functional_call(
                self._container, tensors, (), dict(arguments)
            )

    def _brought(self, path: str, tensor: Tensor) -> Tensor:
        """Return a tensor in the floating type and on the device of the fit.

        If it must be copied, it is copied once and not at every step, unless it
        has changed.
        """
        dtype, device = torch.get_default_dtype(), torch.get_default_device()
        same_type = tensor.dtype == dtype or not tensor.is_floating_point()
        if tensor.is_inference() or (tensor.device == device and same_type):
            return resident(tensor.detach(), dtype, device)
        kept = self._copies.get(path)
        state = (tensor._version, dtype, device)
        if kept is None or kept[0] is not tensor or kept[1] != state:
            kept = tensor, state, resident(tensor.detach(), dtype, device)
            self._copies[path] = kept
        return kept[2]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the modules into eval mode within a block, as predictions require."""
        modes = [(module, module.training) for module in self._container.modules()]
        self._container.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Call the original function within a block, and restore its buffers."""
        kept = {n: b.clone() for n, b in self._container.named_buffers()}
        try:
            with _module_contexts(self._container):
                yield
        finally:
            for name, buffer in self._container.named_buffers():
                if name in kept and not torch.equal(buffer, kept[name]):
                    buffer.copy_(kept[name])

    def _module_parameters(
        self, statements: Mapping[str, Collection[Any]]
    ) -> Iterator[OwnParameter]:
        device, dtype = torch.get_default_device(), torch.get_default_dtype()
        constrained = _pyro_parameters(self._container)
        for path, tensor in self._container.named_parameters():
            if not tensor.requires_grad:
                continue
            name, constraint = constrained.get(path, (path, constraints.real))
            yield OwnParameter(
                name=name.removeprefix(f"{SELF}."),
                start=resident(tensor.detach(), dtype, device).clone(),
                transform=transform_to(constraint),
                statement=False,
                path=path,
                keys=frozenset({id(tensor), *statements.get(path, ())}),
            )


class _Container(nn.Module):
    """Holds a callable and the objects it uses, so that torch can swap tensors.

    Attributes
    ----------
    bare
        The parameters that do not belong to a module.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.bare: list[nn.Parameter] = []
        for name, value in reachable(function):
            if isinstance(value, nn.Module):
                self.add_module(name, value)
        inside = {id(p) for p in self.parameters()}
        for name, value in reachable(function):
            if isinstance(value, nn.Parameter):
                self.bare.append(value)
                if id(value) not in inside:
                    self.register_parameter(name, value)
        # A tuple keeps a module-valued callable from being registered twice.
        self._function = (function,)

    def forward(self, **arguments: Any) -> Any:
        return self._function[0](**arguments)

    def in_place_of(self, tensors: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """Return the identity of each bare parameter with its substitute."""
        paths = {id(p): path for path, p in self.named_parameters()}
        return {id(p): tensors[paths[id(p)]] for p in self.bare}


def _refuse_other_parameter(known: OwnParameter, tensor: Tensor | None) -> None:
    """Refuse a module without a known parameter, or with one of another shape."""
    before, remedy = list(known.start.shape), "load with the program that was fitted"
    if tensor is None:
        raise ValueError(
            f"parameter '{known.name}' was in the program when it was fitted and is "
            f"not now; {remedy}"
        )
    if tensor.shape != known.start.shape:
        raise ValueError(
            f"parameter '{known.name}' had shape {before} when it was fitted and has "
            f"{list(tensor.shape)} now; {remedy}"
        )


@contextmanager
def _module_contexts(container: nn.Module) -> Iterator[None]:
    """Allow PyroModules made outside local mode inside it, and restore them."""
    mended = []
    for module in container.modules():
        if isinstance(module, PyroModule):
            context = module._pyro_context
            if not hasattr(context, "param_state"):
                context.param_state = {"params": {}, "constraints": {}}
                mended.append(context)
    try:
        yield
    finally:
        for context in mended:
            del context.param_state


def _pyro_parameters(container: nn.Module) -> dict[str, tuple[str, Any]]:
    """Map raw paths (``"scale_unconstrained"``) to name and constraint."""
    result = {}
    for prefix, module in container.named_modules():
        for name, (constraint, _) in getattr(module, "_pyro_params", {}).items():
            path = f"{prefix}.{name}" if prefix else name
            result[f"{path}_unconstrained"] = (path, constraint)
    return result
