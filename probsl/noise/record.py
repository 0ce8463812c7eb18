"""Noise as an input: records, draws and supplies the random numbers of a program.

A guide is a deterministic function of its parameters and of some standard normal
and uniform numbers, which it takes from torch's global generator. `record` runs it
once and records which numbers it requests; `NoiseRecord.supply` runs it again with
these numbers given as a tensor. The random program is then a pure function, which can
be differentiated, vectorized over many draws with `torch.func.vmap` and captured
with `make_fx`, with the noise as one more input of the graph. `standardized` gives a
few draws that represent many.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probsl.noise import modes
from probsl.noise.modes import SAMPLERS, NoiseMismatchError, NoiseMode, Request, Supply
from probsl.noise.vmapped import Forked, drawing_from

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["NoiseRecord", "record"]


@dataclass(frozen=True)
class NoiseRecord:
    """The random numbers that one run of a program requests.

    `requests` has them in order. `obstacle` names the first random function that is
    not a transformation of normal or uniform numbers (such as a gamma or multinomial
    sampler), and is None if there is none. `detached` says whether numbers were drawn
    while gradients were off, as in `Distribution.sample`: a run can then be repeated,
    but gradients do not pass through its draws.
    """

    requests: tuple[Request, ...]
    obstacle: str | None = None
    detached: bool = False

    @property
    def replayable(self) -> bool:
        """Whether normal and uniform numbers are the only randomness."""
        return self.obstacle is None

    @property
    def reparameterizable(self) -> bool:
        """Whether derivatives of a draw with respect to parameters are correct."""
        return self.obstacle is None and not self.detached

    @cached_property
    def dimension(self) -> int:
        """Number of random numbers of one run."""
        return sum(request.count for request in self.requests)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The widest floating type requested."""
        found = [request.dtype for request in self.requests]
        return reduce(torch.promote_types, found or [torch.get_default_dtype()])

    @cached_property
    def device(self) -> torch.device:
        """The device of all requests, or the CPU if they differ."""
        found = {request.device for request in self.requests}
        return found.pop() if len(found) == 1 else torch.device("cpu")

    @cached_property
    def _uniform(self) -> tuple[Tensor, Tensor]:
        # The uniform columns, and for each half the spacing of its floating type, by
        # which its numbers are kept away from 0 and 1 after any cast.
        columns: list[int] = []
        edges: list[float] = []
        start = 0
        for request in self.requests:
            if request.kind == "uniform":
                columns.extend(range(start, start + request.count))
                edges.extend([torch.finfo(request.dtype).eps / 2] * request.count)
            start += request.count
        return (
            torch.tensor(columns, dtype=torch.long, device="cpu"),
            torch.tensor(edges, dtype=self.dtype, device="cpu"),
        )

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw independent noise.

        Parameters
        ----------
        n
            Number of runs to draw noise for.
        generator
            A CPU generator; no other generator is used.

        Returns
        -------
        Tensor
            Shape [n, dimension], in the record's dtype and on its device: standard
            normal or uniform on the open interval (0, 1) by column.

        Raises
        ------
        ValueError
            If the record has an obstacle.
        """
        self._require_replayable()
        columns, edges = self._uniform
        noise = torch.randn(
            n, self.dimension, generator=generator, dtype=self.dtype, device="cpu"
        )
        if columns.numel():
            uniform = torch.rand(
                n, columns.numel(), generator=generator, dtype=self.dtype, device="cpu"
            )
            noise[:, columns] = torch.clamp(uniform, edges, 1 - edges)
        return noise.to(self.device)

    def supply(self, noise: Tensor) -> Supply:
        """Supply the program with its random numbers inside a `with` block.

        Inside, the recorded functions return transformations of `noise` instead of
        drawing: location and scale for normals, the inverse distribution function for
        transformations of uniforms. A tensor filled in place is replaced by the result,
        so that nothing is mutated; one that is still in use at the next torch call is
        written.

        Parameters
        ----------
        noise
            Shape [dimension], in the order of the requests. `torch.func.vmap` over a
            leading axis gives one run per draw.

        Returns
        -------
        Supply
            The context manager. It may be entered again, one entry at a time.

        Raises
        ------
        ValueError
            If the record has an obstacle, or `noise` has the wrong shape.
        NoiseMismatchError
            Inside, if the program requests other numbers than were recorded.
        """
        self._require_replayable()
        if noise.shape != (self.dimension,):
            raise ValueError(
                f"The noise of one run has shape [{self.dimension}], not "
                f"{list(noise.shape)}; use torch.func.vmap over a leading axis."
            )
        return Supply(self.requests, noise)

    def _require_replayable(self) -> None:
        if self.obstacle is not None:
            raise ValueError(
                f"Noise cannot stand for {self.obstacle}: it is not a transformation "
                "of normal and uniform numbers. Draw with torch's own generator."
            )


def record(function: Callable[..., object], *args: object) -> NoiseRecord:
    """Run a program once and record which random numbers it requests.

    A program with setup at its first call (such as a lazy guide) should be called
    before, because the random numbers of the setup would be recorded too. Torch's
    random state is restored afterwards.

    Parameters
    ----------
    function
        Any callable; its result is discarded.
    *args
        Its arguments.

    Returns
    -------
    NoiseRecord
        The requests in order, or the obstacle. Random numbers of numpy and of `random`
        are an obstacle too.

    Examples
    --------
    >>> import torch
    >>> from probsl.noise.record import record
    >>> def draw(scale):
    ...     return torch.distributions.Normal(1.0, scale).rsample((3,)).sum()
    >>> noise = record(draw, torch.tensor(2.0))
    >>> noise.dimension, noise.reparameterizable
    (3, True)
    >>> with noise.supply(torch.tensor([-1.0, 0.0, 2.0])):
    ...     draw(torch.tensor(2.0))
    tensor(5.)
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with Forked(devices), torch.enable_grad():
        before = random.getstate(), _numpy_state()
        with _Recorder() as recorder:
            function(*args)
        suspect = recorder.suspect
        if suspect is None and recorder.moved():
            suspect = "a random function that torch's Python does not show"
        if suspect is None and before != (random.getstate(), _numpy_state()):
            suspect = "the generator of numpy or of the random module"
        found = NoiseRecord(tuple(recorder.seen), recorder.obstacle, recorder.detached)
        if found.replayable and suspect and not _repeats(found, function, args):
            found = replace(found, obstacle=suspect)
    return found


