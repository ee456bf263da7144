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


def manifest(path: Path) -> bytes:
    """Return a manifest without its checksum and the entries of files that may differ."""
    content = json.loads(path.read_bytes())
    del content["sha256"]
    content["files"] = {n: e for n, e in content["files"].items() if is_promised(n)}
    return json.dumps(content, indent=1).encode()
