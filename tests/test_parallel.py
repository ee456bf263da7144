"""Data-parallel training in two processes against one, and commands in two processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks_job  # type: ignore[import-not-found]
import sharded_job  # type: ignore[import-not-found]
import torch
import torch.nn.functional as F
from conftest import ROOT, write_tiny_npz
from promised import promised
from torch import Tensor

import fge
from fge.commands.build import Setup
from fge.commands.loading import load_data
from fge.config import TrainConfig, read_config
from fge.ensemble import SnapshotStore
from fge.networks import average_weights, build_model, read_weights, refresh_batch_norm
from fge.parallel import Ranks

pytestmark = pytest.mark.slow  # processes of their own

Results = tuple[dict[str, Any], dict[str, Any]]


class Group:
    """Runs jobs in groups of processes; see ``ranks_job``."""

    def __init__(self) -> None:
        folders = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, ranks_job.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": folders},
        )

    def run(self, **job: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"size": 2, **job}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    group = Group()
    yield group
    assert group.process.stdin is not None
    group.process.stdin.close()
    group.process.wait(timeout=60)


@pytest.fixture(scope="module")
def two(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Return what the jobs came to in the first and in the second of two processes."""
    folder = tmp_path_factory.mktemp("two")
    answer = group.run(folder=str(folder))
    assert answer["codes"] == [0, 0], answer["errors"]
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2))
    return first, second


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the jobs come to in one process."""
    results: dict[str, Any] = ranks_job.jobs(tmp_path_factory.mktemp("one"), Ranks())
    return results


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[float]:
    assert set(ours) == set(theirs)
    return [float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours]


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return set(ours) == set(theirs) and all(torch.equal(ours[n], theirs[n]) for n in ours)


# ------------------------------------------------------------------------------- the joint batch


@pytest.mark.parametrize(
    "job",
    ["plain", "uneven", "noisy", "scaled", "compiled", "ema", "accumulated", "clipped", "mixed"],
)
def test_two_processes_train_as_one_on_the_joint_batch(
    two: Results, one: dict[str, Any], job: str
) -> None:
    """Rounding grows over 12 steps to far less than 1e-8; another crop would give about 0.1."""
    ours, theirs = two[0][job], one[job]
    assert len(ours["snapshots"]) == len(theirs["snapshots"]) == 2
    for kept, expected in zip(ours["snapshots"], theirs["snapshots"], strict=True):
        assert max(differences(kept, expected)) < 1e-8
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-8)
    assert ours["images"] == theirs["images"]
    moved = differences(theirs["snapshots"][0], theirs["snapshots"][1])
    assert max(moved) > 1e-2, "training moves the weights"


def test_scaled_compiled_and_plain_steps_are_the_same_step(two: Results) -> None:
    """And the average of the weights is another set of weights."""
    for job in ("scaled", "compiled"):
        ours, theirs = two[0][job]["snapshots"][1], two[0]["uneven"]["snapshots"][1]
        assert max(differences(ours, theirs)) < 1e-8
    averaged, last = two[0]["ema"]["snapshots"][1], two[0]["uneven"]["snapshots"][1]
    assert max(differences(averaged, last)) > 1e-3


def test_a_step_in_parts_is_the_same_step_in_two_processes(two: Results) -> None:
    ours, theirs = (two[0][job]["snapshots"][1] for job in ("accumulated", "clipped"))
    assert max(differences(ours, theirs)) < 1e-8
    assert max(differences(theirs, two[0]["uneven"]["snapshots"][1])) > 1e-3


def test_noise_of_the_optimizer_is_there_and_the_same(two: Results, one: dict[str, Any]) -> None:
    noisy, plain = one["noisy"]["snapshots"][0], one["plain"]["snapshots"][0]
    assert max(differences(noisy, plain)) > 1e-2
    assert same(two[0]["noisy"]["snapshots"][1], two[1]["noisy"]["snapshots"][1])


@pytest.mark.parametrize("job", ["plain", "uneven", "noisy", "normalised", "accumulated"])
def test_snapshots_are_bitwise_the_same_in_both_processes(two: Results, job: str) -> None:
    for first, second in zip(two[0][job]["snapshots"], two[1][job]["snapshots"], strict=True):
        assert same(first, second)
    assert two[0][job]["losses"] == two[1][job]["losses"]


def test_each_process_draws_its_own_dropout(two: Results) -> None:
    first, second = two[0]["masks"], two[1]["masks"]
    assert first.shape == second.shape
    assert not (first == second).any()
    assert len(torch.unique(first, dim=0)) == len(first), "steps draw differently too"


def test_running_statistics_are_means_over_shares_by_their_images(two: Results) -> None:
    """Two images to the first, three to the second; momentum 0.1 from mean 0 and variance 1."""
    split = ranks_job.split_of(5)
    torch.manual_seed(0)
    model = ranks_job.normalised_model()
    with torch.no_grad():
        activations = model[0](split.images.double())
    parts = [activations[:2], activations[2:]]
    mean = sum(len(p) / 5 * p.mean(dim=(0, 2, 3)) for p in parts)
    variance = sum(len(p) / 5 * p.transpose(0, 1).flatten(1).var(dim=1) for p in parts)
    for process in two:
        state = process["statistics"]
        torch.testing.assert_close(state["1.running_mean"], 0.1 * mean, rtol=0, atol=1e-9)
        torch.testing.assert_close(
            state["1.running_var"], 0.9 + 0.1 * variance, rtol=1e-12, atol=1e-9
        )
        assert state["1.num_batches_tracked"] == 1


def test_the_gradient_weighs_shares_by_their_images(two: Results) -> None:
    """One step of SGD from the first process's weights, on the loss written out by hand."""
    split = ranks_job.split_of(5)
    torch.manual_seed(0)
    model = ranks_job.normalised_model().train()
    parts = [(split.images[:2], split.labels[:2]), (split.images[2:], split.labels[2:])]
    loss = sum(len(y) / 5 * F.cross_entropy(model(x.double()), y) for x, y in parts)
    assert isinstance(loss, Tensor)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        expected = parameter - 0.1 * (parameter.grad + 1e-3 * parameter)
        torch.testing.assert_close(two[1]["statistics"][name], expected, rtol=0, atol=1e-12)


