"""Draw the picture of the README: ``python docs/readme_picture.py``, from the root."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.collections import PolyCollection

import probsl

ROOT = Path(__file__).parents[1]
# The colors of text, of the stripes behind every other row, and of the page.
MODES = {
    "light": ("#1f2328", "#eff1f4", "#ffffff"),
    "dark": ("#e6edf3", "#1c2129", "#0d1117"),
}


def program_of_the_readme():
    """Return the names that the program of the README defines."""
    text = (ROOT / "README.md").read_text()
    names = {}
    exec(re.search(r"^```python\n(.*?)^```", text, re.M | re.S)[1], names)
    return names


def draw(comparison, mode):
    """Draw the coefficients in the colors of one mode."""
    text, stripe, page = MODES[mode]
    inked = ("axes.edgecolor", "axes.labelcolor", "text.color")
    colors = dict.fromkeys((*inked, "xtick.color", "ytick.color"), text)
    style = {**probsl.plots.STYLE, **colors, "axes.facecolor": page}
    with plt.style.context(style):
        figure, ax = plt.subplots(figsize=(7.0, 2.5), facecolor=page)
        probsl.plot_forest(comparison, sites=["w"], ax=ax)
    shade = next(each for each in ax.collections if isinstance(each, PolyCollection))
    shade.set_color(stripe)
    path = ROOT / "docs" / "_static" / f"comparison-{mode}.png"
    figure.savefig(path, dpi=200, facecolor=page, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    comparison = program_of_the_readme()["comparison"]
    for mode in MODES:
        draw(comparison, mode)
