"""How long ``sharpness`` takes by default, for one network of each of several sizes.

    python benchmarks/sharpness_defaults.py [--models convnet preresnet20 ...] [--threads 2]

The command runs as a process of its own on initial weights and the bundled images; the seconds are
those of the whole command, its import of PyTorch included. ``mlp`` has two hidden layers and just
under a million parameters. The aim is a minute for networks of up to a million parameters. Raw
figures are in ``benchmarks/results/sharpness_defaults.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fge.files import write_bytes, write_json
from fge.networks import build_model, canonical_state, encode_weights
from fge.report import environment_facts

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "sharpness_defaults.json"
MODELS = ("convnet", "mlp", "preresnet20", "preresnet56", "preresnet110")


def mlp(num_classes: int) -> nn.Module:
    """Return a perceptron for images of 28 x 28."""
    sizes = (784, 1000, 200)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], num_classes))


def measure(name: str, threads: int, folder: Path) -> dict[str, Any]:
    """Run the command for one network; return its seconds and what it measured."""
    factory = "sharpness_defaults:mlp" if name == "mlp" else name
    torch.manual_seed(0)
    model = build_model(factory, in_channels=1, num_classes=10, image_size=(28, 28))
    write_bytes(folder / f"{name}.safetensors", encode_weights(canonical_state(model)))
    command = [sys.executable, str(ROOT / "cli.py"), "sharpness", "--model", factory]
    command += ["--weights", str(folder / f"{name}.safetensors"), "--out", str(folder / name)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
    started = time.perf_counter()
    subprocess.run([*command, "--threads", str(threads)], check=True, env=environment)
    seconds = time.perf_counter() - started
    options = json.loads((folder / name / "config.json").read_text())["options"]
    names = ("examples", "trace_samples", "spectrum_vectors", "spectrum_steps")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "model": name,
        "parameters": parameters,
        "seconds": seconds,
        **{option: options[option] for option in names},
    }


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = [measure(name, arguments.threads, Path(folder)) for name in arguments.models]
    for one in found:
        print(" | ".join(str(value) for value in one.values()))
    environment = environment_facts(torch.device("cpu"), arguments.threads)
    write_json(RESULTS, {"environment": environment, "networks": found})


if __name__ == "__main__":
    main()
