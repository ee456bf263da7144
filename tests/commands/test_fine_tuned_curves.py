"""The two-network baseline of fine-tuning: curves between networks from the same given weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import PLAIN
from curve_runs import assert_same, curve_job, done, flags, job, report
from curve_runs import run as run_line
from given_weights import FROZEN, frozen_names, given, write_given
from interrupting import interrupted
from promised import promised
from safetensors.torch import load_file, save_file
from torch import Tensor

from fge.commands.build import Setup
from fge.commands.curves import curve_ensemble
from fge.commands.train import fge, train
from fge.compare import Plan
from fge.config import (
    CompareConfig,
    CurveEnsembleConfig,
    FGEConfig,
    SharpnessConfig,
    TrainConfig,
    options_of_run,
)
from fge.curves import Curve
from fge.data import load_dataset

ADAMW: dict[str, Any] = {"optimizer": "adamw", "lr": 1e-3, "backbone_lr": 3e-4}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_given(tmp_path_factory.mktemp("weights") / "seven.pt")


def tuned_job(data: Path, weights: Path, out: Path, **more: Any) -> dict[str, Any]:
    """Return options of a short curve ensemble from the given weights, in part frozen."""
    usual = {"pretrained": str(weights), "freeze": FROZEN, "ensemble_points": 3}
    return curve_job(data, out, **{**usual, **more})


@pytest.fixture(scope="module")
def standing(data: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose networks stay where they started; the fit moves the bend."""
    out = tmp_path_factory.mktemp("standing") / "run"
    more = {"lr": 1e-30, "momentum": 0.0, "weight_decay": 0.0, "epochs": 1, "num_points": 4}
    return done("curve-ensemble", tuned_job(data, weights, out, **more))


def networks(run: Path) -> list[dict[str, Tensor]]:
    files = sorted((run / "networks").glob("*/network/0001.safetensors"))
    assert len(files) == 2
    return [load_file(file) for file in files]


def test_both_networks_start_from_the_given_weights_with_heads_of_their_own(
    standing: Path, weights: Path
) -> None:
    first, second = networks(standing)
    before = given(weights)
    learned = [n for n in before if "running" not in n and "num_batches" not in n]
    *body, weight, bias = learned
    for name in body:
        for network in (first, second):
            assert torch.allclose(network[name], before[name], rtol=0, atol=1e-25), name
    for name in (weight, bias):
        assert first[name].shape == (3, *before[name].shape[1:])
        assert not torch.equal(first[name], second[name])


def test_frozen_tensors_are_bitwise_the_given_ones_along_the_whole_curve(
    standing: Path, weights: Path
) -> None:
    before, kept = given(weights), frozen_names(given(weights))
    assert any("running_mean" in name for name in kept)
    for network in networks(standing):
        assert [name for name in kept if not torch.equal(network[name], before[name])] == []
    (file,) = standing.glob("curves/*/curve.safetensors")
    curve = Curve.load(file)
    for k in range(31):
        state = {**curve.buffers_at(k / 30), **curve.parameters(k / 30)}
        assert [name for name in kept if not torch.equal(state[name], before[name])] == []
    assert curve.layout is not None
    points = [curve.layout.split(point) for point in curve.points]
    for name in set(points[0]) & set(kept):
        assert all(torch.equal(point[name], before[name]) for point in points), name
    moved = [n for n in set(points[0]) - set(kept) if not torch.equal(points[0][n], points[1][n])]
    assert len(moved) > 2


def test_the_report_says_that_the_cost_of_the_given_weights_is_unknown(standing: Path) -> None:
    content = report(standing)
    assert "(--pretrained): the epochs of their training are unknown" in content["cost_note"]
    assert content["cost_note"] in content["verdict"]
    epochs = {line["name"]: line["train_epochs"] for line in content["methods"]}
    assert (epochs["network-1"], epochs["ends"], epochs["curve"]) == (1, 2, 3)
    assert content["config"]["pretrained"].endswith("seven.pt")


def test_a_study_of_the_run_freezes_what_the_run_froze(standing: Path, data: Path) -> None:
    """So it leaves their statistics, as the run did."""
    study = options_of_run(SharpnessConfig, standing)
    model = Setup.of(study, load_dataset(str(data))).new_model()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == set(frozen_names(dict(model.named_parameters())))


