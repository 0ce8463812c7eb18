"""How the site is built. `make docs` does it, and treats every warning as an error."""

import importlib.metadata
import os
import re
import sys
from pathlib import Path

from probsl.plots import STYLE

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the extensions beside this file

project = "probsl"
author = "The probsl developers"
project_copyright = author
release = version = importlib.metadata.version("probsl")

extensions = [
    "myst_nb",
    "notebook_downloads",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",
]
root_doc = "index"
exclude_patterns = [
    "_build",
    "**/.ipynb_checkpoints",
    # What sphinx-gallery offers for download is no page.
    "gallery/**/*.ipynb",
    "gallery/*.ipynb",
    "gallery/*.py",
    "gallery/*.zip",
]
nitpicky = True
nitpick_ignore_regex = [
    # Inventories of other projects would have to be fetched at every build.
    (r"py:.*", r"(?!probsl\.).*"),
    # The inner rooms have no pages.
    (r"py:.*", r"probsl\.(?!fit\.|problem\.)[a-z_]+\..*"),
]

# Pages that compute: never from a cache, which would not notice a change of probsl.
# Writers may say PROBSL_DOCS_EXECUTION=cache, or off.
nb_execution_mode = os.environ.get("PROBSL_DOCS_EXECUTION", "force")
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_merge_streams = True
nb_output_stderr = "warn"  # a page shows no warning, so it has to be silenced or mended
# Pyro asks tqdm for the bar of notebooks, which wants a package that no page needs.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
os.environ["TQDM_DISABLE"] = "1"  # how long a cell took here says nothing to a reader
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
os.environ.setdefault("OMP_NUM_THREADS", "1")

# One style for every figure, that of probsl's own plots: the kernels and the gallery
# read it from a file, where only double quotes keep a color's # from being a comment.
FIGURES = {**STYLE, "axes.titlelocation": "left", "svg.hashsalt": "probsl"}
MATPLOTLIBRC = HERE / "_build" / "matplotlibrc"
PROFILE = HERE / "_build" / "ipython" / "profile_default"
(PROFILE / "startup").mkdir(parents=True, exist_ok=True)
MATPLOTLIBRC.write_text(
    "".join(f"{name}: {value}\n".replace("'", '"') for name, value in FIGURES.items())
)
(PROFILE / "ipython_kernel_config.py").write_text(
    'c.InlineBackend.figure_formats = {"svg"}\n'
    "c.IPKernelApp.log_level = 40\n"  # not that it listens on a local port
    'c.InteractiveShell.xmode = "Minimal"\n'  # a refusal's sentence, not its traceback
)
# A table of a page has all of its columns.
(PROFILE / "startup" / "tables.py").write_text(
    'import pandas\npandas.set_option("display.max_columns", 40)\ndel pandas\n'
)
os.environ["MATPLOTLIBRC"] = str(MATPLOTLIBRC)
os.environ["IPYTHONDIR"] = str(PROFILE.parent)


def reset_figures(gallery_conf, file_name):  # noqa: ARG001
    """Begin every example of the gallery with the style of the site."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcdefaults()
    mpl.rc_file(MATPLOTLIBRC)


def scrape(block, block_vars, gallery_conf):
    """Save the figures of an example, described by the titles and labels of axes."""
    import matplotlib.pyplot as plt
    from sphinx_gallery.scrapers import matplotlib_scraper

    axes = [ax for number in plt.get_fignums() for ax in plt.figure(number).axes]
    described = [ax.get_label() for ax in axes if len(ax.get_label()) > 20]
    own = [ax.get_title(loc) for ax in axes for loc in ("left", "center")]
    text = "; ".join(dict.fromkeys(filter(None, [*own, *described])))
    rst = matplotlib_scraper(block, block_vars, gallery_conf)
    return re.sub(r":alt: .*", lambda _: f":alt: {text}", rst) if text else rst


# In the order of reading; others follow.
EXAMPLES = (
    "linear_regression",
    "logistic_regression",
    "poisson_regression",
    "robust_regression",
    "eight_schools",
    "neural_network",
)


def reading_order(file_name):
    """Return the place of an example in the gallery."""
    name = Path(file_name).stem
    return (*EXAMPLES, name).index(name)


sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r".*\.py",
    "backreferences_dir": "gallery/backreferences",
    "doc_module": ("probsl",),
    "reference_url": {"probsl": None},
    "abort_on_example_error": True,
    "only_warn_on_example_error": False,
    "within_subsection_order": reading_order,
    "run_stale_examples": nb_execution_mode == "force",
    "plot_gallery": nb_execution_mode != "off",
    "reset_modules": (reset_figures, "seaborn"),
    "image_scrapers": (scrape,),
    "image_srcset": ["2x"],
    "thumbnail_size": (720, 504),
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    # That page alone would load a script from the network.
    "write_computation_times": False,
}
suppress_warnings = ["config.cache"]  # a function in the configuration cannot be cached

autosummary_generate = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "__init__, __new__"}
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
default_role = "autolink"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

templates_path = ["_templates"]
html_theme = "pydata_sphinx_theme"
html_title = "probsl"
html_static_path = ["_static"]
html_css_files = ["probsl.css"]
html_logo = html_favicon = "_static/probsl.svg"
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {"index": [], "start": [], "changelog": []}
html_theme_options = {
    "logo": {"text": "probsl"},
    "show_prev_next": True,
    "header_links_before_dropdown": 8,
    "navbar_align": "left",
    "navbar_persistent": ["search-button"],
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_toc_level": 2,
}
html_context = {"default_mode": "auto"}  # that of the system
