"""From finished runs to a cell: the right lines of the right runs, their costs and their times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_tiny_npz

from fge.compare import Plan, PlannedCell, measure_cell, wall_seconds
from fge.compare.plan import Part
from fge.config import CompareConfig
from fge.data import Dataset, OODImages, load_dataset
from fge.ensemble import PredictionFile
from fge.errors import UserError
from fge.files import append_record, write_json

EPOCHS = 4
METHODS = (
    *("single", "average", "fge", "fge-paper", "swa", "sse", "auto"),
    *("curve-ensemble", "curve-ensemble-2B"),
)
RNG = np.random.default_rng(0)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return load_dataset(str(write_tiny_npz(tmp_path / "tiny.npz")), val_fraction=0.25)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    options: dict[str, Any] = {"start_epoch": 0, "cycle_epochs": 2, "sse_cycles": 2, "ood": ()}
    config = CompareConfig(methods=METHODS, epochs=EPOCHS, seeds=3, budgets=(1, 2), **options)
    return Plan(config, tmp_path / "runs")


def cell_of(plan: Plan, method: str, budget: int = 1) -> PlannedCell:
    places = ((c.method, c.budget, c.seed) for c in plan.cells)
    return plan.cells[list(places).index((method, budget, 0))]


def line(name: str, members: list[str], epochs: int) -> dict[str, Any]:
    size = len(members)
    counts = {"members": size, "forward_passes": size, "weight_bytes": 40 * size}
    images = {"refresh_images": 10 * size, "validation_images": 5 * size}
    return {"name": name, "member_names": members, "train_epochs": epochs, **counts, **images}


def finish(
    part: Part,
    plan: Plan,
    data: Dataset,
    *lines: dict[str, Any],
    **facts: Any,
) -> None:
    """Leave what a finished run leaves: its report and its members' predictions."""
    folder, config = plan.runs / part.job.name, part.job.config
    content = {"dataset": {"sha256": data.fingerprint}, "model": config.model, "methods": lines}
    content["config"] = {"method": getattr(config, "method", None)}
    write_json(folder / "report.json", content | facts)
    file = PredictionFile(folder / "predictions" / "test.npz", data.test.labels)
    for name in dict.fromkeys(name for one in lines for name in one["member_names"]):
        probs = RNG.dirichlet(np.ones(3), len(data.test))
        file.add(name, "0", torch.from_numpy(probs.astype(np.float32)))


def measure(planned: PlannedCell, plan: Plan, dataset: Dataset) -> Any:
    return measure_cell(planned, plan.runs.parent, dataset, budget_epochs=EPOCHS)


def wrong(plan: Plan, dataset: Dataset, *members: tuple[Part, str]) -> np.ndarray:
    """Return which images the mean of stored predictions is wrong on."""
    labels, probs = dataset.test.labels, []
    for part, name in members:
        file = plan.runs / part.job.name / "predictions" / "test.npz"
        probs.append(PredictionFile(file, labels).probabilities(name).double().numpy())
    found: np.ndarray = np.mean(probs, axis=0).argmax(axis=1) != labels.numpy()
    return found


def test_the_line_is_the_longest_within_the_budget(plan: Plan, dataset: Dataset) -> None:
    planned = cell_of(plan, "fge")
    names = ["fge-0001", "fge-0002", "fge-0003"]
    lines = [line("fge", names[:size], 2 * size) for size in (1, 2, 3)]
    finish(planned.parts[0], plan, dataset, line("fold", ["fold-0001"], EPOCHS), *lines)
    cell = measure(planned, plan, dataset)
    assert (cell.cost.train_epochs, cell.cost.members) == (4, 2)
    members = [(planned.parts[0], name) for name in names[:2]]
    assert np.array_equal(cell.wrong, wrong(plan, dataset, *members))
    assert cell.parts == ("fge-avg-e4-s0",)


def test_the_paper_s_line_is_called_fge_in_its_run(plan: Plan, dataset: Dataset) -> None:
    planned = cell_of(plan, "fge-paper")
    names = ["fge-0001", "fge-0002"]
    lines = [line("single", ["single-0001"], EPOCHS), line("fge", names, 3), line("swa", ["s"], 3)]
    finish(planned.parts[0], plan, dataset, *lines)
    cell = measure(planned, plan, dataset)
    assert (cell.method, cell.parts) == ("fge-paper", ("fge-e4-s0",))
    assert (cell.cost.train_epochs, cell.cost.members) == (3, 2)
    members = [(planned.parts[0], name) for name in names]
    assert np.array_equal(cell.wrong, wrong(plan, dataset, *members))
    single = measure(cell_of(plan, "single"), plan, dataset)
    assert (single.parts, single.cost.members) == (("single-e4-s0",), 1)


