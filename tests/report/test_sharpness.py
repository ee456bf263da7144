"""Charts of eigenvalues and spectra show the numbers that they were given."""

from __future__ import annotations

import math

import pytest

from fge.errors import UserError
from fge.report import eigenvalue_chart, sharpness_table, spectrum_chart
from fge.tasks import MANY_CLASSES, Regression, Task


def test_eigenvalues_and_the_threshold_are_on_a_logarithmic_axis() -> None:
    chart = eigenvalue_chart([2, 4], [[30, 5], [40, 6]], place="epochs", thresholds=[380, 38])
    (panel,) = chart.panels
    assert {one.name: (list(one.x), list(one.y)) for one in panel.series} == {
        "top eigenvalue": ([2, 4], [30, 40]),
        "eigenvalue 2": ([2, 4], [5, 6]),
        "2 (1 + momentum) / learning rate": ([2, 4], [380, 38]),
    }
    assert panel.log
    assert chart.whole
    assert chart.x == "epochs"


def test_negative_eigenvalues_need_a_linear_axis() -> None:
    chart = eigenvalue_chart([0.5], [[3, -1]], place="t")
    assert not chart.panels[0].log
    assert not chart.whole


def test_no_networks_are_refused() -> None:
    with pytest.raises(UserError, match="needs at least one network, got none"):
        eigenvalue_chart([], [], place="t")


def test_a_density_spans_eight_decades() -> None:
    (panel,) = spectrum_chart([-1.0, 0.0, 1.0, 2.0], [1e-9, 1.0, 1.1e-8, 0.0]).panels
    (series,) = panel.series
    assert [None if math.isnan(y) else y for y in series.y] == [None, 1.0, 1.1e-8, None]
    assert panel.log
    assert panel.y_limits == (1e-8, 2.0)


@pytest.mark.parametrize(
    ("task", "example", "words"),
    [
        (MANY_CLASSES, "image", "9 training images without augmentation, in nats per squared"),
        (MANY_CLASSES, "row", "9 training rows without augmentation, in nats per squared weight."),
        (
            Regression(("a",), (0.0,), (1.0,)),
            "row",
            "9 training rows without augmentation, in units of the loss per squared weight.",
        ),
    ],
)
def test_the_note_of_the_table_says_the_loss_and_what_it_is_over(
    task: Task, example: str, words: str
) -> None:
    network = {
        "name": "a",
        "eigenvalues": [2.0],
        "residuals": [0.01],
        "converged": True,
        "trace": 3.0,
        "trace_standard_error": 0.1,
        "hessian_products": 5,
        "gradient_cost": 12,
    }
    table = sharpness_table([network], examples=9, task=task, example=example)
    assert words in table.note
    assert f"in gradients over the {example}s." in table.note
    assert list(table.rows[0]) == ["a", "2", "0.01", "3 ± 0.1", "5", "12"]
