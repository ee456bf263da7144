"""The planner: what it decides from the log of a run, and that it decides the same again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import SGD

from fge.errors import UserError
from fge.tasks import Regression
from fge.train import AutoPlanner, LinearTailLR

Record = dict[str, Any]


def planner(epochs: int = 100, **options: Any) -> AutoPlanner:
    return AutoPlanner(epochs, **{"final": 0.1, "average": 0.2, **options})


def snapshot(
    nll: float,
    train_nll: float,
    ensemble: float | None = None,
    *,
    error: float = 0.001,
    wrong: int = 100,
) -> Record:
    joint = nll if ensemble is None else ensemble
    return {
        "event": "snapshot",
        "val_tempered_nll": nll,
        "train_nll": train_nll,
        "ensemble_val_tempered_nll": joint,
        "val_change_error": error,
        "val_wrong": wrong,
    }


def play(plan: AutoPlanner, outcomes: list[Record]) -> list[Record]:
    """Return the log after so many stages, each with its outcome, and what is decided then."""
    log: list[Record] = []
    for outcome in outcomes:
        record = plan.decide(log)
        assert record is not None
        log += [record, {"event": "epoch"}, outcome]
    last = plan.decide(log)
    return [r for r in log if r["event"] == "plan"] + ([last] if last else [])


def spans(plans: list[Record]) -> list[tuple[int, int, int]]:
    """Return network, first epoch and epochs of each stage."""
    return [(p["network"], p["first_epoch"], p["epochs"]) for p in plans]


def test_it_starts_with_a_quarter_of_the_budget() -> None:
    assert spans(play(planner(), [])) == [(1, 0, 25)]
    assert spans(play(planner(3), [])) == [(1, 0, 1)]


def test_far_from_saturated_the_network_is_trained_to_the_end() -> None:
    plans = play(planner(), [snapshot(0.28, 0.22)])
    assert spans(plans) == [(1, 0, 25), (1, 25, 75)]
    # Two doublings: 0.36 (0.22 / 0.28 - 0.48), then 0.6 of it.
    gain = 0.36 * (0.22 / 0.28 - 0.48)
    assert plans[1]["forecast"] == pytest.approx(0.28 * (1 - gain * (1 + 0.6)), rel=1e-12)
    assert plans[1]["forecast_whole"] == plans[1]["forecast"]


def test_where_longer_training_may_gain_nothing_it_is_tried_once() -> None:
    plans = play(planner(), [snapshot(0.29, 0.1)])
    assert spans(plans) == [(1, 0, 25), (1, 25, 25)]
    assert plans[1]["forecast_whole"] == 0.29
    assert "forecast_others" not in plans[1]


def test_others_start_where_it_did_gain_nothing() -> None:
    plans = play(planner(), [snapshot(0.29, 0.1), snapshot(0.3, 0.006)])
    assert spans(plans) == [(1, 0, 25), (1, 25, 25), (2, 50, 25)]
    diversity = 0.155 - 0.14 * 0.006 / 0.3
    # The best average of the first network, and two others of 25 epochs.
    three = 0.29 * (1 - diversity * (1 - 3**-0.83))
    assert plans[2]["forecast_others"] == pytest.approx(three, rel=1e-12)
    assert plans[2]["forecast_whole"] == 0.3
    # After the next one, which is forecast on the line between the measured points.
    two = 0.29 * (1 - diversity * (1 - 2**-0.83))
    assert plans[2]["forecast"] == pytest.approx(two, rel=1e-12)


def test_few_validation_images_have_to_show_a_lot() -> None:
    sure = [snapshot(0.29, 0.1), snapshot(0.288, 0.006, error=0.002)]
    unsure = [snapshot(0.29, 0.1), snapshot(0.288, 0.006, error=0.03)]
    assert spans(play(planner(), sure))[2:] == [(2, 50, 25)]
    assert spans(play(planner(), unsure))[2:] == [(1, 50, 50)]


def test_fewer_than_30_wrong_predictions_decide_nothing() -> None:
    plans = play(planner(), [snapshot(0.29, 0.02, wrong=29)])
    assert spans(plans) == [(1, 0, 25), (1, 25, 75)]
    assert planner().describe(plans[1]).startswith("plan: train the network to epoch 100, 75 % of")
    schedule = planner().stage(plans[1]).schedule(SGD([torch.nn.Parameter(torch.zeros(1))], 0.2), 4)
    assert isinstance(schedule, LinearTailLR)
    assert [round(schedule.rate_at(4 * k), 3) for k in (0, 56, 60, 75)] == [0.2, 0.2, 0.164, 0.02]


def test_the_descent_to_the_end_of_the_budget_is_held_and_others_are_not() -> None:
    plan = planner(hold=0.4)
    first, whole = play(plan, [snapshot(0.28, 0.22)])
    assert "hold" not in first
    assert (whole["epochs"], whole["hold"]) == (75, 0.4)
    assert plan.describe(whole).startswith("plan: train the network to epoch 100, 40 % of it at")
    schedule = plan.stage(whole).schedule(SGD([torch.nn.Parameter(torch.zeros(1))], 0.2), 4)
    assert isinstance(schedule, LinearTailLR)
    assert [round(schedule.rate_at(4 * k), 3) for k in (0, 30, 75)] == [0.2, 0.2, 0.02]
    outcomes = [snapshot(0.29, 0.1), snapshot(0.3, 0.006)]  # twice as long, then another network
    assert all("hold" not in record for record in play(plan, outcomes))
    assert play(plan, [snapshot(0.29, 0.02, wrong=29)])[1]["hold"] == 0.75
    assert play(planner(hold=0.8), [snapshot(0.29, 0.02, wrong=29)])[1]["hold"] == 0.8
    assert play(plan, [snapshot(0.29, 0.15, wrong=29)])[1]["hold"] == 0.4  # it still gains


def test_beside_a_network_that_has_its_images_by_heart_others_start_at_once() -> None:
    outcomes = [snapshot(0.29, 0.05), snapshot(0.28, 0.06, 0.27), snapshot(0.28, 0.06, 0.26)]
    plans = play(planner(), outcomes)
    assert spans(plans) == [(1, 0, 25), (2, 25, 25), (3, 50, 25), (4, 75, 25)]
    assert [planner().stage(plan).average for plan in plans] == [0.2, 0.5, 0.5, 0.5]
    text = planner().describe(plans[1])
    assert text.startswith("plan: start network 2, for 25 epochs, averaged over its last 50 %; ")
    above = play(planner(), [snapshot(0.29, 0.06)])
    assert spans(above) == [(1, 0, 25), (1, 25, 25)]


def test_the_others_get_equal_epochs_and_the_budget_is_spent() -> None:
    outcomes = [
        snapshot(0.29, 0.1),
        snapshot(0.3, 0.006),
        snapshot(0.29, 0.02, 0.27),
        snapshot(0.29, 0.02, 0.26),
    ]
    plans = play(planner(), outcomes)
    assert spans(plans) == [(1, 0, 25), (1, 25, 25), (2, 50, 25), (3, 75, 25)]
    gained = (1 - 0.27 / 0.29) / (1 - 2**-0.83)
    diversity = (0.155 - 0.14 * 0.02 / 0.29 + gained) / 2
    assert plans[3]["diversity"] == pytest.approx(diversity, rel=1e-12)
    step = 2**-0.83 - 3**-0.83
    assert plans[3]["forecast"] == pytest.approx(0.27 - diversity * 0.29 * step, rel=1e-12)


def test_what_is_left_of_the_budget_goes_to_the_last_network() -> None:
    outcomes = [
        snapshot(0.29, 0.1),
        snapshot(0.3, 0.006),
        snapshot(0.29, 0.02, 0.27),
        snapshot(0.29, 0.02, 0.26),
    ]
    plans = play(planner(109), outcomes)
    assert spans(plans) == [(1, 0, 27), (1, 27, 27), (2, 54, 27), (3, 81, 28)]


def test_it_stops_early_where_another_network_gains_nothing() -> None:
    outcomes = [
        snapshot(0.02, 0.005),
        snapshot(0.021, 0.0002),
        snapshot(0.02, 0.0005, 0.02),
    ]
    plans = play(planner(), outcomes)
    assert spans(plans) == [(1, 0, 25), (1, 25, 25), (2, 50, 25)]


def test_a_measured_gain_is_half_of_the_next_forecast() -> None:
    plans = play(planner(400), [snapshot(0.25, 0.1375), snapshot(0.242, 0.125)])
    assert spans(plans)[:2] == [(1, 0, 100), (1, 100, 100)]
    by_ratio = 0.36 * (0.125 / 0.242 - 0.48)
    gain = (by_ratio + 0.6 * (1 - 0.242 / 0.25)) / 2
    assert plans[2]["forecast_whole"] == pytest.approx(0.242 * (1 - gain), rel=1e-12)


def test_a_log_that_does_not_follow_is_refused_in_one_line() -> None:
    plan, log = planner(), []
    for outcome in (snapshot(0.3, 0.1), snapshot(0.29, 0.05)):
        record = plan.decide(log)
        assert record is not None
        log += [record, outcome]
    assert plan.decide(log) is not None
    harmed = [log[:1] + log[2:], log[1:], log[:2] + log[3:], log[:3]]
    for key in ("val_tempered_nll", "train_nll", "val_change_error", "val_wrong"):
        rest = {name: value for name, value in log[1].items() if name != key}
        harmed.append([log[0], rest, *log[2:]])
    harmed.append([log[0], {**log[1], "val_wrong": -1}, *log[2:]])
    harmed.append([log[0], log[1], {**log[2], "network": 7}, log[3]])
    harmed.append([log[0], log[1], {**log[2], "first_epoch": 3}, log[3]])
    for records in harmed:
        with pytest.raises(UserError, match=r"^log\.jsonl is damaged: .*; restore"):
            plan.decide(records)
    with pytest.raises(UserError, match=r"^log\.jsonl is damaged: .*`val_change_error`"):
        plan.kept([{"event": "snapshot", "val_tempered_nll": 0.3}])


def test_numbers_are_planned_by_their_own_loss() -> None:
    """The same decisions from the same values, under the keys of a regression."""
    outcomes = [snapshot(0.5, 0.2), snapshot(0.48, 0.1), snapshot(0.47, 0.09, 0.45)]
    plans = play(planner(), outcomes)
    names = {
        "val_tempered_nll": "val_scaled_mse",
        "train_nll": "train_scaled_mse",
        "ensemble_val_tempered_nll": "ensemble_val_scaled_mse",
        "val_wrong": "val_examples",
    }
    numbers = planner(loss=Regression.plan)
    renamed = [{names.get(key, key): value for key, value in o.items()} for o in outcomes]
    own = play(numbers, renamed)
    assert [{"nll" if k == "scaled_mse" else k: v for k, v in p.items()} for p in own] == plans
    said = numbers.describe(own[1])
    assert "validation squared error 0.5000 is forecast to be " in said
    with pytest.raises(UserError, match=r"^log\.jsonl is damaged: .*`val_scaled_mse`"):
        numbers.kept([{"event": "snapshot", "val_change_error": 0.1, "val_tempered_nll": 0.3}])


def test_perfect_predictions_are_no_division_by_zero() -> None:
    plans = play(planner(), [snapshot(0.0, 0.0), snapshot(0.0, 0.0)])
    assert plans[0]["network"] == 1


def test_equal_logs_give_equal_decisions() -> None:
    outcomes = [snapshot(0.29, 0.1), snapshot(0.28, 0.02, 0.27)]
    assert play(planner(), outcomes) == play(planner(), outcomes)


def test_the_member_of_a_network_is_its_last_average_unless_one_before_is_better() -> None:
    outcomes = [snapshot(0.29, 0.1), snapshot(0.3, 0.006), snapshot(0.29, 0.02, 0.27)]
    plans = play(planner(), outcomes)
    assert planner().kept([*plans[:3], *outcomes]) == [0, 2]
    unsure = [snapshot(0.29, 0.1), snapshot(0.3, 0.006, error=0.006)]
    assert planner().kept([*plans[:2], *unsure]) == [1]
    better = [snapshot(0.29, 0.2), snapshot(0.26, 0.15)]
    assert planner().kept([*play(planner(), better[:1]), *better]) == [1]


def test_stages_continue_or_start_afresh_with_averaged_tails() -> None:
    plan = planner()
    record = {"event": "plan", "stage": "network-2", "network": 2, "first_epoch": 25, "epochs": 25}
    stage = plan.stage(record)
    assert (stage.first_epoch, stage.last_epoch, stage.fresh) == (25, 50, 1)
    assert (stage.average, stage.keep, stage.kind, stage.store) == (0.2, "end", "auto", "snapshots")
    schedule = stage.schedule(SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2), 4)
    assert isinstance(schedule, LinearTailLR)
    assert (schedule.steps, schedule.final) == (100, 0.1)
    longer = plan.stage({**record, "network": 1, "stage": "network-1-to-50"})
    assert longer.fresh is None


def test_what_is_decided_is_said_with_its_forecasts() -> None:
    plan = planner()
    plans = play(plan, [snapshot(0.29, 0.1), snapshot(0.3, 0.006)])
    assert plan.describe(plans[0]) == "plan: train the network to epoch 25"
    text = plan.describe(plans[2])
    assert text.startswith("plan: start network 2, for 25 epochs; validation NLL 0.3000 is")
    assert "0.3000 with one network" in text
    given = planner(given_weights=True).describe(plans[2])
    assert given.startswith("plan: start from the given weights again, for 25 epochs")


def test_a_budget_below_one_epoch_is_refused() -> None:
    with pytest.raises(UserError, match=r"^epochs must be >= 1, got 0"):
        planner(0)
