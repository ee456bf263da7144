"""The charts of a comparison: which there are, and with what captions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_cells import CURVES, FGES, SINGLES, compared, several

from fge.compare import CAPTIONS, comparison_charts


def test_a_comparison_has_its_charts_with_captions() -> None:
    bins = {"bin_counts": np.eye(15, dtype=np.int64)[14] * 50}
    bins |= {"bin_confidence": np.full(15, 0.9), "bin_accuracy": np.full(15, 0.8)}
    singles = [replace(cell, **bins) for cell in SINGLES]
    charts = comparison_charts(compared(singles, FGES, CURVES))
    assert set(charts) == set(CAPTIONS)
    members = charts["error_by_members.png"].panels[0].series
    assert [one.name for one in members] == ["fge", "curve-ensemble"]
    single = charts["error_by_epochs.png"].panels[0].series[0]
    assert single.y == pytest.approx([22.0])
    gap, counts = charts["reliability.png"].panels
    assert gap.series[0].y == pytest.approx([-0.1])
    assert counts.series[0].y == [150]


def test_charts_without_points_are_left_out() -> None:
    charts = comparison_charts(compared(several("own", [9], [0.4])))
    assert set(charts) == {"error_by_epochs.png", "calibrated_nll_by_epochs.png"}
