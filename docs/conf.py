"""How Sphinx makes the documentation: `make docs`, no network needed."""

import memvit

project = "memvit"
author = "the memvit authors"
copyright = "the memvit authors; Apache License 2.0"
version = release = memvit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "results"]
html_theme = "furo"
html_title = "memvit"

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "dollarmath"]

default_role = "literal"  # docstrings write `names` as Markdown does
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
suppress_warnings = ["ref.python"]  # memvit.MeMViT is memvit.models.memvit.MeMViT
suppress_warnings += [
    "misc.highlighting_failure",  # Pygments knows no CSV
    "myst.header",  # tables that the benchmarks write bring headings of their own level
]


def mark_examples(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings show code by indenting it: makes blocks of code of it, and protects `*` in summaries."""
    marked: list[str] = []
    inside = False
    for before, line in zip(["", *lines], lines, strict=False):
        starts = line.startswith("    ") and (not before.strip()) and bool(marked) and not _is_field(marked)
        if starts and not inside:
            marked += [".. code-block:: python", ""]
            inside = True
        elif line.strip() and not line.startswith(" "):
            inside = False
        marked.append(line)
    lines[:] = [line.replace('"*', '"\\*') if not line.startswith(" ") else line for line in marked]


def _is_field(lines: list[str]) -> bool:
    """Whether what was written last belongs to a field list or directive."""
    written = next((line for line in reversed(lines) if line.strip()), "")
    return written.startswith((":", "..", " "))


def setup(app: object) -> None:
    """Connects the above, after Napoleon."""
    app.connect("autodoc-process-docstring", mark_examples, priority=600)  # type: ignore[attr-defined]
