"""What the files of a run are called: which belong to it, and which follow from the others."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fge.disk import kind_of

STREAMS = ("logs/*", "locks/*", "tensorboard/events.out.tfevents.*")
"""Files of a run that the manifest does not compare: logs of jobs, their locks, TensorBoard's."""
PAGES = ("report.json", "report.md", "report.html", "page.json")
"""Files of a page of results."""
TIMES = "timing.jsonl"
"""The file of times, which hold no results."""
_PICTURE = r"figures/[^/]+\.(png|svg|pdf)"
_PAGES = r"report\.(json|md|html)|page\.json|compare\.(json|csv|md)|timing\.csv"
_PREDICTIONS = r"predictions/(test|test-tta|ood-[^/]+)\.npz"
_DERIVED = re.compile(f"{_PICTURE}|{_PAGES}|{_PREDICTIONS}")
_STAGES = r"log\.jsonl|timing\.jsonl|state/[^/]+\.(safetensors|jsonl)|predictions/val\.npz"
_SNAPSHOTS = r"[a-z]+/(\d{4,}\.safetensors|index\.json)"
_CURVES = r"curves/[^/]+/[a-z-]+\.(safetensors|jsonl)"
_REST = (
    r"config\.json|(swa|folded)\.safetensors|(plane|line)\.npz|predictions\.(csv|npz)"
    r"|cells/[^/]+\.(json|npz)"
)
_PART = f"(networks/[^/]+/|distilled/)?({_STAGES}|{_SNAPSHOTS})"
_EXPORTED = re.compile(r"(.*/)?[^/]+(\.onnx|\.pt2|_(onnx|pt2)_example\.py)")
_KNOWN = re.compile(f"{_DERIVED.pattern}|{_PART}|{_CURVES}|{_REST}")


def is_derived(name: str) -> bool:
    """Return whether resuming makes a file again from the others.

    >>> is_derived("figures/training.png"), is_derived("snapshots/0001.safetensors")
    (True, False)
    """
    return _DERIVED.fullmatch(name) is not None


def is_exported(name: str) -> bool:
    """Return whether ``export`` wrote a file of a run.

    >>> is_exported("ensemble.onnx"), is_exported("ensemble_onnx_example.py"), is_exported("swa.pt")
    (True, True, False)
    """
    return _EXPORTED.fullmatch(name) is not None


def files_of_old_run(out: Path) -> list[str]:
    """Return the names of the files of a run from before there were manifests, through no link."""
    names = []
    for folder, folders, files in os.walk(out):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(files):
            path = Path(folder, file)
            name = path.relative_to(out).as_posix()
            if _KNOWN.fullmatch(name) and kind_of(path) == "":
                names.append(name)
    return names
