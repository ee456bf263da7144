"""The page of ``endurance.py``: its counts as tables, written from the raw results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fge.files import write_text
from fge.report import markdown_table

RESULTS = Path(__file__).parent / "results" / "endurance.json"
PAGE = Path(__file__).parents[1] / "docs" / "results" / "endurance.md"
MARK = "<!-- What follows is written by benchmarks/endurance.py. -->"
KINDS = ("lost", "silent", "traceback", "hang", "unclear", "touched")
_TITLES = {
    "kills": ("Interruptions", "runs of a command with one signal or more each; cases are signals"),
    "damage": ("Damaged files", "one damaged file a case"),
    "lines": ("Generated command lines", "one line a case"),
    "pairs": ("Two at a time", "one pair a case, with two ends"),
    "space": ("Full disks", "one size of the disk a case"),
}


def tables(content: dict[str, Any]) -> str:
    """Return the tables of the page, from the raw results."""
    parts = []
    for part, (title, what) in _TITLES.items():
        rows = content[part]
        cases = sum(row["cases"] for row in rows)
        faults = [finding for row in rows for finding in row["findings"]]
        of = f" of {content['all_cases']:,}" if part == "damage" else ""
        parts.append(f"## {title}\n\n{cases:,}{of} cases ({what}); {len(faults)} faults.")
        counted = ("cases", "same", "refused", *(["unread"] if part == "damage" else []))
        headings = ("command", "cases", "exit 0", *counted[2:], *KINDS)
        body = [(row["what"], *(f"{row[key]:,}" for key in counted), *_of(row)) for row in rows]
        parts.append(markdown_table(headings, body))
    environment = content["environment"]
    facts = [
        ("command", "`python benchmarks/endurance.py`"),
        ("limits", limits(content)),
        ("raw figures", f"`benchmarks/results/{RESULTS.name}`"),
        ("seeds", str(content["seed"])),
        (
            "hardware, versions",
            f"{environment['hardware']}, one thread; Python {environment['python']}, PyTorch "
            f"{environment['torch']}",
        ),
    ]
    rows_of = "\n".join(["| | |", "| :-- | :-- |", *(f"| {n} | {fact} |" for n, fact in facts)])
    return "\n\n".join([*parts, rows_of])


def limits(content: dict[str, Any]) -> str:
    """Return in words how much was asked for."""
    asked = content["limits"]
    damages = f"{asked['damages']:,}" if asked["damages"] else "all"
    words = f"{asked['kills']:,} signals, {damages} damaged files, {asked['commands']:,} lines"
    if (sittings := content.get("sittings", 1)) > 1:
        return f"{words}; in {sittings} sittings"
    minutes = asked["minutes"]
    return f"{words}; stopped after about {minutes:g} minutes of cases" if minutes else words


def _of(row: dict[str, Any]) -> list[str]:
    kinds = [finding["kind"] for finding in row["findings"]]
    return [str(kinds.count(kind)) for kind in KINDS]


def write_page(content: dict[str, Any], page: Path = PAGE) -> None:
    """Replace what stands below the mark on the page by the tables."""
    above, _, _ = page.read_text(encoding="utf-8").partition(MARK)
    write_text(page, f"{above}{MARK}\n\n{tables(content)}\n")
