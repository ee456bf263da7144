"""Uncertainty in the commands: columns and sets of ``predict``, sections and pictures of runs."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_TEST, write_tiny_npz
from fge_runs import config
from numpy.typing import NDArray
from PIL import Image

from fge import metrics
from fge.commands import cli
from fge.commands.measured import figures_of
from fge.commands.train import fge
from fge.data import load_dataset
from fge.ensemble import Ensemble
from fge.metrics import coverage_range
from fge.observer import counted

pytestmark = pytest.mark.slow  # whole runs

VALIDATION = 24
CLASSES = ["0", "1", "2"]


def images_of(data: Path) -> NDArray[np.uint8]:
    """Return the test images (N, H, W) in the order of a run's predictions."""
    images: NDArray[np.uint8] = load_dataset(str(data)).test.images[:, 0].numpy()
    return images


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of three snapshots, beside ``new.npz`` with the test images."""
    folder = tmp_path_factory.mktemp("uncertain")
    data = write_tiny_npz(folder / "tiny.npz")
    np.savez(folder / "new.npz", images=images_of(data))
    return fge(config(data, folder / "run", epochs=6, start_epoch=0, max_lr=0.3, min_lr=0.1))


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def predicted(run: Path, new: Path, out: Path, *more: str) -> list[str]:
    argv = ["predict", "--run", str(run), "--images", str(new), "--out", str(out)]
    return [*argv, "--device", "cpu", "--workers", "0", *more]


@pytest.fixture(scope="module")
def out(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of predictions with the members, at a coverage of 80 %."""
    out = tmp_path_factory.mktemp("out") / "new"
    more = ("--keep-members", "--coverage", "0.8")
    assert cli.main(predicted(run, run.parent / "new.npz", out, *more)) == 0
    return out


def kept(run: Path, part: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the snapshots' predictions (S, N, C) of a part, and its targets."""
    with np.load(run / "predictions" / f"{part}.npz") as stored:
        own = [name.startswith("fge-") for name in stored["members"]]
        return stored["probabilities"][own].astype(np.float64), stored["targets"]


def arrays(out: Path) -> dict[str, Any]:
    with np.load(out / "predictions.npz") as stored:
        return dict(stored)


def test_the_columns_of_predict_are_those_of_its_members(run: Path, out: Path) -> None:
    stored = arrays(out)
    members, probs = stored["member_probabilities"], stored["probabilities"]
    assert members.shape == (3, TINY_TEST, 3)
    np.testing.assert_allclose(members, kept(run, "test")[0], atol=1e-5)
    np.testing.assert_allclose(members.mean(axis=0, dtype=np.float64), probs, atol=1e-6)
    mixed = -(probs * np.log(probs)).sum(axis=1)
    own = -(members * np.log(members)).sum(axis=2).mean(axis=0)
    np.testing.assert_allclose(stored["entropy"], mixed, atol=1e-6)
    np.testing.assert_allclose(stored["mutual_information"], mixed - own, atol=1e-5)
    against = (members.argmax(axis=2) != stored["labels"]).mean(axis=0)
    np.testing.assert_allclose(stored["disagreement"], against)
    assert 0 < against.max() < 1
    with (out / "predictions.csv").open(newline="") as file:
        heading, *rows = csv.reader(file)
    names = ["entropy", "mutual_information", "disagreement"]
    assert heading == ["image", "label", "class", "p(0)", "p(1)", "p(2)", *names, "set"]
    for position, name in enumerate(names, start=6):
        assert [row[position] for row in rows] == [f"{value:.6f}" for value in stored[name]]


def test_probabilities_of_a_function_are_measured_as_those_of_a_softmax() -> None:
    torch.manual_seed(0)
    nets = [torch.nn.Linear(5, 3) for _ in range(4)]
    batches = list(torch.randn(20, 5).split(8))
    usual = figures_of(Ensemble(nets[0], nets), batches, keep_members=False)
    function = Ensemble(nets[0], nets, output=lambda outputs: outputs.softmax(dim=1))
    for keep in (False, True):
        found = figures_of(function, batches, keep_members=keep)
        assert ("members" in found) is keep
        for name, values in usual.items():
            torch.testing.assert_close(found[name], values)


def test_the_sets_of_predict_are_those_of_the_validation_images(run: Path, out: Path) -> None:
    stored = arrays(out)
    members, targets = kept(run, "val")
    assert len(targets) == VALIDATION
    scores = sorted(1 - members.mean(axis=0)[np.arange(VALIDATION), targets])
    threshold = scores[math.ceil(25 * 0.8) - 1]
    assert np.array_equal(stored["sets"], 1 - stored["probabilities"] <= threshold)
    assert stored["coverage"] == 0.8
    assert 1 < stored["sets"].sum(axis=1).max() < 4
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, mask, probs in zip(rows, stored["sets"], stored["probabilities"], strict=True):
        chosen = [CLASSES[c] for c in np.argsort(-probs, kind="stable") if mask[c]]
        assert row["set"] == " | ".join(chosen)
    facts = json.loads((out / "report.json").read_text())["uncertainty"]
    assert facts["conformal"] == {
        "score": "lac",
        "stated": 0.8,
        "examples": VALIDATION,
        "threshold": pytest.approx(threshold),
        "size": pytest.approx(stored["sets"].sum(axis=1).mean()),
        "empty": pytest.approx((stored["sets"].sum(axis=1) == 0).mean()),
    }
    assert facts["entropy"] == pytest.approx(stored["entropy"].mean())


def png(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())))


