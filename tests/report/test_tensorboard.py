"""TensorBoard scalars: what the logs hold, each step once, also after a resumed run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PLAIN
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fge.commands.train import fge
from fge.config import FGEConfig
from fge.errors import UserError
from fge.files import append_record, write_records
from fge.report import TensorBoardObserver, check_tensorboard
from fge.report.tensorboard import scalars
from fge.runs import RunFolder


def epoch(number: int, loss: float, stage: str = "fge") -> dict[str, Any]:
    return {
        "event": "epoch",
        "stage": stage,
        "epoch": number,
        "next_lr": 0.5,
        "train_loss": loss,
    }


SNAPSHOT = {
    "event": "snapshot",
    "stage": "fge",
    "member": 1,
    "step": 6,
    "epoch": 2,
    "lr": 0.25,
    "val_error": 9.5,
    "val_nll": 0.5,
    "ensemble_val_error": 9.25,
    "ensemble_val_nll": 0.375,
}


def found(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return steps and values by tag."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def test_records_become_scalars_at_complete_epochs() -> None:
    assert list(scalars("", epoch(0, 1.5))) == [("fge/train_loss", 1.5, 1), ("fge/lr", 0.5, 1)]
    assert list(scalars("", SNAPSHOT)) == [
        ("fge/val_error", 9.5, 2),
        ("fge/val_nll", 0.5, 2),
        ("fge/ensemble_val_error", 9.25, 2),
        ("fge/ensemble_val_nll", 0.375, 2),
    ]
    sharp = {"event": "sharpness", "stage": "fge", "epoch": 3, "eigenvalue": 50.0, "lr": 0.5}
    assert list(scalars("", sharp)) == [("fge/eigenvalue", 50.0, 3)]
    assert next(scalars("networks/G-1", epoch(1, 0.5, "network"))) == (
        "networks/G-1/train_loss",
        0.5,
        2,
    )
    assert list(scalars("", {"event": "network", "name": "a", "epoch": 3})) == []


def test_scalars_come_from_all_logs_as_they_grow(tmp_path: Path) -> None:
    folder, other = RunFolder(tmp_path), tmp_path / "networks" / "G-1" / "log.jsonl"
    curve = tmp_path / "curves" / "a--b" / "fit.jsonl"
    other.parent.mkdir(parents=True)
    curve.parent.mkdir(parents=True)
    with TensorBoardObserver(tmp_path) as observer:
        append_record(other, epoch(0, 2.0, "network"))
        observer.epoch(epoch(0, 2.0), 1, 3)
        folder.log(epoch(0, 1.5))
        observer.epoch(epoch(0, 1.5), 2, 3)
        folder.log(SNAPSHOT)
        observer.snapshot(SNAPSHOT)
        append_record(curve, {"event": "epoch", "stage": "curve", "epoch": 0, "train_loss": 1.0})
    values = found(tmp_path)
    assert values["networks/G-1/train_loss"] == [(1, 2.0)]
    assert values["fge/train_loss"] == [(1, 1.5)]
    assert values["fge/ensemble_val_nll"] == [(2, 0.375)]
    assert values["curves/a--b/train_loss"] == [(1, 1.0)]


def test_a_run_that_goes_on_has_each_epoch_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    observer = TensorBoardObserver(tmp_path)
    for number in range(3):
        folder.log(epoch(number, 3.0 - number))
        observer.epoch({}, number + 1, 5)
    observer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert len(found(tmp_path)["fge/train_loss"]) == 3
    folder.cut_log(1)  # the checkpoint was after the first epoch
    with TensorBoardObserver(tmp_path) as observer:
        for number in (1, 2):
            folder.log(epoch(number, 0.5 * number))
            observer.epoch({}, number + 1, 5)
    assert found(tmp_path)["fge/train_loss"] == [(1, 3.0), (2, 0.5), (3, 1.0)]


def test_a_log_that_changes_on_the_way_is_written_anew(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with TensorBoardObserver(tmp_path) as observer:
        folder.log(epoch(0, 3.0))
        folder.log(epoch(1, 2.0))
        observer.write()
        write_records(folder.log_file, [epoch(0, 3.0), epoch(1, 1.0)])
        observer.write()
    assert found(tmp_path)["fge/train_loss"] == [(1, 3.0), (2, 1.0)]


@pytest.fixture
def without_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == "tensorboard" or name.startswith("torch.utils.tensorboard"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)


@pytest.mark.usefixtures("without_tensorboard")
def test_without_the_extra_nothing_is_begun(tiny_npz: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not installed: pip install tensorboard"):
        fge(config(tiny_npz, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError):
        check_tensorboard()


def config(data: Path, out: Path, **changes: Any) -> FGEConfig:
    options: dict[str, Any] = {
        "data": str(data),
        "out": out,
        "epochs": 3,
        "start_epoch": 0,
        "cycle_epochs": 2,
        **PLAIN,
        "tensorboard": True,
        **changes,
    }
    return FGEConfig(**options)


@pytest.mark.slow
def test_a_run_writes_what_it_logs(tiny_npz: Path, tmp_path: Path) -> None:
    run = fge(config(tiny_npz, tmp_path / "run", single=True))
    logged = [
        (tag, step, value)
        for record in RunFolder(run).records()
        for tag, value, step in scalars("", record)
    ]
    shown = {(tag, step): value for tag, pairs in found(run).items() for step, value in pairs}
    assert len(shown) == len(logged)
    for tag, step, value in logged:
        assert shown[tag, step] == pytest.approx(value, rel=1e-6)  # events hold float32
    assert {"fge/val_error", "fge/ensemble_val_nll", "fge/train_loss", "fge/lr"} <= set(found(run))
    stale, mine = (run / "tensorboard" / n for n in ("events.out.tfevents.1", "mine.txt"))
    stale.write_text("of before")
    mine.write_text("mine")
    fge(config(tiny_npz, run, resume=True, single=True))
    assert not stale.exists()
    assert mine.exists()
    again = {(tag, step) for tag, pairs in found(run).items() for step, _ in pairs}
    assert again == set(shown)
    assert sum(map(len, found(run).values())) == len(logged)


@pytest.mark.slow
def test_another_run_in_its_place_has_scalars_of_its_own(tiny_npz: Path, tmp_path: Path) -> None:
    run = fge(config(tiny_npz, tmp_path / "run"))
    assert (run / "tensorboard").is_dir()
    fge(config(tiny_npz, run, overwrite=True, tensorboard=False, epochs=2))
    assert not (run / "tensorboard").exists()


def test_a_folder_that_tensorboard_cannot_name_is_refused_before_training(
    tiny_npz: Path, tmp_path: Path
) -> None:
    out = tmp_path / os.fsdecode(b"run\xe9")
    with pytest.raises(UserError, match=r"run\\xe9, whose name is not UTF-8; give another --out$"):
        fge(config(tiny_npz, out))
    assert not out.exists()
