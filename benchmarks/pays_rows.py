"""Task R of ``benchmarks/pays.py``: digits as rows of 64 numbers, an MLP, and a loop of its own.

scikit-learn's digits: 1,797 rows; a fixed 1,000 train, 200 validate and 597 test. The MLP has two
layers of 128 and is trained by SGD (batches of 50, momentum 0.9, weight decay 5e-4, base rate 0.1)
for 100 epochs in all. Seeds change initial weights and orders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fge.compare import Cell, Comparison, Cost, compare_cells, make_cell
from fge.config import HOLD
from fge.metrics import nll, tempered_nll_per_example
from fge.networks import UniformAverage
from fge.seeds import derive_seed, generator
from fge.train import AutoPlanner, ClosedFormLR, EndpointLR, LinearTailLR, TriangularLR

EPOCHS, BATCH, LR, FINAL, TAIL = 100, 50, 0.1, 0.05, 0.2
_SIZES = (1_000, 200)
_SPLIT_SEED = 0
Rows = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Data:
    """Training, validation and test rows (n, 64), scaled to [0, 1], with their classes (n,)."""

    train: Rows
    val: Rows
    test: Rows


def read_data() -> Data:
    """Return the digits, always in the same split."""
    digits = load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(digits.target))
    inputs = torch.from_numpy(digits.data[order] / 16).float()
    targets = torch.from_numpy(digits.target[order])
    ends = (_SIZES[0], sum(_SIZES))
    parts = [slice(0, ends[0]), slice(ends[0], ends[1]), slice(ends[1], None)]
    return Data(*((inputs[part], targets[part]) for part in parts))


class Loop:
    """A training loop of one's own: a model, its optimizer and its epochs so far.

    Args:
        data: to train on.
        seed: of initial weights and of the order of the rows.
    """

    def __init__(self, data: Data, seed: int) -> None:
        self.data, self.seed, self.epoch = data, seed, 0
        self.start(0)

    def start(self, network: int) -> None:
        """Start a network from its own initial weights."""
        torch.manual_seed(derive_seed(self.seed, "network", network))
        layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)]
        self.model = nn.Sequential(*layers)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return _SIZES[0] // BATCH

    def train(self, schedule: ClosedFormLR, epochs: int, average: float = 0.0) -> Iterator[Tensor]:
        """Train for some epochs; yield test probabilities (n, 10) at each minimum, and at the end.

        With ``average``, they are those of the mean over this last part of the descent.
        """
        mean = UniformAverage(self.model)
        for _ in range(epochs):
            order = torch.randperm(_SIZES[0], generator=generator(self.seed, "order", self.epoch))
            self.epoch += 1
            for rows in torch.split(order, BATCH):
                inputs, targets = (part[rows] for part in self.data.train)
                torch.autograd.backward(F.cross_entropy(self.model(inputs), targets))
                self.optimizer.step()
                self.optimizer.zero_grad()
                schedule.step()
                tail = schedule.tail_step(average) if average else None
                if tail is not None:
                    mean.include(self.model, first=tail == 0)
                if schedule.at_minimum:
                    yield self.kept(mean, average)
        if not isinstance(schedule, TriangularLR):
            yield self.kept(mean, average)

    def kept(self, mean: UniformAverage, average: float) -> Tensor:
        """Return the test probabilities of the mean (and measure it), or of the weights."""
        if not average:
            return self.predict(self.data.test)
        with mean.swapped(self.model):
            val, fit = self.predict(self.data.val), self.predict(self.data.train)
            self.val, self.train_nll = val, nll(fit, self.data.train[1])
            return self.predict(self.data.test)

    @torch.no_grad()
    def predict(self, rows: Rows) -> Tensor:
        """Return probabilities (n, 10), float64."""
        return torch.softmax(self.model(rows[0]).double(), dim=1)

    def tail(self, epochs: int, hold: float = 0.0, average: float = TAIL) -> Tensor:
        """Train a linear descent; return the test probabilities of the mean of its tail."""
        steps = epochs * self.steps_per_epoch
        schedule = LinearTailLR(self.optimizer, steps=steps, final=FINAL, hold=hold)
        return next(self.train(schedule, epochs, average))


def single(loop: Loop) -> list[Tensor]:
    """Return the conventional network."""
    steps = loop.steps_per_epoch
    return list(
        loop.train(EndpointLR(loop.optimizer, epochs=EPOCHS, steps_per_epoch=steps), EPOCHS)
    )


def average(loop: Loop) -> list[Tensor]:
    """Return the mean of the tail of one descent."""
    return [loop.tail(EPOCHS, HOLD)]


def split(loop: Loop) -> list[Tensor]:
    """Return four networks that share the budget."""
    members = []
    for network in range(4):
        loop.start(network)
        members.append(loop.tail(EPOCHS // 4))
    return members


def fge(loop: Loop, part: float = TAIL) -> list[Tensor]:
    """Return the members of three cycles of 10 epochs, averaged over the tail of each descent."""
    start, cycle, steps = 75, 10, loop.steps_per_epoch
    high, low = (LR / 2, LR * FINAL) if part else (LR / 4, LR / 200)
    first: ClosedFormLR = LinearTailLR(loop.optimizer, steps=start * steps, final=high / LR)
    if not part:
        first = EndpointLR(loop.optimizer, epochs=EPOCHS, steps_per_epoch=steps)
    for _ in loop.train(first, start):
        pass
    cycles = TriangularLR(loop.optimizer, max_lr=high, min_lr=low, cycle_steps=cycle * steps)
    return list(loop.train(cycles, EPOCHS - start, part))


def fge_paper(loop: Loop) -> list[Tensor]:
    """Return the last weights of three cycles, as published."""
    return fge(loop, 0.0)


def auto(loop: Loop) -> list[Tensor]:
    """Return the networks that the planner chooses to train."""
    planner = AutoPlanner(EPOCHS, final=FINAL, average=TAIL)
    log: list[dict[str, Any]] = []
    tests: list[Tensor] = []
    vals: list[Tensor] = []
    while (plan := planner.decide(log)) is not None:
        if plan["network"] > 1:
            loop.start(plan["network"])
        tests.append(loop.tail(plan["epochs"], plan.get("hold", 0.0), plan.get("average", TAIL)))
        vals.append(loop.val)
        targets = loop.data.val[1]
        change = tempered_nll_per_example(vals[-1], targets) - tempered_nll_per_example(
            vals[max(0, len(vals) - 2)], targets
        )
        figures = {
            "event": "snapshot",
            "train_nll": loop.train_nll,
            "val_wrong": int((vals[-1].argmax(dim=1) != targets).sum()),
            "val_tempered_nll": float(tempered_nll_per_example(vals[-1], targets).mean()),
            "val_change_error": float(change.std() / math.sqrt(len(targets))),
        }
        members = [vals[k] for k in planner.kept([*log, plan, figures])]
        joint = tempered_nll_per_example(torch.stack(members).mean(0), targets)
        log += [plan, {**figures, "ensemble_val_tempered_nll": float(joint.mean())}]
    return [tests[k] for k in planner.kept(log)]


METHODS: dict[str, Callable[[Loop], list[Tensor]]] = {
    "single": single,
    "average": average,
    "fge-paper": fge_paper,
    "fge": fge,
    "split": split,
    "auto": auto,
}


def compare_rows(seeds: range) -> Comparison:
    """Return the comparison of all methods over seeds, at one budget, and of pooled networks."""
    torch.set_num_threads(1)
    data = read_data()
    cells: list[Cell] = []
    pools: dict[int, Tensor] = {}
    for seed in seeds:
        for name, method in METHODS.items():
            loop = Loop(data, seed)
            members = method(loop)
            if name == "single":
                pools[seed] = members[0]
            cells.append(_cell(name, 1, seed, members, data, loop.epoch))
    for count in (2, 3, 4, 5):
        for seed in seeds:
            pooled = [pools[seeds[(seed - seeds.start + k) % len(seeds)]] for k in range(count)]
            cells.append(_cell("deep-ensemble", count, seed, pooled, data, count * EPOCHS))
    return compare_cells(cells, budget_epochs=EPOCHS)


def _cell(
    name: str, budget: int, seed: int, members: list[Tensor], data: Data, epochs: int
) -> Cell:
    size = 4 * sum(p.numel() for p in Loop(data, 0).model.parameters())
    cost = Cost(epochs, epochs * _SIZES[0], len(members), len(members), len(members) * size)
    pooled = budget if name == "deep-ensemble" else 1
    return make_cell(name, budget, seed, members, data.test[1], cost=cost, pooled=pooled)
