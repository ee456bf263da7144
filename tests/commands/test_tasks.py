"""Every task through the commands: a tiny run, its report, its predictions, and resuming."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupting import interrupted
from promised import promised
from task_runs import COUNT, NAMES, rows, write, write_tables

from fge import commands as cli
from fge import metrics
from fge.commands.predict import predict
from fge.commands.rows import Predicted, write_outputs
from fge.commands.train import fge, train
from fge.config import FGEConfig, PredictConfig, TrainConfig
from fge.errors import DivergenceError, UserError
from fge.tasks import Regression

pytestmark = pytest.mark.slow  # whole runs

RUN: dict[str, Any] = {"epochs": 4, "batch_size": 16, "threads": 1, "val_fraction": 0.2, "lr": 0.05}
PLAIN: dict[str, Any] = {"channels_last": "off", "compile": "off", "amp": "off"}
TARGETS = {task: tuple(names) for task, names in NAMES.items()}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table for each task, in one folder."""
    return write_tables(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def runs(table: Path) -> dict[str, Path]:
    """A run of each task."""
    found = {}
    for task, names in NAMES.items():
        options: dict[str, Any] = {"task": task, "target": tuple(names), **RUN}
        data = str(table / f"{task}.csv")
        found[task] = fge(FGEConfig(data=data, out=table / f"run-{task}", **options))
    return found


def report_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "report.json").read_text())
    return content


@pytest.mark.parametrize("task", NAMES)
def test_the_report_has_the_figures_of_the_task(runs: dict[str, Path], task: str) -> None:
    content, text = report_of(runs[task]), (runs[task] / "report.md").read_text()
    assert content["task"] == f"row {task}"
    assert content["config"]["model"] == "mlp"
    line = next(line for line in content["methods"] if line["name"] == "fge")
    with np.load(runs[task] / "predictions" / "test.npz") as stored:
        names, targets = stored["members"].tolist(), stored["targets"]
        array = stored["predictions" if task == "regression" else "probabilities"]
        mean = np.mean([array[names.index(m)].astype(float) for m in line["member_names"]], axis=0)
    if task == "regression":
        assert line["rmse"] == pytest.approx(metrics.rmse(mean, targets))
        assert "error" not in line
        assert "RMSE" in text
        assert " error" not in re.sub("(standard|squared) error", "", text)
        assert targets.mean(axis=0)[0] == pytest.approx(100, abs=20)  # in the targets' units
        assert line["r2"] > 0.3
        assert (runs[task] / "figures" / "coverage.png").is_file()
    elif task == "multilabel":
        wrong = np.mean((mean > 0.5) != targets)
        assert line["error"] == pytest.approx(100 * wrong)
        assert line["exact_match"] <= 100 - line["error"] + 1e-9
        assert "error per label" in text
    else:
        assert line["error"] == pytest.approx(100 * np.mean(mean.argmax(axis=1) != targets))
        assert mean.shape[1] == len(content["dataset"]["classes"])
    if task == "binary":
        assert line["auroc"] == pytest.approx(
            metrics.auroc(mean[targets == 0, 1], mean[targets == 1, 1])
        )
        assert "balanced" in text
    assert "train --method auto" in text
    assert content["dataset"]["table"]["targets"] == NAMES[task]
    section = text.split("## The least certain test rows")[1].split("\n## ")[0]
    assert re.search(r"\| *a *\| *b *\| *colour *\|", section)
    assert len(re.findall(r"\| (red|blue) ", section)) == 12


def test_the_log_of_a_regression_names_its_figure(runs: dict[str, Path]) -> None:
    records = [json.loads(line) for line in (runs["regression"] / "log.jsonl").open()]
    kept = [record for record in records if record["event"] == "snapshot"]
    with np.load(runs["regression"] / "predictions" / "val.npz") as stored:
        names, targets = stored["members"].tolist(), stored["targets"]
        first = stored["predictions"][names.index("fge-0001")]
    record = next(r for r in kept if (r["stage"], r["member"]) == ("fge", 1))
    assert record["val_rmse"] == pytest.approx(metrics.rmse(first, targets), rel=1e-5)
    assert not any("error" in key for record in kept for key in record)


