"""The data of a fit that was loaded without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from probsl.engine.steps.feed import Blocks

__all__ = ["AbsentArray", "AbsentRows", "refuse_absent"]


def refuse_absent(why: str = "which this needs") -> NoReturn:
    """Refuse an operation on a fit whose data are absent.

    Parameters
    ----------
    why
        The reason, as a clause about the data.

    Raises
    ------
    ValueError
        Saying how to load the fit with its data.
    """
    raise ValueError(
        f"this fit was loaded without its data, {why}; give them: "
        "probsl.load(path, program, data)"
    )


class AbsentArray:
    """Takes the place of an array that is absent; whatever is done with it is refused.

    Parameters
    ----------
    shape, dtype
        Of the array.

    Examples
    --------
    >>> import torch
    >>> from probsl.data.absent_rows import AbsentArray
    >>> AbsentArray((3,), torch.float64) + 1
    Traceback (most recent call last):
    ValueError: this fit was loaded without its data, which this needs; give ...
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self._description = (torch.Size(shape), dtype)

    def __repr__(self) -> str:
        shape, dtype = self._description
        return f"AbsentArray({tuple(shape)}, {dtype})"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # Python itself asks for these, and does without
            raise AttributeError(name)
        refuse_absent()

    @classmethod
    def __torch_function__(cls, *call: Any) -> NoReturn:
        refuse_absent()

    def describe(self) -> tuple[torch.Size, torch.dtype]:
        """Return its shape and type, which the program must not see."""
        return self._description


def _refuse(*_: Any) -> NoReturn:
    refuse_absent()


for _name in (
    *("array", "bool", "contains", "float", "getitem", "index", "int", "iter", "len"),
    *("eq", "ne", "lt", "le", "gt", "ge", "neg", "abs", "invert"),
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
    *("radd", "rsub", "rmul", "rtruediv", "rfloordiv", "rmod", "rpow", "rmatmul"),
    *("and", "or", "xor", "rand", "ror", "rxor"),
):
    setattr(AbsentArray, f"__{_name}__", _refuse)


@dataclass(frozen=True, eq=False)
class AbsentRows:
    """Rows that are known only by their number; see `probsl.data.rows.Rows`.

    Attributes
    ----------
    names
        The arguments with one entry per row.
    size
        The number of rows, N.
    held
        The number of rows that the problem's arguments held.
    weights
        One weight per row, or None.
    unclear
        Why it is unclear which arguments are rows, if it is.
    """

    names: tuple[str, ...]
    size: int
    held: int
    weights: Tensor | None = None
    unclear: str = ""
    complete: ClassVar[bool] = False
    held_weights: ClassVar[None] = None

    @property
    def batch_size(self) -> int | None:
        """Refuse to be fitted."""
        refuse_absent()

    def read_as(self, dtype: torch.dtype, device: torch.device) -> AbsentRows:  # noqa: ARG002
        """Return the same rows: none are read."""
        return self

    def reweighted(
        self,
        weights: Any,  # noqa: ARG002
        dtype: torch.dtype,  # noqa: ARG002
        device: torch.device,  # noqa: ARG002
    ) -> AbsentRows:
        """Refuse other weights."""
        refuse_absent()

    def spread(self, count: int) -> Tensor:  # noqa: ARG002
        """Refuse to choose rows."""
        refuse_absent()

    def at(self, index: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:  # noqa: ARG002
        """Refuse to read rows."""
        refuse_absent()

    def parts(self) -> Iterator[tuple[dict[str, Tensor], Tensor | None]]:
        """Refuse to read rows."""
        refuse_absent()

    def blocks(self, batch_size: int, seed: int) -> Blocks:  # noqa: ARG002
        """Refuse to read rows."""
        refuse_absent()

    def load(self) -> dict[str, Any]:
        """Refuse to read rows."""
        refuse_absent()
