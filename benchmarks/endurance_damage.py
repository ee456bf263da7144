"""Damage: each file of a run, in eight ways; what a command may make of it, and what it may not.

A command may end with all promised results as without the damage, or with exit code 2 and one line
that names the file or the remedy. Then the run must still be there: once the file is restored, the
command ends as without the damage. These are faults:

- ``lost``: a file of the run, or one that somebody else put there, vanished or changed;
- ``silent``: exit code 0, and other results;
- ``traceback``, ``hang`` (after a minute), ``unclear`` (another exit code, or no such line).

``unread`` is none: exit code 0 and right results, but the damaged file is as it was, because the
command had no need of it. ``verify`` finds it.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from endurance_fork import REMEDY, Done, finish, kill_half, reap, run
from endurance_runs import (
    JOBS,
    Job,
    Workplace,
    copy,
    differences,
    files_of,
    is_promised,
    promised,
    remove,
)

from fge.commands import COMMANDS

FINISHED, HALF, STUDIED = "finished", "half-finished", "studied"
FOREIGN = "notes of mine.txt"
FOREIGN_TEXT = b"not of any run"
TEMPORARY = ".tmp"
MANIFEST = "manifest.json"
UNREAD = "unread"
FAULTS = ("hang", "traceback")
"""Ends of a command that are wrong whatever it does."""
Tree = dict[str, bytes | str]
"""What is in a folder, by name: the bytes of files, and words for what is none."""


# ------------------------------------------------------------------------------------- eight ways


def flip_bit(path: Path, rng: random.Random, _: Workplace) -> None:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
        data = bytearray(b"x")
    path.write_bytes(data)


def truncate(path: Path, rng: random.Random, _: Workplace) -> None:
    """Keep a part from the beginning."""
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(max(len(data), 1))])


def empty(path: Path, _: random.Random, __: Workplace) -> None:
    """Keep nothing."""
    path.write_bytes(b"")


def delete(path: Path, _: random.Random, __: Workplace) -> None:
    """Remove the file."""
    path.unlink()


def as_folder(path: Path, _: random.Random, __: Workplace) -> None:
    """Put a folder in its place, with a file of somebody else."""
    path.unlink()
    path.mkdir()
    (path / FOREIGN).write_bytes(FOREIGN_TEXT)


def as_link(path: Path, _: random.Random, place: Workplace) -> None:
    """Put a link in its place, to a copy outside."""
    outside = place.outside / "copy"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)


def as_pipe(path: Path, _: random.Random, __: Workplace) -> None:
    """Put a pipe in its place, into which nobody writes."""
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, Callable[[Path, random.Random, Workplace], None]] = {
    "bit flipped": flip_bit,
    "truncated": truncate,
    "empty": empty,
    "deleted": delete,
    "a folder": as_folder,
    "a link": as_link,
    "a pipe": as_pipe,
}
SWAPPED = "swapped"
WAYS = (*DAMAGES, SWAPPED)


def swap(folder: Path, name: str, rng: random.Random) -> str:
    """Exchange a file with another one, of its kind if there is one; return the other's name."""
    names = [other for other in sorted(files_of(folder)) if other != name and FOREIGN not in other]
    alike = [other for other in names if Path(other).suffix == Path(name).suffix]
    ours = (folder / name).read_bytes()
    different = [n for n in alike or names if (folder / n).read_bytes() != ours]
    other = rng.choice(different or names)
    theirs = (folder / other).read_bytes()
    (folder / name).write_bytes(theirs)
    (folder / other).write_bytes(ours)
    return other


# -------------------------------------------------------------------------------------- the judge


@dataclass(frozen=True)
class Case:
    """A damaged file of a run, in the state of a finished, a half-finished or a studied one."""

    job: Job
    state: str
    name: str
    way: str
    number: int = 0

    @property
    def words(self) -> str:
        """The case in one line."""
        return f"{self.job.name}, {self.state}: {self.name} {self.way} (case {self.number})"


@dataclass
class Finding:
    """A fault: its kind, the case, and what was found."""

    kind: str
    case: str
    detail: str


