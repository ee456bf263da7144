"""``--tta`` of ``fge`` and ``train``: views against a hand-made oracle, passes, and resuming."""

from __future__ import annotations

import json
import shutil
import sys
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PLAIN, TINY_CLASSES, TINY_SIDE, TINY_TEST
from fge_runs import config
from numpy.typing import NDArray
from torch import Tensor, nn

from fge import metrics
from fge.commands.train import fge, train
from fge.config import TrainConfig
from fge.data import EvalBatches, ViewBatches, load_dataset
from fge.errors import UserError
from fge.networks import build_model, load_weights, read_weights
from fge.seeds import generator
from fge.train import METHODS, Learner, Method, endpoint_recipe

VIEWS, PADDING, SEED = 3, 2, 7
RUN: dict[str, Any] = {"single": True, "ood": ("noise",), "crop_padding": PADDING, "seed": SEED}
VIEWED = ("single", "average", "last-snapshot", "fge", "swa", "fold")
ADDED = {"predictions/test-tta.npz"}
CHANGED = {"config.json", "manifest.json", "report.json", "report.md", "report.html", "page.json"}


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fge(config(data, tmp_path_factory.mktemp("plain") / "run", **RUN))


@pytest.fixture(scope="module")
def viewed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fge(config(data, tmp_path_factory.mktemp("viewed") / "run", **RUN, tta=VIEWS))


def methods(run: Path) -> list[dict[str, Any]]:
    content: dict[str, Any] = json.loads((run / "report.json").read_text())
    found: list[dict[str, Any]] = content["methods"]
    return found


def line(run: Path, name: str) -> dict[str, Any]:
    """Return the last line of a name."""
    return [method for method in methods(run) if method["name"] == name][-1]


def stored(run: Path, name: str) -> dict[str, NDArray[np.float64]]:
    """Return the probabilities (N, C) in a prediction file by member."""
    with np.load(run / "predictions" / f"{name}.npz", allow_pickle=False) as archive:
        pairs = zip(archive["members"], archive["probabilities"], strict=True)
        return {str(member): probs.astype(np.float64) for member, probs in pairs}


def kept(run: Path) -> dict[str, bytes]:
    """Return what a run promises to reproduce: no clock, no pictures."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file() and path.suffix != ".png")
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in files
        if path.name not in ("timing.jsonl", *CHANGED)
    }


def weights_of(run: Path, member: str) -> Path:
    stage, _, number = member.rpartition("-")
    files = {"swa": "swa.safetensors", "fold": "folded.safetensors"}
    folders = {"fge": "snapshots"}
    return run / files.get(stage, f"{folders.get(stage, stage)}/{number}.safetensors")


def view_by_hand(images: NDArray[np.uint8], view: int) -> NDArray[np.uint8]:
    """Return a view (N, C, H, W) of images, cropped and mirrored one by one."""
    rng = generator(SEED, "view", view)
    offsets = torch.randint(0, 2 * PADDING + 1, (len(images), 2), generator=rng).tolist()
    mirrored = (torch.rand(len(images), generator=rng) < 0.5).tolist()
    margins = ((0, 0), (PADDING, PADDING), (PADDING, PADDING))
    crops = []
    for image, (top, left), mirror in zip(images, offsets, mirrored, strict=True):
        crop = np.pad(image, margins)[:, top : top + TINY_SIDE, left : left + TINY_SIDE]
        crops.append(crop[:, :, ::-1] if mirror else crop)
    return np.stack(crops)


def test_a_prediction_is_the_mean_over_views_made_by_hand(viewed: Path, data: Path) -> None:
    dataset = load_dataset(str(data), val_fraction=0.25)
    images = dataset.test.images.numpy()
    views = [images, *(view_by_hand(images, view) for view in range(1, VIEWS))]
    found, alone = stored(viewed, "test-tta"), stored(viewed, "test")
    assert list(found) == list(alone)
    assert len(found) == 7
    mean, std = (np.reshape(values, (1, -1, 1, 1)) for values in (dataset.mean, dataset.std))
    model = build_model(
        "convnet", in_channels=1, num_classes=TINY_CLASSES, image_size=dataset.image_size
    ).eval()
    for member, probs in found.items():
        path = weights_of(viewed, member)
        load_weights(model, read_weights(path), path)
        inputs = [torch.from_numpy(((view - mean) / std).astype(np.float32)) for view in views]
        with torch.no_grad():
            each = [model(x).double().softmax(1).numpy() for x in inputs]
        # float32 through the network: each view is right to about 1e-6.
        np.testing.assert_allclose(probs, np.mean(each, axis=0), atol=1e-5)
        np.testing.assert_allclose(alone[member], each[0], atol=1e-5)
        assert np.abs(probs - alone[member]).max() > 1e-3


def test_each_line_but_smaller_ensembles_has_one_with_views(viewed: Path) -> None:
    lines = [(method["name"], method["members"]) for method in methods(viewed)]
    assert lines == [
        *(("single", 1), ("single+tta", 1), ("average", 1), ("average+tta", 1)),
        *(("last-snapshot", 1), ("last-snapshot+tta", 1), ("best-snapshot", 1)),
        *(("fge", 2), ("fge", 3), ("fge+tta", 3)),
        *(("swa", 1), ("swa+tta", 1), ("fold", 1), ("fold+tta", 1)),
    ]
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize("name", VIEWED)
def test_passes_count_members_and_views_and_nothing_else_costs_more(
    name: str, viewed: Path
) -> None:
    one, other = line(viewed, name), line(viewed, f"{name}+tta")
    assert other["forward_passes"] == VIEWS * one["members"]
    assert one["forward_passes"] == one["members"]
    figures = {"name", "forward_passes", "error", "nll", "brier", "ece", "ood", "balanced_error"}
    same = {key: value for key, value in one.items() if key not in figures}
    assert {key: value for key, value in other.items() if key not in figures} == same
    assert "ood" not in other
    found = stored(viewed, "test-tta")
    with np.load(viewed / "predictions" / "test.npz") as archive:
        targets = archive["targets"]
    mean = np.mean([found[member] for member in one["member_names"]], axis=0)
    for figure, value in metrics.summary(mean, targets).items():
        assert other[figure] == pytest.approx(value, abs=1e-12)


@pytest.mark.slow
def test_views_are_added_to_a_finished_run_without_training_it_again(
    plain: Path, viewed: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = shutil.copytree(plain, tmp_path / "run"), list[EvalBatches]()
    predict = Learner.predict

    def counting(self: Learner, batches: Any) -> Tensor:
        asked.append(batches)
        return predict(self, batches)

    monkeypatch.setattr(Learner, "predict", counting)
    monkeypatch.setattr(Learner, "step", None)
    fge(config(data, run, **RUN, tta=VIEWS, resume=True))
    assert all(isinstance(batches, ViewBatches) for batches in asked)
    numbers = Counter(batches.view for batches in asked if isinstance(batches, ViewBatches))
    # Three snapshots, two networks and two averages, unless one of those is a snapshot as it was.
    with np.load(run / "predictions" / "test.npz", allow_pickle=False) as archive:
        *networks, swa, fold = archive["sha256"].tolist()
    evaluated = len(networks) + (swa not in networks) + (fold not in networks)
    assert numbers == {1: evaluated, 2: evaluated}
    before, after = kept(plain), kept(run)
    assert set(after) - set(before) == ADDED
    assert {name: after[name] for name in before} == before
    assert [one for one in methods(run) if "+tta" not in one["name"]] == methods(plain)
    assert kept(run) == kept(viewed)
    assert methods(run) == methods(viewed)

    asked.clear()
    fge(config(data, run, **RUN, resume=True))  # which keeps the views
    assert asked == []
    assert methods(run) == methods(viewed)


def test_another_number_of_views_is_refused(viewed: Path, data: Path) -> None:
    with pytest.raises(UserError, match="cannot resume with tta 4: the run was started with 3"):
        fge(config(data, viewed, **RUN, tta=4, resume=True))


def test_points_on_curves_have_no_views(data: Path, tmp_path: Path) -> None:
    options = {**RUN, "single": False, "refit": "polychain", "refit_epochs": 1, "ood": ()}
    run = fge(config(data, tmp_path / "run", **options, tta=2))
    names = [method["name"] for method in methods(run)]
    assert ("fge+refit" in names, "fge+refit+tta" in names) == (True, False)
    members = list(stored(run, "test-tta"))
    assert not any("/" in member or "--" in member for member in members)
    assert any("--" in member for member in stored(run, "test"))


def module(monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> None:
    made = types.ModuleType("mine")
    for name, value in attributes.items():
        setattr(made, name, value)
    monkeypatch.setitem(sys.modules, "mine", made)


class Rows(nn.Module):
    """Sees the mean of each row of pixels, which mirroring leaves as it is."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels * TINY_SIDE, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.mean(dim=3).flatten(1))
        return out


