"""The main job from data to report, on tiny data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_tiny_npz
from fge_runs import config
from safetensors.torch import load_file

from fge import metrics
from fge.commands.train import fge
from fge.config import FGEConfig
from fge.train import Learner


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    data = folder / "tiny.npz"
    write_tiny_npz(data)
    return fge(config(data, folder / "run", single=True))


def report_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "report.json").read_text())
    return content


def test_report_has_the_contract_s_keys(finished: Path) -> None:
    report = report_of(finished)
    keys = {"schema_version", "task", "data", "model", "seed", "config", "methods", "environment"}
    assert keys <= set(report)
    method = {"name", "members", "train_epochs", "forward_passes", "weight_bytes"}
    for entry in report["methods"]:
        assert method | {"error", "nll", "brier", "ece"} <= set(entry)
    names = [(entry["name"], entry["members"]) for entry in report["methods"]]
    assert names == [
        ("single", 1),
        ("average", 1),
        ("last-snapshot", 1),
        ("best-snapshot", 1),
        ("fge", 2),
        ("fge", 3),
        ("swa", 1),
        ("fold", 1),
    ]


def test_figures_follow_from_the_stored_predictions(finished: Path) -> None:
    with np.load(finished / "predictions" / "test.npz", allow_pickle=False) as archive:
        members = list(archive["members"])
        probs, targets = archive["probabilities"].astype(np.float64), archive["targets"]
    snapshots = ["fge-0001", "fge-0002", "fge-0003", "single-0001", "average-0001"]
    assert members == [*snapshots, "swa-0001", "fold-0001"]
    rows = {(m["name"], m["members"]): m for m in report_of(finished)["methods"]}
    expected = {
        ("single", 1): probs[3],
        ("last-snapshot", 1): probs[2],
        ("fge", 2): probs[:2].mean(axis=0),
        ("fge", 3): probs[:3].mean(axis=0),
        ("average", 1): probs[4],
        ("swa", 1): probs[5],
        ("fold", 1): probs[6],
    }
    for key, values in expected.items():
        for name, value in metrics.summary(values, targets).items():
            assert rows[key][name] == pytest.approx(value, abs=1e-12)


def test_best_snapshot_is_the_one_of_lowest_validation_nll(finished: Path) -> None:
    index = json.loads((finished / "snapshots" / "index.json").read_text())["snapshots"]
    best = int(np.argmin([entry["val_nll"] for entry in index]))
    chosen = [m["chosen"] for m in report_of(finished)["methods"] if m["name"] == "best-snapshot"]
    assert chosen == [f"fge-{best + 1:04d}"]


def test_costs_are_those_of_the_ledger(finished: Path) -> None:
    rows = {(m["name"], m["members"]): m for m in report_of(finished)["methods"]}
    assert rows["single", 1]["train_epochs"] == 6
    assert rows["last-snapshot", 1]["train_epochs"] == 6
    assert rows["fge", 2]["train_epochs"] == 4
    assert rows["fge", 3]["forward_passes"] == 3
    size = sum(t.nbytes for t in load_file(finished / "snapshots" / "0001.safetensors").values())
    assert rows["fge", 3]["weight_bytes"] == 3 * size


def test_log_records_epochs_snapshots_and_no_clock(finished: Path) -> None:
    records = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    snapshots = [r for r in records if r["event"] == "snapshot" and r["stage"] == "fge"]
    assert [r["epoch"] for r in snapshots] == [2, 4, 6]
    assert [r["lr"] for r in snapshots] == [FGEConfig().cycle_lrs.min_lr] * 3
    assert not any("second" in key or "time" in key for record in records for key in record)


def test_logged_distances_are_those_of_the_weights(finished: Path) -> None:
    records = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    logged = [r["distance"] for r in records if "distance" in r]
    first, second = (load_file(finished / "snapshots" / f"000{i}.safetensors") for i in (1, 2))
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    total = sum(
        float((second[name].double() - first[name].double()).square().sum())
        for name in first
        if not name.endswith(buffers)
    )
    assert logged[0] == pytest.approx(total**0.5, rel=1e-12)


def test_the_ensemble_s_validation_figures_are_logged(finished: Path) -> None:
    records = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    last = [r for r in records if r["event"] == "snapshot" and r["stage"] == "fge"][-1]
    with np.load(finished / "predictions" / "val.npz", allow_pickle=False) as archive:
        mean = archive["probabilities"][:3].astype(np.float64).mean(axis=0)
        targets = archive["targets"]
    assert last["ensemble_val_nll"] == pytest.approx(metrics.nll(mean, targets), abs=1e-12)
    assert last["ensemble_val_error"] == pytest.approx(metrics.error(mean, targets), abs=1e-12)


@pytest.mark.slow
def test_no_choice_and_no_weight_depends_on_the_test_data(tmp_path: Path) -> None:
    from conftest import tiny_arrays, write_tiny_npz

    arrays = tiny_arrays()
    other = {
        "test_images": 255 - arrays["test_images"],
        "test_labels": np.random.default_rng(0).permutation(arrays["test_labels"]),
    }
    options: dict[str, Any] = {
        "single": True,
        "refit": "polychain",
        "refit_epochs": 1,
        "lr": 0.2,
        "seed": 2,
    }
    runs = []
    for name, changes in (("given", {}), ("other", other)):
        data = write_tiny_npz(tmp_path / f"{name}.npz", **changes)
        runs.append(fge(config(data, tmp_path / name, **options)))

    kept = ("*.safetensors", "log.jsonl", "index.json", "val.npz", "fit.jsonl")
    ours, theirs = (
        {str(f.relative_to(run)): f.read_bytes() for pattern in kept for f in run.rglob(pattern)}
        for run in runs
    )
    assert {"snapshots/0003.safetensors", "swa.safetensors", "folded.safetensors"} <= set(ours)
    assert "curves/0002--0003/curve.safetensors" in ours
    assert ours == theirs
    ours_report, their_report = map(report_of, runs)
    assert ours_report["averages"] == their_report["averages"]
    lines = list(zip(ours_report["methods"], their_report["methods"], strict=True))
    chosen = {"name", "members", "member_names", "chosen", "train_epochs", "validation_images"}
    for one, another in lines:
        assert {k: one.get(k) for k in chosen} == {k: another.get(k) for k in chosen}
        assert one["nll"] != another["nll"]
    # Who chose by test data would choose otherwise: another snapshot has the lowest NLL there.
    best = [int(np.argmin(snapshot_nlls(run))) for run in runs]
    assert best[0] != best[1]


def snapshot_nlls(run: Path) -> list[float]:
    """Return the test NLL of each snapshot."""
    with np.load(run / "predictions" / "test.npz", allow_pickle=False) as archive:
        members, targets = archive["members"], archive["targets"]
        stored = zip(members, archive["probabilities"], strict=True)
        snapshots = {str(n): p for n, p in stored if str(n).startswith("fge-")}
    return [metrics.nll(snapshots[name], targets) for name in sorted(snapshots)]


@pytest.mark.slow
def test_single_network_does_not_depend_on_the_cycles(
    finished: Path, tiny_npz: Path, tmp_path: Path
) -> None:
    other = fge(config(tiny_npz, tmp_path / "other", single=True, start_epoch=4, max_lr=0.02))
    ours, theirs = (load_file(run / "single" / "0001.safetensors") for run in (finished, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_each_member_is_evaluated_once_on_each_split(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    predict = Learner.predict

    def counting(self: Learner, batches: Any) -> torch.Tensor:
        calls.append(len(batches.split))
        return predict(self, batches)

    monkeypatch.setattr(Learner, "predict", counting)
    run = fge(config(tiny_npz, tmp_path / "run"))
    # On validation images also the average of all and the two that the fold tries; on test images
    # the first of them, and the folded network unless it is a snapshot as it was.
    folded = len(report_of(run)["averages"]["fold"]["snapshots"]) > 1
    assert sorted(calls) == [24] * 6 + [48] * (4 + folded)
    calls.clear()
    fge(config(tiny_npz, run, resume=True))
    assert calls == []


def test_pretrained_weights_cycle_at_once_with_the_options_given(
    finished: Path, tiny_npz: Path, tmp_path: Path
) -> None:
    weights = finished / "snapshots" / "0001.safetensors"
    run = fge(
        config(
            tiny_npz,
            tmp_path / "run",
            pretrained=weights,
            start_epoch=None,
            epochs=1,
            max_lr=1e-12,
            min_lr=1e-12,
            momentum=0.0,
            weight_decay=0.0,
        )
    )
    start, end = load_file(weights), load_file(run / "snapshots" / "0001.safetensors")
    assert len(list((run / "snapshots").glob("*.safetensors"))) == 1
    name = "0.weight"
    assert torch.allclose(start[name], end[name], atol=1e-9, rtol=0)
    note = report_of(run)["cost_note"]
    assert "(--pretrained): the epochs of their training are unknown" in note
    assert note in (run / "report.md").read_text()
    assert "cost_note" not in report_of(finished)
    assert "--pretrained" not in (finished / "report.md").read_text()


def test_a_training_state_is_accepted_as_pretrained_weights(
    finished: Path, tiny_npz: Path, tmp_path: Path
) -> None:
    run = fge(
        config(
            tiny_npz,
            tmp_path / "run",
            pretrained=finished / "state" / "start.safetensors",
            start_epoch=None,
            epochs=1,
        )
    )
    assert (run / "report.json").exists()


def test_without_validation_data_there_is_no_best_snapshot(tiny_npz: Path, tmp_path: Path) -> None:
    run = fge(config(tiny_npz, tmp_path / "run", val_fraction=0.0))
    assert "best-snapshot" not in [m["name"] for m in report_of(run)["methods"]]
    assert not (run / "predictions" / "val.npz").exists()


def test_report_page_stands_alone(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert 'src="http' not in page
    assert "<script src" not in page
