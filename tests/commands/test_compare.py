"""The command ``compare`` on tiny data: cells, files, and going on after an interruption."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
from conftest import PLAIN, ROOT, write_tiny_npz
from promised import promised_anywhere

from fge.commands.compare import compare
from fge.compare import Plan, load_cells
from fge.config import CompareConfig
from fge.data import load_dataset
from fge.ensemble import PredictionFile
from fge.errors import DivergenceError, UserError
from fge.files import read_records

# Comparisons run their jobs in processes.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_jobs")]

METHODS = ("fge", "swa", "sse")
JOBS = 6
"""Of two seeds each: FGE with averages, FGE as published with the single network, and sse."""
OPTIONS: dict[str, Any] = {
    "methods": METHODS,
    "seeds": 2,
    "epochs": 4,
    "start_epoch": 0,
    "cycle_epochs": 2,
    "sse_cycles": 2,
    **PLAIN,
    "jobs": 2,
    "val_fraction": 0.25,
    "ood": ("noise",),
}


def options(data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {"data": str(data), "out": out, **OPTIONS, **changes}


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compare(CompareConfig(**options(data, tmp_path_factory.mktemp("compare") / "out")))


def test_errors_by_class_are_those_of_the_predictions(data: Path, finished: Path) -> None:
    true = load_dataset(str(data), val_fraction=0.25).test.labels.numpy()
    found = []
    for seed in (0, 1):
        (folder,) = (f for f in (finished / "runs").glob(f"*sse*-s{seed}") if f.is_dir())
        with np.load(folder / "predictions" / "test.npz") as stored:
            names = stored["members"].tolist()
            own = [stored["probabilities"][names.index(f"sse-000{k}")] for k in (1, 2)]
        said = np.mean(own, axis=0, dtype=float).argmax(axis=1)
        found.append([100 * np.mean(said[true == c] != c) for c in range(3)])
    classes = json.loads((finished / "compare.json").read_text())["classes"]
    line = next(line for line in classes["methods"] if line["name"] == "sse")
    assert line["errors"] == pytest.approx(np.mean(found, axis=0))
    assert line["balanced_error"] == pytest.approx(np.mean(found))
    text = (finished / "compare.md").read_text()
    assert "## Errors by class at 1 B (4 epochs)" in text
    assert "balanced %" not in text
    assert "Errors by class" in (finished / "report.html").read_text()


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
    first, *others = content["verdict"].split("\n\n")
    assert f"\n\n**{first}**\n\n<details>" in text
    assert all(paragraph in text for paragraph in others)
    assert "Methods at 1 B (4 epochs)" in text
    unused = [(u["method"], u["asked"], u["used"]) for u in content["unused_epochs"]]
    assert unused == [("fge", 4, 3), ("swa", 4, 3)]
    assert content["verdict"].count(" uses 3 of 4 epochs: the last minimum") == 2
    rows = list(csv.DictReader((finished / "compare.csv").read_text().splitlines()))
    assert len(rows) == 2 * (1 + len(METHODS)) + 1  # the deep ensemble of both seeds is one value
    page = (finished / "report.html").read_text()
    assert all(method in page for method in METHODS)
    assert (finished / "figures" / "error_by_epochs.png").is_file()


def test_what_is_done_is_not_done_again(finished: Path, data: Path) -> None:
    before, timed = promised_anywhere(finished), (finished / "timing.jsonl").read_text()
    compare(CompareConfig(**options(data, finished)))
    assert promised_anywhere(finished) == before
    jobs = [r for r in read_records(finished / "timing.jsonl") if r["event"] == "job"]
    assert len(jobs) == timed.count('"event": "job"') == JOBS


def test_wall_times_are_those_of_runs_that_did_not_overlap(finished: Path) -> None:
    jobs = [r for r in read_records(finished / "timing.jsonl") if r["event"] == "job"]
    overlapped = {record["job"]: record["overlapped"] for record in jobs}
    rows = list(csv.DictReader((finished / "timing.csv").read_text().splitlines()))
    assert {(row["method"], row["seed"]) for row in rows} >= {("fge", "0"), ("sse", "1")}
    for row in rows:
        runs = {"single": "fge", "swa": "fge", "fge": "fge-avg"}
        if run := runs.get(row["method"]):
            assert (row["seconds"] == "") == overlapped[f"{run}-e4-s{row['seed']}"]


def test_other_data_in_the_same_folder_are_refused(finished: Path, tmp_path: Path) -> None:
    before = promised_anywhere(finished)
    other = write_tiny_npz(tmp_path / "other.npz")
    message = r"cannot resume with data .*other\.npz: the run was started with "
    with pytest.raises(UserError, match=message):
        compare(CompareConfig(**options(other, finished)))
    assert promised_anywhere(finished) == before


def test_data_changed_under_the_same_name_are_refused(finished: Path, data: Path) -> None:
    arrays = data.read_bytes()
    try:
        write_tiny_npz(data, test_images=np.zeros((48, 8, 8), np.uint8))
        with pytest.raises(UserError, match=r"the images of .* are not those of the run"):
            compare(CompareConfig(**options(data, finished)))
    finally:
        data.write_bytes(arrays)


def test_another_model_in_the_same_folder_is_refused(finished: Path, data: Path) -> None:
    message = "cannot resume with model preresnet20: the run was started with convnet"
    with pytest.raises(UserError, match=message):
        compare(CompareConfig(**options(data, finished, model="preresnet20")))


def test_a_run_of_another_model_among_the_runs_is_refused(finished: Path, data: Path) -> None:
    report = finished / "runs" / "sse-e4-s0" / "report.json"
    text = report.read_text()
    cell = finished / "cells" / "sse-b1-s0.json"
    record = cell.read_text()
    for folder in (finished, finished / "runs" / "sse-e4-s0"):
        (folder / "manifest.json").unlink()
    try:
        report.write_text(text.replace('"model": "convnet"', '"model": "vgg16"', 1))
        cell.unlink()
        with pytest.raises(UserError, match="sse-e4-s0 has the model vgg16, not convnet"):
            compare(CompareConfig(**options(data, finished)))
    finally:
        report.write_text(text)
        cell.write_text(record)


@pytest.mark.slow
def test_a_job_that_fails_is_named_and_the_others_are_kept(data: Path, tmp_path: Path) -> None:
    """Here, the comparison and its job are new interpreters."""
    values = options(data, tmp_path / "out", methods=("single",), lr=1e30, jobs=1)
    words = command_line({k: v for k, v in values.items() if k != "start_epoch"})
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: run single-e4-s0 failed: ")
    assert "learning rate" in done.stderr


def processes_of(out: Path) -> list[int]:
    """Return a comparison and its jobs: the processes that have files of it open."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            files = (os.readlink(file) for file in (entry / "fd").iterdir())
            if entry.name.isdigit() and any(file.startswith(f"{out}/") for file in files):
                found.append(int(entry.name))
    return found


