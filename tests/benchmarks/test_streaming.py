"""The benchmark of streamed photographs, on small folders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_both_contenders_read_the_same_folders(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "benchmarks" / "streaming.py")]
    options = {
        "large": 200,
        "small": 200,
        "rounds": 1,
        "round-images": 48,
        "workers": 1,
        "batch": 16,
        "folder": tmp_path,
        "results": tmp_path / "results.json",
    }
    words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cases = json.loads((tmp_path / "results.json").read_text())["cases"]
    assert len(done.stdout.splitlines()) == 4
    assert {name: case["files"] for name, case in cases.items()} == {"large": 200, "small": 200}
    for case in cases.values():
        assert case["ratio"] == pytest.approx(
            case["ours"]["images_per_second"] / case["torchvision"]["images_per_second"]
        )
        assert min(*case["ours"]["rates"], *case["torchvision"]["rates"]) > 0
        assert case["memory_growth"] > 0
