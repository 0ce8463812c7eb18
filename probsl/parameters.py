"""A callable's own parameters (`pyro.param`, `nn.Parameter`), made explicit."""

from __future__ import annotations

import functools
import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraint_registry import biject_to, transform_to

from probsl.conversion import resident
from probsl.isolation import hold
from probsl.relocation import Relocation
from probsl.signature import signature_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# `pyro.module` names its parameters "net$$$0.weight"; the module's own
# parameters are found by reachability, so these statements are not asked.
_MODULE_DIVIDER = "$$$"
_SELF = "callable_"


@dataclass(frozen=True)
class OwnParameter:
    """One parameter that a callable brings along, with no prior.

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
        Where torch finds it: the module's path behind the name.
    """

    name: str
    start: Tensor
    transform: Any
    statement: bool
    path: str

    def constrain(self, unconstrained: Tensor) -> Tensor:
        """Return the constrained value."""
        value: Tensor = self.transform(unconstrained)
        return value

    @property
    def shape(self) -> torch.Size:
        """Shape of the constrained value."""
        return torch.Size(self.transform.forward_shape(self.start.shape))


class Functional:
    """A Pyro callable as a function of its own parameters and its arguments.

    Every `nn.Module` that the callable is, holds, closes over or reads from
    its globals is found; calls run with other tensors in their place, so that
    the caller's modules are never trained, nor their buffers changed.

    Parameters
    ----------
    function
        A program or a guide: a function, a partial, a method or a module.

    Examples
    --------
    >>> import pyro, torch
    >>> from probsl.isolation import isolated
    >>> from probsl.parameters import Functional
    >>> def program(x):
    ...     return x * pyro.param("scale", torch.tensor(2.0))
    >>> functional = Functional(program)
    >>> with isolated(torch.float32):
    ...     functional.collect({"x": torch.ones(2)})
    ...     functional({"scale": torch.tensor(5.0)}, {"x": torch.ones(2)})
    tensor([5., 5.])
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.modules = dict(_reachable_modules(function))
        self.own: tuple[OwnParameter, ...] = ()
        self._copies: dict[str, tuple[Tensor, Any, Tensor]] = {}
        self._container = _Container(function, self.modules)
        self._relocation = Relocation()

    def floating_types(self) -> set[torch.dtype]:
        """Return the floating types of the modules' parameters."""
        return {
            p.dtype for p in self._container.parameters() if p.dtype.is_floating_point
        }

    def devices(self) -> list[torch.device]:
        """Return the devices of the modules' parameters."""
        return [p.device for p in self._container.parameters()]

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the name and the module of everything reached, nested ones too."""
        for path, module in self._container.named_modules():
            if path:
                yield path.removeprefix(f"{_SELF}."), module

    def optional_arguments(self) -> tuple[str, ...]:
        """Return the names of the arguments that have a default."""
        parameters = signature_of(self.function).parameters
        return tuple(n for n, p in parameters.items() if p.default is not p.empty)

    def collect(self, arguments: Mapping[str, Any]) -> None:
        """Run the callable once and note every parameter it has."""
        statements = _ParameterStatements()
        with statements:
            self._call({}, arguments)
        self.own = (*self._module_parameters(), *statements.found.values())

    def __call__(self, own: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Any:
        """Run the callable with `own` (name -> unconstrained) in place."""
        tensors = {p.path: own[p.name] for p in self.own if not p.statement}
        values = {p.name: p.constrain(own[p.name]) for p in self.own if p.statement}
        with _Substitution(values):
            return self._call(tensors, arguments)

    def _call(self, tensors: dict[str, Tensor], arguments: Mapping[str, Any]) -> Any:
        """Run the callable with `tensors` (path -> value) in its modules."""
        hold()
        # All other parameters and buffers come along cloned or cast, never in place.
        for path, tensor in self._container.named_buffers():
            tensors[path] = self._brought(path, tensor).clone()
        for path, tensor in self._container.named_parameters():
            if path not in tensors:
                tensors[path] = self._brought(path, tensor)
        with _module_contexts(self._container), self._relocation:
            return torch.func.functional_call(
                self._container, tensors, (), dict(arguments)
            )

    def _brought(self, path: str, tensor: Tensor) -> Tensor:
        """Return a tensor in the type and on the device of the fit.

        Where it has to be copied for that, it is once and not at every step, unless it
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
        """Put the modules into eval mode for a block, as predictions ask."""
        modes = [(module, module.training) for module in self._container.modules()]
        self._container.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Let a block call the function as it is, and put its buffers back."""
        kept = {n: b.clone() for n, b in self._container.named_buffers()}
        try:
            with _module_contexts(self._container):
                yield
        finally:
            for name, buffer in self._container.named_buffers():
                if name in kept and not torch.equal(buffer, kept[name]):
                    buffer.copy_(kept[name])

    def _module_parameters(self) -> Iterator[OwnParameter]:
        device, dtype = torch.get_default_device(), torch.get_default_dtype()
        constrained = _pyro_parameters(self._container)
        for path, tensor in self._container.named_parameters():
            if not tensor.requires_grad:
                continue
            name, constraint = constrained.get(path, (path, constraints.real))
            yield OwnParameter(
                name=name.removeprefix(f"{_SELF}."),
                start=resident(tensor.detach(), dtype, device).clone(),
                transform=transform_to(constraint),
                statement=False,
                path=path,
            )


class _Container(nn.Module):
    """Holds a callable and the modules it reaches, so that torch can swap tensors."""

    def __init__(
        self, function: Callable[..., Any], modules: Mapping[str, nn.Module]
    ) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        # A tuple keeps a module-valued callable from being registered twice.
        self._function = (function,)

    def forward(self, **arguments: Any) -> Any:
        return self._function[0](**arguments)


class _ParameterStatements(Messenger):
    """Notes the `pyro.param` statements of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, OwnParameter] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        name = msg["name"]
        # PyroModules announce their parameters by a statement of another function.
        if _MODULE_DIVIDER in name or msg["fn"] != pyro.get_param_store().get_param:
            return
        constraint = msg["kwargs"].get("constraint", constraints.real)
        try:
            transform = biject_to(constraint)
        except NotImplementedError:  # a Cholesky factor has no bijection
            transform = transform_to(constraint)
        # A start that was made outside the program may be on another device.
        msg["value"] = msg["value"].to(torch.get_default_device())
        value = msg["value"].detach().to(torch.get_default_dtype())
        self.found[name] = OwnParameter(
            name=name,
            start=transform.inv(value).detach().clone(),
            transform=transform,
            statement=True,
            path=name,
        )


