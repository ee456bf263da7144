"""Hooks of the site: reference pages made from the code, examples, and formulas as MathML.

The reference has a page for the public names of ``fge``, one for each package of ``fge`` that has
an ``__all__`` (its face), one for each module of ``MODULES`` and ``WITHIN``, and one for the
command line. They are made when the site is built, so that a new name or face needs no new page.
"""

from __future__ import annotations

import contextlib
import html as entities
import importlib
import io
import os
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import fge
from fge import commands

MODULES = ("methods",)
"""Modules of ``fge`` that users import in addition to its packages."""
WITHIN = ("integrations.lightning", "integrations.transformers")
"""Modules of packages with a face of their own, which users import."""
GROUPS = {
    "In your own loop": ("FGE", "TriangularLR", "EndpointLR", "LinearTailLR"),
    "Snapshots and ensembles": ("SnapshotStore", "Ensemble", "Deployed", "Normalise"),
    "Averages of weights": (
        "fold",
        "Fold",
        "average_weights",
        "ExponentialAverage",
        "TailAverage",
        "refresh_batch_norm",
    ),
    "Curves": (
        "fit_curve",
        "evaluate_curve",
        "summarise_curve",
        "Curve",
        "Chain",
        "Bezier",
        "PolyChain",
        "OriginPath",
    ),
    "The loss surface": (
        "Plane",
        "PlaneGrid",
        "evaluate_plane",
        "evaluate_line",
        "top_eigenvalues",
        "trace",
        "spectral_density",
        "HessianOperator",
    ),
    "Statistics": ("paired_difference",),
}
"""The public names of ``fge`` in the order of the page; others follow under "More"."""
CONSTANTS = (str, int, float, tuple, dict, Path)
ROOT = Path(__file__).resolve().parent.parent.parent


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the reference pages where the navigation says ``Reference: reference/``."""
    for entry in config.nav or []:
        if isinstance(entry, dict) and entry.get("Reference") == "reference/":
            entry["Reference"] = [{title: path} for path, title, _ in pages()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference pages and the changelog."""
    for path, _, text in pages():
        files.append(File.generated(config, path, content=text))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "changelog.md", content=changelog))
    return files


def pages() -> Iterator[tuple[str, str, str]]:
    """Yield the path, title and text of each reference page."""
    yield "reference/index.md", "fge", public_page()
    for name in faces():
        module = importlib.import_module(f"fge.{name}")
        yield f"reference/{name}.md", f"fge.{name}", face_page(module)
    yield "reference/commands.md", "Command line", commands_page()


def faces() -> list[str]:
    """Return the packages of ``fge`` with an ``__all__``, and what ``MODULES`` names."""
    found = set()
    for module in pkgutil.iter_modules(fge.__path__):
        face = module.ispkg and hasattr(importlib.import_module(f"fge.{module.name}"), "__all__")
        if face or module.name in MODULES:
            found.add(module.name)
    return sorted({*found, *WITHIN})


def public_page() -> str:
    """Return the page of the public names of ``fge``, in groups."""
    public = [name for name in fge.__all__ if not name.startswith("__")]
    modules = [name for name in public if isinstance(getattr(fge, name), ModuleType)]
    names = [name for name in public if name not in modules]
    grouped = {name for group in GROUPS.values() for name in group}
    groups = {**GROUPS, "More": tuple(name for name in names if name not in grouped)}
    parts = [
        "# The library: `fge`",
        "These are the names of `import fge`. Each is loaded when it is first used, so the import "
        "is quick.",
    ]
    for title, group in groups.items():
        present = [name for name in group if name in names]
        if present:
            parts += [f"## {title}", *(f"::: fge.{name}" for name in present)]
    links = [f"[`fge.{name}`]({name}.md)" for name in modules]
    parts += ["## Modules", f"These have pages of their own: {', '.join(links)}."]
    return "\n\n".join(parts) + "\n"


def face_page(module: ModuleType) -> str:
    """Return the page of a package's face; names that ``fge`` has too are links."""
    summary, _, rest = (module.__doc__ or "").strip().partition("\n")
    parts = [f"# `{module.__name__}`", summary, rest.strip()]
    names = getattr(module, "__all__", None)
    if names is None:
        options = "{heading_level: 2, show_root_heading: false, show_root_toc_entry: false}"
        return f"{parts[0]}\n\n::: {module.__name__}\n    options: {options}\n"
    # Constants are for other packages; a reader of the reference looks for what is called.
    names = [name for name in names if not isinstance(getattr(module, name), CONSTANTS)]
    shared = [name for name in names if name in fge.__all__]
    if shared:
        links = ", ".join(f"[`{name}`][fge.{name}]" for name in shared)
        parts.append(f"Also names of `fge`, described there: {links}.")
    parts += [f"::: {module.__name__}.{name}" for name in names if name not in shared]
    return "\n\n".join(part for part in parts if part) + "\n"


def commands_page() -> str:
    """Return the page of the commands: the help text of each."""
    parts = [
        "# The command line",
        "`python cli.py COMMAND`, `python -m fge COMMAND` and the installed `fge COMMAND` are the "
        "same. Exit codes: 0; 2 for an error that you can correct (one line, no traceback); 3 for "
        "divergence; 130 for Ctrl-C.",
    ]
    for command in commands.COMMANDS:
        parts += [f"## `{command}`", f"```text\n{help_of(command)}\n```"]
    return "\n\n".join(parts) + "\n"


def help_of(command: str) -> str:
    """Return the help text of a command, without the box that is drawn around it."""
    output = io.StringIO()
    os.environ["COLUMNS"] = "88"
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        commands.main([command, "--help"])
    text = re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue())
    lines = [line.strip("│╭╮╰╯─").rstrip() for line in text.splitlines()]
    return "\n".join(lines).strip()


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace a line ``# examples/NAME.py`` of a block by the file."""

    def text(found: re.Match[str]) -> str:
        return (ROOT / found[1]).read_text(encoding="utf-8").rstrip()

    return re.sub(r"(?m)^# (examples/\w+\.py)$", text, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Replace formulas, as ``pymdownx.arithmatex`` leaves them, by MathML: no script is needed."""

    def formula(match: re.Match[str]) -> str:
        display = "block" if match["tag"] == "div" else "inline"
        return convert(entities.unescape(match["tex"]).strip(), display=display)

    pattern = r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>'
    return re.sub(pattern, formula, html, flags=re.DOTALL)