def check_pictures(folder: Path, probs: NDArray[Any], images: NDArray[np.uint8]) -> list[str]:
    """Check that the pictures of a page are the least certain images; return their captions."""
    page = json.loads((folder / "page.json").read_text())
    [gallery] = page["galleries"]
    least = np.argsort(probs.max(axis=1), kind="stable")[:12]
    html, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for image, shown in zip(least, gallery["pictures"], strict=True):
        assert np.array_equal(png(folder / "figures" / shown["file"]), images[image])
        assert f"(figures/{shown['file']}) " in text
    assert html.count('src="data:image/png;base64,') >= len(least)
    captions: list[str] = [shown["caption"] for shown in gallery["pictures"]]
    assert all(html.count(f"<p>{caption}</p>") for caption in captions)
    return captions


def test_the_page_of_predict_shows_sizes_and_pictures(run: Path, out: Path) -> None:
    stored = arrays(out)
    captions = check_pictures(out, stored["probabilities"], images_of(run.parent / "tiny.npz"))
    least = int(stored["probabilities"].max(axis=1).argmin())
    assert captions[0] == (
        f"{least}: {stored['labels'][least]} ({stored['probabilities'][least].max():.2f}); entropy "
        f"{stored['entropy'][least]:.2f}, mutual information "
        f"{stored['mutual_information'][least]:.3f}"
    )
    text = (out / "report.md").read_text()
    counts = np.bincount(stored["sets"].sum(axis=1))
    for size, count in enumerate(counts):
        assert f"| {size} | {count} | {100 * count / TINY_TEST:.1f} |" in text
    assert f"by the run's {VALIDATION} validation images" in text
    assert "(figures/information.png)" in text
    assert "--coverage 0.8 --keep-members --out NEW_FOLDER" in (out / "report.html").read_text()
    before = (out / "report.html").read_bytes()
    assert cli.main(["report", str(out)]) == 0
    assert (out / "report.html").read_bytes() == before


