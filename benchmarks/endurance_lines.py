"""Command lines and data files that nobody would write: each ends well, or in one line.

A line is a tiny run of some command with options drawn from the fields of its configuration, with
odd values among them. Its data, weights, images or run folder may be damaged. Faults:

- ``traceback``, ``hang`` (after a minute) and ``unclear`` (another exit code than 0, 2 or 3, or no
  single line that begins with ``error:``);
- ``touched``: a file outside ``--out`` was written, changed or removed.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import types
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from endurance_damage import Finding, last_line
from endurance_fork import Done, reap, run
from endurance_runs import BY_NAME, MACHINE, PLAIN, Job, Workplace, copy, remove, tiny_arrays
from PIL import Image

from fge.commands import COMMANDS

MEMORY = 6 << 30
"""Bytes that a command may take: the values ask for more than any machine has."""
TEXTS = ("", " ", "x", "-", "--", "é", "a\nb", "None", "x" * 300)
INTS = ("-1", "0", "1", "2", "3", "7", "1.5", "1e3", "0x10", "\uff11", *TEXTS[:4])
BIG = ("2147483648", "99999999999999999999", "-99999999999999999999")
FLOATS = (
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "-0.0",
    "0.5",
    "1",
    "1e400",
    "1e-320",
    "1e30",
    *TEXTS[:4],
)
PATHS = (
    *("tiny.npz", "new.npz", "data.npz", "weights.pt", "weights.safetensors", "photos", "base-fge"),
    *("base-curve", "studied", "base-fge/config.json", "studied/config.json", "nowhere", "pipe"),
    *("base-fge/snapshots/0001.safetensors", "base-fge/snapshots/0002.safetensors", "folder"),
    *("loop", "/dev/null", "/", ".", "..", "/proc/self/mem", "tiny.npz/x", *TEXTS),
)
MODELS = (
    *(
        "convnet",
        "preresnet20",
        "convnte",
        "",
        ":",
        "os:getcwd",
        "json:dumps",
        "a:b:c",
        "nope.mod:f",
    ),
    *("torchvision:x", "torchvision:", "timm:x", "../x:y", "vgg"),
)
WORDS: dict[str, tuple[str, ...]] = {
    "model": MODELS,
    "method": (
        "single",
        "average",
        "fge",
        "sse",
        "swa",
        "csgld",
        "ema",
        "split",
        "os:sep",
        "",
        "x",
    ),
    "methods": ("single", "average", "fge", "fold", "x", "", "os:sep", "single+tta", "fge+tta"),
    "device": ("cpu", "auto", "cuda", "cuda:9", "cpu:0", "meta", "tpu", "", "mps"),
    "data": (
        "data.npz",
        "photos",
        "tiny.npz",
        "pipe",
        "folder",
        "base-fge",
        "nowhere",
        "",
        "noise",
    ),
    "ood": ("noise", "digits", "data.npz", "photos", "new.npz", "nowhere", "", "pipe"),
    "compile": ("off", "auto", "x", ""),
}
LARGE = (
    "seed",
    "batch_size",
    "eval_batch_size",
    "train_size",
    "test_size",
    "eval_images",
    "examples",
)
"""Options that may be huge, as they do not make a sound run long."""
NOT_DRAWN = ("out", "tensorboard", "data_dir", "speed_cache")
OUTS = (" ", "tiny.npz", "tiny.npz/x", "/dev/null", "/proc/x", "x" * 300, "pipe", "loop", "o\nu")
SHORT = {
    "fge": "--epochs 3 --cycle-epochs 2",
    "train": "--epochs 3 --method single",
    "curve-ensemble": "--epochs 1 --curve-epochs 1 --eval-points 3",
    "connect": "--epochs 1 --eval-points 3",
    "compare": "--epochs 2 --methods single --seeds 2 --ood noise",
    "doctor": "--no-compile",
}
OF_JOBS = ("connect", "plane", "line", "sharpness", "predict", "report")


@dataclass(frozen=True)
class Line:
    """A generated command line; ``out`` is its folder."""

    words: tuple[str, ...]
    out: str
    number: int

    @property
    def command(self) -> str:
        """The command, if it is one."""
        return next((word for word in self.words if word in COMMANDS), "none")

    @property
    def shown(self) -> str:
        """The line as it could be typed, cut where it is long."""
        return " ".join(
            w if w and len(w) < 60 and w.isprintable() else repr(w[:60]) for w in self.words
        )


# --------------------------------------------------------------------------------------- values


def value_of(hint: Any, name: str, rng: random.Random) -> str:
    """Return a value for an option of a type, sound or odd."""
    if name in WORDS:
        return rng.choice(WORDS[name])
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return value_of(rng.choice(kinds), name, rng)
    values: tuple[str, ...] = PATHS if hint is Path else TEXTS
    if origin is Literal:
        values = (*map(str, get_args(hint)), "x", "")
    elif hint is int:
        values = (*INTS, *(BIG if name in LARGE else ()))
    elif hint is float:
        values = FLOATS
    return rng.choice(values)


def option(kind: type, rng: random.Random) -> list[str]:
    """Return an option of a command, drawn from its fields, with its value."""
    known = [f.name for f in fields(kind) if f.name not in NOT_DRAWN]
    name, hints = rng.choice(known), get_type_hints(kind)
    flag = f"--{name.replace('_', '-')}"
    if hints[name] is bool:
        return [rng.choice((flag, f"--no-{flag[2:]}", f"{flag}=1"))]
    if get_origin(hints[name]) is tuple:
        inner = get_args(hints[name])[0]
        return [flag, *(value_of(inner, name, rng) for _ in range(rng.randrange(4)))]
    value = value_of(hints[name], name, rng)
    return [f"{flag}={value}"] if rng.random() < 0.2 else [flag, value]


def line_of(number: int, seed: int) -> tuple[Line, random.Random]:
    """Return a generated line, and the generator that damages its files."""
    rng = random.Random(f"{seed} {number}")
    command = rng.choice([name for name in COMMANDS if name != "doctor"] * 8 + ["doctor"])
    words = [command, *_sound(command, rng)]
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4))):
        words += option(COMMANDS[command][0], rng)
    out = rng.choice(OUTS) if rng.random() < 0.1 else "out"
    words += [] if command in ("doctor", "verify") else ["--out", out]
    if rng.random() < 0.05:
        words.insert(rng.randrange(len(words) + 1), rng.choice(TEXTS))
    return Line(tuple(words), out, number), rng


def _sound(command: str, rng: random.Random) -> list[str]:
    """Return options that make a short run of a command, whose inputs may be damaged."""
    if command in ("fge", "train", "curve-ensemble", "compare", "doctor"):
        data = rng.choice(("tiny.npz", "tiny.npz", "data.npz", "photos"))
        machine = MACHINE if command == "doctor" else PLAIN
        return [*SHORT[command].split(), "--data", data, *machine]
    jobs = [job for job in BY_NAME.values() if job.command == command and job.name in OF_JOBS]
    if not jobs:
        return ["studied"]
    job: Job = rng.choice(jobs)
    words = [word for word in job.words[1:] if word != "--overwrite"]
    if rng.random() < 0.5:
        words = [word.replace("base-fge", "studied") for word in words]
    if command == "predict":
        words = [rng.choice((w, "photos", "data.npz")) if w == "new.npz" else w for w in words]
    return [*words, *SHORT.get(command, "").split()]


# ---------------------------------------------------------------------------------- damaged inputs


def bytes_damaged(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with a part flipped, cut, repeated, zeroed or put in."""
    if not data:
        return b"x"
    place, way = rng.randrange(len(data)), rng.randrange(6)
    count = rng.choice((1, 2, 8, 100))
    if way == 0:
        return data[:place]
    if way == 1:
        return data[:place] + bytes(count) + data[place + count :]
    if way == 2:
        return data[:place] + rng.randbytes(count) + data[place:]
    if way == 3:
        return data[:place] + data[place + count :]
    if way == 4:
        return data + data[: place + 1]
    return data[:place] + rng.randbytes(count) + data[place + count :]


