"""The latency of exported ensembles: ratios are within a round, and to one network."""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import export_latency as study  # type: ignore[import-not-found, unused-ignore]


def test_ratios_are_to_one_network_in_the_same_form_and_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dropped, first, second = [9.0] * 4, [1.0, 2.0, 3.0, 9.0], [2.0, 6.0, 4.0, 8.0]
    clock = iter([*dropped, *first, *second])
    monkeypatch.setattr(study, "seconds_of", lambda *_: next(clock))
    calls = {(form, members): None for form in ("eager", "onnx") for members in (1, 2)}
    found = study.measure(calls, 64, rounds=2)
    ratios = {(one["form"], one["members"]): one["ratio"] for one in found}
    assert ratios["eager", 1] == ratios["onnx", 1] == [1.0, 1.0, 1.0]
    assert ratios["eager", 2] == [2.25, 2.5, 2.75]
    assert ratios["onnx", 2] == [2.25, 2.5, 2.75]
    assert [one["seconds"] for one in found] == [[1.0, 2.0], [2.0, 6.0], [3.0, 4.0], [9.0, 8.0]]
    lines = study.table(found).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == 7
    assert lines[3].startswith("| 64 | 2 | 4000 (3000 to 5000) | 2.5 (2.25 to 2.75) | 8500 (")


def test_every_form_predicts_the_same() -> None:
    images = study.images_of(3)
    expected = study.deployed_of(2)(images)
    for form in ("eager", "pt2"):
        assert float((study.predictor(form, 2)(images) - expected).abs().max()) < 1e-5
