"""The sections on uncertainty: tables by hand, notes, charts, pictures, names that are hostile."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fge.data import Split, TableFacts, unlabelled
from fge.ensemble import PredictionFile
from fge.metrics import Conformal, coverage_range
from fge.report import (
    SHOWN,
    ReportBuilder,
    Series,
    Table,
    add_gallery,
    add_uncertainty,
    information_chart,
    method_result,
    size_table,
)
from fge.report.pictures import MOST_PIXELS, captions, png_of
from fge.report.rejection import rejection_series
from fge.report.uncertainty import doubt_of, doubt_table, doubt_verdict
from fge.runs import RunFolder
from fge.tasks import Multilabel, Regression

CLASSES = ("cat", "dog")
TARGETS = torch.tensor([0, 1] * 10)


def file_of(path: Path, **members: list[float]) -> PredictionFile:
    """Return predictions in which the probability of the true class is given."""
    file = PredictionFile(path, TARGETS)
    for name, own in members.items():
        p = torch.tensor(own, dtype=torch.float64)
        probs = torch.empty(20, 2, dtype=torch.float64)
        probs[torch.arange(20), TARGETS], probs[torch.arange(20), 1 - TARGETS] = p, 1 - p
        file.add(name, name, probs)
    return file


SURE = [0.99, 0.97, 0.95, 0.93, 0.92, 0.91, 0.9, 0.89, 0.88, 0.87]
OWN = [*SURE, 0.86, 0.85, 0.84, 0.83, 0.82, 0.81, 0.8, 0.3, 0.45, 0.6]


def test_a_line_leaves_open_what_follows_by_hand(tmp_path: Path) -> None:
    test = file_of(tmp_path / "test.npz", a=OWN)
    val = file_of(tmp_path / "val.npz", a=[0.9] * 17 + [0.7, 0.4, 0.2])
    line = method_result("fge", test, ["a"], train_epochs=1, weight_bytes=4)
    doubt = doubt_of(line, test, val)
    # Two are wrong, at 0.7 and 0.55; the surest 18 leave out those of 0.55 and 0.6.
    assert doubt.answered == pytest.approx(100 / 18)
    risks = [0.0] * 17 + [1 / 18, 1 / 19, 2 / 20]
    assert doubt.aurc == pytest.approx(sum(risks) / 20)
    # ceil(21 x 0.9) = 19: the second largest score, 0.6; classes of 0.4 and more.
    assert doubt.fit is not None
    assert doubt.fit.threshold == pytest.approx(0.6)
    assert doubt.sets == (pytest.approx(0.95), pytest.approx(22 / 20), 0.9, 0.0)
    table = doubt_table([doubt, replace(doubt, name="other", fit=None, sets=None)], 20)
    assert table.rows[0] == ["fge", "1", f"{doubt.aurc:.4f}", "5.56", "95.00", "1.100", "0.00"]
    assert table.rows[1][-3:] == ["-", "-", "-"]
    low, high = coverage_range(0.9, 20, 20)
    assert f"95 of 100 runs measure {100 * low:.1f} to {100 * high:.1f} %" in table.note
    assert "1.10 classes on average" in doubt_verdict(doubt, 20)


def test_too_few_validation_images_are_said(tmp_path: Path) -> None:
    test = file_of(tmp_path / "test.npz", a=OWN)
    line = method_result("fge", test, ["a"], train_epochs=1, weight_bytes=4)
    val = PredictionFile(tmp_path / "val.npz", TARGETS[:5])
    val.add("a", "a", torch.full((5, 2), 0.5, dtype=torch.float64))
    doubt = doubt_of(line, test, val)
    assert doubt.sets is not None
    assert (doubt.sets.coverage, doubt.sets.size) == (1.0, 2.0)
    assert doubt.facts()["conformal"]["threshold"] is None
    note = doubt_table([doubt], 20).note
    assert "at 90 % need 9 validation images, and there are 5: every set holds all" in note
    assert "conformal" not in doubt_verdict(doubt, 20)
    alone = doubt_table([doubt_of(line, test, None)], 20)
    assert alone.note.endswith("Without validation predictions there are no conformal sets.")
    assert len(alone.headings) == len(alone.rows[0]) == 4


def test_the_rejection_curve_ends_at_the_error_and_leaves_out_chance(tmp_path: Path) -> None:
    test = file_of(tmp_path / "test.npz", a=OWN)
    line = method_result("fge", test, ["a"], train_epochs=1, weight_bytes=4)
    series = rejection_series(line, test)
    assert series.x == [k / 20 for k in range(10, 21)]
    assert series.y == pytest.approx([0.0] * 7 + [0.0, 100 / 18, 100 / 19, 10.0])


def test_sizes_are_counted_and_the_rest_is_one_row() -> None:
    sets = np.zeros((4, 14), bool)
    sets[1, :2], sets[2, :12], sets[3] = True, True, True
    table = size_table(sets, Conformal("lac", 0.8, 50, 0.75))
    found = {row[0]: row[1:] for row in table.rows}
    assert found["0"] == found["2"] == ["1", "25.0"]
    assert found["more than 10"] == ["2", "50.0"]
    assert len(table.rows) == 12
    assert "of probability 0.2500 and more" in table.note
    assert "stated probability of 80 %" in table.note


def test_every_image_is_in_the_chart_of_the_information() -> None:
    for values in ([0.0, 0.0], [0.0, 0.3, 0.7]):
        chart = information_chart(np.array(values))
        assert chart.panels[0].bars is not None
        assert sum(chart.panels[0].bars.counts) == len(values)
        assert chart.limits == (0.0, pytest.approx(max(values) or 1e-3))


def test_captions_say_what_it_is_taken_for_and_names_are_text() -> None:
    figures = {"mean": np.array([[0.6, 0.4]]), "entropy": np.array([0.673])}
    index = np.array([0])
    assert captions(index, figures, CLASSES) == ["cat (0.60); entropy 0.67"]
    figures["mutual_information"] = np.array([0.25])
    assert captions(index, figures, ("`a`", "**b**"), targets=np.array([1]), names=["<x>`y`"]) == [
        "<x>'y': 'a' (0.60), is __b__; entropy 0.67, mutual information 0.250"
    ]


@pytest.mark.parametrize(
    ("shape", "mode", "size"),
    [
        ((1, 8, 6), "L", (6, 8)),
        ((3, 8, 6), "RGB", (6, 8)),
        ((4, 8, 6), "L", (6, 8)),
        ((3, 512, 256), "RGB", (MOST_PIXELS // 2, MOST_PIXELS)),
    ],
)
def test_pictures_are_small_and_in_their_colours(
    shape: tuple[int, ...], mode: str, size: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    picture = Image.open(io.BytesIO(png_of(image)))
    assert (picture.mode, picture.size) == (mode, size)
    if size == (6, 8):
        expected = image.transpose(1, 2, 0) if mode == "RGB" else image[0]
        assert np.array_equal(np.asarray(picture), expected)


class Counted:
    """Pictures that count how often they are read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> NDArray[np.uint8]:
        self.reads.append(index)
        return np.full((8, 8, 1), index, np.uint8)

    def take(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.stack([self.read(int(k)) for k in index])


def test_of_streamed_images_only_the_least_certain_are_read(tmp_path: Path) -> None:
    pictures = Counted(200)
    split = unlabelled(pictures, 8, 1, workers=2)  # type: ignore[arg-type]
    sure = np.linspace(0.5, 0.99, 200)[::-1].copy()
    figures = {"mean": np.stack([sure, 1 - sure], axis=1), "entropy": np.zeros(200)}
    report = ReportBuilder(RunFolder(tmp_path))
    add_gallery(report, split, figures, CLASSES, note="why")
    assert pictures.reads == list(range(199, 199 - SHOWN, -1))
    [gallery] = report.page("t").galleries
    shades = [np.asarray(Image.open(tmp_path / "figures" / p.file))[0, 0] for p in gallery.pictures]
    assert shades == pictures.reads
    assert (gallery.note, len(gallery.pictures)) == ("why", SHOWN)


def test_what_is_no_image_has_no_picture(tmp_path: Path) -> None:
    report = ReportBuilder(RunFolder(tmp_path))
    rows = Split(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64))
    figures = {"mean": np.full((3, 2), 0.5), "entropy": np.zeros(3)}
    add_gallery(report, rows, figures, CLASSES, note="")
    assert report.page("t").galleries == ()


