"""``export`` of every task and of tables: the file and its script predict what ``predict`` does."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import task_runs
import torch
from conftest import PLAIN
from PIL import Image
from task_runs import write

from fge import metrics
from fge.commands import cli
from fge.commands.predict import predict
from fge.commands.train import train
from fge.config import PredictConfig, TrainConfig

pytestmark = pytest.mark.slow  # whole runs

NEW = 7
KINDS = {"regression": "onnx", "multilabel": "onnx", "binary": "pt2", "classification": "onnx"}
WITHOUT_FGE = "import runpy, sys; sys.modules['fge'] = None; sys.argv[:] = sys.argv[1:]; " + (
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
Columns = dict[str, list[Any]]


def rows() -> Columns:
    """Two columns of numbers, one with gaps and far from 0, one of words with gaps; targets."""
    usual = task_runs.rows()
    return {
        **usual,
        "b": ["NA" if x == "" else 1e6 + x for x in usual["b"]],
        "colour": [["red", "deep blue", ""][k % 3] for k in range(task_runs.COUNT)],
        "y": [1e7 - 100 + y for y in usual["y"]],  # around 1e7
    }


def new_rows() -> Columns:
    """Rows in another order of columns, with gaps, a column more and a word of no training row."""
    return {
        "more": ["x, y"] * NEW,
        "colour": ["red", "green", "", "deep blue", " red", "NA", "red"],
        "b": ["", "1000001", "1e6", "NaN", "999999.5", "1000000.25", "1000000"],
        "a": ["0.5", "-1", "NA", "2", "0", "0.25", ""],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export-tasks")


def exported(folder: Path, task: str, **options: Any) -> tuple[Path, Path]:
    """Train two members, export them, and return the run and the file."""
    kind = KINDS[task]
    run = train(
        TrainConfig(
            out=folder / f"{task}-{len(options)}",
            method="sse",
            task=task,  # type: ignore[arg-type]
            **{**PLAIN, "epochs": 2, "sse_cycles": 2, "device": "cpu", "lr": 0.02, **options},
        )
    )
    assert cli.main(["export", "--run", str(run), "--format", kind]) == 0
    return run, run / f"ensemble.{kind}"


def outputs(file: Path, inputs: np.ndarray) -> list[np.ndarray]:
    if file.suffix == ".onnx":
        session = onnxruntime.InferenceSession(file)
        return list(session.run(None, {session.get_inputs()[0].name: inputs}))
    with torch.no_grad():
        return [torch.export.load(file).module()(torch.from_numpy(inputs)).numpy()]


def facts_of(file: Path) -> dict[str, Any]:
    if file.suffix == ".onnx":
        found = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map["facts"]
    else:
        extra = {"facts": ""}
        torch.export.load(file, extra_files=extra)
        found = extra["facts"]
    return dict(json.loads(found))


def of_members(run: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what a run's members have predicted (2, N, K) of a part, and its targets."""
    with np.load(run / "predictions" / f"{part}.npz") as stored:
        names = stored["members"].tolist()
        own = [stored["predictions"][names.index(f"sse-000{k}")] for k in (1, 2)]
        return np.array(own), stored["targets"]


