"""Checks that a program is the one of a saved fit, by a run on fixed numbers."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from probsl.data.absent_rows import AbsentArray
from probsl.draws.predictions import observed_arguments
from probsl.export.saved_problems import is_data
from probsl.export.saved_values import count, text
from probsl.program.density_prints import density_prints, fixed_prints

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from probsl.program.problem import Problem

__all__ = ["Checks", "checks_of", "decoded_checks"]

# What stands for floating-point and for whole numbers in the arrays of data.
_NUMBERS = ((1.0, 0), (0.5, 1))
# The most elements of these arrays, and of a site or plate of a program.
_MOST = 1 << 22
# Log densities of two machines differ by less than this share.
_AGREEMENT = {torch.float64: 1e-7}
_COARSE = 1e-3


@dataclass(frozen=True)
class Checks:
    """What a program does on fixed numbers, and what else a fit does not change.

    Attributes
    ----------
    fixed
        Buffer or frozen parameter -> its hash.
    numbers
        Rows, floating-point number and whole number in place of data; None: the program
        cannot be run on any.
    densities
        Site -> its log density on these; None if it has none that is finite.
    """

    fixed: Mapping[str, str]
    numbers: tuple[int, float, int] | None = None
    densities: Mapping[str, float | None] | None = None

    def encoded(self) -> dict[str, Any]:
        """Return plain values."""
        densities = None if self.densities is None else dict(self.densities)
        numbers = None if self.numbers is None else list(self.numbers)
        return {"fixed": dict(self.fixed), "numbers": numbers, "densities": densities}

    def refuse_other(self, problem: Problem, own: Mapping[str, Tensor]) -> None:
        """Refuse a program that is not the one that was fitted.

        Parameters
        ----------
        problem
            The program, with its data or without.
        own
            Own parameter -> unconstrained value.

        Raises
        ------
        ValueError
            Naming what has changed.
        """
        fixed = fixed_prints(problem.program)
        for name in sorted({*fixed, *self.fixed}):
            if fixed.get(name) != self.fixed.get(name):
                raise ValueError(
                    f"'{name}', which no fit changes, has other values than when the "
                    "program was fitted; load with the program that was fitted"
                )
        if self.numbers is None or self.densities is None:
            return
        try:
            now = _densities(problem, own, self.numbers)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                "the program fails on numbers on which it ran when it was fitted "
                f"({error}); load with the program that was fitted"
            ) from error
        share = _AGREEMENT.get(problem.dtype, _COARSE)
        for name in dict.fromkeys([*self.densities, *now]):
            one, other = self.densities.get(name), now.get(name)
            if one is None or other is None:
                continue
            if abs(one - other) > share * (1 + abs(one)):
                raise ValueError(
                    f"site '{name}' had another log density on the same numbers when "
                    f"it was fitted, {one:.6g} and now {other:.6g}; load with the "
                    "program that was fitted"
                )


def checks_of(problem: Problem, own: Mapping[str, Tensor]) -> Checks:
    """Return the checks for a program that was fitted.

    Parameters
    ----------
    problem
        The program, with its data or without.
    own
        Own parameter -> unconstrained value.
    """
    fixed, held = fixed_prints(problem.program), problem.data.held
    for rows, numbers in product(dict.fromkeys((2, held)), _NUMBERS):
        with contextlib.suppress(Exception):  # other numbers may suit it better
            given = (rows, *numbers)
            found, again = (_densities(problem, own, given, seed) for seed in (0, 1))
            # A program that draws by itself draws other numbers elsewhere.
            certain = {n: d if d == again.get(n) else None for n, d in found.items()}
            return Checks(fixed, given, certain)
    return Checks(fixed)


def decoded_checks(value: Mapping[str, Any] | None) -> Checks | None:
    """Return what `Checks.encoded` returned; files may be older than the checks."""
    if value is None:
        return None
    fixed = {text(name): text(digest) for name, digest in value["fixed"].items()}
    if value["numbers"] is None:
        return Checks(fixed)
    rows, floats, integers = value["numbers"]
    densities = {
        text(name): None if density is None else float(density)
        for name, density in value["densities"].items()
    }
    return Checks(fixed, (count(rows), float(floats), count(integers)), densities)


def _densities(
    problem: Problem,
    own: Mapping[str, Tensor],
    numbers: tuple[int, float, int],
    seed: int = 0,
) -> dict[str, float | None]:
    """Run a program on numbers in place of its data."""
    largest = max((s.shape.numel() for s in problem.latents), default=0)
    with problem.isolated(seed), problem.program.evaluating():
        arguments = _in_place_of_data(problem, numbers)
        return density_prints(
            lambda: problem.run(own, arguments), max(_MOST, 2 * largest)
        )


def _in_place_of_data(
    problem: Problem, numbers: tuple[int, float, int]
) -> dict[str, Any]:
    """Return the arguments of a program, with numbers for data and nothing observed."""
    rows, floats, integers = numbers
    observed = observed_arguments(problem)
    optional = problem.program.optional_arguments()
    found: dict[str, Any] = {}
    for name, value in problem.arguments.values.items():
        absent = isinstance(value, AbsentArray)
        if name in observed:
            found |= {} if name in optional else {name: None}
        elif not absent and not is_data(name, problem):
            found[name] = value
        elif absent and problem.has_rows and name not in problem.rows:
            raise LookupError(f"'{name}' is not in the file")
        else:
            shape, dtype = value.describe() if absent else (value.shape, value.dtype)
            if name in problem.rows:
                shape = torch.Size([rows, *shape[1:]])
            if shape.numel() > _MOST:
                raise ValueError(f"'{name}' has too many elements")
            number = floats if dtype.is_floating_point else integers
            found[name] = torch.full(shape, number, dtype=dtype)
    return found
