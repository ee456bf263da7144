"""JSON is checked once, whatever the file: types, ranges, depth; what is said fits on a line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from fge.errors import UserError, outcome
from fge.files import checked, parse_json, read_json, read_records
from fge.locks import Lock
from fge.schemas import Count, Loss, NotNegative, Percent, Share


class Facts(TypedDict):
    name: str
    count: Count
    kind: NotRequired[Literal["a", "b"]]
    inner: NotRequired[list[dict[str, float]]]


def parsed(text: str | bytes) -> Any:
    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    return parse_json(data, Facts, "facts.json is damaged")


def test_a_value_comes_back_as_it_is_with_keys_that_are_not_checked() -> None:
    text = '{"name": "é", "count": 3, "inner": [{"x": 1, "y": 2.5}], "more": {"a": [null, true]}}'
    value = parsed(text)
    assert value == json.loads(text)
    assert type(value["inner"][0]["x"]) is int  # not made a float, so that it is written as it was
    assert parsed(b"\xef\xbb\xbf" + text.encode()) == value  # a byte order mark


def nested(levels: int, opening: str = "[", closing: str = "]") -> str:
    return f'{{"name": "", "count": 0, "deep": {opening * levels}{closing * levels}}}'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ('{"name": "x", "count": 1', "Expecting ',' delimiter"),
        ('{"name": "x", "count": 1} x', "Extra data"),
        (b"\x00\x01\xff", "it is no UTF-8 text: byte 0xff at [02]"),
        ('{"name": "x", "count": 1}'.encode("utf-16"), "it is no UTF-8 text: byte 0xff at [02]"),
        ("null", "Expected `object`, got `null`"),
        ("[1]", "Expected `object`, got `array`"),
        ('"name"', "Expected `object`, got `str`"),
        ("{}", "missing required field `name`"),
        ('{"name": "x"}', "missing required field `count`"),
        ('{"name": 1, "count": 1}', r"Expected `str`, got `int` - at `\$\.name`"),
        ('{"name": "x", "count": 1.0}', r"Expected `int`, got `float` - at `\$\.count`"),
        ('{"name": "x", "count": true}', "Expected `int`, got `bool`"),
        ('{"name": "x", "count": -1}', "Expected `int` >= 0"),
        ('{"name": "x", "count": 9007199254740993}', "Expected `int` <= 9007199254740992"),
        ('{"name": "x", "count": 1e400}', "1e400 is not a finite number"),
        ('{"name": "x", "count": 1, "y": -1e999}', "-1e999 is not a finite number"),
        ('{"name": "x", "count": 1, "y": NaN}', "NaN is not a finite number"),
        ('{"name": "x", "count": 1, "y": -Infinity}', "-Infinity is not a finite number"),
        (f'{{"name": "x", "count": {"9" * 10_000}}}', "a number has 10000 digits"),
        ('{"name": "\\ud800", "count": 1}', r"it holds '\\ud800', half of a character"),
        ('{"\\ud800": "x", "name": "", "count": 1}', r"it holds '\\ud800', half of a character"),
        ('{"name": "x", "count": 1, "kind": "c"}', "Invalid enum value 'c'"),
        ('{"name": "x", "count": 1, "inner": [{"x": "1"}]}', r"at `\$\.inner\[0\]\[\.\.\.\]`"),
        (nested(100), "more than 100 levels"),
        (nested(100_000), "more than 100 levels"),
        (nested(500, '{"a": ', "}").replace('{"a": }', "1"), "more than 100 levels|Expecting"),
    ],
)
def test_anything_else_is_one_line_with_what_and_where(text: str | bytes, reason: str) -> None:
    with pytest.raises(UserError, match=f"^facts.json is damaged: .*{reason}.*; restore it from"):
        parsed(text)


def test_a_file_may_have_a_hundred_levels() -> None:
    assert parsed(nested(99))["name"] == ""


@pytest.mark.parametrize("key", ["name", "kind", "other"])
def test_a_long_text_is_read_or_refused_in_a_short_line(key: str) -> None:
    long = "x\n" * 5_000_000
    value = {"name": "", "count": 0, key: long}
    began = time.process_time()
    if key == "kind":
        with pytest.raises(UserError, match="Invalid enum value") as error:
            parsed(json.dumps(value))
        assert len(str(error.value)) < 500
        assert str(error.value).isprintable()
    else:
        assert parsed(json.dumps(value))[key] == long
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Count, [0, 2**53], [-1, 2**53 + 1, 0.5, True]),
        (NotNegative, [0, 0.5, 10**30], [-1e-9, "0", False]),
        (Percent, [0, 100, 33.3], [-0.1, 100.1]),
        (Share, [0, 1, 0.5], [-0.1, 1.1]),
        (Loss, [0, -1e-9, 5], [-1, None]),
    ],
)
def test_ranges(kind: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert checked(value, kind, "it") == value
    for value in bad:
        with pytest.raises(UserError, match=r"^it: Expected .*; restore it from a copy$"):
            checked(value, kind, "it")


def test_a_file_is_named_and_the_remedy_is_given(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text("{}")
    with pytest.raises(UserError) as error:
        read_json(path, Facts, damaged="is no facts", remedy="write it again")
    said = "Object missing required field `name`"
    assert str(error.value) == f"{path} is no facts: {said}; write it again"


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "facts.json")
    with pytest.raises(UserError, match=r"is a (named )?pipe"):
        read_json(tmp_path / "facts.json", Facts)


# ------------------------------------------------------------------------------------- records

EPOCH = {"event": "epoch", "stage": "fge", "epoch": 0, "train_loss": 0.5}


@pytest.mark.parametrize("name", ["log.jsonl", "fit.jsonl"])
def test_records_of_a_log_are_checked_by_their_event(tmp_path: Path, name: str) -> None:
    records = [EPOCH, {"event": "of a later version", "epoch": "any"}]
    path = tmp_path / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_records(path) == records
    for changes, reason in (
        ({"event": 3}, "its event: Expected `str`, got `int`"),
        ({"epoch": -1}, "Expected `int` >= 0"),
        ({"train_loss": "nan"}, "Expected `float`, got `str`"),
        ({"stage": None}, "Expected `str`, got `null`"),
    ):
        path.write_text(json.dumps(EPOCH) + "\n" + json.dumps({**EPOCH, **changes}) + "\n")
        with pytest.raises(UserError, match=f"^line 2 of {path} is damaged: {reason}.*; restore"):
            read_records(path)
    for key in EPOCH:
        rest = {k: v for k, v in EPOCH.items() if k != key}
        path.write_text(json.dumps(rest) + "\n")
        with pytest.raises(UserError, match=f"^line 1 of {path} is damaged: "):
            read_records(path)


def test_times_have_a_type_of_their_own_and_other_files_the_one_given(tmp_path: Path) -> None:
    epoch = {"event": "epoch", "stage": "fge", "seconds": 1.5}
    (tmp_path / "timing.jsonl").write_text(json.dumps(epoch) + "\n")
    assert read_records(tmp_path / "timing.jsonl") == [epoch]
    (tmp_path / "points.jsonl").write_text('{"name": "x", "count": 1}\n')
    assert read_records(tmp_path / "points.jsonl", Facts) == [{"name": "x", "count": 1}]
    with pytest.raises(UserError, match=r"^line 1 of .* missing required field `name`"):
        read_records(tmp_path / "timing.jsonl", Facts)


# ------------------------------------------------------------------------------------ messages


def test_a_message_is_one_line_of_bounded_length_that_keeps_both_ends() -> None:
    error = UserError(f"a/b.json names {'é' * 10**7}\n\x1b[31m; restore it\u2028now")
    for text in (str(error), outcome(error)[1]):
        assert text.isprintable()
        assert len(text) <= 2000
        assert text.startswith("a/b.json names éé")
        assert text.endswith(r"\n\x1b[31m; restore it\u2028now")
    assert len(str(UserError("\ud800" * 10**6))) <= 2000
    assert str(UserError("model 'café ±' is unknown")) == "model 'café ±' is unknown"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 10**5, b"\xff", b"3", b"{}", b'{"pid": "1", "host": 1}', b'{"pid": 1e400}'],
)
def test_the_holder_of_a_lock_is_somebody_whatever_its_file_says(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / ".lock"
    path.write_bytes(content)
    assert Lock(path).holder() == "another process"
    held = {"pid": 7, "host": "h", "command": "fge", "since": "now"}
    path.write_text(json.dumps(held))
    assert Lock(path).holder() == "process 7 on h (fge), since now"
