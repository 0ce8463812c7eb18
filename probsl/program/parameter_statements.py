"""Records and answers parameter statements: `pyro.param` and `pyro.module`."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraint_registry import biject_to, transform_to
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# `pyro.module` names its parameters "net$$$0.weight".
_MODULE_DIVIDER = "$$$"
# Torch functions that fill tensors with random numbers.
_FILLING = {
    "bernoulli_",
    "cauchy_",
    "exponential_",
    "log_normal_",
    "normal_",
    "uniform_",
}


class Statement:
    """A parameter that a run has declared.

    Attributes
    ----------
    start
        Unconstrained value to start from.
    transform
        From the unconstrained to the constrained value.
    given
        The very tensor passed to the statement, if any.
    """

    def __init__(self, message: Any) -> None:
        constraint = message["kwargs"].get("constraint", constraints.real)
        try:
            self.transform: Any = biject_to(constraint)
        except NotImplementedError:  # a Cholesky factor has no bijection
            self.transform = transform_to(constraint)
        value = message["value"].detach().to(torch.get_default_dtype())
        self.start = self.transform.inv(value).detach().clone()
        self.given = message["args"][1] if len(message["args"]) > 1 else None


class Noted(Messenger):
    """Records the statements of a run.

    Parameters
    ----------
    known
        Name -> value of the parameters that another callable has declared, for
        statements without a value of their own.

    Attributes
    ----------
    found
        Name -> statement of `pyro.param`, or of a parameter that `pyro.module` states.
    """

    def __init__(self, known: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._known = known
        self.found: dict[str, Statement] = {}

    def _pyro_param(self, msg: Any) -> None:
        if _is_statement(msg) and len(msg["args"]) < 2 and msg["name"] in self._known:
            msg["value"] = self._known[msg["name"]]
            msg["done"] = True

    def _pyro_post_param(self, msg: Any) -> None:
        # PyroModules announce their parameters by statements of another function.
        if not _is_statement(msg):
            return
        # A start value made outside the program may be on another device.
        msg["value"] = msg["value"].to(torch.get_default_device())
        self.found[msg["name"]] = Statement(msg)


def of_module(name: str) -> bool:
    """Return whether a statement comes from `pyro.module`."""
    return _MODULE_DIVIDER in name


def plain_name(name: str) -> str:
    """Return the name of a statement as the path of a parameter."""
    return name.replace(_MODULE_DIVIDER, ".")


def _is_statement(msg: Any) -> bool:
    return bool(msg["fn"] == pyro.get_param_store().get_param)


class Answered(Messenger):
    """Answers the statements of a run with given values.

    Parameters
    ----------
    values
        Name -> constrained value. A module's parameter that only `pyro.module`
        has shown is put into the module during the run.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._values = values
        self._replaced: list[tuple[dict[str, Any], str, Any]] = []

    def __exit__(self, *exception: Any) -> Any:
        for parameters, name, original in reversed(self._replaced):
            parameters[name] = original
        self._replaced.clear()
        return super().__exit__(*exception)

    def _pyro_param(self, msg: Any) -> None:
        name = msg["name"]
        if name in self._values:
            msg["value"] = self._values[name]
            msg["done"] = True
            if of_module(name):
                self._put(name.split(_MODULE_DIVIDER, 1)[1], msg["value"])
        elif of_module(name) and len(msg["args"]) > 1:
            msg["value"] = msg["args"][1]
            msg["done"] = True

    def _put(self, path: str, value: Tensor) -> None:
        module = _stated_module()
        if module is None:
            return
        *parents, leaf = path.split(".")
        parameters = module.get_submodule(".".join(parents))._parameters
        self._replaced.append((parameters, leaf, parameters[leaf]))
        parameters[leaf] = value  # type: ignore[assignment]


def _stated_module() -> nn.Module | None:
    """Return the module of the current `pyro.module` statement.

    Its messages carry only the parameters, one by one.
    """
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code is pyro.module.__code__:
            module: nn.Module = frame.f_locals["nn_module"]
            return module
    return None


class Swapped(TorchFunctionMode):
    """Substitutes other tensors for some parameters in torch functions.

    Parameters
    ----------
    tensors
        Identity of a parameter -> its substitute.
    """

    def __init__(self, tensors: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._tensors = tensors

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call a torch function with the substitutes."""
        given = {n: self._swapped(v) for n, v in (kwargs or {}).items()}
        return func(*map(self._swapped, args), **given)

    def _swapped(self, value: Any) -> Any:
        if isinstance(value, list | tuple) and type(value) in (list, tuple):
            return type(value)(map(self._swapped, value))
        return self._tensors.get(id(value), value)


class Initialized(TorchFunctionMode):
    """Records which parameters a run fills with random numbers.

    Parameters
    ----------
    skip
        Whether to fill them with zeros instead. That is for modules that a run makes
        and declares, whose parameters are all answered with other values: their
        random numbers would only look like noise of the objective.
    """

    def __init__(self, *, skip: bool) -> None:
        super().__init__()
        self._skip = skip
        self.found: list[nn.Parameter] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call a torch function, or skip an initialization."""
        kwargs = kwargs or {}
        fills = getattr(func, "__module__", "") == nn.init.__name__
        if fills or getattr(func, "__name__", "") in _FILLING:
            filled = next(iter((*args, *kwargs.values())), None)
            if isinstance(filled, nn.Parameter):
                self.found.append(filled)
                if self._skip:
                    with torch.no_grad():
                        return filled.zero_()
        return func(*args, **kwargs)


@contextmanager
def unwarned() -> Iterator[None]:
    """Silence the warnings of `pyro.module` about tensors in place of parameters."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not registered in the param store")
        yield