def test_a_network_from_a_file_has_the_frozen_part_of_the_other_one(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    other = {**given(weights)}
    *_, weight, bias = (n for n in other if "running" not in n and "num_batches" not in n)
    other |= {weight: other[weight][:3].clone(), bias: other[bias][:3].clone()}
    name = frozen_names(other)[0]
    files = [tmp_path / f"{n}.safetensors" for n in ("one", "two")]
    save_file(other, files[0])
    save_file({**other, name: other[name] + 1}, files[1])
    message = (
        f"{files[1]}: the frozen {name!r} is not that of the other network of the curve; leave out "
        "--freeze, or freeze what both have in common"
    )
    one = tuned_job(data, weights, tmp_path / "run", second_weights=files[1])
    two = curve_job(data, tmp_path / "run", freeze=FROZEN, first_weights=files[0])
    for options in (one, {**two, "second_weights": files[1]}):
        result = run_line(flags("curve-ensemble", options))
        assert (result.code, result.message) == (2, message)
        assert not (tmp_path / "run").exists()


def test_bad_options_end_with_one_line(data: Path, weights: Path, tmp_path: Path) -> None:
    for option, message in (
        ({"second": "G"}, f"--pretrained {weights} is for the recipes average and endpoint, got G"),
        ({"freeze": "layer9"}, "freeze 'layer9' matches none of the"),
        ({"pretrained": "library"}, "--pretrained library needs --model timm:NAME or torchvision:"),
        ({"pretrained": "none.pt"}, "no weights file none.pt"),
    ):
        result = run_line(
            flags("curve-ensemble", tuned_job(data, weights, tmp_path / "run", **option))
        )
        assert result.code == 2
        assert result.message.startswith(message)
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_without_given_weights_both_networks_have_one_frozen_part(
    data: Path, tmp_path: Path
) -> None:
    """That of the first one's initial weights: the other network has another seed."""
    run = done("curve-ensemble", curve_job(data, tmp_path / "run", freeze=FROZEN, epochs=1))
    first, second = networks(run)
    kept = frozen_names(first)
    assert [name for name in kept if not torch.equal(first[name], second[name])] == []
    assert sum(torch.equal(first[name], second[name]) for name in first) < len(first)
    assert "cost_note" not in report(run)


@pytest.mark.slow
def test_fine_tuned_curves_resume_bitwise(data: Path, weights: Path, tmp_path: Path) -> None:
    def config(name: str, **more: Any) -> CurveEnsembleConfig:
        options = {**PLAIN, "epochs": 2, "eval_points": 4, "ensemble_points": 3, **ADAMW, **more}
        return CurveEnsembleConfig(
            data=str(data), out=tmp_path / name, pretrained=weights, freeze=FROZEN, **options
        )

    whole = curve_ensemble(config("whole"))
    with interrupted(3):  # in the second network
        curve_ensemble(config("cut"))
    assert_same(curve_ensemble(config("cut", resume=True)), whole)


@pytest.mark.slow
def test_a_fine_tuned_run_trains_its_own_baseline_from_the_same_weights(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"pretrained": str(weights), "freeze": FROZEN, **ADAMW}
    line = job(data, tmp_path / "run", epochs=4, cycle_epochs=2, baseline="auto", **options)
    run = done("fge", line)
    apart = tuned_job(data, weights, tmp_path / "apart", **ADAMW, epochs=1, curve_epochs=2)
    apart |= {"eval_points": 5, "ensemble_points": 5}
    ours, theirs = (promised(run / "baseline"), promised(done("curve-ensemble", apart)))
    assert sorted(ours) == sorted(theirs)
    assert {n for n in ours if ours[n] != theirs[n]} <= {"report.html", "manifest.json"}
    before, kept = given(weights), frozen_names(given(weights))
    files = [*run.rglob("*.safetensors")]
    assert len(files) > 5
    for file in files:
        state = load_file(file)
        assert all(bool((state[n] == before[n]).all()) for n in kept if n in state), file
    # Interrupted in the baseline, where the run itself has written six checkpoints or fewer.
    cut = FGEConfig(
        data=str(data), out=tmp_path / "cut", epochs=4, cycle_epochs=2, baseline="auto", **PLAIN,
        pretrained=weights, freeze=FROZEN, **ADAMW,
    )  # fmt: skip
    with interrupted(5):
        fge(cut)
    assert (tmp_path / "cut" / "baseline" / "config.json").exists()
    assert run_line(["fge", "--out", str(cut.out), "--resume"]).code == 0
    assert_same(tmp_path / "cut", run)


@pytest.mark.slow
def test_a_comparison_connects_fine_tuned_single_networks(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {**PLAIN, **ADAMW, "mixup": 0.2, "epochs": 2, "seeds": 2, "ood": ()}
    config = CompareConfig(
        data=str(data),
        methods=("curve-ensemble-2B",),
        pretrained=weights,
        freeze=FROZEN,
        **options,
    )
    plan = Plan(config, tmp_path)
    cell = next(c for c in plan.cells if c.method == "curve-ensemble-2B")
    for made in (*cell.parts[0].job.needs, cell.parts[0].job):
        settled = replace(made.config, out=tmp_path / made.name)
        run = (
            curve_ensemble(settled)
            if isinstance(settled, CurveEnsembleConfig)
            else train(cast("TrainConfig", settled))
        )
    before, kept = given(weights), frozen_names(given(weights))
    (file,) = run.rglob("curve.safetensors")
    state = load_file(file)
    assert set(kept) <= set(state)
    assert all(bool((state[name] == before[name]).all()) for name in kept)
    assert len(state["0.weight"]) == 3
