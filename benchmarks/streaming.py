"""Photographs that are streamed: images/s against torchvision, peak memory, and time to list.

    python benchmarks/streaming.py [--large 20000] [--small 200000] [--workers 2] [--rounds 5]
        [--round-images 2000] [--batch 128] [--memory-gb 6] [--folder DIR]

Two generated folders of JPEGs in ten classes: ``large`` of 512 x 512 pixels, cropped to 224, and
``small`` of 96 x 96, cropped to 64. Ours are the streamed training batches of ``--image-size``:
random resized crops, mirrored and normalised, as float tensors. The contender makes the same of a
plain torchvision ``ImageFolder`` and a ``DataLoader`` with as many workers (v2 transforms:
``RandomResizedCrop``, ``RandomHorizontalFlip``, ``ToImage``, ``ToDtype``, ``Normalize``). Both run
in processes of their own under a limit of memory (``RLIMIT_DATA``), in rounds that alternate; a
round reads ``--round-images`` images from the start of an epoch, and the first of each is dropped.
The ratio is that of the medians.

``list`` is the time until a folder is known (files and labels). ``peak`` is the largest
proportional memory of the process and its workers over a round, for the whole folder and for a
tenth of it: a ratio near 1 means that memory does not grow with the number of files. Raw figures
are in ``benchmarks/results/streaming.json``. The aim is 1.2 times the images/s.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fge.data import Normaliser, Reading, TrainBatches, load_dataset, load_raw
from fge.files import write_json
from fge.report import environment_facts

RESULTS = Path(__file__).parent / "results" / "streaming.json"
CASES = {"large": (512, 224), "small": (96, 64)}
"""The side of the files, and of the crops."""
CLASSES = 10
QUALITY = 90
_TEXTURE = 1024
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# ------------------------------------------------------------------------------ the folders


@functools.cache
def texture() -> np.ndarray:
    """Return a colour texture with detail at all scales, as photographs have it."""
    rng = np.random.default_rng(0)
    total = np.zeros((_TEXTURE, _TEXTURE, 3))
    for power in range(2, 11):
        small = rng.normal(size=(2**power, 2**power, 3))
        for channel in range(3):
            image = Image.fromarray(small[..., channel].astype(np.float32))
            total[..., channel] += np.asarray(image.resize((_TEXTURE, _TEXTURE))) / 2 ** (power / 2)
    total = (total - total.min()) / (total.max() - total.min())
    texture: np.ndarray = (255 * total).astype(np.uint8)
    return texture


def write_part(folder: Path, side: int, numbers: range) -> None:
    """Write numbered files of a folder: crops of the texture."""
    whole = texture()
    for number in numbers:
        rng = np.random.default_rng(number)
        top, left = rng.integers(0, _TEXTURE - side, 2)
        place = folder / "train" / f"class{number % CLASSES}"
        picture = Image.fromarray(whole[top : top + side, left : left + side])
        picture.save(place / f"{number:06d}.jpg", quality=QUALITY)


def write_folder(folder: Path, side: int, count: int, workers: int) -> None:
    """Write a folder of JPEGs, unless it is there from before."""
    if len(list(folder.glob("train/*/*.jpg"))) == count:
        return
    shutil.rmtree(folder, ignore_errors=True)
    for label in range(CLASSES):
        (folder / "train" / f"class{label}").mkdir(parents=True)
    parts = [range(count)[start :: 4 * workers] for start in range(4 * workers)]
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(write_part, [folder] * len(parts), [side] * len(parts), parts))


# ---------------------------------------------------------------------------- the contenders


def ours(folder: Path, crop: int, batch: int, workers: int) -> Any:
    """Return our streamed training batches."""
    reading = Reading(crop, stream="on", workers=workers)
    dataset = load_dataset(str(folder), val_fraction=0, normalize="imagenet", reading=reading)
    normaliser = Normaliser(dataset.mean, dataset.std, torch.device("cpu"))
    return TrainBatches(dataset.train, normaliser, batch, seed=0, flip=True, resized=True)


def theirs(folder: Path, crop: int, batch: int, workers: int) -> Any:
    """Return what a plain torchvision script has."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(crop, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(_MEAN, _STD),
        ]
    )
    images = ImageFolder(str(folder / "train"), transform)
    return DataLoader(images, batch, shuffle=True, num_workers=workers)


MAKERS = {"ours": ours, "torchvision": theirs}


def listed(name: str, folder: Path) -> float:
    """Return the seconds until a folder's files and labels are known."""
    from torchvision.datasets import ImageFolder

    started = time.perf_counter()
    if name == "ours":
        load_raw(str(folder), Path("data"))
    else:
        ImageFolder(str(folder / "train"))
    return time.perf_counter() - started


def one_round(batches: Any, count: int) -> float:
    """Return the images/s over about ``count`` images from the start of an epoch."""
    started, seen = time.perf_counter(), 0
    for inputs, _ in batches:
        seen += len(inputs)
        if seen >= count:
            break
    return seen / (time.perf_counter() - started)


