"""The commands curve-ensemble and connect, from their arguments to the folders they leave."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_TEST, TINY_TRAIN, tiny_arrays, write_tiny_npz
from curve_runs import (
    TRAIN_IMAGES,
    assert_same,
    curve_job,
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
from safetensors.torch import load_file, save_file
from torch import nn

import fge.curves.evaluate
from fge.commands import cli
from fge.commands.build import Setup
from fge.commands.endpoints import Network
from fge.commands.loading import load_data
from fge.config import ConnectConfig, CurveEnsembleConfig, read_config
from fge.curves import BASELINES, Curve
from fge.data import load_dataset
from fge.files import read_records
from fge.networks import build_model, refresh_batch_norm

PAIR = "average-1--average-2"
Files = tuple[Path, ...]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A finished run: two networks of 2 epochs, a fit of 1, members at 0, 1/4, ..., 1."""
    out = tmp_path_factory.mktemp("ended") / "run"
    return done("curve-ensemble", curve_job(data, out))


@pytest.fixture(scope="module")
def weights(ended: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Three networks that differ, in the three kinds of file."""
    folder = tmp_path_factory.mktemp("weights")
    first, second = (network(ended, name) for name in ("average-1", "average-2"))
    state = load_file(second)
    torch.save(state, folder / "b.pt")
    third = {name: (t * 0.9 if t.is_floating_point() else t) for name, t in state.items()}
    torch.save({"state_dict": third}, folder / "c.pt")
    shutil.copy(first, folder / "a.safetensors")
    return folder / "a.safetensors", folder / "b.pt", folder / "c.pt"


def network(folder: Path, name: str) -> Path:
    return folder / "networks" / name / "network" / "0001.safetensors"


def connect_job(data: Path, out: Path, files: Files, **more: Any) -> dict[str, Any]:
    return {**curve_job(data, out, epochs=1, weights=[str(file) for file in files]), **more}


# -------------------------------------------------------------------------------- curve-ensemble


def test_each_line_of_the_report_has_its_cost(ended: Path) -> None:
    found = [
        (m["name"], m["members"], m["train_epochs"], m["forward_passes"], m["refresh_images"])
        for m in methods(ended).values()
    ]
    assert found == [
        ("network-1", 1, 2, 1, TRAIN_IMAGES),  # of the mean of its tail
        ("network-2", 1, 2, 1, TRAIN_IMAGES),
        ("ends", 2, 4, 2, 2 * TRAIN_IMAGES),
        ("ends+segment-middle", 3, 4, 3, (2 + 3) * TRAIN_IMAGES),
        ("segment", 5, 4, 5, (2 + 5) * TRAIN_IMAGES),
        ("ends+curve-middle", 3, 5, 3, (2 + 3) * TRAIN_IMAGES),
        ("curve", 5, 5, 5, (2 + 5) * TRAIN_IMAGES),
    ]
    validated = {m["name"]: m["validation_images"] for m in methods(ended).values()}
    assert validated.pop("network-1") == validated.pop("network-2") == TINY_TRAIN - TRAIN_IMAGES
    assert set(validated.values()) == {2 * (TINY_TRAIN - TRAIN_IMAGES)}
    size = sum(
        t.numel() * t.element_size() for t in load_file(network(ended, "average-1")).values()
    )
    assert all(m["weight_bytes"] == size * m["members"] for m in methods(ended).values())


def test_errors_by_class_and_the_matrix_of_the_curve_are_shown(ended: Path) -> None:
    with np.load(ended / "predictions" / "test.npz") as stored:
        names, true = stored["members"].tolist(), stored["targets"]
        found = stored["probabilities"]
    classes = {line["name"]: line for line in report(ended)["classes"]["methods"]}
    for name, line in ((m["name"], m) for m in methods(ended).values()):
        own = [found[names.index(member)] for member in line["member_names"]]
        said = np.mean(own, axis=0, dtype=float).argmax(axis=1)
        wrong = [100 * np.mean(said[true == c] != c) for c in range(3)]
        assert classes[name]["errors"] == pytest.approx(wrong)
        assert line["balanced_error"] == pytest.approx(np.mean(wrong))
    text = (ended / "report.md").read_text()
    assert "## Errors by class" in text
    assert "Test images of `curve`, 5 members: rows are true classes" in text
    assert "| balanced |" not in text, "the classes are of equal size"


def test_its_networks_are_those_of_the_method_average(
    ended: Path, data: Path, tmp_path: Path
) -> None:
    options = job(data, tmp_path / "alone", epochs=2, method="average")
    alone = load_file(done("train", options) / "snapshots" / "0001.safetensors")
    first = load_file(network(ended, "average-1"))
    assert sorted(first) == sorted(alone)
    assert all(torch.equal(first[name], alone[name]) for name in alone)
    config = report(ended)["config"]
    assert (config["first"], config["second"]) == ("average", "average")


def test_conventional_networks_keep_the_statistics_of_their_training(
    data: Path, tmp_path: Path
) -> None:
    old = {"first": "endpoint", "second": "G", "epochs": 1, "eval_points": 2}
    folder = done("curve-ensemble", curve_job(data, tmp_path / "run", **old))
    costs = {key: method["refresh_images"] for key, method in methods(folder).items()}
    assert [costs[key] for key in ("network-1 1", "ends 2", "curve 5")] == [0, 0, 5 * TRAIN_IMAGES]
    assert sorted(p.name for p in (folder / "networks").iterdir()) == ["G-2", "endpoint-1"]


@pytest.mark.slow
def test_a_run_begun_before_averages_ends_with_the_recipes_that_it_had(
    data: Path, tmp_path: Path
) -> None:
    options = curve_job(data, tmp_path / "new", first="G", second="G", epochs=1, eval_points=2)
    reference = done("curve-ensemble", options)
    content = json.loads((reference / "config.json").read_text())
    for name in ("first", "second"):
        del content["options"][name]
    (tmp_path / "old").mkdir()
    old = tmp_path / "old" / "config.json"
    old.write_text(json.dumps({**content, "schema_version": 1}))
    assert run(["curve-ensemble", "--out", str(old.parent), "--resume"]).code == 0
    assert_same(old.parent, reference)


def test_images_passed_forward_to_measure_the_paths_are_counted(ended: Path) -> None:
    content = report(ended)
    (pair,) = content["pairs"]
    # t at 0, 1/4, 1/3, 1/2, 2/3, 3/4 and 1 of two paths: statistics, training and test images.
    assert pair["probe_images"] == 2 * 7 * (TRAIN_IMAGES + TRAIN_IMAGES + TINY_TEST)
    # Of each of the baselines both ends are measured, on test images.
    baselines = len(BASELINES) * 2 * (TRAIN_IMAGES + TINY_TEST)
    assert content["probe_images"] == pair["probe_images"] + baselines


def test_the_lines_are_those_of_the_stored_predictions(ended: Path) -> None:
    probs, targets = member_probabilities(ended)
    rows = np.arange(len(targets))
    for method in methods(ended).values():
        mean = np.mean([probs[name] for name in method["member_names"]], axis=0)
        onehot = np.eye(mean.shape[1])[targets]
        nll = -np.log(mean[rows, targets]).mean()
        assert method["error"] == pytest.approx(100 * (mean.argmax(1) != targets).mean(), abs=1e-12)
        assert method["nll"] == pytest.approx(nll, abs=1e-12)
        assert method["brier"] == pytest.approx(((mean - onehot) ** 2).sum(1).mean(), abs=1e-12)


def test_the_members_are_where_their_names_say(ended: Path) -> None:
    names = {key: method["member_names"] for key, method in methods(ended).items()}
    assert names["ends 2"] == ["average-1", "average-2"]
    inner = ["0.2500", "0.5000", "0.7500"]
    for path in ("segment", "curve"):
        ends = [f"{PAIR}/curve/{t}" for t in ("0.0000", "1.0000")]
        between = [f"{PAIR}/{path}/{t}" for t in inner]
        assert names[f"{path} 5"] == [ends[0], *between, ends[1]]
        assert names[f"ends+{path}-middle 3"] == [ends[0], between[1], ends[1]]


def test_the_curve_ends_bitwise_in_the_networks(ended: Path) -> None:
    curve = Curve.load(ended / "curves" / PAIR / "curve.safetensors")
    for t, name in ((0.0, "average-1"), (1.0, "average-2")):
        state = load_file(network(ended, name))
        for key, value in curve.state_dict(t).items():
            assert torch.equal(value, state[key]), key
    middle = (curve.at(0.0) + curve.at(1.0)) / 2
    assert not torch.equal(curve.points[1], middle)


def test_the_middle_of_the_segment_is_the_mean_network_with_its_own_statistics(
    ended: Path, data: Path
) -> None:
    first, second = (load_file(network(ended, name)) for name in ("average-1", "average-2"))
    model = build_model("convnet", in_channels=1, num_classes=3, image_size=(8, 8))
    mean = {k: (first[k] + second[k]) / 2 if v.is_floating_point() else v for k, v in first.items()}
    model.load_state_dict(mean)
    splits = load_dataset(str(data))

    def inputs(images: torch.Tensor) -> torch.Tensor:
        return (images - splits.mean[0]) / splits.std[0]

    config = read_config(ended / "config.json", "curve-ensemble", CurveEnsembleConfig)[0]
    setup = Setup.of(config, load_data(config))
    refresh_batch_norm(model, setup.refresh_batches(setup.dataset.train), num_images=None)
    model.eval()
    with torch.no_grad():
        probs = model(inputs(splits.test.images)).double().softmax(1).numpy()
    stored, _ = member_probabilities(ended)
    # float32 arithmetic, and batches of another size in the run.
    np.testing.assert_allclose(stored[f"{PAIR}/segment/0.5000"], probs, atol=1e-5)


def test_a_second_run_is_the_same_run(ended: Path, tmp_path: Path) -> None:
    argv = ["curve-ensemble", "--config", str(ended / "config.json"), "--out", "again"]
    assert run(argv).code == 0
    assert_same(tmp_path / "again", ended)


def test_resuming_a_finished_run_trains_and_measures_nothing(
    ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("work was done again")

    shutil.copytree(ended, tmp_path / "run")
    monkeypatch.setattr(torch.Tensor, "backward", fail)
    monkeypatch.setattr(fge.curves.evaluate, "refresh_batch_norm", fail)
    result = run(["curve-ensemble", "--out", "run", "--resume"])
    assert (result.code, result.err) == (0, "")
    assert_same(tmp_path / "run", ended)


@pytest.mark.slow
def test_all_strategies_share_one_first_network_and_one_table(data: Path, tmp_path: Path) -> None:
    small = {"epochs": 1, "eval_points": 2, "ensemble_points": 2, "strategies": "all"}
    folder = done("curve-ensemble", curve_job(data, tmp_path / "all", **small))
    pairs = [f"G-1--{name}-2" for name in "GABCDEF"]
    assert sorted(p.name for p in (folder / "networks").iterdir()) == sorted(
        ["G-1", *(f"{name}-2" for name in "GABCDEF")]
    )
    log = (folder / "networks" / "G-1" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in log] == ["snapshot", "epoch"]
    assert [pair["name"] for pair in report(folder)["pairs"]] == pairs
    assert len(methods(folder)) == 7 * 7
    page = (folder / "report.md").read_text()
    table, following, *_ = page[page.index("## Training strategies") :].split("\n## ")
    assert following.startswith("Errors by class")
    rows = [line for line in table.splitlines() if line.startswith("| G-1--")]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == pairs
    networks = {name: load_file(network(folder, f"{name}-2")) for name in "GBDEF"}
    for name in "BDEF":  # A and C are G where there is one batch and one epoch
        same = [torch.equal(networks["G"][k], v) for k, v in networks[name].items()]
        assert not all(same), name


def test_networks_from_files_are_used_as_they_are(
    ended: Path, data: Path, weights: Files, tmp_path: Path
) -> None:
    given = {"first_weights": weights[0], "second_weights": weights[1]}
    folder = done("curve-ensemble", curve_job(data, tmp_path / "run", **given))
    ours, theirs = methods(folder), methods(ended)
    for line in ("network-1 1", "network-2 1", "ends 2"):
        assert [ours[line][k] for k in ("error", "nll")] == [
            theirs[line][k] for k in ("error", "nll")
        ]
    assert [ours[f"{name}"]["train_epochs"] for name in ("ends 2", "curve 5")] == [0, 1]
    assert "its training is unknown" in (folder / "report.md").read_text()
    assert not (folder / "networks").exists()
    curve = Curve.load(folder / "curves" / "a-1--b-2" / "curve.safetensors")
    reference = Curve.load(ended / "curves" / PAIR / "curve.safetensors")
    assert torch.equal(curve.points, reference.points)


def test_a_snapshot_of_an_fge_run_and_a_trained_network(data: Path, tmp_path: Path) -> None:
    run_of = job(data, tmp_path / "fge", epochs=1, start_epoch=0, cycle_epochs=2)
    snapshot = done("fge", run_of) / "snapshots" / "0001.safetensors"
    more = {"first_weights": snapshot, "second": "endpoint", "lr": 0.1, "eval_points": 2}
    folder = done("curve-ensemble", curve_job(data, tmp_path / "run", **more))
    costs = {key: method["train_epochs"] for key, method in methods(folder).items()}
    assert [costs[key] for key in ("network-1 1", "network-2 1", "curve 5")] == [0, 2, 3]
    curve = Curve.load(folder / "curves" / "0001-1--endpoint-2" / "curve.safetensors")
    state = load_file(snapshot)
    assert all(torch.equal(v, state[k]) for k, v in curve.state_dict(0.0).items())


# --------------------------------------------------------------------------------------- connect


def test_two_files_are_connected(data: Path, weights: Files, tmp_path: Path) -> None:
    result = run(flags("connect", connect_job(data, tmp_path / "run", weights[:2])))
    assert (result.code, result.err) == (0, "")
    content = report(tmp_path / "run")
    (pair,) = content["pairs"]
    assert (pair["name"], pair["fit_epochs"], content["methods"]) == ("1-a--2-b", 1, [])
    assert content["command"] == "connect"
    rises = [pair["summaries"][path]["test_error"]["barrier"] for path in ("segment", "curve")]
    verdict = (
        f"The test error rises by at most {rises[1]:.2f} points on the curves and {rises[0]:.2f} "
        "points on the segments (1 pair of networks, one test set).\n\n"
        f"1-a--2-b: {rises[0]:.2f} points on the segment, {rises[1]:.2f} on the curve."
    )
    assert content["verdict"] == verdict
    assert verdict in result.out
    assert (tmp_path / "run" / "figures" / "curve-1-a--2-b.png").is_file()
    ends = torch.stack([torch.cat([t.flatten() for t in of(path)]) for path in weights[:2]])
    assert pair["distance"] == pytest.approx(float((ends[0] - ends[1]).double().norm()), rel=1e-6)


def of(path: Path) -> list[torch.Tensor]:
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
    model = build_model("convnet", in_channels=1, num_classes=3, image_size=(8, 8))
    return [state[name] for name, _ in model.named_parameters()]


@pytest.mark.parametrize("closed", [False, True])
def test_three_files_are_a_chain_or_a_loop(
    data: Path, weights: Files, tmp_path: Path, closed: bool
) -> None:
    options = connect_job(data, tmp_path / "run", weights, closed=closed, eval_points=2)
    folder = done("connect", options)
    names = ["1-a--2-b", "2-b--3-c", "3-c--1-a"][: 2 + closed]
    assert [pair["name"] for pair in report(folder)["pairs"]] == names
    curves = [Curve.load(folder / "curves" / name / "curve.safetensors") for name in names]
    for before, after in zip(curves, curves[1:] + curves[:1] * closed, strict=False):
        assert torch.equal(before.points[-1], after.points[0])


# -------------------------------------------------------------------------------------- resuming


def quick(data: Path, out: Path) -> dict[str, Any]:
    small = {"epochs": 1, "curve_epochs": 2, "eval_points": 2, "ensemble_points": 2}
    return curve_job(data, out, **small)


def points(calls: int, count: int) -> set[int]:
    return {1, calls, *random.Random(0).sample(range(1, calls + 1), count)}


@pytest.mark.slow
def test_killed_curve_ensemble_resumes_bitwise(data: Path, tmp_path: Path) -> None:
    options = quick(data, tmp_path / "reference")
    finished = kill_server().run("curve-ensemble", options)
    assert finished["code"] == 0
    for point in points(finished["calls"], 3):
        folder = killed_and_resumed("curve-ensemble", options, tmp_path / f"killed-{point}", point)
        assert_same(folder, tmp_path / "reference")


@pytest.mark.slow
def test_killed_connect_resumes_bitwise(data: Path, weights: Files, tmp_path: Path) -> None:
    more: dict[str, Any] = {"closed": True, "eval_points": 2, "epochs": 2}
    options = connect_job(data, tmp_path / "reference", weights, **more)
    finished = kill_server().run("connect", options)
    assert finished["code"] == 0
    for point in points(finished["calls"], 1):
        folder = killed_and_resumed("connect", options, tmp_path / f"killed-{point}", point)
        assert_same(folder, tmp_path / "reference")


@pytest.mark.slow
def test_interrupted_between_the_fits_log_and_its_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done("curve-ensemble", quick(data, tmp_path / "reference"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fge.commands.pairs.CurveStudy._end_epoch", interrupt)
        result = run(flags("curve-ensemble", quick(data, tmp_path / "run")))
    assert result.code == 130
    advice = re.search(r"resume with: python cli\.py (.*)", result.out)
    assert advice is not None
    argv = shlex.split(advice[1])
    assert argv == ["curve-ensemble", "--out", str(tmp_path / "run"), "--resume"]
    assert run(argv).code == 0
    assert_same(tmp_path / "run", tmp_path / "reference")


def test_full_disk_says_how_to_go_on(
    data: Path, weights: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, calls = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        result = run(flags("connect", connect_job(data, tmp_path / "run", weights[:2])))
    assert result.code == 2
    command = f"python cli.py connect --out {tmp_path / 'run'} --resume"
    assert result.message == (
        f"the disk of {tmp_path / 'run'} is full; free some space, then resume with: {command}"
    )
    assert run(["connect", "--out", "run", "--resume"]).code == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--num-points", "4"], "cannot resume with --num-points 4: the run was started with 3"),
        (["--second", "F"], "cannot resume with second F: the run was started with average"),
        (
            ["--curve-epochs", "9"],
            "cannot resume with --curve-epochs 9: the run was started with None",
        ),
        (["--epochs", "9"], "cannot resume with epochs 9: the run was started with 2"),
    ],
)
def test_resuming_with_other_options_is_refused(
    ended: Path, tmp_path: Path, change: list[str], message: str
) -> None:
    shutil.copytree(ended, tmp_path / "run")
    result = run(["curve-ensemble", "--out", "run", "--resume", *change])
    assert result.code == 2
    assert result.message.startswith(message)
    assert_same(tmp_path / "run", ended)


def test_a_curve_between_other_networks_is_named_and_nothing_lost(
    data: Path, weights: Files, tmp_path: Path
) -> None:
    for name, source in (("a.pt", weights[1]), ("b.pt", weights[2])):
        shutil.copy(source, tmp_path / name)
    given = {"first_weights": "a.pt", "second_weights": "b.pt"}
    folder = done("curve-ensemble", curve_job(data, tmp_path / "run", eval_points=2, **given))
    before = promised(folder)
    torch.save(load_file(weights[0]), tmp_path / "b.pt")
    result = run(["curve-ensemble", "--out", "run", "--resume"])
    assert result.code == 2
    assert result.message == (
        "run/curves/a-1--b-2/curve.safetensors connects other networks; give another "
        "--out, or replace it with --overwrite"
    )
    assert promised(folder) == before


# ---------------------------------------------------------------------------------------- errors


def spoiled(weights: Files, path: Path, kind: str) -> Path:
    state = load_file(weights[0])
    if kind == "missing":
        del state["4.bias"]
    elif kind == "extra":
        state["stray"] = torch.zeros(2)
    elif kind == "misshapen":
        state["4.bias"] = torch.zeros(3)
    elif kind == "nan":
        state["4.bias"][1] = float("nan")
    save_file(state, path)
    return path


FITS_NOT = [
    ("missing", "has no tensor '4.bias', but the model needs it"),
    ("extra", "has a tensor 'stray', but the model has none of that name"),
    ("misshapen", "tensor '4.bias' has shape (3,), the model needs ("),
    ("nan", "tensor '4.bias' holds values that are not finite"),
]


@pytest.mark.parametrize(("kind", "message"), FITS_NOT)
@pytest.mark.parametrize("command", ["curve-ensemble", "connect"])
def test_weights_that_do_not_fit_are_named_with_their_file(
    data: Path, weights: Files, tmp_path: Path, command: str, kind: str, message: str
) -> None:
    bad = spoiled(weights, tmp_path / "bad.safetensors", kind)
    if command == "connect":
        options = connect_job(data, tmp_path / "run", (weights[0], bad))
    else:  # the first network is still to be trained
        options = curve_job(data, tmp_path / "run", second_weights=bad)
    result = run(flags(command, options))
    assert result.code == 2
    assert result.message.startswith(f"{bad}")
    assert message in result.message
    assert not (tmp_path / "run").exists()


def test_files_with_code_are_refused(data: Path, weights: Files, tmp_path: Path) -> None:
    torch.save({"0.weight": print}, tmp_path / "bad.pt")
    files = (weights[0], tmp_path / "bad.pt")
    result = run(flags("connect", connect_job(data, tmp_path / "run", files)))
    assert result.code == 2
    assert "bad.pt cannot be loaded as a plain state dict" in result.message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["curve-ensemble", "connect"])
def test_the_same_network_twice_is_refused(
    data: Path, weights: Files, tmp_path: Path, command: str
) -> None:
    shutil.copy(weights[0], tmp_path / "copy.safetensors")
    twice = (weights[0], tmp_path / "copy.safetensors")
    if command == "connect":
        options = connect_job(data, tmp_path / "run", twice)
    else:
        given = {"first_weights": twice[0], "second_weights": twice[1]}
        options = curve_job(data, tmp_path / "run", **given)
    result = run(flags(command, options))
    assert result.code == 2
    assert result.message == (
        f"{twice[0]} and {twice[1]} hold the same weights; give two networks that differ"
    )
    assert not (tmp_path / "run").exists()


def test_a_loop_that_closes_in_the_same_network_is_refused(
    data: Path, weights: Files, tmp_path: Path
) -> None:
    files = (weights[0], weights[1], weights[0])
    options = connect_job(data, tmp_path / "run", files, closed=True)
    assert run(flags("connect", options)).code == 2
    assert not (tmp_path / "run").exists()
    assert done("connect", {**options, "closed": False, "eval_points": 2}).is_dir()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            "curve-ensemble --num-points 2",
            "--num-points must be >= 3, got 2: with only the two ends",
        ),
        ("curve-ensemble --family bezeir", "'bezeir' .* Did you mean 'bezier'"),
        ("connect --objective minimax", "'minimax' .* Did you mean 'minmax'"),
        ("curve-ensemble --first endpiont", "'endpiont' .* Did you mean 'endpoint'"),
        (
            "curve-ensemble --second H",
            "'H' .*'G', 'A', 'B', 'C', 'D', 'E', 'F', 'endpoint', 'average'",
        ),
        ("curve-ensemble --curve-epoch 3", "'--curve-epoch'; did you mean '--curve-epochs'"),
        ("curve-ensemble --first-weights none.pt", r"no weights file none\.pt"),
        ("curve-ensemble --second-weights none.pt", r"no weights file none\.pt"),
        ("connect --weights none.pt no.pt", r"no weights file none\.pt"),
        ("connect --weights one.pt", "--weights needs two files or more, got 1"),
        ("connect", "--weights needs two files or more, got 0"),
        ("connect --weights a.pt b.pt --closed", "--closed needs three files or more, got 2"),
        ("connect --weights a.pt b.pt --lr 0.1", "--lr 0.1 is not used: --curve-lr is the rate"),
        (
            "curve-ensemble --lr 0.1 --first G --second A",
            "--lr 0.1 sets the rate of the recipes average and endpoint, which are not",
        ),
        (
            "curve-ensemble --adam-lr 0.1 --second A",
            "--adam-lr is an option of recipe B, which is not used",
        ),
        (
            "curve-ensemble --small-weight-decay 0 --second D --second-weights a.pt",
            "--second D is not used: --second-weights gives that network",
        ),
        (
            "curve-ensemble --init-variance 1 --second E",
            "--init-variance must be .* above 1, got 1",
        ),
        ("curve-ensemble --adam-lr 0 --second B", "--adam-lr must be finite and above 0, got 0"),
        ("curve-ensemble --adam-lr 0 --strategies all", "--adam-lr must be finite and above 0"),
        ("curve-ensemble --strategies all --second B", "sets the recipes itself; leave out --sec"),
        ("curve-ensemble --strategies all --first-weights a.pt", "leave out the weights files"),
        ("curve-ensemble --out x --resume", "no run to resume in x; start it without --resume"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    data: Path, tmp_path: Path, argv: str, message: str
) -> None:
    options = {"data": str(data), "batch_size": 32, "device": "cpu"}
    result = run([*shlex.split(argv), *flags("", options)[1:]])
    assert result.code == 2
    assert re.search(message, result.message), result.message
    assert list(tmp_path.iterdir()) == []


def test_recipe_that_cannot_start_this_model_is_told_before_anything_is_trained(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self, num_classes):
                super().__init__()
                self.w = nn.Parameter(torch.zeros(64, num_classes))

            def forward(self, x):
                return x.flatten(1) @ self.w

        def net(num_classes):
            return Net(num_classes)
    """
    (tmp_path / "own_bare.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    options = curve_job(data, tmp_path / "run", model="own_bare:net", second="E")
    result = run(flags("curve-ensemble", options))
    assert result.code == 2
    assert "recipe E scales the weights of linear and convolution layers" in result.message
    assert not (tmp_path / "run").exists()


def test_overwriting_does_not_remove_the_weights_it_is_given(ended: Path, tmp_path: Path) -> None:
    shutil.copytree(ended, tmp_path / "run")
    inside = network(tmp_path / "run", "average-1")
    argv = ["curve-ensemble", "--config", str(ended / "config.json"), "--out", "run"]
    result = run([*argv, "--overwrite", "--first-weights", str(inside)])
    assert result.code == 2
    assert result.message == (
        f"{inside} is in run, which --overwrite removes; copy it elsewhere first"
    )
    assert_same(tmp_path / "run", ended)


# ----------------------------------------------------------------------------- the user's own model

FACTORY = """
    from pathlib import Path
    import torch
    from torch import nn

    Path("imported").touch()

    class Net(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.linear = nn.Linear(64, num_classes)
            self.register_buffer("gain", torch.ones(()))

        def forward(self, x):
            return self.gain * self.linear(x.flatten(1))

    def net(num_classes):
        return Net(num_classes)
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a factory that leaves a file when it is imported; return its name."""
    name = f"own_{re.sub('[^a-z0-9]', '_', tmp_path.name)}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(FACTORY))
    monkeypatch.syspath_prepend(tmp_path)
    return f"{name}:net"


def test_own_model_needs_naming_again_to_be_imported(
    data: Path, tmp_path: Path, factory: str
) -> None:
    done("curve-ensemble", curve_job(data, tmp_path / "run", model=factory, eval_points=2))
    lines = methods(tmp_path / "run")
    assert lines["curve 5"]["refresh_images"] == 0  # no batch norm, nothing to estimate
    for argv in (
        ["curve-ensemble", "--config", "run/config.json", "--out", "again"],
        ["curve-ensemble", "--out", "run", "--resume"],
    ):
        sys.modules.pop(factory.split(":")[0])
        Path("imported").unlink()
        result = run(argv)
        assert result.code == 2
        assert result.message.endswith(f"if you trust it, add --model {factory}")
        assert not Path("imported").exists()
        assert run([*argv, "--model", factory]).code == 0
        assert Path("imported").exists()


def test_buffers_at_the_ends_are_the_networks_own_and_linear_in_between(
    data: Path, tmp_path: Path, factory: str
) -> None:
    torch.manual_seed(0)
    states = []
    for number, gain in enumerate((2.0, 3.0), start=1):
        linear = nn.Linear(64, 3)
        state = {"linear.weight": linear.weight.detach(), "linear.bias": linear.bias.detach()}
        states.append({**state, "gain": torch.tensor(gain)})
        save_file(states[-1], tmp_path / f"{number}.safetensors")
    given = {"first_weights": "1.safetensors", "second_weights": "2.safetensors"}
    options = curve_job(data, tmp_path / "run", model=factory, eval_points=2, **given)
    folder = done("curve-ensemble", options)  # without a word on stderr
    probs, _ = member_probabilities(folder)
    splits = load_dataset(str(data))
    x = ((splits.test.images - splits.mean[0]) / splits.std[0]).flatten(1)

    def expected(gain: float, weight: torch.Tensor, bias: torch.Tensor) -> np.ndarray:
        return (gain * (x @ weight.T + bias)).double().softmax(1).numpy()

    first, second = ([s["linear.weight"], s["linear.bias"]] for s in states)
    means = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    for name, wanted in {
        "2-2": expected(3.0, *second),
        "1-1--2-2/curve/0.0000": expected(2.0, *first),
        "1-1--2-2/curve/1.0000": expected(3.0, *second),
        "1-1--2-2/segment/0.5000": expected(2.5, *means),
    }.items():
        np.testing.assert_allclose(probs[name], wanted, atol=1e-5)
    words = "the buffers 'gain' are the networks' own at the ends, and linear in between"
    statistics = report(folder)["pairs"][0]["statistics"]
    assert (statistics["own_ends"], statistics["interpolated"]) == (True, ["gain"])
    assert statistics["in_words"] == words
    assert f"On curve and segment, {words}." in (folder / "report.md").read_text()


def test_a_line_along_a_curve_has_the_same_ends_as_its_segment(
    data: Path, tmp_path: Path, factory: str
) -> None:
    torch.manual_seed(0)
    for number, gain in enumerate((2.0, 3.0, 5.0), start=1):
        state = {f"linear.{n}": p.detach() for n, p in nn.Linear(64, 3).named_parameters()}
        save_file({**state, "gain": torch.tensor(gain)}, tmp_path / f"{number}.safetensors")
    files = [f"{number}.safetensors" for number in (1, 2, 3)]
    options = curve_job(data, tmp_path / "run", epochs=1, model=factory, weights=files[:2])
    connected = done("connect", options)
    own = [r["test_loss"] for r in read_records(connected / "curves/1-1--2-2/curve.jsonl")]
    looks = {"run": {"run": str(connected)}, "files": {"weights": files, "data": str(data)}}
    for name, what in looks.items():
        options = {"model": factory, "line": True, "line_points": 3, "out": f"look-{name}", **what}
        folder = done("plane", options)
        with np.load(folder / "line.npz") as line:
            losses = line["test_loss"]
        assert losses[:, 0] == pytest.approx(own[0], abs=1e-6)
        middle = 1 if name == "files" else -1  # the second file
        assert losses[:, middle] == pytest.approx(own[-1], abs=1e-6)
        assert report(folder)["line"]["statistics"]["interpolated"] == ["gain"]


def test_batch_norm_is_said_to_be_estimated_everywhere(ended: Path) -> None:
    words = "statistics of batch norm are estimated at every t, the ends included"
    assert report(ended)["pairs"][0]["statistics"]["in_words"] == words
    assert f"On curve and segment, {words}." in (ended / "report.html").read_text()


# ------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize(
    ("command", "kind"), [("curve-ensemble", CurveEnsembleConfig), ("connect", ConnectConfig)]
)
def test_help_names_every_option_without_waiting_for_torch(command: str, kind: type) -> None:
    script = f"""
        import contextlib, sys, cli
        with contextlib.suppress(SystemExit):
            cli.main(["{command}", "--help"])
        heavy = ("torch", "torchvision", "matplotlib", "scipy", "numpy", "PIL")
        print("LOADED", [name for name in heavy if name in sys.modules])
    """
    environment = {**os.environ, "COLUMNS": "200"}
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
    ).stdout
    assert found.rstrip().endswith("LOADED []"), found
    for name in (option.name for option in fields(kind)):
        assert f"--{name.replace('_', '-')}" in found
    assert "Training budget" not in found  # --epochs are of a network, or of a fit


def test_the_overview_lists_the_commands() -> None:
    result = run(["--help"])
    assert result.code == 0
    for name in ("fge", "curve-ensemble", "connect", "predict"):
        assert re.search(rf"^  {name} +\S", result.out, re.MULTILINE)
    assert set(cli.COMMANDS) >= {"curve-ensemble", "connect"}


def test_a_network_on_the_device_gives_its_weights_in_order() -> None:
    model = nn.Linear(2, 1)
    state = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])}
    assert Network("n", state, 0).vector(model).tolist() == [1.0, 2.0, 3.0]


def test_other_data_is_refused_at_resume(ended: Path, tmp_path: Path) -> None:
    shutil.copytree(ended, tmp_path / "run")
    images = tiny_arrays()["train_images"]
    images[5, 5, 5] ^= 1
    other = write_tiny_npz(tmp_path / "tiny.npz", train_images=images)
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    content["options"]["data"] = str(other)
    (tmp_path / "run" / "manifest.json").unlink()
    (tmp_path / "run" / "config.json").write_text(json.dumps(content))
    result = run(["curve-ensemble", "--out", "run", "--resume"])
    assert result.code == 2
    assert (
        result.message
        == f"cannot resume: the images of {other} are not those of the run; restore them"
    )