def test_a_parameter_moves_where_any_process_uses_it(two: Results, one: dict[str, Any]) -> None:
    assert one["unused"] == [[True, False, False]] * 2
    moved = [[True, True, False], [True, False, False]]
    assert two[0]["unused"] == two[1]["unused"] == moved


# ----------------------------------------------------------------------------- batch-norm refresh


def test_refresh_over_all_processes_is_that_of_one_on_the_joint_images(
    two: Results, one: dict[str, Any]
) -> None:
    for process in two:
        ours, theirs = process["refreshed"], one["refreshed"]
        assert max(differences(ours["state"], theirs["state"])) < 1e-12
        assert ours["images"] == theirs["images"] == 25
        assert ours["few"] == theirs["few"] == 10


def test_refresh_takes_a_process_without_images(two: Results) -> None:
    for process in two:
        assert process["refreshed"]["one_sided"] == 7 + 4
    states = [process["refreshed"]["one_sided_state"] for process in two]
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(states[0][name], states[1][name])
    assert states[0]["1.num_batches_tracked"] == 2


# ------------------------------------------------------------------ what processes tell each other


def test_the_first_process_tells_the_others(two: Results) -> None:
    for process in two:
        told = process["told"]
        assert told["bytes"] == b"first"
        assert told["empty"] == b""
        assert told["first"] == "from 0"
        numbers, truth, whole, last = told["broadcast"]
        assert torch.equal(numbers, torch.zeros(2, 3))
        assert bool(truth)
        assert whole.tolist() == [1]
        assert torch.equal(last, torch.zeros(1, 2, 2, 2))


def test_where_one_fails_all_fail_with_its_error(two: Results) -> None:
    first, second = (process["failures"] for process in two)
    for process in (first, second):
        assert process["user"] == "UserError: mend it"
        assert process["diverged"] == "DivergenceError: not finite"
        assert process["after"] == "nothing"
    assert first["disk"] == "OSError: the disk is full"
    assert second["disk"] == "UserError: the disk is full"
    assert first["other"] == "RuntimeError: process 1: 'x'"
    assert second["other"] == "KeyError: 'x'"


def test_a_loss_that_is_not_finite_in_one_process_stops_all(two: Results) -> None:
    texts = {process["failures"]["loss"] for process in two}
    step = "the loss is nan at step 0 with learning rate 0.1"
    assert texts == {f"DivergenceError: {step}; lower the learning rates"}


def test_a_process_that_ends_within_a_step_is_named_to_the_others(group: Group) -> None:
    answer = group.run(vanishes=True)
    assert answer["codes"] == [0, 5]
    start, _, end = answer["errors"].partition(" (")
    assert start == "UserError: another process of this run is gone"
    assert end.endswith("); see its message, then continue with --resume\n")


