"""``export``: one file that predicts as the run does, in its manifest; and what is refused."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PLAIN, write_tiny_npz
from PIL import Image
from torch import Tensor, nn

from fge.commands import cli
from fge.commands.train import train
from fge.config import TrainConfig
from fge.data import load_dataset
from fge.networks import build_model

pytestmark = pytest.mark.slow  # whole runs

MEMBERS = 2
FILE, SCRIPT = "ensemble.pt2", "ensemble_pt2_example.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with two snapshots, beside its data; tests do not change it."""
    folder = tmp_path_factory.mktemp("export")
    write_tiny_npz(folder / "tiny.npz")
    data, out = str(folder / "tiny.npz"), folder / "run"
    options: dict[str, Any] = {**PLAIN, "epochs": 2, "sse_cycles": 2, "device": "cpu"}
    return train(TrainConfig(data=data, out=out, method="sse", **options))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the run, beside its data."""
    shutil.copy(trained.parent / "tiny.npz", tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "run"))


def change(run: Path, **options: Any) -> None:
    """Change options of a run; it is then one from before there were manifests."""
    file = run / "config.json"
    content = json.loads(file.read_text())
    content["options"] |= options
    content.pop("combine", None)
    file.write_text(json.dumps(content))
    (run / "manifest.json").unlink()


def export(run: Path, *more: str, kind: str = "pt2") -> list[str]:
    return ["export", "--run", str(run), "--format", kind, *more]


def fails(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    capsys.readouterr()
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", error), error
    return error.removeprefix("error: ").rstrip("\n")


def images_of(run: Path) -> Tensor:
    return load_dataset(str(run.parent / "tiny.npz")).test.images


def predicted(run: Path, *members: str) -> np.ndarray:
    """Return the mean of the probabilities that the run has stored for its test images."""
    with np.load(run / "predictions" / "test.npz") as stored:
        found = dict(zip(stored["members"].tolist(), stored["probabilities"], strict=True))
    return np.mean([found[name] for name in members], axis=0)


def probabilities(file: Path, images: Tensor) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(torch.export.load(file).module()(images))


def test_a_run_is_one_file_that_the_manifest_knows(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(export(run)) == 0
    said = capsys.readouterr().out
    assert f"2 snapshots of convnet in {run / FILE} (" in said
    assert f"use it: python {run / SCRIPT} IMAGE ...\n" in said
    images = images_of(run)
    expected = predicted(run, "sse-0001", "sse-0002")
    for count in (1, len(images)):
        found = probabilities(run / FILE, images[:count])
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=1e-5)

    extra = {"facts": ""}
    torch.export.load(run / FILE, extra_files=extra)
    facts, data = json.loads(extra["facts"]), json.loads((run / "config.json").read_text())
    for key in ("classes", "channels", "mean", "std"):
        assert facts[key] == data["dataset"][key], key
    assert [facts["height"], facts["width"]] == data["dataset"]["image_size"]
    assert (facts["members"], facts["averaged"], facts["resize"]) == ([1, 2], False, None)
    assert (facts["model"], facts["precision"]) == ("convnet", "float32")

    assert cli.main(["verify", str(run)]) == 0
    assert "not of the run" not in capsys.readouterr().out
    before = (run / FILE).read_bytes()
    assert fails(capsys, export(run)) == (
        f"{run / FILE} exists; replace it with --overwrite, or give another --out"
    )
    assert cli.main(export(run, "--overwrite")) == 0
    assert (run / FILE).read_bytes() == before
    assert cli.main(["verify", str(run)]) == 0


def test_whoever_moves_the_file_to_where_it_is_served_still_has_a_whole_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(export(run)) == 0
    (run / FILE).rename(run.parent / "moved.pt2")
    (run / SCRIPT).write_text("changed")
    assert cli.main(["train", "--out", str(run), "--resume"]) == 0
    assert "2 of " in fails(capsys, ["verify", str(run)])
    capsys.readouterr()
    assert cli.main(["verify", str(run), "--repair"]) == 0
    said = capsys.readouterr().out
    assert f"{FILE} is no file of the run any more; export writes it again" in said
    assert cli.main(export(run)) == 0


def test_members_are_chosen_by_their_numbers_and_files_go_anywhere(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "models" / "second.pt2"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert cli.main(export(run, "--members", "2", "--out", str(out))) == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "second.pt2",
        "second_pt2_example.py",
    ]
    found = probabilities(out, images_of(run))
    np.testing.assert_allclose(found, predicted(run, "sse-0002"), rtol=0, atol=1e-5)


def test_a_method_that_averages_weights_is_one_network(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run, method="swa")
    out = tmp_path / "mean.pt2"
    assert cli.main(export(run, "--out", str(out))) == 0
    assert f"the average of 2 snapshots of convnet in {out} (" in capsys.readouterr().out
    assert len([n for n in torch.export.load(out).state_dict if n.endswith("0.weight")]) > 0
    assert not any(n.startswith("members.1.") for n in torch.export.load(out).state_dict)
    new = run.parent / "new.npz"
    np.savez(new, images=images_of(run).permute(0, 2, 3, 1).numpy())
    assert cli.main(["predict", "--run", str(run), "--images", str(new), "--device", "cpu"]) == 0
    with np.load(run / "predict-new" / "predictions.npz") as stored:
        expected = stored["probabilities"]
    np.testing.assert_allclose(probabilities(out, images_of(run)), expected, rtol=0, atol=1e-5)
    assert fails(capsys, export(run, "--members", "1", "--overwrite", "--out", str(out))) == (
        "the run's method averages the weights of all 2 snapshots into one network; leave out "
        "--members"
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--members", "3"], "no snapshot 3: the run has those from 1 to 2"),
        (["--members", "0"], "--members must be >= 1, got 0"),
        (["--members", "1", "1"], "--members needs different numbers of snapshots, got 1 1"),
        (["--members", "x"], "x"),
        (["--format", "tflite"], "invalid choice 'tflite'"),
        (["--out", "{run}/model.onnx"], "does not end in .pt2; give another name, or --format onn"),
        (["--out", "{run}/folder.pt2"], "folder.pt2 is a folder, and is in the way; give another"),
        (["--out", "{run}/link.pt2", "--overwrite"], "link.pt2 is a link, and is in the way; give"),
        (["--out", "{run}/mine.pt2"], "mine.pt2 exists; replace it with --overwrite, or give anot"),
        (["--out", "{run}/mine.pt2", "--overwrite"], "mine.pt2 is a file that the run did not wri"),
        (["--out", "{run}/other.pt2"], "other_pt2_example.py exists; replace it with --overwrite,"),
        (["--out", "{run}/snapshots/a.pt2"], "snapshots is a folder of the run's own files; give"),
        (["--out", "{run}/snapshots/b/a.pt2"], "b is a folder of the run's own files; give an --"),
        (["--out", "{run}/config.json/a.pt2"], "config.json is no folder, so "),
        (["--out", "{locked}/a.pt2"], "is read-only; give another --out"),
        (["--model", "my_nets:build", "--half", "--threads", "1"], "unknown option '--threads'"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_the_run_alone(
    run: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (run / "folder.pt2").mkdir()
    (run / "link.pt2").symlink_to("elsewhere")
    (run / "mine.pt2").write_text("mine")
    (run / "other_pt2_example.py").write_text("mine")
    locked = run.parent / "locked"
    locked.mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked and access(path, mode))
    before = {path: path.lstat().st_mtime_ns for path in run.rglob("*")}
    words = [word.format(run=run, locked=locked) for word in more]
    assert message in fails(capsys, export(run, *words))
    assert {path: path.lstat().st_mtime_ns for path in run.rglob("*")} == before


def test_runs_without_an_ensemble_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is not a run folder (no config.json)" in fails(capsys, export(tmp_path))
    shutil.rmtree(run / "snapshots")
    assert fails(capsys, export(run)) == (
        f"{run} holds no snapshots; finish the run with --resume first"
    )


def test_a_missing_package_is_named_with_its_extra(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = fails(capsys, export(run, kind="onnx"))
    assert message.startswith("an ONNX file needs the package onnxruntime, which ")
    assert message.endswith("pip install onnxruntime, or in the checkout: pip install -e '.[onnx]'")


def test_a_model_of_the_users_own_is_named_again_and_may_be_one_that_cannot_be_exported(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("nets_to_export")

    def branching(**options: Any) -> nn.Module:
        model = build_model("convnet", **options)
        kind = type(model)

        class Branching(kind):  # type: ignore[misc, valid-type]
            def forward(self, images: Tensor) -> Any:
                return super().forward(images * 2 if images.sum() > 0 else images)

        model.__class__ = Branching
        return model

    module.branching = branching  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    change(run, model="nets_to_export:branching")
    assert fails(capsys, export(run)) == (
        f"{run / 'config.json'} names the model factory 'nets_to_export:branching', which is code "
        "to import; if you trust it, add --model nets_to_export:branching"
    )
    message = fails(capsys, export(run, "--model", "nets_to_export:branching"))
    assert message.startswith("the model, a Branching, cannot be exported: its forward branches on")
    assert not (run / FILE).exists()
    assert not (run / SCRIPT).exists()


def test_a_full_disk_leaves_neither_file_nor_script(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("fge.commands.export.encoded", lambda *_, **__: b"a file")
    monkeypatch.setattr("fge.commands.export.write_bytes", full)
    assert fails(capsys, export(run)) == f"No space left on device ({run / FILE})"
    assert not (run / FILE).exists()
    assert not (run / SCRIPT).exists()
    assert cli.main(["verify", str(run)]) == 0


# ------------------------------------------------------------------- the script beside the file

WITHOUT_FGE = "import runpy, sys; sys.modules['fge'] = None; sys.argv[:] = sys.argv[1:]; " + (
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


def names_of(script: Path, *images: Path) -> list[tuple[str, str, float]]:
    """Run a script where this package cannot be imported; return what it prints."""
    command = [sys.executable, "-c", WITHOUT_FGE, str(script), *map(str, images)]
    done = subprocess.run(command, cwd=script.parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.rsplit(" ", 2) for line in done.stdout.splitlines()]
    return [(path, name, float(probability)) for path, name, probability in lines]


def predictions_of(run: Path, images: Path) -> list[tuple[str, str, float]]:
    words = ["predict", "--run", str(run), "--images", str(images), "--device", "cpu"]
    assert cli.main(words) == 0
    with (run / f"predict-{images.name}" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [(r["image"], r["class"], max(float(r[k]) for k in r if k[:2] == "p(")) for r in rows]


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_the_script_predicts_image_files_as_predict_does_without_this_package(
    run: Path, kind: str
) -> None:
    folder = run.parent / "new"
    folder.mkdir()
    for number, image in enumerate(images_of(run)[:4]):
        Image.fromarray(image[0].numpy()).save(folder / f"{number}.png")
    deep = np.random.default_rng(0).integers(0, 2**16, (8, 8), np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    assert cli.main(export(run, kind=kind)) == 0
    found = names_of(run / f"ensemble_{kind}_example.py", *sorted(folder.iterdir()))
    expected = predictions_of(run, folder)
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    np.testing.assert_allclose([r[2] for r in found], [r[2] for r in expected], rtol=0, atol=1e-5)
    if kind == "pt2":
        return
    Image.new("L", (9, 8)).save(folder / "large.png")
    with pytest.raises(AssertionError, match=r"large\.png has \(9, 8\) pixels, not \(8, 8\)"):
        names_of(run / f"ensemble_{kind}_example.py", folder / "large.png")


def test_the_script_resizes_photographs_as_the_run_did(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "photos" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (6, 8 + number % 3, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((40, 30 + number), Image.Resampling.BICUBIC).save(path)
    run = tmp_path / "run"
    words = ["fge", "--data", str(tmp_path / "photos"), "--image-size", "12", "--out", str(run)]
    plain = "--epochs 1 --start-epoch 0 --cycle-epochs 2 --batch-size 8 --workers 0 --device cpu"
    off = "--compile off --amp off --channels-last off --threads 1"
    assert cli.main([*words, *plain.split(), *off.split()]) == 0
    images = tmp_path / "photos" / "class1"
    expected = predictions_of(run, images)
    assert cli.main(export(run, "--half", kind="onnx")) == 0
    found = names_of(run / "ensemble_onnx_example.py", *sorted(images.iterdir()))
    assert [row[0] for row in found] == [row[0] for row in expected]
    # Half precision, and a grey level of Pillow's resizing.
    np.testing.assert_allclose([r[2] for r in found], [r[2] for r in expected], rtol=0, atol=2e-2)
