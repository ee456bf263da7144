"""Tar shards, written and read as well by the webdataset library."""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fge.config import as_stored
from fge.data import Dataset, Normaliser, Reading, TrainBatches, load_dataset
from fge.errors import UserError

wds = pytest.importorskip("webdataset")
NAMES = ("ape", "bat", "cat")


def picture(number: int) -> np.ndarray:
    return np.full((4 + number % 2, 5, 3), number, np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def write(path: Path, numbers: range, **more: Any) -> Path:
    """Write a shard; the class of an image is its number modulo 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wds.TarWriter(str(path)) as writer:
        for k in numbers:
            label = {"cls": k % 3, **{n: f(k) for n, f in more.items()}}
            writer.write({"__key__": f"sub/{k:03d}", "png": png(picture(k)), **label})
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    for shard in range(3):
        write(folder / f"train-{shard:03d}.tar", range(10 * shard, 10 * shard + 10))
    write(folder / "val-000.tar", range(30, 36))
    write(folder / "test-000.tar", range(36, 45))
    return folder


def load(name: object, **options: Any) -> Dataset:
    return load_dataset(str(name), reading=Reading(4, workers=0, **options), val_fraction=0.2)


def numbers(part: Any) -> dict[int, int]:
    """Return the label of each number, which is the value of its image."""
    return dict(zip(part.images[:, 0, 0, 0].tolist(), part.labels.tolist(), strict=True))


def test_samples_are_those_that_webdataset_reads(shards: Path) -> None:
    dataset = load(shards)
    for part in ("train", "val", "test"):
        paths = sorted(map(str, shards.glob(f"{part}-*.tar")))
        read = wds.WebDataset(paths, shardshuffle=False).decode("rgb8").to_tuple("png", "cls")
        expected = {int(image[0, 0, 0]): label for image, label in read}
        assert len(expected) > 5
        assert numbers(getattr(dataset, part)) == expected
    assert dataset.origins == {"val": "from the val shards"}
    assert dataset.classes == ("0", "1", "2")
    assert dataset.name == "shards"


def test_names_with_braces_and_single_shards_train(shards: Path) -> None:
    dataset = load(shards / "train-{000..001}.tar")
    assert sorted(numbers(dataset.train) | numbers(dataset.val) | numbers(dataset.test)) == [
        *range(20)
    ]
    name = shards / "data.tar"
    write(name, range(12))
    assert len(load(name).train) + len(load(name).val) + len(load(name).test) == 12
    both = load(f"{shards}/{{train-000,test-000}}.tar")
    assert numbers(both.test).keys() == set(range(36, 45))


def test_labels_may_be_names(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tar", range(30), cls=lambda k: NAMES[k % 3].encode())
    dataset = load(file)
    assert dataset.classes == NAMES
    assert all(label == number % 3 for number, label in numbers(dataset.train).items())
    write(file, range(30), json=lambda k: {"number": k})  # what else there is is passed over
    assert load(file).classes == ("0", "1", "2")


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_are_streamed_in_the_order_of_the_seed(shards: Path, workers: int) -> None:
    held = load(shards)
    streamed = load_dataset(
        str(shards), reading=Reading(4, stream="on", workers=workers), val_fraction=0.2
    )
    normaliser = Normaliser([0.0] * 3, [1.0] * 3, torch.device("cpu"))
    epochs = []
    for dataset in (held, streamed):
        batches = TrainBatches(dataset.train, normaliser, 7, seed=3, resized=True)
        batches.set_epoch(1)
        epochs.append(list(batches))
    for (x, y), (inputs, targets) in zip(*epochs, strict=True):
        assert torch.equal(x, inputs)
        assert torch.equal(y, targets)
    seen = Counter(int(x) for inputs, _ in epochs[0] for x in inputs[:, 0, 0, 0])
    assert seen == Counter(range(30))


def test_unreadable_images_are_left_out(tmp_path: Path) -> None:
    def broken(k: int) -> bytes:
        return png(picture(k)) if k % 10 else b"none"

    file = write(tmp_path / "train.tar", range(30), png=broken)
    with pytest.raises(UserError, match=r"train\.tar: sub/\d+\.png cannot be read as an image"):
        load(file)
    dataset = load(file, skip_unreadable=True)
    assert sorted(dataset.unreadable) == [f"{file}: sub/{k:03d}.png" for k in (0, 10, 20)]
    parts = (dataset.train, dataset.val, dataset.test)
    assert sum(len(part) for part in parts) == 27


def member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ([("1.png", b"x")], r"1 must be one image and its class \(\.cls\), but it has png$"),
        ([("1.cls", b"0")], r"1 must be one image and its class \(\.cls\), but it has cls$"),
        ([("1.png", b""), ("1.jpg", b""), ("1.cls", b"0")], r"but it has png, jpg, cls$"),
        ([("1.png", b"x"), ("1.cls", b" ")], r"1 has an empty class \(\.cls\); write one"),
        ([("1.png", b"x"), ("1.png", b"x")], r"cannot be read as a tar file .*duplicate file name"),
        ([("1.png", b"x"), ("1.cls", b"99999999")], r"the number 99999999; number .* from 0$"),
        ([("1.png", b"x"), ("1.cls", b"2")], r"^classes go from 2 to 2; number .* from 0$"),
        ([("readme", b"x")], r"holds no samples; write them with webdataset\.ShardWriter$"),
        ([], r"holds no samples"),
    ],
)
def test_what_is_wrong_in_a_shard_is_named(
    tmp_path: Path, files: list[tuple[str, bytes]], error: str
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in files:
            member(tar, name, content)
    with pytest.raises(UserError, match=error) as raised:
        load(tmp_path / "a.tar")
    assert "\n" not in str(raised.value)
    assert ("cannot be read as a tar file" in str(raised.value)) == error.startswith("cannot be")


def test_files_that_are_no_shards_are_named(shards: Path, tmp_path: Path) -> None:
    whole = (shards / "train-000.tar").read_bytes()
    for content in (b"no tar file at all" * 99, gzip.compress(whole)):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.tar cannot be read as a tar file that is not com"):
            load(tmp_path / "a.tar")
    for cut in (len(whole) // 2, 600, len(whole) - 10240 - 100):
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"a\.tar is cut off|a\.tar cannot be read|one image"):
            load(tmp_path / "a.tar")
    with pytest.raises(UserError, match=r"^no tar shard .*gone-1\.tar; check the path$"):
        load(tmp_path / "gone-{1..2}.tar")
    for name in ("a-{000..002.tar", "a-{000..002", "a-000..002}.tar"):
        with pytest.raises(UserError, match="has a brace without its pair"):
            load(tmp_path / name)
    for name in ("a.tar.gz", "a.tgz"):
        (tmp_path / name).write_bytes(gzip.compress(whole))
        with pytest.raises(UserError, match=rf"{name} cannot be read as a tar file that is not co"):
            load(tmp_path / name)
    for name in ("pipe:cat x.tar", "https://host/x.tar"):
        with pytest.raises(UserError, match="is not on this computer; give the path of local"):
            load(name)


def test_shards_belong_to_a_part_by_their_names(shards: Path) -> None:
    write(shards / "extra.tar", range(3))
    with pytest.raises(UserError, match=r"extra\.tar is of no part: its name must begin with"):
        load(shards)
    with pytest.raises(UserError, match=r"has no shard to train on, whose name begins with train"):
        load(shards / "test-000.tar")
    write(shards / "trained.tar", range(12))  # begins with a word, not with a part
    assert len(load(f"{shards}/{{trained,extra}}.tar").train) > 0
    for name, numbers_in in (("Training-0", range(12)), ("testing-0", range(12, 18))):
        write(shards / f"{name}.tar", numbers_in)
    assert numbers(load(f"{shards}/{{Training,testing}}-0.tar").test).keys() == set(range(12, 18))
    write(shards / "eval-0.tar", range(6))
    with pytest.raises(
        UserError, match=r"eval-0\.tar may be the validation or the test part; call"
    ):
        load(f"{shards}/{{Training,eval}}-0.tar")


def test_a_missing_library_is_named(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(UserError, match=r"needs the package webdataset, .*'\.\[webdataset\]'$"):
        load(shards)


def test_names_of_shards_are_stored_as_whole_paths() -> None:
    assert as_stored("data", "train-{0..9}.tar") == str(Path.cwd() / "train-{0..9}.tar")
