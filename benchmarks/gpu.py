"""All checks and measurements on a GPU, in one command of at most ten minutes.

    python benchmarks/gpu.py [--minutes 9] [--out DIR] [--cifar FILE] [--wheels DIR] [--smoke]

It runs in the root of a checkout, without installing the package and without a network. It needs
torch, torchvision, numpy, scipy, matplotlib, safetensors, rich, jinja2, pillow and pytest. Other
packages can be wheels in the folder ``--wheels`` (``wheels`` by default): tyro, docstring-parser,
typeguard, typing-extensions and platformdirs, which the command line needs, and pyhessian, for a
comparison. Fetch them with

    pip download --no-deps -d wheels tyro docstring-parser typeguard typing-extensions
    pip download --no-deps -d wheels platformdirs pyhessian

``--cifar`` is the CIFAR-10 archive of JPEG files (``train/CLASS/*.jpg``, ``test/CLASS/*.jpg`` in a
``.tar.xz``), ``cifar10-jpeg.tar.xz`` in the checkout by default; it is read as it is. Without it
the last steps are skipped.

Steps run in order of importance, each in its own process with a time limit. Each step writes its
results at once to ``gpu-CARD.json`` and ``gpu-CARD.md`` in ``--out`` (``benchmarks/results`` by
default), and its output to ``gpu-CARD.log``. If a step fails, its error is reported and the next
one runs; steps for which no time is left are named. Runs of the paper's settings that the file
already holds are kept: another call trains another seed. ``--smoke`` runs the same on the CPU with
tiny sizes in under a minute.

1. ``right``: the tests with the marker ``cuda``.
2. ``fast MODEL``: images/s in training and evaluation against two hand-written loops, the share of
   the card's bf16 peak, the share of the time in which the GPU waits, and the waits of the host;
   of VGG-16 and the small default network, of the larger networks at the end.
3. ``paper``: VGG-16 on CIFAR-10 at the settings of arXiv 1802.10026; PreResNet-110 at the end.
4. ``curves``, ``hessian``: the step of a fit over a plain one, points of a curve against full
   passes, the top Hessian eigenvalue against PyHessian.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
GRACE_SECONDS = 5.0
"""Left for writing when the clock runs out."""
Facts = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A part of the program: a function of ``gpu_steps`` or ``gpu_paper``, and its time limit."""

    name: str
    function: str
    limit: float
    options: Facts = field(default_factory=dict)


FIRST, LATER = ("vgg16", "convnet"), ("preresnet20", "preresnet110", "wrn28-10")


def _fast(*names: str) -> list[Step]:
    return [Step(f"fast {name}", "gpu_steps:fast", 60, {"model": name}) for name in names]


STEPS = [
    Step("right", "gpu_steps:right", 75),
    *_fast(*FIRST),
    Step("paper vgg16", "gpu_paper:paper", 600, {"model": "vgg16"}),
    Step("curves", "gpu_steps:curves", 40),
    Step("hessian", "gpu_steps:hessian", 40),
    *_fast(*LATER),
    Step("paper preresnet110", "gpu_paper:paper", 600, {"model": "preresnet110"}),
    Step("paper vgg16 again", "gpu_paper:paper", 600, {"model": "vgg16"}),
]


def in_child(connection: Connection, function: str, plan: Facts, log: str) -> None:
    """Run a step; send ("fact", key, value) for each report, then ("done",) or ("error", text).

    Its output, and that of its libraries, goes to the file ``log``.
    """
    os.setsid()  # so that the step ends together with what it starts
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        module, _, name = function.partition(":")
        work: Callable[[Facts, Callable[[str, Any], None]], None]
        work = getattr(__import__(module), name)
        work(plan, lambda key, value: connection.send(("fact", key, value)))
        connection.send(("done",))
    except BaseException as error:
        traceback.print_exc()
        connection.send(("error", f"{type(error).__name__}: {error}"[:600]))


class Results:
    """The results so far, written as JSON and as a Markdown page after every fact."""

    def __init__(self, out: Path, environment: Facts) -> None:
        from fge.files import write_json, write_text

        self._write_json, self._write_text = write_json, write_text
        out.mkdir(parents=True, exist_ok=True)
        card = "-".join(environment["hardware"].replace("NVIDIA ", "").split()).lower()
        self.stem = out / f"gpu-{card}"
        before = self.stem.with_suffix(".json")
        kept = json.loads(before.read_text()) if before.is_file() else {"steps": {}}
        self.content: Facts = {"environment": environment, "steps": kept["steps"]}

    def set(self, step: str, **facts: Any) -> None:
        """Replace the facts of these names about a step, and write everything."""
        self.content["steps"].setdefault(step, {}).update(facts)
        self.write()

    def write(self) -> None:
        """Write all results so far."""
        self._write_json(self.stem.with_suffix(".json"), self.content)
        from gpu_table import page

        self._write_text(self.stem.with_suffix(".md"), page(self.content))


