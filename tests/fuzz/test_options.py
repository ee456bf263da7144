"""Random options: a command ends with a whole result, or with one line that says what is wrong."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY_TEST
from curve_runs import Result, run
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from fge.config import METHOD_NAMES
from fge.files import write_bytes

pytestmark = pytest.mark.slow

ENDS = {0, 2, 3}
"""Well; what the user can mend; divergence."""
ODD = ("", " ", "x", "-1", "0", "1", "87", "1e400", "nan", "inf", "0.5", "99999999", "1e-300")
FIXED = ["--threads", "1", "--amp", "off", "--compile", "off", "--channels-last", "off"]
VALUES: dict[str, tuple[str, ...]] = {
    "epochs": ("1", "2", "3", "5", "6"),
    "start-epoch": ("0", "1", "2"),
    "cycle-epochs": ("2", "4"),
    "batch-size": ("1", "7", "32", "86"),
    "train-size": ("24", "90", "96"),
    "test-size": ("3", "48"),
    "val-fraction": ("0", "0.1", "0.5"),
    "average": ("0", "0.1", "1"),
    "final-factor": ("0", "0.5", "1"),
    "lr": ("1e-3", "0.05", "50"),
    "max-lr": ("1e-3", "0.05", "50"),
    "min-lr": ("0", "1e-3", "0.05"),
    "momentum": ("0", "0.9"),
    "weight-decay": ("0", "10"),
    "crop-padding": ("0", "2", "8"),
    "distill-epochs": ("0", "1", "3"),
    "tta": ("2", "3"),
    "sharpness-every": ("0", "2"),
    "seed": ("0", "7", "4294967296"),
    "ood": ("noise", "digits", "nowhere"),
}
OF_TRAIN: dict[str, tuple[str, ...]] = {
    "split": ("1", "2", "3"),
    "star-branches": ("1", "2"),
    "star-trunk": ("0", "0.5", "0.9"),
    "sse-cycles": ("1", "2"),
    "csgld-cycles": ("1", "2"),
    "ema-decay": ("0", "0.9"),
}
METHODS = (*METHOD_NAMES, "singel")


@pytest.fixture(autouse=True)
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fge.report.builder.save_figure", lambda _, path: write_bytes(path, b""))


@st.composite
def chosen(draw: st.DrawFn, values: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Draw sound values for up to five options, one of them replaced now and then."""
    names = draw(st.lists(st.sampled_from(sorted(values)), max_size=5, unique=True))
    options = {name: draw(st.sampled_from(values[name])) for name in names}
    if names and draw(st.integers(0, 3)) == 0:
        options[draw(st.sampled_from(names))] = draw(st.sampled_from(ODD))
    return options


def flags(options: dict[str, str]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def check_result(result: Result, out: Path) -> None:
    """Check that a command ended whole, or told in one line what is wrong."""
    assert result.code in ENDS, result
    assert "Traceback" not in result.out + result.err
    event(f"exit code {result.code}")
    if result.code:
        assert re.fullmatch(r"error: [^\n]+\n", result.err), result.err
        return
    assert result.err == ""
    content = json.loads((out / "report.json").read_text())
    for method in content["methods"]:
        assert 0 <= method["error"] <= 100
        assert np.isfinite(method["nll"])
        assert method["train_epochs"] >= 0
    with np.load(out / "predictions" / "test.npz") as stored:
        probs = stored["probabilities"]
        assert probs.shape[1] <= TINY_TEST
        np.testing.assert_allclose(probs.sum(-1), 1, rtol=0, atol=1e-5)
    assert [path for path in out.rglob("*") if path.name.endswith(".tmp")] == []


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Give a run folder that is not there yet, and remove it."""
    with tempfile.TemporaryDirectory() as place:
        yield Path(place) / "run"


@settings(max_examples=40)
@given(options=chosen(VALUES))
@example(options={"epochs": "4", "start-epoch": "2", "cycle-epochs": "2"})
@example(options={"lr": "50", "epochs": "2", "cycle-epochs": "2"})
def test_fge_ends_whole_or_says_what_is_wrong(data: Path, options: dict[str, str]) -> None:
    with folder() as out:
        given_options = {"epochs": "4", "batch-size": "32", **options}
        check_result(
            run(["fge", "--data", str(data), "--out", str(out), *FIXED, *flags(given_options)]), out
        )


@settings(max_examples=40)
@given(method=st.sampled_from(METHODS), options=chosen(VALUES | OF_TRAIN))
def test_train_ends_whole_or_says_what_is_wrong(
    data: Path, method: str, options: dict[str, str]
) -> None:
    with folder() as out:
        words = ["train", "--method", method, "--data", str(data), "--out", str(out), *FIXED]
        given_options = {"epochs": "4", "batch-size": "32", **options}
        check_result(run([*words, *flags(given_options)]), out)


@settings(max_examples=20)
@given(options=chosen(VALUES), more=chosen(VALUES))
def test_resuming_with_other_options_loses_nothing(
    data: Path, options: dict[str, str], more: dict[str, str]
) -> None:
    """A refused option leaves the finished run as it was."""
    with folder() as out:
        words = ["fge", "--data", str(data), "--out", str(out), *FIXED]
        first = run([*words, *flags({"epochs": "3", "batch-size": "32", **options})])
        if first.code:
            return
        before: dict[str, Any] = {p.name: p.read_bytes() for p in (out / "snapshots").iterdir()}
        again = run(["fge", "--out", str(out), "--resume", *flags(more)])
        check_result(again, out)
        assert {p.name: p.read_bytes() for p in (out / "snapshots").iterdir()} == before