@pytest.mark.parametrize("task", NAMES)
def test_the_run_predicts_a_table_as_it_predicted_its_test_rows(
    runs: dict[str, Path], task: str, tmp_path: Path
) -> None:
    columns = {key: rows()[key] for key in ("colour", "a", "b")}  # another order, no target
    new = write(tmp_path / "new.csv", {**columns, "more": ["x"] * COUNT})
    out = predict(
        PredictConfig(run=runs[task], images=new, out=tmp_path / "out", keep_members=True)
    )
    with (
        np.load(out / "predictions.npz") as found,
        np.load(runs[task] / "predictions" / "test.npz") as stored,
    ):
        key = "predictions" if task == "regression" else "probabilities"
        names = [str(name) for name in stored["members"]]
        own = [stored[key][k] for k, name in enumerate(names) if name.startswith("fge-")]
        tested = np.mean(np.array(own, dtype=float), axis=0)
        said, kept = found[key], found[f"member_{key}"]
    page = (out / "report.md").read_text()
    assert re.search(r"\| *row *\| *a *\| *b *\| *colour *\|", page), "the least certain ones"
    # Each test row is among all rows.
    nearest = np.abs(said[None] - tested[:, None]).reshape(len(tested), COUNT, -1).max(-1).min(1)
    assert nearest.max() < 1e-3 * max(1.0, np.abs(tested).max())
    with (out / "predictions.csv").open() as file:
        headings = next(csv.reader(file))
    measures = ["entropy", "mutual_information", "disagreement", "set"]
    expected = {
        "regression": [
            *("row", "y", "z", "spread of y", "spread of z", "deviation of y", "deviation of z"),
            *("low of y", "low of z", "high of y", "high of z"),
        ],
        "multilabel": [
            *("row", "p(up)", "p(wide)"),
            *(f"{what} of {n}" for what in ("spread", *measures[:3]) for n in ("up", "wide")),
            "set",
        ],
        "binary": ["row", "label", "class", "p(new)", "p(old)", *measures],
        "classification": ["row", "label", "class", "p(l)", "p(m)", "p(s)", *measures],
    }
    assert headings == expected[task]
    np.testing.assert_allclose(kept.mean(axis=0, dtype=float), said, rtol=1e-5, atol=1e-5)
    if task == "multilabel":  # each label by itself, as Ensemble.uncertainty has it
        of_labels = metrics.uncertainty(kept.astype(float), output="sigmoid")
        with np.load(out / "predictions.npz") as found, (out / "predictions.csv").open() as file:
            columns = {name: [] for name in headings}
            for row in csv.DictReader(file):
                del row["set"]
                for name, value in row.items():
                    columns[name].append(float(value))
            for name in measures[:3]:
                assert found[name].shape == (COUNT, 2)
                np.testing.assert_allclose(found[name], of_labels[name], atol=1e-5)
                np.testing.assert_allclose(columns[f"{name} of wide"], found[name][:, 1], atol=1e-6)