# ----------------------------------------------------------------------------------- memory


def proportional_memory(root: int) -> int:
    """Return the bytes of a process and its children; what they share is counted once."""
    total, waiting = 0, [root]
    while waiting:
        process = Path("/proc") / str(waiting.pop())
        try:
            lines = (process / "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
            for task in (process / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:  # it has ended
            continue
    return total


@contextmanager
def watched(peak: list[int]) -> Iterator[None]:
    """Put the peak of this process's memory, its children's included, into a list."""
    done = threading.Event()

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], proportional_memory(os.getpid()))
            if done.wait(0.1):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def serve(job: dict[str, Any]) -> None:
    """Answer a line of standard input with a round, in a process under a limit of memory."""
    limit = int(job["memory_gb"] * 10**9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(1)
    folder = Path(job["folder"])
    answer: dict[str, Any] = {"list": listed(job["name"], folder)}
    batches = MAKERS[job["name"]](folder, job["crop"], job["batch"], job["workers"])
    print(json.dumps(answer), flush=True)
    for _ in sys.stdin:
        peak = [0]
        with watched(peak):
            rate = one_round(batches, job["round_images"])
        print(json.dumps({"images_per_second": rate, "peak": peak[0]}), flush=True)


class Contender:
    """A contender in a process of its own."""

    def __init__(self, **job: Any) -> None:
        words = [sys.executable, __file__, "--serve", json.dumps(job)]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.list_seconds = float(self._answer()["list"])
        self.rounds: list[dict[str, Any]] = []

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a contender ended with {self.process.wait()}; see above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def round(self) -> None:
        """Run a round."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.rounds.append(self._answer())

    def close(self) -> dict[str, Any]:
        """End the process; return what it measured, without its first round."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        rates = [r["images_per_second"] for r in self.rounds[1:]]
        return {
            "list_seconds": self.list_seconds,
            "images_per_second": statistics.median(rates),
            "rates": rates,
            "peak_bytes": max(r["peak"] for r in self.rounds),
        }


# ---------------------------------------------------------------------------------- the cases


def measure(name: str, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure a case; return its figures."""
    side, crop = CASES[name]
    count = getattr(arguments, name)
    shared = {key: getattr(arguments, key) for key in ("batch", "workers", "memory_gb")}
    shared |= {"crop": crop, "round_images": min(arguments.round_images, count // CLASSES)}
    folders = {"whole": work / name, "tenth": work / f"{name}-tenth"}
    write_folder(folders["whole"], side, count, arguments.workers)
    write_folder(folders["tenth"], side, count // 10, arguments.workers)
    running = {key: Contender(name=key, folder=str(folders["whole"]), **shared) for key in MAKERS}
    for _ in range(arguments.rounds + 1):
        for contender in running.values():
            contender.round()
    found: dict[str, Any] = {key: contender.close() for key, contender in running.items()}
    tenth = Contender(name="ours", folder=str(folders["tenth"]), **shared)
    for _ in range(arguments.rounds + 1):
        tenth.round()
    found["ours_of_a_tenth"] = tenth.close()
    mine, other = found["ours"], found["torchvision"]
    return {
        "files": count,
        "side": side,
        "crop": crop,
        "ratio": mine["images_per_second"] / other["images_per_second"],
        "list_ratio": mine["list_seconds"] / other["list_seconds"],
        "memory_growth": mine["peak_bytes"] / found["ours_of_a_tenth"]["peak_bytes"],
        **found,
    }


def table(results: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| Files | Images/s | torchvision | Ratio | List | torchvision | Peak | Of a tenth |",
        "|-|-|-|-|-|-|-|-|",
    ]
    for case in results.values():
        mine, other, tenth = case["ours"], case["torchvision"], case["ours_of_a_tenth"]
        lines.append(
            f"| {case['files']:,} of {case['side']} px | {mine['images_per_second']:.0f} | "
            f"{other['images_per_second']:.0f} | {case['ratio']:.2f} | "
            f"{mine['list_seconds']:.1f} s | {other['list_seconds']:.1f} s | "
            f"{mine['peak_bytes'] / 1e6:.0f} MB | {tenth['peak_bytes'] / 1e6:.0f} MB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure both cases, print the table and keep the raw figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--large", type=int, default=20_000)
    parser.add_argument("--small", type=int, default=200_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--memory-gb", type=float, default=6)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments.serve)
        return
    with tempfile.TemporaryDirectory() as made:
        work = arguments.folder or Path(made)
        results = {name: measure(name, arguments, work) for name in arguments.cases}
    print(table(results))
    facts = {k: v for k, v in vars(arguments).items() if k not in ("serve", "folder", "results")}
    environment = environment_facts(torch.device("cpu"), 1)
    arguments.results.parent.mkdir(exist_ok=True)
    write_json(
        arguments.results, {"arguments": facts, "environment": environment, "cases": results}
    )


if __name__ == "__main__":
    main()
