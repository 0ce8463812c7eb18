"""The program in the README runs, and prints what the README says."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
IMPORTED_AS = {"pyro-ppl": "pyro"}


def block(language: str) -> str:
    """Return the first block in a language, without its fences."""
    found = re.search(rf"^```{language}\n(.*?)^```", README, re.M | re.S)
    assert found is not None
    return found[1]


def parts(printed: str) -> tuple[list[str], list[float]]:
    """Return words and numbers, without how long the fits took."""
    timeless = re.sub(r"(\w+ +[A-Z_]+ +\d+) +\d+\.\d+", r"\1", printed)
    numbers = r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.]*\w)"
    words = re.sub(numbers, "number", timeless).split()
    return words, [float(number) for number in re.findall(numbers, timeless)]


def same(printed: str, shown: str) -> bool:
    """Whether two outputs agree, but for what another processor rounds differently."""
    (words, numbers), (shown_words, shown_numbers) = parts(printed), parts(shown)
    return words == shown_words and numbers == pytest.approx(
        shown_numbers, rel=0.02, abs=0.005
    )


def test_the_program_prints_the_comparison(capsys):
    exec(compile(block("python"), "README.md", "exec"), {})
    assert same(capsys.readouterr().out, block("text"))


@pytest.mark.parametrize(
    ("printed", "agree"),
    [
        ("MLE CONVERGED 10 1.23\nsigma 0.12 0.131", True),
        ("MLE CONVERGED 10 0.77\nsigma 0.12 0.16", False),
        ("MLE STALLED 10 0.77\nsigma 0.12 0.131", False),
        ("MLE CONVERGED 10 0.77\nw[belite] 0.12 0.131", False),
    ],
)
def test_what_counts_as_the_same_output(printed, agree):
    assert same(printed, "MLE  CONVERGED 10 0.77\nsigma  0.12 0.13") is agree


def test_the_program_runs_after_a_plain_install():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = (re.match(r"[\w-]+", each)[0] for each in project["dependencies"])
    installed = {"probsl", *(IMPORTED_AS.get(name, name) for name in needed)}
    imports = [
        name.name.split(".")[0]
        for node in ast.walk(ast.parse(block("python")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            node.names if isinstance(node, ast.Import) else [ast.alias(node.module)]
        )
    ]
    assert len(imports) >= 2
    assert set(imports) <= installed


def test_the_first_block_is_the_two_commands():
    first = re.search(r"^```\w*\n(.*?)^```", README, re.M | re.S)
    assert first is not None
    assert first[1].split("\n") == ["make demo", "make test", ""]


def test_links_are_absolute():
    # A page of a package index shows the README, too, and has no other file of it.
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert len(targets) > 0
    assert [t for t in targets if not t.startswith("https://")] == []


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_the_picture_is_there_and_says_what_it_shows(mode):
    path = f"docs/_static/comparison-{mode}.png"
    assert path in README
    assert (ROOT / path).read_bytes().startswith(b"\x89PNG")
    alternative = re.search(r'<img [^>]*alt="([^"]+)"', README)
    assert alternative is not None
    assert len(alternative[1]) > 40
