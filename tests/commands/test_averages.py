"""``swa`` and ``fold`` of a run: files, predictions and figures, each made once, and resumed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from curve_runs import (
    assert_same,
    done,
    job,
    methods,
    report,
    run_command,
)
from promised import promised
from safetensors.torch import load_file
from torch import Tensor, nn

import fge
from fge import metrics
from fge.commands import averages as averages_module
from fge.commands import cli
from fge.commands.averages import Averages, average_snapshots
from fge.commands.build import Setup, settle_options
from fge.commands.loading import load_data
from fge.commands.run import Run, open_run, prepare
from fge.commands.training import make_training
from fge.config import FGEConfig, RunConfig
from fge.ensemble import MemberPredictions
from fge.errors import DivergenceError
from fge.files import sha256
from fge.networks import build_model
from fge.runs import StagedTraining
from fge.train import Learner, endpoint_recipe, fge_stages

TRAIN_IMAGES, VAL_IMAGES = 72, 24


def averaged_job(data: Path, out: Path, **more: Any) -> dict[str, Any]:
    """Three snapshots around one minimum, after epochs 7, 9 and 11."""
    cycles = {"epochs": 11, "start_epoch": 6, "cycle_epochs": 2, "lr": 0.1}
    rates = {"max_lr": 0.1, "min_lr": 0.05, "val_fraction": 0.25, "seed": 5}
    return job(data, out, **{**cycles, **rates, **more})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return done("fge", averaged_job(data, tmp_path_factory.mktemp("finished") / "run"))


def stored(folder: Path, split: str) -> tuple[dict[str, np.ndarray], dict[str, str], np.ndarray]:
    """Return probabilities by member, keys by member, and targets."""
    with np.load(folder / "predictions" / f"{split}.npz") as file:
        names = [str(name) for name in file["members"]]
        probs = dict(zip(names, file["probabilities"].astype(np.float64), strict=True))
        return probs, dict(zip(names, map(str, file["sha256"]), strict=True)), file["targets"]


def averaged_by_hand(folder: Path, data: Path, names: list[str]) -> nn.Module:
    """Return the average of snapshots with statistics from images varied as in training."""
    config = FGEConfig(**{**averaged_job(data, folder), "out": None})
    dataset = load_data(config)
    model = build_model("convnet", in_channels=1, num_classes=3, image_size=(8, 8))
    states = [load_file(folder / "snapshots" / f"{name[-4:]}.safetensors") for name in names]
    mean = {n: torch.stack([s[n].double() for s in states]).mean(0) for n in states[0]}
    model.load_state_dict(mean)
    setup = Setup.of(settle_options(config, dataset), dataset)
    fge.refresh_batch_norm(model, setup.refresh_batches())
    return model


def assert_weights(path: Path, model: nn.Module) -> None:
    kept, state = load_file(path), model.state_dict()
    assert sorted(kept) == sorted(state)
    for name, tensor in kept.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, state[name], rtol=1e-5, atol=1e-6)


def test_the_averages_are_those_of_the_snapshots_with_their_own_statistics(
    finished: Path, data: Path
) -> None:
    found = report(finished)["averages"]
    names = ["fge-0001", "fge-0002", "fge-0003"]
    assert found["swa"]["snapshots"] == names
    assert_weights(finished / "swa.safetensors", averaged_by_hand(finished, data, names))
    folded = found["fold"]["snapshots"]
    assert len(folded) > 1, "something is folded here"
    assert_weights(finished / "folded.safetensors", averaged_by_hand(finished, data, folded))


def test_the_lines_have_the_costs_of_one_network_and_the_figures_of_its_predictions(
    finished: Path,
) -> None:
    lines = methods(finished)
    probs, _, targets = stored(finished, "test")
    trials = len(report(finished)["averages"]["fold"]["trials"])
    for name, images in (("swa 1", TRAIN_IMAGES), ("fold 1", trials * TRAIN_IMAGES)):
        line, member = lines[name], f"{name[:-2]}-0001"
        assert (line["train_epochs"], line["forward_passes"], line["refresh_images"]) == (
            lines["fge 3"]["train_epochs"],
            1,
            images,
        )
        tried = 1 if name == "swa 1" else trials
        assert line["validation_images"] == (3 + tried) * VAL_IMAGES
        assert line["weight_bytes"] == lines["last-snapshot 1"]["weight_bytes"]
        assert line["member_names"] == [member]
        for key, value in metrics.summary(probs[member], targets).items():
            assert line[key] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("split", ["val", "test"])
def test_predictions_are_kept_under_the_hashes_of_the_files(finished: Path, split: str) -> None:
    _, keys, _ = stored(finished, split)
    assert list(keys) == ["fge-0001", "fge-0002", "fge-0003", "swa-0001", "fold-0001"]
    assert keys["swa-0001"] == sha256((finished / "swa.safetensors").read_bytes())
    assert keys["fold-0001"] == sha256((finished / "folded.safetensors").read_bytes())


def test_figures_on_validation_are_those_of_the_predictions(finished: Path) -> None:
    probs, _, targets = stored(finished, "val")
    found = report(finished)["averages"]
    for name in ("swa", "fold"):
        own = probs[f"{name}-0001"]
        assert found[name]["nll"] == pytest.approx(metrics.nll(own, targets), abs=1e-6)
        assert found[name]["error"] == metrics.error(own, targets)
    snapshots = [metrics.nll(probs[f"fge-000{n}"], targets) for n in (1, 2, 3)]
    assert found["swa"]["barrier"] == pytest.approx(
        found["swa"]["nll"] - np.mean(snapshots), abs=1e-6
    )
    mean = np.mean([probs[f"fge-000{n}"] for n in (1, 2, 3)], axis=0)
    ensemble = found["fold"]["ensemble"]
    assert ensemble["nll"] == pytest.approx(metrics.nll(mean, targets), abs=1e-6)
    assert found["fold"]["nll"] <= min(snapshots) + 1e-6


def test_the_report_says_what_folding_lost(finished: Path) -> None:
    content = report(finished)
    count = len(content["averages"]["fold"]["snapshots"])
    assert f"`fold`, one network, averages the weights of {count} of 3" in content["verdict"]
    page = (finished / "report.md").read_text()
    assert "## Averaged weights on the validation images" in page
    assert "| fold | 1 |" in page


def test_without_validation_there_is_swa_alone(data: Path, tmp_path: Path) -> None:
    folder = done("fge", averaged_job(data, tmp_path / "run", val_fraction=0.0, epochs=9))
    assert list(methods(folder)) == ["last-snapshot 1", "fge 2", "swa 1"]
    assert report(folder)["averages"] == {"swa": {"snapshots": ["fge-0001", "fge-0002"]}}
    assert not (folder / "folded.safetensors").exists()


def test_one_snapshot_is_not_averaged(data: Path, tmp_path: Path) -> None:
    folder = done("fge", averaged_job(data, tmp_path / "run", epochs=7))
    assert list(methods(folder)) == ["last-snapshot 1", "best-snapshot 1"]
    assert "averages" not in report(folder)
    assert not (folder / "swa.safetensors").exists()


def test_images_of_another_kind_are_predicted_by_the_averages_too_later(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    before = promised(folder)
    run_command("fge", {**averaged_job(data, folder), "resume": True, "ood": ["noise"]})
    _, keys, _ = stored(folder, "ood-noise")
    assert keys == stored(folder, "test")[1]
    assert list(keys)[-2:] == ["swa-0001", "fold-0001"]
    assert (folder / "predictions" / "test.npz").read_bytes() == before["predictions/test.npz"]


# ------------------------------------------------------------------------------------ resuming


def test_a_finished_run_is_not_averaged_again(
    finished: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = promised(finished)
    for name in ("average_weights", "fold_greedily", "refresh_batch_norm"):
        monkeypatch.setattr(averages_module, name, None)
    monkeypatch.setattr(Learner, "predict", None)
    run_command("fge", {**averaged_job(data, finished), "resume": True})
    assert promised(finished) == before


def test_averages_that_were_changed_or_lost_are_made_again(finished: Path) -> None:
    before = promised(finished)
    (finished / "swa.safetensors").unlink()
    (finished / "folded.safetensors").write_bytes(b"damaged")
    assert cli.main(["fge", "--out", str(finished), "--resume"]) == 2
    assert cli.main(["verify", str(finished), "--repair"]) == 0
    assert promised(finished) == before


# ---------------------------------------------------------------------------- snapshots of any kind


class Hidden(nn.Module):
    """A network whose hidden units can be put in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 32)
        self.last = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.first(x.flatten(1)).relu())
        return logits