def test_what_has_no_classes_adds_nothing(tmp_path: Path) -> None:
    test = PredictionFile(tmp_path / "test.npz", torch.zeros(3), Regression(("y",), (0.0,), (1.0,)))
    report = ReportBuilder(RunFolder(tmp_path))
    add_uncertainty(report, [], test, None, Split(torch.zeros(3, 5), torch.zeros(3)), CLASSES)
    assert report.page("t") == ReportBuilder(RunFolder(tmp_path)).page("t")
    assert report.content == {}


def rejected(tmp_path: Path, test: PredictionFile) -> tuple[ReportBuilder, Table, Series]:
    """Return the report of a line of two members, its table of rejection, and its curve."""
    lines = [
        method_result(name, test, members, train_epochs=1, weight_bytes=4)
        for name, members in (("single", ["a"]), ("fge", ["a", "b"]))
    ]
    report = ReportBuilder(RunFolder(tmp_path))
    rows = Split(torch.zeros(20, 5), torch.as_tensor(test.targets))
    facts: TableFacts = {"columns": [], "targets": [], "left_out": {}}
    add_uncertainty(report, lines, test, None, rows, test.task.names, "row", facts)
    page = report.page("t")
    assert list(page.figures) == ["rejection.png"]
    return report, page.tables[0], rejection_series(lines[1], test)


