"""Shares, the environment of ``torchrun`` and its errors, as one process sees them."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from fge.errors import UserError
from fge.parallel import Ranks, check_command, default_ranks, join, started_processes


def test_shares_cover_a_batch_and_leave_nobody_with_a_single_image() -> None:
    for size in (1, 2, 3, 5):
        for count in range(2, 40):
            shares = [list(range(count))[Ranks(rank, size).share(count)] for rank in range(size)]
            assert list(itertools.chain(*shares)) == list(range(count))
            sizes = [len(share) for share in shares if share]
            assert min(sizes) >= 2
            assert max(sizes) - min(sizes) <= 1


class Two(Ranks):
    """One of two processes, of which the other has the same."""

    def sum(self, tensor: torch.Tensor) -> None:
        tensor.mul_(2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_means_over_processes_are_finite_where_their_sums_have_no_number(
    dtype: torch.dtype,
) -> None:
    """A variance of 20 times 5,000 images is above 65,504, the largest number of float16."""
    variances = torch.tensor([20.0, 1.25, 0.0], dtype=dtype)
    expected = variances.clone()
    Two(0, 2).average([variances], 5000, 10_000)
    assert torch.equal(variances, expected)


@pytest.mark.parametrize(("batch_size", "near"), [(1, 6), (3, 6), (10, 9), (128, 126)])
def test_batch_sizes_name_one_that_works(batch_size: int, near: int) -> None:
    with pytest.raises(UserError, match=rf"^batch_size {batch_size} makes .* 3, {near} say$"):
        Ranks(0, 3).check_batch_size(batch_size)
    Ranks(0, 3).check_batch_size(near)
    Ranks().check_batch_size(batch_size)


def test_one_gpu_is_not_taken_by_several_processes() -> None:
    with pytest.raises(UserError, match=r"^--device cuda:0 is one GPU for 2 processes; use --dev"):
        Ranks(0, 2).take_device(torch.device("cuda:0"))
    Ranks(0, 2).take_device(torch.device("cpu"))
    Ranks().take_device(torch.device("cuda:0"))


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match=r"^there is no GPU for process 1 of .* \(1 found\); "):
        Ranks(1, 2).take_device(torch.device("cuda"))


def test_without_the_environment_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert started_processes() == 1
    for ranks in (join("curve-ensemble"), default_ranks()):
        assert (ranks.rank, ranks.size) == (0, 1)
        assert ranks.disband()


def test_one_process_of_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join("plane").size == 1


LEAVING = """
from pathlib import Path
import torch
from fge.parallel import join
from fge.train import Learner
def gloo():
    names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    return sum("gloo" in name for name in names)
ranks = join("fge")
import torch.distributed.nn, torch._dynamo
model = torch.nn.Linear(2, 2)
learner = Learner(model, torch.optim.SGD(model.parameters(), lr=0.1), ranks=ranks)
learner.step(torch.ones(2, 2), torch.zeros(2, dtype=torch.int64))
before, rank = gloo(), ranks.rank
assert learner.disband() == (rank == 0)
print(f"{rank}: {before > 0} {gloo()}\\n", end="", flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="names threads by Linux's /proc")
@pytest.mark.slow
def test_no_thread_of_a_group_outlives_it(tmp_path: Path) -> None:
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    folders = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *launch, str(script)],
        env={**os.environ, "PYTHONPATH": folders},
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(done.stdout.split("\n")) == ["", "0: True 0", "1: True 0"]


@pytest.mark.parametrize("command", ["curve-ensemble", "connect", "plane", "sharpness", "predict"])
def test_other_commands_say_which_run_in_several_processes(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = rf"^{command} runs in one process and 2 were started; .*\(fge and train train data-pa"
    with pytest.raises(UserError, match=message):
        join(command)
    with pytest.raises(UserError, match=message):
        check_command(command)


def test_an_environment_that_leads_nowhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match=r"^WORLD_SIZE must be a number of processes, got 'two'"):
        join("fge")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"^cannot join the 2 processes .*; start them with tor"):
        join("fge")
