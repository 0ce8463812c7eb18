"""Traces a function of tensors into a graph, cleaned and checked against eager mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx.node import map_arg

from probsl.engine.compile.agreement import agree, value_at
from probsl.engine.compile.obstacles import CaptureError
from probsl.engine.compile.reading import Reading, reason_without_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch.fx import GraphModule, Node

# Maximum number of elements of a folded constant.
_FOLDED_ELEMENTS = 10_000_000
_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default)


@dataclass(frozen=True, eq=False)
class Capture:
    """A function of tensors as a graph of torch operations.

    Attributes
    ----------
    graph
        Takes the function's arguments, then `constants`; returns a tuple.
    constants
        The tensors that the function used besides its arguments. They are inputs of
        the graph, so that other data of the same shapes can replace them.
    """

    graph: GraphModule
    constants: tuple[Tensor, ...]

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Run the graph eagerly, operation by operation."""
        result: tuple[Tensor, ...] = self.graph(*arguments, *self.constants)
        return result

    @property
    def key(self) -> tuple[str, tuple[Any, ...]]:
        """A key of the graph that ignores the values of constants."""
        shapes = tuple((tuple(c.shape), c.dtype, c.device) for c in self.constants)
        return self.graph.code, shapes


def capture(
    function: Callable[..., tuple[Tensor, ...]],
    examples: Sequence[Sequence[Tensor]],
    *,
    compared: Callable[[tuple[Tensor, ...]], Sequence[Tensor]] = tuple,
) -> Capture:
    """Run a function once and record its operations as a graph.

    Parameters
    ----------
    function
        Maps tensors to a tuple of tensors, without side effects.
    examples
        Several lists of arguments of the same shapes. The first is traced; the graph
        must agree with the function at all of them. Otherwise the trace took a path
        through Python that depends on the values.
    compared
        Selects the results to compare; by default all of them.

    Raises
    ------
    CaptureError
        If the function cannot be traced, or the graph does not agree.

    Examples
    --------
    >>> import torch
    >>> from probsl.engine.compile.capture import capture
    >>> scale = torch.tensor([3.0])
    >>> points = [[torch.tensor([v])] for v in (1.0, 2.0)]
    >>> captured = capture(lambda x: (x * scale.log(),), points)
    >>> [node.target.__name__ for node in captured.graph.graph.nodes
    ...  if node.op == "call_function"]
    ['mul.Tensor']
    >>> len(captured.constants)
    1
    """
    graph, read = _recorded(function, examples[0])
    _fold(graph)
    _number_masks(graph)
    captured = Capture(graph, _lift(graph))
    for arguments in examples:
        expected = compared(function(*arguments))
        found = value_at(captured, arguments)
        if found is None and not all(bool(e.isfinite().all()) for e in expected):
            continue
        if found is None or not agree(compared(found), expected):
            raise CaptureError(
                read
                or "the operations of the program change with the values of its "
                "latents, or it draws random numbers of its own"
            )
    return captured


def _recorded(
    function: Callable[..., tuple[Tensor, ...]], arguments: Sequence[Tensor]
) -> tuple[GraphModule, str]:
    """Return the graph of one run, and the first value read silently, in words."""
    # Not public names of torch: if one is missing, the steps stay eager.
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    reading = Reading()
    # Without it torch makes a mode for every tensor, in half of the time of a trace.
    context = TracingContext(FakeTensorMode())

    def read(*given: Tensor) -> tuple[Tensor, ...]:
        with reading:
            return function(*given)

    try:
        with tracing(context):
            traced = make_fx(read)(*arguments)
    except Exception as error:
        reason = reason_without_graph(error)
        if not reason:  # torch failed, not the program
            raise
        raise CaptureError(reason) from error
    # Compilers, and the folding below, assume that nothing is written in place.
    functional = torch.func.functionalize(traced, remove="mutations")
    with tracing(context):
        return make_fx(functional)(*arguments), reading.silent


def _fold(graph: GraphModule) -> None:
    """Fold constants, and remove dead code.

    Views are left to the compiler, because a copy would hold the same data twice.
    """
    graph.graph.eliminate_dead_code()
    constants: dict[Node, Tensor] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            value = getattr(graph, str(node.target))
            if torch.is_tensor(value):
                constants[node] = value
            continue
        computed = _value_of(node, constants)
        if computed is None:
            continue
        constants[node] = computed
        name = f"_folded_{len(constants)}"
        graph.register_buffer(name, computed)
        with graph.graph.inserting_before(node):
            replacement = graph.graph.get_attr(name)
        constants[replacement] = computed
        node.replace_all_uses_with(replacement)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _value_of(node: Node, constants: dict[Node, Any]) -> Tensor | None:
    """Return the result of a node that depends only on constants, if worth keeping."""
    result = _computed(node, constants)
    if not torch.is_tensor(result) or result.numel() > _FOLDED_ELEMENTS:
        return None
    held = [constants[parent] for parent in node.all_input_nodes]
    if not any(_same_storage(result, value) for value in held):
        return result
    return result.clone() if result.numel() == 1 else None


