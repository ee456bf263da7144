"""Layouts of folders, tables of labels, and files that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fge.data import Reading, load_dataset
from fge.data.choice import TEST_FRACTION
from fge.data.folders import from_folder
from fge.errors import UserError


def picture(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5), value, np.uint8)).save(path)
    return path


def values(images: np.ndarray) -> list[int]:
    found: list[int] = images[:, 0, 0, 0].tolist()
    return found


def test_class_folders_alone_train_and_a_part_of_them_tests(tmp_path: Path) -> None:
    for number in range(40):
        picture(tmp_path / "data" / ("cat", "dog")[number % 2] / f"{number:02d}.png", number)
    raw = from_folder(tmp_path / "data")
    assert raw.classes == ("cat", "dog")
    assert values(raw.train.images) == [*range(0, 40, 2), *range(1, 40, 2)]
    dataset = load_dataset(str(tmp_path / "data"), val_fraction=0.25)
    assert len(dataset.test) == TEST_FRACTION * 40
    assert dataset.test.labels.bincount().tolist() == [4, 4]  # stratified
    assert dataset.notes == [
        "validation: 8 images held out of the training images (0.25 of them)",
        "test: 8 images held out of the training images (0.2 of them), as there is no test/",
    ]


def test_test_images_alone_do_not_make_a_folder_of_classes(tmp_path: Path) -> None:
    picture(tmp_path / "test" / "a" / "1.png", 1)
    with pytest.raises(UserError, match=r"^no folder .*/train; a data folder needs train/CLASS/"):
        from_folder(tmp_path)


def test_parts_are_known_by_their_usual_names(tmp_path: Path) -> None:
    for number, part in enumerate(("Training", "valid", "TEST")):
        for name in "ab":
            picture(tmp_path / part / name / "1.png", number)
    raw = from_folder(tmp_path)
    assert raw.classes == ("a", "b")
    assert raw.val is not None
    assert raw.test is not None
    assert [values(part.images)[0] for part in (raw.train, raw.val, raw.test)] == [0, 1, 2]
    assert [raw.train.origin, raw.test.origin] == ["from Training/", "from TEST/"]
    (tmp_path / "evaluation").mkdir()
    with pytest.raises(UserError, match=r"/evaluation may be the validation or the test part; ca"):
        from_folder(tmp_path)
    (tmp_path / "evaluation").rename(tmp_path / "testing")
    with pytest.raises(UserError, match=r" has TEST and testing; keep one of them$"):
        from_folder(tmp_path)
    (tmp_path / "testing").rename(tmp_path / "bus")  # Training and Test may be classes then
    (tmp_path / "valid").rename(tmp_path / "car")
    for name in ("bus", "car"):
        picture(tmp_path / name / "1.png", 1)
    assert from_folder(tmp_path).classes == ("TEST", "Training", "bus", "car")


def test_what_lies_beside_the_parts_is_told(tmp_path: Path) -> None:
    for name in ("train/a", "Test/a", "extra/a"):
        picture(tmp_path / name / "1.png", 1)
    raw = from_folder(tmp_path)
    assert raw.test is not None
    assert raw.skipped == f"skipped in {tmp_path}: 1 beside the parts (extra)"


def test_classes_without_test_images_are_named(tmp_path: Path) -> None:
    for name in ("ape", "bat", "cat"):
        for part in ("train", "test") if name == "bat" else ("train",):
            picture(tmp_path / part / name / "1.png", 1)
    dataset = load_dataset(str(tmp_path), val_fraction=0)
    assert dataset.untested == ["ape", "cat"]
    assert dataset.notes[-1] == "classes without test images: ape, cat"
    for number in range(30):
        picture(tmp_path / "train" / f"x{number:02d}" / "1.png", 1)
    assert load_dataset(str(tmp_path), val_fraction=0).notes[-1].endswith(", x16, x17 and 12 more")


# ------------------------------------------------------------------------------- unreadable


def broken(folder: Path) -> list[Path]:
    """Write a folder with eight pictures that can be read and three that cannot."""
    for number in range(8):
        part = "train" if number < 6 else "test"
        picture(folder / part / "ab"[number % 2] / f"{number}.png", number)
    bad = [folder / "test" / "a" / "6x.png", folder / "train" / "a" / "0.jpg"]
    bad.append(folder / "train" / "b" / "2.gif")
    for file in bad:
        file.write_bytes(b"no picture")
    return bad


def test_the_first_unreadable_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    broken(tmp_path)
    with pytest.raises(UserError, match=r"0\.jpg cannot be read .* with --skip-unreadable$"):
        load_dataset(str(tmp_path), val_fraction=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_are_left_out_counted_and_listed(tmp_path: Path, workers: int) -> None:
    bad = broken(tmp_path)
    reading = Reading(skip_unreadable=True, workers=workers)
    dataset = load_dataset(str(tmp_path), val_fraction=0, reading=reading)
    assert sorted(dataset.unreadable) == sorted(map(str, bad))
    assert all("none of the formats" in reason for reason in dataset.unreadable.values())
    assert not any("--skip" in reason for reason in dataset.unreadable.values())
    assert sorted(values(dataset.train.images.permute(0, 2, 3, 1).numpy())) == list(range(6))
    assert len(dataset.test) == 2
    assert [note for note in dataset.notes if note.startswith("unreadable")] == [
        f"unreadable: 3 files, such as {tmp_path / 'train' / 'a' / '0.jpg'}"
    ]


def test_what_has_no_files_skips_none(tiny_npz: Path) -> None:
    for data in ("fashion-mnist-mini", str(tiny_npz)):
        with pytest.raises(UserError, match="--skip-unreadable is for image files, and data"):
            load_dataset(data, reading=Reading(skip_unreadable=True))
    with pytest.raises(UserError, match="--skip-unreadable is for image files, and data 'a:b'"):
        load_dataset("a:b", reading=Reading(skip_unreadable=True, own=list))


def test_a_class_that_cannot_be_read_is_missing(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "train" / "a" / f"{number}.png", number)
    (tmp_path / "train" / "b").mkdir()
    (tmp_path / "train" / "b" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match="class 'b' has no training image"):
        load_dataset(str(tmp_path), val_fraction=0, reading=Reading(skip_unreadable=True))
    (tmp_path / "train" / "c").mkdir()
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(b"")
    (tmp_path / "train" / "c" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"no image from train/ can be read; .*a/0\.png cannot"):
        load_dataset(str(tmp_path), reading=Reading(skip_unreadable=True))


# ------------------------------------------------------------------------ tables of labels


def table(folder: Path, text: str, name: str = "labels.csv") -> Path:
    for number in range(6):
        picture(folder / ("sub" if number % 2 else "") / f"{number}.png", number)
    (folder / name).write_text(text)
    return folder / name


PLAIN = "file,label\n0.png,dog\nsub/1.png,cat\n2.png,dog\nsub/3.png,cat\n"


def test_a_table_in_the_folder_labels_its_images(tmp_path: Path) -> None:
    table(tmp_path, PLAIN)
    raw = from_folder(tmp_path)
    assert raw.classes == ("cat", "dog")
    assert raw.train.labels.tolist() == [1, 0, 1, 0]
    assert values(raw.train.images) == [0, 1, 2, 3]
    assert (raw.val, raw.test) == (None, None)
    assert raw.skipped is not None
    assert "2 not in the table of labels (such as 4.png)" in raw.skipped


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_a_table_says_which_images_validate_and_test(tmp_path: Path, val: str) -> None:
    rows = "split,label,file\ntrain,b,0.png\ntrain,a,sub/1.png\n" + f"{val},b,2.png\n"
    given = table(tmp_path / "images", rows + "test,a,sub/3.png\n", "any name.txt")
    raw = from_folder(tmp_path / "images", labels=given)
    assert raw.classes == ("a", "b")
    assert raw.val is not None
    assert raw.test is not None
    assert [values(part.images) for part in (raw.train, raw.val, raw.test)] == [[0, 1], [2], [3]]
    assert [part.labels.tolist() for part in (raw.train, raw.val, raw.test)] == [[1, 0], [1], [0]]
    assert raw.test.origin == "of the split test in any name.txt"


def test_a_table_may_have_quotes_commas_and_a_mark_of_utf8(tmp_path: Path) -> None:
    file = table(tmp_path, '"file", "label", note\r\n0.png, "cat, small", x\r\n2.png, dög, y\r\n')
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert from_folder(tmp_path).classes == ("cat, small", "dög")


def test_spaces_around_a_label_are_none_of_it(tmp_path: Path) -> None:
    table(tmp_path, "file,label\n0.png,cat\n2.png,cat \nsub/1.png, big dog\t\n")
    raw = from_folder(tmp_path)
    assert raw.classes == ("big dog", "cat")
    assert raw.train.labels.tolist() == [1, 1, 0]


def test_headings_and_splits_may_be_in_capitals(tmp_path: Path) -> None:
    table(tmp_path, "File,LABEL,Split\n0.png,a,Train\n2.png,a,TESTING\n")
    raw = from_folder(tmp_path)
    assert raw.test is not None
    assert (values(raw.train.images), values(raw.test.images)) == ([0], [2])


def test_files_of_a_table_that_are_missing_count_as_unreadable(tmp_path: Path) -> None:
    file = table(tmp_path, f"{PLAIN}gone.png,cat\n")
    with pytest.raises(UserError, match=r"line 6: there is no image .*with --skip-unreadable$"):
        from_folder(tmp_path)
    raw = from_folder(tmp_path, skip_unreadable=True)
    assert raw.unreadable == {
        str(tmp_path / "gone.png"): f"{file}, line 6: there is no image {tmp_path / 'gone.png'}"
    }
    assert values(raw.train.images) == [0, 1, 2, 3]
    file.write_text("file,label,split\n0.png,a,train\ngone.png,a,test\n")
    with pytest.raises(UserError, match=r"no image of the split test .* is there; .*, line 3: the"):
        from_folder(tmp_path, skip_unreadable=True)


def test_a_train_folder_comes_before_a_table_that_nobody_asked_for(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "a" / "1.png", 1)
    file = table(tmp_path, PLAIN)
    assert from_folder(tmp_path).classes == ("a",)
    assert from_folder(tmp_path, labels=file).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("image,label\n0.png,a\n", r"needs the columns file, label and perhaps split, got image, "),
        ("", r"needs the columns .*, got none"),
        ("file,label\n0.png,\n", r"line 2: a file and a label are needed, got '0.png' and ''"),
        ("file,label\n0.png, \t\n", r"line 2: a file and a label are needed"),
        ("file,label\n0.png\n", r"line 2: a file and a label are needed, got '0.png' and None"),
        ("file,label\n9.png,a\n", r"line 2: there is no image .*9\.png"),
        (f"{PLAIN}0.png,cat\n", r"line 6: 0\.png is there twice, first in line 2; keep one"),
        (f"{PLAIN}sub/../0.png,cat\n", r"line 6: sub/\.\./0\.png is there twice, first in line 2;"),
        (
            "file,label\n../album/x.jpg,a\n",
            r"\.\./album/x\.jpg is outside the folder of the images",
        ),
        (
            "file;label\n0.png;a\n",
            r"needs the columns .* got file;label; separate columns by commas",
        ),
        ("File,file,label\n0.png,1.png,a\n", r"has the column file twice; keep one of them"),
        ("file,label,split\n0.png,a,eval\n", r"split 'eval' may be the validation or the test"),
        ("file,label\n/etc/x.png,a\n", r"give the name of /etc/x\.png in the folder"),
        ("file,label\nsub,a\n", r"sub is a folder and no image file"),
        ("file,label,split\n0.png,a,tset\n", r"split must be train, val or test, got 'tset'"),
        ("file,label,split\n0.png,a,\n", r"split must be train, val or test, got ''"),
        ("file,label,split\n0.png,a,test\n", r"names no image of the split train"),
        (
            "file,label,split\n0.png,a,train\n2.png,b,test\n",
            r"2\.png is of the class 'b', of which there is no training image",
        ),
        ('file,label\n0.png,"a\n', r"this is no CSV: unexpected end of data"),
    ],
)
def test_what_is_wrong_in_a_table_is_named(tmp_path: Path, text: str, error: str) -> None:
    table(tmp_path / "album", text)
    with pytest.raises(UserError, match=error) as raised:
        from_folder(tmp_path / "album")
    assert "\n" not in str(raised.value)
    assert "labels.csv" in str(raised.value) or "sub" in text


def test_other_tables_are_refused(tmp_path: Path, tiny_npz: Path) -> None:
    file = table(tmp_path / "data", PLAIN)
    file.write_bytes("file,label\n0.png,Br\u00f6tchen".encode("latin-1"))
    with pytest.raises(UserError, match=r"is not in UTF-8; save it as CSV in UTF-8"):
        from_folder(tmp_path / "data")
    with pytest.raises(UserError, match=r"no table of labels .*gone\.csv"):
        from_folder(tmp_path / "data", labels=tmp_path / "gone.csv")
    for data in ("fashion-mnist-mini", str(tiny_npz)):
        with pytest.raises(UserError, match="--labels is for a folder of images"):
            load_dataset(data, reading=Reading(labels=file))
    with pytest.raises(UserError, match="--labels is for a folder of images, and data 'a:b'"):
        load_dataset("a:b", reading=Reading(labels=file, own=list))
    (tmp_path / "data" / "a.tar").write_bytes(b"")
    with pytest.raises(UserError, match="--labels is for a folder of images"):
        load_dataset(str(tmp_path / "data"), reading=Reading(labels=file))
