"""What a prediction of an exported ensemble takes, beside one of a single network of it.

    python benchmarks/export_latency.py [--members 1 2 3 5 10] [--rounds 20] [--threads 1]

The default network (28 x 28 images, initial weights) predicts one image and batches of 64, given as
uint8, as an ensemble of each size in each form: ``eager``, the module of ``Ensemble.deployable``;
``compiled``, by ``torch.compile``; ``pt2``, a program that ``torch.export.load`` reads; ``onnx``, a
file in ONNX Runtime. All run in one process on the CPU, with the same number of threads. Forms and
sizes take turns within a round, single images 10 times each; the first round is dropped. Figures
are medians over rounds, with quartiles: milliseconds, and the ratio to one network in the same
form within the round. Raw seconds are in ``benchmarks/results/export_latency.json``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from fge import Deployed, Ensemble, Normalise
from fge.export import encoded, onnx_reader, program_reader
from fge.files import write_json
from fge.networks import build_model
from fge.report import environment_facts

RESULTS = Path(__file__).parent / "results" / "export_latency.json"
FORMS = ("eager", "compiled", "pt2", "onnx")
BATCHES = (1, 64)
SINGLES = 10
"""Calls in a row for a batch of one image, of which the mean is taken."""
CLASSES, SIDE = 10, 28
Predict = Callable[[Tensor], Tensor]
Key = tuple[str, int]
"""The form and the number of members."""


def deployed_of(members: int) -> Deployed:
    """Return an ensemble of networks with initial weights, which takes grey levels."""
    networks = []
    for seed in range(members):
        torch.manual_seed(seed)
        size = (SIDE, SIDE)
        networks.append(build_model("convnet", in_channels=1, num_classes=CLASSES, image_size=size))
    ensemble = Ensemble(networks[0], networks)
    return ensemble.deployable(preprocess=Normalise([72.9], [90.0]))


def predictor(form: str, members: int) -> Predict:
    """Return what predicts in a form, after a first call for each size of batch."""
    deployed = deployed_of(members)
    images = images_of(max(BATCHES))
    call: Predict = deployed
    if form == "compiled":
        # A program for each size of batch; fullgraph, so that none falls back to the eager form.
        call = torch.compile(deployed, dynamic=False, fullgraph=True)
    elif form == "pt2":
        call = program_reader(encoded(deployed, images[:2], "pt2"))
    elif form == "onnx":
        call = onnx_reader(encoded(deployed, images[:2], "onnx"))
    with torch.no_grad():
        expected = deployed(images)
        for size in BATCHES:
            torch.testing.assert_close(call(images[:size]), expected[:size], rtol=0, atol=1e-5)
    return call


def images_of(count: int) -> Tensor:
    """Return random images (count, 1, 28, 28)."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 1, SIDE, SIDE), generator=rng, dtype=torch.uint8)


def seconds_of(call: Predict, images: Tensor) -> float:
    """Return the seconds of one call; of a single image the mean over several."""
    calls = SINGLES if len(images) == 1 else 1
    with torch.no_grad():
        started = time.perf_counter()
        for _ in range(calls):
            call(images)
        return (time.perf_counter() - started) / calls


def measure(calls: dict[Key, Predict], size: int, rounds: int) -> list[dict[str, Any]]:
    """Time all forms and sizes of ensembles in turn; return their figures for a size of batch."""
    images = images_of(size)
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    for _ in range(rounds + 1):
        for key, call in calls.items():
            seconds[key].append(seconds_of(call, images))
    return [
        {"form": form, "batch": size, "members": members, "seconds": seconds[form, members][1:]}
        | figures(seconds[form, members][1:], seconds[form, 1][1:])
        for form, members in calls
    ]


def figures(ensemble: Sequence[float], network: Sequence[float]) -> dict[str, list[float]]:
    """Return quartiles of the milliseconds, and of the ratios within a round.

    >>> figures([2.0, 4.0, 3.0], [1.0, 1.0, 1.0])
    {'ms': [2500.0, 3000.0, 3500.0], 'ratio': [2.5, 3.0, 3.5]}
    """
    ratios = [ours / one for ours, one in zip(ensemble, network, strict=True)]
    return {"ms": quartiles([1000 * s for s in ensemble]), "ratio": quartiles(ratios)}


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the lower quartile, the median and the upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return the figures as Markdown: a row for each batch and size, two columns for each form."""
    forms = list(dict.fromkeys(one["form"] for one in found))
    heads = [f"{form}, ms | ratio" for form in forms]
    lines = [
        f"| batch | members | {' | '.join(heads)} |",
        f"| --: | --: |{' --: | --: |' * len(forms)}",
    ]
    for batch, members in dict.fromkeys((one["batch"], one["members"]) for one in found):
        cells = []
        for form in forms:
            [one] = [
                o for o in found if (o["form"], o["batch"], o["members"]) == (form, batch, members)
            ]
            cells += [_cell(one["ms"]), _cell(one["ratio"])]
        lines.append(f"| {batch} | {members} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(three: Sequence[float]) -> str:
    low, median, high = (f"{v:.3g}" if v < 100 else f"{v:.0f}" for v in three)
    return f"{median} ({low} to {high})"


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 3, 5, 10])
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch._dynamo.config.recompile_limit = 8 * len(arguments.members)  # all forms share their code
    sizes = sorted({1, *arguments.members})  # one network is what all is compared with
    calls = {(form, size): predictor(form, size) for size in sizes for form in arguments.forms}
    found = [one for size in BATCHES for one in measure(calls, size, arguments.rounds)]
    print(table(found))
    environment = environment_facts(torch.device("cpu"), arguments.threads)
    environment["onnxruntime"] = onnxruntime.__version__
    write_json(arguments.results, {"environment": environment, "latencies": found})


if __name__ == "__main__":
    main()
