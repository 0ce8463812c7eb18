"""A Sphinx extension that offers pages as Jupyter notebooks.

The notebooks have no outputs. What only this site understands is replaced: links to
other pages by their titles, and numbers that a page computed for its text by their
values. Cells that a page does not show are left out.
"""

import json
import re
from pathlib import Path

# They are read from beginning to end, and tried.
PAGES = re.compile(r"start|tutorials/(?!index$).+")
FOLDER = "notebooks"
CELL = {"code": {"execution_count": None, "outputs": []}, "markdown": {}}
REFERENCE = re.compile(r"\[([^\]]*)\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
VALUE = re.compile(r"\{glue:text\}`([^`]+)`")


def source(cell):
    """Return the text of a cell, which is a text or a list of lines."""
    return (
        cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
    )


def computed(outputs):
    """Return the values that outputs hold for the text of a page, by name."""
    values = {}
    for output in outputs:
        name = output.get("metadata", {}).get("scrapbook", {}).get("name")
        if name is not None:
            (text,) = (v for k, v in output["data"].items() if "text/plain" in k)
            values[name] = "".join(text).strip("'\"")
    return values


def as_download(notebook, title_of, apart=()):
    """Return a notebook to download.

    Parameters
    ----------
    notebook
        An executed notebook, as its JSON.
    title_of
        From the target of a link to the title of that page.
    apart
        Outputs with values for the text that are not in the notebook.
    """
    values = computed(apart)
    for cell in notebook["cells"]:
        values |= computed(cell.get("outputs", []))

    def in_words(text):
        text = VALUE.sub(lambda found: values[found[1]], text)
        return REFERENCE.sub(lambda link: link[1] or f'"{title_of(link[2])}"', text)

    cells = []
    for cell in notebook["cells"]:
        if {"remove-cell", "remove-input"} & set(cell["metadata"].get("tags", [])):
            continue
        kind, text = cell["cell_type"], source(cell)
        text = in_words(text) if kind == "markdown" else text
        made = {"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}}
        cells.append({**made, "source": text, **CELL[kind]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def add_link(app, page, sources):
    """Put a link below the heading of a page that is a notebook."""
    if not PAGES.fullmatch(page) or app.builder.format != "html":
        return
    target = f"{'../' * page.count('/')}{FOLDER}/{page}.ipynb"
    link = (
        f'<a class="notebook-download" href="{target}" download>'
        "Download this page as a notebook</a>"
    )
    sources[0] = re.sub(r"^(# .+)$", rf"\1\n\n{link}", sources[0], count=1, flags=re.M)


def write_notebooks(app, exception):
    """Write the notebooks next to the pages, once all have been executed."""
    if exception is not None or app.builder.format != "html":
        return
    titles = app.env.titles
    for page in filter(PAGES.fullmatch, titles):
        here = Path(page).parent

        def title_of(target, here=here):
            name = (Path("/") / here / target).resolve().relative_to("/")
            return titles[name.with_suffix("").as_posix()].astext()

        executed = Path(app.outdir).parent / "jupyter_execute" / f"{page}.ipynb"
        path = Path(app.outdir) / FOLDER / f"{page}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        # MyST-NB may take the values for the text out of the notebook.
        glue = executed.with_suffix(".glue.json")
        apart = json.loads(glue.read_text()).values() if glue.exists() else ()
        made = as_download(json.loads(executed.read_text()), title_of, apart)
        path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")


def setup(app):
    """Register the extension."""
    app.connect("source-read", add_link)
    app.connect("build-finished", write_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