def test_labels_are_rejected_by_their_entropy(tmp_path: Path) -> None:
    targets = torch.tensor([[1, 0]] * 20)
    p = torch.linspace(0.99, 0.51, 20, dtype=torch.float64)
    probs = torch.stack([p, 1 - p], dim=1)
    probs[19], probs[4, 1] = torch.tensor([0.49, 0.52]), 1 - probs[4, 1]
    test = PredictionFile(tmp_path / "test.npz", targets, Multilabel(("up", "wide")))
    test.add("a", "a", probs + 0.005)
    test.add("b", "b", probs - 0.005)
    report, table, series = rejected(tmp_path / "out", test)
    # One label of two is wrong in the fifth surest row, and both in the least sure one.
    risks = [0.0] * 4 + [0.5 / k for k in range(5, 20)] + [1.5 / 20]
    assert series.y == pytest.approx([100 * risk for risk in risks[9:]])
    line = report.content["uncertainty"]["methods"][1]
    assert line["aurc"] == pytest.approx(sum(risks) / 20)
    assert line["error_answered"] == pytest.approx(100 * 0.5 / 18)
    assert table.rows[1] == ["fge", "2", f"{sum(risks) / 20:.4g}", "2.78", "7.50"]
    assert table.headings[3] == "error per label of the surest 90 %"
    said = "the surest 90 % of the test rows, its error per label is 2.78 %; of all it is 7.50 %."
    assert said in report.page("t").verdict


def test_numbers_are_rejected_by_the_variance_over_members(tmp_path: Path) -> None:
    targets = torch.zeros(20, 2, dtype=torch.float64)
    apart = torch.arange(20, dtype=torch.float64)[:, None] / 7
    task = Regression(("y", "z"), (0.0, 0.0), (1.0, 1.0))
    test = PredictionFile(tmp_path / "test.npz", targets, task)
    mean = torch.stack([torch.arange(20.0), torch.full((20,), 3.0)], dim=1).double()
    test.add("a", "a", mean + apart)
    test.add("b", "b", mean - apart)
    report, table, series = rejected(tmp_path / "out", test)
    squares = [(k**2 + 9) / 2 for k in range(20)]
    risks = [sum(squares[:k]) / k for k in range(1, 21)]
    assert series.y == pytest.approx(risks[9:])
    [fge] = report.content["uncertainty"]["methods"]  # one network has no order
    assert fge["aurc"] == pytest.approx(sum(risks) / 20)
    assert fge["mse_answered"] == pytest.approx(risks[17])
    assert table.rows[0] == ["fge", "2", *(f"{x:.4g}" for x in (fge["aurc"], risks[17], risks[19]))]
    assert "its squared error is" in report.page("t").verdict


def test_the_largest_ensemble_is_the_one_whose_images_are_shown(tmp_path: Path) -> None:
    test = file_of(tmp_path / "test.npz", a=OWN, b=OWN[::-1])
    lines = [
        method_result(name, test, members, train_epochs=1, weight_bytes=4)
        for name, members in (("last-snapshot", ["b"]), ("fge", ["a", "b"]), ("swa", ["a"]))
    ]
    images = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 1, 8, 8)
    report = ReportBuilder(RunFolder(tmp_path))
    add_uncertainty(report, lines, test, None, Split(images, TARGETS), CLASSES)
    page = report.page("t")
    assert "`fge` (2 members)" in page.galleries[0].note
    mean = test.mean(["a", "b"]).numpy()
    first = int(mean.max(axis=1).argmin())
    total = -(mean[first] * np.log(mean[first])).sum()
    own = [-(p * np.log(p)).sum() for p in (test.probabilities(m)[first].numpy() for m in "ab")]
    caption = page.galleries[0].pictures[0].caption
    assert caption.endswith(f"; entropy {total:.2f}, mutual information {total - sum(own) / 2:.3f}")
    assert list(page.figures) == ["rejection.png"]
    assert not math.isnan(report.content["uncertainty"]["methods"][1]["aurc"])
