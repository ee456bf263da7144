"""Tables: reading them, their features, targets and parts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fge.config import TrainConfig, suited
from fge.data import Encoder, Mixup, Normaliser, TrainBatches, load_table, read_table
from fge.errors import UserError
from fge.export import EncodeRows, raw_rows
from fge.seeds import generator

TEXT = """\
id,age,colour,flat,price
1,20,red,7,10.5
2,40,blue,7,20
3,,red,7,30
4,60,,7,40
5,40,red,7,50
6,20,blue,7,60
7,60,red,7,70
8,40,red,7,80
9,20,blue,7,90
10,60,red,7,100
"""


def written(folder: Path, text: str = TEXT) -> Path:
    path = folder / "houses.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_numbers_and_words_are_told_apart(tmp_path: Path) -> None:
    table = read_table(written(tmp_path))
    assert table.columns["age"].dtype == np.float64
    assert np.isnan(table.columns["age"][2])
    assert table.columns["colour"].tolist() == ["red", "blue", "red", None, *["red", "blue"],
                                                *["red", "red", "blue", "red"]]  # fmt: skip
    assert len(table) == 10


def test_gaps_that_no_training_row_has_are_told(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "a,b,c,d,y\n1,x,,,0\n7,w,5,p,1\n3,x,6,q,0\n"))
    encoder = Encoder.fit(table, np.arange(3), ["y"], [])
    assert encoder.unknown_words(table) == []
    new = read_table(written(tmp_path, "a,b,c,d\n,,,\nNA,x,1,p\n"))
    assert encoder.unknown_words(new) == [
        "a: no training row lacks it, as 2 rows here; the mean is taken",
        "b: no training row lacks it, as 1 row here; all features are 0",
    ]
    np.testing.assert_array_equal(encoder.encode(new)[:, 0], [0, 0])


def test_a_number_too_far_to_compute_with_is_named(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "a,y\n1,0\n2,1\n3,0\n4,1\n-3.4e38,0\n"))
    encoder = Encoder.fit(table, np.arange(4), ["y"], [])
    assert np.isfinite(encoder.encode(table, np.arange(4))).all()
    for rows in (None, np.array([0, 4])):
        with pytest.raises(UserError, match=r"line 6: 'a' is too far from .* 2\.5 ± 1\.1, to comp"):
            encoder.encode(table, rows)
    new = read_table(written(tmp_path, "a\n1e29\n"))
    assert np.isfinite(encoder.encode(new)).all()


def test_names_of_tables_may_be_in_capitals(tmp_path: Path) -> None:
    path = written(tmp_path).rename(tmp_path / "HOUSES.CSV")
    config = TrainConfig(data=str(path), target=("price",), task="regression")
    assert suited(config).model == "mlp"
    assert len(read_table(path)) == 10
    (tmp_path / "A.PARQUET").write_bytes(b"PAR1 \xff")
    with pytest.raises(UserError, match=r"A\.PARQUET cannot be read as Parquet"):
        read_table(tmp_path / "A.PARQUET")


def test_codes_with_underscores_are_words(tmp_path: Path) -> None:
    """Python takes 1_0 and 10 for the same number."""
    text = "code,x,y\n" + "".join(f"{k % 2}_{k % 3},{k * k},{k % 2}_0\n" for k in range(1, 13))
    table = read_table(written(tmp_path, text))
    assert table.columns["code"].tolist()[:3] == ["1_1", "0_2", "1_0"]
    assert load_table(tmp_path / "houses.csv", ["y"], "classification").classes == ("0_0", "1_0")
    with pytest.raises(UserError, match=r"line 2: the target 'y' must be a number .* got '1_0'"):
        load_table(tmp_path / "houses.csv", ["y"], "regression")
    encoder = Encoder.fit(table, np.arange(12), ["y"], [])
    assert encoder.features == [*(f"code={a}_{b}" for a in (0, 1) for b in (0, 1, 2)), "x"]
    other = read_table(written(tmp_path, "code,x\n1_1,4_0\n0_0,5\n"))
    with pytest.raises(UserError, match="line 2: 'x' must be a number, as in training, got '4_0'"):
        encoder.encode(other)


def test_messages_name_the_line_where_a_row_begins(tmp_path: Path) -> None:
    text = 'a,b\n\n1,"two\nlines"\n\n\n2,x\n1e999,y\n'
    table = read_table(written(tmp_path, text))
    assert [table.row(k) for k in range(3)] == ["line 3", "line 7", "line 8"]
    with pytest.raises(UserError, match="line 8: 'a' is inf"):
        Encoder.fit(table, np.arange(3), ["b"], [])
    with pytest.raises(UserError, match="line 7: there are 3 values for 2 columns"):
        read_table(written(tmp_path, text.replace("2,x", "2,x,3")))
    assert read_table(written(tmp_path, "a\n1\n")).row(0) == "line 2"


def test_features_by_hand(tmp_path: Path) -> None:
    table = read_table(written(tmp_path))
    train = np.array([0, 1, 2, 3])
    encoder = Encoder.fit(table, train, ["price"], ["split"])
    assert encoder.features == ["age", "age is missing", "colour=blue", "colour=red", "colour="]
    assert encoder.left_out == {"id": "row numbers", "flat": "one value"}
    assert encoder.note() == "columns left out: id (row numbers), flat (one value)"
    std = np.std([20, 40, 60])
    expected = [
        [(20 - 40) / std, 0, 0, 1, 0],
        [0, 0, 1, 0, 0],
        [0, 1, 0, 1, 0],
        [(60 - 40) / std, 0, 0, 0, 1],
    ]
    np.testing.assert_allclose(encoder.encode(table, train), expected, rtol=1e-6)
    again = Encoder.of(encoder.facts())  # type: ignore[arg-type]
    np.testing.assert_array_equal(again.encode(table), encoder.encode(table))


def test_years_are_no_row_numbers(tmp_path: Path) -> None:
    rows = "\n".join(f"{k},{1950 + k},{k + 0.5},{k % 3}" for k in range(20))
    table = read_table(written(tmp_path, f"n,year,half,y\n{rows}\n"))
    encoder = Encoder.fit(table, np.arange(20), ["y"], [])
    assert encoder.features == ["year", "half"]
    assert encoder.left_out == {"n": "row numbers"}


def test_new_tables_need_the_columns_but_no_target(tmp_path: Path) -> None:
    table = read_table(written(tmp_path))
    encoder = Encoder.fit(table, np.arange(10), ["price"], ["split"])
    new = read_table(written(tmp_path, "colour,age,more\ngreen,40,x\nred,,y\n"))
    np.testing.assert_allclose(encoder.encode(new)[:, 2:], [[0, 0, 0], [0, 1, 0]])
    assert encoder.unknown_words(new) == ["colour: no training row has green; all features are 0"]
    assert encoder.unused(new) == ["more"]
    with pytest.raises(UserError, match="lacks the column 'age' that the network was trained with"):
        encoder.encode(read_table(written(tmp_path, "colour\nred\n")))
    with pytest.raises(UserError, match=r"line 3: 'age' must be a number, as in training, got 'x'"):
        encoder.encode(read_table(written(tmp_path, "colour,age\nred,1\nred,x\n")))


def test_a_table_is_split_and_standardised_by_its_training_rows(tmp_path: Path) -> None:
    data = load_table(written(tmp_path), ["price"], "regression", val_fraction=0.25)
    assert [len(part) for part in (data.train, data.val, data.test)] == [6, 2, 2]
    assert data.is_table
    assert data.example == "row"
    prices = np.concatenate([part.labels.numpy() for part in (data.train, data.val, data.test)])
    assert sorted(prices[:, 0]) == [10.5, *range(20, 101, 10)]
    np.testing.assert_allclose(data.target.mean[0], data.train.labels.mean().item())
    assert data.train.images[:, 0].mean().item() == pytest.approx(0, abs=1e-6)
    assert data.notes[:2] == [
        "validation: 2 rows held out of the training rows (0.25 of them)",
        "test: 2 rows held out of the training rows (0.2 of them), as there is no column split",
    ]
    again = load_table(written(tmp_path), ["price"], "regression", val_fraction=0.25)
    assert again.fingerprint == data.fingerprint
    whole = load_table(written(tmp_path), ["price"], "regression", val_fraction=0)
    assert [len(part) for part in (whole.train, whole.val, whole.test)] == [8, 0, 2]
    assert whole.val.images.shape == (0, whole.train.images.shape[1])  # words have features too


def test_a_column_says_the_parts(tmp_path: Path) -> None:
    parts = [*["train"] * 6, "val", "val", "test", "test"]
    lines = TEXT.splitlines()
    marked = [f"{line},{part}" for line, part in zip(lines[1:], parts, strict=True)]
    text = "\n".join([f"{lines[0]},split", *marked])
    data = load_table(written(tmp_path, text), ["price"], "regression")
    assert data.test.labels.numpy().ravel().tolist() in ([90, 100], [100, 90])
    assert len(data.val) == 2
    spelt = text.replace("val", "Validation").replace("train", "TRAIN")
    assert load_table(written(tmp_path, spelt), ["price"], "regression").fingerprint == (
        data.fingerprint
    )
    with pytest.raises(UserError, match=r"line 11: split must be train, val or test, got 'trial'"):
        load_table(written(tmp_path, text[: -len("test")] + "trial"), ["price"], "regression")
    with pytest.raises(UserError, match="split 'eval' may be the validation or the test part"):
        load_table(written(tmp_path, text[: -len("test")] + "eval"), ["price"], "regression")


def test_classes_are_spread_alike_and_have_names(tmp_path: Path) -> None:
    rows = "\n".join(f"{k % 7},{'yes' if k % 4 == 0 else 'no'}" for k in range(80))
    path = written(tmp_path, f"x,buys\n{rows}\n")
    for task, outputs in (("binary", 1), ("classification", 2)):
        data = load_table(path, ["buys"], task)  # type: ignore[arg-type]
        assert data.classes == ("no", "yes")
        assert data.outputs == outputs
        assert data.test.labels.sum() == 4
        assert len(data.test) == 16
    numbers = written(tmp_path, "x,y\n" + "\n".join(f"{k % 7},{k % 11}" for k in range(99)))
    ordered = load_table(numbers, ["y"], "classification")
    assert ordered.classes == tuple(map(str, range(11)))  # as numbers, not as words


def test_labels_are_columns(tmp_path: Path) -> None:
    rows = "\n".join(f"{k % 7},{k % 2},{'true' if k % 3 else 'false'}" for k in range(60))
    data = load_table(written(tmp_path, f"x,a,b\n{rows}\n"), ["a", "b"], "multilabel")
    assert data.classes == ("a", "b")
    assert data.train.labels.shape[1] == 2
    assert set(data.train.labels.ravel().tolist()) == {0, 1}


def test_parquet_is_read_as_csv_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    columns = {
        "age": [20, 40, None, 60],
        "colour": pyarrow.array(["red", None, "blue", "red"]).dictionary_encode(),
        "new": [True, False, True, True],
    }
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    table = read_table(path)
    assert table.columns["colour"].tolist() == ["red", None, "blue", "red"]
    assert table.columns["new"].tolist() == ["True", "False", "True", "True"]
    np.testing.assert_array_equal(table.columns["age"], [20, 40, np.nan, 60])
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read_table(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs the package pyarrow.*\[parquet\]"):
        read_table(path)


def test_a_row_is_the_same_whatever_the_others_are(tmp_path: Path) -> None:
    """A column of words stays one where a file has only words that look like numbers."""
    words = ["02139", "0.1", "5", "5.0", "n/k", "1e3", "", "0"]
    lines = [f"{word},{k}" for k, word in enumerate(words)]
    table = read_table(written(tmp_path, "\n".join(["zip,y", *lines])))
    encoder = Encoder.fit(table, np.arange(len(words)), ["y"], [])
    whole = encoder.encode(table)
    assert whole.shape == (8, 8)
    assert whole.sum(axis=1).tolist() == [1] * 8
    for k, line in enumerate(lines):
        alone = read_table(written(tmp_path, f"zip,y\n{line}\n"))
        np.testing.assert_array_equal(encoder.encode(alone)[0], whole[k])
        assert encoder.unknown_words(alone) == []
        np.testing.assert_array_equal(
            EncodeRows(encoder.columns)(raw_rows(encoder.columns, alone))[0].numpy(), whole[k]
        )
    other = read_table(written(tmp_path, "zip\n2139\n"))
    assert encoder.encode(other).sum() == 0
    assert encoder.unknown_words(other) == ["zip: no training row has 2139; all features are 0"]


def test_classes_that_are_numbers_have_their_shortest_names(tmp_path: Path) -> None:
    given = ["0.1", "1.0", "9007199254740993", "9007199254740992", "0.10", "1", "-2"]
    rows = "\n".join(f"{k % 3},{y}" for k in range(4) for y in given)
    data = load_table(written(tmp_path, f"x,y\n{rows}\n"), ["y"], "classification")
    assert data.classes == ("-2", "0.1", "1", "9007199254740992", "9007199254740993")
    labels = torch.cat([part.labels for part in (data.train, data.val, data.test)])
    assert torch.bincount(labels).tolist() == [4, 8, 8, 4, 4]


def test_false_and_true_are_the_same_however_they_are_written(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"on": [True, False, None, True], "y": [1, 2, 3, 4]}), path)
    table = read_table(path)
    encoder = Encoder.fit(table, np.arange(4), ["y"], [])
    assert encoder.features == ["on=False", "on=True", "on="]
    zeros = Encoder.fit(read_table(written(tmp_path, 'on\n1\n0\n""\n1\n')), np.arange(4), [], [])
    for words in ("true,false,,true", "1,0,,1", "TRUE,False,NA,1", "1.0,0.0,,1"):
        new = read_table(written(tmp_path, "on,y\n" + ",\n".join(words.split(",")) + ",\n"))
        for own in (encoder, zeros):
            np.testing.assert_array_equal(own.encode(new), own.encode(table))
            exported = EncodeRows(own.columns)(
                raw_rows(own.columns, new)
                if own is encoder
                else torch.tensor([[1.0], [0], [torch.nan], [1]], dtype=torch.float64)
            )
            np.testing.assert_array_equal(exported.numpy(), own.encode(table))
    assert encoder.unknown_words(new) == []
    prices = Encoder.fit(read_table(written(tmp_path)), np.arange(10), ["age"], [])
    new = read_table(written(tmp_path, "price,colour,id\ntrue,red,1\n"))
    with pytest.raises(UserError, match="line 2: 'price' must be a number, as in training, got 't"):
        prices.encode(new)


def test_only_columns_that_are_needed_must_be_numbers_or_words(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "t.parquet"
    moments = pyarrow.array(range(6), pyarrow.timestamp("ms"))
    columns = {"x": [1.5, 2.5, 0.0, 1.0, 3.0, 9.0], "when": moments, "none": [None] * 6}
    columns |= {"list": [[1]] * 6, "y": pyarrow.array([0.1, 0.2] * 3, pyarrow.float32())}
    columns["__index_level_0__"] = [3, 1, 2, 0, 5, 4]
    made = pyarrow.table(columns)
    pandas = b'{"index_columns": ["__index_level_0__"], "columns": [], "column_indexes": []}'
    parquet.write_table(made.replace_schema_metadata({b"pandas": pandas}), path)
    data = load_table(path, ["y"], "binary", val_fraction=0.0)
    assert data.classes == ("0.1", "0.2")
    assert data.skipped == (
        "columns left out: none (one value), __index_level_0__ (the index of pandas), when (of the "
        "type timestamp[ms]), list (of the type list<element: int64>)"
    )
    encoder = Encoder.of(data.table)  # type: ignore[arg-type]
    assert encoder.features == ["x"]
    new = read_table(path)
    assert encoder.encode(new).shape == (6, 1)
    assert encoder.unused(new) == []
    needed = Encoder.fit(
        read_table(written(tmp_path, "when,x\n1,2\n2,4\n4,1\n")), np.arange(3), [], []
    )
    assert needed.unused(new) == ["none", "y", "__index_level_0__", "list"]
    with pytest.raises(UserError, match=r"column 'when' is of the type timestamp\[ms\]; make it"):
        needed.encode(new)
    for target, task in ((["when"], "regression"), (["list"], "multilabel")):
        with pytest.raises(UserError, match=f"column '{target[0]}' is of the type"):
            load_table(path, target, task)  # type: ignore[arg-type]
    gaps = Encoder.fit(
        read_table(written(tmp_path, "none,x\n1,2\n,4\n4,1\n")), np.arange(3), [], []
    )
    assert gaps.encode(new)[:, 1].tolist() == [1] * 6  # a column of nulls has no values
    parquet.write_table(pyarrow.table({"split": moments, "x": range(6), "y": range(6)}), path)
    with pytest.raises(UserError, match="column 'split' is of the type"):
        load_table(path, ["y"], "regression")
    parquet.write_table(pyarrow.table({"when": moments}), path)
    with pytest.raises(UserError, match=r"no column of numbers or words; add one \(when: time"):
        read_table(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("a,b\n", "has no rows"),
        ("a,b\n1,2\n1,2,3\n", "line 3: there are 3 values for 2 columns"),
        ("a,a\n1,2\n", "two columns 'a'"),
        ("a,\n1,2\n", "a column without a name"),
        ("a;b\n1;2\n", "semicolons; save it with commas"),
        ('a,b\n1,"2\n', "this is no CSV"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_table(written(tmp_path, text))


@pytest.mark.parametrize(
    ("targets", "task", "text", "message"),
    [
        (["prize"], "regression", TEXT, "unknown column 'prize'; did you mean 'price'"),
        (["price", "age"], "classification", TEXT, "predicts one column, got --target price age"),
        (["price", "price"], "regression", TEXT, "must name different columns"),
        (["colour"], "regression", TEXT, "line 5: the target 'colour' is missing"),
        (["flat"], "binary", TEXT, "'flat' is 7 in all rows; a classifier needs rows of two"),
        (
            ["flat"],
            "classification",
            TEXT,
            "'flat' is 7 in all rows; a classifier needs rows of two",
        ),
        (
            ["flat"],
            "regression",
            TEXT,
            "is 7 for all 8 training rows, so there is nothing to learn",
        ),
        (
            ["age"],
            "binary",
            "age\n1\n2\n3\n1\n2\n3\n",
            "needs a target of two values, 'age' has 3; use",
        ),
        (["price"], "classification", TEXT, "10 different values in 10 rows.* --task regression"),
        (["price"], "multilabel", TEXT, "line 2: the label 'price' must be 0 or 1, got '10.5'"),
        (
            ["b"],
            "regression",
            "a,b\n1,0.5\n2,7\n3,y\n",
            "line 4: .* 'b' must be a number .* got 'y'",
        ),
        (
            ["b"],
            "regression",
            "a,b\n1,2\n2,1e999\n",
            "line 3: .* 'b' must be finite and at .* got inf",
        ),
        (
            ["b"],
            "regression",
            "a,b\n1,1\n1,2\n1,3\n1,4\n",
            "no column of features; add one; a: one value",
        ),
        (["b"], "regression", "a,b\n1,1\n1e999,2\n3,3\n4,4\n", r"line 3: 'a' is inf"),
    ],
)
def test_wrong_targets_and_features_are_named(
    tmp_path: Path, targets: list[str], task: str, text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_table(written(tmp_path, text), targets, task, val_fraction=0.0)  # type: ignore[arg-type]


def test_sizes_are_told_in_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="test_size 5 is more than the 2 available rows"):
        load_table(written(tmp_path), ["price"], "regression", test_size=5)


def test_the_only_row_of_a_class_trains(tmp_path: Path) -> None:
    rows = [f"{k * k},{'abcdefghijklmno'[k] if k < 15 else 'yz'[k % 2]}\n" for k in range(60)]
    dataset = load_table(written(tmp_path, "x,y\n" + "".join(rows)), ["y"], "classification")
    assert len(dataset.classes) == 17
    assert set(dataset.train.labels.tolist()) == {*range(17)}


def test_rows_are_shuffled_and_mixed_as_images_are(tmp_path: Path) -> None:
    rows = "\n".join(f"{k % 7},{k % 5},{k % 2}" for k in range(60))
    data = load_table(written(tmp_path, f"a,b,y\n{rows}\n"), ["y"], "classification")
    normaliser = Normaliser(data.mean, data.std, torch.device("cpu"))
    batches = TrainBatches(data.train, normaliser, 16, seed=3)
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = torch.randperm(len(data.train), generator=generator(3, "shuffle", 0))
    torch.testing.assert_close(inputs, data.train.images[order])
    torch.testing.assert_close(labels, data.train.labels[order])
    mixed = TrainBatches(data.train, normaliser, 16, seed=3, mixup=Mixup(1.0, 2, 3))
    rows_of, targets = next(iter(mixed))
    part = mixed.mixup.parts(0, len(data.train))[order[:16]]  # type: ignore[union-attr]
    other = mixed.mixup.partners(0, 0, 16)  # type: ignore[union-attr]
    expected = part[:, None] * inputs[:16] + (1 - part[:, None]) * inputs[:16][other]
    torch.testing.assert_close(rows_of, expected)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(16))
