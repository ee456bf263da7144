"""``fge --refit``: curves through a run's snapshots, and the ensemble with points on them."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from curve_runs import (
    TRAIN_IMAGES,
    assert_same,
    done,
    flags,
    job,
    kill_server,
    killed_and_resumed,
    member_probabilities,
    methods,
    report,
    run,
)
from promised import promised

from fge.commands.refit import fit_plan
from fge.config import FGEConfig
from fge.curves import Curve
from fge.ensemble import SnapshotStore
from fge.errors import UserError
from fge.networks import build_model, flatten

PAIRS = ["0001--0002", "0002--0003"]


def refit_job(data: Path, out: Path, **more: Any) -> dict[str, Any]:
    """Three snapshots, after epochs 1, 3 and 5."""
    return job(data, out, **{"epochs": 5, "start_epoch": 0, "cycle_epochs": 2, **more})


@pytest.fixture(scope="module")
def refitted(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    out = tmp_path_factory.mktemp("refitted") / "run"
    more = {"refit": "polychain", "refit_points": 2, "refit_epochs": 2}
    return done("fge", refit_job(data, out, **more))


def test_the_ensemble_with_points_on_the_curves_has_its_cost(refitted: Path) -> None:
    found = methods(refitted)
    assert list(found) == [
        "last-snapshot 1",
        "best-snapshot 1",
        "fge 2",
        "fge 3",
        "swa 1",
        "fold 1",
        "fge+refit 4",
        "fge+refit 7",
    ]
    first = found["fge+refit 4"]
    assert first["member_names"][:2] == ["fge-0001", "fge-0002"]
    assert (first["train_epochs"], first["refresh_images"]) == (3 + 2, 2 * TRAIN_IMAGES)
    line = found["fge+refit 7"]
    assert (line["train_epochs"], line["forward_passes"]) == (5 + 2 * 2, 7)
    assert line["refresh_images"] == 4 * TRAIN_IMAGES
    assert (first["validation_images"], line["validation_images"]) == (2 * 10, 3 * 10)
    assert line["weight_bytes"] == 7 * found["last-snapshot 1"]["weight_bytes"]
    inner = [f"{pair}/curve/{t}" for pair in PAIRS for t in ("0.3333", "0.6667")]
    assert line["member_names"] == ["fge-0001", "fge-0002", "fge-0003", *inner]
    probs, targets = member_probabilities(refitted)
    mean = np.mean([probs[name] for name in line["member_names"]], axis=0)
    assert line["error"] == pytest.approx(100 * (mean.argmax(1) != targets).mean(), abs=1e-12)
    nll = -np.log(mean[np.arange(len(targets)), targets]).mean()
    assert line["nll"] == pytest.approx(nll, abs=1e-12)


def test_pairs_and_turns_are_those_of_the_snapshots(refitted: Path) -> None:
    content = report(refitted)
    model = build_model("convnet", in_channels=1, num_classes=3, image_size=(8, 8))
    points = [flatten(state, model).double() for state in SnapshotStore(refitted / "snapshots")]
    steps = [points[1] - points[0], points[2] - points[1]]
    assert [pair["name"] for pair in content["pairs"]] == PAIRS
    for pair, step in zip(content["pairs"], steps, strict=True):
        assert pair["distance"] == pytest.approx(float(step.norm()), rel=1e-6)
        assert pair["fit_epochs"] == 2
        assert set(pair["summaries"]) == {"segment", "curve"}
    cosine = float(steps[0] @ steps[1] / (steps[0].norm() * steps[1].norm()))
    assert content["turning_angles"] == [pytest.approx(math.degrees(math.acos(cosine)), abs=1e-4)]


def test_curves_connect_the_snapshots_bitwise(refitted: Path) -> None:
    store = SnapshotStore(refitted / "snapshots")
    for number, name in enumerate(PAIRS):
        curve = Curve.load(refitted / "curves" / name / "curve.safetensors")
        assert (curve.family.name, curve.family.num_points) == ("polychain", 3)
        for t, state in ((0.0, store[number]), (1.0, store[number + 1])):
            for key, value in curve.state_dict(t).items():
                assert torch.equal(value, state[key])


def test_the_report_shows_the_pairs(refitted: Path) -> None:
    page = (refitted / "report.md").read_text()
    assert "## Between consecutive snapshots" in page
    assert all(f"| {name} |" in page for name in PAIRS)
    assert "| fge+refit | 7 |" in page
    assert (refitted / "figures" / "refit.png").is_file()


def test_refitting_does_not_change_the_run_itself(
    refitted: Path, data: Path, tmp_path: Path
) -> None:
    plain = promised(done("fge", refit_job(data, tmp_path / "plain")))
    ours = promised(refitted)
    for name in plain:
        if not name.startswith(("report", "page", "config", "manifest", "predictions/test")):
            assert ours[name] == plain[name], name
    assert report(refitted)["methods"][:-2] == report(tmp_path / "plain")["methods"]


def test_two_snapshots_make_one_pair_and_no_turn(data: Path, tmp_path: Path) -> None:
    folder = done("fge", refit_job(data, tmp_path / "run", epochs=3, refit="bezier"))
    content = report(folder)
    assert [pair["name"] for pair in content["pairs"]] == PAIRS[:1]
    assert content["turning_angles"] == []
    curve = Curve.load(folder / "curves" / PAIRS[0] / "curve.safetensors")
    assert curve.family.name == "bezier"
    line = methods(folder)["fge+refit 3"]
    assert line["train_epochs"] == 3 + 1  # half a cycle
    assert line["member_names"][-1] == f"{PAIRS[0]}/curve/0.5000"


@pytest.mark.slow
def test_killed_anywhere_and_resumed_ends_as_if_uninterrupted(data: Path, tmp_path: Path) -> None:
    options = refit_job(data, tmp_path / "reference", epochs=3, refit="bezier", refit_epochs=2)
    finished = kill_server().run("fge", options)
    assert finished["code"] == 0
    calls = finished["calls"]
    for point in {calls, *random.Random(0).sample(range(calls // 2, calls), 3)}:
        folder = killed_and_resumed("fge", options, tmp_path / f"killed-{point}", point)
        assert_same(folder, tmp_path / "reference")


# ------------------------------------------------------------------------------------ what cannot


def test_one_snapshot_is_refused_before_anything_is_trained(data: Path, tmp_path: Path) -> None:
    result = run(flags("fge", refit_job(data, tmp_path / "run", epochs=2, refit="bezier")))
    assert result.code == 2
    assert result.message == (
        "--refit connects consecutive snapshots, but this run saves only one; use epochs >= 3, "
        "shorter cycles or an earlier --start-epoch"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("epochs", [6, 7, 9, 10, 11])
def test_so_many_epochs_as_the_message_names_are_enough(epochs: int) -> None:
    options: dict[str, Any] = {"start_epoch": 4, "cycle_epochs": 4, "refit": "bezier"}
    if epochs >= 10:
        FGEConfig(epochs=epochs, **options)
    else:
        with pytest.raises(UserError, match="use epochs >= 10"):
            FGEConfig(epochs=epochs, **options)


def test_without_refit_one_snapshot_is_fine() -> None:
    FGEConfig(epochs=2, start_epoch=0, cycle_epochs=2)


def test_snapshots_that_do_not_move_are_named(refitted: Path, data: Path, tmp_path: Path) -> None:
    still: dict[str, Any] = {
        "min_lr": 0.0,
        "max_lr": 1e-30,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "epochs": 3,
    }
    still["pretrained"] = refitted / "snapshots" / "0001.safetensors"  # no weight of it is 0
    result = run(flags("fge", refit_job(data, tmp_path / "run", refit="bezier", **still)))
    assert result.code == 2
    assert result.message == (
        "curve 0001--0002: start and end are the same weights; give two networks that differ"
    )
    assert len(SnapshotStore(tmp_path / "run" / "snapshots")) == 2


def test_fits_take_their_options_from_the_run() -> None:
    config = FGEConfig(refit="polychain", cycle_epochs=6, batch_size=64, seed=3, model="vgg16")
    plan = fit_plan(config)
    assert (plan.family, plan.epochs, plan.num_points) == ("polychain", 3, 3)
    assert (plan.batch_size, plan.lr, plan.eval_points) == (64, 0.015, 11)
    longer = fit_plan(FGEConfig(refit="bezier", refit_epochs=9))
    assert (longer.family, longer.epochs) == ("bezier", 9)
