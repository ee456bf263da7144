"""Known faults of TorchEnsemble, each tried with the installed version in seconds.

Every function provokes one behaviour with a tiny network on random data and returns what happened,
good or bad: a later version may do better. Nothing here is timed.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peer_methods import PassCounter
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

IMAGES, FEATURES, CLASSES = 32, 4, 3
HIGH, LOW = 0.05, 0.0005
PATIENCE = 30
"""Epochs without a snapshot after which a fit counts as endless."""


@dataclass(frozen=True)
class Fault:
    """A fault, whether it was seen, and the evidence."""

    claim: str
    seen: bool
    evidence: str


class _Enough(Exception):  # noqa: N818 - a signal, not an error
    """Stops an endless fit."""


def new_loader(*, label: int | None = None) -> DataLoader[Any]:
    """Return random vectors (32, 4) with random labels, or all with the same."""
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(IMAGES, FEATURES, generator=rng)
    labels = torch.randint(0, CLASSES, (IMAGES,), generator=rng)
    targets = labels if label is None else torch.full_like(labels, label)
    return DataLoader(TensorDataset(inputs, targets), batch_size=8)


def new_fge(model: nn.Module, members: int) -> Any:
    """Return a ``FastGeometricClassifier``, ready to fit."""
    from torchensemble import FastGeometricClassifier

    ensemble = FastGeometricClassifier(model, members, cuda=False)
    ensemble.set_optimizer("SGD", lr=HIGH)
    return ensemble


def averages_logits() -> Fault:
    """Compare predictions with the mean of probabilities and the softmax of the mean logits."""
    ensemble = new_fge(nn.Linear(FEATURES, CLASSES), 2)
    for seed in (1, 2):
        torch.manual_seed(seed)
        ensemble.estimators_.append(nn.Linear(FEATURES, CLASSES))
    inputs, _ = next(iter(new_loader()))
    with torch.no_grad():
        logits = torch.stack([member(inputs) for member in ensemble])
        found = ensemble.predict(inputs)
    of_logits = float((found - logits.mean(0).softmax(1)).abs().max())
    of_probs = float((found - logits.softmax(2).mean(0)).abs().max())
    return Fault(
        "FastGeometricClassifier averages logits, not probabilities",
        of_logits < 1e-6 < of_probs,
        f"its predictions differ from the softmax of the mean logits by {of_logits:.1e}, from the "
        f"mean of the probabilities by {of_probs:.1e}",
    )


def snapshot_rate(cycle: int) -> float:
    """Return the learning rate of the last step before the first snapshot of a cycle."""
    ensemble = new_fge(nn.Linear(FEATURES, CLASSES), 1)
    adjust, rates = ensemble._adjust_lr, []

    def watched(*arguments: Any) -> float:
        rates.append(float(adjust(*arguments)))
        return rates[-1]

    ensemble._adjust_lr = watched
    ensemble.fit(new_loader(), cycle=cycle, lr_1=HIGH, lr_2=LOW, epochs=1, save_model=False)
    return rates[-1]


def odd_cycles_miss_the_minimum() -> Fault:
    """Check the rate before a snapshot in an even and in an odd cycle."""
    even, odd = snapshot_rate(4), snapshot_rate(3)
    steps = len(new_loader())
    return Fault(
        "in a cycle of an odd number of epochs the snapshot is off the minimum of the rate",
        odd > 2 * even,
        f"cycles from {HIGH:g} to {LOW:g}, {steps} steps an epoch: the last step before the "
        f"snapshot has {even:.4f} in a cycle of 4 epochs, {odd:.4f} in one of 3",
    )


def never_ends_with_a_cycle_of_one() -> Fault:
    """Fit one member with cycles of one epoch, and stop it after many."""
    ensemble = new_fge(nn.Linear(FEATURES, CLASSES), 1)
    # Two passes come before the cycles: one to count the classes, one epoch of the start.
    loader = _Limited(new_loader(), PATIENCE + 2)
    try:
        ensemble.fit(loader, cycle=1, lr_1=HIGH, lr_2=LOW, epochs=1, save_model=False)
    except _Enough:
        pass
    except Exception as error:
        return Fault(_ENDLESS, False, f"it raises {type(error).__name__}: {error}")
    evidence = f"{len(ensemble)} snapshots when it was stopped after {PATIENCE} cycles"
    return Fault(_ENDLESS, loader.passes > loader.limit, evidence)


_ENDLESS = "a cycle of one epoch never gives a snapshot, and fit does not end"


class _Limited:
    """A loader that stops a fit after a number of passes."""

    def __init__(self, loader: DataLoader[Any], limit: int) -> None:
        self.loader, self.limit, self.passes = loader, limit, 0
        self.dataset = loader.dataset

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        self.passes += 1
        if self.passes > self.limit:
            raise _Enough
        return iter(self.loader)


def evaluates_members_again(members: int = 6) -> Fault:
    """Count the passes over the loader that ``fit`` evaluates on."""
    model, counter = nn.Linear(FEATURES, CLASSES), PassCounter()
    counter.watch(model)
    ensemble = new_fge(model, members)
    ensemble.fit(
        new_loader(), cycle=2, epochs=1, test_loader=new_loader(), save_model=False, log_interval=9
    )
    passes = counter.images["validation"] / IMAGES
    return Fault(
        "all members are evaluated again at each snapshot",
        passes > members,
        f"{passes:g} passes over the evaluation images for {members} members",
    )


def selects_by_its_test_loader() -> Fault:
    """Check whether later members are saved if the first is right on all of ``test_loader``."""
    model = nn.Linear(FEATURES, CLASSES)
    with torch.no_grad():
        model.bias[0] += 100.0
    with tempfile.TemporaryDirectory() as folder:
        ensemble = new_fge(model, 3)
        always_right = new_loader(label=0)
        ensemble.fit(always_right, cycle=2, epochs=1, test_loader=always_right, save_dir=folder)
        (file,) = Path(folder).iterdir()
        with torch.serialization.safe_globals([nn.CrossEntropyLoss]):
            saved = int(torch.load(file, weights_only=True)["n_estimators"])
    return Fault(
        "what it saves is chosen by accuracy on the loader called test_loader",
        saved < len(ensemble),
        f"{len(ensemble)} members were trained, all with the same accuracy there: the file holds "
        f"{saved}",
    )


def cannot_load_what_it_saved() -> Fault:
    """Save an ensemble with ``fit`` and load it with ``torchensemble.utils.io.load``."""
    from torchensemble.utils import io as torchensemble_io

    with tempfile.TemporaryDirectory() as folder:
        ensemble = new_fge(nn.Linear(FEATURES, CLASSES), 2)
        ensemble.fit(new_loader(), cycle=2, epochs=1, save_dir=folder)
        try:
            torchensemble_io.load(new_fge(nn.Linear(FEATURES, CLASSES), 2), folder)
        except Exception as error:
            first = str(error).strip().splitlines()[0].split(". ")[0]
            return Fault(_NOT_LOADED, True, f"{type(error).__name__}: {first}")
    return Fault(_NOT_LOADED, False, "it was loaded")


_NOT_LOADED = "what fit saves cannot be loaded by the library's own load"


def prints_into_standard_output() -> Fault:
    """Check what ``SnapshotEnsembleClassifier.fit`` writes to standard output."""
    from torchensemble import SnapshotEnsembleClassifier

    ensemble = SnapshotEnsembleClassifier(
        estimator=nn.Linear(FEATURES, CLASSES), n_estimators=1, cuda=False
    )
    ensemble.set_optimizer("SGD", lr=HIGH)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        ensemble.fit(new_loader(), epochs=1, save_model=False)
    return Fault(
        "SnapshotEnsembleClassifier prints while it trains, unless TensorBoard is on",
        bool(output.getvalue()),
        f"one epoch prints {output.getvalue()!r}",
    )


CHECKS: tuple[Callable[[], Fault], ...] = (
    averages_logits,
    odd_cycles_miss_the_minimum,
    never_ends_with_a_cycle_of_one,
    evaluates_members_again,
    selects_by_its_test_loader,
    cannot_load_what_it_saved,
    prints_into_standard_output,
)


def look_for_faults() -> dict[str, Any]:
    """Return the version and the evidence for each fault."""
    faults = [vars(check()) for check in CHECKS]
    return {"torchensemble": version("torchensemble"), "torch": torch.__version__, "faults": faults}
