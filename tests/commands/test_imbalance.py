"""Imbalanced classes: what the report shows of them, and weights that make them count the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PLAIN, tiny_split, write_tiny_npz
from curve_runs import run as run_line

from fge.commands.train import train
from fge.config import TrainConfig
from fge.data import load_dataset
from fge.ensemble import PredictionFile
from fge.metrics import class_rankings
from fge.report import ClassCounts, MethodResult, errors_table
from fge.report.classes import class_verdict


def imbalanced(path: Path, train_counts: tuple[int, ...], test_counts: tuple[int, ...]) -> Path:
    """Write noise without classes: at best a network learns how frequent they are."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, counts in (("train", train_counts), ("test", test_counts)):
        arrays[f"{part}_labels"] = np.repeat(np.arange(len(counts)), counts)
        shape = (sum(counts), 8, 8)
        arrays[f"{part}_images"] = rng.integers(0, 256, shape).astype(np.uint8)
    np.savez(path, **arrays)
    return path


def options(data: Path, out: Path, **changes: Any) -> TrainConfig:
    values = {**PLAIN, "data": str(data), "out": out, "epochs": 2, "val_fraction": 0.0, **changes}
    return TrainConfig(**values)


def test_means_say_over_which_classes_they_are() -> None:
    names, tested = ("a", "b", "c"), np.array([4, 0, 6])
    assert ClassCounts(names, 10 + tested, tested).of_classes == "the 2 classes with test images"
    assert ClassCounts(names, 10 + tested, 1 + tested).of_classes == "the classes"
    errors = {"single": np.array([25.0, np.nan, 50.0])}
    table = errors_table(ClassCounts(names, 10 + tested, tested), errors, "single")
    assert table.note is not None
    assert table.note.endswith("Balanced is the mean over the 2 classes with test images.")
    assert table.rows[-1][-1] == "37.50"
    method = MethodResult("single", 1, 1, 1, 1, 40.0, 1.0, None, None, ("0",))
    matrix = np.array([[3, 1, 0], [0, 0, 0], [0, 3, 3]])
    said = class_verdict(ClassCounts(names, 10 + tested, tested), method, matrix)
    assert "error, the mean over the 2 classes with test images, 37.50 %. Class c has" in said


def test_the_majority_alone_is_seen_at_a_glance(tmp_path: Path) -> None:
    data = imbalanced(tmp_path / "noise.npz", (990, 10), (99, 1))
    run = train(options(data, tmp_path / "run", lr=0.01, epochs=1))
    report = json.loads((run / "report.json").read_text())
    (line,) = report["methods"]
    assert (line["error"], line["balanced_error"]) == (1.0, 50.0)
    (found,) = report["classes"]["methods"]
    ranks = {name: found.pop(name) for name in ("auroc", "average_precision")}
    assert all(0 <= rank <= 1 for rank in ranks.values())
    assert report["classes"] == {
        "names": ["0", "1"],
        "train": [990, 10],
        "test": [99, 1],
        "methods": [
            {
                "name": "single",
                "members": 1,
                "balanced_error": 50.0,
                "errors": [0.0, 100.0],
                "confusion": [[99, 0], [1, 0]],
            }
        ],
    }
    text, page = (run / "report.md").read_text(), (run / "report.html").read_text()
    rows = [re.sub(r"\s+", "", row) for row in text.splitlines()]
    assert "|method|members|error|balanced|NLL|Brier|ECE|epochs|passes|" in rows
    assert "|0|990|99|0.00|" in rows
    assert "|1|10|1|100.00|" in rows
    assert "|balanced(mean)|1000|100|50.00|" in rows
    assert "|0|99|0|" in rows
    assert "|1|1|0|" in rows
    sentence = (
        "The classes have from 10 to 990 training images: the error of `single` is 1.00 %, and its "
        "balanced error, the mean over the classes, 50.00 %. Class 1 has the largest error, "
        "100.00 % of 1 test images."
    )
    assert sentence in text
    assert "Confusion matrix" in page
    assert "balanced error, the mean over the classes, 50.00 %" in page


def test_of_equal_classes_the_tables_are_there_and_the_column_is_not(
    tiny_npz: Path, tmp_path: Path
) -> None:
    run = train(options(tiny_npz, tmp_path / "run", val_fraction=0.25))
    report = json.loads((run / "report.json").read_text())
    targets = load_dataset(str(tiny_npz), val_fraction=0.25).test.labels
    probs = PredictionFile(run / "predictions" / "test.npz", targets).mean(["single-0001"])
    guessed, true = probs.argmax(1).numpy(), targets.numpy()
    wrong = [100 * np.mean(guessed[true == c] != c) for c in range(3)]
    (found,) = report["classes"]["methods"]
    assert found["errors"] == pytest.approx(wrong)
    assert report["methods"][0]["balanced_error"] == pytest.approx(np.mean(wrong))
    text = (run / "report.md").read_text()
    ranked = class_rankings(probs.numpy(), true)
    assert {key: found[key] for key in ranked} == ranked
    shown = f"| single | 1 | {ranked['auroc']:.4f} | {ranked['average_precision']:.4f} |"
    assert shown in text.split("## Rankings")[1]
    assert "## Errors by class" in text
    assert "## Confusion matrix" in text
    assert "| balanced |" not in text
    assert "The classes have from" not in text


def test_of_many_classes_the_worst_and_the_most_frequent_mistakes_are_shown(
    tmp_path: Path,
) -> None:
    data = imbalanced(tmp_path / "noise.npz", (4,) * 25, (4,) * 25)
    run = train(options(data, tmp_path / "run", epochs=1))
    report = json.loads((run / "report.json").read_text())
    assert len(report["classes"]["methods"][0]["confusion"]) == 25
    text = (run / "report.md").read_text()
    assert "The 20 of 25 classes with the largest errors are shown." in text
    assert "## Confusions" in text
    assert "report.json has the whole matrix" in text
    assert "## Confusion matrix" not in text


def test_balanced_weights_learn_the_minority_too(tmp_path: Path) -> None:
    """Two classes that pictures tell apart; ten images of the second among 310."""
    images, labels = tiny_split(900, 0)
    keep = np.flatnonzero(labels < 2)
    images, labels = images[keep], labels[keep]
    few = np.concatenate([np.flatnonzero(labels == 0)[:300], np.flatnonzero(labels == 1)[:10]])
    test_images, test_labels = tiny_split(90, 1)
    test = test_labels < 2
    data = write_tiny_npz(
        tmp_path / "few.npz",
        train_images=images[few],
        train_labels=labels[few],
        test_images=test_images[test],
        test_labels=test_labels[test],
    )
    found = {}
    for weights in ("none", "balanced"):
        run = train(
            options(data, tmp_path / weights, class_weights=weights, epochs=3, lr=0.02, seed=1)
        )
        (line,) = json.loads((run / "report.json").read_text())["methods"]
        found[weights] = line["balanced_error"]
    assert found["none"] >= 45
    assert found["balanced"] <= 20


def test_other_weights_are_refused(tiny_npz: Path) -> None:
    result = run_line(["train", "--data", str(tiny_npz), "--class-weights", "balance"])
    assert result.code == 2
    assert result.message.endswith("Did you mean 'balanced'?")
