"""Tiny runs of every command that writes a folder, where they run, and what they must leave."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fge.commands import COMMANDS

_UNPROMISED = ("timing.jsonl", "timing.csv", ".png", ".lock", ".log")
_STREAMS = ("logs", "locks")


# ------------------------------------------------------------------------------------ the commands

PLAIN = (
    *("--batch-size", "32", "--threads", "1"),
    *("--channels-last", "off", "--compile", "off", "--amp", "off"),
)
MACHINE = ("--device", "cpu", "--threads", "1")
_FEW = ("--eval-points", "4", "--val-fraction", "0.25")
_DATA = ("--data", "tiny.npz")


@dataclass(frozen=True)
class Job:
    """A command with its options, without ``--out``.

    Without ``again`` the same command continues it. ``in_place``: it writes into a finished run.
    """

    name: str
    words: tuple[str, ...]
    again: tuple[str, ...] = ("--resume",)
    in_place: bool = False

    @property
    def command(self) -> str:
        """The command."""
        return self.words[0]

    def start(self, out: str) -> list[str]:
        """Return the arguments that start it."""
        return [*self.words, *self._out(out)]

    def resume(self, out: str) -> list[str]:
        """Return the arguments that continue it in a folder."""
        if self.in_place or not self.again:
            return self.start(out)
        return [self.command, "--out", out, *self.again]

    def go_on(self, cwd: Path, out: str) -> list[str]:
        """Return the arguments with which a user goes on after an interruption, wherever it was."""
        if not (cwd / out).is_dir():
            return self.start(out)
        if self.in_place or not self.again or (cwd / out / "config.json").is_file():
            return self.resume(out)
        return [*self.start(out), *self.again]

    def _out(self, out: str) -> list[str]:
        return [out] if self.in_place else ["--out", out]

    @property
    def reads(self) -> tuple[str, ...]:
        """The finished runs that it looks at."""
        words = " ".join(self.words)
        return tuple(base.name for base in BASE if base.name in words)


def _job(name: str, words: str, *more: str, **options: Any) -> Job:
    return Job(name, (*words.split(), *more), **options)


BASE = (
    _job("base-fge", "fge --epochs 6 --start-epoch 1 --cycle-epochs 2", *_DATA, *PLAIN),
    _job("base-curve", "curve-ensemble --epochs 2", *_DATA, *_FEW, *PLAIN),
)
"""Finished runs that other commands look at."""
JOBS = (
    _job(
        "fge",
        "fge --epochs 6 --start-epoch 1 --cycle-epochs 2 --val-fraction 0.25 --single --ood noise "
        "--tta 2 --refit bezier --refit-epochs 1 --distill-epochs 1",
        *_DATA,
        *PLAIN,
    ),
    _job(
        "fge-baseline",
        "fge --epochs 4 --cycle-epochs 2 --val-fraction 0.25 --baseline auto",
        *_DATA,
        *PLAIN,
    ),
    _job("train", "train --method star --star-branches 2 --epochs 5", *_DATA, *PLAIN),
    _job("train-auto", "train --method auto --epochs 5 --val-fraction 0.25", *_DATA, *PLAIN),
    _job("curve-ensemble", "curve-ensemble --epochs 2", *_DATA, *_FEW, *PLAIN),
    _job(
        "connect",
        "connect --epochs 2 --weights base-fge/snapshots/0001.safetensors "
        "base-fge/snapshots/0002.safetensors",
        *_DATA,
        *_FEW,
        *PLAIN,
    ),
    _job(
        "compare",
        "compare --methods single fge --seeds 2 --epochs 4 --cycle-epochs 2 --ood noise",
        *_DATA,
        *PLAIN,
        again=(),
    ),
    _job("plane", "plane --run base-fge --resolution 3 --eval-images 32", *MACHINE),
    _job("line", "plane --run base-curve --line --line-points 4 --eval-images 32", *MACHINE),
    _job(
        "sharpness",
        "sharpness --run base-fge --k 1 --examples 16 --trace-samples 2 --spectrum-steps 2",
        *MACHINE,
    ),
    _job("predict", "predict --run base-fge --images new.npz --overwrite", *MACHINE, again=()),
    _job("report", "report base-fge base-curve --overwrite", again=()),
    Job("report-again", ("report",), in_place=True),
)
"""What is killed and damaged."""
BY_NAME = {job.name: job for job in JOBS}


# ---------------------------------------------------------------------------------- the workplace


@dataclass
class Workplace:
    """A folder with tiny data and finished runs, in which commands run; outside it are copies.

    ``cwd`` is where the commands run, ``kept`` holds finished runs and half-finished ones.
    """

    root: Path

    def __post_init__(self) -> None:
        self.cwd = self.root / "cwd"
        self.kept = self.root / "kept"
        self.texts = self.root / "texts"
        self.outside = self.root / "outside"
        for folder in (self.cwd, self.kept, self.texts, self.outside, self.root / "home"):
            folder.mkdir(parents=True, exist_ok=True)

    def environment(self) -> dict[str, str]:
        """Return the variables of the commands: caches of their own, and no user's home."""
        home = str(self.root / "home")
        return {
            "FGE_CACHE": str(self.root / "cache"),
            "HOME": home,
            "XDG_CACHE_HOME": f"{home}/.cache",
            "MPLCONFIGDIR": str(self.root / "matplotlib"),
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }

    def clear(self, name: str = "out") -> Path:
        """Remove a folder in which a command ran; return its path."""
        path = self.cwd / name
        remove(path)
        return path


