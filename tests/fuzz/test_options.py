"""Random options: a command ends with a whole result, or with one line that says what is wrong."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY_TEST, write_tiny_npz
from curve_runs import Result, run
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fge.config import METHOD_NAMES
from fge.files import write_bytes

pytestmark = pytest.mark.slow

ENDS = {0, 2, 3}
"""Well; what the user can mend; divergence."""
ODD = st.sampled_from(["", " ", "x", "-1", "0", "1", "2", "3", "1e400", "nan", "0.5", "99999999"])
FIXED = ["--threads", "1", "--amp", "off", "--compile", "off", "--channels-last", "off"]
SMALL = st.integers(-1, 5).map(str)
RATE = st.sampled_from(["0", "1e-3", "0.05", "0.5", "50", "-1", "nan", "inf"])
PART = st.sampled_from(["0", "0.1", "0.5", "0.99", "1", "-0.1", "2"])
VALUES: dict[str, st.SearchStrategy[str]] = {
    "epochs": st.integers(0, 6).map(str),
    "start-epoch": SMALL,
    "cycle-epochs": SMALL,
    "batch-size": st.sampled_from(["1", "7", "32", "86", "87", "1000", "0"]),
    "train-size": st.sampled_from(["3", "12", "90", "96", "97", "1"]),
    "test-size": st.sampled_from(["3", "48", "49", "1"]),
    "val-fraction": PART,
    "average": PART,
    "final-factor": PART,
    "lr": RATE,
    "max-lr": RATE,
    "min-lr": RATE,
    "momentum": st.sampled_from(["0", "0.9", "1", "-0.5"]),
    "weight-decay": st.sampled_from(["0", "5e-4", "10", "-1"]),
    "crop-padding": st.sampled_from(["0", "2", "8", "9", "-1"]),
    "distill-epochs": SMALL,
    "tta": st.sampled_from(["1", "2", "3"]),
    "sharpness-every": SMALL,
    "seed": st.sampled_from(["0", "7", "-1", "18446744073709551616"]),
    "ood": st.sampled_from(["noise", "digits", "nowhere"]),
}
METHODS = st.sampled_from([*METHOD_NAMES, "singel"])
OF_TRAIN: dict[str, st.SearchStrategy[str]] = {
    "split": SMALL,
    "star-branches": SMALL,
    "star-trunk": PART,
    "sse-cycles": SMALL,
    "csgld-cycles": SMALL,
    "ema-decay": PART,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_npz(tmp_path_factory.mktemp("data") / "tiny.npz")


@pytest.fixture(autouse=True)
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fge.report.builder.save_figure", lambda _, path: write_bytes(path, b""))


def chosen(values: dict[str, st.SearchStrategy[str]]) -> st.SearchStrategy[dict[str, str]]:
    """Draw values for up to five options, one of them sometimes odd."""
    names = st.lists(st.sampled_from(sorted(values)), max_size=5, unique=True)
    return names.flatmap(lambda some: st.fixed_dictionaries({n: values[n] | ODD for n in some}))


def flags(options: dict[str, str]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def check_result(result: Result, out: Path) -> None:
    """Check that a command ended whole, or told in one line what is wrong."""
    assert result.code in ENDS, result
    assert "Traceback" not in result.out + result.err
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


def folder() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp())
    yield place / "run"
    shutil.rmtree(place)


@settings(max_examples=60)
@given(options=chosen(VALUES))
@example(options={"epochs": "4", "start-epoch": "2", "cycle-epochs": "2"})
@example(options={"lr": "50", "epochs": "2", "cycle-epochs": "2"})
def test_fge_ends_whole_or_says_what_is_wrong(data: Path, options: dict[str, str]) -> None:
    for out in folder():
        given_options = {"epochs": "4", "batch-size": "32", **options}
        check_result(
            run(["fge", "--data", str(data), "--out", str(out), *FIXED, *flags(given_options)]), out
        )


@settings(max_examples=60)
@given(method=METHODS, options=chosen(VALUES | OF_TRAIN))
def test_train_ends_whole_or_says_what_is_wrong(
    data: Path, method: str, options: dict[str, str]
) -> None:
    for out in folder():
        words = ["train", "--method", method, "--data", str(data), "--out", str(out), *FIXED]
        given_options = {"epochs": "4", "batch-size": "32", **options}
        check_result(run([*words, *flags(given_options)]), out)


@settings(max_examples=30)
@given(options=chosen(VALUES), more=chosen(VALUES))
def test_resuming_with_other_options_loses_nothing(
    data: Path, options: dict[str, str], more: dict[str, str]
) -> None:
    """A refused option leaves the finished run as it was."""
    for out in folder():
        words = ["fge", "--data", str(data), "--out", str(out), *FIXED]
        first = run([*words, *flags({"epochs": "3", "batch-size": "32", **options})])
        if first.code:
            return
        before: dict[str, Any] = {p.name: p.read_bytes() for p in (out / "snapshots").iterdir()}
        again = run(["fge", "--out", str(out), "--resume", *flags(more)])
        check_result(again, out)
        assert {p.name: p.read_bytes() for p in (out / "snapshots").iterdir()} == before
