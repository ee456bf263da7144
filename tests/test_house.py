"""The rules of the house: packages that import one way and through their faces; small files."""

from __future__ import annotations

import ast
import graphlib
import importlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

GROUND = (
    *("errors", "disk", "locks", "memory", "manifest", "files", "arrays", "schemas"),
    *("seeds", "devices", "observer", "parallel"),
)
PACKAGES = (
    *("metrics", "config", "data", "networks", "tasks", "train", "ensemble", "curves", "landscape"),
    *("export", "checks", "integrations", "runs", "report", "compare", "commands"),
)
"""Each imports only the ground and what stands before it."""
ORDER = dict.fromkeys(GROUND, 0) | {name: k for k, name in enumerate(PACKAGES, start=1)}
SOURCES = sorted([*ROOT.glob("fge/**/*.py"), *ROOT.glob("benchmarks/*.py"), ROOT / "cli.py"])
LIBRARY = [path for path in SOURCES if path.is_relative_to(ROOT / "fge")]
TESTS = sorted(ROOT.glob("tests/**/*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 500, 50
PRINTS = (ROOT / "fge" / "report" / "console.py", ROOT / "fge" / "data" / "bundled")
"""What prints beside the commands; the bundled data are made by scripts."""


@dataclass
class Facts:
    """What the rules ask about a file.

    ``ours`` has module and name of each import from the package, those within functions too,
    ``others`` the modules of plain imports, ``calls`` the names that are called, and ``lengths``
    the lines of each function without its docstring.
    """

    ours: list[tuple[str, str]] = field(default_factory=list)
    others: set[str] = field(default_factory=set)
    calls: set[str] = field(default_factory=set)
    lengths: list[tuple[str, int]] = field(default_factory=list)


@cache
def facts(path: Path) -> Facts:
    """Read a file once for all rules."""
    found = Facts()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fge":
            found.ours += ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            found.others |= {alias.name for alias in node.names}
            found.ours += ((a.name, "") for a in node.names if a.name.split(".")[0] == "fge")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.calls.add(node.func.id)
        elif isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            doc = ast.get_docstring(node, clean=False)
            lines = node.end_lineno - node.lineno + 1 - (len(doc.splitlines()) if doc else 0)
            found.lengths.append((node.name, lines))
    return found


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str, name: str) -> str:
    """Return the package, or module of the ground, that an import is from; empty for the root."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else name if name in ORDER else ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    for name, lines in facts(path).lengths:
        assert lines <= MAX_FUNCTION_LINES, f"{name}: {lines} lines"


def test_packages_import_one_way_and_modules_in_no_circle() -> None:
    for path in LIBRARY:
        own = path.relative_to(ROOT / "fge").with_suffix("").parts[0]
        if own in ORDER:
            for module, name in facts(path).ours:
                if (module, name) == ("fge", "__version__"):
                    continue  # the version is known to all
                other = room(module, name)
                assert other == own or ORDER.get(other, 99) < max(ORDER[own], 1), (path, module)
    modules = {module_of(path) for path in LIBRARY}
    graph = {
        module_of(path): {m for pair in facts(path).ours for m in (pair[0], ".".join(pair))}
        & modules
        for path in LIBRARY
        if path.name != "__init__.py"
    }
    assert sum(len(targets) for targets in graph.values()) > 30
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("package", ["fge", *(f"fge.{name}" for name in PACKAGES)])
def test_faces_are_complete(package: str) -> None:
    face = importlib.import_module(package)
    assert face.__doc__
    assert len(face.__all__) == len(set(face.__all__)) > 0
    assert [name for name in face.__all__ if not hasattr(face, name)] == []


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_import_bypasses_a_face(path: Path) -> None:
    """Tests may take from a module what is not in the face, to test it; packages may not."""
    in_library = path in LIBRARY
    own = path.relative_to(ROOT).with_suffix("").parts[1] if in_library else ""
    for module, name in facts(path).ours:
        other = room(module, name)
        if other not in PACKAGES or other == own or path.name == "__init__.py":
            continue
        if module.count(".") > 1:
            known = importlib.import_module(f"fge.{other}").__all__
            assert not (in_library and path.parent != ROOT / "fge"), (module, name)
            assert name not in known, (module, name)


def test_only_commands_and_the_console_print_and_only_commands_parse() -> None:
    for path in LIBRARY:
        if path.is_relative_to(ROOT / "fge" / "commands"):
            continue
        prints = any(path.is_relative_to(place) for place in PRINTS)
        assert prints or "print" not in facts(path).calls, path
        assert prints or not {"tyro", "argparse"} & facts(path).others, path
