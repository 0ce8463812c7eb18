"""Published reference values: the files in `references`, which name their sources.

A set with several cases is one file; the arrays that its cases name are beside it.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parent / "references"


@cache
def entries(path: str) -> dict[str, Any]:
    """Return what a reference file holds."""
    return json.loads((FOLDER / path).read_text())


def cases(path: str) -> dict[str, Any]:
    """Return the cases of a set by their names."""
    return entries(path)["cases"]


def posteriors() -> dict[str, Any]:
    """Return the posteriors of posteriordb by their names."""
    files = sorted((FOLDER / "posteriordb").glob("*.json"))
    return {file.stem: entries(f"posteriordb/{file.name}") for file in files}


def arrays(path: str) -> dict[str, torch.Tensor]:
    """Return the arrays of a reference file as tensors, under names in lower case."""
    with np.load(FOLDER / path) as file:
        return {name.lower(): torch.from_numpy(file[name]) for name in file.files}