@dataclass
class Counts:
    """What has been counted."""

    cases: int = 0
    same: int = 0
    refused: int = 0
    unread: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, found: list[Finding], done: Done) -> None:
        """Count a case, and show its faults."""
        self.cases += 1
        self.same += done.code == 0
        self.refused += done.code == 2
        faults = [finding for finding in found if finding.kind != UNREAD]
        self.unread += len(faults) < len(found)
        self.findings += faults
        for finding in faults:
            print(f"{finding.kind} | {finding.case} | {finding.detail}", flush=True)


def tree(folder: Path) -> Tree:
    """Return what is in a folder."""
    found: Tree = {}
    for parent, folders, names in os.walk(folder):
        for name in (*names, *(f for f in folders if Path(parent, f).is_symlink())):
            path = Path(parent, name)
            key = path.relative_to(folder).as_posix()
            if path.is_symlink():
                found[key] = f"link to {path.readlink()}"
            else:
                found[key] = path.read_bytes() if path.is_file() else "a pipe"
    return found


def plant(folder: Path) -> list[str]:
    """Put a file of somebody else into each folder; return their names."""
    folders = [Path(parent) for parent, _, _ in os.walk(folder)]
    for parent in folders:
        (parent / FOREIGN).write_bytes(FOREIGN_TEXT)
    return [(parent / FOREIGN).relative_to(folder).as_posix() for parent in folders]


def judge(done: Done, damaged: list[str]) -> tuple[str, str] | None:
    """Return kind and words of what is wrong with the end of a command, files aside."""
    fault = done.fault()
    if fault in FAULTS:
        return str(fault), last_line(done)
    if fault:
        return "unclear", f"{fault}: {last_line(done)}"
    named = any(name in done.err or Path(name).name in done.err for name in damaged)
    if done.code and not (named or REMEDY.search(done.err)):
        return "unclear", f"neither file nor remedy: {done.err.strip()}"
    return None


def losses(
    before: Tree,
    after: Tree,
    *,
    failed: bool = False,
    finished: bool = False,
    damaged: Sequence[str] = (),
) -> list[str]:
    """Return what vanished or changed, in words, of a run and of the files of others in it.

    Args:
        before: the folder before the command.
        after: the folder after it.
        failed: whether the command failed.
        finished: whether the run was finished: then a command that fails may change nothing. One
            that was not goes back to its last checkpoint.
        damaged: names of files that are not as they were.
    """
    words = []
    for name, content in before.items():
        foreign = Path(name).name == FOREIGN
        if foreign and after.get(name) != content:
            words.append(f"{name}, of somebody else, {_became(after, name)}")
        elif foreign or not (failed and finished) or name in damaged or not is_promised(name):
            continue
        elif name not in after or (Path(name).name != "manifest.json" and after[name] != content):
            words.append(f"{name} {_became(after, name)}")
    return words


def _became(after: Tree, name: str) -> str:
    return "changed" if name in after else "vanished"


