"""The search behind ``benchmarks/pays.py``: descents, tails, and one network or several.

    python benchmarks/search_pays.py U:100:0.05:100 S:25:0.1:101 ... [--work runs/pays]
    python benchmarks/search_pays.py

A job is TASK:EPOCHS:FINAL:SEED[:LR[:BATCH[:HOLD]]]. Tasks are U and S of ``pays.py`` (with and
without augmentation), and C (5,000 images of CIFAR-10, which the folder of ``--cifar`` has);
EPOCHS are those of chained linear descents, such as 25+75; each stays at the rate LR (0.2) for a
part HOLD (0) of its steps, then falls to FINAL times LR. FINAL "endpoint" is the conventional
schedule. Batches have BATCH (100) images.
After each descent the weights' means over its last 10, 20, 33 and 50 % are measured with batch-norm
statistics of their own, after the last one the last weights too. The statistics are those of
training images as they are, and (``views``) of crops and mirrored ones, as in training. All are
judged on 20,000 training images of the data set that are neither training nor validation images of
the job (``error``, ``nll``, ``calibrated_nll``), and on its validation images, a tenth
(``val_...``), with the NLL of 5,000 training images without augmentation (``train_nll``). SGD,
momentum 0.9, weight decay 5e-4, one thread; bf16, or float32 with ``--amp off``. Without jobs, the
results so far are printed: ``benchmarks/results/search_pays.json``. Probabilities are kept in
``--work``; ensembles of jobs of one kind, with 2, 3, ... seeds, are listed below the jobs.
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
from fge.config import REFRESH_IMAGES
from fge.data import (
    EVAL_BATCH_SIZES,
    Dataset,
    EvalBatches,
    Normaliser,
    Split,
    TrainBatches,
    ViewBatches,
    default_padding,
    load_dataset,
)
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


class Search:
    """Trains a job and measures its averages.

    Args:
        job: TASK:EPOCHS:FINAL:SEED[:LR[:BATCH[:HOLD]]].
        options: of the command.
    """

    def __init__(self, job: str, options: argparse.Namespace) -> None:
        work, device = options.work, torch.device(options.device)
        self.amp = options.amp
        task, epochs, self.final, seed, *more = job.split(":")
        self.job, self.work, self.seed = job, work, int(seed)
        on_gpu = device.type == "cuda"
        self.device = torch.cuda.get_device_name(device) if on_gpu else "cpu"
        self.descents = [int(part) for part in epochs.split("+")]
        lr, self.batch_size, self.hold = (
            kind(text) for kind, text in zip(KINDS, [*more, *USUAL[len(more) :]], strict=True)
        )
        self.dataset = load_data(task, work, options.cifar).to(device)
        self.normaliser = Normaliser(
            self.dataset.mean, self.dataset.std, device, channels_last=True
        )
        torch.manual_seed(derive_seed(self.seed, "initialisation"))
        model = build_model(
            "convnet",
            in_channels=self.dataset.in_channels,
            num_classes=10,
            image_size=self.dataset.image_size,
        )
        model = model.to(device)
        padding = default_padding(self.dataset.image_size)
        varied: dict[str, Any] = {} if task == "S" else {"crop_padding": padding, "flip": True}
        self.varied = bool(varied)
        self.batches = TrainBatches(
            self.dataset.train, self.normaliser, self.batch_size, seed=self.seed, **varied
        )
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, fused=True
        )
        self.learner = TailLearner(
            model,
            self.optimizer,
            Speed(channels_last=True, amp=self.amp, cuda_graphs=on_gpu),
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
                for views, images in self._refreshing().items():
                    with average.swapped(self.learner.model):
                        refresh_batch_norm(self.learner.model, images)
                        name = f"{number}-{tail}{'-views' if views else ''}"
                        self._measure(name, done, tail, views=views)
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
        return LinearTailLR(
            self.optimizer, steps=epochs * length, final=float(self.final), hold=self.hold
        )

    def _refreshing(self) -> dict[bool, EvalBatches]:
        """Return training images for batch-norm statistics: as they are, and as in training."""
        images = self.dataset.train.first(REFRESH_IMAGES)
        plain, crops = self._eval(images), self.batches.crops
        if not self.varied:
            return {False: plain}
        size = plain.batch_size
        views = ViewBatches(images, self.normaliser, size, crops=crops, seed=self.seed, view=0)
        return {False: plain, True: views}

    def _measure(self, name: str, epochs: int, tail: float, *, views: bool = False) -> None:
        fitted = self.dataset.train.first(_FIT_IMAGES)
        record = {"job": self.job, "device": self.device, "epochs": epochs, "tail": tail}
        record |= {"views": views, "amp": self.amp}
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


def load_data(task: str, work: Path, cifar: Path | None = None) -> Dataset:
    """Return the data of a task, whose test images are other training images."""
    if task != "C":
        path = make_data("fashion-search", work / "data")
        return load_dataset(str(path), val_fraction=0.1)
    path = make_data("cifar-search", work / "data", cifar)
    return load_dataset(str(path), val_fraction=0.1, train_size=5000)


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
        tail += ", views" if record.get("views") else ""
        epochs = f"{record['epochs']} of {record['job'].split(':')[1]}"
        row = [task, epochs, final, seed, ":".join(more), tail, *cells]
        print(f"| {' | '.join(row)} |")


def print_ensembles(work: Path) -> None:
    """Print ensembles of equal jobs with other seeds, where their probabilities are there."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted((work / "search").glob("*.npz")):
        kinds.setdefault(path.stem.rpartition("-")[0], []).append(path)
    for kind, paths in kinds.items():
        data = load_data(kind[0], work)
        for tail in TAILS:
            probs = [torch.from_numpy(np.load(path)[f"0-{tail}"]).double() for path in paths]
            for count in range(2, len(probs) + 1):
                mean = torch.stack(probs[:count]).mean(0)
                values = figures(mean / mean.sum(1, keepdim=True), data.test)
                print(kind, f"tail {tail:g}, {count} networks:", values)


def results() -> list[dict[str, Any]]:
    """Return the records so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def main() -> None:
    """Run jobs that have no results yet, or print what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", nargs="*")
    parser.add_argument("--work", type=Path, default=Path("runs/pays"))
    parser.add_argument("--cifar", type=Path, help="folder with CIFAR-10 as JPEG")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", choices=("bf16", "off"), default="bf16")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for job in arguments.jobs:
        if (job, arguments.amp) not in {(r["job"], r.get("amp", "bf16")) for r in results()}:
            found = Search(job, arguments).run()
            write_json(RESULTS, [*results(), *found])
    if not arguments.jobs:
        print_table(results())
        print_ensembles(arguments.work)


if __name__ == "__main__":
    main()