class _Substitution(Messenger):
    """Answers `pyro.param` statements with given values."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._values = values

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self._values:
            msg["value"] = self._values[msg["name"]]
            msg["done"] = True
        elif _MODULE_DIVIDER in msg["name"] and len(msg["args"]) > 1:
            msg["value"] = msg["args"][1]
            msg["done"] = True


@contextmanager
def _module_contexts(container: nn.Module) -> Iterator[None]:
    """Let PyroModules made outside local mode run inside it, and put them back."""
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


def _reachable_modules(function: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, module) for each distinct `nn.Module` that `function` uses."""
    seen: set[int] = set()
    names: set[str] = set()
    pending: list[tuple[str, Any, bool]] = [(_SELF, function, True)]
    while pending:
        name, value, follow = pending.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            unique = name
            while unique in names:
                unique += "_"
            names.add(unique)
            yield unique, value
        elif follow:
            pending.extend(_held_by(value))


def _held_by(value: Any) -> Iterator[tuple[str, Any, bool]]:
    """Yield (name, value, whether to look inside) for what a callable holds."""
    if isinstance(value, functools.partial):
        yield "function", value.func, True
        for index, argument in enumerate(value.args):
            yield f"argument{index}", argument, callable(argument)
        for name, argument in value.keywords.items():
            yield name, argument, callable(argument)
    elif isinstance(value, MethodType):
        yield _SELF, value.__self__, True
        yield "function", value.__func__, True
    elif isinstance(value, FunctionType):
        variables = inspect.getclosurevars(value)
        for name, held in {**variables.nonlocals, **variables.globals}.items():
            # Library functions hold no parameters of the program's.
            own = getattr(held, "__module__", None) == value.__module__
            yield name, held, name in variables.nonlocals or own
        wrapped = getattr(value, "__wrapped__", None)
        if wrapped is not None:
            yield "wrapped", wrapped, True
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        for name, held in vars(value).items():
            yield name, held, isinstance(held, FunctionType | functools.partial)
