"""Whatever a JSON file of an old run holds, a command ends well or in one line.

A file of a finished run is changed: a key is dropped, a value becomes one of another type, bytes
are spliced in, or the end is cut off. Then ``report``, ``predict``, ``--resume`` or a comparison
reads it. A run without a manifest is one of before there were manifests: nothing else finds the
change.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from conftest import tiny_split, write_tiny_npz
from curve_runs import Result, curve_job, done, flags, job, run
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from made_cells import cell

from fge.compare import load_cells
from fge.errors import UserError
from fge.networks import decode_state, write_state

pytestmark = pytest.mark.slow

T = TypeVar("T")
OTHERS = [None, True, -1, 1.5, "x", "", [], {}, [1], ["x"], {"x": 1}, [[]], "\0", "\ud800"]
"""Values of every type; a count becomes -1, but no other number: a run may have more epochs."""
HOSTILE = [
    *("1e400", "-1e400", "NaN", "Infinity", "9" * 400, '"\\ud800"', "\ufeff1", "01", "'x'"),
    *("[" * 100_000 + "]" * 100_000, '{"a":' * 200 + "1" + "}" * 200, f'"{"x" * 10**6}"'),
]
"""Text where a value stands. Some of it is JSON, and none is what a file of a run holds."""
JUNK = st.binary(min_size=1, max_size=3).filter(lambda b: not re.search(rb"\d", b))
"""Bytes without digits, which could make a number of epochs of any size."""
LONGEST = 2000
OPTIONS: dict[str, Any] = {"val_fraction": 0.25, "figure_format": "png"}


def finished(folder: Path, name: str) -> Path:
    """Leave a finished run without manifests, and the data beside it; return the folder of both."""
    data = write_tiny_npz(folder / "tiny.npz")
    np.savez(folder / "images.npz", images=tiny_split(4, 2)[0])
    cycles = {"epochs": 3, "start_epoch": 1, "cycle_epochs": 2, "single": True, **OPTIONS}
    if name == "fge":
        done("fge", job(data, folder / "run", **cycles, sharpness_every=2))
    elif name == "fge-more":
        more = {"epochs": 5, "distill_epochs": 1, "ood": ["noise"], "refit": "bezier"}
        done("fge", job(data, folder / "run", **{**cycles, **more}, refit_epochs=1))
    elif name == "auto":
        done("train", job(data, folder / "run", epochs=6, method="auto", **OPTIONS))
    elif name == "swa":
        done("train", job(data, folder / "run", epochs=4, method="swa", **OPTIONS))
    elif name == "curve-ensemble":
        done("curve-ensemble", curve_job(data, folder / "run", curve_epochs=1, **OPTIONS))
    else:
        done("train", job(data, folder / "first", epochs=6, method="sse", sse_cycles=3, **OPTIONS))
        study = {"run": folder / "first", "out": folder / "run", "device": "cpu", "threads": 1}
        if name == "plane":
            done("plane", {**study, "resolution": 2})
        elif name == "line":
            done("plane", {**study, "line": True, "line_points": 3})
        else:
            small = {"examples": 16, "trace_samples": 2, "spectrum_steps": 3, "k": 2}
            done("sharpness", {**study, **small, "spectrum_vectors": 1})
    for manifest in folder.rglob("manifest.json"):
        manifest.unlink()
    return folder


@pytest.fixture(scope="module")
def fge_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("fge"), "fge")


# ------------------------------------------------------------------------------------- changes


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of a value, and of every value within it."""
    yield place
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*place, key))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@st.composite
def changed_value(draw: st.DrawFn, value: Any) -> str:
    """Draw JSON text of a value in which one part is dropped, or becomes another."""
    shallow = [place for place in places(value) if len(place) <= 4]
    place = draw(st.sampled_from(shallow) | st.sampled_from(list(places(value))))
    if not place:
        return draw(st.sampled_from([*map(json.dumps, OTHERS), *HOSTILE]))
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    old, key = holder[place[-1]], place[-1]
    how = draw(st.sampled_from(["drop", "other", "hostile"]))
    if how == "drop":
        del holder[key]
        return json.dumps(value)
    if how == "hostile":
        holder[key] = "@here@"
        return json.dumps(value).replace('"@here@"', draw(st.sampled_from(HOSTILE)))
    allowed = [v for v in OTHERS if not (is_number(old) and is_number(v)) or v == -1]
    holder[key] = draw(st.sampled_from(allowed))
    return json.dumps(value)


