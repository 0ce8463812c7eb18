"""Evaluates a bound at many draws: by vectorizing it, its graph, or in a loop."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from probsl.engine.compile.obstacles import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.fx import GraphModule

    from probsl.methods.guides.elbo import ELBO
    from probsl.noise.record import NoiseRecord

Way = Literal["vectorized", "graph", "loop"]


class ManyDraws:
    """The negative bound per row at many draws, a function of the guide.

    Parameters
    ----------
    bound
        The bound.
    noise
        The random numbers of one estimate.
    draws
        Examples of draws ``[count, dimension]``, two or more.

    Attributes
    ----------
    way
        How several draws are evaluated: by `torch.func.vmap` over the program; over
        a graph of one run, if it writes in place or sums over discrete latents;
        or in a loop, if it cannot be captured as a graph.
    reason
        Why they are evaluated in a loop, in a sentence.
    """

    def __init__(self, bound: ELBO, noise: NoiseRecord, draws: Tensor) -> None:
        self._bound, self._noise = bound, noise
        self._batch = bound.problem.batch()
        self._graph: Callable[..., tuple[Tensor, ...]] | None = None
        self.way: Way = "vectorized"
        self.reason = ""
        try:
            with torch.no_grad():
                bound.averaged(bound.start, noise, draws[:2], self._batch)
        except LinAlgError:  # one of the draws is at fault, not the program
            return
        except RuntimeError:
            self._by_graph(draws)

    def __call__(self, x: Tensor, draws: Tensor) -> Tensor:
        """Return the negative bound per row at each draw, shape ``[count]``."""
        if self.way == "vectorized":
            return self._bound.averaged(x, self._noise, draws, self._batch)
        if self._graph is not None:
            (values,) = self._graph(x, draws)
            return values
        return torch.stack([self._one(x, z) for z in draws])

    def _one(self, x: Tensor, draw: Tensor) -> Tensor:
        with self._noise.supply(draw):
            return self._bound.estimate(x, self._batch)

    def _by_graph(self, draws: Tensor) -> None:
        """Vectorize a graph of one run, if it agrees with the program elsewhere."""

        def one(x: Tensor, draw: Tensor) -> tuple[Tensor]:
            return (self._one(x, draw),)

        start = self._bound.start
        elsewhere = start + 0.01 * torch.linspace(-1, 1, len(start)).to(start)
        examples = [[start, draws[0]], [elsewhere, draws[1]]]
        try:
            from probsl.engine.compile.capture import capture

            captured = capture(one, examples)
            _make_vectorizable(captured.graph)
            graph = torch.func.vmap(captured, in_dims=(None, 0))
            found = self._value_and_gradient(lambda x: graph(x, draws[:2])[0])
            expected = self._value_and_gradient(
                lambda x: torch.stack([self._one(x, z) for z in draws[:2]])
            )
            torch.testing.assert_close(found, expected)
        except AssertionError:
            self.way, self.reason = "loop", "vectorized it gives other results"
        except Exception as error:  # not a public API: torch may raise anything
            self.way, self.reason = "loop", reason_of(error)
        else:
            self.way, self._graph = "graph", graph

    def _value_and_gradient(
        self, objective: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.enable_grad():
            x = self._bound.start.detach().requires_grad_()
            values = objective(x)
            return values.detach(), torch.autograd.grad(values.sum(), x)


def _make_vectorizable(graph: GraphModule) -> None:
    """Replace graph operations whose `torch.func.vmap` rule is missing or wrong."""
    rules: dict[Any, Callable[..., Tensor]] = {
        torch.ops.aten.copy.default: _copied,
        torch.ops.aten.slice_scatter.default: _slice_scattered,
        torch.ops.aten.select_scatter.default: _select_scattered,
    }
    for node in graph.graph.nodes:
        node.target = rules.get(node.target, node.target)
    graph.recompile()


def _copied(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return source.to(target, non_blocking=non_blocking).expand(target.shape)


def _slice_scattered(
    target: Tensor, source: Tensor, dim: int = 0, *ends: int
) -> Tensor:
    start, end, step = (*ends, *(0, sys.maxsize, 1)[len(ends) :])
    places = range(target.shape[dim])[start:end:step]
    index = torch.tensor(places, device=target.device)
    return target.index_copy(dim, index, source)


def _select_scattered(target: Tensor, source: Tensor, dim: int, place: int) -> Tensor:
    index = torch.tensor([place % target.shape[dim]], device=target.device)
    return target.index_copy(dim, index, source.unsqueeze(dim))
