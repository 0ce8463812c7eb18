"""Compiles graphs by torch's inductor, once for all fits that share them."""

from __future__ import annotations

import warnings
import weakref
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.engine.compile.small_matrices import drop_checks, written_out
from probsl.progress import phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from probsl.engine.compile.capture import Capture

# Graph and shapes -> compiled code, in this process.
_COMPILED: dict[Any, Any] = {}
# Maximum number of elements of a matrix that is copied to column-major order.
_COPIED_ELEMENTS = 20_000_000


def compiled(
    captured: Capture, arguments: Sequence[Tensor], constants: Sequence[Tensor]
) -> Any:
    """Compile a graph, or return it from the cache.

    The graph goes directly to the last stage of inductor: there is nothing for dynamo
    to analyze and nothing for autograd to record, and calls check no guards. Inductor
    keeps its own cache on disk across processes.

    Parameters
    ----------
    captured
        The graph.
    arguments
        The function's arguments, laid out like those of every later call.
    constants
        Its `laid_out` constants, laid out like those of every later call.

    Returns
    -------
    callable
        Takes one list of the arguments and constants, which it empties; returns the
        results.
    """
    key = _key(captured, arguments, constants)
    if key in _COMPILED:
        return _COMPILED[key]
    inputs = [*arguments, *constants]
    graphed = all(t.is_cuda for t in inputs)
    fixed = range(len(arguments), len(inputs)) if graphed else None
    _COMPILED[key] = code = _compile(captured.graph, inputs, fixed)
    if graphed:
        forget_with(constants, key)
    return code


def forget_with(constants: Sequence[Tensor], key: Any) -> None:
    """Drop compiled code as soon as one of its constants is freed.

    The address of a tensor identifies it only while it exists. And a CUDA graph holds
    memory, which the next fit would allocate again.
    """
    for constant in constants:
        weakref.finalize(constant, _COMPILED.pop, key, None).atexit = False


def is_compiled(
    captured: Capture, arguments: Sequence[Tensor], constants: Sequence[Tensor]
) -> bool:
    """Return whether `compiled` would find the code in this process."""
    return _key(captured, arguments, constants) in _COMPILED


def _key(
    captured: Capture, arguments: Sequence[Tensor], constants: Sequence[Tensor]
) -> tuple[Any, ...]:
    """Return the cache key of a graph: graphs with the same key share code."""
    inputs = [*arguments, *constants]
    shapes = tuple((tuple(t.shape), t.stride(), t.dtype, t.device) for t in inputs)
    key = (captured.key, shapes, torch.get_num_threads())
    if all(t.is_cuda for t in inputs):
        # A CUDA graph reads its constants at fixed addresses.
        return (*key, tuple(t.data_ptr() for t in constants))
    return key


def laid_out(constants: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return constants in the memory layout that compiled loops read fastest.

    A product of a tall matrix with a vector becomes a loop over its rows, which is
    vectorized if each column is contiguous. Scalars, which torch allows on the CPU, go
    to the device, because a CUDA graph cannot read them elsewhere.
    """
    constants = [c if c.dim() else c.to(device) for c in constants]
    return [
        c.t().contiguous().t()
        if c.dim() == 2
        and c.shape[0] > c.shape[1] > 1
        and c.is_floating_point()
        and c.numel() <= _COPIED_ELEMENTS
        else c.contiguous()
        for c in constants
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide inductor's warnings about itself from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _compile(
    graph: Callable[..., Any], inputs: Sequence[Tensor], fixed: Sequence[int] | None
) -> Any:
    """Compile a graph; to a CUDA graph if `fixed` lists inputs of fixed address."""
    with phase("compiling the steps"), _quiet():
        # None of these is a public name of torch. If one is missing, or has changed,
        # the caller continues without compiled code.
        from torch._guards import TracingContext, tracing
        from torch._inductor.compile_fx import compile_fx_inner
        from torch._inductor.decomposition import select_decomp_table
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.proxy_tensor import make_fx
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        mode = FakeTensorMode(shape_env=ShapeEnv())
        fakes = [mode.from_tensor(tensor, static_shapes=True) for tensor in inputs]
        with tracing(TracingContext(mode)), mode, torch.no_grad():
            table = select_decomp_table()
            if fixed is None:
                table = written_out(table)
            lowered = make_fx(graph, decomposition_table=table)(*fakes)
            drop_checks(lowered)
            lowered.graph.eliminate_dead_code()
            lowered.recompile()
            if fixed is None:
                return compile_fx_inner(lowered, fakes)
            from torch._inductor import config
            from torch._inductor.cudagraph_utils import BoxedDeviceIndex

            # Training code would wait for a backward pass before it runs again.
            with config.patch({"triton.cudagraphs": True}):
                code = compile_fx_inner(
                    lowered,
                    fakes,
                    static_input_idxs=tuple(fixed),
                    is_inference=True,
                    boxed_forward_device_index=BoxedDeviceIndex(None),
                )
        return partial(_launch, code)


def _launch(code: Any, inputs: list[Tensor]) -> list[Tensor]:
    """Run a CUDA graph, and copy its results, which its next run overwrites."""
    torch.compiler.cudagraph_mark_step_begin()
    return [result.clone() for result in code(inputs)]
