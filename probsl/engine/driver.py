"""A loop in machine code over the compiled loops of many steps.

From Python a call of a compiled loop takes about a microsecond, since it has dozens of
arguments; from here it takes some nanoseconds, which small problems can tell.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

# Each number of arguments is a case of its own in the source below.
_MOST_ARGUMENTS = 128
# The lock of the interpreter is held, as it is while Python calls a compiled loop, so
# it comes back after the seconds that a thread may keep it: other threads then have
# their turn, and an interrupt is seen.
_SLICE = 0.005

_SOURCE = """
#include <cstdint>
#include <ctime>

using Address = void*;

static void call(Address loop, Address const* given, std::int64_t count) {
  switch (count) {
CASES
  }
}

static double seconds() {
  std::timespec now;
  std::timespec_get(&now, TIME_UTC);
  return now.tv_sec + 1e-9 * now.tv_nsec;
}

// `progress` is the place of the next step, and which of the two states it starts from.
extern "C" bool drive(std::int64_t* progress, std::int64_t stop, double slice,
                      std::int64_t calls, Address const* loops,
                      std::int64_t const* counts, std::int64_t width,
                      Address const* given) {
  double const start = seconds();
  try {
    do {
      Address const* next = given + (2 * progress[0] + progress[1]) * width;
      for (std::int64_t i = 0; i < calls; ++i) {
        call(loops[i], next, counts[i]);
        next += counts[i];
      }
      ++progress[0];
      progress[1] = 1 - progress[1];
    } while (progress[0] < stop && seconds() - start < slice);
  } catch (...) {
    return false;
  }
  return true;
}
"""


class DriverError(RuntimeError):
    """Calls that cannot be made from machine code."""


class Driver:
    """Steps that consist of calls of compiled loops alone.

    Parameters
    ----------
    loops
        What a step calls, one after the other.
    counts
        How many arguments each takes.
    given
        The addresses of all arguments of a step, for each place of a block and each
        of the two states that the step may start from, ``[places, 2, sum(counts)]``.

    Raises
    ------
    DriverError
        If something else than a compiled loop is called, or there is no compiler.
    """

    def __init__(
        self, loops: Sequence[Any], counts: Sequence[int], given: Tensor
    ) -> None:
        if max(counts) > _MOST_ARGUMENTS:
            raise DriverError("a compiled loop takes too many arguments")
        self._tables = (
            torch.tensor([_address(loop) for loop in loops]),
            torch.tensor(counts),
            given.contiguous(),
        )
        loops_at, counts_at, given_at = (t.data_ptr() for t in self._tables)
        width = given.shape[-1]
        self._rest = (_SLICE, len(loops), loops_at, counts_at, width, given_at)
        self._drive = _drive()

    def __call__(self, progress: ctypes.Array[ctypes.c_int64], stop: int) -> bool:
        """Take one or more steps, for some milliseconds.

        Parameters
        ----------
        progress
            The next place, and which of the two states the step there starts from.
            Both change with each whole step.
        stop
            The place to stop at, after the next.

        Returns
        -------
        bool
            False if a loop threw an exception, within a step which does not count.
        """
        return bool(self._drive(progress, stop, *self._rest))


def _address(loop: Any) -> int:
    """Return where the machine code of a loop lies, beneath what Python calls."""
    path = getattr(getattr(loop, "__self__", None), "__file__", None)
    try:
        code = ctypes.CDLL(path).kernel if path else None
    except (AttributeError, OSError):
        code = None
    address = ctypes.cast(code, ctypes.c_void_p).value if code is not None else None
    if address is None:
        raise DriverError("it is no compiled loop")
    return address


@functools.cache
def _drive() -> Callable[..., bool]:
    """Compile the source above, or find it compiled in inductor's cache on disk."""
    from torch._inductor.codecache import CppCodeCache

    def case(count: int) -> str:
        kinds = ", ".join(["Address"] * count)
        values = ", ".join(f"given[{i}]" for i in range(count))
        made = f"reinterpret_cast<void (*)({kinds})>(loop)({values})"
        return f"    case {count}: {made}; break;"

    cases = "\n".join(case(count) for count in range(_MOST_ARGUMENTS + 1))
    try:
        library = CppCodeCache.load(
            _SOURCE.replace("CASES", cases), extra_flags=("-O1",)
        )
        drive: Any = ctypes.PyDLL(library._name).drive
    except Exception as error:  # whatever a compiler, or its absence, may raise
        raise DriverError("there is no compiler") from error
    whole, address = ctypes.c_int64, ctypes.c_void_p
    drive.restype = ctypes.c_bool
    drive.argtypes = [address, whole, ctypes.c_double]
    drive.argtypes += [whole, address, address, whole, address]
    return drive  # type: ignore[no-any-return]
