"""Checks that a program and a guide can be trained in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probsl.options import whole_number
from probsl.program.messages import plates_of, visit
from probsl.program.scoring import Batch
from probsl.program.sites import Role
from probsl.program.subsampling import ROW_INDEX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from probsl.program.problem import Problem
    from probsl.program.scoring import Scoring

    Terms = Mapping[str, tuple[Tensor, int | None]]

# The densities are compared near zero in unconstrained space, but not at zero, because
# many dependences vanish there.
_SPREAD = 0.3
# Rounding error allowed in a log density, relative to its size and all rows' mean size.
_ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-6}
_COARSE = 1e-1


def check_batches(problem: Problem, batch_size: int) -> None:
    """Refuse batches if they would change the problem.

    Parameters
    ----------
    problem
        The program bound to its data.
    batch_size
        Rows per batch.

    Raises
    ------
    ValueError
        Naming the site and the remedy.
    """
    batch_size = whole_number("batch_size", batch_size)
    problem.refuse_no_rows("batch_size=")
    if problem.data.unclear and batch_size < problem.size:
        raise ValueError(problem.data.unclear)
    plate = problem.data_plate
    first, _ = problem.data.at(torch.arange(1, device="cpu"))
    if not first and plate and plate.size != plate.full_size:
        raise ValueError(
            f"plate '{plate.name}' is given {plate.size} of {plate.full_size} entries "
            "by the program itself; leave subsample out, and let fit draw batches of "
            "rows with batch_size="
        )
    if not first:
        raise ValueError(
            f"batch_size needs arguments with {problem.size} entries, one per row; "
            "pass the data as arguments of the program"
        )
    local = [s.name for s in problem.latents if problem.is_local(s)]
    if local and batch_size < problem.size:
        raise ValueError(
            f"site '{local[0]}' has one latent per row, and every step fits all of "
            "them, for which a batch of rows is not enough; fit all rows at once"
            f"{_at_once(problem)}, or sum it out in the likelihood"
        )
    if batch_size < problem.size:
        _check_run(
            problem, problem.rows_at(torch.arange(batch_size, device="cpu")), batch_size
        )
        audit_batches(problem, batch_size)


def _at_once(problem: Problem) -> str:
    """Say how to use all rows if the program itself draws a subsample."""
    return "" if problem.own_batch_size is None else f" (batch_size={problem.size})"


def _check_run(problem: Problem, batch: Batch, batch_size: int) -> None:
    """Refuse a program whose shapes differ on a batch."""
    own = {p.name: p.start for p in problem.own_parameters}
    plate = problem.data_plate
    try:
        with problem.isolated():
            messages = visit(
                lambda: problem.run(own, batch.arguments), place=problem.place
            )
    except Exception as error:
        raise ValueError(
            f"the program does not run on a batch of {batch_size} rows ({error}); "
            "size its data plate by its arguments, as in plate('data', len(x))"
        ) from error
    frames = [p for m in messages.values() for p in plates_of(m)]
    sizes = {p.size for p in frames if plate and p.name == plate.name}
    if sizes != {batch_size}:
        shown = " and ".join(map(str, sorted(sizes)))
        raise ValueError(
            f"plate '{plate and plate.name}' has size {shown} for a batch of "
            f"{batch_size} rows; size it by the program's arguments, as in "
            "plate('data', len(x))"
        )
    for site in problem.latents:
        message = messages.get(site.name)
        if message is not None and message["value"].shape != site.shape:
            raise ValueError(
                f"site '{site.name}' has shape {tuple(site.shape)} for some rows and "
                f"{tuple(message['value'].shape)} for a batch of {batch_size}; size it "
                "by a constant, not by the rows that happen to be there"
            )


def audit_batches(problem: Problem, batch_size: int) -> None:
    """Check that the objective on batches equals that on all rows in expectation.

    It does if the log density of a row is the same in every batch that contains it,
    and every other term is the same for every batch; the factor N / B then corrects
    the scale. Two batches that differ as much as the rows allow are compared with
    their union, at random values of the latents: four evaluations.

    Parameters
    ----------
    problem
        The program bound to its data.
    batch_size
        Rows per batch.

    Raises
    ------
    ValueError
        Naming the site that depends on which rows are in the batch.
    """
    whole, first, last = _batches(problem, batch_size)
    layout = problem.coordinates()
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(
        layout.size, generator=generator, dtype=problem.dtype, device="cpu"
    ).to(problem.device)
    values = layout.constrain(problem.center(layout) + _SPREAD * x)
    own = {p.name: p.start for p in problem.own_parameters}
    with problem.isolated(), torch.no_grad():
        together, again = (problem.terms(values, own, whole) for _ in range(2))
        alone = [problem.terms(values, own, batch) for batch in (first, last)]
    rounding = _ROUNDING.get(problem.dtype, _COARSE)
    for name, (term, axis) in together.items():
        if not _same(term, again[name][0], rounding):
            continue  # the program draws its own random numbers, for example by dropout
        if axis is None:
            if not all(_same(term, terms[name][0], rounding) for terms in alone):
                raise ValueError(_constant_changes(problem, name))
            continue
        parts = (
            term.narrow(axis, 0, batch_size),
            term.narrow(axis, -batch_size, batch_size),
        )
        for part, terms in zip(parts, alone, strict=True):
            if not _same(part, terms[name][0], rounding):
                raise ValueError(
                    f"{_shown(problem, name)}: the log density of a row depends on the "
                    "other rows of its batch, for example by a mean over them or a "
                    "scale by their number; compute such numbers of all rows before "
                    "the fit and pass them as constants, and leave scaling to fit"
                )


def _batches(problem: Problem, batch_size: int) -> tuple[Batch, Batch, Batch]:
    """Return some rows, and the two batches among them that differ most."""
    count = min(2 * batch_size, problem.size)
    index = problem.data.spread(count)
    rows, _ = problem.data.at(index)
    arguments = problem.arguments.values
    held = {**arguments, **rows}
    if ROW_INDEX in rows:
        held |= {n: held[n][rows[ROW_INDEX]] for n in problem.rows}
    places = torch.arange(len(index), device=problem.device)
    order = _along(places, (held[n] for n in problem.rows)).argsort()
    rows = {name: row[order] for name, row in rows.items()}
    ends = (slice(None), slice(None, batch_size), slice(-batch_size, None))
    whole, first, last = (
        Batch({**arguments, **{n: row[end] for n, row in rows.items()}}) for end in ends
    )
    return whole, first, last


def _along(places: Tensor, arrays: Iterable[Tensor]) -> Tensor:
    """Return one number per row that depends on all columns."""
    along: Any = places * 1e-9
    for array in arrays:
        columns = array.reshape(len(array), -1).to(torch.float64)
        centered = columns - columns.mean(0)
        along = along + (centered / (centered.std(0) + 1e-12)).mean(1)
    number: Tensor = along
    return number


def _same(one: Tensor, other: Tensor, rounding: float) -> bool:
    if one.shape != other.shape:
        return False
    one, other = (torch.nan_to_num(t, 0.0, 0.0, 0.0) for t in (one, other))
    allowed = rounding * (one.abs() + one.abs().mean())
    return bool(((one - other).abs() <= allowed).all())


def _shown(problem: Problem, name: str) -> str:
    if any(s.name == name for s in problem.sites):
        return f"site '{name}'"
    return (
        f"discrete latent '{problem.sites_with_role(Role.ENUMERATED)[0]}', summed out"
    )


def _constant_changes(problem: Problem, name: str) -> str:
    """Describe the error in a term outside the rows that changes with them."""
    if not any(s.name == name for s in problem.sites):
        return (
            f"{_shown(problem, name)}, is shared by the rows, which batches cannot sum "
            "out; fit all rows at once"
        )
    role = problem.site(name).role
    remedy = (
        "put it in the data plate, with one entry per row"
        if role in (Role.FACTOR, Role.OBSERVED)
        else "compute it of all rows before the fit, and pass it as a constant"
    )
    return (
        f"site '{name}' is outside the data plate, but its log density changes with "
        f"the rows of a batch; {remedy}"
    )


def check_guide_batches(
    problem: Problem, score: Callable[[Batch], Scoring], batch_size: int
) -> None:
    """Refuse a guide whose distribution of the latents depends on the rows.

    In a fit in batches every latent is shared by all rows, so no batch may change it.

    Parameters
    ----------
    problem
        The program bound to its data.
    score
        Runs the guide on a batch.
    batch_size
        Rows per batch.

    Raises
    ------
    ValueError
        Naming the site.
    """
    _, first, last = _batches(problem, batch_size)
    drawn = []
    for batch in (first, last):
        with problem.isolated(), torch.no_grad():
            drawn.append(score(batch).values)
    for site in problem.latents:
        one, other = (values[site.name] for values in drawn)
        if not _same(one, other, _ROUNDING.get(problem.dtype, _COARSE)):
            raise ValueError(
                f"the guide draws site '{site.name}' otherwise for other rows, but "
                "all rows share it; let its parameters not depend on the data"
            )


def own_batches(problem: Problem, batch_size: int | None) -> str:
    """Return a note if the batch size is the program's own subsample size."""
    plate = problem.data_plate
    if plate is None or batch_size is None or batch_size != problem.own_batch_size:
        return ""
    return f"batches of {batch_size} rows, as plate '{plate.name}' draws"