def run_step(step: Step, plan: Facts, results: Results, seconds: float) -> str:
    """Run one step for at most ``seconds``; return how it ended."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    given = {**plan, **step.options, "seconds": seconds, "before": results.content["steps"]}
    log = str(results.stem.with_suffix(".log"))
    process = context.Process(target=in_child, args=(theirs, step.function, given, log))
    began = time.monotonic()
    process.start()
    theirs.close()
    found: Facts = {}
    status, error = f"stopped after {seconds:.0f} s", ""
    while ours.poll(max(began + seconds - time.monotonic(), 0)):
        try:
            kind, *message = ours.recv()
        except EOFError:
            process.join()
            status, error = "failed", f"the process died (exit code {process.exitcode})"
            break
        if kind == "fact":
            found[message[0]] = message[1]
            results.set(step.name, results=found)
            continue
        status, error = ("done", "") if kind == "done" else ("failed", message[0])
        break
    if status in ("done", "failed"):
        process.join(GRACE_SECONDS)
    end_group(process)
    results.set(
        step.name,
        status=status,
        error=error,
        seconds=round(time.monotonic() - began, 1),
        date=str(date.today()),
        versions={key: plan["environment"][key] for key in ("python", "torch", "torchvision")},
    )
    return status


def end_group(process: BaseProcess) -> None:
    """End a step and all processes that it started."""
    assert process.pid is not None, "the step was started"
    with contextlib.suppress(ProcessLookupError):  # it is gone, or has no group of its own yet
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def run_all(arguments: argparse.Namespace, plan: Facts, work: Path) -> int:
    """Run the steps while there is time; return the number of failures."""
    deadline = time.monotonic() + 60 * arguments.minutes - GRACE_SECONDS
    results = Results(arguments.out, plan["environment"])
    skipped, failures = [], 0
    for step in STEPS:
        left = deadline - time.monotonic()
        if left < (3 if plan["smoke"] else 15):
            skipped.append(step.name)
            continue
        status = run_step(step, {**plan, "work": str(work)}, results, min(step.limit, left))
        failures += status == "failed"
        print(f"{step.name:20} {status}", flush=True)
    if skipped:
        print(f"no time left for: {', '.join(skipped)}")
    results.content["skipped"] = skipped
    results.content["minutes"] = arguments.minutes
    results.write()
    print(f"results: {results.stem}.json, {results.stem}.md")
    return failures


def add_wheels(folder: Path, target: Path) -> None:
    """Make the packages in a folder of wheels importable, here and in processes started later."""
    wheels = sorted(folder.glob("*.whl")) + sorted(folder.glob("*.tar.gz"))
    if not wheels:
        return
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--quiet", "--target"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(target), *map(str, wheels)],
        check=True,
    )
    sys.path.insert(0, str(target))


def start_server(smoke: bool) -> None:
    """Prepare the process that steps are forked from: it loads PyTorch but uses no GPU."""
    if smoke:  # more threads only cost time on arrays as small as these
        os.environ["OMP_NUM_THREADS"] = "1"
    paths = [str(HERE), str(ROOT), *sys.path[1:]]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gpu_steps", "gpu_paper"])


def main() -> int:
    """Run everything; return 1 if a step failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--cifar", type=Path, default=ROOT / "cifar10-jpeg.tar.xz")
    parser.add_argument("--wheels", type=Path, default=ROOT / "wheels")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        add_wheels(arguments.wheels, work / "site")
        sys.path[:0] = [str(HERE), str(ROOT)]
        start_server(arguments.smoke)
        import torch

        from fge.report import environment_facts

        if not arguments.smoke and not torch.cuda.is_available():
            parser.error("there is no GPU here; --smoke runs everything on the CPU")
        device = torch.device("cpu" if arguments.smoke else "cuda")
        plan = {
            "smoke": arguments.smoke,
            "device": str(device),
            "cifar": str(arguments.cifar),
            "environment": environment_facts(device, torch.get_num_threads()),
        }
        return 1 if run_all(arguments, plan, work) else 0


if __name__ == "__main__":
    sys.exit(main())
