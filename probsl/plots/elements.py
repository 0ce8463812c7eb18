"""Selects the fits and the parameters that a plot shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probsl.comparison import Comparison
from probsl.contract import Status
from probsl.fitting import Fit
from probsl.options import did_you_mean, several_names
from probsl.program.coordinates import element_labels

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor

# Above this number of elements in a fit a plot has one row per site.
MANY = 1000

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
    numbered
        Its label by position, as ``w[0]``.
    """

    site: str
    index: int
    label: str
    numbered: str = ""

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
        Names of sites, or of elements such as ``w[age]`` or ``w[0]``, all of which are
        shown; None takes the first elements of the default.
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
    numbered = {e.numbered: e.label for e in elements if e.numbered not in found}
    names = tuple(numbered.get(name, name) for name in names)
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


def by_sites(
    fits: Mapping[str, Fit], sites: Sequence[str] | None, by: str | None
) -> bool:
    """Return whether a plot has one row per site, as a summary of as many elements.

    Raises
    ------
    ValueError
        If `by` is not "element", "site" or None.
    """
    if by not in (None, "element", "site"):
        raise ValueError(f"by must be 'element' or 'site', got {by!r}")
    counts = (sum(v.numel() for v in fit.point().values()) for fit in fits.values())
    return by == "site" or (by is None and sites is None and max(counts) > MANY)


def sites_of(
    fits: Mapping[str, Fit], sites: Sequence[str] | None
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return label of a site -> fit -> the estimates of its elements.

    Raises
    ------
    TypeError, ValueError
        If `sites` are not names of sites.
    """
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    known = dict.fromkeys(name for fit in fits.values() for name in fit.point())
    names = known if sites is None else several_names("sites", sites)
    for name in names:
        if name not in known:
            raise ValueError(
                f"'{name}' is not a site of the fits ({', '.join(known)})"
                f"{did_you_mean(name, known)}"
            )
    for fit_name, fit in fits.items():
        for name, value in fit.point().items():
            if name in names and value.numel():
                (label,) = fit.problem.element_labels(name, ())
                row = found.setdefault(f"{label} {list(value.shape)}", {})
                row[fit_name] = np.asarray(value.detach().cpu().double()).reshape(-1)
    return found


def undetermined(fit: Fit, elements: Sequence[Element]) -> NDArray[np.bool_]:
    """Return for each element whether the data leave its estimate without meaning."""
    if fit.status not in (Status.UNBOUNDED, Status.UNIDENTIFIED):
        return np.zeros(len(elements), dtype=bool)
    named = {*fit.status_sites}
    return np.array([e.site in named or e.label in named for e in elements], dtype=bool)


def written_labels(
    labels: Sequence[str], given: Mapping[str, str] | None
) -> tuple[str, ...]:
    """Return the labels of rows, with those that the user gave in place of their own.

    Raises
    ------
    TypeError
        If `given` is not a mapping.
    ValueError
        If it has a label that is not shown.
    """
    if given is None:
        return tuple(labels)
    if not isinstance(given, Mapping):
        raise TypeError(
            f"labels must map labels to texts, such as {{'w[0]': 'age'}}, got {given!r}"
        )
    for label in given:
        if label not in labels:
            raise ValueError(
                f"labels has '{label}', which is not shown{did_you_mean(label, labels)}"
            )
    return tuple(str(given.get(label, label)) for label in labels)


def _elements(fit: Fit) -> list[Element]:
    labels = fit.problem.element_labels
    return [
        Element(name, index, label, numbered)
        for name, value in fit.point().items()
        for index, (label, numbered) in enumerate(
            zip(
                labels(name, value.shape),
                element_labels(name, value.shape),
                strict=True,
            )
        )
    ]
