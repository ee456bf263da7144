"""An fge run that trains its own two-network baseline: the same budget, one folder, one resume."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from curve_runs import (
    assert_same,
    curve_job,
    done,
    flags,
    job,
    kill_server,
    killed_and_resumed,
    report,
    run,
)
from promised import promised

import fge.commands.baseline
from fge.commands.baseline import baseline_config
from fge.config import CompareConfig, CurveEnsembleConfig, FGEConfig
from fge.config.base import saved_fields
from fge.errors import DivergenceError, UserError
from fge.files import read_records

pytestmark = pytest.mark.slow

EPOCHS, END, FIT = 6, 2, 2


def fge_job(data: Path, out: Path, **more: Any) -> dict[str, Any]:
    return job(data, out, **{"epochs": EPOCHS, "cycle_epochs": 2, "baseline": "auto", **more})


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return done("fge", fge_job(data, tmp_path_factory.mktemp("own") / "run"))


def same_baseline(data: Path, out: Path, **more: Any) -> Path:
    options = {"epochs": END, "curve_epochs": FIT, "eval_points": 5, "ensemble_points": 5}
    return done("curve-ensemble", curve_job(data, out, **options, **more))


def results(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = report(folder)["methods"]
    return found


def test_the_baseline_has_the_run_s_budget_in_the_shares_of_compare() -> None:
    for epochs, end, fit in ((3, 1, 1), (5, 2, 1), (6, 2, 2), (40, 16, 8), (100, 40, 20)):
        config = baseline_config(FGEConfig(epochs=epochs, seed=3, lr=0.1, ood=("noise",)))
        assert (config.epochs, config.fit_epochs) == (end, fit)
        assert 2 * config.epochs + config.fit_epochs == epochs
        assert (config.seed, config.lr, config.ood) == (3, 0.1, ("noise",))
        assert config.recipes == ("average", "average")
    assert baseline_config(FGEConfig(average=0.0)).recipes == ("endpoint", "endpoint")


@pytest.mark.parametrize(
    "own",
    [{}, {"average": 0.0}, {"pretrained": Path("w.pt"), "freeze": "^0", "optimizer": "adamw"}],
)
def test_it_is_the_job_of_a_comparison(tmp_path: Path, own: dict[str, Any]) -> None:
    from fge.compare import Plan

    options: dict[str, Any] = {
        "epochs": 41,
        "weight_decay": 0.001,
        "flip": False,
        **own,
    }
    comparison = CompareConfig(seeds=2, ood=(), methods=("curve-ensemble",), **options)
    plan = Plan(comparison, tmp_path)
    (theirs,) = (j.config for j in plan.jobs(plan.cells[:1]) if j.command == "curve-ensemble")
    assert baseline_config(FGEConfig(**options)) == theirs


def sentences(folder: Path) -> list[str]:
    """Return the paragraphs of a run's verdict."""
    verdict: str = report(folder)["verdict"]
    return verdict.split("\n\n")


def test_it_is_a_whole_run_of_curve_ensemble_and_leaves_the_run_as_it_is(
    reference: Path, data: Path, tmp_path: Path
) -> None:
    apart = same_baseline(data, tmp_path / "apart")
    ours, theirs = promised(reference / "baseline"), promised(apart)
    assert sorted(ours) == sorted(theirs)
    # Pages name the folder of the run.
    assert {name for name in ours if ours[name] != theirs[name]} <= {"report.html", "manifest.json"}
    alone = done("fge", fge_job(data, tmp_path / "alone", baseline=apart))
    assert results(alone) == results(reference)
    told = [text for text in sentences(reference) if not text.startswith("--baseline auto")]
    assert sentences(alone) == told


def test_its_cost_and_its_figures_are_in_the_report(reference: Path) -> None:
    content, own = report(reference), report(reference / "baseline")
    lines = {line["name"]: line for line in own["methods"]}
    assert content["baseline"]["folder"] == "baseline"
    assert content["baseline"]["methods"] == [lines["ends"], lines["curve"]]
    assert [line["train_epochs"] for line in content["baseline"]["methods"]] == [2 * END, EPOCHS]
    assert "curve" not in {line["name"] for line in content["methods"]}
    assert (
        "--baseline auto trained that ensemble here, in baseline: 6 epochs beside those of this "
        "run."
    ) in sentences(reference)
    page = (reference / "report.md").read_text()
    assert "## Comparison with the two-network curve ensemble" in page
    assert "`ends` and `curve` are from baseline; costs as above." in page
    assert 'href="baseline/report.html"' in (reference / "report.html").read_text()


