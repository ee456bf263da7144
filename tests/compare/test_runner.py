"""Jobs of a comparison: each is run once, by whoever comes first; what fails is named."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import write_tiny_npz

from fge.commands import COMMANDS, main
from fge.compare import Job, Runner
from fge.config import CurveEnsembleConfig, FGEConfig, TrainConfig
from fge.errors import UserError
from fge.files import read_records
from fge.manifest import Content, Entry, Manifest

pytestmark = pytest.mark.slow  # processes of their own

SCRIPT = """
import json, os, pathlib, sys, time
arguments = sys.argv[1:]
folder = pathlib.Path(arguments[arguments.index("--out") + 1])
content = {"arguments": arguments}
if "--config" in arguments:
    file = pathlib.Path(arguments[arguments.index("--config") + 1])
    content |= json.loads(file.read_text())
folder.mkdir(parents=True, exist_ok=True)
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps([content, dict(os.environ), sys.path]) + "\\n")
print("run", folder.name)
if folder.name == "slow":
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        (folder / "interrupted").touch()
        sys.exit(130)
if folder.name in ("bad", "diverged"):
    print("error: lr must be above 0, got 0", file=sys.stderr)
    sys.exit(2 if folder.name == "bad" else 3)
if folder.name == "killed":
    os.kill(os.getpid(), 9)