@pytest.mark.parametrize(("budget", "epochs", "members"), [(1, 3, 2), (2, 8, 3)])
def test_auto_costs_what_its_report_says(
    budget: int, epochs: int, members: int, plan: Plan, dataset: Dataset
) -> None:
    """It may end early; at two budgets it has both of them to plan, in one run."""
    planned = cell_of(plan, "auto", budget)
    (part,) = planned.parts
    names = [f"auto-000{k + 1}" for k in range(members)]
    lines = [
        line("auto", names[:size], epochs - (members - size)) for size in range(2, members + 1)
    ]
    finish(part, plan, dataset, *lines)
    cost = measure(planned, plan, dataset).cost
    assert (cost.train_epochs, cost.members) == (epochs, members)
    assert cost.train_epochs <= budget * EPOCHS


def test_what_is_beyond_the_budget_in_every_line_is_measured_as_it_is(
    plan: Plan, dataset: Dataset
) -> None:
    planned = cell_of(plan, "fge")
    finish(planned.parts[0], plan, dataset, line("fge", ["fge-0001"], 5))
    assert measure(planned, plan, dataset).cost.train_epochs == 5


def test_pooled_runs_add_up(plan: Plan, dataset: Dataset) -> None:
    planned = cell_of(plan, "sse", 2)
    for part in planned.parts:
        finish(part, plan, dataset, line("sse", ["sse-0001", "sse-0002"], EPOCHS))
    cell = measure(planned, plan, dataset)
    cost = cell.cost
    assert (cost.train_epochs, cost.images) == (8, 8 * len(dataset.train))
    assert (cost.members, cost.forward_passes, cost.weight_bytes) == (4, 4, 160)
    assert cost.refresh_images == 40
    members = [(part, f"sse-000{n}") for part in planned.parts for n in (1, 2)]
    assert np.array_equal(cell.wrong, wrong(plan, dataset, *members))
    assert (cell.parts, cell.pooled) == (("sse-e4-s0", "sse-e4-s1"), 2)


def test_networks_that_a_curve_was_given_count_as_trained(plan: Plan, dataset: Dataset) -> None:
    planned = cell_of(plan, "curve-ensemble-2B")
    finish(planned.parts[0], plan, dataset, line("curve", ["a", "b", "c"], 2))
    assert measure(planned, plan, dataset).cost.train_epochs == 2 * EPOCHS + 2


def test_with_views_passes_and_predictions_are_those_of_the_views(
    tmp_path: Path, dataset: Dataset
) -> None:
    options: dict[str, Any] = {"start_epoch": 0, "cycle_epochs": 2, "tta": 3, "ood": ()}
    methods = ("fge", "fge+tta")
    config = CompareConfig(methods=methods, epochs=EPOCHS, seeds=2, **options)
    plan = Plan(config, tmp_path / "runs")
    one, other = (cell_of(plan, method) for method in methods)
    names = ["fge-0001", "fge-0002"]
    lines = [line("fge", names, 4), line("fge+tta", names, 4) | {"forward_passes": 6}]
    finish(one.parts[0], plan, dataset, *lines)
    folder = plan.runs / one.parts[0].job.name / "predictions"
    file = PredictionFile(folder / "test-tta.npz", dataset.test.labels)
    for name in names:
        file.add(name, "0", torch.from_numpy(RNG.dirichlet(np.ones(3), len(dataset.test))))
    # Of OOD images there are no views, and no figures either.
    noisy = replace(dataset, ood={"noise": OODImages(dataset.test, "0")})
    noise = PredictionFile(folder / "ood-noise.npz", dataset.test.labels)
    for name in names:
        noise.add(name, "0", torch.from_numpy(RNG.dirichlet(np.ones(3), len(dataset.test))))
    plain, viewed = (measure(planned, plan, noisy) for planned in (one, other))
    assert (plain.cost.members, plain.cost.forward_passes) == (2, 2)
    assert (viewed.cost.members, viewed.cost.forward_passes) == (2, 6)
    assert replace(viewed.cost, forward_passes=2) == plain.cost
    mean = file.mean(names).numpy()
    assert np.array_equal(viewed.wrong, mean.argmax(axis=1) != dataset.test.labels.numpy())
    assert not np.array_equal(viewed.wrong, plain.wrong)
    assert "ood_noise_entropy" in plain.figures
    assert not any(name.startswith("ood") for name in viewed.figures)
    assert (viewed.method, viewed.parts) == ("fge+tta", plain.parts)
    timed(plan, other, "start", "fge", "single")
    assert seconds(plan, other, records(other.parts[0].job.name, False)) == 3


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"dataset": {"sha256": "other"}}, "sse-e4-s0 has other data than tiny; give another"),
        ({"model": "vgg16"}, "sse-e4-s0 has the model vgg16, not convnet; give another --out"),
        ({"config": {"method": "ema"}}, "sse-e4-s0 has the method ema, not sse; remove it"),
    ],
)
def test_a_run_of_something_else_is_refused(
    facts: dict[str, Any], message: str, plan: Plan, dataset: Dataset
) -> None:
    planned = cell_of(plan, "sse")
    finish(planned.parts[0], plan, dataset, line("sse", ["sse-0001"], EPOCHS), **facts)
    with pytest.raises(UserError, match=message):
        measure(planned, plan, dataset)


