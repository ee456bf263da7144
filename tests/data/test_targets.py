"""Targets of tasks: their checks, and which examples are alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fge.data import Reading, TargetFacts, load_dataset
from fge.data.targets import checked_targets, strata
from fge.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 4, 4), dtype=np.uint8)


def saved(path: Path, **arrays: object) -> str:
    np.savez(path, **{"train_images": IMAGES, **arrays})  # type: ignore[arg-type]
    return str(path)


def load(name: str, task: str, **options: object):
    return load_dataset(name, reading=Reading(task=task), **options)  # type: ignore[arg-type]


def test_targets_become_what_the_task_needs() -> None:
    assert checked_targets("binary", "y", np.array([0.0, 1.0]), 2).dtype == np.int64
    assert checked_targets("binary", "y", np.array([True, False]), 2).tolist() == [1, 0]
    labels = checked_targets("multilabel", "y", np.array([[0, 1], [1, 1]]), 2)
    assert labels.dtype == np.int64
    numbers = checked_targets("regression", "y", np.array([1, 2]), 2)
    assert numbers.shape == (2, 1)
    assert numbers.dtype == np.float64


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("binary", [0, 1, 2], "y must be 0 or 1 for --task binary, got 2 in row 2"),
        ("binary", [[0], [1], [1]], r"y must be \(N,\), for --task binary with N = 3"),
        ("multilabel", [0, 1, 1], r"y must be \(N, L\), a column per label"),
        ("multilabel", [[0, 1], [1, 3], [0, 0]], "got 3 in row 1, column 1"),
        ("multilabel", [[0, 0.5], [1, 1], [0, 0]], "got 0.5 in row 0, column 1"),
        (
            "regression",
            [1.0, np.nan, 2.0],
            "y must be finite for --task regression, got nan in row 1",
        ),
        (
            "regression",
            [1.0, 1e200, 2.0],
            r"at most 1e\+100 in size, in other units, got 1e\+200 in",
        ),
        ("regression", [[[1.0]]] * 3, r"y must be \(N,\) or \(N, K\)"),
        ("regression", ["a", "b", "c"], "y must be numbers for --task regression, got <U1"),
        ("regression", [1.0, 2.0], "with N = 3, got shape"),
    ],
)
def test_the_first_wrong_value_is_named(task: str, values: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked_targets(task, "y", np.array(values), 3)  # type: ignore[arg-type]


def test_a_regression_knows_mean_and_deviation_of_training_targets(tmp_path: Path) -> None:
    targets = np.stack([RNG.normal(50, 9, 40), np.full(40, 7.0)], axis=1)
    data = load(saved(tmp_path / "a.npz", train_targets=targets), "regression")
    train = data.train.labels.numpy()
    np.testing.assert_allclose(data.target.mean, train.mean(axis=0))
    np.testing.assert_allclose(data.target.std, [train[:, 0].std(), 1.0])  # one never changes
    assert data.outputs == 2
    assert data.classes == ("0", "1")
    assert data.train.labels.dtype == torch.float64
    everything = np.concatenate([d.labels.numpy() for d in (data.train, data.val, data.test)])
    np.testing.assert_array_equal(np.sort(everything[:, 0]), np.sort(targets[:, 0]))


def test_labels_keep_their_names_and_their_balance(tmp_path: Path) -> None:
    labels = np.zeros((40, 2), int)
    labels[::2, 0] = labels[::4, 1] = 1
    file = saved(tmp_path / "a.npz", train_labels=labels, target_names=np.array(["dark", "big"]))
    data = load(file, "multilabel", val_fraction=0.25)
    assert data.classes == ("dark", "big")
    assert data.untested == []
    for part in (data.train, data.val, data.test):
        means = part.labels.double().mean(dim=0)
        assert means.tolist() == pytest.approx([0.5, 0.25], abs=0.07)
    assert strata(labels).max() == 2  # three sets of labels occur


def test_two_classes_have_one_output(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.npz", train_labels=np.arange(40) % 2)
    assert load(file, "binary").outputs == 1
    assert load(file, "classification").outputs == 2
    assert load(file, "binary").target == TargetFacts("binary")


@pytest.mark.parametrize(
    ("task", "arrays", "message"),
    [
        ("regression", {"train_labels": IMAGES[:, 0, 0], "train_targets": IMAGES[:, 0, 0]},
         "has the arrays train_labels and train_targets; keep one"),
        ("regression", {"train_targets": np.full(40, np.inf)}, "train_targets must be finite"),
        ("multilabel", {"train_labels": np.zeros((40, 2)), "target_names": np.array(["a", "a"])},
         "target_names must be 2 different names"),
        ("regression", {"train_targets": np.zeros((40, 2)), "test_images": IMAGES,
                        "test_targets": np.zeros(40)}, "training targets have 2 columns, others 1"),
        ("classification", {"train_targets": np.zeros(40)}, "train_targets|train_labels"),
        ("regression", {"train_targets": np.full(40, 7.5)},
         "target is 7.5 for all 29 training images, so there is nothing to learn; give another"),
    ],
)  # fmt: skip
def test_wrong_arrays_are_named(tmp_path: Path, task: str, arrays: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(saved(tmp_path / "a.npz", **arrays), task)


def test_data_with_classes_have_no_other_targets() -> None:
    with pytest.raises(UserError, match="--task regression needs targets of its own"):
        load("fashion-mnist-mini", "regression")
    with pytest.raises(UserError, match=r"--task binary needs two classes, .* has 10"):
        load("fashion-mnist-mini", "binary")