def test_a_network_that_mirroring_leaves_as_it_is_predicts_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(monkeypatch, rows=Rows)
    options = {**RUN, "crop_padding": 0, "model": "mine:rows", "ood": ()}
    run = fge(config(data, tmp_path / "run", **options, tta=4))
    one, other = stored(run, "test"), stored(run, "test-tta")
    for member, probs in one.items():
        np.testing.assert_allclose(other[member], probs, atol=1e-6)
    assert line(run, "fge+tta")["nll"] == pytest.approx(line(run, "fge")["nll"], abs=1e-6)


def train_config(data: Path, out: Path, method: str, **changes: Any) -> TrainConfig:
    options: dict[str, Any] = {"epochs": 4, "start_epoch": 0, "cycle_epochs": 2, "sse_cycles": 2}
    values = {**options, **PLAIN, "val_fraction": 0.25, "tta": 2, **changes}
    return TrainConfig(data=str(data), out=out, method=method, **values)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("single", {("single", 1)}),
        ("sse", {("last-snapshot", 1), ("sse", 2), ("swa", 1), ("fold", 1)}),
        ("swa", {("last-snapshot", 1), ("ensemble", 2), ("swa", 1), ("fold", 1)}),
    ],
)
def test_every_method_can_be_predicted_with_views(
    method: str, expected: set[tuple[str, int]], data: Path, tmp_path: Path
) -> None:
    run = train(train_config(data, tmp_path / "run", method))
    found = {(one["name"], one["members"]) for one in methods(run) if "+tta" in one["name"]}
    assert found == {(f"{name}+tta", members) for name, members in expected}
    assert all(len(probs) == TINY_TEST for probs in stored(run, "test-tta").values())


def test_a_method_without_augmentation_has_no_views(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = METHODS["single"].stages
    bare = Method("bare", "", stages, recipe=lambda c: replace(endpoint_recipe(c), augment=False))
    module(monkeypatch, bare=bare, named=Method("a+tta", "", stages))
    message = "tta 2 needs the augmentation of training, and bare has none; leave out --tta"
    with pytest.raises(UserError, match=message):
        train(train_config(data, tmp_path / "run", "mine:bare"))
    with pytest.raises(UserError, match="'a\\+tta', which is another row of its report"):
        train(train_config(data, tmp_path / "run", "mine:named"))
    assert not (tmp_path / "run").exists()
