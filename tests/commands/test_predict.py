"""``predict``: what is averaged, which runs are refused and why, and the page that is left."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, write_tiny_npz

from fge.commands import cli
from fge.commands.train import train
from fge.config import TrainConfig
from fge.data import load_dataset
from fge.train import Method, sse_stages

IMAGES = 48


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a user's own method that averages weights, with its module importable."""
    folder = tmp_path_factory.mktemp("predict")
    write_tiny_npz(folder / "tiny.npz")
    images = load_dataset(str(folder / "tiny.npz")).test.images  # in the order of the predictions
    np.savez(folder / "new.npz", images=images.permute(0, 2, 3, 1).numpy())
    module = types.ModuleType("own_methods_of_predict")
    module.mine = Method(  # type: ignore[attr-defined]
        "mine", "weights of cosine cycles", sse_stages, combine="weights"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        config = TrainConfig(
            data=str(folder / "tiny.npz"),
            out=folder / "run",
            method=f"{module.__name__}:mine",
            epochs=2,
            sse_cycles=2,
            batch_size=32,
            threads=1,
            device="cpu",
            channels_last="off",
            compile="off",
            amp="off",
        )
        return train(config)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a folder in which everything but the changed ``config.json`` is the run's."""
    for entry in trained.iterdir():
        if entry.name not in ("config.json", "predict-new"):
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
    return tmp_path


def change(run: Path, **facts: Any) -> None:
    file = run / "config.json"
    content = {**json.loads(file.read_text()), **facts}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def predicted(run: Path, trained: Path, *more: str) -> list[str]:
    images = str(trained.parent / "new.npz")
    return ["predict", "--run", str(run), "--images", images, "--device", "cpu", *more]


def fails(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    capsys.readouterr()
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", error), error
    return error.removeprefix("error: ").rstrip("\n")


def test_an_own_method_that_averages_weights_predicts_by_their_average(
    trained: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*predicted(run, trained), "--out", str(tmp_path / "out")]) == 0
    assert "48 predictions by the average of 2 snapshots are in " in capsys.readouterr().out
    with np.load(tmp_path / "out" / "predictions.npz") as found:
        probs = found["probabilities"]
    with np.load(trained / "predictions" / "test.npz") as stored:
        members = dict(zip(stored["members"].tolist(), stored["probabilities"], strict=True))
    np.testing.assert_allclose(probs, members["swa-0001"], atol=1e-5)
    assert not np.allclose(probs, (members["sse-0001"] + members["sse-0002"]) / 2, atol=1e-3)


def test_a_run_that_does_not_say_what_its_own_method_averages_is_to_be_resumed(
    trained: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run, combine=None)
    assert fails(capsys, predicted(run, trained)) == (
        f"{run / 'config.json'} does not say whether own_methods_of_predict:mine averages weights "
        "or probabilities; resume that run once with --resume, which adds it"
    )


def test_built_in_methods_need_not_say_it(
    trained: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = json.loads((run / "config.json").read_text())["options"]
    for method, what in (("swa", "the average of 2 snapshots"), ("sse", "2 snapshots")):
        change(run, combine=None, options={**options, "method": method})
        assert cli.main([*predicted(run, trained), "--out", str(tmp_path / method)]) == 0
        assert f"predictions by {what} are in " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"options": {"epochs": "ten"}}, r"config\.json: epochs must be a int, got 'ten'"),
        ({"options": {"epoch": 3}}, r"unknown option 'epoch'; did you mean 'epochs'\?"),
        ({"command": "connect", "options": {}}, "weights needs two files"),
        ({"command": "compare"}, "is a run of 'compare'; give one of fge, train"),
        ({"schema_version": 9}, "has schema_version 9"),
        ({"dataset": None}, "its config.json does not describe the data"),
        (
            {"dataset": {"classes": ["a"]}},
            r"the description of the data in .* is damaged: .* required field `channels`",
        ),
    ],
)
def test_what_is_wrong_with_the_config_is_told(
    trained: Path,
    run: Path,
    capsys: pytest.CaptureFixture[str],
    facts: dict[str, Any],
    message: str,
) -> None:
    change(run, **facts)
    assert re.search(message, fails(capsys, predicted(run, trained)))
    assert not (run / "predict-new").exists()


