"""Errors by class of compared methods: worked out by hand, and out of the way for equal classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_cells import FGES, IMAGES, SINGLES, compared

from fge.compare import ClassErrors, as_csv, comparison_tables
from fge.report import ClassCounts

RARE = 5
LABELS = np.r_[np.ones(RARE, int), np.zeros(IMAGES - RARE, int)]
"""Cells are wrong on the first images: those of the rare class, and some of the other one."""


def of(labels: np.ndarray, names: tuple[str, ...] = ("common", "rare|")) -> ClassErrors:
    test = np.bincount(labels, minlength=len(names))
    return ClassErrors(ClassCounts(names, 10 * test, test), labels)


def test_a_rare_class_that_was_not_learnt_is_seen_at_a_glance() -> None:
    classes = of(LABELS)
    comparison = compared(*(classes.balanced(cells) for cells in (SINGLES, FGES)))
    # SINGLES have 5, 7 and 6 of 45 common images wrong, FGES 3, 4 and 4.
    single, fge = 100 * 6 / 45, 100 * 11 / 3 / 45
    (table,) = classes.tables(comparison)
    assert table.title == "Errors by class at 1 B (10 epochs)"
    assert table.headings == ["class", "training", "test", "single", "fge"]
    assert [list(row) for row in table.rows] == [
        ["common", "450", "45", f"{single:.2f}", f"{fge:.2f}"],
        ["rare|", "50", "5", "100.00", "100.00"],
        ["balanced (mean)", "500", "50", f"{(single + 100) / 2:.2f}", f"{(fge + 100) / 2:.2f}"],
    ]
    assert table.note.startswith("Error in percent of the test images of a class, mean over seeds.")
    main = comparison_tables(comparison)[0]
    column = list(main.headings).index("balanced %")
    assert main.rows[0][column] == f"{(single + 100) / 2:.2f}"
    assert "balanced_error" in as_csv(comparison).splitlines()[0].split(",")
    (sentence,) = classes.sentences(comparison)
    assert sentence == (
        "The classes have from 50 to 450 training images: at 1 B `fge` has the lowest error, 17.33 "
        "%, and a balanced error, the mean over the classes, of 54.07 % (the lowest too). Class "
        "rare| has its largest error, 100.00 % of 5 test images."
    )
    first, second = classes.facts(comparison)["methods"]
    assert (first["name"], first["budget"]) == ("single", 1)
    assert first["errors"] == pytest.approx([single, 100])
    assert second["balanced_error"] == pytest.approx((fge + 100) / 2)


def test_the_method_that_is_fairest_is_named() -> None:
    fair = [replace(cell, wrong=np.roll(cell.wrong, 20)) for cell in SINGLES]
    classes = of(LABELS)
    (sentence,) = classes.sentences(compared(fair, FGES))
    assert f"(the lowest is that of `single`, {50 * 11 / 45:.2f} %)" in sentence


def test_equal_classes_have_no_column_and_no_sentence() -> None:
    classes = of(np.arange(IMAGES) % 2)
    assert classes.balanced(SINGLES) == SINGLES
    comparison = compared(SINGLES, FGES)
    assert classes.sentences(comparison) == []
    assert "balanced %" not in comparison_tables(comparison)[0].headings
    (table,) = classes.tables(comparison)
    assert list(table.rows[2]) == ["balanced (mean)", "500", "50", "22.00", "17.33"]


def test_a_class_without_test_images_has_no_error() -> None:
    comparison = compared(SINGLES)
    facts = of(LABELS, ("common", "rare", "none")).facts(comparison)
    assert facts["methods"][0]["errors"][2] is None
    assert facts["methods"][0]["balanced_error"] == pytest.approx((100 * 6 / 45 + 100) / 2)
