"""What interruptions, damage, odd input and full disks do to a run folder.

    python benchmarks/endurance.py [--kills 200] [--commands 1000] [--seed 0] [--minutes N]
        [--continue] [--shard 0/2] [--out benchmarks/results/endurance.json] [--smoke]
    python benchmarks/endurance.py --merge SHARD.json SHARD.json

Five parts, on tiny runs of every command that writes a folder:

- ``kills``: SIGKILL, SIGTERM or SIGINT at a random moment, then the command goes on until it ends.
  The end must be that of a run without interruption, in all files but times and pictures.
- ``damage``: each file of finished, half-finished and studied runs, in eight ways
  (``endurance_damage.py``).
- ``lines``: generated command lines and data files (``endurance_lines.py``).
- ``pairs``: two commands at a time on one folder. One writes, the other is refused or helps.
- ``space``: disks from 4 kB up. Each full disk is one line; with more space the run goes on.

``--minutes`` gives each part a share of the time, after the runs that it compares with;
``--continue`` adds cases to those of an earlier sitting with the same seed. ``--shard 0/2`` takes
every second case, so that two processes share the work; ``--merge`` joins their results.
Raw results: ``benchmarks/results/endurance.json``. The tables of ``docs/results/endurance.md`` are
written from them.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import endurance_lines as lines
import torch
from endurance_damage import (
    FAULTS,
    STUDIED,
    Counts,
    DamageStudy,
    Finding,
    different,
    last_line,
)
from endurance_fork import (
    LIMIT_SECONDS,
    Child,
    Done,
    children,
    finish,
    furnish,
    kill_half,
    prepare,
    reap,
    run,
    start,
)
from endurance_page import KINDS, RESULTS, write_page
from endurance_runs import BY_NAME, JOBS, Job, Workplace, copy, promised, remove

from fge.files import write_json
from fge.report import environment_facts

SHARES = {"kills": 0.2, "damage": 0.35, "lines": 0.2, "pairs": 0.15, "space": 0.1}
SIGNALS = (*[signal.SIGKILL] * 6, signal.SIGTERM, signal.SIGINT)
MOST_SIGNALS = 4
"""Interruptions of one run."""
AGAIN = 0.3
"""How often a run that goes on is interrupted again."""
PAIRED = ("fge", "train", "curve-ensemble", "plane", "compare", "predict")
FILLED = ("fge", "train", "curve-ensemble", "plane", "compare", "predict", "report")
PAGE_BYTES, SPACE = 4096, "256m"
LIMITS = ("kills", "damages", "commands", "rounds", "minutes")
SMOKE_MINUTES = 0.35
SMOKE = ("train", "predict", "report-again")
Rows = dict[str, Counts]


@dataclass
class Span:
    """The cases of a part in one sitting: each ``step``-th from ``next`` on, for some seconds."""

    next: int
    seconds: float
    step: int = 1

    def numbers(self, end: int) -> Iterator[int]:
        """Yield numbers below ``end``; a case counts once its loop goes on."""
        until = time.perf_counter() + self.seconds
        while self.next < end and time.perf_counter() < until:
            yield self.next
            self.next += self.step


# -------------------------------------------------------------------------------------------- kills


def kills(place: Workplace, count: int, seed: int, span: Span, jobs: tuple[Job, ...]) -> Rows:
    """Interrupt jobs in turn, until so many signals were sent."""
    rows: Rows = {}
    known = {job.name: _end_of(place, job) for job in jobs if count > 0}
    sent = 0
    for number in span.numbers(1_000_000):
        job = jobs[number % len(jobs)]
        if sent >= count:
            break
        rng = random.Random(f"{seed} {number}")
        signals, found, done = interrupted(place, job, rng, *known[job.name])
        sent += signals
        row = rows.setdefault(job.name, Counts())
        row.add(found, done)
        row.cases += signals - 1
    return rows


def _end_of(place: Workplace, job: Job, out: str = "out") -> tuple[float, dict[str, bytes]]:
    """Return how long a job takes, and the promised files at its end."""
    remove(place.cwd / out)
    if job.in_place:
        copy(place.cwd / "base-fge", place.cwd / out)
    done = run(place, job.start(out))
    if done.code:
        raise RuntimeError(f"{job.name}: {done.err}")
    return done.seconds, promised(place.cwd / out)


def interrupted(
    place: Workplace, job: Job, rng: random.Random, took: float, end: dict[str, bytes]
) -> tuple[int, list[Finding], Done]:
    """Interrupt a job once or more; return how often, what is wrong, and how it ended."""
    out = place.clear()
    if job.in_place:
        copy(place.cwd / "base-fge", out)
    case, found, sent = f"{job.name}:", list[Finding](), 0
    while True:
        child = start(place, job.go_on(place.cwd, "out"))
        if sent and (sent == MOST_SIGNALS or rng.random() > AGAIN):
            done = child.wait()
            break
        moment = rng.uniform(0.02, took)
        if child.poll(moment) is not None:
            done = child.wait()
            break
        number = rng.choice(SIGNALS)
        case += f" {number.name} after {moment:.2f} s,"
        sent += 1
        _send(child, number, rng)
        done = child.wait()
        if fault := stopped_badly(done, number):
            found.append(Finding(fault, case, last_line(done)))
    reap()
    if (fault := done.fault((0,))) is not None:
        kind = fault if fault in FAULTS else "lost"
        found.append(Finding(kind, case, f"does not go on: {last_line(done)}"))
    else:
        found += [Finding("silent", case, name) for name in different(out, end)[:3]]
    return sent, found, done


def _send(child: Child, number: signal.Signals, rng: random.Random) -> None:
    """Interrupt a command; now and then the jobs that it has started too, as a reboot does."""
    victims = [child.pid, *(children(child.pid) if rng.random() < 0.5 else [])]
    for pid in victims if number == signal.SIGKILL else victims[:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def stopped_badly(done: Done, number: signal.Signals) -> str | None:
    """Return what is wrong with how a command ended at a signal: it may just have been done."""
    fine = (0, 130) if number == signal.SIGINT else (0, -number)
    if done.code is None:
        return "hang"
    if "Traceback" in done.out + done.err:
        return "traceback"
    return None if done.code in fine else "unclear"


# -------------------------------------------------------------------------------- damage and lines


def damage(
    place: Workplace, count: int | None, seed: int, span: Span, jobs: tuple[Job, ...]
) -> tuple[Rows, int]:
    """Examine damaged files, of each run in turn; return the rows and the number of all cases."""
    study, rows = DamageStudy(place, jobs), Rows()
    cases = list(study.cases(random.Random(seed)))
    for number in span.numbers(len(cases) if count is None else min(count, len(cases))):
        case = cases[number]
        found, done = study.examine(case)
        state = STUDIED if case.state.startswith(STUDIED) else case.state
        rows.setdefault(f"{case.job.name}, {state}", Counts()).add(found, done)
    return rows, len(cases)


def generated(place: Workplace, count: int, seed: int, span: Span) -> Rows:
    """Run generated command lines; return a row per command."""
    rows: Rows = {}
    lines.furnish(place)
    for number in span.numbers(count):
        found, done = lines.examine_line(place, number, seed)
        command = lines.line_of(number, seed)[0].command
        rows.setdefault(command, Counts()).add(found, done)
    return rows


# -------------------------------------------------------------------------------------------- pairs


def pairs(place: Workplace, rounds: int, seed: int, span: Span, jobs: tuple[Job, ...]) -> Rows:
    """Run two commands at a time on one folder, the second a random moment after the first."""
    rows: Rows = {}
    known = {job.name: _end_of(place, job) for job in jobs}
    halves: dict[str, Path] = {}
    for job in jobs:
        if kill_half(place, job, finish(place, job)):
            halves[job.name] = place.kept / f"{job.name}-pair"
            copy(place.cwd / "out", halves[job.name])
    cases = rounds * [(job, kind) for job in jobs for kind in _kinds(job)]
    for number in span.numbers(len(cases)):
        job, kind = cases[number]
        rng = random.Random(f"{seed} {number}")
        half = halves.get(job.name) if kind.startswith("resume") else None
        found, dones = pair(place, job, kind, rng, half, *known[job.name])
        row = rows.setdefault(f"{job.name}, {kind}", Counts())
        row.add(found, dones[0])
        row.same += dones[1].code == 0
        row.refused += dones[1].code == 2
    return rows


def _kinds(job: Job) -> tuple[str, ...]:
    if not job.again:
        return ("new + new",)
    return ("new + new", "resume + resume", "running + overwrite", "running + report")


def pair(
    place: Workplace,
    job: Job,
    kind: str,
    rng: random.Random,
    half: Path | None,
    took: float,
    end: dict[str, bytes],
) -> tuple[list[Finding], tuple[Done, Done]]:
    """Run a pair of commands; return what is wrong, and how both ended."""
    out = place.clear()
    if half is not None:
        copy(half, out)
    first = job.resume("out") if half else job.start("out")
    second = {
        "new + new": job.start("out"),
        "resume + resume": job.resume("out"),
        "running + overwrite": [*job.start("out"), "--overwrite"],
        "running + report": ["report", "out"],
    }[kind]
    moment = rng.uniform(0, 0.7 * took)
    one = start(place, first)
    time.sleep(moment)
    two = start(place, second)
    dones = one.wait(2 * LIMIT_SECONDS), two.wait(2 * LIMIT_SECONDS)
    reap()
    case, found = f"{job.name}, {kind} after {moment:.2f} s", list[Finding]()
    for done in dones:
        if fault := done.fault():
            kind_of = fault if fault in FAULTS else "unclear"
            found.append(Finding(kind_of, case, last_line(done)))
    if all(done.code for done in dones) or (kind == "running + report" and dones[0].code):
        found.append(Finding("lost", case, f"nobody has run it: {last_line(dones[0])}"))
    elif names := different(out, end):
        found.append(Finding("silent", case, names[0]))
    return found, dones


# -------------------------------------------------------------------------------------------- space


def space(place: Workplace, span: Span, jobs: tuple[Job, ...]) -> Rows:
    """Run jobs on disks of 4 kB, 8 kB and so on, until they fit; go on with more space."""
    rows, until = Rows(), time.perf_counter() + span.seconds
    with mounted(place.cwd / "disk") as grow:
        for number in span.numbers(len(jobs)):
            job = jobs[number]
            grow(SPACE)
            _, end = _end_of(place, job, "disk/out")
            size = PAGE_BYTES
            while time.perf_counter() < until:
                remove(place.cwd / "disk" / "out")
                grow(str(size))
                found, done = filled(place, job, size, end, grow, mounted_here=grow is not _no_disk)
                rows.setdefault(job.name, Counts()).add(found, done)
                if done.code == 0:
                    break
                size = int(1.5 * size) // PAGE_BYTES * PAGE_BYTES or 2 * PAGE_BYTES
                size = max(size, (rows[job.name].cases + 1) * PAGE_BYTES)
    return rows


def filled(
    place: Workplace,
    job: Job,
    size: int,
    end: dict[str, bytes],
    grow: Callable[[str], None],
    *,
    mounted_here: bool,
) -> tuple[list[Finding], Done]:
    """Run a job on a disk of so many bytes, and again on one that is large enough."""
    out, case = "disk/out", f"{job.name}, {size // 1024} kB"
    done = run(place, job.start(out), None if mounted_here else lambda: fail_after(size))
    reap()
    found = []
    if fault := done.fault():
        found.append(Finding(fault if fault in KINDS else "unclear", case, last_line(done)))
    elif done.code and not any(word in done.err for word in ("No space", "is full")):
        found.append(Finding("unclear", case, f"not about the disk: {last_line(done)}"))
    grow(SPACE)
    if done.code:
        again = run(place, job.go_on(place.cwd, out))
        reap()
        if again.code:
            found.append(Finding("lost", case, f"does not go on: {last_line(again)}"))
    found += [Finding("silent", case, name) for name in different(place.cwd / out, end)[:3]]
    return found, done


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Callable[[str], None]]:
    """Mount a disk in memory; yield what changes its size. Without the right to, make a folder."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SPACE}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        yield _no_disk
        return
    try:
        yield lambda size: _remount(folder, size)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _remount(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def _no_disk(_: str) -> None:
    """Change no size: writes fail instead (:func:`fail_after`)."""


def fail_after(size: int) -> None:
    """Let this process's files fail to reach the disk once they hold so many bytes together."""
    sync, written = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal written
        written += os.fstat(handle).st_size
        if written > size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    os.fsync = fsync  # type: ignore[assignment]


# ------------------------------------------------------------------------------------------ results


def stored(rows: Rows, before: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Return rows as JSON values, added to those of before."""
    return added([*before, *({"what": what, **asdict(counts)} for what, counts in rows.items())])


def added(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for all of the same name, with their sums."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        known = found.setdefault(row["what"], {"what": row["what"], **asdict(Counts())})
        known |= {name: known[name] + row[name] for name in known if name != "what"}
    return [found[what] for what in sorted(found)]


def merged(shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the results of all shards of a study as one.

    Raises:
        ValueError: they are not of one study.
    """
    first = shards[0]
    if any((one["seed"], one["limits"]) != (first["seed"], first["limits"]) for one in shards):
        raise ValueError("the files are of studies with other seeds or limits")
    parts = {part: added([row for one in shards for row in one[part]]) for part in SHARES}
    left = {name: value for name, value in first.items() if name != "next"}
    return {**left, **parts, "sittings": sum(one["sittings"] for one in shards)}


def measure(asked: argparse.Namespace, before: dict[str, Any]) -> dict[str, Any]:
    """Run all parts in a folder of their own, and return the raw results, with those of before."""
    jobs = tuple(BY_NAME[name] for name in SMOKE) if asked.smoke else JOBS
    limited = {name: getattr(asked, name) for name in LIMITS}
    shard, shards = (int(number) for number in asked.shard.split("/"))
    content: dict[str, Any] = {
        "seed": asked.seed,
        "limits": limited,
        "sittings": before.get("sittings", 0) + 1,
    }

    def span(part: str) -> Span:
        seconds = 60 * asked.minutes * SHARES[part] if asked.minutes else float("inf")
        return Span(before.get("next", {}).get(part, shard), seconds, shards)

    spans = {part: span(part) for part in SHARES}

    def add(part: str, rows: Rows) -> None:
        content[part] = stored(rows, before.get(part, ()))
        content["next"] = {name: span.next for name, span in spans.items()}

    with tempfile.TemporaryDirectory(prefix="endurance-") as folder:
        place = Workplace(Path(folder))
        furnish(place)
        few = [tuple(job for job in jobs if job.name in names) for names in (PAIRED, FILLED)]
        sent = sum(row["cases"] for row in before.get("kills", ()))
        wanted = asked.kills // shards - sent
        add("kills", kills(place, wanted, asked.seed, spans["kills"], jobs))
        found, content["all_cases"] = damage(
            place, asked.damages, asked.seed, spans["damage"], jobs
        )
        add("damage", found)
        add("pairs", pairs(place, asked.rounds, asked.seed, spans["pairs"], few[0]))
        add("space", space(place, spans["space"], few[1]))
        add("lines", generated(place, asked.commands, asked.seed, spans["lines"]))
    content["environment"] = environment_facts(torch.device("cpu"), 1)
    return content


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run all parts, and write the raw results and the page; return the results."""
    parser = argparse.ArgumentParser(description="interruptions, damage, odd input, full disks")
    parser.add_argument("--kills", type=int, default=200, help="signals to send")
    parser.add_argument("--commands", type=int, default=1000, help="lines to generate")
    parser.add_argument("--damages", type=int, help="damaged files; by default all")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of pairs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="about so long; by default without limit")
    parser.add_argument(
        "--continue", dest="go_on", action="store_true", help="add to the results that --out holds"
    )
    parser.add_argument("--shard", default="0/1", help="I/N: each N-th case from case I on")
    parser.add_argument("--merge", type=Path, nargs="+", help="join the results of all shards")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true", help="a few cases of each part")
    asked = parser.parse_args(arguments)
    if asked.smoke:
        asked.kills, asked.commands, asked.damages, asked.rounds = 6, 12, 24, 1
        asked.minutes = asked.minutes or SMOKE_MINUTES
    before = json.loads(asked.out.read_text(encoding="utf-8")) if asked.go_on else {}
    if before and (before["seed"] != asked.seed or "next" not in before):
        parser.error(f"{asked.out} has no cases of --seed {asked.seed} to continue")
    if asked.merge:
        content = merged([json.loads(file.read_text(encoding="utf-8")) for file in asked.merge])
    else:
        prepare()
        content = measure(asked, before)
    write_json(asked.out, content)
    if asked.out.resolve() == RESULTS.resolve() and not asked.smoke:
        write_page(json.loads(RESULTS.read_text(encoding="utf-8")))
    return content


if __name__ == "__main__":
    main()
