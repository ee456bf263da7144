"""Training in stages: what is told, logged and kept, and predictions against a dense oracle."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fge import metrics
from fge.config import FGEConfig
from fge.data import EvalBatches, Normaliser, Split, TrainBatches
from fge.ensemble import MemberPredictions, PredictionFile
from fge.errors import DivergenceError
from fge.observer import Observer
from fge.runs import RunFolder, StagedTraining, member_name, staged
from fge.train import Learner, Stage, endpoint_recipe, fge_paper_stages, recipe_stages

CPU = torch.device("cpu")
NORMALISER = Normaliser([128.0], [64.0], CPU)
CONFIG = FGEConfig(
    epochs=4, start_epoch=1, cycle_epochs=2, lr=0.25, max_lr=0.125, min_lr=0.0625, single=True
)
Finished = tuple[StagedTraining, "Recorder"]
NAMES = ["fge-0001", "fge-0002", "single-0001"]


class Recorder(Observer):
    """Remembers what it hears, and whether the model was in training mode then."""

    def __init__(self) -> None:
        self.epochs: list[tuple[dict[str, Any], int, int]] = []
        self.snapshots: list[dict[str, Any]] = []
        self.model: nn.Module | None = None
        self.modes: list[bool] = []

    def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
        self.epochs.append((record, done, total))

    def snapshot(self, record: dict[str, Any]) -> None:
        assert self.model is not None
        self.snapshots.append(record)
        self.modes.append(self.model.training)


def split_of(count: int, seed: int) -> Split:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 2, 2), generator=rng, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 3)


TRAIN, VAL, TEST = split_of(18, 0), split_of(7, 1), split_of(5, 2)


def new_training(
    folder: Path, stages: list[Stage] | None = None, *, validation: bool = True
) -> tuple[StagedTraining, Recorder]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=CONFIG.base_lr, momentum=0.9)
    observer = Recorder()
    observer.model = model
    training = StagedTraining(
        RunFolder(folder),
        Learner(model, optimizer),
        fge_paper_stages(CONFIG) if stages is None else stages,
        batches=TrainBatches(TRAIN, NORMALISER, 6, seed=0),
        validation=EvalBatches(VAL, NORMALISER, 4) if validation else None,
        seed=0,
        observer=observer,
    )
    return training, observer


def run(folder: Path, **options: Any) -> tuple[StagedTraining, Recorder]:
    training, observer = new_training(folder, **options)
    training.run()
    return training, observer


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Return a training that is done, and what was heard of it; only to be looked at."""
    return run(tmp_path_factory.mktemp("finished"))