def _repeats(
    found: NoiseRecord, function: Callable[..., object], args: tuple[object, ...]
) -> bool:
    """Return whether the results of a program do not depend on any generator.

    A changed generator alone is not proof, because another thread may have used it.
    """
    noise = found.draw(1, torch.Generator("cpu").manual_seed(0))[0]
    results = []
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        for seed in (1, 2):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.default_generator.manual_seed(seed)
            for generator in torch.cuda.default_generators:
                generator.manual_seed(seed)
            with found.supply(noise):
                results.append(list(_leaves(function(*args))))
    except NoiseMismatchError:  # a function that cannot be answered by noise
        return False
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
    one, other = results
    tells = any(isinstance(leaf, Tensor) for leaf in one)
    return tells and len(one) == len(other) and all(map(_same, one, other))


def _leaves(result: object) -> Iterator[object]:
    """Yield the leaves of nested mappings, lists and tuples."""
    if isinstance(result, Mapping | list | tuple):
        parts = result.values() if isinstance(result, Mapping) else result
        for part in parts:
            yield from _leaves(part)
    else:
        yield result


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(
            torch.nan_to_num(one.detach()), torch.nan_to_num(other.detach())
        )
    return isinstance(one, int | float | str) and one == other


class _Recorder(NoiseMode):
    """Draws base noise from its own generator, so that other randomness is detected."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Request] = []
        self.obstacle: str | None = None
        self.suspect: str | None = None
        self.detached = False
        self._generator = torch.Generator("cpu").manual_seed(0)
        self._state = _torch_state()

    def noise(self, request: Request) -> Tensor:
        """Draw the requested numbers, and store the request."""
        self.seen.append(request)
        self.detached |= not torch.is_grad_enabled()
        alone = NoiseRecord((request,))
        return alone.draw(1, self._generator).reshape(request.shape)

    def other(
        self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Call a function, and test whether it drew from torch's global generator."""
        name = getattr(function, "__name__", str(function))
        if function in SAMPLERS:
            drawing = drawing_from(self._of, function, args, kwargs)
            if drawing[2] is not kwargs:  # it has no generator argument
                self.obstacle = self.obstacle or name
            function, args, kwargs = drawing
        result = function(*args, **kwargs)
        if self.obstacle is None and self.suspect is None and self.moved():
            self.suspect = name
        return result

    def _of(self, device: torch.device) -> torch.Generator:
        """Return a generator on a device that no other thread uses."""
        return modes.generator_on(device).manual_seed(0)

    def moved(self) -> bool:
        """Whether torch's global random state has changed."""
        return any(
            not torch.equal(now, then)
            for now, then in zip(_torch_state(), self._state, strict=False)
        )


def _torch_state() -> list[Tensor]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return states


def _numpy_state() -> tuple[bytes, int]:
    _, key, position, *_ = np.random.get_state()  # noqa: NPY002
    return np.asarray(key).tobytes(), int(position)
