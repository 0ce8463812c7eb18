"""Published reference values, kept in a folder beside the repository."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[3] / "shared" / "reference"
ABSENT = f"NOT CHECKED against published values, for there is no folder {FOLDER.name}"


def entries(path: str) -> dict[str, Any]:
    """Return what a reference file holds."""
    return json.loads((FOLDER / path).read_text())


def arrays(path: str) -> dict[str, torch.Tensor]:
    """Return the arrays of a reference file as tensors."""
    with np.load(FOLDER / path) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def names(folder: str, wanted: Callable[[dict[str, Any]], bool] = bool) -> list[Any]:
    """Return the names of a folder's wanted files as parameters of a test."""
    files = sorted((FOLDER / folder).glob("*.json"))
    return _parameters([f.stem for f in files if wanted(json.loads(f.read_text()))])


def cases(path: str, wanted: Callable[[dict[str, Any]], bool]) -> list[Any]:
    """Return the names of the wanted entries of a file as parameters of a test."""
    if not (FOLDER / path).is_file():
        return _parameters([])
    return _parameters([n for n, entry in entries(path).items() if wanted(entry)])


def _parameters(found: list[str]) -> list[Any]:
    # An empty list would skip the test in silence.
    return found or [pytest.param("", marks=pytest.mark.skip(reason=ABSENT))]