def printed(file: Path, *given: Path) -> list[str]:
    """Return the lines of the script beside a file, which cannot import this package."""
    script = file.with_name(f"ensemble_{file.suffix[1:]}_example.py")
    words = [sys.executable, "-c", WITHOUT_FGE, str(script), *map(str, given)]
    done = subprocess.run(words, cwd=file.parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("task", task_runs.NAMES)
def test_the_file_and_its_script_predict_rows_as_the_run_does(task: str, folder: Path) -> None:
    data = {k: v for k, v in rows().items() if k in ("a", "b", "colour", *task_runs.NAMES[task])}
    table = write(folder / f"{task}.csv", data)
    run, file = exported(
        folder, task, data=str(table), target=task_runs.NAMES[task], batch_size=16, val_fraction=0.2
    )
    new = write(folder / "new.csv", new_rows())
    config = PredictConfig(run=run, images=new, out=run / "predicted", keep_members=True)
    with np.load(predict(config) / "predictions.npz") as stored:
        members = stored[f"member_{'predictions' if task == 'regression' else 'probabilities'}"]
    members = members.astype(float)
    facts = facts_of(file)
    assert facts["task"] == task
    assert [column["name"] for column in facts["columns"]] == ["a", "b", "colour"]
    codes = facts["columns"][2]["codes"]
    assert (codes["deep blue"], codes["red"], codes[""], codes["NA"]) == (0, 1, 2, 2)
    raw = np.array(
        [
            [float(word or "nan") if word != "NA" else np.nan for word in new_rows()["a"]],
            [float(word or "nan") for word in new_rows()["b"]],
            [codes.get(word.strip(), -1) for word in new_rows()["colour"]],
        ]
    ).T
    found, said = outputs(file, raw), printed(file, new)
    assert len(said) == NEW
    if task == "regression":
        assert facts["targets"] == ["y", "z"]
        check_regression(run, found, said, members, facts)
        return
    np.testing.assert_allclose(found[0], members.mean(axis=0), rtol=0, atol=1e-5)
    if task == "multilabel":
        assert facts["labels"] == ["up", "wide"]
        values = [list(ast.literal_eval(line).values()) for line in said]
        np.testing.assert_allclose(values, found[0], rtol=0, atol=1e-7)
        return
    names = [facts["classes"][k] for k in found[0].argmax(axis=1)]
    assert [line.rsplit(" ", 1)[0] for line in said] == names
    largest = [float(line.rsplit(" ", 1)[1]) for line in said]
    np.testing.assert_allclose(largest, found[0].max(axis=1), rtol=0, atol=1e-6)


def check_regression(
    run: Path,
    found: list[np.ndarray],
    said: list[str],
    members: np.ndarray,
    facts: dict[str, Any],
) -> None:
    """The mean in the targets' units, and the members' variance plus the validation noise."""
    mean, variance = found
    held, targets = of_members(run, "val")
    noise = metrics.fit_noise(held.mean(axis=0), targets, held.var(axis=0))
    np.testing.assert_allclose(facts["noise"], noise)
    assert mean.dtype == variance.dtype == np.float64
    std = np.array([20.0, 1.4])
    # predictions.npz has float32, which has steps of 1 at 1e7: the exact ones are in test.npz.
    np.testing.assert_allclose(mean[:, 1], members.mean(axis=0)[:, 1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(mean[:, 0], members.mean(axis=0)[:, 0], rtol=0, atol=1)
    wanted = members.var(axis=0)[:, 1] + noise[1]
    np.testing.assert_allclose(variance[:, 1], wanted, rtol=1e-5)
    assert np.abs(mean[:, 0] - 1e7).max() < 5 * std[0]
    half = run / "half.onnx"
    assert cli.main(["export", "--run", str(run), "--half", "--out", str(half)]) == 0
    assert facts_of(half)["precision"] == "float16"
    values = [ast.literal_eval(line) for line in said]
    np.testing.assert_allclose([[v["y"][0], v["z"][0]] for v in values], mean, rtol=1e-15)
    np.testing.assert_allclose([[v["y"][1], v["z"][1]] for v in values], variance, rtol=1e-12)


def test_a_regression_on_images_is_exported_without_validation_data(folder: Path) -> None:
    draw = np.random.default_rng(1)
    images = draw.integers(0, 256, (32, 8, 8), dtype=np.uint8)
    bright = images.mean(axis=(1, 2)).astype(float)
    arrays = {"images": images, "targets": bright}
    data = folder / "bright.npz"
    parts = {"train": slice(0, 24), "test": slice(24, 32)}
    np.savez(
        data,
        **{
            f"{part}_{'labels' if name == 'targets' else name}": values[rows]
            for part, rows in parts.items()
            for name, values in arrays.items()
        },
    )
    run, file = exported(folder, "regression", data=str(data), batch_size=8, val_fraction=0.0)
    members, targets = of_members(run, "test")
    order = [24 + int(np.flatnonzero(bright[24:] == y)[0]) for y in targets[:, 0]]
    mean, variance = outputs(file, images[order, None])
    noise = facts_of(file)["noise"]
    assert noise[0] > 0, "from training images"
    scale = bright.std()
    np.testing.assert_allclose(mean, members.mean(axis=0), rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(variance, members.var(axis=0) + noise, rtol=0, atol=1e-5 * scale**2)
    Image.fromarray(images[24]).save(folder / "first.png")
    (line,) = printed(file, folder / "first.png")
    first = outputs(file, images[24:25, None])
    name, _, said = line.partition(" ")
    assert name == str(folder / "first.png")
    assert ast.literal_eval(said) == {"0": pytest.approx([float(x[0, 0]) for x in first])}
    new = folder / "new.npz"
    np.savez(new, images=images[24:])
    out = predict(PredictConfig(run=run, images=new, out=folder / "of-images"))
    with np.load(out / "predictions.npz") as stored:
        most = int(stored["spread"][:, 0].argmax())
        said = f"{stored['predictions'][most, 0]:.4g} ± {stored['spread'][most, 0]:.2g}"
    gallery = (out / "report.md").read_text().split("## Pictures of the least certain images")[1]
    assert said in gallery[: gallery.index("uncertain-02.png")], "that on which they differ most"


def test_damaged_predictions_of_a_regression_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "regression-3"
    file = run / "predictions" / "train.npz"
    (run / "manifest.json").unlink()  # as of a run from before there were manifests
    with np.load(file) as stored:
        arrays = dict(stored)
    for changes, message in (
        ({"targets": np.zeros(24, int)}, "is damaged: its targets are no numbers (N, K); delete"),
        ({"predictions": arrays["predictions"] * np.nan}, "is damaged: "),
    ):
        np.savez(file, **{**arrays, **changes})
        capsys.readouterr()
        assert cli.main(["export", "--run", str(run), "--format", "onnx", "--overwrite"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {file} ")
        assert message in error
        assert error.count("\n") == 1
