"""The charts of curves show the numbers that they were given."""

from __future__ import annotations

from fge.curves import BASELINES
from fge.report import curve_chart, ensemble_chart

KEYS = ("train_loss", "test_loss", "train_error", "test_error")
TS = [0.0, 0.5, 1.0]


def records(start: float) -> list[dict[str, float]]:
    return [{"t": t, **{key: start + 10 * k + t for k, key in enumerate(KEYS)}} for t in TS]


def along(distances: list[float], errors: list[float]) -> list[dict[str, float]]:
    return [{"distance": d, "ensemble_error": e} for d, e in zip(distances, errors, strict=True)]


def test_loss_and_error_are_shown_of_both_paths_and_splits() -> None:
    chart = curve_chart(records(1.0), records(2.0))
    for panel, kind in zip(chart.panels, ("loss", "error"), strict=True):
        found = {one.name: (list(one.x), list(one.y)) for one in panel.series}
        assert found == {
            f"{path}, {split}": (TS, [start + 10 * KEYS.index(f"{split}_{kind}") + t for t in TS])
            for path, start in (("curve", 1), ("segment", 2))
            for split in ("test", "train")
        }
        # From zero, unless that would flatten what is shown: losses are 1 to 13, errors 21 to 33.
        assert (panel.y_limits[0] == 0) == (kind == "loss")
    assert [panel.label for panel in chart.panels] == ["loss (nats)", "error (%)"]
    styles = {(one.style, one.dash) for one in chart.panels[0].series}
    assert len(styles) == 4


def test_what_t_is_can_be_said_otherwise() -> None:
    assert curve_chart(records(1.0), records(2.0), place="snapshots passed").x == "snapshots passed"
    usual = curve_chart(records(1.0), records(2.0))
    assert usual.x == "t (0: first network, 1: second)"


def test_the_ensemble_chart_shows_every_path_over_distance() -> None:
    names = ["curve", *BASELINES, "spiral"]
    paths = {name: along([0.0, 1.0 + k], [9.0, 8.0 - k]) for k, name in enumerate(names)}
    chart = ensemble_chart(paths)
    (panel,) = chart.panels
    assert [(list(one.x), list(one.y)) for one in panel.series] == [
        ([0.0, 1.0 + k], [9.0, 8.0 - k]) for k in range(len(names))
    ]
    assert len({(one.style, one.dash) for one in panel.series}) == len(names)
    shown = [one.name for one in chart.legend]
    assert shown[0] == "curve"
    assert "random, at the curve's angle" in shown
    assert shown[-1] == "spiral"
    assert chart.x == "distance from the first network"
    assert panel.label == "test error of the two (%)"
