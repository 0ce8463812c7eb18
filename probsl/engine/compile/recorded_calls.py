"""The kernel calls of a compiled function, recorded so that they can be repeated."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from probsl.engine.compile.obstacles import ReplayError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

_COMMENT = re.compile(r"#.*")
# Methods of buffers that read numbers into Python, or write without being recorded.
_UNHEARD = re.compile(r"\b(buf|arg)\d\w*\.(?!size\b|stride\b)\w+\(")
_LOOPS = "cpp_fused"


@dataclass(frozen=True)
class Call:
    """A call that writes its results to given tensors.

    Attributes
    ----------
    function
        The function to call.
    arguments, options
        Its arguments.
    library
        Whether it is a library function rather than a compiled loop.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    library: bool = True

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors among its arguments, also those in lists."""
        for value in (*self.arguments, *self.options.values()):
            inner = value if isinstance(value, list | tuple) else (value,)
            yield from (one for one in inner if torch.is_tensor(one))


def listen(
    function: Any, arguments: list[Tensor]
) -> tuple[list[Call], tuple[Tensor, Tensor]]:
    """Run a compiled function once, and return the calls it makes and its results.

    Raises
    ------
    ReplayError
        If it does something that a list of calls cannot represent.
    """
    call = getattr(function, "current_callable", None)
    module: dict[str, Any] = getattr(getattr(call, "__func__", call), "__globals__", {})
    loops = [name for name in module if name.startswith(_LOOPS)]
    try:
        source = _COMMENT.sub("", inspect.getsource(call)) if call else ""
    except (OSError, TypeError) as error:
        raise ReplayError("the compiled function shows no source") from error
    if not loops or _UNHEARD.search(source):
        raise ReplayError("it does more than call loops and operations")
    calls: list[Call] = []
    operations = _Operations(calls)
    listeners: dict[str, Any] = {n: _loop(module[n], calls) for n in loops}
    listeners["extern_kernels"] = _Kernels(module["extern_kernels"], calls)
    listeners["aten"] = operations
    listeners["torch"] = _Torch(operations)
    listeners |= dict.fromkeys(("inductor_ops", "_quantized"), _Unknown())
    kept = {name: module[name] for name in listeners}
    module.update(listeners)
    try:
        results = function(arguments)
    finally:
        module.update(kept)
    return calls, tuple(results)


def _loop(loop: Callable[..., Any], calls: list[Call]) -> Callable[..., Any]:
    def listening(*given: Any) -> Any:
        calls.append(Call(loop, given, library=False))
        return loop(*given)

    return listening


class _Kernels:
    """Replaces inductor's library kernels, which write to a given ``out``."""

    def __init__(self, kernels: Any, calls: list[Call]) -> None:
        self._kernels = kernels
        self._calls = calls

    def __getattr__(self, name: str) -> Callable[..., Any]:
        kernel = getattr(self._kernels, name)

        def listening(*given: Any, **options: Any) -> Any:
            if "out" not in options:
                raise ReplayError(
                    f"it calls {name}, which makes a new tensor each time"
                )
            self._calls.append(Call(kernel, given, options))
            return kernel(*given, **options)

        return listening


class _Torch:
    """Replaces the torch module in which a compiled function looks up operations."""

    def __init__(self, operations: _Operations) -> None:
        self.ops = _Unknown(aten=operations)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class _Unknown:
    """Replaces a namespace of unknown operations, except for some known ones."""

    def __init__(self, **known: Any) -> None:
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> Any:
        raise ReplayError(f"it calls {name}, which may do anything")


class _Operations:
    """Replaces torch's operations, which return new tensors.

    A repeated call writes to the tensors of the first call.
    """

    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return _Overloads(getattr(torch.ops.aten, name), self._calls)


class _Overloads:
    """Replaces the overloads of one operation."""

    def __init__(self, forms: Any, calls: list[Call]) -> None:
        self._forms = forms
        self._calls = calls

    def __call__(self, *given: Any, **options: Any) -> Any:
        if "default" not in self._forms.overloads():
            raise ReplayError("the form of an operation is not known")
        return self.default(*given, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        form = getattr(self._forms, name)

        def listening(*given: Any, **options: Any) -> Any:
            result = form(*given, **options)
            repeated = _repeated(form, given, options, result)
            self._calls.extend(repeated)
            return result

        return listening


def _repeated(
    form: Any, given: tuple[Any, ...], options: dict[str, Any], result: Any
) -> list[Call]:
    """Return calls that repeat the effect of one that returned a result."""
    schema = form._schema
    # Unknown beforehand: random numbers, and the number of selected elements.
    if {torch.Tag.nondeterministic_seeded, torch.Tag.dynamic_output_shape} & {
        *form.tags
    }:
        raise ReplayError(
            f"it calls {form}, whose result has numbers or a size of its own each time"
        )
    if schema.is_mutable or not schema.returns:
        return [Call(form, given, options)]
    call = Call(form, given, options)
    made = result if isinstance(result, tuple) else (result,)
    if not all(map(torch.is_tensor, made)):
        raise ReplayError(f"it calls {form}, which makes other things than tensors")
    held = {tensor.untyped_storage().data_ptr() for tensor in call.tensors()}
    if all(tensor.untyped_storage().data_ptr() in held for tensor in made):
        return []  # views of memory at a fixed address
    writing, names = _writing(form)
    return [Call(writing, given, options | dict(zip(names, made, strict=True)))]


def _writing(form: Any) -> tuple[Any, list[str]]:
    """Return the out overload of an operation, and the names of its out arguments."""

    def kinds(schema: Any) -> list[tuple[str, str]]:
        return [(a.name, str(a.type)) for a in schema.arguments if not a.is_out]

    for name in form.overloadpacket.overloads():
        other = getattr(form.overloadpacket, name)
        written = [a.name for a in other._schema.arguments if a.is_out]
        alike = kinds(other._schema) == kinds(form._schema)
        if alike and len(written) == len(form._schema.returns):
            return other, written
    raise ReplayError(f"it calls {form}, which cannot write to given tensors")