def write_data(path: Path, rng: random.Random) -> None:
    """Write a data set in which an array is odd or missing, or whose bytes are damaged."""
    arrays = tiny_arrays()
    name = rng.choice(list(arrays))
    array = arrays[name]
    odd = (
        lambda: array.astype(float) + np.nan,
        lambda: array[:0],
        lambda: array[:1],
        lambda: array[..., None, None],
        lambda: array.astype(np.int64) - 5,
        lambda: array.astype(np.int64) * 10**15,
        lambda: array.astype(str),
        lambda: array.astype(object),
        lambda: np.array(3),
        lambda: array.astype(complex),
        lambda: np.broadcast_to(array.reshape(-1)[0], (5, 3)),
    )
    way = rng.randrange(len(odd) + 8)
    if way < len(odd):
        arrays[name] = odd[way]()
    elif way == len(odd):
        del arrays[name]
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **arrays)
    data = buffer.getvalue()
    path.write_bytes(bytes_damaged(data, rng) if way > len(odd) else data)


def write_photos(folder: Path, rng: random.Random) -> None:
    """Write a folder of small pictures, of which one is odd, now and then."""
    for part, count in (("train", 6), ("test", 3)):
        for kind in ("a", "b"):
            for number in range(count):
                path = folder / part / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.full((8, 8, 3), 20 * number + 100 * (kind == "a"), np.uint8)
                Image.fromarray(pixels).save(path)
    path = rng.choice(sorted(folder.rglob("*.png")))
    way = rng.randrange(10)
    if way == 0:
        path.unlink()
        os.mkfifo(path)
    elif way == 1:
        path.unlink()
        path.symlink_to(path.name)
    elif way == 2:
        path.unlink()
        path.mkdir()
    elif way == 3:
        Image.new(rng.choice(("1", "L", "P", "RGBA", "I;16")), (8, 8)).save(path)
    elif way == 4:
        Image.new("RGB", (rng.choice((1, 9)), 8)).save(path)
    elif way == 5:
        path.write_text("no picture")
    elif way < 9:
        path.write_bytes(bytes_damaged(path.read_bytes(), rng))


