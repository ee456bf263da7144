"""An fge run set beside a finished curve-ensemble run: what is compared, what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_arrays, write_tiny_npz
from curve_runs import curve_job, done, flags, job, report, run
from promised import promised

from fge.commands.baseline import BaselineRun, beside_baseline, read_baseline
from fge.data import load_dataset
from fge.ensemble import PredictionFile
from fge.errors import UserError
from fge.report import MethodResult, method_result

COUNT = 8


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    out = tmp_path_factory.mktemp("baseline") / "two"
    return done("curve-ensemble", curve_job(data, out, epochs=1, eval_points=2))


def fge_job(data: Path, out: Path, **more: Any) -> dict[str, Any]:
    return job(data, out, epochs=3, start_epoch=0, cycle_epochs=2, **more)


def predictions(folder: Path, **members: float) -> PredictionFile:
    """Store networks that give the right one of two classes this probability, each image."""
    file = PredictionFile(folder / "test.npz", torch.zeros(COUNT, dtype=torch.int64))
    for name, right in members.items():
        file.add(name, "sha", torch.tensor([[right, 1 - right]] * COUNT))
    return file


def line(name: str, file: PredictionFile, *members: str, epochs: int) -> MethodResult:
    return method_result(name, file, members, train_epochs=epochs, weight_bytes=4)


# ------------------------------------------------------------------------------------ comparison


def test_both_runs_stand_side_by_side_with_differences_at_their_cost(tmp_path: Path) -> None:
    ours = predictions(tmp_path / "ours", a=0.75, b=0.5, c=0.25)
    theirs = predictions(tmp_path / "theirs", x=0.25, y=0.5)
    curve = line("curve", theirs, "x", "y", epochs=30)  # mean .375: all wrong
    run = BaselineRun(tmp_path / "two", line("ends", theirs, "x", epochs=20), curve, theirs)
    better = line("fge", ours, "a", "b", epochs=24)  # mean .625: all right
    table, verdict = beside_baseline([better], ours, run)
    assert [(row[0], row[6], row[7]) for row in table.rows] == [
        ("fge", "24", "2"),
        ("ends", "20", "1"),
        ("curve", "30", "2"),
    ]
    change = -np.log(0.625) + np.log(0.375)
    assert verdict == (
        "Compared with the two-network curve ensemble (30 epochs, passes: 2): fge (24 epochs, "
        "passes: 2) has error -100.00 points [-100.00, -100.00] (significant) and NLL "
        f"{change:+.4f} [{change:+.4f}, {change:+.4f}] (significant). Below 0, the difference "
        "favours this run. The 95 % intervals resample test images: they are about these two runs, "
        "not about the methods."
    )
    assert "`ends` and `curve` are from two; costs as above." in table.note


def test_what_is_equal_is_no_difference(tmp_path: Path) -> None:
    file = predictions(tmp_path, a=0.75)
    curve = line("curve", file, "a", epochs=30)
    run = BaselineRun(tmp_path, curve, curve, file)
    _, verdict = beside_baseline([line("fge", file, "a", epochs=24)] * 2, file, run)
    same = (
        "fge (24 epochs, passes: 1) has error +0.00 points [+0.00, +0.00] (not significant) and "
        "NLL +0.0000 [+0.0000, +0.0000] (not significant)"
    )
    assert f"(30 epochs, passes: 1): {same}; {same}. Below 0" in verdict


# --------------------------------------------------------------------------------------- reading


def test_a_finished_run_is_read(baseline: Path, data: Path) -> None:
    found = read_baseline(baseline, load_dataset(str(data)), "convnet")
    assert (found.ends.name, found.ends.members, found.ends.train_epochs) == ("ends", 2, 2)
    assert (found.curve.name, found.curve.members, found.curve.train_epochs) == ("curve", 5, 3)
    lines = {m["name"]: m for m in report(baseline)["methods"]}
    for ours in (found.ends, found.curve):
        mean = found.predictions.mean(ours.member_names).numpy()
        wrong = mean.argmax(1) != found.predictions.targets
        assert 100 * wrong.mean() == pytest.approx(lines[ours.name]["error"], abs=1e-12)


def changed(key: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = {**report(folder), key: value}
        (folder / "report.json").write_text(json.dumps(content))

    return change


def without_member(folder: Path) -> None:
    file = folder / "predictions" / "test.npz"
    with np.load(file) as stored:
        arrays = dict(stored)
    kept = arrays["members"] != "average-1--average-2/curve/0.5000"
    assert not kept.all()
    per_member = ("members", "sha256", "probabilities")
    np.savez(file, **{k: v[kept] if k in per_member else v for k, v in arrays.items()})


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "report.json").unlink(), "has no report.json; give a finished run"),
        (lambda f: (f / "report.json").write_text("{"), "is not a report of a curve-ensemble run"),
        (lambda f: (f / "report.json").write_text("[]"), "is not a report of a curve-ensemble run"),
        (
            lambda f: (f / "report.json").write_text("{}"),
            "not a report .* required field `command`",
        ),
        (changed("command", "connect"), "has command 'connect'; give a run with 'curve-ensemble'"),
        (changed("model", "vgg16"), "has model 'vgg16'; give a run with 'convnet'"),
        (changed("methods", []), "not a report of a curve-ensemble run: it has no .* 'ends'"),
        (changed("methods", [{"name": "ends"}] * 2), "not a report of a curve-ensemble run"),
        (
            lambda f: shutil.rmtree(f / "predictions"),
            "test.npz lacks the predictions of average-1;",
        ),
        (without_member, r"lacks the predictions of average-1--average-2/curve/0\.5000;"),
    ],
)
def test_what_is_no_such_run_is_refused_before_anything_is_trained(
    baseline: Path, data: Path, tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(baseline, tmp_path / "two")
    (tmp_path / "two" / "manifest.json").unlink()  # which would tell of every change
    harm(tmp_path / "two")
    result = run(flags("fge", fge_job(data, tmp_path / "run", baseline=tmp_path / "two")))
    assert result.code == 2
    assert re.search(message, result.message), result.message
    assert str(tmp_path / "two") in result.message
    assert not (tmp_path / "run").exists()


def test_a_run_on_other_images_is_refused(baseline: Path, tmp_path: Path) -> None:
    images = tiny_arrays()["test_images"]
    images[0, 0, 0] ^= 1
    other = write_tiny_npz(tmp_path / "other.npz", test_images=images)
    result = run(flags("fge", fge_job(other, tmp_path / "run", baseline=baseline)))
    assert result.code == 2
    assert result.message == (
        f"--baseline {baseline} used other images than --data other; give a run on the same images"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_fge_run_is_no_baseline(data: Path, tmp_path: Path) -> None:
    other = done("fge", fge_job(data, tmp_path / "other"))
    with pytest.raises(UserError, match="has command 'fge'; give a run with 'curve-ensemble'"):
        read_baseline(other, load_dataset(str(data)), "convnet")


# -------------------------------------------------------------------------------- in the command


@pytest.mark.slow
def test_a_finished_run_can_be_set_beside_a_baseline_later(
    baseline: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = done("fge", fge_job(data, tmp_path / "run"))
    before = promised(folder)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", fail)
        argv = ["fge", "--out", str(folder), "--resume", "--baseline", str(baseline)]
        result = run(argv)
    assert (result.code, result.err) == (0, "")
    after = promised(folder)
    changed = {name for name in after if before.get(name) != after[name]}
    pages = {"report.json", "page.json", "report.md", "report.html"}
    assert changed == {"config.json", "manifest.json", *pages}
    verdict = report(folder)["verdict"]
    lines = report(folder)["methods"]
    ours = [line for line in lines if line["name"] == "fge"][-1]
    theirs = report(baseline)["methods"][-1]
    assert f"fge ({ours['train_epochs']} epochs, passes: 2) has error" in verdict
    found = re.search(r"error ([+-][\d.]+) points", verdict)
    assert found is not None
    assert float(found[1]) == pytest.approx(ours["error"] - theirs["error"], abs=0.005)
    page = (folder / "report.md").read_text()
    assert "## Comparison with the two-network curve ensemble" in page
    assert "curve" not in {line["name"] for line in lines}  # the baseline's are not ours
    assert run(["fge", "--out", str(folder), "--resume"]).code == 0
    assert promised(folder) == after
