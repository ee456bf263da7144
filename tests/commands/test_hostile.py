"""What a user gives by mistake or in malice: one line, exit code 2, no hang, nothing lost."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_arrays, write_tiny_npz
from PIL import Image

from fge import memory
from fge.commands import main
from fge.errors import outcome
from fge.files import printable
from fge.networks import read_weights

ODD = os.fsdecode(b"caf\xe9")
"""The name of a file from a system that is not UTF-8."""
PLAIN = ["--threads", "1", "--channels-last", "off", "--amp", "off"]
TRAINED = [*PLAIN, "--batch-size", "32", "--compile", "off"]
FGE = ["fge", "--epochs", "4", "--start-epoch", "0", "--cycle-epochs", "2", *TRAINED]

Told = Callable[..., str]


@pytest.fixture
def told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Told:
    """Run a command that is refused in an empty working directory; return its one line."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> str:
        capsys.readouterr()
        before = sorted(tmp_path.rglob("*"))
        assert main(list(words)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return error[len("error: ") : -1]

    return call


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def device(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


SPECIAL = pytest.mark.parametrize(("make", "what"), [(pipe, "named pipe"), (device, "device")])


@SPECIAL
def test_data_that_are_no_file_are_refused_at_once(
    tmp_path: Path, told: Told, make: Callable[[Path], Path], what: str
) -> None:
    make(tmp_path / "data.npz")
    write_tiny_npz(tmp_path / "sound.npz")
    refused = f"data.npz is a {what} and no data file"
    assert told(*FGE, "--data", "data.npz", "--out", "run") == refused
    assert told("doctor", "--data", "data.npz") == refused
    ood = [*FGE, "--data", "sound.npz", "--ood", "data.npz", "--out", "run"]
    assert told(*ood) == f"--ood data.npz: {refused}"


@SPECIAL
def test_an_image_that_is_no_file_is_refused_at_once(
    tmp_path: Path, told: Told, make: Callable[[Path], Path], what: str
) -> None:
    for part in ("train", "test"):
        (tmp_path / "data" / part / "a").mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "data" / part / "a" / "1.png")
    make(tmp_path / "data" / "test" / "a" / "2.png")
    message = told(*FGE, "--data", "data", "--out", "run")
    assert message == f"data/test/a/2.png is a {what} and no image file"


@SPECIAL
def test_weights_that_are_no_file_are_refused_at_once(
    tmp_path: Path, told: Told, make: Callable[[Path], Path], what: str
) -> None:
    write_tiny_npz(tmp_path / "d.npz")
    make(tmp_path / "w.pt")
    make(tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        refused = f"{name} is a {what} and no weights file"
        more = ["--data", "d.npz", "--out", "run"]
        assert told(*FGE, *more, "--pretrained", name) == refused
        assert told("connect", *TRAINED, *more, "--weights", name, name) == refused
        assert told("sharpness", "--threads", "1", *more, "--weights", name) == refused
        assert told("plane", *PLAIN, *more, "--weights", name, name, name) == refused
        curve = ["curve-ensemble", *TRAINED, *more, "--epochs", "4"]
        assert told(*curve, "--first-weights", name, "--second-weights", name) == refused


@SPECIAL
def test_options_from_no_file_are_refused_at_once(
    tmp_path: Path, told: Told, make: Callable[[Path], Path], what: str
) -> None:
    (tmp_path / "run").mkdir()
    make(tmp_path / "run" / "config.json")
    refused = f"run/config.json is a {what} and no config file"
    assert told("fge", "--config", "run/config.json") == refused
    assert told("fge", "--out", "run", "--resume") == refused
    assert told("compare", "--out", "run") == refused
    for command in ("plane", "sharpness"):
        assert told(command, "--run", "run") == refused
    assert told("predict", "--run", "run", "--images", "x.png") == refused


def test_a_full_memory_is_told_before_anything_is_read(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_npz(tmp_path / "d.npz")
    whole = (96 + 48) * 64
    monkeypatch.setattr(memory, "free_host_memory", lambda: whole - 1)
    assert told(*FGE, "--data", "d.npz", "--out", "run") == (
        "144 images of d, 8 x 8 x 1 bytes each, need 9.22 kB of memory, but 9.21 kB are free; take "
        "fewer with --train-size and --test-size"
    )


def test_the_padded_copy_must_fit_too(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_npz(tmp_path / "d.npz")
    copy = 2 * 86 * (8 + 2 * 3) ** 2  # of the training images, and of those for batch norm
    monkeypatch.setattr("fge.commands.loading.free_memory", lambda _: copy - 1)
    message = told(*FGE, "--data", "d.npz", "--crop-padding", "3", "--out", "run")
    assert message == (
        "on cpu, a padded copy of the training images needs 33.7 kB of memory, but 33.7 kB are "
        "free; take fewer with --train-size and --test-size"
    )


def test_memory_that_fills_up_all_the_same_is_one_line() -> None:
    code, message = outcome(MemoryError("Unable to allocate 1.00 TiB"))
    assert code == 2
    assert message.startswith("the memory of this computer is full (Unable to allocate 1.00 TiB); ")


def test_a_name_with_a_line_break_does_not_make_two_lines(tmp_path: Path, told: Told) -> None:
    (tmp_path / "a\nb\x1b[31m.npz").write_text("x")
    message = told(*FGE, "--data", "a\nb\x1b[31m.npz", "--out", "run")
    assert message.startswith(r"a\nb\x1b[31m.npz cannot be read; ")


# ------------------------------------------------------------------------------- whole runs


def write_folder(root: Path) -> Path:
    """Write a data folder with names that are no UTF-8, and images that validate."""
    arrays = tiny_arrays()
    parts = {
        "train": slice(0, 60),
        "val": slice(60, 96),
    }
    for part, rows in [*parts.items(), ("test", slice(0, 48))]:
        kind = "test" if part == "test" else "train"
        images, labels = arrays[f"{kind}_images"][rows], arrays[f"{kind}_labels"][rows]
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = root / part / f"{label}{ODD}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}{ODD}.png")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    return root


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose data, classes and folder have names that are no UTF-8."""
    place = tmp_path_factory.mktemp("odd")
    data = write_folder(place / f"data-{ODD}")
    out = place / f"run-{ODD}"
    assert main([*FGE, "--data", str(data), "--out", str(out)]) == 0
    return out


def lines_of(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    capsys.readouterr()
    assert main(list(words)) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


@pytest.mark.slow
def test_what_validates_is_in_the_output_and_in_the_report(
    odd_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = lines_of(capsys, "fge", "--out", str(odd_run), "--resume")
    assert "validation: 36 images from val/" in lines
    skipped = [line for line in lines if line.startswith("skipped in ")]
    assert skipped[0].endswith(r"data-caf\xe9: 1 hidden (.ipynb_checkpoints)")
    for file in ("config.json", "report.json"):
        facts = json.loads((odd_run / file).read_text())["dataset"]
        assert facts["origins"] == {"val": "from val/"}
        assert (facts["train"], facts["val"], facts["test"]) == (60, 36, 48)
        assert facts["classes"] == [rf"{label}caf\xe9" for label in range(3)]
    text = (odd_run / "report.md").read_text()
    assert "48 test images, 60 training images, 36 validation images from val/." in text


@pytest.mark.slow
def test_predictions_name_files_as_they_are(
    odd_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = odd_run.parent / f"data-{ODD}" / "test"
    out = odd_run.parent / f"predicted-{ODD}"
    lines = lines_of(
        capsys, "predict", "--run", str(odd_run), "--images", str(images), "--out", str(out)
    )
    assert any(line.startswith("48 predictions by") for line in lines)
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["image"] for row in rows} == {printable(str(p)) for p in images.rglob("*.png")}
    assert {row["class"] for row in rows} <= {rf"{label}caf\xe9" for label in range(3)}
    with np.load(out / "predictions.npz") as stored:
        assert [printable(name) for name in stored["images"]] == [row["image"] for row in rows]
        assert {Path(name) for name in stored["images"]} == set(images.rglob("*.png"))
    assert rf"{ODD}.png" not in (out / "report.html").read_text()


@pytest.mark.slow
def test_other_commands_take_such_names(odd_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, data = odd_run.parent, ["--data", str(odd_run.parent / f"data-{ODD}")]
    weights = [str(place / f"{name}-{ODD}.safetensors") for name in "ab"]
    for number, copy in enumerate(weights, start=1):
        shutil.copy(odd_run / "snapshots" / f"000{number}.safetensors", copy)
    connected = str(place / f"connected-{ODD}")
    short = ["--epochs", "1", "--eval-points", "3"]
    options = [*data, "--out", connected, *TRAINED, *short]
    lines_of(capsys, "connect", *options, "--weights", *weights)
    content = json.loads((Path(connected) / "report.json").read_text())
    assert content["pairs"][0]["name"] == r"1-a-caf\xe9--2-b-caf\xe9"
    plane = str(place / f"plane-{ODD}")
    lines_of(capsys, "plane", "--run", connected, "--out", plane, "--resolution", "3")
    short = "--threads 1 --examples 8 --trace-samples 2 --spectrum-vectors 1 --spectrum-steps 2"
    options = [*data, "--out", str(place / f"sharpness-{ODD}"), *short.split()]
    lines_of(capsys, "sharpness", *options, "--weights", weights[0])
    joined = str(place / f"joined-{ODD}")
    lines_of(capsys, "report", str(odd_run), connected, "--out", joined)
    link = b"connected-caf%E9/figures/"
    assert link in (Path(joined) / "report.md").read_bytes()


FILES = (
    *("config.json", "log.jsonl", "timing.jsonl", "swa.safetensors", "folded.safetensors"),
    *("snapshots/index.json", "predictions/test.npz", "predictions/val.npz"),
    *("state/checkpoint.safetensors", "state/average-swa.safetensors"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_a_run_folder_is_refused_at_once(
    odd_run: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(odd_run, tmp_path / "run")
    (run / name).unlink()
    os.mkfifo(run / name)
    capsys.readouterr()
    assert main(["fge", "--out", str(run), "--resume"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {run / name} is a named pipe")
    assert error.count("\n") == 1
    weights: dict[str, Any] = read_weights(run / "snapshots" / "0001.safetensors")
    assert len(weights) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("forked_jobs")
def test_every_command_trains_and_validates_on_the_same_images(
    odd_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, data = odd_run.parent, odd_run.parent / "without-test"
    shutil.copytree(odd_run.parent / f"data-{ODD}", data)
    shutil.rmtree(
        data / "test"
    )  # so that the program takes the test images from the training images
    short = {
        "fge": ["--epochs", "4", "--start-epoch", "0", "--cycle-epochs", "2"],
        "train": ["--method", "single", "--epochs", "1"],
        "curve-ensemble": ["--epochs", "3", "--eval-points", "3"],
        "compare": ["--epochs", "8", "--methods", "single", "--budgets", "1", "--seeds", "2"],
    }
    found = {}
    for command, options in short.items():
        out = place / f"same-{command}"
        words = [command, "--data", str(data), "--out", str(out), *TRAINED, *options]
        lines = lines_of(capsys, *words)
        told = "test: 12 images held out of the training images (0.2 of them), as there is no test/"
        assert {"validation: 36 images from val/", told} <= set(lines)
        facts = json.loads((out / "config.json").read_text())["dataset"]
        assert (facts["train"], facts["val"], facts["test"]) == (48, 36, 12)
        found[command] = facts["sha256"], facts["origins"]["test"], facts["origins"]["val"]
    assert len(set(found.values())) == 1