methods = [] if folder.name == "poor" else [{"name": "single"}]
(folder / "report.json").write_text(json.dumps({"methods": methods}))
"""


def job(name: str, *needs: Job) -> Job:
    return Job(name, "train", TrainConfig(epochs=7, batch_size=9), ("single",), 7, needs)


class Runs:
    """A comparison folder whose jobs are run by the script."""

    def __init__(self, folder: Path, workers: int = 1) -> None:
        self.folder = folder
        self.script = folder / "script.py"
        self.script.write_text(SCRIPT)
        self.done: list[str] = []
        self.seen: list[list[str]] = []
        self.runner = Runner(
            folder,
            workers=workers,
            machine={"threads": 1, "device": "cpu"},
            on_change=lambda names: self.seen.append(list(names)),
            on_done=lambda job: self.done.append(job.name),
            command=(sys.executable, str(self.script)),
        )

    def calls(self, name: str) -> list[Any]:
        file = self.folder / "runs" / name / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def overlapped(folder: Path) -> dict[str, bool]:
    records = read_records(folder / "timing.jsonl")
    return {record["job"]: record["overlapped"] for record in records if record["event"] == "job"}


def test_each_job_is_run_once_and_told_of(runs: Runs) -> None:
    jobs = [job("a"), job("b")]
    runs.runner.run(jobs)
    assert sorted(runs.done) == ["a", "b"]
    runs.runner.run(jobs)
    assert [len(runs.calls(name)) for name in ("a", "b")] == [1, 1]
    assert max(len(names) for names in runs.seen) == 1


def test_a_job_gets_its_options_and_where_to_run(runs: Runs) -> None:
    runs.runner.run([job("a")])
    ((content, _, _),) = runs.calls("a")
    assert content["command"] == content["arguments"][0] == "train"
    options = content["options"]
    assert (options["epochs"], options["batch_size"], options["threads"]) == (7, 9, 1)


@pytest.mark.parametrize("way", ["a link", "a named pipe"])
def test_a_log_is_never_written_through_a_link_or_into_a_pipe(
    runs: Runs, tmp_path: Path, way: str
) -> None:
    log, outside = tmp_path / "logs" / "a.log", tmp_path / "outside"
    outside.write_text("mine")
    if way == "a link":
        log.symlink_to(outside)
    else:
        os.mkfifo(log)
    with pytest.raises(UserError, match=rf"a.log is {way} and no file; move it away"):
        runs.runner.run([job("a")])
    assert outside.read_text() == "mine"


def test_a_job_killed_between_its_report_and_its_end_is_run_again(
    runs: Runs, tmp_path: Path
) -> None:
    report = tmp_path / "runs" / "a" / "report.json"
    report.parent.mkdir(parents=True)
    report.write_text('{"methods": [{"name": "single"}]}')
    manifest = Manifest(report.parent, "train")
    manifest.files["report.json"] = Entry(None, Content.of(report.read_bytes()))
    manifest.save()
    assert not runs.runner.is_done(job("a"))
    manifest.settle()
    manifest.save()
    assert runs.runner.is_done(job("a"))


@pytest.mark.parametrize(
    ("free", "why"), [(10**5, "its disk is full, or nearly; free some"), (10**8, "see ")]
)
def test_a_job_without_a_last_word_may_have_found_the_disk_full(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, why: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    (tmp_path / "logs").mkdir(exist_ok=True)
    (tmp_path / "logs" / "a.log").write_bytes(b"")
    error = str(runs.runner._failure("a", 2))
    assert error.startswith(f"run a failed: exit code 2 without a word; {why}")


def test_a_report_that_the_run_did_not_write_does_not_count(runs: Runs, tmp_path: Path) -> None:
    report = tmp_path / "runs" / "a" / "report.json"
    report.parent.mkdir(parents=True)
    report.write_text('{"methods": [{"name": "single"}]}')
    assert runs.runner.is_done(job("a"))  # of an older program, without manifest
    Manifest(report.parent, "train").save()
    assert not runs.runner.is_done(job("a"))
    (report.parent / "manifest.json").write_text('{"options": {}}')
    assert not runs.runner.is_done(job("a"))


def test_a_pipe_in_the_place_of_a_jobs_options_leaves_the_word_to_the_job(
    runs: Runs, tmp_path: Path
) -> None:
    """It names the pipe; given new options, it would say something else."""
    (tmp_path / "runs" / "a").mkdir(parents=True)
    os.mkfifo(tmp_path / "runs" / "a" / "config.json")
    runs.runner.run([job("a")])
    [(content, _, _)] = runs.calls("a")
    assert "--config" not in content["arguments"]


def test_a_pipe_among_the_locks_is_not_waited_for(runs: Runs, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "locks" / "mine")
    runs.runner.run([job("a")])
    assert runs.done == ["a"]


def test_a_job_is_no_rank_and_imports_what_can_be_imported_here(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    runs.runner.run([job("a")])
    ((_, environment, path),) = runs.calls("a")
    assert not {"RANK", "WORLD_SIZE"} & set(environment)
    assert str(tmp_path / "own") in path


def test_a_job_waits_for_those_that_it_needs(runs: Runs) -> None:
    first = job("z")
    runs.runner.run([job("a", first), first])
    assert runs.done == ["z", "a"]


def test_a_job_that_another_process_runs_is_waited_for(runs: Runs) -> None:
    (runs.folder / "runs" / "a").mkdir()
    lock = (runs.folder / "locks" / "a").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def finish() -> None:
        report = {"methods": [{"name": "single"}]}
        (runs.folder / "runs" / "a" / "report.json").write_text(json.dumps(report))
        lock.close()

    timer = threading.Timer(1.2, finish)
    timer.start()
    runs.runner.run([job("a")])
    timer.join()
    assert runs.done == ["a"]
    assert runs.calls("a") == []


def test_a_report_without_the_line_is_gone_on_with(runs: Runs) -> None:
    folder = runs.folder / "runs" / "a"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"methods": [{"name": "fge"}]}))
    runs.runner.run([job("a")])
    assert len(runs.calls("a")) == 1


REASON = r"failed: lr must be above 0, got 0 \(see .*logs/{name}\.log\)"


def test_a_job_that_fails_is_named_with_its_reason(runs: Runs) -> None:
    with pytest.raises(UserError, match="run bad " + REASON.format(name="bad")):
        runs.runner.run([job("a"), job("bad")])
    assert runs.done == ["a"]


def test_a_job_that_diverges_is_named_and_those_that_do_not_need_it_go_on(runs: Runs) -> None:
    lost = job("diverged")
    needing = job("needing", job("half", lost))
    runs.runner.run([lost, *needing.needs, needing, job("b")])
    assert runs.done == ["b"]
    assert list(runs.runner.diverged) == ["diverged"]
    message = runs.runner.diverged["diverged"]
    assert re.fullmatch("run diverged " + REASON.format(name="diverged"), message)
    assert runs.calls("needing") == runs.calls("half") == []


def test_a_job_that_was_killed_can_be_gone_on_with(runs: Runs) -> None:
    message = "run killed was stopped from outside; run the same command again to continue"
    with pytest.raises(UserError, match=message):
        runs.runner.run([job("killed")])


def test_a_job_that_ends_without_its_line_is_no_endless_loop(runs: Runs) -> None:
    with pytest.raises(UserError, match="run poor ended without single in its report; remove"):
        runs.runner.run([job("poor")])


def test_several_jobs_run_at_once_and_that_is_recorded(tmp_path: Path) -> None:
    runs = Runs(tmp_path, workers=2)
    runs.runner.run([job("a"), job("b")])
    assert max(len(names) for names in runs.seen) == 2
    assert overlapped(tmp_path) == {"a": True, "b": True}


def test_jobs_one_after_the_other_do_not_overlap(runs: Runs) -> None:
    runs.runner.run([job("a"), job("b")])
    assert overlapped(runs.folder) == {"a": False, "b": False}


def test_a_job_beside_that_of_another_process_overlaps(runs: Runs) -> None:
    with (runs.folder / "locks" / "other").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs.runner.run([job("a")])
    runs.runner.run([job("b")])
    assert overlapped(runs.folder) == {"a": True, "b": False}


def test_a_job_that_another_process_joins_overlaps(runs: Runs) -> None:
    lock = (runs.folder / "locks" / "other").open("w")

    def join(names: Any) -> None:
        if names:
            fcntl.flock(lock, fcntl.LOCK_EX)

    runs.runner.on_change = join
    runs.runner.run([job("a")])
    lock.close()
    assert overlapped(runs.folder) == {"a": True}


def test_an_attempt_is_recorded_when_it_begins(runs: Runs) -> None:
    with pytest.raises(UserError):
        runs.runner.run([job("killed")])
    records = read_records(runs.folder / "timing.jsonl")
    assert records == [{"event": "job begun", "job": "killed"}]


def test_an_interruption_stops_the_jobs_and_lets_go_of_them(runs: Runs) -> None:
    def interrupt(names: Any) -> None:
        if names and (runs.folder / "runs" / "slow" / "calls").exists():
            raise KeyboardInterrupt

    runs.runner.on_change = interrupt
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        runs.runner.run([job("slow")])
    assert time.monotonic() - began < 30
    assert (runs.folder / "runs" / "slow" / "interrupted").exists()
    with (runs.folder / "locks" / "slow").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ------------------------------------------------------------------- jobs on the command line


def options(file: Path, **changes: Any) -> dict[str, Any]:
    values = {"data": str(file), "epochs": 1, "batch_size": 32, "val_fraction": 0.0}
    return {**values, "channels_last": "off", "compile": "off", "amp": "off", **changes}


def arguments(folder: Path, job: Job, *, threads: int = 1) -> list[str]:
    """Return the arguments with which a comparison in ``folder`` runs a job."""
    runner = Runner(
        folder,
        workers=1,
        machine={"threads": threads, "device": "cpu"},
        on_change=lambda _: None,
        on_done=lambda _: None,
    )
    return runner._arguments(job)


def saved(folder: Path, name: str = "config.json") -> Any:
    return json.loads((folder / "runs" / "a" / name).read_text())


def trained(file: Path, **changes: Any) -> Job:
    config = TrainConfig(**options(file, **{"method": "single", **changes}))
    return Job("a", "train", config, ("single",), 1)


def test_a_job_is_run_and_gone_on_with(tmp_path: Path, tiny_npz: Path) -> None:
    job = trained(tiny_npz)
    assert main(arguments(tmp_path, job)) == 0
    report = (tmp_path / "runs" / "a" / "report.json").read_bytes()
    assert [m["name"] for m in json.loads(report)["methods"]] == ["single"]
    again = arguments(tmp_path, job)
    assert again[:4] == ["train", "--out", str(tmp_path / "runs" / "a"), "--resume"]
    assert main(again) == 0
    assert (tmp_path / "runs" / "a" / "report.json").read_bytes() == report


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"data": "nowhere.npz"}, 2, "nowhere.npz"),
        ({"lr": 1e30}, 3, "learning rate"),
    ],
)
def test_what_went_wrong_is_one_line_and_an_exit_code(
    changes: dict[str, Any],
    code: int,
    message: str,
    tmp_path: Path,
    tiny_npz: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments(tmp_path, trained(tiny_npz, **changes))) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_jobs_are_commands_of_the_command_line() -> None:
    kinds = {"fge": FGEConfig, "train": TrainConfig, "curve-ensemble": CurveEnsembleConfig}
    assert {name: COMMANDS[name][0] for name in kinds} == kinds


def test_a_job_goes_on_with_the_threads_that_it_was_begun_with(
    tmp_path: Path, tiny_npz: Path
) -> None:
    config = FGEConfig(**options(tiny_npz, epochs=4, start_epoch=0, cycle_epochs=2))
    assert main(arguments(tmp_path, Job("a", "fge", config, ("fge",), 4))) == 0
    added = Job("a", "fge", replace(config, refit="bezier"), ("fge", "fge+refit"), 4)
    again = arguments(tmp_path, added, threads=2)
    assert again[-2:] == ["--refit", "bezier"]
    assert main(again) == 0
    assert saved(tmp_path)["options"]["threads"] == 1
    report = saved(tmp_path, "report.json")
    assert "fge+refit" in {method["name"] for method in report["methods"]}


def test_an_option_that_changed_is_given_and_refused(
    tmp_path: Path, tiny_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path, trained(tiny_npz))) == 0
    again = arguments(tmp_path, trained(tiny_npz, flip=False))
    assert again[-1] == "--no-flip"
    assert main(again) == 2
    assert "cannot resume with flip False" in capsys.readouterr().err


def test_code_of_the_users_own_is_given_again(tmp_path: Path, tiny_npz: Path) -> None:
    words = arguments(tmp_path, trained(tiny_npz, method="package.module:mine"))
    assert words[words.index("--method") + 1] == "package.module:mine"


@pytest.mark.parametrize("leftovers", [[], [".config.json.x1y2z3w4.tmp"]])
def test_a_job_cut_off_at_its_first_file_is_begun(
    leftovers: list[str], tmp_path: Path, tiny_npz: Path
) -> None:
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    for name in leftovers:
        (folder / name).write_text("half")
    assert main(arguments(tmp_path, trained(tiny_npz))) == 0
    assert saved(tmp_path)["options"]["threads"] == 1
    assert not list(folder.glob(".*.tmp"))


def test_a_method_is_trained_on_the_data_that_are_given(tmp_path: Path) -> None:
    data = write_tiny_npz(tmp_path / "other.npz")
    assert main(arguments(tmp_path, trained(data))) == 0
    assert saved(tmp_path, "report.json")["data"] == "other"
