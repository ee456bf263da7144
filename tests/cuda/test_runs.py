"""Commands on a GPU, from their arguments to the folders they leave, against the CPU in float64."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_CLASSES, full_precision
from cuda_tools import Batch, assert_near, network_of_runs, relative_distance
from curve_runs import done, flags, job, member_probabilities, methods, report
from torch import Tensor, nn

from fge import metrics
from fge.curves import Curve, WeightsEvaluator
from fge.data import Dataset, EvalBatches, Normaliser, Split, load_dataset
from fge.ensemble import SnapshotStore
from fge.files import write_bytes
from fge.landscape import top_eigenvalues
from fge.networks import load_weights, predict_proba

pytestmark = pytest.mark.cuda

MODEL = "cuda_tools:network_of_runs"
CYCLES: dict[str, Any] = {"epochs": 5, "start_epoch": 1, "cycle_epochs": 2, "val_fraction": 0.25}
RATES: dict[str, Any] = {"lr": 0.05, "max_lr": 0.05, "min_lr": 0.005}
LOGITS = 1e-4
"""Logits are of size 1, sums of 24 float32 terms behind two such layers: 1e-5, with room."""


@pytest.fixture(autouse=True)
def _without_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fge.report.builder.save_figure", lambda _, path: write_bytes(path, b""))


def options(data: Path, out: Path, device: torch.device, **more: Any) -> dict[str, Any]:
    """Return options of a run in which nothing is measured to choose them."""
    return {**job(data, out, model=MODEL, cuda_graphs="off", **more), "device": device}


def in_float64(dataset: Dataset, split: Split, size: int = 20) -> list[Batch]:
    """Return the normalised images of a split in batches of ``size``, as a run sees them."""
    normaliser = Normaliser(dataset.mean, dataset.std, torch.device("cpu"))
    return [(x.double(), y) for x, y in EvalBatches(split, normaliser, size)]


def network(state: dict[str, Tensor] | None = None) -> nn.Module:
    """Return the network of the runs, with these weights, on the CPU in float64."""
    model = network_of_runs(1, TINY_CLASSES)
    if state is not None:
        load_weights(model, state, "the run")
    return model.double().eval()


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def assert_predictions(folder: Path, dataset: Dataset, method: str, store: str) -> Tensor:
    """Check what a run predicts with its snapshots; return the mean of the exact probabilities."""
    batches, stored = in_float64(dataset, dataset.test), member_probabilities(folder)[0]
    snapshots = [*SnapshotStore(folder / store)]
    exact = [predict_proba(network(state), batches) for state in snapshots]
    assert len(exact) > 0
    for position, probs in enumerate(exact, start=1):
        found = stored[f"{method}-{position:04d}"]
        assert_near(torch.from_numpy(found), probs, atol=LOGITS)
    return torch.stack(exact).mean(0)


# -------------------------------------------------------------------------------------------- fge


@dataclass
class Ended:
    """A finished run, its data, and the files that it wrote in order."""

    folder: Path
    dataset: Dataset
    written: list[str]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, data: Path, accelerator: torch.device) -> Ended:
    written: list[str] = []
    sync = os.fsync

    def recording_fsync(handle: int) -> None:
        written.append(os.readlink(f"/proc/self/fd/{handle}"))
        sync(handle)

    with full_precision(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("fge.report.builder.save_figure", lambda _, path: write_bytes(path, b""))
        patch.setattr(os, "fsync", recording_fsync)
        out = tmp_path_factory.mktemp("ended") / "run"
        folder = done("fge", options(data, out, accelerator, **CYCLES, **RATES))
    dataset = load_dataset(str(data), val_fraction=CYCLES["val_fraction"])
    return Ended(folder, dataset, written)


def test_snapshots_predict_on_the_cpu_what_the_run_says(
    ended: Ended, accelerator: torch.device
) -> None:
    mean = assert_predictions(ended.folder, ended.dataset, "fge", "snapshots")
    targets = ended.dataset.test.labels
    ensemble = methods(ended.folder)["fge 2"]
    assert ensemble["nll"] == pytest.approx(metrics.nll(mean, targets), abs=LOGITS)
    assert ensemble["error"] == metrics.error(mean, targets)
    assert report(ended.folder)["environment"]["device"] == str(accelerator)


def test_killed_and_resumed_it_ends_where_an_uninterrupted_run_does(
    ended: Ended, data: Path, accelerator: torch.device, tmp_path: Path
) -> None:
    """Kernels add float32 numbers in another order each time: 6e-8 of a sum.

    A dozen steps make a thousand times as much of it at most. Without its momentum, or with
    another batch, a step would end 1e-2 away.
    """
    cut = options(data, tmp_path / "cut", accelerator, **CYCLES, **RATES)
    third = [n for n, path in enumerate(ended.written, start=1) if "checkpoint" in path][2]
    script = Path(__file__).with_name("cut_short.py")
    killed = subprocess.run(
        [sys.executable, str(script), str(third), *flags("fge", cut)],
        env={**os.environ, "NVIDIA_TF32_OVERRIDE": "0"},  # full precision, as in this process
        stdout=subprocess.DEVNULL,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    expected = records(ended.folder / "log.jsonl")
    assert 3 <= len(records(tmp_path / "cut" / "log.jsonl")) < len(expected)
    resumed = done("fge", {**cut, "resume": True})
    for one, other in zip(records(resumed / "log.jsonl"), expected, strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():  # a loss, say, or the name of a stage; errors are counts
            close = value if isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=1e-3)
            assert one[key] == close or key.endswith("error"), key
    stores = [SnapshotStore(folder / "snapshots") for folder in (resumed, ended.folder)]
    assert len(stores[0]) == len(stores[1]) == 2
    for position, states in enumerate(zip(*stores, strict=True)):
        facts = [store.facts(position) for store in stores]
        assert facts[0]["step"] == facts[1]["step"]
        assert facts[0]["lr"] == facts[1]["lr"]
        names = sorted(states[0])
        flat = [torch.cat([state[n].double().reshape(-1) for n in names]) for state in states]
        assert relative_distance(*flat) < 1e-3
    found, reference = (member_probabilities(f)[0] for f in (resumed, ended.folder))
    assert list(found) == list(reference)
    for name in ("fge-0001", "fge-0002"):
        np.testing.assert_allclose(found[name], reference[name], rtol=0, atol=1e-3)


def test_the_ensemble_predicts_new_images(
    ended: Ended, accelerator: torch.device, tmp_path: Path
) -> None:
    images = ended.dataset.test.images.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "new.npz", images=images)
    given = {"run": ended.folder, "images": tmp_path / "new.npz", "out": tmp_path / "out"}
    out = done("predict", {**given, "model": MODEL, "device": accelerator, "threads": 1})
    stored = member_probabilities(ended.folder)[0]
    expected = np.mean([stored["fge-0001"], stored["fge-0002"]], axis=0)
    with np.load(out / "predictions.npz") as found:
        # The stored ones are rounded to float32, 6e-8; batches are of another size.
        np.testing.assert_allclose(found["probabilities"], expected, rtol=0, atol=LOGITS)


def test_the_sharpness_of_snapshots_is_that_in_float64(
    ended: Ended, accelerator: torch.device, tmp_path: Path
) -> None:
    short = {"k": 1, "trace_samples": 2, "spectrum_vectors": 1, "spectrum_steps": 4}
    given = {"run": ended.folder, "out": tmp_path / "out", "model": MODEL, **short}
    out = done("sharpness", {**given, "device": accelerator, "threads": 1})
    batches = in_float64(ended.dataset, ended.dataset.train)
    values = [found["eigenvalues"][0] for found in report(out)["networks"]]
    assert len(values) == 2
    for value, state in zip(values, SnapshotStore(ended.folder / "snapshots"), strict=True):
        exact = top_eigenvalues(network(state), F.cross_entropy, batches, tolerance=1e-5)
        # Found to a residual of 1 %, the value to about that squared.
        assert value == pytest.approx(float(exact.values[0]), rel=2e-3)


# ---------------------------------------------------------------------- other methods, and curves


OTHERS: dict[str, dict[str, Any]] = {
    "ema": {},
    "csgld": {"csgld_cycles": 1},
    "average": {"average": 0.5},
    "star": {"star_trunk": 0.4, "star_branches": 2, "epochs": 4},
    "split": {"split": 2, "epochs": 4},
    "auto": {"epochs": 8},
}


@pytest.mark.parametrize(("method", "more"), OTHERS.items(), ids=OTHERS)
def test_other_methods_predict_on_the_cpu_what_they_say(
    data: Path, accelerator: torch.device, tmp_path: Path, method: str, more: dict[str, Any]
) -> None:
    given = options(data, tmp_path / "run", accelerator, method=method, **{"epochs": 3, **more})
    folder = done("train", given)
    assert_predictions(folder, load_dataset(str(data)), method, "snapshots")


def test_a_curve_and_the_plane_of_its_networks_are_those_of_the_cpu(
    data: Path, accelerator: torch.device, tmp_path: Path
) -> None:
    # Batch-norm statistics are those of images as they are, in one batch.
    short = {"epochs": 2, "eval_points": 3, "ensemble_points": 2, "augment": "none"}
    folder = done("curve-ensemble", options(data, tmp_path / "curve", accelerator, **short))
    dataset, pair = load_dataset(str(data)), folder / "curves" / "average-1--average-2"
    curve = Curve.load(pair / "curve.safetensors")
    splits = {"train": dataset.train, "test": dataset.test}
    measure = WeightsEvaluator(
        network(), {name: in_float64(dataset, part, len(part)) for name, part in splits.items()}
    )
    along = records(pair / "curve.jsonl")
    assert [record["t"] for record in along] == [0.0, 0.5, 1.0]
    given = {"run": folder, "out": tmp_path / "plane", "model": MODEL, "resolution": 2}
    plane = report(done("plane", {**given, "device": accelerator, "threads": 1}))["plane"]
    pairs = [(record, curve.at(record["t"])) for record in along]
    pairs += zip(plane["networks"], curve.points, strict=True)
    for found, point in pairs:
        expected, _ = measure(point.double())
        for key in ("train_loss", "test_error"):
            # Statistics and losses are float32 means over 86 images; errors are counts.
            assert found[key] == pytest.approx(expected[key], abs=LOGITS), key