def test_a_run_states_and_measures_coverage_and_rejection(run: Path) -> None:
    content = json.loads((run / "report.json").read_text())["uncertainty"]
    assert content["coverage"] == 0.9
    found = {line["name"]: line for line in content["methods"]}
    assert list(found) == ["last-snapshot", "fge", "swa"]
    members, targets = kept(run, "test")
    probs = members.mean(axis=0)
    val, labels = kept(run, "val")
    scores = sorted(1 - val.mean(axis=0)[np.arange(VALIDATION), labels])
    sets = 1 - probs <= scores[math.ceil(25 * 0.9) - 1]
    line = found["fge"]
    assert line["aurc"] == pytest.approx(metrics.aurc(probs, targets))
    surest = np.argsort(-probs.max(axis=1), kind="stable")[: round(0.9 * TINY_TEST)]
    wrong = 100 * np.mean(probs[surest].argmax(axis=1) != targets[surest])
    assert line["error_answered"] == pytest.approx(wrong)
    measured = line["conformal"]
    assert measured["stated"] == 0.9
    assert measured["coverage"] == sets[np.arange(TINY_TEST), targets].mean()
    assert measured["size"] == sets.sum(axis=1).mean()
    text = (run / "report.md").read_text()
    cells = [f"{100 * measured['coverage']:.2f}", f"{measured['size']:.3f}"]
    assert f"| fge | 3 | {line['aurc']:.4f} | {wrong:.2f} | {' | '.join(cells)} | " in text
    low, high = coverage_range(0.9, VALIDATION, TINY_TEST)
    assert f"95 of 100 runs measure {100 * low:.1f} to {100 * high:.1f} %" in text


def test_a_run_shows_its_least_certain_images_and_the_rejection(run: Path) -> None:
    members, targets = kept(run, "test")
    probs = members.mean(axis=0)
    captions = check_pictures(run, probs, images_of(run.parent / "tiny.npz"))
    first = int(probs.max(axis=1).argmin())
    said = probs[first].argmax()
    what = "correct" if said == targets[first] else f"is {targets[first]}"
    assert captions[0].startswith(f"{said} ({probs[first].max():.2f}), {what}; entropy ")
    plot = json.loads((run / "page.json").read_text())["plots"]["rejection.png"]
    curve = {one["name"]: one for one in plot["data"]}["fge"]
    risk = metrics.risk_coverage(probs, targets)
    assert curve["x"] == pytest.approx(risk.coverage[9:].tolist(), rel=1e-5)
    assert curve["y"] == pytest.approx((100 * risk.risk[9:]).tolist(), rel=1e-5)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def no_labels(path: Path) -> None:
    change(path, targets=np.zeros((VALIDATION, 2)))


def not_probable(path: Path) -> None:
    with np.load(path) as stored:
        change(path, probabilities=stored["probabilities"] - 2)


def other_classes(path: Path) -> None:
    with np.load(path) as stored:
        change(path, probabilities=stored["probabilities"][:, :, :2])


def other_weights(path: Path) -> None:
    with np.load(path) as stored:
        change(path, sha256=np.array(["0"] * len(stored["sha256"])))


def short(path: Path) -> None:
    with np.load(path) as stored:
        part = {name: stored[name] for name in ("targets", "probabilities")}
    change(path, targets=part["targets"][:5], probabilities=part["probabilities"][:, :5])