# ------------------------------------------------------------------- FGE with PyTorch's own wrapper


def test_fge_keeps_the_same_snapshots_of_a_wrapped_model_in_both_processes(two: Results) -> None:
    first, second = (process["wrapped"]["snapshots"] for process in two)
    assert len(first) == len(second) == 2
    assert all(same(*pair) for pair in zip(first, second, strict=True))
    assert "1.running_mean" in first[0]


def test_fge_writes_a_shared_folder_once(
    two: Results, one: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    first, second = (process["wrapped"] for process in two)
    assert [first["writes"], second["writes"], one["wrapped"]["writes"]] == [True, False, True]
    folder = tmp_path_factory.getbasetemp() / "two0" / "snapshots"
    assert same(read_weights(folder / "0001.safetensors"), first["snapshots"][0])
    for process in (first, second):
        assert process["state"] == 2
        assert process["reloaded"] == 1


def test_every_process_finds_each_snapshot_as_soon_as_step_comes_back(two: Results) -> None:
    first, second = (process["wrapped"] for process in two)
    assert first["ensembles"] == second["ensembles"] == [1, 2]
    assert torch.equal(first["probs"], second["probs"])


def test_where_the_first_process_cannot_write_step_raises_in_all(two: Results) -> None:
    first, second = (process["wrapped"]["unwritable"] for process in two)
    assert first.startswith("NotADirectoryError: ")
    assert second == f"UserError: {first.removeprefix('NotADirectoryError: ')}"


def test_where_the_first_process_lacks_snapshots_loading_raises_in_all(two: Results) -> None:
    first, second = (process["wrapped"]["lost"] for process in two)
    assert "holds 1 snapshots, the state speaks of 3" in first
    assert second == first


def test_the_processes_of_a_wrapped_model_are_found_below_compilation(
    two: Results, one: dict[str, Any]
) -> None:
    assert [process["wrapped"]["ranks"] for process in two] == [(0, 2), (1, 2)]
    assert one["wrapped"]["ranks"] == (0, 1)


# ------------------------------------------------------------------------ FGE with sharded models


def close(ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]]) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return len(ours) == 3 and all(max(differences(*pair)) < 1e-12 for pair in pairs)


def test_snapshots_of_a_sharded_model_are_those_of_a_whole_one(
    two: Results, one: dict[str, Any]
) -> None:
    """Whole, on the joint batch; and data-parallel, where batch norm sees shares."""
    for process in two:
        ours = process["sharded"]
        assert close(ours["plain"], one["sharded"]["plain"])
        assert close(ours["normalised"], ours["data_parallel"])
    moved = differences(*one["sharded"]["plain"][1:])
    assert max(moved) > 1e-2


def test_a_sharded_model_is_written_once_or_by_all_who_are_to_write(two: Results) -> None:
    first, second = (process["sharded"] for process in two)
    assert [first["writes"], second["writes"]] == [True, False]
    assert [first["ranks"], second["ranks"]] == [(0, 2), (1, 2)]
    for process in (first, second):
        assert all(same(*pair) for pair in zip(process["own"], first["normalised"], strict=True))


def test_a_sharded_run_resumes_where_its_state_was_saved(two: Results) -> None:
    first = two[0]["sharded"]
    assert all(same(*pair) for pair in zip(first["resumed"], first["normalised"], strict=True))


def test_a_sharded_model_gets_statistics_from_all_processes(two: Results) -> None:
    for process in two:
        assert process["sharded"]["refreshed"] == [24, 24]
        torch.testing.assert_close(*process["sharded"]["means"], rtol=0, atol=1e-12)


def test_the_ensemble_of_a_sharded_model_takes_a_whole_one(two: Results) -> None:
    first, second = (process["sharded"] for process in two)
    expected = fge.Ensemble(ranks_job.normalised_model(), first["normalised"])
    assert torch.equal(first["probs"], expected(sharded_job.joint_batch(0)[0]))
    assert torch.equal(second["probs"], first["probs"])
    for process in (first, second):
        assert process["copied"].startswith("UserError: the model is sharded by fully_shard, so ")
        assert process["appended"] == (
            "UserError: the model's state '0.weight' is sharded over processes; gather it whole "
            "before, with get_model_state_dict of torch.distributed.checkpoint.state_dict"
        )


# ---------------------------------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_npz(tmp_path_factory.mktemp("data") / "tiny.npz")


