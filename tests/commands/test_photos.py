"""Runs on photographs of mixed sizes: in memory or streamed, resumed, and predictions of others."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curve_runs import done, flags, job, killed_and_resumed, report, run
from PIL import Image
from promised import promised

from fge.config import FGEConfig, TrainConfig, read_config

SIZES = [(12, 9), (9, 14), (10, 10)]


def photograph(number: int) -> Image.Image:
    """Return a photograph whose class, number % 3, is the channel that is bright."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 120, (*SIZES[number % 3], 3))
    pixels[..., number % 3] += 120
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "photos"
    for number in range(78):
        place = folder / ("train" if number < 60 else "test") / "rgb"[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        photograph(number).save(place / f"{number:02d}.{('png', 'jpg')[number % 2]}")
    return folder


def small(photos: Path | str, out: Path, **more: Any) -> dict[str, Any]:
    options = {"epochs": 2, "cycle_epochs": 2, "start_epoch": 0, "batch_size": 16, "image_size": 8}
    return job(photos, out, **{**options, **more})


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return done("fge", small(photos, tmp_path_factory.mktemp("run") / "run", workers=0))


def test_photographs_of_mixed_sizes_train_as_they_are(finished: Path) -> None:
    options = report(finished)["config"]
    assert (options["image_size"], options["stream"], options["crop_padding"]) == (8, "off", None)
    facts = report(finished)["dataset"]
    assert (facts["image_size"], facts["train"], facts["val"], facts["test"]) == ([8, 8], 54, 6, 18)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_run_ends_as_one_in_memory(
    finished: Path, photos: Path, tmp_path: Path, workers: int
) -> None:
    folder = done("fge", small(photos, tmp_path / "run", stream="on", workers=workers))
    assert report(folder)["dataset"]["streamed"] is True
    ours, theirs = promised(folder), promised(finished)
    same = [name for name in theirs if name.startswith(("snapshots/0", "predictions/"))]
    assert len(same) >= 3
    for name in same:
        assert ours[name] == theirs[name], name


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["off", "on"])
def test_a_killed_run_on_photographs_ends_the_same(
    photos: Path, tmp_path: Path, stream: str
) -> None:
    options = small(photos, tmp_path / "whole", epochs=3, stream=stream, workers=2)
    whole = promised(done("fge", options))
    for point in (20, 45):
        folder = killed_and_resumed("fge", options, tmp_path / f"killed-{point}", point)
        assert promised(folder) == whole


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"image_size": 9}, "cannot resume with --image-size 9: the run was started with 8"),
        ({"stream": "on"}, "cannot resume with stream on: the run was started with off"),
        ({"crop_padding": 1}, "cannot resume with --crop-padding 1"),
        ({"normalize": "imagenet"}, "cannot resume with normalize imagenet"),
    ],
)
def test_what_changes_the_images_cannot_change_when_a_run_is_resumed(
    finished: Path, photos: Path, change: dict[str, Any], error: str
) -> None:
    options = small(photos, finished, resume=True, **change)
    result = run(flags("fge", options))
    assert result.code == 2
    assert result.message.startswith(error)


def test_a_run_from_before_there_were_streams_had_its_images_in_memory(
    finished: Path, tmp_path: Path
) -> None:
    content = json.loads((finished / "config.json").read_text())
    content["options"].pop("stream")
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_config(tmp_path / "config.json", "fge", FGEConfig)[0].stream == "off"


def test_a_padded_copy_that_does_not_fit_can_be_streamed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fge.commands.loading.free_memory", lambda _: 10_000)
    options = small(photos, tmp_path / "run", crop_padding=1, workers=0)
    result = run(flags("fge", {**options, "stream": "off"}))
    assert result.message.endswith(", or read them when they are needed with --stream on")
    assert run(flags("fge", {**options, "stream": "on"})).code == 0


@pytest.fixture
def copied(photos: Path, tmp_path: Path) -> Path:
    shutil.copytree(photos, tmp_path / "photos")
    return tmp_path / "photos"


def test_an_unreadable_test_image_is_named_before_a_streamed_run_trains(
    copied: Path, tmp_path: Path
) -> None:
    files = sorted((copied / "test").rglob("*.png"))
    content = files[-1].read_bytes()
    files[-1].write_bytes(content[:-60])
    options = small(copied, tmp_path / "run", stream="on", workers=2)
    result = run(flags("fge", options))
    assert result.code == 2
    assert result.message.startswith(f"{files[-1]} cannot be read as an image: ")
    again = "; replace it (a run goes on with --resume), or begin again with --skip-unreadable"
    assert result.message.endswith(again)
    assert not list(tmp_path.glob("run/*.jsonl"))


