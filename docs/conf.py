"""How Sphinx makes the documentation: `make docs`, no network needed."""

import dataclasses
import re
from importlib.util import find_spec

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

smartquotes_action = "D"  # dashes; quotes stay, as "mask" is a value

default_role = "literal"  # docstrings write `names` as Markdown does
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_mock_imports = [name for name in ("fastapi", "prometheus_client", "uvicorn") if find_spec(name) is None]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
suppress_warnings = ["ref.python"]  # memvit.MeMViT is memvit.models.memvit.MeMViT
suppress_warnings += [
    "misc.highlighting_failure",  # Pygments knows no CSV
]

# Every name in a signature or text is one of the reference's, but for those of others, whose references are not at hand, ...
nitpicky = True
OTHERS = "av|collections|fastapi|huggingface_hub|lightning|np|numpy|os|pandas|pathlib|torch|torchmetrics"
nitpick_ignore_regex = [(r"py:.*", rf"({OTHERS})\..*"), ("py:class", "Path|Tensor")]
# ... for those that are behind an interface, ...
nitpick_ignore_regex += [
    ("py:class", rf"(memvit\..*\.)?{name}")
    for name in (
        "Evaluation",
        "GroupScores",
        "KeyframeDetections",
        "NumberedImages",
        "ReadyClip",
        "TrainingBatches",
        "View",
    )
]
# ... and for names of types and attributes, which Sphinx does not tell from classes or has no entry for.
nitpick_ignore_regex += [
    (r"py:(class|obj)", r"(memvit\..*\.)?(Boxes|Classes|Kind|Progress|Recompute|Tracker|[A-Z])"),
    (r"py:(attr|data)", "dropped_frames|pending|warning|TOLERANCE_S"),
]


def shield_colons(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon for a type, in the first line of properties and of returned values."""
    opens = what in ("property", "attribute", "data")
    for number, line in enumerate(lines):
        if opens and line.strip():
            colon = next((found for found in re.finditer(r"``.*?``|`.*?`|: ", line) if found[0] == ": "), None)
            lines[number] = line if colon is None else f"{line[: colon.start()]} – {line[colon.end() :]}"
            opens = False
        opens = opens or line.strip() in ("Returns:", "Yields:")


def split_names(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """`height, width: pixels` says of both what it says; Sphinx would take the first for the type of the second."""
    split: list[str] = []
    at = 0
    while at < len(lines):
        end = at + 1
        while end < len(lines) and (lines[end].startswith(" ") or not lines[end].strip()):
            end += 1
        field = re.match(r":(param|ivar) ([^:]*, [^:]*):", lines[at])
        if field is None:
            split.append(lines[at])
            at += 1
            continue
        for one in field[2].split(", "):
            split += [f":{field[1]} {one}:{lines[at][field.end() :]}", *lines[at + 1 : end]]
        at = end
    lines[:] = split


def join_fields(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Attributes of a dataclass or named tuple that it is made with are its parameters; types come from annotations."""
    if what != "class":
        return
    given = {field.name for field in dataclasses.fields(obj) if field.init} if dataclasses.is_dataclass(obj) else set()
    given |= set(getattr(obj, "_fields", ()))
    lines[:] = [line for line in lines if not any(line.startswith(f":vartype {field}:") for field in given)]
    for number, line in enumerate(lines):
        field = re.match(r":ivar (\w+):", line)
        if field is not None and field[1] in given:
            lines[number] = f":param {line.removeprefix(':ivar ')}"


def skip_fields(app: object, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leaves out the fields of named tuples, of which Python itself says nothing but their number."""
    return True if type(obj).__name__ == "_tuplegetter" else None


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
    """Connects the above, before Napoleon (500) and after it."""
    connect = app.connect  # type: ignore[attr-defined]
    for function, priority in ((shield_colons, 400), (mark_examples, 600), (split_names, 601), (join_fields, 602)):
        connect("autodoc-process-docstring", function, priority=priority)
    connect("autodoc-skip-member", skip_fields)