def timed(plan: Plan, planned: PlannedCell, *stages: str) -> None:
    """Leave the times of epochs: 1, 2, 4, ... seconds in the stages given."""
    for part in planned.parts:
        folder = plan.runs / part.job.name
        folder.mkdir(parents=True, exist_ok=True)
        for number, stage in enumerate(stages):
            record = {"event": "epoch", "stage": stage, "seconds": 2.0**number}
            append_record(folder / "timing.jsonl", record)


def records(name: str, *overlapped: bool, begun: int | None = None) -> list[dict[str, Any]]:
    """The records of a job that was begun so often and ended once per flag."""
    count = len(overlapped) if begun is None else begun
    ends = [{"event": "job", "job": name, "seconds": 9.0, "overlapped": one} for one in overlapped]
    return [{"event": "job begun", "job": name}] * count + ends


def seconds(plan: Plan, planned: PlannedCell, jobs: list[dict[str, Any]]) -> float | None:
    return wall_seconds(planned, plan.runs, jobs)


@pytest.mark.parametrize(
    ("method", "expected"), [("single", 9), ("fge", 3), ("fge-paper", 3), ("swa", 3), ("sse", 15)]
)
def test_the_seconds_are_those_of_the_stages_that_the_line_needs(
    method: str, expected: int, plan: Plan
) -> None:
    planned = cell_of(plan, method)
    stages = ["sse"] * 4 if method == "sse" else ["start", "fge", "refit", "single"]
    timed(plan, planned, *stages)
    assert seconds(plan, planned, records(planned.parts[0].job.name, False)) == expected


def test_the_seconds_of_pooled_runs_add_up_where_all_are_known(plan: Plan) -> None:
    planned = cell_of(plan, "sse", 2)
    timed(plan, planned, "sse", "sse")
    names = [part.job.name for part in planned.parts]
    known = [record for name in names for record in records(name, False)]
    assert seconds(plan, planned, known) == 6
    assert seconds(plan, planned, records(names[0], False)) is None


@pytest.mark.parametrize(
    ("overlapped", "begun", "known"),
    [
        ((False,), 1, True),
        ((False, False), 2, True),  # gone on with for a line that was added
        ((False,), 0, True),  # before beginnings were recorded
        ((True,), 1, False),
        ((False, True), 2, False),
        ((False,), 2, False),  # an attempt was cut off: what ran beside it is not known
        ((), 1, False),
        ((), 0, False),
    ],
)
def test_nothing_is_said_of_times_that_are_not_known(
    overlapped: tuple[bool, ...], begun: int, known: bool, plan: Plan
) -> None:
    planned = cell_of(plan, "sse")
    timed(plan, planned, "sse", "sse")
    found = seconds(plan, planned, records("sse-e4-s0", *overlapped, begun=begun))
    assert found == (3 if known else None)


def test_nothing_is_said_of_runs_that_are_gone(plan: Plan) -> None:
    assert seconds(plan, cell_of(plan, "sse"), records("sse-e4-s0", False)) is None


@pytest.mark.parametrize("method", ["curve-ensemble", "curve-ensemble-2B"])
def test_nothing_is_said_of_fits(method: str, plan: Plan) -> None:
    planned = cell_of(plan, method)
    timed(plan, planned, "curve")
    assert seconds(plan, planned, records(planned.parts[0].job.name, False)) is None
