"""Which fits a plot shows, and which of their parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probsl.comparison import Comparison
from probsl.fitting import Fit
from probsl.options import did_you_mean, several_names
from probsl.program.coordinates import element_labels

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor

Fits = Fit | Comparison | Mapping[str, Fit]


@dataclass(frozen=True)
class Element:
    """One number of a site.

    Attributes
    ----------
    site
        The site or own parameter.
    index
        Its place in the flattened value.
    label
        What `Fit.summary` calls it.
    """

    site: str
    index: int
    label: str

    def of(self, draws: Mapping[str, Tensor]) -> NDArray[np.float64]:
        """Return this element of site -> draws ``[draws, ...]``."""
        values = draws[self.site]
        return np.asarray(values.reshape(len(values), -1)[:, self.index].cpu().double())


@dataclass(frozen=True)
class Choice:
    """The elements that a plot shows, and how many it could.

    Attributes
    ----------
    elements
        Those it shows.
    total
        The number of those it could.
    """

    elements: tuple[Element, ...]
    total: int

    @property
    def note(self) -> str:
        """What was left out, in words; empty where nothing was."""
        shown = len(self.elements)
        return f"first {shown} of {self.total} parameters" if shown < self.total else ""


def named_fits(fits: Fits) -> dict[str, Fit]:
    """Return fits by their names; a single fit has that of its method.

    Raises
    ------
    TypeError
        If they are no fits.
    ValueError
        If there are none.

    Examples
    --------
    >>> from probsl.plots.elements import named_fits
    >>> named_fits({})
    Traceback (most recent call last):
    ValueError: fits is empty; give at least one fit to plot
    """
    if isinstance(fits, Fit):
        return {type(fits.method).__name__: fits}
    if isinstance(fits, Comparison):
        return dict(fits.fits)
    if not isinstance(fits, Mapping):
        raise TypeError(
            "give a fit, a comparison, or a mapping from names to fits; got "
            f"{type(fits).__name__}"
        )
    if not fits:
        raise ValueError("fits is empty; give at least one fit to plot")
    for name, fit in fits.items():
        if not isinstance(fit, Fit):
            raise TypeError(f"fits['{name}'] is a {type(fit).__name__}, not a Fit")
    return {str(name): fit for name, fit in fits.items()}


def choose(
    fits: Mapping[str, Fit],
    sites: Sequence[str] | None,
    limit: int,
    *,
    default: Sequence[str] | None = None,
) -> Choice:
    """Choose the elements to show, in the order of the programs.

    Parameters
    ----------
    fits
        Name -> fit.
    sites
        Names of sites, or of elements such as ``w[0]``, all of whose elements are
        taken; None takes the first of the default.
    limit
        How many elements to take where none are named.
    default
        The sites to take where none are named; all of them if there is no default.

    Raises
    ------
    TypeError
        If `sites` are no names.
    ValueError
        If a name is not in any of the fits, or there is no name.
    """
    found = {e.label: e for fit in fits.values() for e in _elements(fit)}
    elements = tuple(found.values())
    if sites is None:
        usual = elements
        if default is not None:
            usual = tuple(e for e in elements if e.site in default)
        return Choice(usual[:limit], len(usual))
    names = several_names("sites", sites)
    if not names:
        raise ValueError("sites is empty; name at least one, or leave it out for all")
    known = dict.fromkeys([e.site for e in elements])
    for name in names:
        if name not in known and name not in found:
            raise ValueError(
                f"'{name}' is no site of the fits ({', '.join(known)}), and no element "
                f"of one{did_you_mean(name, [*known, *found])}"
            )
    chosen = tuple(e for e in elements if e.site in names or e.label in names)
    return Choice(chosen, len(chosen))


def tables(
    fits: Mapping[str, Fit], elements: Sequence[Element], prob: float = 0.95
) -> dict[str, pd.DataFrame]:
    """Return each fit's summary of the elements; missing where it has none.

    Raises
    ------
    ValueError
        If `prob` is not between 0 and 1.
    """
    labels = [e.label for e in elements]
    return {
        name: fit.summary(prob, by="element").reindex(labels)
        for name, fit in fits.items()
    }


def _elements(fit: Fit) -> list[Element]:
    marks = {p.name: " (own)" for p in fit.problem.own_parameters}
    return [
        Element(name, index, label + marks.get(name, ""))
        for name, value in fit.point().items()
        for index, label in enumerate(element_labels(name, value.shape))
    ]
