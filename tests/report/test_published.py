"""The published two-network baseline: which runs show it, and what they say of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, write_tiny_npz
from curve_runs import done, job, report
from curve_runs import methods as methods_of
from made_cells import several

import fge.report.published as published_module
from benchmarks.published_baseline import OPTIONS, OUT, RESULTS, published
from fge.commands.build import settle_options
from fge.config import CompareConfig, FGEConfig, to_options, write_config
from fge.data import load_dataset
from fge.files import write_json
from fge.report import COLUMNS, Published, published_for

FACTS = json.loads(OUT.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def images() -> str:
    return load_dataset("fashion-mnist-mini").fingerprint


def settled(**changes: Any) -> dict[str, Any]:
    dataset = load_dataset("fashion-mnist-mini")
    return to_options(settle_options(FGEConfig(**changes), dataset))


# ----------------------------------------------------------------------------- what the package has


def test_the_package_ships_what_the_script_makes_of_the_committed_cells() -> None:
    assert published(RESULTS) == FACTS
    assert '"fge.report" = ["report.html", "published_baseline.json"]' in (
        (ROOT / "pyproject.toml").read_text()
    )


def test_its_figures_are_those_of_the_committed_table() -> None:
    content = json.loads((RESULTS / "compare.json").read_text())
    (row,) = (m for m in content["methods"] if (m["name"], m["budget"]) == ("curve-ensemble", 1))
    for name, figure in FACTS["figures"].items():
        assert figure["mean"] == pytest.approx(row[name], rel=1e-12)
        assert figure["deviation"] == pytest.approx(row["deviation"][name], rel=1e-12)
    assert FACTS["seeds"] == row["seeds"] == [0, 1, 2, 3, 4]
    assert [FACTS["cost"][k] for k in ("train_epochs", "forward_passes")] == [100, 5]


def test_other_cells_make_another_file(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    made = several("curve-ensemble", [5, 10], [0.25, 0.75], members=2, epochs=40)
    more = {"calibrated_nll": 0.0, "brier": 0.1, "ece": 0.2}
    for cell in [*made, *several("single", [50, 50], [1, 1])]:
        replace(cell, figures=more | cell.figures).save(tmp_path / "cells")
    config = CompareConfig(epochs=40, device="cpu", amp="off", crop_padding=2)
    write_config(tmp_path / "config.json", "compare", config, dataset={"sha256": "abc"})
    found = published(tmp_path)
    assert found["figures"]["error"] == {"mean": 15.0, "deviation": pytest.approx(np.sqrt(50))}
    assert found["figures"]["nll"]["mean"] == 1.0
    assert (found["seeds"], found["recipe"], found["precision"]) == ([0, 1], "average", "off")
    assert (found["images_sha256"], found["options"]["epochs"]) == ("abc", 40)
    assert found["environment"] == {"device": "cpu"}
    environment = {"hardware": "a processor", "torch": "2.9", "cpu_count": 2, "other": 1}
    write_json(tmp_path / "report.json", {"environment": environment})
    known = published(tmp_path, tmp_path / "report.json")["environment"]
    assert known == {"device": "cpu", "hardware": "a processor", "torch": "2.9", "cpu_count": 2}
    for file in (tmp_path / "cells").glob("curve-ensemble-b1-s1.*"):
        file.unlink()
    with pytest.raises(ValueError, match="must have cells of 2 or more seeds of curve-ensemble"):
        published(tmp_path)


# ------------------------------------------------------------------------------- which runs show it


def test_the_default_job_shows_it_whatever_its_seed_and_ensemble(images: str) -> None:
    for changes in ({}, {"seed": 7}, {"single": True}, {"average": 0.0}, {"cycle_epochs": 4}):
        found = published_for(settled(**changes), images)
        assert found is not None, changes
        assert found.facts == FACTS


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 50},
        {"model": "vgg16"},
        {"lr": 0.1},
        {"batch_size": 64},
        {"val_fraction": 0.0},
        {"train_size": 5000},
        {"flip": False},
        {"crop_padding": 1},
        {"weight_decay": 1e-3},
        {"pretrained": Path("w.pt")},
    ],
)
def test_another_job_does_not(images: str, changes: dict[str, Any]) -> None:
    assert published_for(settled(**changes), images) is None
    assert published_for(settled(), "other images") is None


def test_every_option_of_the_job_is_one_of_fge() -> None:
    assert set(FACTS["options"]) == set(OPTIONS) <= set(to_options(FGEConfig()))


# ------------------------------------------------------------------------------ what is said of it


def test_the_sentence_says_where_it_is_from_and_how_to_measure_it() -> None:
    assert Published(FACTS).sentence == (
        "Published, not measured in this run: the two-network curve ensemble at the same budget "
        "(100 epochs, 5 passes per prediction) has 9.91 ± 0.29 % error and NLL 0.2726 ± 0.0015 "
        "(mean ± standard deviation of 5 seeds; networks of recipe average; measured on "
        "Intel(R) Xeon(R) Processor @ 2.50GHz, torch 2.14.1+cu130). --baseline auto measures it "
        "here."
    )
    unknown = Published({**FACTS, "environment": {"device": "cpu"}}).sentence
    assert "; measured on a CPU, hardware and versions not recorded). --baseline auto" in unknown
    environment = {"device": "cpu", "hardware": "AMD EPYC", "torch": "2.14.1"}
    known = Published({**FACTS, "environment": environment}).sentence
    assert "; measured on AMD EPYC, torch 2.14.1). --baseline auto" in known


def test_the_row_has_the_columns_of_the_table() -> None:
    row = dict(zip([heading for _, heading, _ in COLUMNS], Published(FACTS).row, strict=True))
    assert row["method"] == "curve-ensemble (published)"
    assert (row["members"], row["error"], row["NLL"]) == ("5", "9.91", "0.2726")
    assert (row["epochs"], row["passes"]) == ("100", "5")


@pytest.mark.slow
def test_a_run_of_that_job_has_a_row_and_a_key_but_no_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_tiny_npz(tmp_path / "tiny.npz")
    options = job(data, tmp_path / "run", epochs=3)
    own = to_options(
        settle_options(FGEConfig(data=str(data), epochs=3, batch_size=32), load_dataset(str(data)))
    )
    facts = {
        **FACTS,
        "options": {name: own[name] for name in OPTIONS},
        "images_sha256": load_dataset(str(data)).fingerprint,
    }
    monkeypatch.setattr(published_module, "_read", lambda: facts)
    folder = done("fge", options)
    assert report(folder)["published_baseline"] == facts
    assert not [name for name in methods_of(folder) if "curve" in name]
    page = (folder / "report.md").read_text()
    assert re.search(r"\| curve-ensemble \(published\) \| 5 \| 9\.91 \|", page)
    assert "it is the mean of 5 seeds elsewhere." in page
    assert Published(facts).sentence in report(folder)["verdict"]
    assert report(folder)["verdict"].split("\n\n")[0] != Published(facts).sentence
    again = done("fge", {**options, "out": str(tmp_path / "auto"), "baseline": "auto"})
    assert "published_baseline" not in report(again)
    assert "(published)" not in (again / "report.md").read_text()