@dataclass
class Scene:
    run: Run[RunConfig]
    training: StagedTraining
    predictions: MemberPredictions

    def average(self, stage: str) -> Averages:
        self.training.predict_members(self.predictions)
        recipe = endpoint_recipe(self.run.config)
        return average_snapshots(self.run, self.training, stage, recipe, self.predictions)


@contextmanager
def scene(data: Path, out: Path, stage: str = "sse", **more: Any) -> Iterator[Scene]:
    """Two snapshots of a small network, kept by a stage of this name."""
    options = averaged_job(data, out, epochs=12, start_epoch=9, max_lr=0.05, lr=0.05, **more)
    config, setup = prepare(FGEConfig(**{**options, "out": out}), "fge")
    start, cycles = fge_stages(config)
    torch.manual_seed(0)
    model = Hidden()
    with open_run(config, "fge", setup, model, epochs=12) as run:
        training = make_training(
            run.setup,
            model,
            run.folder,
            run.observer,
            recipe=endpoint_recipe(config),
            stages=[start, replace(cycles, name=stage)],
        )
        training.run()
        yield Scene(run, training, run.setup.predictions(run.folder))


def replace_second(training: StagedTraining, stage: str, state: dict[str, Tensor]) -> None:
    """Put other weights in the place of the second snapshot, validated as it was."""
    store, val, batches = training.stores[stage], training.val_predictions, training.validation
    assert val is not None
    assert batches is not None
    training.learner.model.load_state_dict(state)
    probs = training.learner.predict(batches)
    figures = {"val_error": metrics.error(probs, val.targets)}
    figures["val_nll"] = metrics.nll(probs, val.targets)
    facts = {k: v for k, v in store.facts(1).items() if k not in ("file", "sha256")}
    store.truncate(1)
    store.append(state, **{**facts, **figures})
    val.add(f"{stage}-0002", store.facts(1)["sha256"], probs)