def _computed(node: Node, constants: dict[Node, Any]) -> Any:
    """Return the result of a node, or None if it depends on more than constants."""
    tags = getattr(node.target, "tags", ())
    if (
        node.op != "call_function"
        or torch.Tag.nondeterministic_seeded in tags
        or any(parent not in constants for parent in node.all_input_nodes)
    ):
        return None

    def real(argument: Any) -> Any:
        return constants.get(argument, argument)

    values, options = map_arg(node.args, real), map_arg(node.kwargs, real)
    return node.target(*values, **options)  # type: ignore[operator]


def _number_masks(graph: GraphModule) -> None:
    """Replace each constant mask by the indices at which it is true.

    The number of elements that a mask selects depends on its values, so no loop can be
    compiled for it.
    """
    for node in list(graph.graph.nodes):
        if node.target not in _INDEXED:
            continue
        indices: list[Any] = []
        for index in node.args[1]:
            mask = None if index is None else _constant(index, graph)
            if mask is None or mask.dtype is not torch.bool:
                indices.append(index)
                continue
            for axis, places in enumerate(mask.nonzero(as_tuple=True)):
                name = f"_{node.name}_{len(indices)}_{axis}"
                graph.register_buffer(name, places)
                with graph.graph.inserting_before(node):
                    indices.append(graph.graph.get_attr(name))
        node.args = (node.args[0], indices, *node.args[2:])
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _constant(node: Node, graph: GraphModule) -> Any:
    """Return the value of a node that depends on no input of the graph, else None."""
    needed, waiting = {node}, [node]
    while waiting:
        new = set(waiting.pop().all_input_nodes) - needed
        needed |= new
        waiting += new
    if any(one.op == "placeholder" for one in needed):
        return None
    known: dict[Node, Any] = {}
    for one in graph.graph.nodes:
        if one in needed and one.op == "get_attr":
            known[one] = getattr(graph, str(one.target))
        elif one in needed:
            known[one] = _computed(one, known)
    return known[node]


def _same_storage(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _lift(graph: GraphModule) -> tuple[Tensor, ...]:
    """Turn the constants of a graph into inputs, and return them.

    Numbers go together in one vector per dtype: a call takes time for each tensor.
    """
    reads: dict[int, list[Node]] = {}
    values: dict[int, Tensor] = {}
    for node in graph.graph.nodes:
        value = getattr(graph, str(node.target)) if node.op == "get_attr" else None
        if torch.is_tensor(value):
            values[id(value)] = value.detach()
            reads.setdefault(id(value), []).append(node)
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    constants: list[Tensor] = []

    def add(constant: Tensor) -> Node:
        with graph.graph.inserting_after(inputs[-1]):
            inputs.append(graph.graph.placeholder(f"constant_{len(constants)}"))
        constants.append(constant)
        node: Node = inputs[-1]
        return node

    together = _numbers_together(values)
    alone = values.keys() - {key for keys in together for key in keys}
    lifted = {key: add(value) for key, value in values.items() if key in alone}
    vectors = [add(torch.stack([values[key] for key in keys])) for keys in together]
    with graph.graph.inserting_after(inputs[-1]):
        for vector, keys in zip(vectors, together, strict=True):
            for place, key in enumerate(keys):
                lifted[key] = graph.graph.call_function(_SELECT, (vector, 0, place))
    for key, nodes in reads.items():
        for node in nodes:
            node.replace_all_uses_with(lifted[key])
            graph.graph.erase_node(node)
    graph.recompile()
    return tuple(constants)


_SELECT = torch.ops.aten.select.int


def _numbers_together(values: Mapping[int, Tensor]) -> list[list[int]]:
    """Return which constants to put in one vector: the numbers of each dtype.

    Not if some are on another device, where torch accepts single numbers alone.
    """
    if len({value.device for value in values.values()}) > 1:
        return []
    numbers: dict[torch.dtype, list[int]] = {}
    for key, value in values.items():
        if not value.dim():
            numbers.setdefault(value.dtype, []).append(key)
    return [keys for keys in numbers.values() if len(keys) > 1]
