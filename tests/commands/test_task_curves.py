"""Curves, planes, refits and baselines of labels and numbers, through the commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from curve_runs import assert_same, done, flags, report, run
from numpy.typing import NDArray
from task_runs import NAMES, write_tables

from fge import metrics
from fge.commands import pairs
from fge.commands.loading import load_data
from fge.config import CurveEnsembleConfig, suited
from fge.curves import Curve
from fge.data import EvalBatches, Normaliser
from fge.ensemble import PredictionFile
from fge.files import read_records
from fge.networks import build_model, predict_outputs, refresh_batch_norm, write_parameters
from fge.tasks import Regression, task_of

pytestmark = pytest.mark.slow  # whole runs

PAIR = "average-1--average-2"
TASKS = ("multilabel", "regression")
Array = NDArray[np.float64]
Made = dict[str, Path]


def options(tables: Path, task: str, out: Path, **more: Any) -> dict[str, Any]:
    given = {"task": task, "target": NAMES[task], "data": str(tables / f"{task}.csv")}
    return {**given, "out": str(out), "batch_size": 16, "threads": 1, "val_fraction": 0.2, **more}


def curve_job(tables: Path, task: str, out: Path, **more: Any) -> dict[str, Any]:
    short = {"epochs": 2, "eval_points": 3, "ensemble_points": 3}
    return options(tables, task, out, **{**short, **more})


def fge_job(tables: Path, out: Path, **more: Any) -> dict[str, Any]:
    cycles = {"epochs": 3, "start_epoch": 0, "cycle_epochs": 2, "refit": "bezier"}
    return options(tables, "regression", out, **cycles, refit_epochs=1, baseline="auto", **more)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tables(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def ended(tables: Path) -> Made:
    """A finished run of curve-ensemble of each task."""
    return {
        task: done("curve-ensemble", curve_job(tables, task, tables / f"run-{task}"))
        for task in TASKS
    }


@pytest.fixture(scope="module")
def refitted(tables: Path) -> Path:
    """A finished fge run of numbers, with points on curves and a baseline of its own."""
    return done("fge", fge_job(tables, tables / "refitted"))


def stored(folder: Path, part: str = "test") -> tuple[dict[str, Array], Array]:
    """Return predictions (N, K) by member, and targets."""
    with np.load(folder / "predictions" / f"{part}.npz") as file:
        key = "predictions" if "predictions" in file else "probabilities"
        rows = zip(file["members"].tolist(), file[key], strict=True)
        return {name: row.astype(float) for name, row in rows}, file["targets"]


def rmse(mean: Array, targets: Array) -> float:
    return float(np.sqrt(np.mean((mean - targets) ** 2)))


def check_line(line: dict[str, Any], folder: Path, part: str = "val") -> None:
    """Check figures against those of the members' mean: of numbers by spread and noise too.

    ``part`` says the noise.
    """
    (found, y), names = stored(folder), line["member_names"]
    members = np.array([found[name] for name in names])
    mean = members.mean(axis=0)
    if "rmse" not in line:
        assert line["error"] == pytest.approx(100 * np.mean((mean > 0.5) != y))
        nll = -(y * np.log(mean) + (1 - y) * np.log(1 - mean)).sum(axis=1).mean()
        assert line["nll"] == pytest.approx(nll, rel=1e-6)
        return
    assert line["rmse"] == pytest.approx(rmse(mean, y), rel=1e-12)
    known, truth = stored(folder, part)
    held_out = np.array([known[name] for name in names])
    noise = metrics.fit_noise(held_out.mean(axis=0), truth, held_out.var(axis=0))
    variance = members.var(axis=0) + noise
    nll = 0.5 * (np.log(2 * np.pi * variance) + (mean - y) ** 2 / variance).sum(axis=1).mean()
    assert line["nll"] == pytest.approx(nll, rel=1e-6)  # the noise is the end of a search
    inside = np.abs(mean - y) <= 1.6448536269514722 * np.sqrt(variance)
    assert line["coverage"] == pytest.approx(100 * inside.mean())


@pytest.mark.parametrize("task", TASKS)
def test_points_on_the_curve_are_the_networks_there(ended: Made, tables: Path, task: str) -> None:
    """Each is made again from curve.safetensors, and measured by NumPy in float64."""
    folder = ended[task] / "curves" / PAIR
    content = report(ended[task])
    job = {**curve_job(tables, task, ended[task]), "target": tuple(NAMES[task])}
    data = load_data(suited(CurveEnsembleConfig(**{**job, "out": ended[task]})))
    assert data.fingerprint == content["dataset"]["sha256"]
    model = build_model("mlp", in_channels=data.in_channels, num_classes=2, image_size=None)
    curve, known = Curve.load(folder / "curve.safetensors"), task_of(data)
    plain = Normaliser(data.mean, data.std, torch.device("cpu"))
    parts = {"train": data.train, "test": data.test}
    points = {record["t"]: record for record in read_records(folder / "curve.jsonl", dict)}
    first: Array | None = None
    for t in (0.0, 0.5, 1.0):
        write_parameters(model, curve.at(t))
        refresh_batch_norm(model, EvalBatches(data.train, plain, 250), num_images=None)
        for split, part in parts.items():
            rows = [out for _, out in predict_outputs(model, EvalBatches(part, plain, 250))]
            out, y = torch.cat(rows).double().numpy(), part.labels.numpy()
            if isinstance(known, Regression):
                mean, std = np.array(known.mean), np.array(known.std)
                loss, said = np.mean((out - (y - mean) / std) ** 2), out * std + mean
                measure, key = rmse(said, y), "rmse"
            else:
                said = 1 / (1 + np.exp(-out))
                loss = -(y * np.log(said) + (1 - y) * np.log(1 - said)).sum(axis=1).mean()
                measure, key = 100 * np.mean((said > 0.5) != y), "error"
            assert points[t][f"{split}_loss"] == pytest.approx(loss, rel=1e-5)
            assert points[t][f"{split}_{key}"] == pytest.approx(measure, rel=1e-5)
        first = said if first is None else first
        both = (first + said) / 2
        expected = rmse(both, y) if key == "rmse" else 100 * np.mean((both > 0.5) != y)
        assert points[t][f"ensemble_{key}"] == pytest.approx(expected, rel=1e-5)
    summary = content["pairs"][0]["summaries"]["curve"]
    highest = max(point[f"test_{key}"] for point in points.values())
    assert summary[f"test_{key}"]["max"] == highest


@pytest.mark.parametrize("task", TASKS)
def test_ensembles_along_the_curve_have_the_figures_of_the_task(ended: Made, task: str) -> None:
    lines = {line["name"]: line for line in report(ended[task])["methods"]}
    assert lines["curve"]["members"] == 3
    for line in lines.values():
        check_line(line, ended[task])
    text = (ended[task] / "report.md").read_text()
    measure = "RMSE" if task == "regression" else "error per label"
    assert f"Between the networks {PAIR}, the test {measure} rises" in text
    assert f"{measure}: min" in text
    assert f"Test {measure} of the two networks" in text
    assert "training rows" in text
    assert "image" not in text.replace("refresh_images", "").replace("probe_images", "")
    if task == "regression":
        assert "squared error of standardised targets" in text
        assert " error" not in text.replace("squared error", "")
        assert "nats (" not in text
        seen = {line["name"]: line["validation_images"] for line in lines.values()}
        held_out = report(ended[task])["dataset"]["val"]
        # Each member on a path is evaluated on the data that say the noise.
        assert seen["curve"] == seen["ends"] + 3 * held_out


def test_without_validation_data_training_rows_say_the_noise(tables: Path, tmp_path: Path) -> None:
    short = {"epochs": 1, "eval_points": 2, "ensemble_points": 2, "val_fraction": 0.0}
    folder = done("curve-ensemble", curve_job(tables, "regression", tmp_path / "run", **short))
    lines = {line["name"]: line for line in report(folder)["methods"]}
    for name in ("ends", "curve"):
        check_line(lines[name], folder, "train")
        assert lines[name]["validation_images"] == 0
    assert not (folder / "predictions" / "val.npz").exists()


@contextmanager
def stopped(call: int) -> Iterator[list[int]]:
    """Interrupt a run at its n-th point on a path or stored prediction, before it is saved."""
    count = [0]

    def counting(original: Any) -> Any:
        def stop(*arguments: Any) -> Any:
            count[0] += 1
            if count[0] == call:
                raise KeyboardInterrupt
            return original(*arguments)

        return stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "append_record", counting(pairs.append_record))
        patch.setattr(PredictionFile, "add", counting(PredictionFile.add))
        yield count


def stop_and_resume(command: str, job: dict[str, Any], *calls: int) -> Path:
    """Interrupt a run again and again, and finish it."""
    for number, call in enumerate(calls):
        with stopped(call) as count:
            assert run(flags(command, {**job, "resume": number > 0})).code == 130
        assert count[0] == call
    return done(command, {**job, "resume": True})


def test_interrupted_and_resumed_it_ends_bitwise_the_same(
    ended: Made, tables: Path, tmp_path: Path
) -> None:
    job = curve_job(tables, "regression", tmp_path / "cut")
    # Between two points, and between the predictions of test and validation data.
    folder = stop_and_resume("curve-ensemble", job, 8, 4, 5, 3)
    assert_same(folder, ended["regression"])


# ------------------------------------------------------------------------------------ fge


def test_points_between_snapshots_and_a_baseline_of_numbers(refitted: Path) -> None:
    content = report(refitted)
    lines = {line["name"]: line for line in content["methods"]}
    assert lines["fge+refit"]["member_names"][-1] == "0001--0002/curve/0.5000"
    for name in ("fge", "fge+refit"):
        check_line(lines[name], refitted)
    theirs = {line["name"]: line for line in content["baseline"]["methods"]}
    for line in theirs.values():
        check_line(line, refitted / "baseline")
    text = (refitted / "report.md").read_text()
    assert "max RMSE: segment" in text
    assert "resample test rows" in text
    # The difference of the squared errors, for the ensemble and with the points on the curve.
    ours, y = stored(refitted)
    other, _ = stored(refitted / "baseline")
    mean = np.mean([other[name] for name in theirs["curve"]["member_names"]], axis=0)
    for name in ("fge", "fge+refit"):
        own = np.mean([ours[member] for member in lines[name]["member_names"]], axis=0)
        difference = np.mean((own - y) ** 2) - np.mean((mean - y) ** 2)
        assert f"passes: {lines[name]['members']}) has squared error {difference:+.4g} [" in text


def test_an_interrupted_refit_of_numbers_goes_on(
    refitted: Path, tables: Path, tmp_path: Path
) -> None:
    folder = stop_and_resume("fge", fge_job(tables, tmp_path / "cut"), 12, 3, 14)
    assert_same(folder, refitted)


def test_a_finished_run_is_a_baseline(ended: Made, tables: Path, tmp_path: Path) -> None:
    lost = shutil.copytree(ended["regression"], tmp_path / "lost")
    (lost / "predictions" / "val.npz").unlink()
    job = fge_job(tables, tmp_path / "run")
    job = {k: v for k, v in job.items() if not k.startswith("refit")}
    result = run(flags("fge", {**job, "baseline": str(lost)}))
    assert result.code == 2
    assert "val.npz lacks the predictions of average-1; resume that run" in result.message
    assert not (tmp_path / "run").exists()
    folder = done("fge", {**job, "baseline": str(ended["regression"])})
    rows = [line for line in (folder / "report.md").read_text().splitlines() if "| curve |" in line]
    theirs = {line["name"]: line for line in report(ended["regression"])["methods"]}
    (row,) = rows
    assert f"| {theirs['curve']['rmse']:.4g} |" in row
    assert f"| {theirs['curve']['nll']:.4f} |" in row


# ------------------------------------------------------------------------------------ planes


@pytest.mark.parametrize("task", TASKS)
def test_planes_and_lines_have_the_measure(ended: Made, task: str, tmp_path: Path) -> None:
    short = {"run": str(ended[task]), "threads": 1}
    plane = done("plane", {**short, "resolution": 2, "out": str(tmp_path / "plane")})
    line = done("plane", {**short, "line": True, "line_points": 3, "out": str(tmp_path / "line")})
    key = "rmse" if task == "regression" else "error"
    points = {
        record["t"]: record
        for record in read_records(ended[task] / "curves" / PAIR / "curve.jsonl", dict)
    }
    networks = {network["name"]: network for network in report(plane)["plane"]["networks"]}
    for t, name in ((0.0, "w(0)"), (1.0, "w(1)")):
        for figure in ("train_loss", f"train_{key}", "test_loss", f"test_{key}", "test_nll"):
            assert networks[name][figure] == pytest.approx(points[t][figure], rel=1e-5)
    with np.load(plane / "plane.npz") as grid:
        assert {f"train_{key}", f"test_{key}"} <= set(grid["keys"].tolist())
    with np.load(line / "line.npz") as along:
        curve = along[f"test_{key}"][along["lines"].tolist().index("curve")]
    np.testing.assert_allclose(curve, [points[t][f"test_{key}"] for t in (0, 0.5, 1)], rtol=1e-5)
    measure = "RMSE" if task == "regression" else "error per label"
    for folder, name in ((plane, "plane"), (line, "line")):
        assert (folder / "figures" / f"{name}-test-{key}.png").is_file()
        text = (folder / "report.md").read_text()
        assert f"the test {measure} between" in text
        assert "image" not in text


def test_sharpness_on_the_curve_is_of_rows(ended: Made, tmp_path: Path) -> None:
    few = {"examples": 20, "k": 1, "trace_samples": 2, "spectrum_vectors": 1, "spectrum_steps": 3}
    job = {"run": str(ended["regression"]), "threads": 1, "curve_points": 2, **few}
    result = run(flags("sharpness", {**job, "out": str(tmp_path / "sharp")}))
    assert result.code == 0
    assert "Hessian products on 20 rows" in result.out
    text = (tmp_path / "sharp" / "report.md").read_text()
    assert "20 training rows without augmentation, in units of the loss per squared weight" in text
    assert "image" not in text


# ------------------------------------------------------------------------------------ compare


@pytest.mark.usefixtures("forked_jobs")
def test_curves_are_compared(tables: Path, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    job = options(tables, "regression", out, epochs=5, seeds=2, start_epoch=1, cycle_epochs=2)
    methods = ["fge+refit", "curve-ensemble", "curve-ensemble-2B"]
    done("compare", {**job, "methods": methods, "average": 0.0})
    for cell, where, names in (
        ("fge+refit-b1-s0", "fge-e5-s0", "0001--0002/curve/0.5000"),
        ("curve-ensemble-b1-s0", "curve-e5-s0", "curve/0.5000"),
        ("curve-ensemble-2B-b1-s0", "curve-2B-e5-s0-s1", "curve/0.5000"),
    ):
        figures = json.loads((out / "cells" / f"{cell}.json").read_text())["figures"]
        run_folder = out / "runs" / where
        line = [m for m in report(run_folder)["methods"] if m["name"] in ("fge+refit", "curve")][-1]
        assert any(name.endswith(names) for name in line["member_names"])
        check_line(line, run_folder)
        for key in ("rmse", "nll", "coverage"):
            assert figures[key] == pytest.approx(line[key], rel=1e-6)
