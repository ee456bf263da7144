"""Endurance: what is planted is found, and a small part of the study finds nothing."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import promised as rule
import pytest
from conftest import ROOT, tiny_arrays

sys.path.insert(0, str(ROOT / "benchmarks"))
import endurance as study  # type: ignore[import-not-found, unused-ignore]
import endurance_damage as damage  # type: ignore[import-not-found, unused-ignore]
import endurance_fork as fork  # type: ignore[import-not-found, unused-ignore]
import endurance_lines as lines  # type: ignore[import-not-found, unused-ignore]
import endurance_page as page  # type: ignore[import-not-found, unused-ignore]
import endurance_runs as runs  # type: ignore[import-not-found, unused-ignore]

RAW: dict[str, Any] = json.loads(page.RESULTS.read_text(encoding="utf-8"))
TRACE = "Traceback (most recent call last):\n  ...\nKeyError: 'x'\n"


def done(code: int | None, err: str = "", out: str = "") -> Any:
    return fork.Done(["fge"], code, out, err, 1.0)


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (done(0), None),
        (done(2, "error: out/log.jsonl is damaged\n"), None),
        (done(2, "error: the log is no good; start again with --overwrite\n"), None),
        (done(2, "error: the log is no good\n"), "unclear"),
        (done(2, "error: out/log.jsonl\nis damaged\n"), "unclear"),
        (done(2, ""), "unclear"),
        (done(1, "error: out/log.jsonl is damaged\n"), "unclear"),
        (done(-11), "unclear"),
        (done(1, TRACE), "traceback"),
        (done(0, TRACE), "traceback"),
        (done(None), "hang"),
    ],
)
def test_the_end_of_a_command_on_damage_is_judged(end: Any, kind: str | None) -> None:
    found = damage.judge(end, ["log.jsonl"])
    assert (found and found[0]) == kind


@pytest.mark.parametrize(
    ("code", "number", "fault"),
    [
        (-9, "SIGKILL", None),
        (0, "SIGKILL", None),
        (130, "SIGINT", None),
        (-15, "SIGTERM", None),
        (1, "SIGINT", "unclear"),
        (-9, "SIGTERM", "unclear"),
        (None, "SIGINT", "hang"),
    ],
)
def test_the_end_of_an_interrupted_command_is_judged(
    code: int | None, number: str, fault: str | None
) -> None:
    assert study.stopped_badly(done(code), study.signal.Signals[number]) == fault
    assert study.stopped_badly(done(130, TRACE), study.signal.SIGINT) == "traceback"


def test_a_manifest_in_whose_place_another_file_stands_is_that_file() -> None:
    manifest = json.dumps({"files": {"a.json": 1, "timing.jsonl": 2}, "sha256": "x"}).encode()
    assert json.loads(runs.manifest_of(manifest)) == {"files": {"a.json": 1}}
    for other in (b'{"method": "fge"}', b"[]", b"", b'{"sha256": 1, "files": []}'):
        assert runs.manifest_of(other) == other


def test_a_lost_file_is_found() -> None:
    mine = damage.FOREIGN
    before = {"a.json": b"1", mine: b"2", f"s/{mine}": b"3", "timing.jsonl": b"4", "m": b"5"}

    def lost(after: dict[str, Any], failed: bool = True, finished: bool = True) -> list[str]:
        found: list[str] = damage.losses(
            before, after, failed=failed, finished=finished, damaged=["m"]
        )
        return found

    assert lost(before) == []
    assert lost({k: v for k, v in before.items() if k not in ("m", "timing.jsonl")}) == []
    assert lost({**before, "new": b""}) == []
    assert lost({k: v for k, v in before.items() if k != "a.json"}) == ["a.json vanished"]
    assert lost({**before, "a.json": b"x"}) == ["a.json changed"]
    assert lost({**before, "a.json": b"x"}, failed=False) == []
    assert lost({**before, "a.json": b"x"}, finished=False) == []
    for options in ({"failed": False}, {"finished": False}, {}):
        assert len(lost({**before, mine: b"x"}, **options)) == 1
        assert len(lost({k: v for k, v in before.items() if k != f"s/{mine}"}, **options)) == 1


def test_a_silent_difference_is_found_and_told_from_an_unread_file(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("1")
    (tmp_path / "timing.jsonl").write_text("2")
    end = {"report.json": b"1"}
    assert damage.different(tmp_path, end) == []
    damage.plant(tmp_path)
    assert damage.different(tmp_path, end) == []
    (tmp_path / "timing.jsonl").write_text("3")
    assert damage.different(tmp_path, end) == []
    (tmp_path / "report.json").write_text("4")
    assert damage.different(tmp_path, end) == ["report.json"]
    (tmp_path / "report.json").unlink()
    assert damage.different(tmp_path, end) == ["report.json"]
    assert damage.untouched(["a"], ["a"], {"a": b"x"}, {"a": b"x"})
    assert not damage.untouched(["a"], ["a"], {"a": b"x"}, {"a": b"y"})
    assert not damage.untouched(["b"], ["a"], {"a": b"x"}, {"a": b"x"})


@pytest.mark.parametrize("way", damage.WAYS)
def test_each_way_damages(way: str, tmp_path: Path) -> None:
    place = runs.Workplace(tmp_path)
    folder = place.cwd / "out"
    folder.mkdir()
    for name in ("a.json", "b.json"):
        (folder / name).write_text(f'{{"name": "{name}"}}')
    before = damage.tree(folder)
    if way == damage.SWAPPED:
        assert damage.swap(folder, "a.json", random.Random(0)) == "b.json"
        assert damage.tree(folder) == {"a.json": before["b.json"], "b.json": before["a.json"]}
        return
    damage.DAMAGES[way](folder / "a.json", random.Random(0), place)
    after = damage.tree(folder)
    assert after.get("a.json") != before["a.json"]
    assert after["b.json"] == before["b.json"]


def test_a_file_touched_outside_the_folder_is_found(tmp_path: Path) -> None:
    for name in ("out", "data"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("1")
    line, before = lines.Line(("fge",), "out", 0), lines.state_of(tmp_path, "out")
    (tmp_path / "out" / "x").write_text("22")
    assert lines.judge_line(done(0), line, before, lines.state_of(tmp_path, "out")) == []
    (tmp_path / "data" / "x").write_text("22")
    (tmp_path / "new").touch()
    [found] = lines.judge_line(done(3, "error: x\n"), line, before, lines.state_of(tmp_path, "out"))
    assert (found.kind, found.detail) == ("touched", "data/x, new")
    [found] = lines.judge_line(done(1, TRACE), line, before, before)
    assert (found.kind, "KeyError" in found.detail) == ("traceback", True)


def test_lines_are_the_same_for_a_seed_and_show_every_command() -> None:
    made = [lines.line_of(number, 0)[0] for number in range(300)]
    assert made == [lines.line_of(number, 0)[0] for number in range(300)]
    assert {line.words[0] for line in made if line.words[0] in lines.COMMANDS} == set(
        lines.COMMANDS
    )


def test_the_rule_of_what_is_the_same_is_that_of_the_tests(tmp_path: Path) -> None:
    entry = {"now": {"sha256": "0", "size": 1}, "by": "fge"}
    manifest = {"files": {"a.json": entry, "timing.jsonl": entry}, "sha256": "x"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for name in ("a.json", "timing.jsonl", "report.html", "snapshots/1.safetensors", "f/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert runs.promised(tmp_path) == rule.promised(tmp_path)
    assert runs.tiny_arrays().keys() == tiny_arrays().keys()
    assert all(np.array_equal(runs.tiny_arrays()[k], array) for k, array in tiny_arrays().items())


def test_writes_fail_once_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", os.fsync)
    study.fail_after(10)
    with (tmp_path / "x").open("wb") as file:
        file.write(b"123456")
        file.flush()
        os.fsync(file.fileno())
        with pytest.raises(OSError, match="No space left"):
            os.fsync(file.fileno())


def test_the_page_is_what_the_raw_results_say() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert text.partition(page.MARK)[2].strip() == page.tables(RAW)
    assert {row["what"].split(",")[0] for row in RAW["kills"]} == {job.name for job in runs.JOBS}


def test_a_later_sitting_adds_to_the_cases_of_before() -> None:
    span, done = study.Span(3, 60.0), []
    for number in span.numbers(10):
        if number == 6:
            break
        done.append(number)
    assert (done, span.next) == ([3, 4, 5], 6)
    assert list(study.Span(0, 0.0).numbers(5)) == []
    finding = damage.Finding("lost", "case", "detail")
    before = study.stored({"a": damage.Counts(2, 1, 1, 0, [finding]), "b": damage.Counts(1, 1)})
    [a, b, c] = study.stored({"a": damage.Counts(3, 2, 1), "c": damage.Counts(1)}, before)
    assert (a["cases"], a["same"], a["refused"], len(a["findings"])) == (5, 3, 2, 1)
    assert (b["cases"], b["same"], c["cases"]) == (1, 1, 1)


def test_shards_have_every_case_once_and_are_joined() -> None:
    cases = [list(study.Span(shard, 60.0, 3).numbers(10)) for shard in range(3)]
    assert cases == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    finding = damage.Finding("lost", "case", "detail")
    parts = {part: [] for part in study.SHARES}
    first = {"seed": 0, "limits": {}, "sittings": 1, "next": {}, **parts}
    first["kills"] = study.stored({"a": damage.Counts(2, 1, 1, 0, [finding])})
    second = {**first, "kills": study.stored({"a": damage.Counts(3), "b": damage.Counts(1)})}
    both = study.merged([first, second])
    assert [(row["what"], row["cases"]) for row in both["kills"]] == [("a", 5), ("b", 1)]
    assert (both["sittings"], len(both["kills"][0]["findings"])) == (2, 1)
    assert "next" not in both
    with pytest.raises(ValueError, match="other seeds"):
        study.merged([first, {**second, "seed": 1}])


@pytest.mark.slow
def test_a_small_part_of_the_study_finds_no_fault(tmp_path: Path) -> None:
    """In a process of its own: it forks, and what has computed in threads cannot."""
    out = tmp_path / "endurance.json"
    script = ROOT / "benchmarks" / "endurance.py"
    subprocess.run([sys.executable, str(script), "--smoke", "--out", str(out)], check=True)
    content = json.loads(out.read_text())
    for part in ("kills", "damage", "lines", "pairs", "space"):
        assert content[part], part
        assert [finding for row in content[part] for finding in row["findings"]] == []