def oracle(state: dict[str, Tensor], split: Split) -> NDArray[np.float64]:
    """Return the probabilities (N, 3) of a stored linear model, computed by hand in float64."""
    x = (split.images.numpy().reshape(len(split), 4) - 128.0) / 64.0
    logits = x @ state["1.weight"].double().numpy().T + state["1.bias"].double().numpy()
    powers = np.exp(logits)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def predicted(training: StagedTraining, folder: Path) -> PredictionFile:
    """Let a training predict the test set into ``folder``; return the file."""
    predictions = MemberPredictions(folder, EvalBatches(TEST, NORMALISER, 2))
    training.predict_members(predictions)
    return predictions.test


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the images of every split that is predicted from now on."""
    calls: list[int] = []
    predict = Learner.predict

    def counting(self: Learner, batches: Any) -> Tensor:
        calls.append(len(batches.split))
        return predict(self, batches)

    monkeypatch.setattr(Learner, "predict", counting)
    return calls


def test_members_are_named_by_stage_and_position_from_one() -> None:
    assert member_name("fge", 0) == "fge-0001"
    assert member_name("single", 9998) == "single-9999"


def test_members_come_in_the_order_of_the_stages(finished: Finished) -> None:
    training, _ = finished
    members = [(name, store.path.name, position) for name, store, position in training.members()]
    assert members == [
        ("fge-0001", "snapshots", 0),
        ("fge-0002", "snapshots", 1),
        ("single-0001", "single", 0),
    ]


def test_the_observer_hears_every_epoch_of_all_stages_counted_through(finished: Finished) -> None:
    training, observer = finished
    heard = [(r["stage"], r["epoch"], done, total) for r, done, total in observer.epochs]
    assert heard == [
        ("start", 0, 1, 7),
        ("fge", 1, 2, 7),
        ("fge", 2, 3, 7),
        ("fge", 3, 4, 7),
        ("single", 1, 5, 7),
        ("single", 2, 6, 7),
        ("single", 3, 7, 7),
    ]
    logged = [record for record in training.folder.records() if record["event"] == "epoch"]
    assert logged == [record for record, _, _ in observer.epochs]


def test_epochs_are_logged_with_the_rate_of_their_next_step(finished: Finished) -> None:
    _, observer = finished
    rates = [record["next_lr"] for record, _, _ in observer.epochs]
    # The conventional schedule is flat up to epoch 2 of 4; cycles of 2 epochs fall to .0625.
    assert rates[:4] == pytest.approx([0.25, 0.0625, 0.125, 0.0625], rel=1e-12)
    third = 0.25 * (1 - 0.25 / 0.4 * 0.99)
    assert rates[4:] == pytest.approx([third, 0.25 * 0.01, 0.25 * 0.01], rel=1e-12)


def test_snapshots_are_told_as_they_are_logged_with_step_epoch_and_rate(finished: Finished) -> None:
    training, observer = finished
    logged = [record for record in training.folder.records() if record["event"] == "snapshot"]
    assert logged == observer.snapshots
    facts = [(r["stage"], r["member"], r["epoch"], r["step"]) for r in logged]
    assert facts == [("fge", 1, 2, 6), ("fge", 2, 4, 12), ("single", 1, 4, 12)]
    assert [r["lr"] for r in logged[:2]] == pytest.approx([0.0625, 0.0625], rel=1e-12)
    index = json.loads((training.folder.path / "snapshots" / "index.json").read_text())["snapshots"]
    for entry, record in zip(index, logged, strict=False):
        assert {k: entry[k] for k in ("step", "epoch", "lr", "val_error", "val_nll")} == {
            k: record[k] for k in ("step", "epoch", "lr", "val_error", "val_nll")
        }


def test_a_snapshot_is_logged_before_the_epoch_that_it_ends(finished: Finished) -> None:
    training, _ = finished
    events = [(r["event"], r["stage"], r["epoch"]) for r in training.folder.records()]
    for stage in ("fge", "single"):
        position = events.index(("snapshot", stage, 4))
        assert events[position + 1] == ("epoch", stage, 3)


def test_validation_figures_are_those_of_the_weights_kept(finished: Finished) -> None:
    training, observer = finished
    members = [store[position] for _, store, position in training.members()]
    targets = VAL.labels.numpy()
    probs = [oracle(state, VAL) for state in members]
    for record, own in zip(observer.snapshots, probs, strict=True):
        assert record["val_error"] == metrics.error(own, targets)
        assert record["val_nll"] == pytest.approx(metrics.nll(own, targets), abs=1e-6)
    pair = (probs[0] + probs[1]) / 2
    ensembles = [probs[0], pair, probs[2]]
    for record, own in zip(observer.snapshots, ensembles, strict=True):
        assert record["ensemble_val_error"] == metrics.error(own, targets)
        assert record["ensemble_val_nll"] == pytest.approx(metrics.nll(own, targets), abs=1e-6)


def test_distances_are_those_to_the_stages_last_snapshot(tmp_path: Path) -> None:
    config = FGEConfig(epochs=5, start_epoch=0, cycle_epochs=2, max_lr=0.125, min_lr=0.0625)
    training, observer = run(tmp_path, stages=fge_paper_stages(config))
    states = [
        torch.cat([state[name].double().flatten() for name in sorted(state)])
        for state in training.stores["fge"]
    ]
    assert len(states) == 3
    assert "distance" not in observer.snapshots[0]
    for record, last, state in zip(observer.snapshots[1:], states, states[1:], strict=False):
        expected = math.sqrt(float((state - last).square().sum()))
        assert record["distance"] == pytest.approx(expected, rel=1e-12)


def test_the_first_snapshot_of_each_stage_has_no_distance(finished: Finished) -> None:
    _, observer = finished
    assert ["distance" in record for record in observer.snapshots] == [False, True, False]


def test_validating_leaves_the_model_in_training_mode(finished: Finished) -> None:
    _, observer = finished
    assert observer.modes == [True, True, True]


def test_without_validation_nothing_is_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch)
    _, observer = run(tmp_path, validation=False)
    assert calls == []
    assert not (tmp_path / "predictions").exists()
    for record in observer.snapshots:
        assert [key for key in record if "val" in key] == []


def test_validation_does_not_change_the_training(tmp_path: Path) -> None:
    one, _ = run(tmp_path / "with")
    other, _ = run(tmp_path / "without", validation=False)
    for name in ("fge", "single"):
        for ours, theirs in zip(one.stores[name], other.stores[name], strict=True):
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_test_predictions_are_the_oracles_in_the_order_of_the_members(tmp_path: Path) -> None:
    training, _ = run(tmp_path)
    path = tmp_path / "predictions" / "test.npz"
    predictions = predicted(training, path.parent)
    for name, store, position in training.members():
        np.testing.assert_allclose(
            predictions.probabilities(name), oracle(store[position], TEST), rtol=0, atol=1e-6
        )
    with np.load(path, allow_pickle=False) as archive:
        assert list(archive["members"]) == NAMES
        assert list(archive["targets"]) == TEST.labels.tolist()
        hashes = [store.facts(i)["sha256"] for _, store, i in training.members()]
        assert list(archive["sha256"]) == hashes


def test_members_are_predicted_once_and_again_only_with_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, _ = run(tmp_path)
    path, calls = tmp_path / "predictions" / "test.npz", counted(monkeypatch)
    predicted(training, path.parent)
    assert calls == [5, 5, 5]
    before = path.read_bytes()
    predicted(training, path.parent)
    assert calls == [5, 5, 5]
    assert path.read_bytes() == before
    store = training.stores["fge"]
    replaced = {name: tensor + 1 for name, tensor in store[1].items()}
    store.truncate(1)
    store.append(replaced, step=12, lr=0.1)
    predictions = predicted(training, path.parent)
    assert calls == [5, 5, 5, 5]
    np.testing.assert_allclose(
        predictions.probabilities("fge-0002"), oracle(replaced, TEST), rtol=0, atol=1e-6
    )


def test_predictions_of_members_that_are_gone_are_dropped(tmp_path: Path) -> None:
    training, _ = run(tmp_path)
    path = tmp_path / "predictions" / "test.npz"
    predicted(training, path.parent)
    training.stores["fge"].truncate(1)
    predictions = predicted(training, path.parent)
    assert "fge-0002" not in predictions
    with np.load(path, allow_pickle=False) as archive:
        assert list(archive["members"]) == ["fge-0001", "single-0001"]


def test_predictions_of_points_on_paths_stay_behind_the_members(tmp_path: Path) -> None:
    training, _ = run(tmp_path)
    path = tmp_path / "predictions" / "test.npz"
    probs = torch.full((5, 3), 1 / 3, dtype=torch.float64)
    PredictionFile(path, TEST.labels).add("first-second/curve/0.5000", "sha", probs)
    predictions = predicted(training, path.parent)
    assert predictions.members == [*NAMES, "first-second/curve/0.5000"]


def test_predictions_of_averages_stay_behind_the_members_on_both_splits(tmp_path: Path) -> None:
    training, _ = run(tmp_path)
    probs = torch.full((7, 3), 1 / 3, dtype=torch.float64)
    assert training.val_predictions is not None
    training.val_predictions.add("swa-0001", "sha", probs)
    training.val_predictions.add("fge-0003", "of a snapshot that is gone", probs)
    again, _ = run(tmp_path)
    assert again.val_predictions is not None
    assert again.val_predictions.members == [*NAMES, "swa-0001"]
    PredictionFile(tmp_path / "predictions" / "test.npz", TEST.labels).add(
        "swa-average-0001", "sha", probs[:5]
    )
    predictions = predicted(again, tmp_path / "predictions")
    assert predictions.members == [*NAMES, "swa-average-0001"]


def test_predictions_that_are_not_finite_name_step_and_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, _ = run(tmp_path)

    def diverge(*_: object) -> Tensor:
        raise DivergenceError("the model's predictions are not finite")

    monkeypatch.setattr(Learner, "predict", diverge)
    message = (
        r"^the model's predictions are not finite after step 5 with learning rate 0\.0625; lower "
        r"the learning rates$"
    )
    with pytest.raises(DivergenceError, match=message):
        predicted(training, tmp_path / "predictions")


def test_what_an_attempt_without_a_checkpoint_left_is_gone(tmp_path: Path) -> None:
    reference, _ = run(tmp_path / "reference")
    folder = RunFolder(tmp_path / "again")
    folder.path.mkdir()
    folder.log({"event": "epoch", "stage": "start", "epoch": 0, "train_loss": 1.0})
    folder.write_state("left-over", {"epoch": 3})
    training, _ = new_training(folder.path)
    training.stores["fge"].append(nn.Linear(1, 1), step=1, lr=0.1)
    training.run()
    assert folder.records() == reference.folder.records()
    assert folder.read_state("left-over") is None
    assert [name for name, _, _ in training.members()] == NAMES


def test_a_finished_training_is_not_run_again(tmp_path: Path) -> None:
    training, _ = run(tmp_path)
    before = training.folder.log_file.read_bytes()
    again, observer = run(tmp_path)
    assert observer.epochs == []
    assert observer.snapshots == []
    assert again.folder.log_file.read_bytes() == before
    assert [name for name, _, _ in again.members()] == NAMES


def test_a_recipes_one_stage_keeps_the_network_at_its_end(tmp_path: Path) -> None:
    stages = recipe_stages(endpoint_recipe(CONFIG), 2)
    training, observer = run(tmp_path, stages=stages)
    assert [name for name, _, _ in training.members()] == ["network-0001"]
    assert [(r["stage"], r["epoch"], r["step"]) for r in observer.snapshots] == [("network", 2, 6)]
    kept = training.stores["network"][0]
    state = training.learner.model.state_dict()
    assert all(torch.equal(kept[name], state[name]) for name in state)


@pytest.mark.parametrize("key", ["seconds", "images_per_second", "peak_memory_mib"])
def test_times_are_kept_out_of_the_log(finished: Finished, key: str) -> None:
    training, _ = finished
    records = [json.loads(line) for line in training.folder.timing_file.read_text().splitlines()]
    assert len(records) == 7
    assert all(record[key] >= 0 for record in records)
    assert not [record for record in training.folder.records() if key in record]


@pytest.mark.parametrize(
    ("seconds", "checkpoints"), [(0.1, [2, 3, 4]), (1.0, [2, 4]), (0.3, [2, 4])]
)
def test_slow_checkpoints_are_written_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, checkpoints: list[int]
) -> None:
    """Epochs of no time on a clock on which writing a checkpoint takes ``seconds``."""
    now = 0.0
    written: list[int] = []
    monkeypatch.setattr(staged.time, "perf_counter", lambda: now)

    def write(_folder: RunFolder, _name: str, state: dict[str, Any]) -> None:
        nonlocal now
        if "epoch" in state:
            written.append(state["epoch"])
            now += seconds

    monkeypatch.setattr(RunFolder, "write_state", write)
    stage = fge_paper_stages(CONFIG)[0]
    training, _ = new_training(tmp_path, [stage])
    training.learner.device = torch.device("cuda")
    training._checkpoint(stage, stage.schedule(training.learner.optimizer, 3), 2)
    for epoch in (3, 4):
        if epoch == 4 or training._checkpoint_is_due():
            training._checkpoint(stage, stage.schedule(training.learner.optimizer, 3), epoch)
    assert written == checkpoints


def test_every_stage_ends_with_a_checkpoint_however_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StagedTraining, "_checkpoint_is_due", lambda _: False)
    training, _ = run(tmp_path)
    state = training.folder.read_state("checkpoint")
    assert state is not None
    assert (state["stage"], state["epoch"]) == ("single", CONFIG.epochs)
    again, observer = run(tmp_path)
    assert observer.epochs == []
    assert again.members()
