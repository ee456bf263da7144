"""The command ``compare`` on tiny data: cells, files, and going on after an interruption."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, write_tiny_npz

from fge.cells import load_cells
from fge.compare_config import CompareConfig
from fge.compare_run import compare
from fge.data import load_dataset
from fge.errors import UserError
from fge.files import read_records
from fge.plan import Plan
from fge.predictions import PredictionFile

METHODS = ("fge", "swa", "sse")
OPTIONS: dict[str, Any] = {
    "methods": METHODS,
    "seeds": 2,
    "epochs": 4,
    "start_epoch": 0,
    "cycle_epochs": 2,
    "sse_cycles": 2,
    "batch_size": 32,
    "threads": 1,
    "jobs": 2,
    "channels_last": "off",
    "compile": "off",
    "amp": "off",
    "val_fraction": 0.25,
    "ood": ("noise",),
}


def options(data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {"data": str(data), "out": out, **OPTIONS, **changes}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_npz(tmp_path_factory.mktemp("data") / "tiny.npz")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compare(CompareConfig(**options(data, tmp_path_factory.mktemp("compare") / "out")))


def kept(folder: Path) -> dict[str, bytes]:
    """Return what a comparison promises to reproduce: no clock, no pictures."""
    volatile = {"timing.jsonl", "timing.csv", "report.html"}  # the page names its folder
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in volatile
        and path.suffix != ".png"
        and path.relative_to(folder).parts[0] not in ("logs", "locks")
    }


def command_line(values: dict[str, Any]) -> list[str]:
    words = [sys.executable, str(ROOT / "cli.py"), "compare"]
    for name, value in values.items():
        several = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *(str(one) for one in several)]
    return words


def test_each_method_has_a_row_with_its_cost(finished: Path) -> None:
    content = json.loads((finished / "compare.json").read_text())
    rows = {(row["name"], row["budget"]): row for row in content["methods"]}
    assert set(rows) == {*((name, 1) for name in ("single", *METHODS)), ("deep-ensemble", 2)}
    costs = {name: rows[name, 1] for name in ("single", *METHODS)}
    assert {name: row["members"] for name, row in costs.items()} == {
        "single": 1,
        "fge": 2,
        "swa": 1,
        "sse": 2,
    }
    assert {row["train_epochs"] for row in costs.values()} == {3, 4}
    assert costs["fge"]["train_epochs"] == 3  # the last minimum of cycles of 2 epochs
    assert rows["deep-ensemble", 2]["train_epochs"] == 8
    assert {row["images"] / row["train_epochs"] for row in rows.values()} == {72}


def test_a_cell_is_the_mean_of_the_stored_predictions(finished: Path, data: Path) -> None:
    labels = load_dataset(str(data), val_fraction=0.25).test.labels
    file = finished / "runs" / "sse-e4-s1" / "predictions" / "test.npz"
    predictions = PredictionFile(file, labels)
    mean = np.mean([predictions.probabilities(f"sse-000{i}").numpy() for i in (1, 2)], axis=0)
    (cell,) = (c for c in load_cells(finished / "cells") if (c.method, c.seed) == ("sse", 1))
    wrong = mean.argmax(axis=1) != labels.numpy()
    assert np.array_equal(cell.wrong, wrong)
    assert cell.figures["error"] == pytest.approx(100 * wrong.mean(), abs=1e-12)
    nll = -np.log(mean[np.arange(len(labels)), labels.numpy()]).mean()
    assert cell.figures["nll"] == pytest.approx(nll, rel=1e-12)
    assert {"ood_noise_entropy", "ood_noise_max_probability"} <= set(cell.figures)


def test_tables_and_page_show_methods_and_verdict(finished: Path) -> None:
    content = json.loads((finished / "compare.json").read_text())
    text = (finished / "compare.md").read_text()
    assert content["verdict"] in text
    assert "Methods at 1 B (4 epochs)" in text
    rows = list(csv.DictReader((finished / "compare.csv").read_text().splitlines()))
    assert len(rows) == 2 * (1 + len(METHODS)) + 2
    page = (finished / "report.html").read_text()
    assert all(method in page for method in METHODS)
    assert (finished / "figures" / "error_by_epochs.png").is_file()


def test_what_is_done_is_not_done_again(finished: Path, data: Path) -> None:
    before, timed = kept(finished), (finished / "timing.jsonl").read_text()
    compare(CompareConfig(**options(data, finished)))
    assert kept(finished) == before
    jobs = [r for r in read_records(finished / "timing.jsonl") if r["event"] == "job"]
    assert len(jobs) == timed.count('"event": "job"') == 4


def test_wall_times_are_those_of_runs_that_did_not_overlap(finished: Path) -> None:
    jobs = [r for r in read_records(finished / "timing.jsonl") if r["event"] == "job"]
    overlapped = {record["job"]: record["overlapped"] for record in jobs}
    rows = list(csv.DictReader((finished / "timing.csv").read_text().splitlines()))
    assert {(row["method"], row["seed"]) for row in rows} >= {("fge", "0"), ("sse", "1")}
    for row in rows:
        if row["method"] in ("single", "fge"):
            assert (row["seconds"] == "") == overlapped[f"fge-e4-s{row['seed']}"]


def test_other_data_in_the_same_folder_are_refused(finished: Path, tmp_path: Path) -> None:
    before = kept(finished)
    other = write_tiny_npz(tmp_path / "other.npz")
    with pytest.raises(UserError, match=r"cannot resume with data .*other\.npz: the run was begun"):
        compare(CompareConfig(**options(other, finished)))
    assert kept(finished) == before


def test_data_changed_under_the_same_name_are_refused(finished: Path, data: Path) -> None:
    arrays = data.read_bytes()
    try:
        write_tiny_npz(data, test_images=np.zeros((48, 8, 8), np.uint8))
        with pytest.raises(UserError, match=r"the images of .* are not those of the run"):
            compare(CompareConfig(**options(data, finished)))
    finally:
        data.write_bytes(arrays)


def test_another_model_in_the_same_folder_is_refused(finished: Path, data: Path) -> None:
    with pytest.raises(UserError, match="cannot resume with model preresnet20: the run was begun"):
        compare(CompareConfig(**options(data, finished, model="preresnet20")))


def test_a_run_of_another_model_among_the_runs_is_refused(finished: Path, data: Path) -> None:
    report = finished / "runs" / "sse-e4-s0" / "report.json"
    text = report.read_text()
    cell = finished / "cells" / "sse-b1-s0.json"
    record = cell.read_text()
    try:
        report.write_text(text.replace('"model": "convnet"', '"model": "vgg16"', 1))
        cell.unlink()
        with pytest.raises(UserError, match="sse-e4-s0 is of model vgg16, not convnet"):
            compare(CompareConfig(**options(data, finished)))
    finally:
        report.write_text(text)
        cell.write_text(record)


def test_a_job_that_fails_is_named_and_the_others_are_kept(data: Path, tmp_path: Path) -> None:
    values = options(data, tmp_path / "out", methods=("single",), lr=1e30, jobs=1)
    words = command_line({k: v for k, v in values.items() if k != "start_epoch"})
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: run single-e4-s0 failed: ")
    assert "learning rate" in done.stderr


def test_killed_at_any_moment_and_resumed_it_ends_the_same(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = command_line(options(data, out))
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, cwd=tmp_path) as process:
        time.sleep(random.SystemRandom().uniform(2, 9))
        process.kill()  # what it started goes on, and is waited for below
        process.wait()
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    ours, theirs = kept(out), kept(finished)
    assert set(ours) == set(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_ranks_share_the_runs_out(finished: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = command_line(options(data, out))
    ranks = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        environment = {**os.environ, **place, "LOCAL_WORLD_SIZE": "2"}
        ranks.append(
            subprocess.Popen(words, stdout=subprocess.DEVNULL, cwd=tmp_path, env=environment)
        )
    assert [process.wait() for process in ranks] == [0, 0]
    ours, theirs = kept(out), kept(finished)
    assert [name for name in theirs if ours.get(name) != theirs[name]] == []
    jobs = [r["job"] for r in read_records(out / "timing.jsonl") if r["event"] == "job"]
    assert len(jobs) == len(set(jobs)) == 4


def test_ranks_need_a_folder_that_they_share(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="compare needs --out, the folder that its ranks share"):
        compare(CompareConfig(**options(data, tmp_path) | {"out": None}))
    with pytest.raises(UserError, match="compare takes no --overwrite"):
        compare(CompareConfig(**options(data, tmp_path / "out", overwrite=True)))


def test_a_method_may_be_added_and_costs_its_own_runs_alone(finished: Path, data: Path) -> None:
    config = CompareConfig(**options(data, finished, methods=(*METHODS, "deep-ensemble")))
    plan = Plan(config, finished / "runs")
    measured = {cell.name for cell in load_cells(finished / "cells")}
    missing = [cell for cell in plan.cells if cell.name not in measured]
    names = {job.name for job in plan.jobs(missing)}
    assert names == {f"single-e2-s{seed}.{member}" for seed in range(2) for member in range(2)}
