"""The commands plane and sharpness, from their arguments to the folders they leave."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import write_tiny_npz
from curve_runs import TRAIN_IMAGES, assert_same, done, flags, job, report, run
from promised import promised
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fge.commands.sharpness
import fge.curves.evaluate
from fge.commands.build import Setup, settle_options
from fge.commands.loading import load_data
from fge.config import PlaneConfig, SharpnessConfig, TrainConfig
from fge.curves import Curve
from fge.data import load_dataset
from fge.files import write_bytes
from fge.landscape import Line, Plane, PlaneGrid, top_eigenvalues
from fge.landscape.grid import GridStore
from fge.networks import Layout, flatten, refresh_batch_norm, write_parameters
from fge.report import Chart, Panel, line_momentum
from fge.train import METHODS, recipe

LINEAR, NORMED = "looked_at_models:linear", "looked_at_models:normed"
MODELS = """
from dataclasses import replace

from torch import nn

from fge.train.methods import METHODS, Method
from fge.train.recipes import recipe

adam = Method("adam", "snapshots of Adam", METHODS["sse"].stages, recipe=lambda config: replace(
    recipe("B"), batch_size=config.batch_size))

def linear(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

def normed(num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(16, num_classes),
    )
"""
PLAIN = {"device": "cpu", "threads": 1, "channels_last": "off"}
QUICK = {"trace_samples": 2, "spectrum_vectors": 1, "spectrum_steps": 5}
PAIR = "average-1--average-2"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def drawn() -> None:
    """Mark a test that looks at figures; the others do without drawing them."""


@pytest.fixture(autouse=True)
def _blank_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(
            "fge.report.builder.save_figure", lambda _, path: write_bytes(path, b"")
        )


@pytest.fixture(scope="module", autouse=True)
def _importable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("models")
    (folder / "looked_at_models.py").write_text(MODELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """An fge run of a linear model with 4 snapshots, after epochs 1, 3, 5, 7."""
    cycles = {"epochs": 7, "start_epoch": 0, "cycle_epochs": 2, "max_lr": 0.1, "min_lr": 0.01}
    out = tmp_path_factory.mktemp("ended") / "run"
    return done("fge", job(data, out, model=LINEAR, momentum=0.5, **cycles))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A curve-ensemble run of a network with batch norm."""
    out = tmp_path_factory.mktemp("pair") / "run"
    short = {"epochs": 2, "eval_points": 3, "ensemble_points": 2}
    return done("curve-ensemble", job(data, out, model=NORMED, **short))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A train run of a linear model with 3 snapshots of cyclical SGLD, which has no momentum."""
    out = tmp_path_factory.mktemp("trained") / "run"
    more = {"epochs": 3, "method": "csgld", "csgld_cycles": 1}
    return done("train", job(data, out, model=LINEAR, **more))


def look(source: Path | list[Path], out: Path, model: str, **more: Any) -> dict[str, Any]:
    """Return options of a study of a run or of files."""
    of = {"run": source} if isinstance(source, Path) else {"weights": source}
    return {**of, "out": out, "model": model, **PLAIN, **more}


def files_of(ended: Path) -> list[Path]:
    return sorted((ended / "snapshots").glob("*.safetensors"))


def built(name: str) -> nn.Module:
    import looked_at_models  # type: ignore[import-not-found]

    model: nn.Module = getattr(looked_at_models, name.partition(":")[2])(3)
    return model


def normalised(data: Path) -> dict[str, tuple[Tensor, Tensor]]:
    splits = load_dataset(str(data))
    parts = {"train": splits.train, "test": splits.test}
    return {k: ((v.images - splits.mean[0]) / splits.std[0], v.labels) for k, v in parts.items()}


def refresh(model: nn.Module, data: Path) -> None:
    """Give batch norm the statistics of all training images, varied as in training."""
    config = TrainConfig(data=str(data), device="cpu", batch_size=32)
    dataset = load_data(config)
    setup = Setup.of(settle_options(config, dataset), dataset)
    refresh_batch_norm(model, setup.refresh_batches(dataset.train), num_images=None)


def measured(model: nn.Module, vector: Tensor, data: Path) -> dict[str, float]:
    """Return the figures of the weights, with statistics of images varied as in training."""
    splits = normalised(data)
    write_parameters(model, vector)
    refresh(model, data)
    model.eval()
    found = {}
    for name, (images, labels) in splits.items():
        with torch.no_grad():
            outputs = model(images)
        found[f"{name}_loss"] = float(F.cross_entropy(outputs, labels))
        found[f"{name}_error"] = 100 * float((outputs.argmax(1) != labels).double().mean())
    return found


def assert_figures(found: dict[str, float], expected: dict[str, float]) -> None:
    for key, value in expected.items():
        # float32 arithmetic in batches of other sizes; errors are counts.
        assert found[key] == pytest.approx(value, abs=1e-4 if "loss" in key else 1e-9), key


# ----------------------------------------------------------------------------------------- plane


@pytest.mark.usefixtures("drawn")
def test_the_plane_of_a_run_goes_through_its_first_middle_and_last_snapshot(
    ended: Path, data: Path, tmp_path: Path
) -> None:
    folder = done("plane", look(ended, tmp_path / "plane", LINEAR, resolution=3, margin=0.5))
    content = report(folder)
    found, grid = content["plane"]["networks"], PlaneGrid.load(folder / "plane.npz")
    assert content["command"] == "plane"
    assert [network["name"] for network in found] == ["snapshot 1", "snapshot 2", "snapshot 4"]
    model = built(LINEAR)
    vectors = [flatten(files_of(ended)[i], model) for i in (0, 1, 3)]
    places = np.array([[network["x"], network["y"]] for network in found])
    for i, j in itertools.combinations(range(3), 2):
        apart = float((vectors[i].double() - vectors[j].double()).norm())
        assert np.linalg.norm(places[i] - places[j]) == pytest.approx(apart, rel=1e-9)
    for network, vector in zip(found, vectors, strict=True):
        assert network["off_plane"] == pytest.approx(0, abs=1e-6)
        assert_figures(network, measured(model, vector, data))
    plane = Plane.through(*vectors)
    for row, column in ((0, 2), (1, 1)):
        point = plane.point(grid.xs[column], grid.ys[row])
        record = {key: float(values[row, column]) for key, values in grid.values.items()}
        assert_figures(record, measured(model, point, data))
    spans = places.max(0) - places.min(0)
    assert (grid.xs[-1] - grid.xs[0]) == pytest.approx(spans[0] + spans.max())
    assert (grid.ys[-1] - grid.ys[0]) == pytest.approx(spans[1] + spans.max())
    figures = sorted(path.name for path in (folder / "figures").iterdir())
    assert figures == ["plane-surface.png", "plane-test-error.png", "plane-train-loss.png"]
    page = (folder / "report.html").read_text()
    assert page.count('<noscript><img alt="') == 3
    assert "snapshot 4" in page


def test_the_plane_of_a_pair_has_its_ends_and_its_bend_and_statistics_of_each_point(
    pair: Path, data: Path, tmp_path: Path
) -> None:
    folder = done("plane", look(pair, tmp_path / "plane", NORMED, resolution=2))
    content = report(folder)["plane"]
    assert content["through"] == f"the ends and the bend of the bezier curve {PAIR}"
    assert content["images_per_point"] == {"train": TRAIN_IMAGES, "test": 48}
    curve = Curve.load(pair / "curves" / PAIR / "curve.safetensors")
    names = ["w(0)", "bend", "w(1)"]
    assert [network["name"] for network in content["networks"]] == names
    model = built(NORMED)
    for network, point in zip(content["networks"], curve.points, strict=True):
        assert_figures(network, measured(model, point, data))


def test_weight_decay_joins_the_loss_where_it_is_asked_for(ended: Path, tmp_path: Path) -> None:
    options = {"resolution": 2, "weight_decay": 0.5}
    found = []
    for name, wanted in (("with", True), ("without", False)):
        more = {**options, "weight_decay_in_loss": wanted}
        folder = done("plane", look(ended, tmp_path / name, LINEAR, **more))
        found.append(report(folder)["plane"]["networks"])
    for path, with_it, without in zip([files_of(ended)[i] for i in (0, 1, 3)], *found, strict=True):
        penalty = 0.25 * float(flatten(path, built(LINEAR)).double().square().sum())
        assert with_it["train_loss"] - without["train_loss"] == pytest.approx(penalty, rel=1e-9)
        assert with_it["test_error"] == without["test_error"]


@pytest.mark.slow
def test_chosen_snapshots_files_directions_and_components(
    ended: Path, data: Path, tmp_path: Path
) -> None:
    files, small = files_of(ended), {"resolution": 2}
    shared = {**small, "data": data, "batch_size": 32}
    runs: dict[str, dict[str, Any]] = {
        "chosen": look(ended, tmp_path / "chosen", LINEAR, snapshots=[4, 2, 1], **small),
        "files": look(files[:3], tmp_path / "files", LINEAR, **shared),
        "random": look(files[:1], tmp_path / "random", LINEAR, random=True, **shared),
        "last": look(ended, tmp_path / "last", LINEAR, random=True, **small),
        "trajectory": look(ended, tmp_path / "trajectory", LINEAR, trajectory=True, **small),
    }
    names, found = {}, {}
    for name, options in runs.items():
        found[name] = report(done("plane", options))["plane"]
        names[name] = [network["name"] for network in found[name]["networks"]]
    assert names == {
        "chosen": ["snapshot 4", "snapshot 2", "snapshot 1"],
        "files": ["1-0001", "2-0002", "3-0003"],
        "random": ["1-0001"],
        "last": ["snapshot 4"],
        "trajectory": [f"snapshot {number}" for number in (1, 2, 3, 4)],
    }
    assert found["random"]["xs"] == pytest.approx([-1.4, 1.4])
    norm = float(load_file(files[0])["1.weight"].norm())  # a filter is a row of the weight
    assert np.diag(found["random"]["gram"]) == pytest.approx([norm**2] * 2, rel=1e-5)
    places = np.array([[n["x"], n["y"]] for n in found["trajectory"]["networks"]])
    assert places.mean(0) == pytest.approx(np.zeros(2), abs=1e-6)
    assert abs(places[:, 0] @ places[:, 1]) < 1e-6 * (places**2).sum()


@pytest.mark.slow
def test_an_interrupted_grid_goes_on(
    ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = look(ended, tmp_path / "reference", LINEAR, resolution=3)
    reference = done("plane", options)
    add, seen = GridStore.add, []

    def interrupted(self: GridStore, place: tuple[int, int], record: Any) -> None:
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(place)
        add(self, place, record)

    with monkeypatch.context() as patch:
        patch.setattr(GridStore, "add", interrupted)
        result = run(flags("plane", {**options, "out": tmp_path / "cut"}))
    assert result.code == 130
    assert f"--out {tmp_path / 'cut'} --resume --model {LINEAR}" in result.out
    assert not (tmp_path / "cut" / "plane.npz").exists()
    monkeypatch.setattr(
        GridStore, "add", lambda self, place, record: (seen.append(place), add(self, place, record))
    )
    argv = ["plane", "--out", str(tmp_path / "cut"), "--resume", "--model", LINEAR]
    assert run(argv).code == 0
    assert seen == [(row, column) for row in range(3) for column in range(3)]
    assert_same(tmp_path / "cut", reference)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("work was done again")

    monkeypatch.setattr(fge.curves.evaluate.WeightsEvaluator, "__call__", fail)
    assert run(argv).code == 0
    assert_same(tmp_path / "cut", reference)


def test_a_plane_is_repeated_from_its_own_config(ended: Path, tmp_path: Path) -> None:
    first = done("plane", look(ended, tmp_path / "first", LINEAR, resolution=2))
    argv = ["plane", "--config", str(first / "config.json"), "--out", "again", "--model", LINEAR]
    assert run(argv).code == 0
    assert_same(tmp_path / "again", first)


@pytest.mark.slow
def test_a_train_run_is_looked_at_as_an_fge_run(trained: Path, data: Path, tmp_path: Path) -> None:
    small, every = {"resolution": 2}, [f"snapshot {number}" for number in (1, 2, 3)]
    for name, more, names in (
        ("through", {}, every),
        ("trajectory", {"trajectory": True}, every),
        ("random", {"random": True}, every[-1:]),
        ("chosen", {"snapshots": [3, 1, 2]}, [every[2], every[0], every[1]]),
    ):
        folder = done("plane", look(trained, tmp_path / name, LINEAR, **small, **more))
        networks = report(folder)["plane"]["networks"]
        assert [network["name"] for network in networks] == names
        for network in networks:
            path = files_of(trained)[int(network["name"][-1]) - 1]
            model = built(LINEAR)
            assert_figures(network, measured(model, flatten(path, model), data))


def test_a_train_run_of_one_network_has_no_plane_but_random_ones(
    data: Path, tmp_path: Path
) -> None:
    folder = done("train", job(data, tmp_path / "single", model=LINEAR, epochs=1))
    base = look(folder, tmp_path / "out", LINEAR, resolution=2)
    for more in ({}, {"trajectory": True}):
        message = run(flags("plane", base | more)).message
        expected = "a plane needs three snapshots, {} has 1; with --random one is enough"
        assert message == expected.format(folder)
    message = run(flags("plane", base | {"line": True})).message
    expected = "a line needs two snapshots, {} has 1; with --random one is enough"
    assert message == expected.format(folder)
    assert not (tmp_path / "out").exists()
    done("plane", base | {"random": True})


# ----------------------------------------------------------------------------------------- lines


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "line.npz") as stored:
        return dict(stored)


def assert_records(
    found: dict[str, np.ndarray], row: int, points: list[Tensor], data: Path
) -> None:
    """Compare the figures along a line, and its lengths, with those of its points."""
    model = built(NORMED if len(points[0]) < 150 else LINEAR)
    steps = [float((b.double() - a.double()).norm()) for a, b in itertools.pairwise(points)]
    np.testing.assert_allclose(np.diff(found["arc"][row]), steps, rtol=1e-4)
    for column in range(len(points)):
        record = {key: float(found[key][row, column]) for key in ("train_loss", "test_error")}
        wanted = measured(model, points[column], data)
        assert_figures(record, {key: wanted[key] for key in record})


@pytest.mark.usefixtures("drawn")
def test_a_line_goes_from_snapshot_to_snapshot(ended: Path, data: Path, tmp_path: Path) -> None:
    folder = done("plane", look(ended, tmp_path / "line", LINEAR, line=True, line_points=6))
    found = arrays_of(folder)
    # Three pieces of two steps each: at least 6 points, with the networks among them.
    np.testing.assert_allclose(found["t"], np.arange(7) / 6)
    assert found["networks"].tolist() == [f"snapshot {number}" for number in (1, 2, 3, 4)]
    w = [flatten(path, built(LINEAR)) for path in files_of(ended)]
    between = [(a + b) / 2 for a, b in itertools.pairwise(w)]
    points = [w[0], between[0], w[1], between[1], w[2], between[2], w[3]]
    assert_records(found, 0, points, data)
    apart = [float((point.double() - w[0].double()).norm()) for point in points]
    np.testing.assert_allclose(found["distance"][0], apart, rtol=1e-4)
    content, page = report(folder), (folder / "report.md").read_text()
    assert content["line"]["networks"] == found["networks"].tolist()
    rows = re.findall(r"^\| (snapshot \d to snapshot \d) \| ([\d.]+) \|", page, re.MULTILINE)
    assert [name for name, _ in rows] == [f"snapshot {k} to snapshot {k + 1}" for k in (1, 2, 3)]
    lengths = [float((b.double() - a.double()).norm()) for a, b in itertools.pairwise(w)]
    assert [float(length) for _, length in rows] == pytest.approx(lengths, abs=1e-3)
    losses = found["train_loss"][0]
    barriers = [losses[k + 1] - (losses[k] + losses[k + 2]) / 2 for k in (0, 2, 4)]
    assert f"The highest barrier of the training loss is {max(max(barriers), 0):.4f} nats" in page
    assert (folder / "report.html").read_text().count('<noscript><img alt="') == 2
    figures = sorted(path.name for path in (folder / "figures").iterdir())
    assert figures == ["line-test-error.png", "line-train-loss.png"]


def test_a_pairs_lines_are_its_curve_and_its_segment(
    pair: Path, data: Path, tmp_path: Path
) -> None:
    folder = done("plane", look(pair, tmp_path / "line", NORMED, line=True, line_points=3))
    found = arrays_of(folder)
    assert found["lines"].tolist() == ["curve", "segment"]
    curve = Curve.load(pair / "curves" / PAIR / "curve.safetensors")
    ends = curve.points[0], curve.points[-1]
    assert_records(found, 0, [ends[0], curve.at(0.5), ends[1]], data)
    assert_records(found, 1, [ends[0], (ends[0] + ends[1]) / 2, ends[1]], data)
    page = (folder / "report.md").read_text()
    assert f"The line is the bezier curve {PAIR}, and the segment between its ends." in page


def test_files_are_joined_and_a_random_line_goes_to_both_sides(
    ended: Path, data: Path, tmp_path: Path
) -> None:
    files = files_of(ended)
    shared = {"line": True, "line_points": 4, "data": data, "batch_size": 32}
    folder = done("plane", look(files[:2], tmp_path / "two", LINEAR, **shared))
    found = arrays_of(folder)
    assert found["lines"].tolist() == ["segment"]
    assert found["networks"].tolist() == ["1-0001", "2-0002"]
    w, v = (flatten(path, built(LINEAR)) for path in files[:2])
    assert_records(found, 0, [torch.lerp(w, v, k / 3) for k in range(4)], data)

    folder = done("plane", look(files[:1], tmp_path / "one", LINEAR, random=True, **shared))
    found = arrays_of(folder)
    assert found["t"] == pytest.approx([-1.4, -0.7, 0, 0.7, 1.4], abs=1e-12)
    line = Line.random(w, Layout.of(built(LINEAR)), 0)
    assert_records(found, 0, [line.at(t) for t in found["t"]], data)
    # A step of 1 moves each filter, a row of the weight, by its own norm; biases stay.
    norm = float(load_file(files[0])["1.weight"].norm())
    assert found["distance"][0] == pytest.approx(norm * np.abs(found["t"]), rel=1e-5, abs=1e-9)
    assert "barrier" not in (folder / "report.md").read_text()

    options = look(ended, tmp_path / "last", LINEAR, line=True, random=True, line_points=3)
    assert "snapshot 4 and a random" in report(done("plane", options))["line"]["along"]
    options = look(ended, tmp_path / "some", LINEAR, line=True, snapshots=[4, 1], line_points=2)
    assert arrays_of(done("plane", options))["networks"].tolist() == ["snapshot 4", "snapshot 1"]


def test_an_interrupted_line_goes_on_and_holds_infinite_losses(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = fge.curves.evaluate.WeightsEvaluator.__call__
    calls: list[int] = []

    def watched(self: Any, vector: Tensor, *args: Any, **options: Any) -> Any:
        if len(calls) == 5 and len(calls) not in calls:
            calls.append(-1)
            raise KeyboardInterrupt
        calls.append(len(calls))
        record, probabilities = call(self, vector, *args, **options)
        if float(vector[0]) == float(curve.at(0.5)[0]):
            record["train_loss"] = float("inf")
        return record, probabilities

    curve = Curve.load(pair / "curves" / PAIR / "curve.safetensors")
    monkeypatch.setattr(fge.curves.evaluate.WeightsEvaluator, "__call__", watched)
    options = look(pair, tmp_path / "cut", NORMED, line=True, line_points=3)
    result = run(flags("plane", options))
    assert result.code == 130
    argv = ["plane", "--out", str(tmp_path / "cut"), "--resume", "--model", NORMED]
    assert run(argv).code == 0
    assert len(calls) == 5 + 1 + 1  # five points, the interruption, the sixth
    reference = done("plane", {**options, "out": tmp_path / "reference"})
    assert_same(tmp_path / "cut", reference)
    assert np.isinf(arrays_of(reference)["train_loss"]).tolist() == [
        [False, True, False],
        [False] * 3,
    ]


# ------------------------------------------------------------------------------------- sharpness


def softmax_hessian(state: dict[str, Tensor], inputs: Tensor, decay: float) -> np.ndarray:
    """Return the Hessian of softmax regression: the mean of (diag p - p pᵀ) x (x, 1)(x, 1)ᵀ."""
    x = torch.cat([inputs.flatten(1), torch.ones(len(inputs), 1)], dim=1).double()
    parameters = torch.cat([state["1.weight"], state["1.bias"][:, None]], dim=1).double()
    probs = (x @ parameters.T).softmax(1)
    curvature = torch.diag_embed(probs) - probs[:, :, None] * probs[:, None]
    hessian = torch.einsum("nij,na,nb->iajb", curvature, x, x) / len(x)
    size = parameters.numel()
    return hessian.reshape(size, size).numpy() + decay * np.eye(size)


@pytest.mark.usefixtures("drawn")
def test_each_snapshots_sharpness_is_that_of_its_hessian(
    ended: Path, data: Path, tmp_path: Path
) -> None:
    more = {"k": 2, "examples": 50, "chunk": 20, "weight_decay": 0.01, "trace_samples": 40}
    more |= {"weight_decay_in_loss": True, "spectrum_vectors": 2, "spectrum_steps": 10}
    folder = done("sharpness", look(ended, tmp_path / "sharp", LINEAR, **more))
    content, inputs = report(folder), normalised(data)["train"][0][:50]
    assert [n["epoch"] for n in content["networks"]] == [1, 3, 5, 7]
    for network, path in zip(content["networks"], files_of(ended), strict=True):
        hessian = softmax_hessian(load_file(path), inputs, 0.01)
        exact = np.linalg.eigvalsh(hessian)[::-1]
        assert network["eigenvalues"] == pytest.approx(exact[:2], rel=1e-3)
        error = abs(network["trace"] - np.trace(hessian))
        assert 0 < network["trace_standard_error"] < 0.2 * np.trace(hessian)
        assert error < 4 * network["trace_standard_error"]
        assert network["hessian_products"] > 40
        assert network["gradient_cost"] > 2.6 * network["hessian_products"]
        assert network["converged"]
    spectrum = content["spectrum"]
    assert spectrum["name"] == "snapshot 4"
    assert spectrum["hessian_products"] == 20
    mean = np.dot(spectrum["nodes"], spectrum["weights"])
    assert mean == pytest.approx(np.trace(hessian) / len(hessian), rel=0.3)
    figures = sorted(path.name for path in (folder / "figures").iterdir())
    assert figures == ["sharpness.png", "spectrum.png"]
    few = "These are of the loss on 50 of the 86 training images: on all of them they may differ"
    assert few in (folder / "report.md").read_text()


@pytest.mark.usefixtures("drawn")
def test_sharpness_says_how_long_it_takes_and_how_far_it_is(ended: Path, tmp_path: Path) -> None:
    result = run(flags("sharpness", look(ended, tmp_path / "sharp", LINEAR, k=1, **QUICK)))
    lines = result.out.splitlines()
    (estimate,) = [number for number, line in enumerate(lines) if line.startswith("about ")]
    assert re.match(r"about 1 s: \d+ to \d+ Hessian products on 1024 images, ", lines[estimate])
    shown = [n for n, line in enumerate(lines) if "products for the trace" in line]
    assert shown
    assert min(shown) > estimate
    assert "Hessian products are symmetric to " in result.out


def test_the_stability_line_is_that_of_the_runs_rate_at_each_snapshot(
    ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    original = fge.commands.sharpness.eigenvalue_chart

    def spy(places: Any, *args: Any, **options: Any) -> Any:
        drawn.append((places, options["thresholds"], options["place"]))
        return original(places, *args, **options)

    monkeypatch.setattr(fge.commands.sharpness, "eigenvalue_chart", spy)
    folder = done("sharpness", look(ended, tmp_path / "sharp", LINEAR, k=1, **QUICK))
    # 2 (1 + momentum) / lr with momentum 0.5 and min_lr 0.01
    assert drawn == [([1.0, 3.0, 5.0, 7.0], pytest.approx([300.0] * 4), "epochs")]
    table = (folder / "report.md").read_text()
    assert "| 2(1+m)/lr |" in table
    assert table.count(" | 300 | ") == 4


def test_the_stability_line_takes_the_momentum_of_the_method(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(
        fge.commands.sharpness,
        "eigenvalue_chart",
        lambda *_, **options: drawn.append(options["thresholds"]) or Chart("", [Panel("")]),
    )
    done("sharpness", look(trained, tmp_path / "sharp", LINEAR, k=1, **QUICK))
    rates = [record["lr"] for record in snapshot_records(trained)]
    assert drawn == [pytest.approx([2 / lr for lr in rates])]
    assert json.loads((trained / "config.json").read_text())["options"]["momentum"] == 0.9


def snapshot_records(folder: Path) -> list[dict[str, Any]]:
    index = json.loads((folder / "snapshots" / "index.json").read_text())
    return list(index["snapshots"])


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_adam_and_methods_that_are_not_imported_have_no_stability_line(
    data: Path, tmp_path: Path
) -> None:
    more = {"epochs": 2, "method": "looked_at_models:adam", "sse_cycles": 2, "sharpness_every": 1}
    folder = done("train", job(data, tmp_path / "adam", model=LINEAR, **more))
    found, page = report(folder)["sharpness"], (folder / "report.md").read_text()
    assert (found["optimizer"], found["momentum"]) == ("adam", None)
    assert "There is no threshold 2(1+m)/lr: it holds for SGD, and the optimizer is adam." in page
    assert "momentum)/" not in page
    assert "| 2(1+m)/lr" not in page
    assert "momentum) / learning rate" not in (folder / "report.html").read_text()

    study = done("sharpness", look(folder, tmp_path / "sharp", LINEAR, k=1, **QUICK))
    page = (study / "report.md").read_text()
    assert "the optimizer of the method looked_at_models:adam is unknown" in page
    assert "| 2(1+m)/lr" not in page


def test_a_recipe_of_adam_has_no_stability_line() -> None:
    assert line_momentum(recipe("G")) == 0.9
    assert line_momentum(recipe("B")) is None
    config = TrainConfig(method="csgld")
    assert line_momentum(METHODS["csgld"].recipe(config)) == 0


def test_sharpness_along_a_curve_has_statistics_of_each_point(
    pair: Path, data: Path, tmp_path: Path
) -> None:
    more = {"k": 1, "curve_points": 3, "examples": 0}
    folder = done("sharpness", look(pair, tmp_path / "sharp", NORMED, **QUICK, **more))
    found = report(folder)["networks"]
    assert [(n["name"], n["t"]) for n in found] == [("t = 0", 0), ("t = 0.5", 0.5), ("t = 1", 1)]
    images, labels = normalised(data)["train"]
    curve = Curve.load(pair / "curves" / PAIR / "curve.safetensors")
    model = built(NORMED)
    for network in found:
        write_parameters(model, curve.at(network["t"]))
        refresh(model, data)
        model.eval()
        top = top_eigenvalues(model, F.cross_entropy, [(images, labels)], tolerance=1e-3)
        assert network["eigenvalues"][0] == pytest.approx(float(top.values[0]), rel=2e-3)


def test_batch_statistics_are_an_option(pair: Path, data: Path, tmp_path: Path) -> None:
    file = pair / "networks" / "average-1" / "network" / "0001.safetensors"
    more = {"k": 1, "data": data, "batch_size": 32, "examples": 64, "chunk": 32, **QUICK}
    found = []
    for wanted in (False, True):
        options = look([file], tmp_path / f"{wanted}", NORMED, batch_statistics=wanted, **more)
        found.append(report(done("sharpness", options))["networks"][0]["eigenvalues"][0])
    images, labels = (part[:64] for part in normalised(data)["train"])
    model = built(NORMED)
    model.load_state_dict(load_file(file))
    batches = [(images[:32], labels[:32]), (images[32:], labels[32:])]
    for value, wanted in zip(found, (False, True), strict=True):
        top = top_eigenvalues(model, F.cross_entropy, batches, batch_statistics=wanted)
        assert value == pytest.approx(float(top.values[0]), rel=2e-3)
    assert abs(found[0] - found[1]) > 0.02 * found[0]


def test_interrupted_sharpness_goes_on(
    ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = look(ended, tmp_path / "reference", LINEAR, k=1, **QUICK)
    reference = done("sharpness", options)
    original, calls = fge.commands.sharpness.top_eigenvalues, []

    def counted(*args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **more)

    monkeypatch.setattr(fge.commands.sharpness, "top_eigenvalues", counted)
    assert run(flags("sharpness", {**options, "out": tmp_path / "cut"})).code == 130
    argv = ["sharpness", "--out", str(tmp_path / "cut"), "--resume", "--model", LINEAR]
    assert run(argv).code == 0
    assert len(calls) == 3 + 2  # the third and the fourth snapshot
    assert_same(tmp_path / "cut", reference)


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("command", ["plane", "sharpness"])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("", "give --run DIR, a run folder, or --weights FILE"),
        ("--run none", "none is not a run folder .no config.json.; give the folder of an fge"),
        ("--run empty --weights a b c", "give --run or --weights, not both|is not a run folder"),
        ("--run RUN --weights a b c", "give --run or --weights, not both"),
        ("--run RUN --config RUN/config.json", "give --run or --config, not both"),
        ("--run RUN", f"names the model factory '{LINEAR}'.*add --model {LINEAR}"),
        ("--run RUN --model convnet", "0001.safetensors has no tensor"),
        ("--weights none.pt no.pt nn.pt", r"no weights file none\.pt"),
        ("--resume --out nothing", "no run to resume in nothing"),
        ("--run RUN --model looked_at_models:linear --data DATA2", "are not those of the run"),
    ],
)
def test_what_is_wrong_with_the_networks_is_one_line(
    command: str, more: str, message: str, ended: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    if "DATA2" in more:  # other images under the name that the run has
        shutil.copytree(ended, tmp_path / "other")
        (tmp_path / "other" / "manifest.json").unlink()
        config = json.loads((ended / "config.json").read_text())
        config["options"]["data"] = str(write_tiny_npz(tmp_path / "new.npz"))
        config["dataset"]["sha256"] = "0" * 64
        (tmp_path / "other" / "config.json").write_text(json.dumps(config))
        more = "--run other --model looked_at_models:linear"
    elif "--run RUN" not in more:
        more += f" --data {data} --batch-size 32 --model {LINEAR}"
    argv = [command, *more.replace("RUN", str(ended)).split(), "--device", "cpu", "--threads", "1"]
    result = run(argv)
    assert result.code == 2
    assert re.search(message, result.message), result.message
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "--weights A A B",
            r"w0 and w1 are equal up to rounding; .*\(w0 = 1-0001, w1 = 2-0001, w2 = 3-0002\)",
        ),
        (
            "--weights A HALF B",
            "are on one line up to rounding: .* give three networks that span a plane",
        ),
        ("--weights A B", "--weights needs three files for a plane, got 2; --random needs one"),
        ("--weights A B --random", "--random needs one file, got 2"),
        ("--weights A B --trajectory", "--trajectory needs three files or more, got 2"),
        ("--weights A B C --random --trajectory", "give --random or --trajectory, not both"),
        ("--weights A B C --snapshots 1 2 3", "--snapshots chooses .* needs --run, without"),
        ("--run RUN --snapshots 1 2", "--snapshots needs three different numbers, got 1 2"),
        ("--run RUN --snapshots 1 2 2", "--snapshots needs three different numbers, got 1 2 2"),
        ("--run RUN --snapshots 0 1 2", "--snapshots must be >= 1, got 0"),
        ("--run RUN --snapshots 1 2 5", "run has no snapshot 5; it has 4"),
        ("--run RUN --resolution 1", "--resolution must be >= 2, got 1"),
        (
            "--weights A --line",
            "--line needs two files or more, got 1; with --random one is",
        ),
        ("--weights A B --line --random", "--random needs one file, got 2"),
        ("--weights A A --line", "1-0001 and 2-0001 have the same weights; give networks that"),
        ("--run RUN --line --trajectory", "give --line or --trajectory, not both"),
        (
            "--run RUN --line --snapshots 2",
            "--snapshots needs two different numbers or more, got 2",
        ),
        ("--run RUN --line --snapshots 2 2", "--snapshots needs two different numbers or more"),
        ("--run RUN --line --line-points 1", "--line-points must be >= 2, got 1"),
        ("--run NONE --line", "none holds no snapshots; finish the run with --resume first"),
        ("--run RUN --margin -1", "--margin must be finite and >= 0, got -1"),
        ("--run SHORT", "a plane needs three snapshots, short has 2; with --random one is enough"),
        ("--run NONE", "none holds no snapshots; finish the run with --resume first"),
        (
            "--run PLANE",
            "plane is a run of 'plane'; give one of fge, train, curve-ensemble or connect",
        ),
    ],
)
def test_a_plane_that_cannot_be_is_one_line(
    more: str, message: str, ended: Path, data: Path, tmp_path: Path
) -> None:
    files = dict(zip("ABC", files_of(ended), strict=False))
    half = {k: (v + load_file(files["B"])[k]) / 2 for k, v in load_file(files["A"]).items()}
    save_file(half, tmp_path / "half.safetensors")
    for name, keep in (("short", 2), ("none", 0)):
        shutil.copytree(ended, tmp_path / name)
        (tmp_path / name / "manifest.json").unlink()
        index = json.loads((ended / "snapshots" / "index.json").read_text())
        index["snapshots"] = index["snapshots"][:keep]
        (tmp_path / name / "snapshots" / "index.json").write_text(json.dumps(index))
    (tmp_path / "plane").mkdir()
    (tmp_path / "plane" / "config.json").write_text(json.dumps({"command": "plane"}))
    named = {"HALF": "half.safetensors", "RUN": str(ended), "SHORT": "short", "NONE": "none"}
    named |= {"PLANE": "plane", **{name: str(path) for name, path in files.items()}}
    argv = ["plane", *(named.get(word, word) for word in more.split()), "--model", LINEAR]
    if "--weights" in more:
        argv += ["--data", str(data), "--batch-size", "32"]
    result = run([*argv, "--device", "cpu", "--threads", "1"])
    assert result.code == 2
    assert re.search(message, result.message), result.message
    assert not (tmp_path / "runs").exists()


def test_a_curve_runs_plane_is_that_of_its_curve(pair: Path, tmp_path: Path) -> None:
    base = ["--run", str(pair), "--model", NORMED, "--device", "cpu", "--threads", "1"]
    for option in (["--random"], ["--trajectory"], ["--snapshots", "1", "2", "3"]):
        for line in ([], ["--line"]) if option[0] != "--trajectory" else ([],):
            message = run(["plane", *base, *option, *line]).message
            needed = f"{option[0]} needs a run of fge or train"
            assert message == f"{needed}, but {pair} is a run of curve-ensemble"
    shutil.copytree(pair, tmp_path / "begun")
    (tmp_path / "begun" / "report.json").unlink()
    message = run(["plane", *base, "--run", "begun"]).message
    assert message == "begun has no report.json yet; finish the curve-ensemble run with --resume"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be >= 1, got 0"),
        ({"chunk": 0}, "chunk must be >= 1, got 0"),
        ({"examples": -1}, "examples must be >= 0, got -1"),
        ({"trace_samples": 1}, "trace_samples must be >= 2, got 1"),
        ({"curve_points": 1}, "curve_points must be >= 2, got 1"),
        ({"spectrum_vectors": 0}, "spectrum_vectors must be >= 1, got 0"),
        ({"spectrum_steps": 0}, "spectrum_steps must be >= 1, got 0"),
    ],
)
def test_a_bad_number_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SharpnessConfig(run=Path("run"), **options)
    with pytest.raises(ValueError, match="eval_images must be >= 0, got -1"):
        PlaneConfig(run=Path("run"), eval_images=-1)


def test_more_eigenvalues_than_parameters_are_refused_before_anything(
    ended: Path, tmp_path: Path
) -> None:
    result = run(flags("sharpness", look(ended, tmp_path / "out", LINEAR, k=196)))
    assert result.code == 2
    assert result.message == "--k must be from 1 to the 195 parameters, got 196"
    assert not (tmp_path / "out").exists()


def test_the_run_that_is_looked_at_is_neither_changed_nor_overwritten(
    ended: Path, tmp_path: Path
) -> None:
    shutil.copytree(ended, tmp_path / "run")
    before = promised(tmp_path / "run")
    options = look(Path("run"), Path("run"), LINEAR, overwrite=True)
    message = run(flags("plane", options)).message
    assert message == "run is in run, which --overwrite removes; copy it elsewhere first"
    assert run(flags("plane", look(Path("run"), Path("run"), LINEAR))).code == 2
    done("plane", look(Path("run"), tmp_path / "plane", LINEAR, resolution=2))
    assert promised(tmp_path / "run") == before