def test_snapshots_of_two_basins_are_seen_and_refused(data: Path, tmp_path: Path) -> None:
    with scene(data, tmp_path / "run") as s:
        store = s.training.stores["sse"]
        twin = {n: t.flip(0) for n, t in store[1].items()}
        twin["last.weight"] = store[1]["last.weight"].flip(1)
        twin["last.bias"] = store[1]["last.bias"]
        replace_second(s.training, "sse", twin)
        averages = s.average("sse")
        found = averages.content["averages"]
        assert found["swa"]["harmful"] is True
        assert found["swa"]["barrier"] > 0.05
        assert averages.sentences[0].startswith("Averaging the weights of all snapshots (swa) is")
        assert averages.sentences[1].startswith("No average of weights was safe: every other")
        best = found["fold"]["best_snapshot"]["name"]
        assert found["fold"]["snapshots"] == [best]
        position = int(best[-1]) - 1
        kept = load_file(s.run.folder.path / "folded.safetensors")
        assert all(torch.equal(kept[n], store[position][n]) for n in kept)
        test = s.predictions.test
        assert torch.equal(test.probabilities("fold-0001"), test.probabilities(best))
        assert [r.refresh_images for r in averages.results] == [0, 0]  # no batch norm


def test_a_snapshot_kept_as_it_is_is_not_predicted_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    predict = Learner.predict

    def counting(self: Learner, batches: Any) -> Tensor:
        calls.append(len(batches.split))
        return predict(self, batches)

    with scene(data, tmp_path / "run") as s:
        # The opposite weights: their average is no network at all.
        twin = {n: -t for n, t in s.training.stores["sse"][1].items()}
        replace_second(s.training, "sse", twin)
        s.training.predict_members(s.predictions)
        monkeypatch.setattr(Learner, "predict", counting)
        averages = s.average("sse")
        fold = averages.content["averages"]["fold"]
        assert fold["snapshots"] == [fold["best_snapshot"]["name"]]
        assert calls == [VAL_IMAGES, VAL_IMAGES, 48]  # the average, the trial, the average


@pytest.mark.parametrize("stage", ["swa", "fold"])
def test_a_stage_called_like_an_average_keeps_its_snapshots(
    data: Path, tmp_path: Path, stage: str
) -> None:
    with scene(data, tmp_path / "run", stage) as s:
        averages = s.average(stage)
        names = [result.member_names[0] for result in averages.results]
        expected = {"swa": "swa-0001", "fold": "fold-0001", stage: f"{stage}-average-0001"}
        assert names == [expected["swa"], expected["fold"]]
        before = (s.run.folder.predictions / "test.npz").read_bytes()
        s.training.predict_members(s.predictions)
        assert (s.run.folder.predictions / "test.npz").read_bytes() == before
        assert s.predictions.test.members == [f"{stage}-0001", f"{stage}-0002", *names]


def test_an_average_that_is_not_finite_is_left_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: object) -> Tensor:
        raise DivergenceError("the model's predictions are not finite")

    with scene(data, tmp_path / "run") as s:
        s.training.predict_members(s.predictions)
        monkeypatch.setattr(Learner, "predict", diverge)
        averages = s.average("sse")
        assert [result.name for result in averages.results] == ["fold"]
        assert averages.sentences[0].startswith("The average of all snapshots' weights (swa) gives")
        assert averages.sentences[1].startswith("No average of weights was safe")
        json.dumps(averages.content, allow_nan=False)
        assert averages.content["averages"]["swa"]["nll"] is None


class Interrupted(BaseException):
    """What happens at a write that does not take place."""


@pytest.mark.slow
def test_interrupted_at_any_write_of_averaging_it_ends_as_if_uninterrupted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scene(data, tmp_path / "trained") as s:
        s.training.predict_members(s.predictions)
    sync, left = os.fsync, [-1]

    def failing(handle: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Interrupted
        sync(handle)

    def average(folder: Path) -> None:
        with scene(data, folder, resume=True) as s:
            with monkeypatch.context() as patch:
                patch.setattr("fge.disk.os.fsync", failing)
                averages = s.average("sse")
            (folder / "averages.json").write_text(json.dumps(averages.content))

    reference = shutil.copytree(tmp_path / "trained", tmp_path / "reference")
    average(reference)
    calls = -1 - left[0]
    # Two weights, a prediction of each on both splits, two records; each syncs file and folder,
    # and the manifest before.
    assert calls == 2 * 2 * (2 + 4 + 2)
    for point in range(1, calls + 1):
        folder = shutil.copytree(tmp_path / "trained", tmp_path / f"at-{point}")
        left[0] = point
        with pytest.raises(Interrupted):
            average(folder)
        average(folder)
        assert_same(folder, reference)