def test_intervals_of_numbers_follow_by_hand_and_are_measured(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run, new = runs["regression"], write(tmp_path / "new.csv", rows())
    out, stored = tmp_path / "out", {}
    for part in ("val", "test"):
        with np.load(run / "predictions" / f"{part}.npz") as file:
            names = [str(name) for name in file["members"]]
            own = [k for k, name in enumerate(names) if name.startswith("fge-")]
            stored[part] = (file["predictions"][own], file["targets"])
    [line] = [
        line for line in report_of(run)["uncertainty"]["methods"] if line["members"] == len(own)
    ]
    values, targets = stored["val"]
    mean, spread = values.mean(axis=0), values.var(axis=0)
    noise = metrics.fit_noise(mean, targets, spread)
    scores = np.sort(np.abs(targets - mean) / np.sqrt(spread + noise), axis=0)
    place = math.ceil(0.9 * (len(targets) + 1)) - 1
    assert line["conformal"]["threshold"] == pytest.approx(scores[place].tolist())
    values, targets = stored["test"]
    half = scores[place] * np.sqrt(values.var(axis=0) + noise)
    inside = np.abs(targets - values.mean(axis=0)) <= half
    for k, name in enumerate(NAMES["regression"]):
        found = line["conformal"]["targets"][name]
        assert found["coverage"] == pytest.approx(inside[:, k].mean())
        assert found["width"] == pytest.approx(2 * half[:, k].mean())
    page = (run / "report.md").read_text()
    assert "## Conformal intervals" in page
    assert "stated to hold the value of 90 % of rows, hold it for" in page

    place = math.ceil(0.8 * (len(stored["val"][1]) + 1)) - 1
    predict(PredictConfig(run=run, images=new, out=out, coverage=0.8, keep_members=True))
    with np.load(out / "predictions.npz") as file:
        deviation = np.sqrt(file["spread"] ** 2 + noise)
        np.testing.assert_allclose(file["deviation"], deviation, rtol=1e-5)
        # Numbers far from 0 differ by what float32 does not have.
        assert file["member_predictions"].dtype == np.float64
        np.testing.assert_array_equal(file["member_predictions"].std(axis=0), file["spread"])
        ends = [file["predictions"] + sign * scores[place] * deviation for sign in (-1, 1)]
        np.testing.assert_allclose(file["intervals"], np.stack(ends, axis=-1), rtol=1e-5)
        assert file["coverage"] == 0.8
    assert "stated to hold the value of 80 % of rows, are" in (out / "report.md").read_text()
    error = "--coverage 0.99: intervals that hold the value of 99 % of rows need 99 validation rows"
    with pytest.raises(UserError, match=error):
        predict(PredictConfig(run=run, images=new, out=tmp_path / "more", coverage=0.99))


def test_sets_of_labels_follow_by_hand_and_are_measured(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run, new = runs["multilabel"], write(tmp_path / "new.csv", rows())
    out, stored = tmp_path / "out", {}
    for part in ("val", "test"):
        with np.load(run / "predictions" / f"{part}.npz") as file:
            own = [k for k, name in enumerate(file["members"]) if str(name).startswith("fge-")]
            mean = file["probabilities"][own].astype(float).mean(axis=0)
            stored[part] = (mean, file["targets"] == 1)
    probs, has = stored["val"]
    scores = sorted(
        max([1 - p for p, one in zip(*pair, strict=True) if one] + [0.0])
        for pair in zip(probs, has, strict=True)
    )
    threshold = scores[math.ceil(0.9 * (len(has) + 1)) - 1]
    [line] = [
        line for line in report_of(run)["uncertainty"]["methods"] if line["members"] == len(own)
    ]
    assert line["conformal"]["threshold"] == pytest.approx(threshold)
    probs, has = stored["test"]
    sets = 1 - probs <= threshold
    assert line["conformal"]["coverage"] == pytest.approx(np.mean((sets | ~has).all(axis=1)))
    assert line["conformal"]["recall"] == pytest.approx((sets & has).sum() / has.sum())
    assert line["conformal"]["size"] == pytest.approx(sets.sum(axis=1).mean())
    page = (run / "report.md").read_text()
    assert "## Conformal sets of labels" in page
    assert "stated to hold all labels of 90 % of rows, hold them for" in page

    threshold = scores[math.ceil(0.8 * (len(scores) + 1)) - 1]
    predict(PredictConfig(run=run, images=new, out=out, coverage=0.8))
    with np.load(out / "predictions.npz") as file, (out / "predictions.csv").open() as table:
        assert np.array_equal(file["sets"], 1 - file["probabilities"] <= threshold)
        assert file["coverage"] == 0.8
        for row, p, inside in zip(
            csv.DictReader(table), file["probabilities"], file["sets"], strict=True
        ):
            order = np.argsort(-p, kind="stable")
            assert row["set"] == " | ".join(("up", "wide")[k] for k in order if inside[k])
        sizes = file["sets"].sum(axis=1)
    assert 0 < sizes.mean() < 2
    found = report_of(out)["uncertainty"]["conformal"]
    assert (found["score"], found["stated"]) == ("labels", 0.8)
    assert found["size"] == sizes.mean()
    page = (out / "report.md").read_text()
    assert "stated to hold all labels of 80 % of rows, have" in page
    for size, count in enumerate(np.bincount(sizes)):
        assert f"| {size} | {count} | {100 * count / COUNT:.1f} |" in re.sub(" +", " ", page)
    differing = page.split("members differ most")[1]
    assert re.search(r"\| up *\| wide *\| set *\|", differing)
    error = "--coverage 0.99: sets that hold all labels of 99 % of rows need 99 validation rows"
    with pytest.raises(UserError, match=error):
        predict(PredictConfig(run=run, images=new, out=tmp_path / "more", coverage=0.99))
    assert not (tmp_path / "more").exists()


def test_a_table_without_a_column_cannot_be_predicted(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    few = write(tmp_path / "few.csv", {"a": [1.0], "b": [2.0]})
    with pytest.raises(UserError, match="lacks the column 'colour' that the network was trained"):
        predict(PredictConfig(run=runs["binary"], images=few))
    with pytest.raises(UserError, match=r"trained on a table; give --images a \.csv"):
        predict(PredictConfig(run=runs["binary"], images=tmp_path))
    with pytest.raises(UserError, match="--image-size is for images"):
        predict(PredictConfig(run=runs["binary"], images=few, image_size=8))


def images(path: Path) -> Path:
    draw = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 64), ("test", 32)):
        pixels = draw.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays |= {f"{part}_images": pixels, f"{part}_targets": pixels.mean(axis=(1, 2))}
    np.savez(path, **arrays)
    return path


def images_alone(folder: Path) -> Path:
    with np.load(folder / "light.npz") as found:
        np.savez(folder / "new.npz", images=found["test_images"])
    return folder / "new.npz"


def test_images_have_numbers_too(tmp_path: Path) -> None:
    options: dict[str, Any] = {**RUN, **PLAIN, "epochs": 2, "val_fraction": 0.0}
    data = str(images(tmp_path / "light.npz"))
    config = TrainConfig(
        task="regression", data=data, out=tmp_path / "run", method="split", **options
    )
    run = train(config)
    assert (run / "predictions" / "train.npz").is_file()  # its residuals say the noise
    assert "The noise variance is estimated on training images" in (run / "report.md").read_text()
    new = predict(PredictConfig(run=run, images=images_alone(tmp_path), out=tmp_path / "out"))
    with (
        np.load(new / "predictions.npz") as found,
        np.load(run / "predictions" / "test.npz") as stored,
    ):
        expected = stored["predictions"].astype(float).mean(axis=0)
        said = found["predictions"]  # the test images are in another order
        np.testing.assert_allclose(np.sort(said, axis=0), np.sort(expected, axis=0), rtol=1e-4)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_ood_images_of_labels_and_numbers(tmp_path: Path, task: str) -> None:
    data = images(tmp_path / "light.npz")
    if task == "multilabel":
        with np.load(data) as stored:
            arrays = dict(stored)
        for part in ("train", "test"):
            numbers = arrays.pop(f"{part}_targets")
            bright = numbers > np.median(numbers)
            arrays[f"{part}_labels"] = np.stack([bright, numbers > 130], axis=1).astype(int)
        np.savez(data, **arrays)
    options: dict[str, Any] = {**RUN, **PLAIN, "epochs": 2, "task": task, "data": str(data)}
    run = train(TrainConfig(out=tmp_path / "run", method="split", ood=("noise",), **options))
    line = next(one for one in report_of(run)["methods"] if one["name"] == "split")
    array = "predictions" if task == "regression" else "probabilities"
    found = []
    for part in ("test", "ood-noise"):
        with np.load(run / "predictions" / f"{part}.npz") as stored:
            assert stored["members"].tolist()[:2] == ["split-0001", "split-0002"]
            members = stored[array][:2].astype(float)
        if task == "regression":
            found.append(members.var(axis=0)[:, 0])
        else:
            p = members.mean(axis=0)
            found.append(-(p * np.log(p) + (1 - p) * np.log(1 - p)).sum(axis=1))
    inside, outside = found
    pairs = (outside[:, None] > inside) + (outside[:, None] == inside) / 2
    score = "variance" if task == "regression" else "entropy"
    assert line["ood"] == {"noise": {score: pytest.approx(pairs.mean())}}
    assert "## OOD detection" in (run / "report.md").read_text()


def test_wrong_options_end_in_a_line(
    table: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = ["--data", str(table / "regression.csv"), "--out", str(tmp_path / "run")]
    data += ["--batch-size", "16"]
    assert cli.main(["fge", *data]) == 2
    assert "needs --target COLUMN" in capsys.readouterr().err
    more = ["--target", "y", "--task", "regression", "--mixup", "0.2"]
    assert cli.main(["train", *data, *more]) == 2
    assert "--mixup has no meaning for --task regression" in capsys.readouterr().err
    assert (
        cli.main(["train", *data, "--target", "y", "--task", "regression", "--model", "vgg16"]) == 2
    )
    assert "use --model mlp" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_resuming_is_bitwise(table: Path, task: str, tmp_path: Path) -> None:
    def options(name: str, **more: Any) -> FGEConfig:
        data = str(table / f"{task}.csv")
        given: dict[str, Any] = {"task": task, "target": TARGETS[task], "distill_epochs": 1}
        return FGEConfig(data=data, out=tmp_path / name, single=True, **given, **RUN, **more)

    whole = fge(options("whole"))
    with interrupted(3):
        fge(options("cut"))
    cut = fge(options("cut", resume=True))
    ours, theirs = promised(cut), promised(whole)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in theirs if ours[name] != theirs[name]] == []


def test_curves_and_planes_of_two_classes(table: Path, tmp_path: Path) -> None:
    run = fge(
        FGEConfig(
            task="binary",
            target=("kind",),
            data=str(table / "binary.csv"),
            out=tmp_path / "run",
            start_epoch=0,
            cycle_epochs=2,
            refit="bezier",
            refit_epochs=1,
            baseline="auto",
            **RUN,
        )
    )
    content = report_of(run)
    lines = {line["name"]: line for line in content["methods"]}
    assert lines["fge+refit"]["members"] == lines["fge"]["members"] * 2 - 1
    with np.load(run / "predictions" / "test.npz") as stored:
        names, targets = stored["members"].tolist(), stored["targets"]
        first = stored["probabilities"][names.index("fge-0001")].astype(float)
    # The curve begins at the first snapshot, whose statistics are estimated again.
    points = [json.loads(line) for line in (run / "curves" / "0001--0002" / "curve.jsonl").open()]
    start = next(point for point in points if point["t"] == 0)
    assert start["test_nll"] == pytest.approx(metrics.nll(first, targets), rel=0.3)
    assert content["baseline"]["methods"][1]["name"] == "curve"
    arguments = [
        "plane",
        "--run",
        str(run),
        "--random",
        "--resolution",
        "2",
        "--out",
        str(tmp_path / "plane"),
    ]
    assert cli.main([*arguments, "--channels-last", "off", "--amp", "off"]) == 0


def test_a_planner_decides_for_labels(table: Path, tmp_path: Path) -> None:
    options = {"task": "multilabel", "target": TARGETS["multilabel"], **RUN, "epochs": 8}
    options |= {"data": str(table / "multilabel.csv"), "val_fraction": 0.4}
    run = train(TrainConfig(out=tmp_path / "run", method="auto", **options))
    plan = fge(FGEConfig(out=tmp_path / "plan", plan="auto", **options))
    line, again = (
        next(line for line in report_of(folder)["methods"] if line["name"] == "auto")
        for folder in (run, plan)
    )
    assert line["nll"] == again["nll"]
    records = [json.loads(text) for text in (run / "log.jsonl").open()]
    kept = [record for record in records if record["event"] == "snapshot"]
    with np.load(run / "predictions" / "val.npz") as stored:
        said, targets = stored["probabilities"].astype(float), stored["targets"]
        names = stored["members"].tolist()
    for number, record in enumerate(kept, start=1):
        probs = said[names.index(f"auto-{number:04d}")]
        wrong = ((probs > 0.5) != targets).any(axis=1)  # an example with a wrong label is wrong
        assert record["val_wrong"] == wrong.sum()
        tempered = metrics.tempered_labels_nll(probs, targets).mean()
        assert record["val_tempered_nll"] == pytest.approx(tempered, rel=1e-6)
    assert "in nats per row, with the temperature" in (run / "report.md").read_text()
    new = write(tmp_path / "new.csv", {key: rows()[key] for key in ("colour", "a", "b")})
    predict(PredictConfig(run=run, images=new, out=tmp_path / "out"))  # by the kept members


def test_a_planner_decides_for_numbers(table: Path, tmp_path: Path) -> None:
    """By the squared error in parts of the variance: other units change nothing."""
    options = {"task": "regression", "target": TARGETS["regression"], **RUN, "epochs": 8}
    options |= {"data": str(table / "regression.csv"), "val_fraction": 0.4}
    run = train(TrainConfig(out=tmp_path / "run", method="auto", **options))
    plan = fge(FGEConfig(out=tmp_path / "plan", plan="auto", **options))
    content = report_of(run)
    line = next(line for line in content["methods"] if line["name"] == "auto")
    again = next(line for line in report_of(plan)["methods"] if line["name"] == "auto")
    assert line["rmse"] == again["rmse"]
    records = [json.loads(text) for text in (run / "log.jsonl").open()]
    kept = [record for record in records if record["event"] == "snapshot"]
    settled = json.loads((run / "config.json").read_text())["dataset"]
    with np.load(run / "predictions" / "val.npz") as stored:
        names, targets = stored["members"].tolist(), stored["targets"]
        said = stored["predictions"].astype(float)
    squares = ((said - targets) / np.array(settled["target_std"])) ** 2
    for number, record in enumerate(kept, start=1):
        own = squares[names.index(f"auto-{number:04d}")]
        assert record["val_examples"] == len(targets) >= 30  # enough to decide
        assert record["val_scaled_mse"] == pytest.approx(own.mean(), rel=1e-5)
        assert not any("tempered" in key or key == "train_nll" for key in record)
    plans = [record for record in records if record["event"] == "plan"]
    assert plans[1]["scaled_mse"] == kept[0]["val_scaled_mse"]
    assert [stage["network_scaled_mse"] for stage in content["plan"]] == [
        record["val_scaled_mse"] for record in kept
    ]
    text = (run / "report.md").read_text()
    assert (
        "The squared error is that of the validation rows, in parts of the variance of the" in text
    )
    assert "its training squared error is " in text
    new = write(tmp_path / "new.csv", {key: rows()[key] for key in ("colour", "a", "b")})
    predict(PredictConfig(run=run, images=new, out=tmp_path / "out"))  # by the kept members
    scaled = rows() | {name: 1000 * np.array(rows()[name]) for name in TARGETS["regression"]}
    options["data"] = str(write(tmp_path / "scaled.csv", scaled))
    other = train(TrainConfig(out=tmp_path / "scaled", method="auto", **options))
    assert [stage["epochs"] for stage in report_of(other)["plan"]] == [
        stage["epochs"] for stage in content["plan"]
    ]


@pytest.mark.usefixtures("forked_jobs")
def test_methods_are_compared(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    arguments = ["compare", "--task", "regression", "--data", str(table / "regression.csv")]
    arguments += ["--target", *TARGETS["regression"], "--methods", "single", "split"]
    arguments += ["--seeds", "2", "--epochs", "2", "--batch-size", "16", "--threads", "1"]
    assert cli.main([*arguments, "--val-fraction", "0.2", "--out", str(out)]) == 0
    content = json.loads((out / "compare.json").read_text())
    lines = {(line["name"], line["budget"]): line for line in content["methods"]}
    split = lines["split", 1]
    assert {"rmse", "nll", "calibrated_nll", "calibrated_log_likelihood"} <= split.keys()
    assert split["members"] == 2
    compared = {difference["metric"] for difference in content["differences"]}
    assert compared == {"mse", "nll", "calibrated_nll"}
    found = []
    for part in ("test", "val"):
        with np.load(out / "runs" / "split-e2-s0" / "predictions" / f"{part}.npz") as stored:
            assert stored["members"].tolist()[:2] == ["split-0001", "split-0002"]
            found.append((stored["predictions"][:2].astype(float), stored["targets"]))
    (said, targets), (known, truth) = found
    noise = metrics.fit_noise(known.mean(0), truth, known.var(0))
    nll = metrics.gaussian_nll_per_example(said.mean(0), targets, noise, said.var(0))
    calibrated = metrics.calibrated_gaussian_nll(said.mean(0), targets, said.var(0))
    saved = json.loads((out / "cells" / "split-b1-s0.json").read_text())["figures"]
    assert saved["rmse"] == pytest.approx(metrics.rmse(said.mean(0), targets))
    assert saved["nll"] == pytest.approx(nll.mean())
    assert saved["calibrated_nll"] == pytest.approx(calibrated.mean(), rel=1e-5)
    text = (out / "compare.md").read_text()
    assert "squared error" in text
    assert "24 test rows" in text
    assert "image" not in text
    assert " error" not in text.lower().replace("squared error", "")


def test_csgld_has_a_rate_at_which_a_regression_does_not_diverge(
    table: Path, tmp_path: Path
) -> None:
    options = {**RUN, "epochs": 12, "task": "regression", "target": ("y", "z"), "method": "csgld"}
    del options["lr"]
    data = str(table / "regression.csv")
    run = train(TrainConfig(data=data, out=tmp_path / "run", **options))
    content = report_of(run)
    assert content["config"]["csgld_lr"] == 0.03
    assert next(m for m in content["methods"] if m["name"] == "csgld")["r2"] > 0.2
    with pytest.raises(DivergenceError, match="lower the learning rates"):
        train(TrainConfig(data=data, out=tmp_path / "fast", csgld_lr=0.5, **options))


def test_numbers_far_from_zero_are_written_so_that_they_differ(tmp_path: Path) -> None:
    members = torch.tensor([[[1.7e9 + 1.25], [1.7e9 + 3.5]]], dtype=torch.float64)
    task = Regression(("y",), (1.7e9,), (1.0,))
    found = Predicted.of(members, keep_members=True)
    write_outputs(tmp_path, "row", ["0", "1"], found, task)
    with (tmp_path / "predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["y"]) - 1.7e9 for line in lines] == [1.25, 3.5]
