"""What is shipped, what an import costs, and which names and rooms there are."""

import ast
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import probsl

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "probsl").rglob("*.py"))

SLOW_IMPORTS = ["arviz", "matplotlib", "pandas", "sklearn"]
NAMES_THAT_SAY_NOTHING = ["common", "core", "helper", "helpers", "misc", "types"]
NAMES_THAT_SAY_NOTHING += ["util", "utils"]
# The rooms that look into Pyro's traces; the others ask these.
POUTINE_ROOMS = ("program", "isolation")


def run(*arguments: str) -> str:
    """Run Python in a process of its own and return what it printed."""
    process = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None,
    reason="NOT CHECKED: the wheel, for hatchling is missing; install the tests extra",
)
def test_the_wheel_holds_probsl_and_nothing_else(tmp_path):
    run("-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()

    shipped = {name for name in names if ".dist-info/" not in name}
    expected = {str(path.relative_to(ROOT)) for path in SOURCES}
    assert shipped == expected | {"probsl/py.typed"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_importing_probsl_imports_nothing_slow():
    loaded = run("-c", "import sys, probsl; print(*sys.modules)").split()
    assert "probsl" in loaded
    assert [name for name in SLOW_IMPORTS if name in loaded] == []


def test_every_module_has_a_name_that_says_what_it_holds():
    rooms = [path.relative_to(ROOT) for path in SOURCES]
    vague = [
        str(room)
        for room in rooms
        if any(
            part.strip("_") in NAMES_THAT_SAY_NOTHING
            for part in room.with_suffix("").parts
        )
    ]
    assert vague == []


def test_the_public_names_are_sorted_and_unique():
    assert list(probsl.__all__) == sorted(set(probsl.__all__))


@pytest.mark.parametrize("name", probsl.__all__)
def test_every_public_name_has_a_docstring(name):
    documentation = getattr(probsl, name).__doc__
    assert documentation
    # What a dataclass writes for itself where it has none.
    assert not documentation.startswith(f"{name}(")


def test_only_the_named_rooms_use_poutine():
    users = [path for path in SOURCES if uses_poutine(path)]
    rooms = {path.relative_to(ROOT / "probsl").parts[0] for path in users}
    assert rooms == set(POUTINE_ROOMS)


def uses_poutine(path: Path) -> bool:
    """Whether the code, not its prose, imports or names `pyro.poutine`."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=aliases):
                names = [alias.name for alias in aliases]
            case ast.ImportFrom(module=module, names=aliases):
                names = [module or "", *(alias.name for alias in aliases)]
            case ast.Attribute(attr=attribute):
                names = [attribute]
            case _:
                continue
        if any("poutine" in name.split(".") for name in names):
            return True
    return False
