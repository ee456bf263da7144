"""The command ``doctor``: its table, its exit code, and that it writes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from curve_runs import run

from fge.checks import Finding, Findings

FACTORY = """
import torch
from torch import nn

class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)

def noisy(in_channels, num_classes, image_size):
    inputs = in_channels * image_size[0] * image_size[1]
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, num_classes), Noisy())
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "doctored.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_sound_model_passes_and_nothing_is_written(tiny_npz: Path, place: Path) -> None:
    before = sorted(place.rglob("*"))
    result = run(["doctor", "--data", str(tiny_npz), "--no-compile", "--threads", "1"])
    assert (result.code, result.err) == (0, "")
    first, *rows, last = result.out.splitlines()
    assert first == "checking convnet on 86 images of tiny"
    assert rows[0].split()[:3] == ["outputs", "ok", "32"]
    assert rows[2] == "  repeats             ok       3 steps end with the same bits"
    assert last == "12 checks, none failed"
    assert [path for path in sorted(place.rglob("*")) if "__pycache__" not in str(path)] == before


def test_ensembles_are_checked_with_the_output_of_the_task(place: Path) -> None:
    rows = "\n".join(f"{k % 7},{k % 2},{k % 3 % 2},{k / 3}" for k in range(64))
    (place / "t.csv").write_text(f"x,a,b,y\n{rows}\n")
    for task, targets, mean in (
        ("regression", ["y"], "predictions"),
        ("binary", ["a"], "predictions"),
        ("multilabel", ["a", "b"], "probabilities"),
    ):
        options = ["--data", "t.csv", "--task", task, "--no-compile", "--threads", "1"]
        result = run(["doctor", *options, "--target", *targets])
        assert (result.code, result.err) == (0, "")
        row = next(line for line in result.out.splitlines() if line.startswith("  ensembles"))
        assert row == f"  ensembles           ok       two members have the mean of their {mean}"


def test_a_failed_check_is_a_row_with_its_remedy_and_the_exit_code_2(
    tiny_npz: Path, place: Path
) -> None:
    del place
    result = run(["doctor", "--data", str(tiny_npz), "--model", "doctored:noisy", "--no-compile"])
    assert result.code == 2
    assert result.message == "1 of 12 checks failed: outputs"
    row = next(line for line in result.out.splitlines() if line.startswith("  outputs"))
    assert row == (
        "  outputs             failed   two passes in evaluation mode differ; switch randomness "
        "off in eval()"
    )


def test_other_names_are_refused_as_everywhere(tiny_npz: Path) -> None:
    result = run(["doctor", "--data", str(tiny_npz), "--model", "nowhere:build"])
    assert result.code == 2
    assert "nowhere" in result.message


def test_findings_count_what_failed() -> None:
    found = Findings((Finding("a", "ok", "well"), Finding("b", "failed", "not", "do this")))
    assert (found.ok, len(found.failed), str(found.failed[0])) == (
        False,
        1,
        "b: failed, not; do this",
    )
