"""The reference files: each names its source, and nothing lies there unused."""

import json

import pytest
from references import FOLDER, entries

FILES = sorted(FOLDER.rglob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_reference_file_names_its_source(path):
    held = json.loads(path.read_text())
    assert len(held["source"]) > 20
    for case in held.get("cases", {}).values():
        assert case.get("source", held["source"])


def test_every_file_of_arrays_belongs_to_a_case():
    cases = [
        (path.parent, case)
        for path in FILES
        for case in entries(str(path.relative_to(FOLDER))).get("cases", {}).values()
    ]
    named = {
        folder / value
        for folder, case in cases
        for value in case.values()
        if isinstance(value, str) and value.endswith(".npz")
    }
    assert named == set(FOLDER.rglob("*.npz"))
