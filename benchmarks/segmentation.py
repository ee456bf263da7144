"""Segmentation in a loop of one's own: every pixel of a cluttered image has a class.

    python benchmarks/segmentation.py search
    python benchmarks/segmentation.py run [--seeds 5]
    python benchmarks/segmentation.py table

Images of Fashion-MNIST at random contrast under noise; the target of a pixel is the background, or
the kind of clothing where the silhouette is (grey level above 16): tops, trousers and dresses,
shoes, bags. 2,000 images train a small U-Net for 20 epochs in all; test are 2,000 of the test
images. ``search`` chooses the rate with 2,000 other training images and other seeds. ``run``
compares, at equal budgets: a conventional network, the mean of one descent's tail, three members of
FGE that are means, and two networks of half the epochs; for reference two whole networks at twice
the budget. One thread, float32, about 25 s for each network. Finished networks are kept, so an
interrupted study continues. Results: ``benchmarks/results/segmentation.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import fge
from fge.data import load_dataset
from fge.files import write_json
from fge.metrics import paired_difference_over_seeds
from fge.report import environment_facts, markdown_table
from fge.seeds import derive_seed, generator
from fge.train import EndpointLR

RESULTS = Path(__file__).parent / "results" / "segmentation.json"
EPOCHS, BATCH, FINAL, TAIL = 20, 50, 0.05, 0.2
RATES = (0.03, 0.1, 0.3, 1.0)
COUNT, SILHOUETTE, FIRST_SEED = 2_000, 16, 1000
CYCLE_START, CYCLE = 10, 4
KINDS = (1, 2, 1, 2, 1, 3, 1, 3, 4, 3)
"""Of each class of Fashion-MNIST: tops, trousers and dresses, shoes, bags. 0 is the background."""
CLASSES = 1 + max(KINDS)
Pixels = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Scenes:
    """Images (N, 1, 28, 28) and the classes of their pixels (N, 28, 28)."""

    train: Pixels
    search: Pixels
    test: Pixels

    @classmethod
    def make(cls, count: int = COUNT) -> Scenes:
        """Draw contrast and noise, always the same."""
        data = load_dataset("fashion-mnist-mini", val_fraction=0.0)
        train, test = (
            _scenes(part.images[:size], part.labels[:size], number)
            for number, (part, size) in enumerate(((data.train, 2 * count), (data.test, count)))
        )
        first, second = (
            (train[0][a:b], train[1][a:b]) for a, b in ((0, count), (count, 2 * count))
        )
        return cls(first, second, test)


def _scenes(images: Tensor, labels: Tensor, number: int) -> Pixels:
    random = generator(0, "scenes", number)
    items = images.float().reshape(-1, 1, 28, 28)
    kinds = torch.tensor(KINDS)[labels][:, None, None]
    targets = torch.where(items[:, 0] > SILHOUETTE, kinds, 0)
    contrast = 0.3 + 0.7 * torch.rand(len(items), 1, 1, 1, generator=random)
    noise = torch.randn(items.shape, generator=random)
    return items / 255 * contrast + 0.3 * noise, targets


class UNet(nn.Module):
    """Two halvings and back, with the maps of before joined; logits (N, 5, 28, 28)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        sizes = (width, 2 * width, 4 * width)
        self.down = nn.ModuleList(
            [_block(1, sizes[0]), _block(sizes[0], sizes[1]), _block(sizes[1], sizes[2])]
        )
        self.up = nn.ModuleList(
            [_block(sizes[2] + sizes[1], sizes[1]), _block(sizes[1] + sizes[0], sizes[0])]
        )
        self.head = nn.Conv2d(sizes[0], CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of each pixel."""
        fine = self.down[0](images)
        middle = self.down[1](F.max_pool2d(fine, 2))
        maps = self.down[2](F.max_pool2d(middle, 2))
        maps = self.up[0](torch.cat([F.interpolate(maps, scale_factor=2.0), middle], dim=1))
        maps = self.up[1](torch.cat([F.interpolate(maps, scale_factor=2.0), fine], dim=1))
        logits: Tensor = self.head(maps)
        return logits


def _block(before: int, after: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


class Loop:
    """A loop of one's own: a network, its optimizer, and the order of its images."""

    def __init__(self, pixels: Pixels, lr: float, seed: int) -> None:
        self.inputs, self.targets = pixels
        self.lr, self.seed, self.epoch = lr, seed, 0
        torch.manual_seed(derive_seed(seed, "network"))
        self.model = UNet()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4
        )
        self.steps = len(self.inputs) // BATCH
        self.batches = list(torch.split(self.inputs, BATCH))
        """Inputs to refresh batch norm."""

    def train(self, epochs: int, after_step: Callable[[], object]) -> None:
        """Train for some epochs; call ``after_step`` after each step of the optimizer."""
        self.model.train()
        for _ in range(epochs):
            order = torch.randperm(
                len(self.inputs), generator=generator(self.seed, "order", self.epoch)
            )
            self.epoch += 1
            for rows in torch.split(order, BATCH):
                loss = F.cross_entropy(self.model(self.inputs[rows]), self.targets[rows])
                torch.autograd.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
                after_step()

    def tail(self, epochs: int) -> fge.Ensemble:
        """Train a linear descent; return the mean of its tail as an ensemble of one."""
        steps = epochs * self.steps
        schedule = fge.LinearTailLR(self.optimizer, steps=steps, final=FINAL)
        mean = fge.TailAverage(self.model, first_step=round((1 - TAIL) * steps))

        def after_step() -> None:
            schedule.step()
            mean.step()

        self.train(epochs, after_step)
        return fge.Ensemble(self.model, [mean.module(refresh=self.batches)])