@st.composite
def spliced(draw: st.DrawFn, data: bytes) -> bytes:
    """Draw bytes that are cut off, or have a few others within."""
    place = draw(st.integers(0, len(data)))
    if draw(st.booleans()):
        return data[:place]
    junk = draw(JUNK)
    return data[:place] + junk + data[place + draw(st.sampled_from([0, len(junk)])) :]


@st.composite
def changed_document(draw: st.DrawFn, data: bytes) -> bytes:
    """Draw JSON bytes that are changed in one place."""
    if draw(st.integers(0, 4)) == 0:
        return draw(spliced(data))
    return draw(changed_value(json.loads(data))).encode(errors="surrogatepass")


@st.composite
def changed_records(draw: st.DrawFn, data: bytes) -> bytes:
    """Draw JSON lines of which one is changed or gone."""
    lines = data.splitlines()
    number = draw(st.integers(0, len(lines) - 1))
    if draw(st.integers(0, 5)) == 0:
        del lines[number]
    else:
        lines[number] = draw(changed_document(lines[number]))
    return b"".join(line + b"\n" for line in lines)


@st.composite
def changed_tensors(draw: st.DrawFn, data: bytes) -> bytes:
    """Draw safetensors bytes whose header, or a JSON text in its metadata, is changed."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    texts = [name for name, text in header.get("__metadata__", {}).items() if text[:1] in "[{"]
    if texts and draw(st.integers(0, 2)):
        name = draw(st.sampled_from(texts))
        header["__metadata__"][name] = draw(changed_value(json.loads(header["__metadata__"][name])))
        text = json.dumps(header).encode()
    else:
        text = draw(changed_document(data[8:end]))
    length = draw(st.sampled_from([len(text)] * 8 + [0, len(text) + 1, 2**40, 2**64 - 1]))
    return length.to_bytes(8, "little") + text + data[end:]


CHANGES = {
    ".json": changed_document,
    ".jsonl": changed_records,
    ".safetensors": changed_tensors,
}


@contextlib.contextmanager
def harmed(data: st.DataObject, folder: Path, files: str) -> Iterator[tuple[Path, Path]]:
    """Copy a run with one changed file of a pattern; yield the folder and the file."""
    found = [path for path in sorted((folder / "run").rglob("*")) if re.search(files, path.name)]
    file = data.draw(st.sampled_from([path for path in found if path.suffix in CHANGES]))
    change = data.draw(CHANGES[file.suffix](file.read_bytes()))
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        shutil.copytree(folder / "run", copy / "run")
        harmed = copy / "run" / file.relative_to(folder / "run")
        harmed.write_bytes(change)
        yield copy, harmed


def _texts(file: Path) -> list[str]:
    """Return the options in a configuration that are names or paths."""
    try:
        options = json.loads(file.read_bytes())["options"].values()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    return [value for value in options if isinstance(value, str) and len(value) > 3]


def ends_well(result: Result, file: Path) -> None:
    """Check that a command ended well, or in one line that names the file and the remedy.

    A changed option counts as an option of the command line: its value is named.
    """
    assert result.code in (0, 2), result.err
    if result.code:
        assert len(result.message) <= LONGEST
        named = file.name in result.message or str(file.parent) in result.message
        option = file.name == "config.json" and bool(
            re.match("unknown model|no weights file", result.message)
            or any(v in result.message for v in _texts(file))
        )
        assert named or option or result.message.startswith("cannot resume"), result.message
        assert option or re.search("; | must | but |give ", result.message), result.message
    else:
        assert result.err == ""


def outcome(read: Callable[[], T]) -> tuple[T | None, str]:
    """Return what a reader returns, or None and why not."""
    try:
        return read(), ""
    except UserError as error:
        return None, str(error)


def command(name: str, folder: Path, copy: Path) -> list[str]:
    """Return a command that reads the copied run."""
    run_folder, out = str(copy / "run"), str(copy / "out")
    machine = ["--device", "cpu", "--threads", "1"]
    if name == "report":
        return ["report", run_folder]
    if name == "predict":
        images = str(folder / "images.npz")
        return ["predict", "--run", run_folder, "--images", images, "--out", out, *machine]
    if name == "study":
        small = ["--line", "--line-points", "3", "--eval-images", "16"]
        return ["plane", "--run", run_folder, "--out", out, *small, *machine]
    if name == "baseline":
        options = {"epochs": 2, "cycle_epochs": 2, "average": 0, "baseline": run_folder, **OPTIONS}
        return flags("fge", job(folder / "tiny.npz", out, **options))
    content = json.loads((folder / "run" / "config.json").read_text())
    return [content["command"], "--out", run_folder, "--resume"]


few = settings(max_examples=12, suppress_health_check=list(HealthCheck))


# --------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("files", [r"^report\.json$", r"^page\.json$"])
@few
@given(data=st.data())
def test_a_changed_report_is_shown_or_refused(
    fge_run: Path, files: str, data: st.DataObject
) -> None:
    with harmed(data, fge_run, files) as (copy, file):
        ends_well(run(command("report", fge_run, copy)), file)


@pytest.mark.parametrize("files", [r"^config\.json$", r"^index\.json$"])
@few
@given(data=st.data())
def test_a_changed_run_predicts_or_is_refused(
    fge_run: Path, files: str, data: st.DataObject
) -> None:
    with harmed(data, fge_run, files) as (copy, file):
        ends_well(run(command("predict", fge_run, copy)), file)


@pytest.mark.parametrize("files", [r"^config\.json$", r"log\.jsonl$|^index\.json$", "safetensors$"])
@few
@given(data=st.data())
def test_a_changed_run_is_resumed_or_refused(
    fge_run: Path, files: str, data: st.DataObject
) -> None:
    with harmed(data, fge_run, files) as (copy, file):
        ends_well(run(command("resume", fge_run, copy)), file)


def drop(file: Path, *place: Any) -> None:
    """Drop a part of a JSON file."""
    content = json.loads(file.read_text())
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    del holder[place[-1]]
    file.write_text(json.dumps(content))


def drop_line(file: Path, event: str) -> None:
    """Drop the first record of an event."""
    lines = file.read_text().splitlines(keepends=True)
    lines.remove(next(line for line in lines if f'"event": "{event}"' in line))
    file.write_text("".join(lines))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda run: drop(run / "snapshots/index.json", "snapshots", 0, "refresh_images"),
            "snapshots/index.json is damaged: snapshot 1 has another refresh_images than in log",
        ),
        (
            lambda run: drop(run / "single/index.json", "snapshots", 0),
            "single/index.json is damaged: it has no snapshot 1, which the log has; restore",
        ),
        (
            lambda run: drop(run / "single/index.json", "snapshots", 0, "val_nll"),
            "single/index.json is damaged: snapshot 1: .* missing required field `val_nll`; res",
        ),
        (
            lambda run: drop_line(run / "log.jsonl", "snapshot"),
            "log.jsonl is damaged: it has 0 snapshots of '.*', of which there are 1; restore",
        ),
        (
            lambda run: drop(run / "config.json", "options", "single"),
            "log.jsonl has the stage 'single', which is not one of the options in .*config.json",
        ),
    ],
)
def test_what_is_gone_is_told(
    fge_run: Path, tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(fge_run / "run", tmp_path / "run")
    harm(tmp_path / "run")
    result = run(command("resume", fge_run, tmp_path))
    assert result.code == 2
    assert re.search(message, result.message), result.message


@settings(few, max_examples=60)
@given(data=st.data())
def test_changed_cells_are_compared_or_refused(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = cell("fge", 0, 5, members=2)
        made.save(folder)
        path = folder / f"{made.name}.json"
        path.write_bytes(data.draw(changed_document(path.read_bytes())))
        found, refusal = outcome(lambda: load_cells(folder)[0])
        if found is None:
            assert path.stem in refusal
            assert "delete" in refusal
        else:
            assert (found.method, found.cost.members, len(found.wrong)) == ("fge", 2, 50)
            assert found.figures["error"] in (10, -1, 1.5)


@settings(few, max_examples=150)
@given(data=st.data(), checked=st.booleans())
def test_a_changed_state_is_what_it_was_or_refused(data: st.DataObject, checked: bool) -> None:
    """Without its checksum, as in files of before, it may also be of other parts."""
    import torch

    value = {"model": {"w": torch.ones(2)}, "steps": [1, 2.5, None, True], 3: {"name": "x"}}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "state.safetensors"
        write_state(path, value)
        whole = path.read_bytes()
        if not checked:
            end = 8 + int.from_bytes(whole[:8], "little")
            header = json.loads(whole[8:end])
            skeleton = json.loads(header["__metadata__"]["skeleton"])
            assert len(skeleton.pop("sha256")) == 64
            header["__metadata__"]["skeleton"] = json.dumps(skeleton)
            text = json.dumps(header).encode()
            whole = len(text).to_bytes(8, "little") + text + whole[end:]
        changed = data.draw(changed_tensors(whole))
        found, refusal = outcome(lambda: decode_state(changed, path))
        if found is None:
            assert refusal.startswith(str(path))
            assert len(refusal) <= LONGEST
        else:
            assert isinstance(found, dict)
            if checked:
                assert list(found) == list(value)
                assert (found["steps"], found[3]) == (value["steps"], value[3])
                assert torch.equal(found["model"]["w"], value["model"]["w"])


READERS = [
    ("fge-more", "report", r"^(report|page)\.json$"),
    ("fge-more", "predict", r"^(config|index)\.json$|^\d+\.safetensors$"),
    ("fge-more", "resume", r"\.json$"),
    ("fge-more", "resume", r"\.jsonl$"),
    ("fge-more", "resume", r"\.safetensors$"),
    ("auto", "resume", r"\.json$"),
    ("auto", "resume", r"\.safetensors$"),
    ("swa", "predict", r"\.(json|safetensors)$"),
    ("swa", "resume", r"\.(json|jsonl|safetensors)$"),
    ("curve-ensemble", "report", r"^(report|page)\.json$"),
    ("curve-ensemble", "resume", r"\.(json|jsonl)$"),
    ("curve-ensemble", "resume", r"\.safetensors$"),
    ("curve-ensemble", "study", r"^(report|config)\.json$|^curve\.safetensors$"),
    ("curve-ensemble", "baseline", r"^report\.json$"),
    ("plane", "resume", r"\.(json|jsonl)$"),
    ("line", "resume", r"\.(json|jsonl)$"),
    ("sharpness", "resume", r"\.(json|jsonl)$"),
]


@pytest.fixture(scope="module")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what makes a finished run by name, once."""
    return functools.cache(lambda name: finished(tmp_path_factory.mktemp(name), name))


@pytest.mark.parametrize(("name", "reader", "files"), READERS)
def test_every_reader_ends_well(
    name: str, reader: str, files: str, finished_runs: Callable[[str], Path]
) -> None:
    folder = finished_runs(name)

    @settings(few, max_examples=24, phases=[Phase.generate])  # to find less takes minutes
    @given(data=st.data())
    def ends(data: st.DataObject) -> None:
        with harmed(data, folder, files) as (copy, file):
            ends_well(run(command(reader, folder, copy)), file)

    ends()