def test_a_finished_run_gets_a_baseline_later_and_can_do_without_it_again(
    reference: Path, data: Path, tmp_path: Path
) -> None:
    options = fge_job(data, tmp_path / "run")
    del options["baseline"]
    folder = done("fge", options)
    before = promised(folder)
    again = ["fge", "--out", str(folder), "--resume"]
    assert run([*again, "--baseline", "auto"]).code == 0
    assert_same(folder, reference)
    assert run(again).code == 0  # nothing is left to do
    assert_same(folder, reference)
    assert run([*again, "--baseline", "None"]).code == 0
    shutil.rmtree(folder / "baseline")
    after = promised(folder)
    assert {name for name in after if after[name] != before.get(name)} == {"manifest.json"}
    assert sorted(after) == sorted(before)


@pytest.mark.parametrize("part", [0.62, 0.8, 0.97])
def test_an_interrupted_baseline_is_continued(
    reference: Path, data: Path, tmp_path: Path, part: float
) -> None:
    options = fge_job(data, tmp_path / "counted")
    calls = kill_server().run("fge", options)["calls"]
    folder = killed_and_resumed("fge", options, tmp_path / "run", round(part * calls))
    timing = read_records(folder / "baseline" / "timing.jsonl")
    begun = [record for record in timing if record["event"] == "begin"]
    assert len(begun) == 2  # before the interruption, and after it
    assert_same(folder, reference)


def test_overwriting_replaces_the_baseline_too(reference: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reference, folder)
    (folder / "mine.txt").write_text("kept")
    options = fge_job(data, folder, seed=1, epochs=4)
    del options["baseline"]
    assert run([*flags("fge", options), "--overwrite"]).code == 0
    assert not (folder / "baseline").exists()
    assert (folder / "mine.txt").is_file()


def test_what_cannot_have_its_own_baseline_is_refused() -> None:
    message = (
        "^--baseline auto needs epochs >= 3, one for each of two networks and one for the fit, "
        "got 2$"
    )
    with pytest.raises(UserError, match=message):
        FGEConfig(baseline="auto", epochs=2)


def test_several_processes_are_refused_before_anything_is_done(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run(flags("fge", fge_job(data, tmp_path / "run")))
    assert (result.code, result.message) == (
        2,
        "--baseline auto trains in one process, got 2; run curve-ensemble by itself and give "
        "--baseline its folder",
    )
    assert not (tmp_path / "run").exists()


def test_the_options_shared_with_the_baseline_are_all_that_it_has_in_common() -> None:
    own = {"epochs", "curve_epochs", "first", "second", "eval_points", "ensemble_points"}
    config = FGEConfig(epochs=40, batch_size=7, momentum=0.5, weight_decay=0.1, flip=False)
    made = baseline_config(config)
    usual = CurveEnsembleConfig()
    for name in saved_fields(made):
        expected = getattr(config, name, getattr(usual, name))
        assert name in own or getattr(made, name) == expected, name


def test_a_folder_called_auto_is_given_as_a_path() -> None:
    assert FGEConfig(baseline=Path("auto")).baseline != "auto"


def test_a_baseline_that_diverges_is_named_and_can_be_left_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: object) -> None:
        raise DivergenceError("network average-1: the loss is not finite")

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(fge.commands.baseline, "train_curve_ensemble", diverge)
        result = run(flags("fge", fge_job(data, folder)))
    assert (result.code, result.message) == (
        3,
        "baseline: network average-1: the loss is not finite; --resume --baseline None reports the "
        "run without it",
    )
    assert not (folder / "report.json").exists()
    assert run(["fge", "--out", str(folder), "--resume", "--baseline", "None"]).code == 0
    assert "baseline" not in report(folder)