def single(pixels: Pixels, lr: float, seed: int) -> Iterator[fge.Ensemble]:
    """Yield the conventional network."""
    loop = Loop(pixels, lr, seed)
    schedule = EndpointLR(loop.optimizer, epochs=EPOCHS, steps_per_epoch=loop.steps)
    loop.train(EPOCHS, schedule.step)
    yield fge.Ensemble(loop.model, [loop.model])


def average(pixels: Pixels, lr: float, seed: int) -> Iterator[fge.Ensemble]:
    """Yield the mean of the tail of one descent."""
    yield Loop(pixels, lr, seed).tail(EPOCHS)


def cycles(pixels: Pixels, lr: float, seed: int) -> Iterator[fge.Ensemble]:
    """Yield the ensemble of FGE: half of the budget at the base rate, then three descents."""
    loop = Loop(pixels, lr, seed)
    loop.train(CYCLE_START, lambda: None)
    with tempfile.TemporaryDirectory() as folder:
        cycle = fge.FGE(
            loop.model,
            loop.optimizer,
            cycle_steps=CYCLE * loop.steps,
            max_lr=lr / 2,
            min_lr=lr * FINAL,
            out=folder,
            average=0.3,
            refresh=loop.batches,
        )
        loop.train(EPOCHS - CYCLE_START, cycle.step)
        yield cycle.ensemble()