def arguments(tiny: Path, out: Path, *more: str, command: str = "fge") -> list[str]:
    cycles = "--start-epoch 1 --cycle-epochs 2 --single" if command == "fge" else ""
    rest = f"--epochs 3 --batch-size 32 --val-fraction 0.25 --threads 1 {cycles}"
    plain = "--channels-last off --compile off --amp off"
    words = f"{command} --data {tiny} --out {out} {rest} {plain}"
    return [*words.split(), *more]


@pytest.fixture(scope="module")
def finished(group: Group, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    answer = group.run(arguments=arguments(tiny, folder))
    assert (answer["codes"], answer["errors"]) == ([0, 0], ""), "no warning of PyTorch's either"
    return folder


def test_a_run_of_two_processes_is_one_run(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert report["environment"]["processes"] == 2
    assert json.loads((finished / "config.json").read_text())["processes"] == 2
    events = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [e["epoch"] for e in events if e["event"] == "epoch"] == [
        *(0, 1),  # the start, and a cycle up to its minimum
        *(0, 1, 2),  # the single network
        *(0, 1, 2),  # the averaged network
    ]
    assert (finished / "timing.jsonl").read_text().count('"begin"') == 1


@pytest.mark.slow
def test_killed_and_interrupted_and_resumed_it_ends_as_if_uninterrupted(
    group: Group, tiny: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    killed = group.run(arguments=arguments(tiny, out), at=14, signal=signal.SIGKILL)
    assert killed["codes"] == [-signal.SIGKILL, 2]
    assert killed["errors"] == "", "the second process leaves the word to the first"
    again = arguments(tiny, out, "--resume")
    stopped = group.run(arguments=again, at=20, signal=signal.SIGINT, all=True)
    assert stopped["codes"] == [130, 130], stopped["errors"]
    resumed = group.run(arguments=again)
    assert resumed["codes"] == [0, 0], resumed["errors"]
    ours, theirs = promised(out), promised(finished)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in theirs if ours[name] != theirs[name]] == []


def test_train_runs_in_two_processes_too(group: Group, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    answer = group.run(arguments=arguments(tiny, out, command="train"))
    assert answer["codes"] == [0, 0], answer["errors"]
    assert (out / "report.json").is_file()


def test_statistics_of_an_average_are_those_of_all_training_images(
    group: Group, tiny: Path, tmp_path: Path
) -> None:
    cycles = ["--method", "swa", "--start-epoch", "0", "--cycle-epochs", "2"]
    folder = tmp_path / "run"
    answer = group.run(arguments=arguments(tiny, folder, *cycles, command="train"))
    assert answer["codes"] == [0, 0], answer["errors"]
    config = read_config(folder / "config.json", "train", TrainConfig)[0]
    setup = Setup.of(config, load_data(config))
    model = build_model("convnet", in_channels=1, num_classes=3, image_size=(8, 8))
    model.load_state_dict(average_weights(SnapshotStore(folder / "snapshots")))
    used = refresh_batch_norm(model, setup.refresh_batches())
    assert used == len(setup.dataset.train) == 72
    found = read_weights(folder / "swa.safetensors")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


def test_divergence_ends_both_with_one_message(group: Group, tiny: Path, tmp_path: Path) -> None:
    answer = group.run(arguments=arguments(tiny, tmp_path / "run", "--lr", "1e30"))
    assert answer["codes"] == [3, 3]
    assert answer["errors"].count("error: ") == 1
    assert "lower the learning rates" in answer["errors"]


def test_what_the_user_can_mend_ends_both_with_one_message(
    group: Group, tiny: Path, finished: Path
) -> None:
    answer = group.run(arguments=arguments(tiny, finished))
    assert answer["codes"] == [2, 2]
    assert answer["errors"].startswith(f"error: {finished} is not empty; ")
    assert answer["errors"].count("\n") == 1


def test_batches_that_make_no_equal_shares_are_refused(
    group: Group, tiny: Path, tmp_path: Path
) -> None:
    answer = group.run(arguments=arguments(tiny, tmp_path / "run", "--batch-size", "33"))
    assert answer["codes"] == [2, 2]
    assert answer["errors"] == (
        "error: --batch-size 33 makes no equal shares of 2 images or more for 2 processes; "
        "use a multiple of 2, 32 say\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_run_is_resumed_by_as_many_processes(
    group: Group, tiny: Path, finished: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    answer = group.run(arguments=arguments(tiny, copy, "--resume"), size=1)
    assert answer["codes"] == [2]
    assert answer["errors"].startswith(
        "error: cannot resume with 1 processes: the run was started with 2; "
    )
