"""The search behind ``benchmarks/pays.py``: descents, tails, and one network or several.

    python benchmarks/search_pays.py U:100:0.05:100 S:25:0.1:101 ... [--work runs/pays]
    python benchmarks/search_pays.py

A job is TASK:EPOCHS:FINAL:SEED[:LR[:BATCH[:HOLD]]]. Tasks are U and S of ``pays.py`` (with and
without augmentation); EPOCHS are those of chained linear descents, such as 25+75; each stays at
the rate LR (0.2) for a part HOLD (0) of its steps, then falls to FINAL times LR. FINAL "endpoint"
is the conventional schedule. Batches have BATCH (100) images.
After each descent the weights' means over its last 10, 20, 33 and 50 % are measured with batch-norm
statistics of their own, after the last one the last weights too. They are judged on 20,000 training
images of Fashion-MNIST that are neither training nor validation images of the job (figures
``error``, ``nll``, ``calibrated_nll``), and on its 1,000 validation images (``val_...``), with the
NLL of 5,000 training images without augmentation (``train_nll``). SGD, momentum 0.9, weight decay
5e-4, bf16, one thread. Without jobs, the results so far are printed:
``benchmarks/results/search_pays.json``. Probabilities are kept in ``--work``; ensembles of jobs of
one kind, with 2, 3, ... seeds, are listed below the jobs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pays_data import make_data
from torch import Tensor

from fge import metrics
from fge.data import EVAL_BATCH_SIZES, EvalBatches, Normaliser, Split, TrainBatches, load_dataset
from fge.files import write_json
from fge.networks import UniformAverage, build_model, refresh_batch_norm
from fge.seeds import derive_seed
from fge.train import (
    ClosedFormLR,
    EndpointLR,
    EpochEnd,
    LinearTailLR,
    Speed,
    TailLearner,
    train,
)

RESULTS = Path(__file__).parent / "results" / "search_pays.json"
TAILS = (0.1, 0.2, 0.33, 0.5)
KINDS, USUAL = (float, int, float), ("0.2", "100", "0")
"""Types and values of LR, BATCH and HOLD."""
_FIT_IMAGES = 5_000


class Descent(LinearTailLR):
    """A linear descent after a part of the steps at the base rate."""

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, final: float, hold: float):
        self.held = round(hold * steps)
        super().__init__(optimizer, steps=steps - self.held, final=final)

    def get_lr(self) -> list[Any]:
        """Return the learning rate of each parameter group at the current step."""
        rate = self.rate_at(max(0, self.last_epoch - self.held))
        return [rate for _ in self.base_lrs]


class Search:
    """Trains a job and measures its averages.

    Args:
        job: TASK:EPOCHS:FINAL:SEED[:LR[:BATCH[:HOLD]]].
        work: folder of data and probabilities.
        device: to train on.
    """

    def __init__(self, job: str, work: Path, device: torch.device) -> None:
        task, epochs, self.final, seed, *more = job.split(":")
        self.job, self.work, self.seed = job, work, int(seed)
        on_gpu = device.type == "cuda"
        self.device = torch.cuda.get_device_name(device) if on_gpu else "cpu"
        self.descents = [int(part) for part in epochs.split("+")]
        lr, self.batch_size, self.hold = (
            kind(text) for kind, text in zip(KINDS, [*more, *USUAL[len(more) :]], strict=True)
        )
        data = make_data("fashion-search", work / "data")
        self.dataset = load_dataset(str(data), val_fraction=0.1).to(device)
        self.normaliser = Normaliser(
            self.dataset.mean, self.dataset.std, device, channels_last=True
        )
        torch.manual_seed(derive_seed(self.seed, "initialisation"))
        model = build_model("convnet", in_channels=1, num_classes=10, image_size=(28, 28))
        model = model.to(device)
        varied: dict[str, Any] = {"crop_padding": 2, "flip": True} if task == "U" else {}
        self.batches = TrainBatches(
            self.dataset.train, self.normaliser, self.batch_size, seed=self.seed, **varied
        )
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, fused=True
        )
        self.learner = TailLearner(
            model,
            self.optimizer,
            Speed(channels_last=True, amp="bf16", cuda_graphs=on_gpu),
            batch_size=self.batch_size,
            refresh=self._eval(self.dataset.train),
        )
        self.records: list[dict[str, Any]] = []
        self.probs: dict[str, Any] = {}

    def run(self) -> list[dict[str, Any]]:
        """Train the descents; return a record for each average."""
        done = 0
        for number, epochs in enumerate(self.descents):
            averages = self._descend(done, epochs)
            done += epochs
            for tail, average in averages.items():
                with average.swapped(self.learner.model):
                    refresh_batch_norm(self.learner.model, self._eval(self.dataset.train))
                    self._measure(f"{number}-{tail}", done, tail)
        self._measure("last", done, 0.0)
        self.work.joinpath("search").mkdir(parents=True, exist_ok=True)
        np.savez(self.work / "search" / f"{self.job.replace(':', '-')}.npz", **self.probs)
        return self.records

    def _descend(self, done: int, epochs: int) -> dict[float, UniformAverage]:
        """Train one descent; return the mean over each tail."""
        averages = {tail: UniformAverage(self.learner.model) for tail in TAILS}
        steps, taken = epochs * len(self.batches), 0
        schedule = self._schedule(epochs)

        def include(*, first: bool) -> None:
            del first
            nonlocal taken
            taken += 1
            for tail, average in averages.items():
                if steps - taken < max(1, round(tail * steps)):
                    average.update(self.learner.model)

        def loss(end: EpochEnd) -> None:
            self.loss = end.train_loss

        self.learner.include = include  # type: ignore[method-assign]  # several tails at once
        train(
            self.learner,
            schedule,
            self.batches,
            first_epoch=done,
            last_epoch=done + epochs,
            seed=self.seed,
            average=1.0,
            on_epoch=loss,
        )
        return averages

    def _schedule(self, epochs: int) -> ClosedFormLR:
        length = len(self.batches)
        if self.final == "endpoint":
            return EndpointLR(self.optimizer, epochs=epochs, steps_per_epoch=length)
        return Descent(self.optimizer, epochs * length, float(self.final), self.hold)

    def _measure(self, name: str, epochs: int, tail: float) -> None:
        fitted = self.dataset.train.first(_FIT_IMAGES)
        record = {"job": self.job, "device": self.device, "epochs": epochs, "tail": tail}
        record["train_loss"] = self.loss
        for prefix, split in (("", self.dataset.test), ("val_", self.dataset.val)):
            probs = self.learner.predict(self._eval(split))
            record |= {f"{prefix}{key}": value for key, value in figures(probs, split).items()}
            self.probs[f"{prefix}{name}"] = probs.numpy().astype(np.float32)
        record["train_nll"] = metrics.nll(
            self.learner.predict(self._eval(fitted)), fitted.labels.cpu()
        )
        self.records.append(record)
        print(json.dumps(record), flush=True)

    def _eval(self, split: Split) -> EvalBatches:
        return EvalBatches(split, self.normaliser, EVAL_BATCH_SIZES[split.labels.device.type])


def figures(probs: Tensor, split: Split) -> dict[str, float]:
    """Return error (percent), NLL and the NLL with the best temperature."""
    labels = split.labels.cpu()
    return {
        "error": metrics.error(probs, labels),
        "nll": metrics.nll(probs, labels),
        "calibrated_nll": float(metrics.tempered_nll_per_example(probs, labels).mean()),
    }


def print_table(records: list[dict[str, Any]]) -> None:
    """Print the results as Markdown."""
    keys = ("error", "calibrated_nll", "val_calibrated_nll", "train_nll")
    print("| task | epochs | final | seed | rate:batch:held | tail | error % | cal. NLL |", end="")
    print(" val | train NLL |")
    print("| :-- | --: | --: | --: | --: | --: | --: | --: | --: | --: |")
    for record in records:
        task, _, final, seed, *more = record["job"].split(":")
        cells = [f"{record[key]:.2f}" if key == "error" else f"{record[key]:.4f}" for key in keys]
        tail = f"{record['tail']:g}" if record["tail"] else "last weights"
        epochs = f"{record['epochs']} of {record['job'].split(':')[1]}"
        row = [task, epochs, final, seed, ":".join(more), tail, *cells]
        print(f"| {' | '.join(row)} |")


def print_ensembles(work: Path) -> None:
    """Print ensembles of equal jobs with other seeds, where their probabilities are there."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted((work / "search").glob("*.npz")):
        kinds.setdefault(path.stem.rpartition("-")[0], []).append(path)
    data = load_dataset(str(make_data("fashion-search", work / "data")), val_fraction=0.1)
    for kind, paths in kinds.items():
        for tail in TAILS:
            probs = [torch.from_numpy(np.load(path)[f"0-{tail}"]).double() for path in paths]
            for count in range(2, len(probs) + 1):
                mean = torch.stack(probs[:count]).mean(0)
                values = figures(mean / mean.sum(1, keepdim=True), data.test)
                print(kind, f"tail {tail:g}, {count} networks:", values)


def main() -> None:
    """Run jobs that have no results yet, or print what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", nargs="*")
    parser.add_argument("--work", type=Path, default=Path("runs/pays"))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for job in arguments.jobs:
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
        if all(record["job"] != job for record in known):
            found = Search(job, arguments.work, torch.device(arguments.device)).run()
            known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
            write_json(RESULTS, [*known, *found])
    if not arguments.jobs and RESULTS.exists():
        print_table(json.loads(RESULTS.read_text()))
        print_ensembles(arguments.work)


if __name__ == "__main__":
    main()