@pytest.mark.parametrize("key", ["classes", "channels", "image_size", "mean", "std"])
@pytest.mark.parametrize("value", [None, "x"])
def test_each_fact_about_the_data_is_needed(
    trained: Path, run: Path, capsys: pytest.CaptureFixture[str], key: str, value: str | None
) -> None:
    facts = json.loads((run / "config.json").read_text())["dataset"]
    changed = {**facts, key: value} if value else {k: v for k, v in facts.items() if k != key}
    if (key, value) == ("classes", "x"):
        changed[key] = 3
    change(run, dataset=changed)
    message = fails(capsys, predicted(run, trained))
    assert message.startswith(f"the description of the data in {run / 'config.json'} is damaged: ")


def test_the_page_shows_counts_and_links_to_the_data(trained: Path) -> None:
    assert cli.main(predicted(trained, trained)) == 0
    out = trained / "predict-new"
    html = (out / "report.html").read_text()
    for name in ("predictions.csv", "predictions.npz"):
        assert f'<a href="{name}">{name}</a>' in html
    assert '<div class="plot" id="run-1-plot-1"' in html
    assert f"python {cli_from(out)} predict --run {trained} --images " in html
    text = (out / "report.md").read_text()
    assert text.startswith(
        "# Predictions of new.npz\n\n**48 images, predicted by the average of 2 "
    )
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    for name in "012":
        count = sum(row["class"] == name for row in rows)
        assert f"| {name} | {count} | {100 * count / IMAGES:.1f} | " in text
    sure = {row["image"]: max(float(row[f"p({name})"]) for name in "012") for row in rows}
    least = min(sure, key=lambda image: sure[image])
    table = text.split("## The least certain images")[1]
    assert table.splitlines()[4].startswith(f"| {least} | ")


def cli_from(folder: Path) -> str:
    return os.path.relpath(ROOT / "cli.py", folder)


def test_the_page_is_made_again_by_report(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli.main([*predicted(trained, trained), "--out", str(out)]) == 0
    before = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    assert cli.main(["report", str(out)]) == 0
    assert (out / "report.html").read_bytes() == before
    assert cli.main(["report", str(out), str(trained), "--out", str(tmp_path / "both")]) == 0


def test_the_folder_of_a_run_is_kept(
    trained: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "report.html").read_bytes()
    assert fails(capsys, predicted(run, trained, "--out", str(run))) == (
        f"--out {run} is the folder of a run, and its page would be lost; give another --out"
    )
    assert (run / "report.html").read_bytes() == before
    (run / "file").write_text("mine")
    assert "is a file; give a folder" in fails(
        capsys, predicted(run, trained, "--out", str(run / "file"))
    )


@pytest.mark.parametrize("name", ["predictions.csv", "report.html"])
def test_a_file_of_somebody_else_in_the_way_leaves_the_folder_as_it_was(
    trained: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    error = fails(capsys, predicted(run, trained, "--out", str(out), "--overwrite"))
    assert error.startswith(f"{out / name} is a file that this run did not write, and is in the")
    assert [path.name for path in out.iterdir()] == [name]
    assert (out / name).read_text() == "mine"


def test_one_network_has_its_entropy_and_says_so(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli.main([*predicted(trained, trained), "--out", str(out), "--coverage", "0.75"]) == 0
    with np.load(out / "predictions.npz") as found:
        stored = dict(found)
    assert set(stored) == {
        *("images", "labels", "probabilities", "classes", "entropy", "sets", "coverage")
    }
    probs = stored["probabilities"]
    np.testing.assert_allclose(stored["entropy"], -(probs * np.log(probs)).sum(axis=1), rtol=1e-9)
    with np.load(trained / "predictions" / "val.npz") as val:
        members = dict(zip(val["members"].tolist(), val["probabilities"], strict=True))
        own = members["swa-0001"].astype(np.float64)[np.arange(len(val["targets"])), val["targets"]]
    place = math.ceil((len(own) + 1) * 0.75) - 1
    assert np.array_equal(stored["sets"], 1 - probs <= sorted(1 - own)[place])
    text = (out / "report.md").read_text()
    assert "One network predicted, so its entropy is the only measure" in text
    heading = (out / "predictions.csv").read_text().splitlines()[0]
    assert heading == "image,label,class,p(0),p(1),p(2),entropy,set"
