"""Jobs of a comparison: each is run once, by whoever comes first; what fails is named."""

from __future__ import annotations

import fcntl
import json
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fge.compare.plan import Job
from fge.compare.runner import Runner
from fge.config.training import TrainConfig
from fge.errors import UserError
from fge.files import read_records

SCRIPT = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
content = json.loads(sys.stdin.read())
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
    assert content["command"] == "train"
    options = content["options"]
    assert (options["epochs"], options["batch_size"], options["threads"]) == (7, 9, 1)


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
    with pytest.raises(UserError, match="run killed was stopped from outside; the same command"):
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