def split(pixels: Pixels, lr: float, seed: int) -> Iterator[fge.Ensemble]:
    """Yield two networks of half the epochs, each by itself."""
    for number in range(2):
        yield Loop(pixels, lr, derive_seed(seed, "split", number)).tail(EPOCHS // 2)


METHODS = {"single": single, "average": average, "fge": cycles, "split": split}
MEMBERS = {"single": 1, "average": 1, "fge": 3, "split": 2}


def predicted(method: str, pixels: Pixels, lr: float, seed: int, inputs: Tensor) -> Tensor:
    """Return the mean probabilities (N, 5, 28, 28) of a method's members."""
    batches = list(torch.split(inputs, 250))
    means = [ensemble.predict(batches) for ensemble in METHODS[method](pixels, lr, seed)]
    return torch.stack(means).mean(dim=0)


def figures(probs: Tensor, targets: Tensor) -> dict[str, Any]:
    """Return pixel error (%) and NLL (nats) of each image (N,), and the mean IoU (%)."""
    labels = probs.argmax(dim=1)
    nll = -probs.gather(1, targets[:, None])[:, 0].clamp(min=1e-12).log()
    both, either = (
        torch.stack([kind(labels == c, targets == c).sum() for c in range(CLASSES)])
        for kind in (torch.logical_and, torch.logical_or)
    )
    return {
        "error": (100 * (labels != targets).double().mean(dim=(1, 2))).tolist(),
        "nll": nll.mean(dim=(1, 2)).tolist(),
        "mean_iou": float(100 * (both / either.clamp(min=1)).mean()),
    }


def search() -> None:
    """Train with each rate, conventionally and averaged; judge it on other training images."""
    scenes = Scenes.make()
    for lr in RATES:
        for method in ("single", "average"):
            probs = predicted(method, scenes.train, lr, 100, scenes.search[0])
            found = figures(probs, scenes.search[1])
            nll, error = float(np.mean(found["nll"])), float(np.mean(found["error"]))
            _keep("search", f"{method} {lr:g}", {"nll": nll, "error": error})


def best_rate(method: str) -> float:
    """Return the rate of lowest NLL in the search; that of ``average`` for all that average."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))["search"]
    kind = "single" if method == "single" else "average"
    return min(RATES, key=lambda lr: float(found[f"{kind} {lr:g}"]["nll"]))


def run(seeds: int, work: Path) -> None:
    """Measure what is missing of each method and seed; keep figures and paired differences."""
    scenes = Scenes.make()
    work.mkdir(parents=True, exist_ok=True)
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for method in METHODS:
            cell = work / f"{method}-{seed}.npz"
            if not cell.is_file():
                lr = best_rate(method)
                probs = predicted(method, scenes.train, lr, seed, scenes.test[0])
                with cell.with_suffix(".tmp").open("wb") as file:
                    np.savez(file, probs=probs.numpy().astype(np.float32))
                cell.with_suffix(".tmp").replace(cell)
                print(f"{method}, seed {seed}", flush=True)

    def kept(method: str, seed: int) -> Tensor:
        with np.load(work / f"{method}-{FIRST_SEED + seed % seeds}.npz") as file:
            return torch.from_numpy(file["probs"]).double()

    targets, values = scenes.test[1], {}
    for method in METHODS:
        found = [figures(kept(method, seed), targets) for seed in range(seeds)]
        _keep("run", method, _means(found))
        values[method] = {key: np.array([one[key] for one in found]) for key in ("error", "nll")}
        for key, ours in values[method].items():
            difference = paired_difference_over_seeds(ours, values["single"][key])
            _keep("differences", f"{method} {key}", list(difference))
    for kind in ("single", "average"):
        pairs = [(kept(kind, seed) + kept(kind, seed + 1)) / 2 for seed in range(seeds)]
        _keep("run", f"two networks, {kind}", _means([figures(p, targets) for p in pairs]))


def _means(found: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the mean of each figure over the images, for each seed."""
    return {key: [float(np.mean(one[key])) for one in found] for key in found[0]}


def _keep(part: str, name: str, value: Any) -> None:
    content = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    content.setdefault(part, {})[name] = value
    content["environment"] = environment_facts(torch.device("cpu"), 1)
    write_json(RESULTS, content)


def table() -> str:
    """Return the table for the docs."""
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = []
    for name, found in content["run"].items():
        kind, networks = name.split(", ")[-1], 2 if "two" in name else 1
        errors, nlls, ious = (np.array(found[key]) for key in ("error", "nll", "mean_iou"))
        row = [name, str(len(errors)), str(EPOCHS * networks), str(MEMBERS[kind] * networks)]
        row += [_spread(errors, 2), _spread(nlls, 4), _spread(ious, 1)]
        for key, digits in (("error", 2), ("nll", 4)):
            given = content["differences"].get(f"{name} {key}") if name != "single" else None
            row.append(_interval(given, digits) if given else "")
        rows.append(row)
    heads = ("method", "seeds", "epochs", "passes", "pixel error %", "NLL", "mean IoU %")
    return markdown_table((*heads, "error - single", "NLL - single"), rows)


def _spread(values: NDArray[np.float64], digits: int) -> str:
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def _interval(given: list[float], digits: int) -> str:
    value, low, high = (f"{number:+.{digits}f}" for number in given)
    return f"{value} [{low}, {high}]"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="segmentation in a loop of one's own")
    parser.add_argument("part", choices=("search", "run", "table"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("runs/segmentation"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "search":
        search()
    elif arguments.part == "run":
        run(arguments.seeds, arguments.work)
    else:
        print(table())


if __name__ == "__main__":
    main()
