"""The papers' settings as presets, and the published figures beside what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks.comparison import (
    PRESETS,
    PUBLISHED,
    preset_options,
    published_rows,
    write_published,
)
from fge.config import CompareConfig

REFERENCE = ROOT / "tests" / "reference.json"


def test_published_figures_are_those_of_the_reference() -> None:
    published = json.loads(REFERENCE.read_text(encoding="utf-8"))["published"]
    assert {key: published[key] for key in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_settings_and_trains_on_everything(name: str) -> None:
    config = CompareConfig(data="cifar100", **preset_options(name, 1.0))
    for option, value in PUBLISHED["settings"][name].items():
        assert getattr(config, option) == value, option
    assert (config.model, config.val_fraction, config.budgets) == (name, 0, (1, 2, 3))
    assert config.average_part == 0
    assert config.train_size is None
    snapshots = (config.last_cycle_epoch - config.first_cycle_epoch) / config.cycle_length + 0.5
    assert snapshots == 20


@pytest.mark.parametrize("scale", [0.5, 0.02, 0.001])
@pytest.mark.parametrize("name", PRESETS)
def test_a_scaled_preset_still_keeps_two_snapshots(name: str, scale: float) -> None:
    config = CompareConfig(data="cifar100", **preset_options(name, scale))
    assert config.last_cycle_epoch > config.first_cycle_epoch + config.cycle_length // 2
    assert config.train_size == round(scale * 50_000)


def row(name: str, budget: int, error: float, **changes: object) -> dict[str, object]:
    facts = {"deviation": {"error": 0.25}, "seeds": [0, 1, 2], "values": 3}
    return {"name": name, "budget": budget, "error": error, **facts, **changes}


def test_ours_stand_beside_the_published_figures() -> None:
    methods = [row("single", 1, 28.0), row("deep-ensemble", 2, 26.0), row("fge", 1, 25.5)]
    rows = published_rows("vgg16", {"methods": methods})
    assert rows[0] == ["independent", "1 B", "72.00", "0.25", "3", "72.5"]
    assert rows[1] == ["independent", "2 B", "74.00", "0.25", "3", "74.8"]
    assert rows[2] == ["independent", "3 B", "not measured", "", "0", "75.6"]
    assert rows[3] == ["fge", "1 B", "74.50", "0.25", "3", "74.6"]


def test_one_value_of_all_seeds_has_no_spread_and_it_is_said(tmp_path: Path) -> None:
    methods = [row("fge", 2, 25.0), row("fge", 3, 24.5, values=1, deviation={})]
    (tmp_path / "compare.json").write_text(json.dumps({"methods": methods}), encoding="utf-8")
    text = write_published("vgg16", tmp_path, 1.0, "cifar100")
    assert (tmp_path / "published.md").read_text(encoding="utf-8") == text
    assert "| fge | 2 B | 75.00 | 0.25 | 3 | " in text
    assert "| fge | 3 B | 75.50 |  | 3 (1 value) | " in text
    assert "\nAt 3 B all seeds are pooled into one value, without deviation or interval" in text
    (tmp_path / "compare.json").write_text(json.dumps({"methods": methods[:1]}), encoding="utf-8")
    assert "pooled" not in write_published("vgg16", tmp_path, 1.0, "cifar100")