def write_weights(place: Workplace, rng: random.Random) -> None:
    """Write weights files that are damaged, or that hold something else."""
    source = place.cwd / "base-fge" / "snapshots" / "0001.safetensors"
    (place.cwd / "weights.safetensors").write_bytes(bytes_damaged(source.read_bytes(), rng))
    buffer = io.BytesIO()
    state = torch.nn.Linear(2, 2).state_dict()
    torch.save(
        rng.choice((state, {"model": state}, [1, 2], torch.nn.Linear(2, 2), "x", {})), buffer
    )
    data = buffer.getvalue()
    (place.cwd / "weights.pt").write_bytes(bytes_damaged(data, rng) if rng.random() < 0.5 else data)


def write_studied(place: Workplace, rng: random.Random) -> None:
    """Write a run folder as somebody else may have made it: a value of its JSON is odd."""
    folder = place.cwd / "studied"
    copy(place.cwd / "base-fge", folder)
    name = rng.choice(
        ("config.json", "report.json", "page.json", "snapshots/index.json", "log.jsonl")
    )
    if rng.random() < 0.8:
        (folder / "manifest.json").unlink()
    path = folder / name
    if name == "log.jsonl" or rng.random() < 0.3:
        path.write_bytes(bytes_damaged(path.read_bytes(), rng))
        return
    content = json.loads(path.read_bytes())
    value: Any = content
    while isinstance(value, dict | list) and value:
        parent = value
        key: Any = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        value = parent[key]
        if rng.random() < 0.2:
            break
    odd: Sequence[Any] = (
        *(
            None,
            [],
            {},
            "",
            "x",
            -1,
            0,
            10**20,
            1.5,
            True,
            [[]],
            "../../x",
            "/etc/passwd",
            "\ud800",
        ),
        *(float("nan"), "<script>alert(1)</script>", "os:getcwd"),
    )
    parent[key] = rng.choice(odd)
    path.write_text(json.dumps(content))


# ------------------------------------------------------------------------------------------ judging


def furnish(place: Workplace) -> None:
    """Put what the paths of generated lines name, and what no line changes, into the workplace."""
    os.mkfifo(place.cwd / "pipe")
    (place.cwd / "folder").mkdir()
    (place.cwd / "loop").symlink_to("loop")


def state_of(folder: Path, without: str) -> dict[str, tuple[int, ...]]:
    """Return when what is in a folder was last changed, without a folder in it."""
    found: dict[str, tuple[int, ...]] = {}
    skipped = folder / without if without not in ("", ".", "..") else None
    for parent, names, files in os.walk(folder):
        names[:] = [name for name in names if Path(parent, name) != skipped]
        for name in (*names, *files):
            path = Path(parent, name)
            facts = path.lstat()
            stamp = (0, 0) if path.is_dir() else (facts.st_size, facts.st_mtime_ns)
            found[str(path.relative_to(folder))] = (facts.st_mode, facts.st_ino, *stamp)
    return found


def limited() -> None:
    """Limit the memory of a child."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


def judge_line(done: Done, line: Line, before: Any, after: Any) -> list[Finding]:
    """Return the faults of a line, from how it ended and what is outside its folder."""
    case = f"line {line.number}: {line.shown}"
    found = []
    if fault := done.fault((0, 2, 3)):
        kind = fault if fault in ("traceback", "hang") else "unclear"
        found.append(Finding(kind, case, f"{fault}: {last_line(done)}"))
    names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if line.command == "verify":  # its folder is given without --out, and --repair writes there
        names = [name for name in names if name.split("/")[0] != "studied"]
    if names:
        found.append(Finding("touched", case, ", ".join(names[:3])))
    return found


def examine_line(place: Workplace, number: int, seed: int) -> tuple[list[Finding], Done]:
    """Write the inputs of a line, run it, and return its faults and how it ended."""
    line, rng = line_of(number, seed)
    for name in ("out", "photos", "studied"):
        remove(place.cwd / name)
    write_data(place.cwd / "data.npz", rng)
    write_photos(place.cwd / "photos", rng)
    write_weights(place, rng)
    write_studied(place, rng)
    before = state_of(place.cwd, line.out)
    done = run(place, line.words, limited)
    reap()
    found = judge_line(done, line, before, state_of(place.cwd, line.out))
    if line.out not in ("out", "loop") and (place.cwd / line.out[:200]).is_dir():
        remove(place.cwd / line.out)
    return found, done
