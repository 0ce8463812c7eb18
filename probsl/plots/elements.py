"""Selects the fits and the parameters that a plot shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probsl.comparison import Comparison
from probsl.fitting import Fit
from probsl.options import did_you_mean, several_names

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
        Its index in the flattened value.
    label
        Its label in `Fit.summary`.
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
    """The elements that a plot shows, and the number available.

    Attributes
    ----------
    elements
        The elements shown.
    total
        The number of elements available.
    """

    elements: tuple[Element, ...]
    total: int

    @property
    def note(self) -> str:
        """A note on elements left out; empty if there are none."""
        shown = len(self.elements)
        return f"first {shown} of {self.total} parameters" if shown < self.total else ""


def named_fits(fits: Fits) -> dict[str, Fit]:
    """Return name -> fit; a single fit has the name of its method.

    Raises
    ------
    TypeError
        If they are not fits.
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
        Names of sites, or of elements such as ``w[0]``, all of which are shown; None
        takes the first elements of the default.
    limit
        The most elements to take if `sites` is None.
    default
        The sites to take if `sites` is None; None takes all of them.

    Raises
    ------
    TypeError
        If `sites` are not names.
    ValueError
        If a name is not in any of the fits, or `sites` is empty.
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
                f"'{name}' is not a site of the fits ({', '.join(known)}), nor an "
                f"element of one{did_you_mean(name, [*known, *found])}"
            )
    chosen = tuple(e for e in elements if e.site in names or e.label in names)
    return Choice(chosen, len(chosen))


def tables(
    fits: Mapping[str, Fit], elements: Sequence[Element], prob: float = 0.95
) -> dict[str, pd.DataFrame]:
    """Return each fit's summary of the elements, missing if it does not have one.

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
    labels = fit.problem.element_labels
    return [
        Element(name, index, label)
        for name, value in fit.point().items()
        for index, label in enumerate(labels(name, value.shape))
    ]
