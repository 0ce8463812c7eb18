"""Graphs compiled by torch's inductor, once for all fits that share them."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from probsl.engine.capture import Capture

# Graph and shapes -> what was compiled of them, in this process.
_COMPILED: dict[Any, Any] = {}
# A matrix copied column by column may take this many elements.
_COPIED_ELEMENTS = 20_000_000


def compiled(captured: Capture, arguments: Sequence[Tensor]) -> Any:
    """Compile a graph, or find it compiled.

    The graph goes straight to inductor's last stage: there is nothing for dynamo to
    analyze in it and nothing for autograd to record, and no guards are checked when
    it is called. Inductor keeps its own cache on disk across processes.

    Parameters
    ----------
    captured
        The graph.
    arguments
        The function's arguments, as those of every later call.

    Returns
    -------
    callable
        Takes one list, the arguments and `laid_out` constants, which it empties;
        returns the results.
    """
    inputs = [*arguments, *laid_out(captured.constants)]
    shapes = tuple((tuple(t.shape), t.stride(), t.dtype, t.device) for t in inputs)
    key = (captured.key, shapes, torch.get_num_threads())
    if key not in _COMPILED:
        _COMPILED[key] = _compile(captured.graph, inputs)
    return _COMPILED[key]


def laid_out(constants: Sequence[Tensor]) -> list[Tensor]:
    """Return constants in the order in which compiled loops read them fastest.

    A product of a tall matrix with a vector becomes a loop over its rows, which is
    vectorized if each column lies in one piece.
    """
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
    """Keep inductor's warnings about itself from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _compile(graph: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
    with _quiet():
        from torch._inductor.compile_fx import compile_fx_inner
        from torch._inductor.decomposition import select_decomp_table

        mode = FakeTensorMode(shape_env=ShapeEnv())
        fakes = [mode.from_tensor(tensor, static_shapes=True) for tensor in inputs]
        with tracing(TracingContext(mode)), mode, torch.no_grad():
            lowered = make_fx(graph, decomposition_table=select_decomp_table())(*fakes)
            lowered.graph.eliminate_dead_code()
            lowered.recompile()
            return compile_fx_inner(lowered, fakes)