@pytest.mark.slow
def test_a_streamed_run_is_finished_after_a_training_image_was_repaired(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fge.data.splits._SAMPLE", 1)  # else it is found there
    options = small(copied, tmp_path / "run", stream="on", workers=0)
    whole = promised(done("fge", {**options, "out": str(tmp_path / "whole")}))
    file = sorted((copied / "train").rglob("*.png"))[-1]
    content = file.read_bytes()
    file.write_bytes(content[:-60])
    result = run(flags("fge", options))
    assert result.code == 2
    assert result.message.startswith(f"{file} cannot be read as an image: ")
    assert "goes on with --resume" in result.message
    file.write_bytes(content)
    result = run(flags("fge", {**options, "resume": True}))
    assert (result.code, result.err) == (0, "")
    assert "other sizes than at the start; they are taken to be repaired" in result.out
    assert promised(tmp_path / "run") == whole
    file.rename(file.with_name("other.png"))
    result = run(flags("fge", {**options, "resume": True}))
    assert "are not those of the run; restore them" in result.message


def test_padded_crops_are_taken_if_they_are_asked_for() -> None:
    assert FGEConfig(image_size=8).resized
    assert not FGEConfig(image_size=8, crop_padding=1).resized
    assert not TrainConfig().resized


# ---------------------------------------------------------------------------- predictions


def predicted(folder: Path) -> dict[str, list[str]]:
    rows = list(csv.reader((folder / "predictions.csv").read_text().splitlines()))
    return {Path(row[0]).stem: row[1:] for row in rows[1:]}


def predict(finished: Path, images: Path, out: Path, *more: str) -> list[str]:
    words = ["predict", "--run", str(finished), "--images", str(images), "--out", str(out)]
    return [*words, "--device", "cpu", *more]


def test_new_photographs_are_resized_as_those_of_the_test(
    finished: Path, photos: Path, tmp_path: Path
) -> None:
    argv = predict(finished, photos / "test", tmp_path / "out", "--workers", "2")
    result = run(argv)
    assert (result.code, result.err) == (0, "")
    with np.load(finished / "predictions" / "test.npz") as stored:
        ours = np.array([row[2:5] for row in predicted(tmp_path / "out").values()], float)
        mean = stored["probabilities"].astype(float).mean(axis=0)
        assert np.allclose(np.sort(ours, axis=0), np.sort(mean, axis=0), atol=2e-6)
    again = run(predict(finished, photos / "test", tmp_path / "two", "--image-size", "8"))
    assert again.code == 0
    assert predicted(tmp_path / "two") == predicted(tmp_path / "out")


def test_another_size_than_the_networks_is_refused(
    finished: Path, photos: Path, tmp_path: Path
) -> None:
    result = run(predict(finished, photos, tmp_path / "out", "--image-size", "9"))
    assert result.code == 2
    assert result.message == "--image-size must be the side of the network's images, 8 x 8, got 9"


def test_unreadable_photographs_are_left_out_of_predictions(finished: Path, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "new").mkdir(exist_ok=True)
        photograph(number).save(tmp_path / "new" / f"{number}.png")
    (tmp_path / "new" / "x.png").write_bytes(b"none")
    argv = predict(finished, tmp_path / "new", tmp_path / "out", "--workers", "0")
    refused = run(argv)
    assert refused.code == 2
    assert refused.message.endswith("; replace it, or leave it out with --skip-unreadable")
    result = run([*argv, "--skip-unreadable"])
    assert (result.code, result.err) == (0, "")
    assert sorted(predicted(tmp_path / "out")) == ["0", "1", "2"]
    assert f"left out: {tmp_path / 'new' / 'x.png'} cannot be read as an image" in result.out
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(content["unreadable"]) == [str(tmp_path / "new" / "x.png")]
    for file in (tmp_path / "new").glob("*.png"):
        file.write_bytes(b"")
    nothing = run([*argv, "--skip-unreadable", "--overwrite"])
    assert nothing.message.startswith("none of the images can be read: ")


def test_arrays_are_resized_as_well(finished: Path, tmp_path: Path) -> None:
    images = np.stack([np.asarray(photograph(3 * number)) for number in range(4)])
    np.savez(tmp_path / "new.npz", images=images)
    assert run(predict(finished, tmp_path / "new.npz", tmp_path / "out")).code == 0
    assert len(predicted(tmp_path / "out")) == 4
    skips = predict(finished, tmp_path / "new.npz", tmp_path / "none", "--skip-unreadable")
    assert run(skips).message.startswith("--skip-unreadable is for image files, and ")
    np.savez(tmp_path / "new.npz", images=images[..., :1])
    result = run(predict(finished, tmp_path / "new.npz", tmp_path / "none"))
    assert result.message.endswith("have 1 channels, but the network needs 3")


# ------------------------------------------------------------------------------- reports


def test_unreadable_files_and_untested_classes_are_in_the_report(
    photos: Path, tmp_path: Path
) -> None:
    for file in photos.rglob("*.*"):
        copy = tmp_path / "data" / file.relative_to(photos)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes() if "test/r" not in str(file) else b"broken")
    options = small(tmp_path / "data", tmp_path / "run", skip_unreadable=True, workers=0)
    result = run(flags("fge", options))
    assert (result.code, result.err) == (0, "")
    assert "classes without test images: r" in result.out
    assert "unreadable: 6 files, such as" in result.out
    facts = report(tmp_path / "run")["dataset"]
    assert (len(facts["unreadable"]), facts["classes_without_test"]) == (6, ["r"])
    page = (tmp_path / "run" / "report.md").read_text()
    assert "Left out because unreadable: 6 files, " in page
    assert "Classes without test images: r." in page


