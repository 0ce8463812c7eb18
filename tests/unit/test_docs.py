"""The pages: what their sources show, and a built copy where there is one."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import probsl

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HTML = DOCS / "_build" / "html"
BUILT_FROM = [ROOT / "probsl" / "__init__.py", *(DOCS / "api").glob("*.rst")]
MADE = ("_build", "gallery", "generated")
PAGES = sorted(
    path
    for path in DOCS.rglob("*")
    if path.suffix in (".md", ".rst")
    and not set(MADE) & set(path.relative_to(DOCS).parts)
    and "_templates" not in path.parts
)
RECIPES = sorted(path.stem for path in (DOCS / "developer").glob("add-*.md"))
# What a browser would fetch by itself; a link that a reader follows is none of these.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|embed)\b[^>]*\b(?:src|srcset)=["']?(?:https?:)?//"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|icon|preconnect))"""
    r"""[^>]*\bhref=["']?(?:https?:)?//"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//|\burl\(["']?(?:https?:)?//"""
)


def of(page: Path) -> str:
    """Return how Sphinx calls a page."""
    return page.relative_to(DOCS).with_suffix("").as_posix()


def listed() -> set[str]:
    """Return the pages that some toctree lists."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.M | re.S)
        blocks += re.findall(r"^\.\. toctree::\n((?:[ \t]+.*\n|\n)*)", text, re.M)
        for line in "\n".join(blocks).splitlines():
            entry = line.strip()
            if entry and not entry.startswith(":"):
                found.add((Path(of(page)).parent / entry).as_posix())
    return found


@pytest.mark.parametrize("name", probsl.__all__)
def test_every_public_name_is_in_the_api_pages(name):
    # The entries of autosummary, each alone on its line.
    entries = (DOCS / "api" / "index.rst").read_text()
    assert re.search(rf"^   {name}$", entries, re.M), "add it to docs/api/index.rst"


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_every_page_is_in_a_toctree(page):
    assert of(page) == "index" or of(page) in listed()


def test_every_tutorial_is_executed():
    tutorials = [p for p in (DOCS / "tutorials").glob("*.md") if p.stem != "index"]
    assert len(tutorials) >= 2
    for page in tutorials:
        text = page.read_text()
        assert text.startswith("---\nfile_format: mystnb\n"), page
        assert "```{code-cell}" in text, page


def test_the_first_page_has_the_program_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    program = re.search(r"^```python\n(.*?)^```", readme, re.M | re.S)
    assert program is not None
    assert program[1] in (DOCS / "index.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_every_figure_that_a_page_computes_has_an_alternative_text(page):
    cells = re.findall(
        r"^```\{code-cell\} ipython3\n(.*?)^```", page.read_text(), re.M | re.S
    )
    figures = re.compile(r"plt\.subplots\(|^[^>]*\b(?:probsl|az)\.plot_\w+\(", re.M)
    for cell in cells:
        if figures.search(cell) and "remove-cell" not in cell:
            assert re.search(r'alt: "[^"]{30,}"', cell), cell


def notebook_downloads():
    """Return the extension that makes the notebooks."""
    path = DOCS / "notebook_downloads.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_notebook_needs_nothing_of_the_site():
    glued = {
        "data": {"application/papermill.record/text/plain": "'12%'"},
        "metadata": {"scrapbook": {"name": "share"}},
    }
    hidden = {"tags": ["remove-cell"]}
    text = [
        "{glue:text}`share`, see [](b.md#part) and\n",
        "[that](b.md), not [x](https://x.org)",
    ]
    executed = {
        "cells": [
            {"cell_type": "markdown", "metadata": {}, "source": text},
            {
                "cell_type": "code",
                "metadata": hidden,
                "source": "glue()",
                "outputs": [glued],
            },
            {"cell_type": "code", "metadata": {}, "source": "1 + 1", "outputs": [{}]},
        ]
    }
    made = notebook_downloads().as_download(executed, {"b.md": "Page B"}.get)
    words, code = made["cells"]
    assert words["source"] == '12%, see "Page B" and\nthat, not [x](https://x.org)'
    del executed["cells"][1]["outputs"]
    apart = notebook_downloads().as_download(executed, {"b.md": "Page B"}.get, [glued])
    assert apart["cells"][0] == words
    assert (code["source"], code["outputs"]) == ("1 + 1", [])


@pytest.mark.parametrize("page", RECIPES)
def test_a_template_is_code_that_passes_the_checks(page, tmp_path):
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("NOT CHECKED: the style of the templates, for there is no ruff")
    text = (DOCS / "developer" / f"{page}.md").read_text()
    template = re.search(
        r"^## The file$.*?^```\{code-cell\} ipython3\n(.*?)^```", text, re.M | re.S
    )
    assert template is not None
    path = tmp_path / "template.py"
    path.write_text(template[1])
    ruff = [sys.executable, "-m", "ruff"]
    configured = ["--no-cache", "--config", str(ROOT / "pyproject.toml"), str(path)]
    for command in (["check", "--ignore", "INP001"], ["format", "--check"]):
        ended = subprocess.run(
            [*ruff, *command, *configured], capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stdout


def test_the_tasks_of_a_first_week_take_fewer_than_15_lines_each():
    page = (DOCS / "how-to" / "first-week.md").read_text()
    tasks = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    assert len(tasks) == 10
    for task in tasks:
        cells = re.findall(r"```\{code-cell\} ipython3\n(.*?)```", task, re.DOTALL)
        lines = [line for cell in cells for line in cell.splitlines() if line]
        assert 1 <= len(lines) < 15, task.splitlines()[0]


def test_nothing_is_configured_to_come_from_the_network():
    strings = [
        node.value
        for node in ast.walk(ast.parse((DOCS / "conf.py").read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert [s for s in strings if re.search(r"https?://|intersphinx", s)] == []
    for path in (DOCS / "_static").glob("*.css"):
        assert not FETCHED.search(path.read_text()), path


@pytest.mark.parametrize(
    ("text", "fetched"),
    [
        ('<script src="https://example.org/a.js">', True),
        ('<script async src="//example.org/a.js">', True),
        ('<link rel="stylesheet" href="https://example.org/a.css">', True),
        ('<link href="https://example.org/a.css" rel="stylesheet">', True),
        ("@import url('https://example.org/a.css');", True),
        ('<script src="_static/a.js">', False),
        ('<link rel="stylesheet" href="_static/a.css">', False),
        ('<a href="https://example.org/">a link to follow</a>', False),
    ],
)
def test_what_counts_as_fetched(text, fetched):
    assert bool(FETCHED.search(text)) is fetched


@pytest.fixture
def built():
    inventory = HTML / "objects.inv"
    if not inventory.exists():
        pytest.skip("NOT CHECKED: the built pages, for there are none; make docs")
    newest = max(path.stat().st_mtime for path in BUILT_FROM)
    if inventory.stat().st_mtime < newest:
        pytest.skip("NOT CHECKED: the built pages, which are out of date; make docs")
    return HTML


def test_the_built_pages_fetch_nothing_from_the_network(built):
    fetching = {}
    for path in sorted(built.rglob("*.html")):
        found = FETCHED.search(path.read_text())
        if found:
            fetching[str(path.relative_to(built))] = found[0]
    assert fetching == {}


def test_the_built_pages_show_no_warning_and_no_path(built):
    unwanted = re.compile(rf"\S+\.py:\d+: \w*Warning.*|{re.escape(str(ROOT))}.*")
    shown = {}
    for path in sorted(built.rglob("*.html")):
        found = unwanted.search(path.read_text())
        if found:
            shown[str(path.relative_to(built))] = found[0]
    assert shown == {}


def test_every_public_name_has_a_built_page(built):
    # Four lines of header, and then one object per line: name, role, and where it is.
    raw = (built / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(raw).decode().splitlines()
    documented = {name for name, role, *_ in map(str.split, lines) if "py:" in role}
    assert {f"probsl.{name}" for name in probsl.__all__} - documented == set()


def test_every_tutorial_is_a_notebook_of_which_each_cell_compiles(built):
    tutorials = [p for p in (DOCS / "tutorials").glob("*.md") if p.stem != "index"]
    for page in (*tutorials, DOCS / "start.md"):
        name = of(page)
        link = f'href="{"../" * name.count("/")}notebooks/{name}.ipynb" download'
        assert link in (built / f"{name}.html").read_text()
        notebook = json.loads((built / "notebooks" / f"{name}.ipynb").read_text())
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                compile(cell["source"], name, "exec")
            else:
                assert "{glue" not in cell["source"]


# The logo and thumbnails stand next to the words that they would repeat.
DECORATION = re.compile(r"logo__image|_thumb\.png")


def test_every_picture_has_an_alternative_text(built):
    without = [
        (path.relative_to(built).as_posix(), tag)
        for path in sorted(built.rglob("*.html"))
        for tag in re.findall(r"<img\b[^>]*>", path.read_text())
        if not re.search(r"""alt=["'][^"']""", tag) and not DECORATION.search(tag)
    ]
    assert without == []


def test_no_table_is_cut(built):
    cut = [
        path.relative_to(built).as_posix()
        for path in sorted(built.rglob("*.html"))
        if re.search(r"<t[dh]>\.\.\.</t|\[\d+ rows x \d+ columns\]", path.read_text())
    ]
    assert cut == []


def test_the_colors_follow_the_system(built):
    assert 'data-default-mode="auto"' in (built / "index.html").read_text()
