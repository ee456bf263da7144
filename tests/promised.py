"""What a run promises to leave the same: all but times and pictures, and their manifest entries."""

from __future__ import annotations

import json
from pathlib import Path


def is_promised(name: str) -> bool:
    """Return whether a file of a run is the same whenever the run is repeated."""
    return not name.endswith(("timing.jsonl", "timing.csv", ".png"))


def promised(folder: Path) -> dict[str, bytes]:
    """Return the promised files by name; of a manifest, the entries of promised files."""
    return {
        str(path.relative_to(folder)): manifest(path) if path.name == "manifest.json" else data
        for path in sorted(folder.rglob("*"))
        if path.is_file() and is_promised(path.name)
        for data in [path.read_bytes()]
    }


def promised_anywhere(folder: Path) -> dict[str, bytes]:
    """Return those of the promised files that are the same in another folder.

    Pages and logs of jobs name the folder, and a manifest has their checksums.
    """
    return {
        name: data
        for name, data in promised(folder).items()
        if not name.endswith(("report.html", "manifest.json"))
        and name.partition("/")[0] not in ("logs", "locks")
    }


def manifest(path: Path) -> bytes:
    """Return a manifest without its checksum and the entries of files that may differ."""
    content = json.loads(path.read_bytes())
    del content["sha256"]
    content["files"] = {n: e for n, e in content["files"].items() if is_promised(n)}
    return json.dumps(content, indent=1).encode()
