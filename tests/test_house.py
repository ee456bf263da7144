"""The rules of the house: small files and functions, imports one way, a library that is silent."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest
from conftest import ROOT

SOURCES = sorted([*ROOT.glob("fge/**/*.py"), *ROOT.glob("benchmarks/*.py"), ROOT / "cli.py"])
MAX_FILE_LINES, MAX_FUNCTION_LINES = 500, 50


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            doc = ast.get_docstring(node, clean=False)
            lines = node.end_lineno - node.lineno + 1 - (len(doc.splitlines()) if doc else 0)
            assert lines <= MAX_FUNCTION_LINES, f"{node.name}: {lines} lines"


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fge"):
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_have_no_cycle() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in SOURCES
        if path.is_relative_to(ROOT / "fge") and path.name != "__init__.py"
    }
    graph = {name: imported_modules(path) & set(modules) for name, path in modules.items()}
    assert sum(len(targets) for targets in graph.values()) > 30
    list(graphlib.TopologicalSorter(graph).static_order())


def test_only_the_command_line_parses_and_prints() -> None:
    for path in SOURCES:
        if not path.is_relative_to(ROOT / "fge") or path.parent.name in ("bundled", "commands"):
            continue
        calls = {
            node.func.id
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "print" not in calls, path
        assert not {"tyro", "argparse"} & {
            alias.name
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Import)
            for alias in node.names
        }, path
