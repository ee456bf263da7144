"""The plan of a run beside its forecasts, and the sentence about its regime."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from fge.metrics import Regime
from fge.report.plans import next_step, plan_stages, plan_table, regime_sentence
from fge.tasks import Regression


def planned(network: int, first: int, epochs: int, forecast: float | None) -> dict[str, Any]:
    record = {"event": "plan", "stage": f"network-{network}", "network": network}
    record |= {"first_epoch": first, "epochs": epochs}
    return record if forecast is None else record | {"forecast": forecast}


def kept(alone: float, together: float, train: float) -> dict[str, Any]:
    figures = {"val_tempered_nll": alone, "ensemble_val_tempered_nll": together}
    return {"event": "snapshot", "stage": "auto", **figures, "train_nll": train}


RECORDS = [
    planned(1, 0, 10, None),
    {"event": "epoch", "epoch": 9},
    kept(0.5, 0.5, 0.4),
    planned(1, 10, 10, 0.45),
    kept(0.44, 0.44, 0.2),
    planned(2, 20, 20, 0.4),
    kept(0.43, 0.403, 0.19),
]


def test_each_stage_is_shown_beside_its_forecast() -> None:
    table = plan_table(plan_stages(RECORDS))
    assert table.title == "Plan"
    assert table.rows == [
        ["network-1", "1", "0 to 10", "-", "0.5000", "-", "0.5000", "0.4000"],
        ["network-1", "1", "10 to 20", "0.4500", "0.4400", "-0.0100", "0.4400", "0.2000"],
        ["network-2", "2", "20 to 40", "0.4000", "0.4030", "+0.0030", "0.4300", "0.1900"],
    ]
    assert all(len(row) == len(table.headings) for row in table.rows)
    assert table.note.endswith("On average a forecast missed by 0.0065.")


def test_a_plan_without_forecasts_says_nothing_of_them() -> None:
    stages = plan_stages(RECORDS[:3])
    assert stages == [
        {
            "stage": "network-1",
            "network": 1,
            "first_epoch": 0,
            "epochs": 10,
            "forecast": None,
            "measured": 0.5,
            "network_nll": 0.5,
            "train_nll": 0.4,
        }
    ]
    assert "missed by" not in plan_table(stages).note
    assert "validation rows, in nats per row, with" in plan_table(stages, "row").note


def test_the_plan_of_a_regression_has_its_own_words() -> None:
    loss = Regression.plan
    names = {"val_tempered_nll": loss.val, "ensemble_val_tempered_nll": loss.joint}
    names["train_nll"] = loss.train
    records = [{names.get(key, key): value for key, value in own.items()} for own in RECORDS]
    stages = plan_stages(records, loss)
    assert [stage["network_scaled_mse"] for stage in stages] == [0.5, 0.44, 0.43]
    assert [stage["train_scaled_mse"] for stage in stages] == [0.4, 0.2, 0.19]
    table = plan_table(stages, "row", loss)
    assert table.rows == plan_table(plan_stages(RECORDS)).rows
    assert table.headings[3:5] == ["forecast squared error", "measured squared error"]
    assert "in parts of the variance of the training targets, a mean" in table.note
    assert "NLL" not in table.note + " ".join(table.headings)
    said = regime_sentence(Regime(10, 20, 0.01, 0.02, 0.17, 10), "others", loss.word)
    assert "its validation squared error fell by 0.0100" in said
    assert "its training squared error is 0.17 of its validation squared error" in said


@pytest.mark.parametrize(
    ("records", "decided", "step"),
    [
        (RECORDS[:5], {"network": 1}, "continue"),
        (RECORDS[:5], {"network": 2}, "others"),
        (RECORDS, {"network": 3}, "others"),
        (RECORDS, None, "stop"),
    ],
)
def test_the_planner_is_asked_for_the_next_step(
    records: list[dict[str, Any]], decided: dict[str, Any] | None, step: str
) -> None:
    assert next_step(Mock(decide=lambda _: decided), records) == step


def test_a_network_that_gains_is_said_to() -> None:
    regime = Regime(20, 40, 0.0123, 0.0031, 0.61, None)
    assert regime_sentence(regime, "continue") == (
        "One network is still gaining from epochs: from epoch 20 to 40, its validation NLL fell by "
        "0.0123 ± 0.0031 (paired standard error; significant); its training NLL is 0.61 of its "
        "validation NLL, above 0.5. With more epochs, `train --method auto` would continue this "
        "network."
    )


def test_a_saturated_network_is_said_to_be() -> None:
    regime = Regime(77, 97, -0.001, 0.002, None, 87)
    assert regime_sentence(regime, "others") == (
        "One network is saturated since epoch 87: from epoch 77 to 97, less than a doubling, its "
        "validation NLL rose by 0.0010 ± 0.0020 (paired standard error; not significant). The log "
        "has no training NLL, so the validation NLL alone decides this. With more epochs, `train "
        "--method auto` would start fresh networks."
    )


def test_one_measurement_is_judged_by_the_training_nll_alone() -> None:
    text = regime_sentence(Regime(12, 12, 0.0, 0.0, 0.3, 12), "stop")
    assert text == (
        "One network is saturated since epoch 12: its training NLL is 0.30 of its validation NLL, "
        "not above 0.5. With more epochs, `train --method auto` would stop, because another "
        "network is forecast to gain too little."
    )
