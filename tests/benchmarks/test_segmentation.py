"""The benchmark of segmentation: its figures, its images, and every method on a few of them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import segmentation as study  # type: ignore[import-not-found, unused-ignore]


def test_figures_are_means_over_the_pixels_of_an_image() -> None:
    targets = torch.tensor([[[0, 1], [1, 0]], [[0, 0], [2, 2]]])
    probs = torch.full((2, study.CLASSES, 2, 2), 0.05, dtype=torch.float64)
    probs.scatter_(1, targets[:, None], 0.8)
    wrong = [0.6, 0.1, 0.1, 0.1, 0.1]  # the pixel is of class 1
    probs[0, :, 0, 1] = torch.tensor(wrong, dtype=torch.float64)
    found = study.figures(probs, targets)
    assert found["error"] == [25.0, 0.0]
    own = -np.log(0.8)
    assert found["nll"] == pytest.approx([(3 * own - np.log(0.1)) / 4, own], rel=1e-12)
    # Intersection over union: 4 of 5, 1 of 2, 2 of 2, and none of two classes.
    assert found["mean_iou"] == pytest.approx(100 * (4 / 5 + 1 / 2 + 1) / 5, rel=1e-6)


def test_the_images_are_always_the_same_and_silhouettes_have_their_kind() -> None:
    first, again = study.Scenes.make(30), study.Scenes.make(30)
    for a, b in zip(
        (*first.train, *first.search, *first.test),
        (*again.train, *again.search, *again.test),
        strict=True,
    ):
        assert torch.equal(a, b)
    inputs, targets = first.test
    assert inputs.shape == (30, 1, 28, 28)
    assert targets.shape == (30, 28, 28)
    kinds = [image.unique().tolist() for image in targets]
    assert all(found[0] == 0 and len(found) == 2 for found in kinds)
    assert {found[1] for found in kinds} == {1, 2, 3, 4}
    assert study.UNet()(inputs).shape == (30, study.CLASSES, 28, 28)


@pytest.mark.slow
def test_every_method_predicts_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"EPOCHS": 4, "CYCLE_START": 2, "CYCLE": 2, "BATCH": 25}.items():
        monkeypatch.setattr(study, name, value)
    scenes = study.Scenes.make(50)
    for method in study.METHODS:
        probs = study.predicted(method, scenes.train, 0.1, 7, scenes.test[0])
        assert probs.shape == (50, study.CLASSES, 28, 28)
        torch.testing.assert_close(probs.sum(dim=1), torch.ones(50, 28, 28).double())
        assert torch.equal(probs, study.predicted(method, scenes.train, 0.1, 7, scenes.test[0]))
