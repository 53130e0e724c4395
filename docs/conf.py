"""Builds the site: `sphinx-build -W docs build/site`, after `pip install '.[docs]'`.

Notebooks are run when it is built. The results' pages are copied into it from `results/`.
"""

import shutil
from pathlib import Path

from interflow_jax.version import __version__

REPOSITORY = "https://github.com/interflow-jax/interflow_jax"  # for whoever publishes it
HERE = Path(__file__).parent

project = "interflow_jax"
author = copyright = "the interflow_jax authors"
release = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = "interflow_jax"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_use_index = False  # the reference is one page, and there is the search
html_domain_indices = False
smartquotes = False  # which would write --flag with one dash
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}
exclude_patterns = ["notebooks/runs", "package.md"]  # the latter is for an index of packages
copybutton_exclude = ".linenos, .gp"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / "build" / "notebooks")
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures have them
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True

# Pages and pictures outside this folder, at the places from which its pages link to them.
for name in ("results",):
    shutil.rmtree(HERE / name, ignore_errors=True)
    shutil.copytree(
        HERE.parent / name,
        HERE / name,
        ignore=shutil.ignore_patterns("*.jsonl", "runs", "*.lock", "gradients-*"),
    )


def _links(app, docname: str, source: list[str]) -> None:
    """On the site, what stands beside docs/ in the repository stands in it."""
    if docname.startswith("notebooks/"):
        source[0] = source[0].replace("](../../results/", "](../results/")
        return
    source[0] = source[0].replace("](../results/", "](results/")
    source[0] = source[0].replace("](../docs/", "](../")
    source[0] = source[0].replace("](../onednn/README.md", f"]({REPOSITORY}/tree/main/onednn")


def _plain(app, what: str, name: str, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text: a star in them is a star."""
    lines[:] = [line.replace("*", r"\*") for line in lines]


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _links)
    app.connect("autodoc-process-docstring", _plain, priority=100)
