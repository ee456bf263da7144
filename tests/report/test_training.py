"""The report of the sharpness through a training says what was logged and what it took."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fge_runs import config

from fge.commands.train import fge, train
from fge.config import TrainConfig
from fge.report.training import MOST_ROWS, dynamics_table, dynamics_verdict
from fge.tasks import Regression


def measured(epoch: int, eigenvalue: float, **changes: Any) -> dict[str, Any]:
    return {
        "event": "sharpness",
        "stage": "fge",
        "epoch": epoch,
        "lr": 0.1,
        "snapshot": False,
        "eigenvalue": eigenvalue,
        "residual": 0.0123,
        "converged": True,
        "examples": 8,
        "products": 5,
        "gradients": 12.0,
        **changes,
    }


RECORDS = [
    measured(2, 40.0, stage="start"),
    measured(4, 30.0),
    measured(5, 25.0, lr=0.0, snapshot=True, converged=False),
    measured(5, 99.0, stage="single"),
]


def content_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    count = len(records)
    costs = {"products": 5 * count, "gradients": 12.0 * count, "images_passed": 96 * count}
    return {"optimizer": "sgd", "momentum": 0.9, "examples": 8, **costs, "measurements": records}


def test_the_table_holds_each_measurement_with_its_threshold() -> None:
    table = dynamics_table(content_of(RECORDS))
    assert list(table.headings) == [
        "epoch",
        "stage",
        "lr",
        "top eigenvalue",
        "residual",
        "2(1+m)/lr",
        "products",
        "gradients",
    ]
    assert list(table.rows[0]) == ["2", "start", "0.1", "40", "0.01", "38", "5", "12"]
    assert [row[1] for row in table.rows] == ["start", "fge", "fge, snapshot", "single"]
    assert table.rows[2][5] == "infinite"


def test_an_optimizer_without_the_line_has_no_column_and_a_reason() -> None:
    table = dynamics_table({**content_of(RECORDS), "optimizer": "adam", "momentum": None})
    assert "2(1+m)/lr" not in table.headings
    assert list(table.rows[0]) == ["2", "start", "0.1", "40", "0.01", "5", "12"]
    assert (
        "There is no threshold 2(1+m)/lr: it holds for SGD, and the optimizer is adam."
        in table.note
    )
    assert dynamics_verdict(RECORDS, None).endswith("25 after epoch 5.")


def test_the_note_says_what_it_took_and_what_did_not_converge() -> None:
    note = dynamics_table(content_of(RECORDS)).note
    assert "mean loss over 8 training images" in note
    assert (
        "4 measurements used 20 Hessian-vector products, at an estimated cost of 48 gradients"
        in note
    )
    assert "384 images forward and backward, which do not count as training epochs" in note
    assert note.endswith("The residual is above 1 % of the eigenvalue after fge 5.")


def test_the_note_of_a_table_of_numbers_says_rows_and_the_loss() -> None:
    task = Regression(("a",), (0.0,), (1.0,))
    note = dynamics_table(content_of(RECORDS), task=task, example="row").note
    assert "mean loss over 8 training rows" in note
    assert "in units of the loss per squared weight" in note
    assert "gradients over those rows: 384 rows forward and backward" in note
    assert "image" not in note
    assert "nats" not in note


def test_a_long_table_keeps_snapshots_and_the_last_and_says_what_it_leaves_out() -> None:
    records = [measured(k, 1.0, snapshot=k % 50 == 7) for k in range(1, 201)]
    table = dynamics_table(content_of(records))
    epochs = [int(row[0]) for row in table.rows]
    assert {7, 57, 107, 157, 200} <= set(epochs)
    assert epochs == sorted(epochs)
    assert MOST_ROWS <= len(epochs) <= MOST_ROWS + 5
    assert f"The table shows {len(epochs)} of 200; `log.jsonl` holds all." in table.note


def test_the_verdict_is_of_the_method_and_not_of_the_single_network() -> None:
    # 2 (1 + .9) / .1 = 38 lies between the first two; at a rate of 0 nothing lies above.
    assert dynamics_verdict(RECORDS, 0.9) == (
        "The top Hessian eigenvalue was 40 after epoch 2 and 25 after epoch 5. It was above "
        "2(1 + momentum)/learning rate in 1 of 3 measurements."
    )


def test_the_single_network_alone_has_a_verdict() -> None:
    assert "was 99 after epoch 5 and 99 after epoch 5" in dynamics_verdict(RECORDS[3:], 0.9)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from conftest import write_tiny_npz

    folder = tmp_path_factory.mktemp("finished")
    data = write_tiny_npz(folder / "tiny.npz")
    return fge(config(data, folder / "run", sharpness_every=2))


@pytest.mark.slow
def test_a_run_reports_what_it_logged(finished: Path) -> None:
    logged = [
        record
        for record in map(json.loads, (finished / "log.jsonl").read_text().splitlines())
        if record["event"] == "sharpness"
    ]
    # Cycles of 2 epochs from epoch 1 on, of which 2, 4 and 6 are the minima.
    assert [(r["epoch"], r["snapshot"]) for r in logged] == [(2, True), (4, True), (6, True)]
    found = json.loads((finished / "report.json").read_text())["sharpness"]
    assert found["measurements"] == logged
    assert found["products"] == sum(r["products"] for r in logged)
    assert found["images_passed"] == round(72 * found["gradients"])
    assert (found["examples"], found["momentum"]) == (72, 0.9)  # all that are trained on
    html = (finished / "report.html").read_text()
    for epoch in (2, 4, 6):  # what a screen reader says before each cell of a row
        assert f'<th scope="row">{epoch}</th>' in re.sub(r' class="[^"]*"', "", html)
    page = (finished / "report.md").read_text()
    assert "## Sharpness through the training" in page
    assert "](figures/sharpness.png)" in page
    assert dynamics_verdict(logged, 0.9) in page
    assert (finished / "figures" / "sharpness.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_run_without_the_option_reports_no_sharpness(tiny_npz: Path, tmp_path: Path) -> None:
    run = fge(config(tiny_npz, tmp_path / "run", epochs=2, start_epoch=0))
    assert "sharpness" not in json.loads((run / "report.json").read_text())
    assert not (run / "figures" / "sharpness.png").exists()


@pytest.mark.slow
def test_train_reports_it_for_other_methods(tiny_npz: Path, tmp_path: Path) -> None:
    shared = vars(config(tiny_npz, tmp_path / "run", epochs=4))
    options = {key: shared[key] for key in vars(TrainConfig()) if key in shared}
    run = train(
        TrainConfig(
            **{**options, "method": "sse", "sse_cycles": 2, "sharpness_every": 1, "average": 0.0}
        )
    )
    found = json.loads((run / "report.json").read_text())["sharpness"]
    measured = [(r["stage"], r["epoch"], r["snapshot"]) for r in found["measurements"]]
    assert measured == [("sse", 1, False), ("sse", 2, True), ("sse", 3, False), ("sse", 4, True)]
    # A snapshot ends its cycle: its rate is that of the cycle's last step, not of the next cycle.
    rates = [r["lr"] for r in found["measurements"]]
    assert max(rates[1], rates[3]) < min(rates[0], rates[2])
    assert (run / "figures" / "sharpness.png").exists()