# --------------------------------------------------------------------- data sets of one's own

MODULE = """
import os
from PIL import Image
from pathlib import Path

FOLDER = Path(os.environ["PHOTOS"])


class Photos:
    def __init__(self, part):
        self.files = sorted((FOLDER / part).rglob("*.*"))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        file = self.files[index]
        return Image.open(file), "bgr".index(file.parent.name)


def load():
    return {"train": Photos("train"), "test": Photos("test")}
"""


@pytest.fixture
def own(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_photos.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PHOTOS", str(photos))
    return "my_photos:load"


def test_a_data_set_of_ones_own_trains_and_is_imported_only_if_it_is_named(
    own: str, photos: Path, tmp_path: Path
) -> None:
    options = small(own, tmp_path / "run", workers=0)
    done("fge", options)
    assert report(tmp_path / "run")["config"]["data"] == own
    with np.load(tmp_path / "run" / "predictions" / "test.npz") as ours:
        assert ours["probabilities"].shape[1:] == (18, 3)
    again = run(["fge", "--out", str(tmp_path / "run"), "--resume"])
    assert again.code == 2
    assert again.message.endswith(
        "names the data set 'my_photos:load', which is code to import; if you trust it, add "
        "--data my_photos:load"
    )
    assert run(["fge", "--out", str(tmp_path / "run"), "--resume", "--data", own]).code == 0
    studied = run(["sharpness", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "s")])
    assert studied.message.endswith("--data my_photos:load")
    predicted = run(predict(tmp_path / "run", photos / "test", tmp_path / "out"))
    assert predicted.code == 0  # needs no data


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ("no_such_module_at_all:load", "data set 'no_such_module_at_all:load' cannot be imported"),
        ("my_photos:lod", "data set 'my_photos:lod' cannot be imported: "),
    ],
)
@pytest.mark.usefixtures("own")
def test_a_data_set_that_cannot_be_imported_is_named(tmp_path: Path, data: str, error: str) -> None:
    result = run(flags("fge", small(data, tmp_path / "run")))
    assert result.code == 2
    assert result.message.startswith(error)


def test_tar_shards_train_and_can_be_resumed(photos: Path, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    for part in ("train", "test"):
        with wds.TarWriter(str(tmp_path / f"{part}-000.tar")) as writer:
            for file in sorted((photos / part).rglob("*.*")):
                key, _, suffix = file.name.partition(".")
                label = file.parent.name.encode()
                writer.write({"__key__": key, suffix: file.read_bytes(), "cls": label})
    folder = done("fge", small(tmp_path, tmp_path / "run", workers=2, stream="on"))
    facts = report(folder)["dataset"]
    assert (facts["train"], facts["test"], facts["classes"]) == (54, 18, ["b", "g", "r"])
    (folder / "report.json").unlink()
    again = run(["fge", "--out", str(folder), "--resume", "--workers", "0"])
    assert (again.code, again.err) == (0, "")