def tiny_split(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noise (N, 8, 8) with a bright column band whose place is the class; labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 100, (count, 8, 8))
    for image, label in zip(images, labels, strict=True):
        image[:, 3 * label : 3 * label + 2] += 120
    return images.astype(np.uint8), labels


def tiny_arrays() -> dict[str, Any]:
    """Return the arrays of a data set of 96 training and 48 test images."""
    parts = {"train": tiny_split(96, 0), "test": tiny_split(48, 1)}
    return {
        f"{part}_{kind}": array
        for part, pair in parts.items()
        for kind, array in zip(("images", "labels"), pair, strict=True)
    }


def remove(path: Path) -> None:
    """Remove whatever is at a path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Copy a folder, with links as links, in place of another."""
    remove(target)
    shutil.copytree(source, target, symlinks=True)


# ---------------------------------------------------------------------------- what must be the same


def is_promised(name: str) -> bool:
    """Return whether a file of a run is the same whenever the run is repeated.

    >>> is_promised("snapshots/0001.safetensors"), is_promised("timing.jsonl")
    (True, False)
    """
    return not name.endswith(_UNPROMISED) and name.split("/")[0] not in _STREAMS


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the regular files of a folder, through no link."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def promised(folder: Path) -> dict[str, bytes]:
    """Return the promised files by name; of a manifest, the entries of promised files."""
    return {
        name: manifest_of(data) if name.endswith("manifest.json") else data
        for name, data in sorted(files_of(folder).items())
        if is_promised(name)
    }


def manifest_of(data: bytes) -> bytes:
    """Return a manifest without its checksum and the entries of files that may differ.

    What stands in its place, such as another file, is as it is.
    """
    try:
        content = json.loads(data)
        del content["sha256"]
        content["files"] = {n: e for n, e in content["files"].items() if is_promised(n)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return data
    return json.dumps(content, indent=1).encode()


def differences(
    folder: Path, reference: dict[str, bytes], ignored: Iterable[str] = ()
) -> list[str]:
    """Return the names of promised files that are missing, more, or not the same."""
    ours = promised(folder)
    names = sorted({*ours, *reference} - set(ignored))
    return [name for name in names if ours.get(name) != reference.get(name)]


assert {job.command for job in JOBS} <= set(COMMANDS)