def last_line(done: Done) -> str:
    """Return the last line that a command wrote, of its errors if there are any."""
    lines = [line for line in (done.err or done.out).strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "(nothing)"


# -------------------------------------------------------------------------------------- the study


@dataclass
class Kept:
    """A run before its damage, and the promised files at its undamaged end."""

    folder: Path
    end: dict[str, bytes]


class DamageStudy:
    """Damages files of the runs of a workplace.

    Args:
        place: with finished base runs.
        jobs: whose runs are damaged.
    """

    def __init__(self, place: Workplace, jobs: tuple[Job, ...] = JOBS) -> None:
        self.place = place
        self.kept: dict[tuple[str, str], Kept] = {}
        for job in jobs:
            self._keep(job)
        self.jobs = jobs

    def _keep(self, job: Job) -> None:
        """Keep the end of a job and a half-finished one."""
        place, out = self.place, self.place.cwd / "out"
        calls = finish(place, job)
        finished = place.kept / f"{job.name}-finished"
        copy(out, finished)
        end = promised(out)
        self.kept[job.name, FINISHED] = Kept(finished, end)
        half = place.kept / f"{job.name}-half"
        if kill_half(place, job, calls) and files_of(out):
            copy(out, half)
            self.kept[job.name, HALF] = Kept(half, end)

    def cases(self, rng: random.Random) -> Iterator[Case]:
        """Yield all cases, of each job and state in turn."""
        states = [(job, state, kept.folder) for job, state, kept in self._known()]
        states += [
            (job, f"{STUDIED} {base}", self.place.cwd / base)
            for job in self.jobs
            for base in job.reads
        ]
        queues = [self._of(job, state, folder, rng) for job, state, folder in states]
        while queues:
            queues = [queue for queue in queues if queue]
            for queue in queues:
                yield queue.pop()

    def _known(self) -> list[tuple[Job, str, Kept]]:
        """Return the kept runs."""
        jobs = {job.name: job for job in self.jobs}
        return [(jobs[name], state, kept) for (name, state), kept in self.kept.items()]

    @staticmethod
    def _of(job: Job, state: str, folder: Path, rng: random.Random) -> list[Case]:
        names = [n for n in sorted(files_of(folder)) if not n.endswith((TEMPORARY, ".lock"))]
        ways = [way for way in WAYS if way != SWAPPED or len(names) > 1]
        cases = [Case(job, state, n, way, rng.randrange(10**6)) for n in names for way in ways]
        rng.shuffle(cases)
        return cases

    def examine(self, case: Case) -> tuple[list[Finding], Done]:
        """Damage a file, run the command, and return its faults and how it ended."""
        studied = case.state.startswith(STUDIED)
        place, job = self.place, case.job
        out = place.clear()
        if studied:
            folder = place.cwd / case.state.split()[1]
            original = place.kept / folder.name
            if not original.exists():
                copy(folder, original)
            if job.in_place:
                copy(original, out)
        else:
            folder, original = out, self.kept[job.name, case.state].folder
            copy(original, out)
        try:
            found, done = self._examine(case, folder, original)
            if not studied and "verify" in COMMANDS:
                copy(original, out)
                damaged = self._damage(case, out)
                found += [Finding(*pair) for pair in self._mended(case, damaged)]
            return found, done
        finally:
            reap()
            if studied:
                copy(original, folder)

    def _examine(self, case: Case, folder: Path, original: Path) -> tuple[list[Finding], Done]:
        place, job, studied = self.place, case.job, case.state.startswith(STUDIED)
        damaged = self._damage(case, folder)
        before, outside = tree(folder), files_of(place.outside)
        found: list[tuple[str, str]] = []
        if not studied and "verify" in COMMANDS:
            settled = [name for name, entry in _known(original).items() if "next" not in entry]
            listed = [n for n in damaged if n in settled or Path(n).name == MANIFEST]
            found += verified(place, before, listed)
        words = job.start("out") if studied else job.resume("out")
        done = run(place, words)
        reap()
        after = tree(folder)
        if wrong := judge(done, damaged):
            found.append(wrong)
        failed, finished = done.code != 0, studied or case.state == FINISHED
        lost = losses(before, after, failed=failed or studied, finished=finished, damaged=damaged)
        if files_of(place.outside) != outside:
            lost.append("the file that the link points to changed")
        found += [("lost", words) for words in lost]
        end = self.kept[job.name, FINISHED].end
        out = place.cwd / "out"
        if not failed:
            names = different(out, end)
            if any(Path(name).name == MANIFEST for name in damaged):  # a temporary file is nobody's
                names = [name for name in names if not name.endswith(TEMPORARY)]
            kind = UNREAD if untouched(names, damaged, before, after) else "silent"
            found += [(kind, name) for name in names[:3]]
        elif done.code == 2:
            # A manifest first: what the run has dropped is known from it.
            for name in sorted(damaged, key=lambda name: Path(name).name != MANIFEST):
                restore(folder, name, original)
            again = run(place, words)
            reap()
            left = different(out, end)
            if again.code or left:
                what = last_line(again) if again.code else f"{left[0]} differs"
                found.append(
                    ("lost", f"after the file was restored: {what}; first: {last_line(done)}")
                )
        return [Finding(kind, case.words, detail) for kind, detail in found], done

    def _mended(self, case: Case, damaged: list[str]) -> Iterator[tuple[str, str, str]]:
        """Let ``verify --repair`` mend a damaged run; yield what is wrong with what follows.

        A manifest is made again from the files that are there, unchecked: then a damaged one may
        be found later, and a temporary file is nobody's.
        """
        unchecked = any(Path(name).name == MANIFEST for name in damaged)
        place, out, words = self.place, self.place.cwd / "out", case.words
        before = tree(out)
        done = run(place, ["verify", "out", "--repair"])
        yield from (("lost", words, f"by --repair: {what}") for what in losses(before, tree(out)))
        if fault := done.fault():
            yield (fault if fault in FAULTS else "unclear"), words, f"--repair: {last_line(done)}"
            return
        again = run(place, case.job.resume("out"))
        reap()
        if (fault := again.fault()) in FAULTS:
            yield str(fault), words, f"after --repair: {last_line(again)}"
        elif again.code and not done.code and (again.fault() or not unchecked):
            yield "unclear", words, f"--repair finds all well, but then: {last_line(again)}"
        elif not again.code and not done.code:
            end = self.kept[case.job.name, FINISHED].end
            names = without_dropped_checkpoints(out, different(out, end))
            if unchecked:
                names = [n for n in names if not n.endswith((MANIFEST, TEMPORARY))]
            yield from (("silent", words, f"after --repair: {n}") for n in names[:3])

    def _damage(self, case: Case, folder: Path) -> list[str]:
        """Plant files of others, and damage the file of the case; return the damaged names."""
        rng = random.Random(case.number)
        plant(folder)
        if case.way == SWAPPED:
            return [case.name, swap(folder, case.name, rng)]
        DAMAGES[case.way](folder / case.name, rng, self.place)
        return [case.name]


CHECKPOINT = re.compile(r"(^|/)state/checkpoint(-2)?\.safetensors$")


def different(out: Path, end: dict[str, bytes]) -> list[str]:
    """Return the names of promised files that are not as at the undamaged end."""
    foreign = [name for name in files_of(out) if Path(name).name == FOREIGN]
    return differences(out, end, foreign)


def without_dropped_checkpoints(out: Path, names: list[str]) -> list[str]:
    """Return names without the older one of two checkpoints, which ``--repair`` drops, and says so.

    The manifest does not have it either.
    """
    gone = [n for n in names if CHECKPOINT.search(n) and not (out / n).exists()]
    manifests = {str(parent / MANIFEST) for n in gone for parent in Path(n).parents}
    return [name for name in names if name not in manifests and name not in gone]


def untouched(names: list[str], damaged: list[str], before: Tree, after: Tree) -> bool:
    """Return whether only damaged files differ, and the command has left them as they were."""
    return all(name in damaged and before.get(name) == after.get(name) for name in names)


def restore(folder: Path, name: str, original: Path) -> None:
    """Put a file back, unless the run has dropped it on the way back to its last checkpoint."""
    known, now = _known(original), _known(folder)
    remove(folder / name)
    if known and name in known and now and name not in now:
        return
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes((original / name).read_bytes())


def _known(folder: Path) -> dict[str, Any]:
    """Return the entries in the manifests of a run and of those in it; none where one is bad."""
    known: dict[str, Any] = {}
    for path in folder.rglob(MANIFEST):
        try:
            content = json.loads(path.read_bytes() if path.is_file() else b"")
            files = content["files"] if "format" in content else {}  # another file, swapped
            within = path.parent.relative_to(folder)
            known |= {(within / name).as_posix(): entry for name, entry in files.items()}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
    return known


def verified(place: Workplace, before: Tree, listed: list[str]) -> list[tuple[str, str]]:
    """Return what is wrong with what ``verify`` says of a run whose ``listed`` files are damaged.

    It knows the files of the manifest: one written just before a kill may not be there yet.
    """
    done = run(place, ["verify", "out"])
    found = []
    if done.code is None or done.code not in (0, 2) or "Traceback" in done.out + done.err:
        found.append(
            ("traceback" if done.code is not None else "hang", f"verify: {last_line(done)}")
        )
    results = [name for name in listed if is_promised(name)]
    if done.code == 0 and results:
        found.append(("silent", f"verify finds nothing wrong with {results[0]}"))
    if tree(place.cwd / "out") != before:
        found.append(("lost", "verify changed the run"))
    return found
