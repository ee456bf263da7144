"""Pictures of any size, against torchvision's v2 transforms; and the same read in any way."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from fge.data import (
    Dataset,
    FilePaths,
    FilePictures,
    Normaliser,
    Reading,
    TrainBatches,
    load_dataset,
)
from fge.data.pictures import centre, random_crop
from fge.errors import UserError
from fge.parallel import Ranks

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
SIZES = [(40, 30), (30, 41), (17, 60), (24, 24), (12, 9)]


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a picture in colour that a JPEG keeps nearly as it is."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 5, 3)).astype(np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def tensor(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of pictures of five sizes and two formats."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(44):
        part = "train" if number < 32 else "test"
        place = folder / part / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(smooth(*SIZES[number % 5], seed=number))
        picture.save(place / f"{number:02d}.{('png', 'jpg')[number % 3 > 0]}")
    return folder


# ------------------------------------------------------------------------- against torchvision


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [8, 24, 32])
def test_a_centre_is_torchvisions(size: tuple[int, int], side: int) -> None:
    picture = RNG.integers(0, 256, (*size, 3)).astype(np.uint8)
    ours = tensor(centre(picture, side))
    transform = v2.Compose([v2.Resize(side, antialias=True), v2.CenterCrop(side)])
    assert torch.equal(ours, transform(tensor(picture)))
    of_pil = tensor(np.asarray(transform(Image.fromarray(picture))))
    assert (ours.int() - of_pil.int()).abs().max() <= 1
    grey = centre(picture[..., :1], side)
    assert grey.shape == (side, side, 1)


@pytest.mark.parametrize("size", SIZES)
def test_a_random_crop_is_torchvisions(tmp_path: Path, size: tuple[int, int]) -> None:
    picture = RNG.integers(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "i.png")
    pictures = FilePictures(FilePaths(tmp_path, [tmp_path / "i.png"]), 3)
    for seed in range(20):
        before = torch.get_rng_state()
        plain, flipped = (
            tensor(random_crop(pictures, 0, 16, flip=flip, seed=seed)) for flip in (False, True)
        )
        assert torch.equal(torch.get_rng_state(), before)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            mirrored = bool(torch.rand(()) < 0.5)
            expected = v2.RandomResizedCrop(16, antialias=True)(tensor(picture))
        assert torch.equal(plain, expected)
        assert torch.equal(flipped, expected.flip(2) if mirrored else expected)


@pytest.mark.parametrize("orientation", [1, 6, 3])
def test_a_jpeg_that_is_shrunk_while_it_is_decoded_looks_the_same(
    tmp_path: Path, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(smooth(400, 300)).save(tmp_path / "i.jpg", quality=95, exif=exif)
    pictures = FilePictures(FilePaths(tmp_path, [tmp_path / "i.jpg"]), 3)
    shrunk = [random_crop(pictures, 0, 24, flip=False, seed=seed) for seed in range(20)]
    monkeypatch.setattr("fge.data.images._SCALES", ())
    whole = [random_crop(pictures, 0, 24, flip=False, seed=seed) for seed in range(20)]
    differences = [np.abs(a.astype(int) - b).mean() for a, b in zip(shrunk, whole, strict=True)]
    assert max(differences) < 4  # grey levels; of other pictures they are about 60
    assert sum(differences) > 0  # it was shrunk


# --------------------------------------------------------------- the same however it is read


def read(photos: Path, **options: object) -> Dataset:
    sizes = {name: options.pop(name) for name in ("train_size",) if name in options}
    return load_dataset(
        str(photos),
        val_fraction=0.25,
        reading=Reading(**options),
        **sizes,  # type: ignore[arg-type]
    )


def batches(dataset: Dataset, **options: object) -> TrainBatches:
    normaliser = Normaliser([0.0] * 3, [1.0] * 3, CPU)
    return TrainBatches(dataset.train, normaliser, 7, seed=5, flip=True, **options)  # type: ignore[arg-type]


def epoch(batches: TrainBatches, number: int = 0) -> list[tuple[Tensor, Tensor]]:
    batches.set_epoch(number)
    return list(batches)


def assert_same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> None:
    assert len(first) == len(second) > 0
    for (x, y), (inputs, targets) in zip(first, second, strict=True):
        assert torch.equal(x, inputs)
        assert torch.equal(y, targets)


def test_pictures_of_mixed_sizes_become_the_centres_that_torchvision_cuts(photos: Path) -> None:
    dataset = read(photos, image_size=16)
    assert dataset.image_size == (16, 16)
    assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [24, 8, 12]
    files = sorted((photos / "test").rglob("*.*"))
    assert dataset.test.photographs is not None
    files = [files[k] for k in dataset.test.photographs.order]
    transform = v2.Compose([v2.Resize(16, antialias=True), v2.CenterCrop(16)])
    expected = [transform(tensor(np.asarray(Image.open(file)))) for file in files]
    assert torch.equal(dataset.test.images, torch.stack(expected))
    with pytest.raises(UserError, match=r"images .* one size, or --image-size$"):
        read(photos)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_images_and_crops_are_those_in_memory(photos: Path, workers: int) -> None:
    held = read(photos, image_size=16)
    streamed = read(photos, image_size=16, stream="on", workers=workers)
    assert (held.streamed, streamed.streamed) == (False, True)
    assert streamed.train.nbytes == 0
    assert (streamed.mean, streamed.std) == (held.mean, held.std)
    for part in ("train", "val", "test"):
        ours, theirs = getattr(streamed, part), getattr(held, part)
        assert ours.shape == theirs.shape
        assert_same(list(ours.batches(5)), list(theirs.batches(5)))
        assert torch.equal(ours.first(3).images, theirs.images[:3])
    for options in ({"resized": True}, {"crop_padding": 2}):
        for number in (0, 1):
            state = torch.get_rng_state()
            ours = epoch(batches(streamed, **options), number)
            assert torch.equal(torch.get_rng_state(), state)  # what the network draws is its own
            assert_same(ours, epoch(batches(held, **options), number))
    first, second = (epoch(batches(streamed, resized=True), number) for number in (0, 1))
    assert not torch.equal(first[0][0], second[0][0])


def test_each_process_reads_only_its_share(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = read(photos, image_size=16, stream="on")
    whole = epoch(batches(dataset, resized=True))
    asked: list[Path] = []
    original = FilePictures.part

    def counting(self: FilePictures, index: int, *arguments: object) -> np.ndarray:
        asked.append(self.files[index])
        return original(self, index, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(FilePictures, "part", counting)
    normaliser = Normaliser([0.0] * 3, [1.0] * 3, CPU)
    shares, read_by = [], []
    for rank in range(2):
        own = TrainBatches(
            dataset.train, normaliser, 8, seed=5, flip=True, resized=True, ranks=Ranks(rank, 2)
        )
        shares.append(epoch(own))
        read_by.append(set(asked))
        asked.clear()
    assert len(read_by[0]) == len(read_by[1]) == 12
    assert not read_by[0] & read_by[1]
    joint = torch.cat([torch.cat([a, b]) for (a, _), (b, _) in zip(*shares, strict=True)])
    assert torch.equal(joint, torch.cat([x for x, _ in whole]))


def test_images_of_one_size_are_streamed_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        place = tmp_path / "data" / ("train", "test")[number % 5 == 4] / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth(6, 5, seed=number)).save(place / f"{number}.png")
    held, streamed = (read(tmp_path / "data", stream=how, workers=2) for how in ("off", "on"))
    for options in ({"crop_padding": 2}, {}):
        assert_same(epoch(batches(streamed, **options)), epoch(batches(held, **options)))
    Image.fromarray(smooth(7, 5)).save(tmp_path / "data" / "train" / "a" / "zz.png")
    monkeypatch.setattr("fge.data.splits._SAMPLE", 1)  # else it is found there
    odd = read(tmp_path / "data", stream="on", workers=2)
    with pytest.raises(UserError, match=r"^images differ in size: .*zz\.png is 5 x 7; resize"):
        epoch(batches(odd))


def test_what_does_not_fit_is_streamed_and_told(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_of_all = 44 * 16 * 16 * 3
    monkeypatch.setattr("fge.data.splits.free_host_memory", lambda: bytes_of_all)
    dataset = read(photos, image_size=16, stream="auto")
    assert dataset.streamed
    note = "streamed: images are read when needed; together they are 33.8 kB"
    assert (bytes_of_all, dataset.notes[-1]) == (33_792, note)
    monkeypatch.setattr("fge.data.splits.free_host_memory", lambda: 3 * bytes_of_all)
    assert not read(photos, image_size=16, stream="auto").streamed


def test_the_fingerprint_of_a_stream_tells_files_labels_and_sizes_apart(photos: Path) -> None:
    def fingerprint(**options: object) -> str:
        return read(photos, stream="on", **options).fingerprint

    known = fingerprint(image_size=16)
    assert fingerprint(image_size=16, workers=2) == known
    others = {fingerprint(image_size=17), fingerprint(image_size=16, train_size=20)}
    file = sorted((photos / "test").rglob("*.png"))[0]
    content = file.read_bytes()
    file.write_bytes(content + b"\0")
    others.add(fingerprint(image_size=16))
    file.write_bytes(content)
    assert len(others | {known}) == 4


def test_validation_and_test_images_are_read_once_before_and_by_one_process_each(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    original = FilePictures.read

    def counting(self: FilePictures, index: int) -> np.ndarray:
        asked.append(self.name(index))
        return original(self, index)

    monkeypatch.setattr(FilePictures, "read", counting)
    monkeypatch.setattr("fge.data.splits._SAMPLE", 1)
    read_by = []
    for rank in range(2):
        monkeypatch.setattr("fge.data.splits.default_ranks", lambda rank=rank: Ranks(rank, 2))
        dataset = read(photos, image_size=16, stream="on", workers=0)
        read_by.append(asked[1:])  # the first is the sample
        asked.clear()
    whole = dataset.train.centres.pictures  # type: ignore[attr-defined]
    train = {whole.pictures.name(k) for k in dataset.train.centres.order}  # type: ignore[attr-defined]
    assert len(read_by[0] + read_by[1]) == len(set(read_by[0] + read_by[1]))
    assert len(read_by[0] + read_by[1]) == len(dataset.val) + len(dataset.test)
    assert abs(len(read_by[0]) - len(read_by[1])) <= 2
    assert not train & set(read_by[0] + read_by[1])
    read(photos, image_size=16, stream="on", workers=0, skip_unreadable=True)
    assert len(asked) == 1  # all were read before


def test_arrays_cannot_be_streamed_but_resized(tiny_npz: Path) -> None:
    for data in (tiny_npz, Path("fashion-mnist-mini")):
        for size in (None, 12):
            with pytest.raises(UserError, match=r"--stream on is for images in files of their own"):
                read(data, stream="on", image_size=size)
    dataset = read(tiny_npz, image_size=12)
    assert dataset.image_size == (12, 12)
    normaliser = Normaliser([0.0], [1.0], CPU)
    resized = TrainBatches(dataset.train, normaliser, 8, seed=0, resized=True)
    assert next(iter(resized))[0].shape == (8, 1, 12, 12)


def test_an_error_of_a_worker_is_one_line(photos: Path) -> None:
    dataset = read(photos, image_size=16, stream="on", workers=2)
    photographs = dataset.train.photographs
    assert photographs is not None
    file = Path(photographs.pictures.name(int(photographs.order[0])))
    content = file.read_bytes()
    file.write_bytes(content[:60])
    try:
        with pytest.raises(UserError, match=rf"^{file} cannot be read as an image: [^\n]*$"):
            epoch(batches(dataset, resized=True))
    finally:
        file.write_bytes(content)


def test_workers_end_with_the_iteration_that_is_given_up(photos: Path) -> None:
    dataset = read(photos, image_size=16, stream="on", workers=2)
    for resized in (False, True):
        iterator = iter(batches(dataset, resized=resized))
        assert next(iterator)[0].shape == (7, 3, 16, 16)
        assert len(multiprocessing.active_children()) == 2
        del iterator
        assert multiprocessing.active_children() == []


def test_ctrl_c_ends_the_reading_and_no_worker_before(photos: Path) -> None:
    dataset = read(photos, image_size=16, stream="on", workers=2)
    expected = epoch(batches(dataset, resized=True))
    own = batches(dataset, resized=True)
    found = []
    for batch in own:
        for worker in multiprocessing.active_children():
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGINT)  # a terminal sends it to all
        found.append(batch)
    assert_same(found, expected)


def test_ctrl_c_is_not_lost_while_workers_start(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = read(photos, image_size=16, stream="on", workers=2)
    started = multiprocessing.context.ForkProcess.start

    def start(self: multiprocessing.context.ForkProcess) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        started(self)

    monkeypatch.setattr(multiprocessing.context.ForkProcess, "start", start)
    with pytest.raises(KeyboardInterrupt):
        epoch(batches(dataset, resized=True))
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(epoch(batches(dataset, resized=True))) > 0


def test_a_worker_that_is_ended_is_told(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = read(photos, image_size=16, stream="on", workers=2)
    monkeypatch.setattr(FilePictures, "part", lambda *_: os._exit(9))
    with pytest.raises(UserError, match=r"a worker process .* was ended.*fewer than 2 --workers"):
        epoch(batches(dataset, resized=True))


# --------------------------------------------------------------------------- normalisation


def test_imagenet_normalisation_is_torchvisions(photos: Path) -> None:
    dataset = load_dataset(
        str(photos), normalize="imagenet", reading=Reading(16), val_fraction=0.25
    )
    normaliser = Normaliser(dataset.mean, dataset.std, CPU)
    preset = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    assert torch.allclose(normaliser(dataset.test.images), preset(dataset.test.images), atol=1e-5)


def test_given_values_normalise(photos: Path) -> None:
    values = ((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    dataset = load_dataset(str(photos), normalize=values, reading=Reading(16), val_fraction=0.25)
    assert dataset.mean == pytest.approx([127.5, 102.0, 76.5])
    assert dataset.std == pytest.approx([127.5, 63.75, 51.0])


def test_imagenet_normalisation_of_grey_images_is_the_mean_of_its_channels(
    tiny_npz: Path, tmp_path: Path
) -> None:
    grey = load_dataset(str(tiny_npz), normalize="imagenet")
    assert grey.mean == pytest.approx([255 * 0.449])
    assert grey.std == pytest.approx([255 * 0.226])
    with np.load(tiny_npz) as arrays:
        two = {n: np.stack([a, a], -1) if "images" in n else a for n, a in arrays.items()}
    np.savez(tmp_path / "two.npz", **two)
    with pytest.raises(
        UserError, match=r"images in colour or grey, .* 2 channels; use --normalize"
    ):
        load_dataset(str(tmp_path / "two.npz"), normalize="imagenet")


@pytest.fixture(autouse=True)
def _no_worker_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []
