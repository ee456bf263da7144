"""The guide to fine-tuning says what its search measured: every setting, and the differences."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import ROOT

GUIDE = (ROOT / "docs" / "guides" / "fine-tuning.md").read_text()
SEARCH = json.loads((ROOT / "benchmarks" / "results" / "fine_tuning.json").read_text())["search"]


def mean(setting: str, figure: str) -> float:
    return float(np.mean([seed[figure] for seed in SEARCH[setting]]))


def row(setting: str) -> str:
    """Return a setting's row in the table."""
    optimizer, _, rest = setting.partition(" ")
    lr, _, backbone = rest.partition(", ")
    backbone = {"": "the same", "frozen": "frozen, but for the last block"}.get(
        backbone, backbone.removeprefix("backbone ")
    )
    best = min(SEARCH, key=lambda other: mean(other, "error")) == setting
    mark = "**" if best else ""
    figures = (f"{mean(setting, 'error'):.2f}", f"{mean(setting, 'calibrated_nll'):.4f}")
    error, nll = (f"{mark}{figure}{mark}" for figure in figures)
    return f"| `{optimizer}`, {lr} | {backbone} | {error} | {nll} |"


@pytest.mark.parametrize("setting", SEARCH)
def test_every_setting_of_the_search_is_in_the_table(setting: str) -> None:
    assert row(setting) in GUIDE.splitlines()


def test_the_costs_of_a_slower_backbone_are_those_measured() -> None:
    text = " ".join(GUIDE.split())
    slower = {
        "costs {} points of error with SGD at 0.05": ("sgd 0.05, backbone 0.01", "sgd 0.05"),
        ", {} with AdamW at 3e-3": ("adamw 3e-3, backbone 3e-4", "adamw 3e-3"),
        "and {} with AdamW at 1e-3": ("adamw 1e-3, backbone 3e-4", "adamw 1e-3"),
        "frozen one {} (AdamW at 1e-3)": ("adamw 1e-3, frozen", "adamw 1e-3"),
    }
    for words, (one, other) in slower.items():
        assert words.format(f"{mean(one, 'error') - mean(other, 'error'):.1f}") in text