def kill(process: forked.Forked, out: Path) -> None:
    """Kill a comparison and its jobs."""
    process.kill()
    process.wait()
    for job in processes_of(out):
        with contextlib.suppress(OSError):
            os.kill(job, signal.SIGKILL)


def training(out: Path) -> int:
    """Return how many jobs have trained an epoch."""
    return sum(log.stat().st_size > 0 for log in out.glob("runs/*/log.jsonl"))


@pytest.mark.parametrize(
    "signals",
    [["SIGKILL"], ["SIGTERM"], ["SIGHUP"], ["SIGINT"], ["SIGINT", "SIGINT"]],
    ids=" ".join,
)
def test_jobs_end_with_the_comparison_however_it_ends(
    signals: list[str], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = command_line(options(data, out, epochs=100_000))
    with (tmp_path / "err").open("w") as err:
        process = forked.Forked(words, stdout=subprocess.DEVNULL, stderr=err, cwd=tmp_path)
    try:
        until = time.monotonic() + 120
        while training(out) < 2 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        assert len(processes_of(out)) == 3, (tmp_path / "err").read_text()
        for name in signals:
            process.send_signal(getattr(signal, name))
            time.sleep(0.3)
        process.wait(30)
        until = time.monotonic() + 10
        while (left := processes_of(out)) and time.monotonic() < until:
            time.sleep(0.1)
        assert left == []
        assert "Traceback" not in (tmp_path / "err").read_text()
        if signals[0] == "SIGINT":
            assert process.returncode == 130
    finally:
        kill(process, out)


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_it_ends_the_same(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    out, seed = tmp_path / "out", random.SystemRandom().randrange(2**32)
    print(f"seed of the moment: {seed}")
    words = command_line(options(data, out))
    options_of_process = {"cwd": tmp_path, "hash_seed": 1}
    with forked.Forked(words, stdout=subprocess.DEVNULL, **options_of_process) as process:
        time.sleep(random.Random(seed).uniform(0.2, 5))
        kill(process, out)
    done = forked.run(words, **options_of_process)
    assert done.returncode == 0, done.stderr
    ours, theirs = promised_anywhere(out), promised_anywhere(finished)
    assert set(ours) == set(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.mark.slow
def test_ranks_share_the_runs_out(finished: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = command_line(options(data, out))
    ranks = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        environment = {**os.environ, **place, "LOCAL_WORLD_SIZE": "2"}
        options_of_process = {"cwd": tmp_path, "env": environment}
        ranks.append(forked.Forked(words, stdout=subprocess.DEVNULL, **options_of_process))
    assert [process.wait() for process in ranks] == [0, 0]
    ours, theirs = promised_anywhere(out), promised_anywhere(finished)
    assert [name for name in theirs if ours.get(name) != theirs[name]] == []
    jobs = [r["job"] for r in read_records(out / "timing.jsonl") if r["event"] == "job"]
    assert len(jobs) == len(set(jobs)) == JOBS


OWN = """
from dataclasses import replace
from fge.train.methods import Method, single_stages, sse_stages
from fge.train.recipes import endpoint_recipe

def recipe(config):
    usual = endpoint_recipe(config)
    return replace(usual, lr=1e30) if config.seed == 1 else usual

mine = Method("other", "cosine cycles, weights averaged", sse_stages, combine="weights")
one = Method("one", "the average of one network", single_stages, combine="weights")
wild = Method("wild", "diverges for seed 1", single_stages, recipe=recipe)
"""


@pytest.fixture(scope="module")
def own_methods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_compared.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


@pytest.mark.usefixtures("own_methods")
@pytest.mark.slow
def test_every_method_from_runs_to_table(data: Path, tmp_path: Path) -> None:
    expected = {
        "single": (1, 4),
        "average": (1, 4),
        "fge-paper": (2, 3),
        "fge": (2, 3),
        "fge+refit": (3, 4),
        "swa": (1, 3),
        "fold": (1, 3),
        "csgld": (4, 4),
        "ema": (1, 4),
        "star": (2, 4),
        "split": (2, 4),
        "own_compared:mine": (1, 4),
        "own_compared:one": (1, 4),
        "curve-ensemble": (5, 4),
        "curve-ensemble-2B": (5, 10),
    }
    changes: dict[str, Any] = {"csgld_cycles": 2, "csgld_samples": 2, "star_branches": 2}
    changes |= {"ood": (), "methods": (*expected, "auto")}
    out = compare(CompareConfig(**options(data, tmp_path / "out", **changes)))
    content = json.loads((out / "compare.json").read_text())
    rows = {row["name"]: row for row in content["methods"] if row["budget"] == 1}
    auto = rows.pop("auto")
    assert auto["train_epochs"] <= 4  # it decides, and may end early
    found = {name: (row["members"], row["train_epochs"]) for name, row in rows.items()}
    assert found == expected
    pool = next(row for row in content["methods"] if row["name"] == "deep-ensemble-averaged")
    assert (pool["budget"], pool["members"], pool["train_epochs"]) == (2, 2, 8)
    assert all(row["seeds"] == [0, 1] for row in rows.values())
    text = (out / "compare.md").read_text()
    within, beyond = text.split("## Beyond the budget")
    assert [name for name in expected if f"\n| {name} |" not in within] == ["curve-ensemble-2B"]
    assert "| curve-ensemble-2B (at 1 B) |" in beyond
    one, single = (
        (rows[name]["error"], rows[name]["nll"]) for name in ("own_compared:one", "single")
    )
    assert one == single  # one network, trained alike and averaged with no other


@pytest.mark.usefixtures("own_methods")
@pytest.mark.slow
def test_a_run_that_diverges_is_named_and_the_table_is_of_the_others(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    config = CompareConfig(**options(data, out, methods=(*METHODS, "own_compared:wild")))
    lost = "own_compared%3Awild-e4-s1"
    for _ in range(2):  # once more, it diverges again
        with pytest.raises(DivergenceError, match=f"^run {lost} failed: wild: the loss is nan"):
            compare(config)
        content = json.loads((out / "compare.json").read_text())
        seeds = {row["name"]: row["seeds"] for row in content["methods"] if row["budget"] == 1}
        others = {name: [0, 1] for name in ("single", *METHODS)}
        assert seeds == {**others, "own_compared:wild": [0]}
        assert content["diverged"] == [lost]
        for name in ("compare.md", "report.md", "report.html"):
            assert (
                f"These runs diverged and are not in the tables: {lost}."
                in (out / name).read_text()
            )


def test_more_seeds_run_what_is_new_and_pool_anew(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    before = {cell.name: cell for cell in load_cells(out / "cells")}
    compare(CompareConfig(**options(data, out, seeds=3)))
    jobs = [r["job"] for r in read_records(out / "timing.jsonl") if r["event"] == "job"]
    assert sorted(jobs[JOBS:]) == ["fge-avg-e4-s2", "fge-e4-s2", "sse-e4-s2"]
    after = {cell.name: cell for cell in load_cells(out / "cells")}
    pool = after["deep-ensemble-b2-s1"]
    assert before[pool.name].parts == ("single-e4-s1", "single-e4-s0")
    assert pool.parts == ("single-e4-s1", "single-e4-s2")
    labels = load_dataset(str(data), val_fraction=0.25).test.labels
    files = [out / "runs" / f"fge-e4-s{seed}" / "predictions" / "test.npz" for seed in (1, 2)]
    probs = [PredictionFile(file, labels).probabilities("single-0001").numpy() for file in files]
    assert np.array_equal(pool.wrong, np.mean(probs, axis=0).argmax(axis=1) != labels.numpy())
    same = [name for name in before if name != pool.name]
    assert [after[name].figures for name in same] == [before[name].figures for name in same]


def test_ranks_need_a_folder_that_they_share(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="compare needs --out, a folder that all ranks use"):
        compare(CompareConfig(**options(data, tmp_path) | {"out": None}))
    with pytest.raises(UserError, match="compare takes no --overwrite; remove the folder first"):
        compare(CompareConfig(**options(data, tmp_path / "out", overwrite=True)))


def test_a_method_may_be_added_and_costs_its_own_runs_alone(finished: Path, data: Path) -> None:
    config = CompareConfig(**options(data, finished, methods=(*METHODS, "deep-ensemble")))
    plan = Plan(config, finished / "runs")
    measured = {cell.name for cell in load_cells(finished / "cells")}
    missing = [cell for cell in plan.cells if cell.name not in measured]
    names = {job.name for job in plan.jobs(missing)}
    assert names == {f"single-e2-s{seed}.{member}" for seed in range(2) for member in range(2)}


def test_views_are_added_to_finished_runs(data: Path, tmp_path: Path) -> None:
    methods = ("single", "fge")
    out = compare(CompareConfig(**options(data, tmp_path / "out", methods=methods)))
    before = promised_anywhere(out)
    viewed = (*methods, "single+tta", "fge+tta")
    compare(CompareConfig(**options(data, out, methods=viewed, tta=3)))
    after = promised_anywhere(out)
    trained = [name for name in before if name.endswith(("log.jsonl", ".safetensors", "test.npz"))]
    assert trained
    assert {name: after[name] for name in trained} == {name: before[name] for name in trained}
    content = json.loads((out / "compare.json").read_text())
    rows = {row["name"]: row for row in content["methods"] if row["budget"] == 1}
    assert list(rows) == ["single", "single+tta", "fge", "fge+tta"]
    passes = {name: (row["members"], row["forward_passes"]) for name, row in rows.items()}
    assert passes == {
        "single": (1, 1),
        "single+tta": (1, 3),
        "fge": (2, 2),
        "fge+tta": (2, 6),
    }
    assert rows["fge+tta"]["train_epochs"] == rows["fge"]["train_epochs"]
    labels = load_dataset(str(data), val_fraction=0.25).test.labels
    file = out / "runs" / "fge-avg-e4-s0" / "predictions" / "test-tta.npz"
    wrong = PredictionFile(file, labels).mean(["fge-0001", "fge-0002"]).argmax(dim=1) != labels
    (cell,) = (c for c in load_cells(out / "cells") if (c.method, c.seed) == ("fge+tta", 0))
    assert np.array_equal(cell.wrong, wrong.numpy())