def change(path: Path, **arrays: NDArray[Any]) -> None:
    with np.load(path) as stored:
        content = {**stored, **arrays}
    np.savez(path, **content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Path.unlink, r"the run has no validation predictions \(.*val\.npz\); they need --val-fra"),
        (other_weights, r"val\.npz lacks the predictions of 3 of 3 members; resume that run with"),
        (short, r"sets that hold the class of 90 % of images need 9 validation images, .* has 5"),
    ],
)
def test_what_prevents_sets_is_one_line_and_costs_nothing_else(
    run: Path,
    copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    message: str,
) -> None:
    (copy / "manifest.json").unlink()  # as in runs of before: the copy is changed
    change(copy / "predictions" / "val.npz")
    new = run.parent / "new.npz"
    capsys.readouterr()
    assert cli.main(predicted(copy, new, tmp_path / "asked", "--coverage", "0.9")) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error: --coverage 0\.9: [^\n]*{message}[^\n]*\n", error), error
    assert not (tmp_path / "asked").exists()
    assert cli.main(predicted(copy, new, tmp_path / "out")) == 0
    note = capsys.readouterr().out.replace("\n", " ")
    assert re.search(rf"no conformal sets: [^\n]*{message}", note), note
    assert {"entropy", "disagreement"} < set(arrays(tmp_path / "out"))
    assert "sets" not in arrays(tmp_path / "out")
    assert "No conformal sets: " in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("asked", [(), ("--coverage", "0.9")])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"val\.npz cannot be read; it may be truncated or damaged"),
        (no_labels, r"val\.npz is damaged: its targets are no labels \(N,\)"),
        (not_probable, r"val\.npz is damaged: probs must be probabilities in .*restore the file"),
        (other_classes, r"val\.npz has 2 classes and the run 3; restore the file"),
    ],
)
def test_damaged_validation_predictions_are_refused(
    run: Path,
    copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    message: str,
    asked: tuple[str, ...],
) -> None:
    """Whether or not a coverage was asked for: sets are not left out for a damaged file."""
    (copy / "manifest.json").unlink()
    damage(copy / "predictions" / "val.npz")
    argv = predicted(copy, run.parent / "new.npz", tmp_path / "out", *asked)
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", error), error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", [Path.unlink, cut])
def test_a_changed_file_of_a_run_is_named_with_its_remedy(
    run: Path,
    copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    damage(copy / "predictions" / "val.npz")
    assert cli.main(predicted(copy, run.parent / "new.npz", tmp_path / "out")) == 2
    error = capsys.readouterr().err
    what = "is missing" if damage is Path.unlink else "was damaged or changed after it was written"
    assert f"val.npz {what}; " in error
    assert f"python cli.py verify {copy}" in error


@pytest.mark.parametrize("value", ["0", "1", "90", "-0.1", "nan"])
def test_a_coverage_that_is_none_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    argv = predicted(run, run.parent / "new.npz", tmp_path / "out", f"--coverage={value}")
    assert cli.main(argv) == 2
    error = f"error: --coverage must be above 0 and below 1, got {value}; for 90 % give 0.9\n"
    assert capsys.readouterr().err == error


def test_a_coverage_beyond_the_validation_images_says_how_many_it_needs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = run.parent / "new.npz"
    assert cli.main(predicted(run, new, tmp_path / "out", "--coverage", "0.99")) == 2
    assert capsys.readouterr().err == (
        "error: --coverage 0.99: sets that hold the class of 99 % of images need 99 validation "
        f"images, and the run has {VALIDATION}\n"
    )


def test_without_validation_a_run_has_rejection_and_pictures_only(tmp_path: Path) -> None:
    data = write_tiny_npz(tmp_path / "tiny.npz")
    out = fge(config(data, tmp_path / "run", epochs=2, start_epoch=0, val_fraction=0.0))
    [line] = json.loads((out / "report.json").read_text())["uncertainty"]["methods"]
    assert "conformal" not in line
    text = (out / "report.md").read_text()
    assert "Without validation predictions there are no conformal sets." in text
    probs, _ = kept(out, "test")
    captions = check_pictures(out, probs[0], images_of(data))
    assert not any("mutual" in caption for caption in captions)


def test_a_plan_predicts_by_the_members_of_its_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its store has more snapshots than these: several averages of each network."""
    data = write_tiny_npz(tmp_path / "tiny.npz")
    np.savez(tmp_path / "new.npz", images=images_of(data))
    out = fge(config(data, tmp_path / "run", epochs=8, plan="auto", start_epoch=None))
    lines = json.loads((out / "report.json").read_text())["methods"]
    names = next(line["member_names"] for line in lines if line["name"] == "auto")
    assert len(names) < len(list((out / "snapshots").glob("*.safetensors")))
    assert cli.main(predicted(out, tmp_path / "new.npz", tmp_path / "new")) == 0
    with np.load(out / "predictions" / "test.npz") as stored:
        every = dict(zip(stored["members"].tolist(), stored["probabilities"], strict=True))
    expected = np.mean([every[name] for name in names], axis=0)
    np.testing.assert_allclose(arrays(tmp_path / "new")["probabilities"], expected, atol=1e-5)
    export = ["export", "--run", str(out), "--format", "pt2", "--out", str(tmp_path / "one.pt2")]
    capsys.readouterr()
    assert cli.main(export) == 0
    assert capsys.readouterr().out.startswith(f"{counted(len(names), 'snapshot')} of convnet in ")
    log = (out / "log.jsonl").read_text()
    (out / "manifest.json").unlink()
    (out / "log.jsonl").write_text(log.replace('"val_change_error"', '"other"'))
    assert cli.main(predicted(out, tmp_path / "new.npz", tmp_path / "damaged")) == 2
