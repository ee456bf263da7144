"""The contenders of ``peers.py``: this package's methods, TorchEnsemble's and PyTorch's own.

Every contender gets the same task: a model with initial weights, batches that depend only on the
seed and the epoch, the options of SGD and a budget. It returns its trained networks, ready to
predict. Rates and lengths are those of this package's default job (``fge.methods``), passed to the
others through their documented settings; ``NOTES`` names the exceptions.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

from fge.commands.build import Setup
from fge.commands.training import make_training
from fge.config import MethodConfig
from fge.data import Dataset, EvalBatches, TrainBatches
from fge.ensemble import Ensemble
from fge.errors import UserError
from fge.networks import average_weights, load_weights, predict_proba, refresh_batch_norm
from fge.observer import Observer
from fge.runs import RunFolder
from fge.train import endpoint_recipe, find_method, make_optimizer
from fge.train.schedules import endpoint_factor

NOTES = (
    "All start from the same weights and see the same batches (order, crops and mirroring follow "
    "from seed and epoch), with the same SGD (rate, momentum, decay), in float32, eager, in one "
    "memory format.",
    "TorchEnsemble's `test_loader`, by which it saves the best ensemble, is given the validation "
    "images, never the test images; what is tested is the whole ensemble, as `fit` leaves it.",
    "torchensemble-fge: the conventional start through `set_scheduler` (a factor per epoch), then "
    "cycles of the same length and rates as fge; it has no option to keep the momentum where the "
    "cycles begin, and makes a new optimizer there.",
    "torchensemble-sse: as many cycles as sse; it takes only budgets that are a multiple of them.",
    "torch-swa: as in its documentation, the average of the weights after every epoch from where "
    "fge's cycles begin, `SWALR` going to `swa_lr` (the largest rate of fge's cycles), batch norm "
    "by `update_bn` over the training batches; it has no validation. swa averages fge's snapshots "
    "and estimates batch norm from up to 5,120 training images without augmentation.",
    "Training seconds hold what each does on the way: validation; fge, sse and swa write a "
    "checkpoint every epoch and snapshots, TorchEnsemble the best ensemble so far.",
)


class PassCounter:
    """Counts the images that go through a network, by purpose.

    ``images`` counts by purpose: ``train`` with gradients, ``refresh`` for modules in training mode
    without gradients, and otherwise ``phase``, which the caller sets. Copies of a watched model
    count here too.
    """

    def __init__(self) -> None:
        self.phase = "validation"
        self.images = {"train": 0, "refresh": 0, "validation": 0, "test": 0}

    def watch(self, model: nn.Module) -> None:
        """Count what goes through ``model`` from now on."""

        def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.images[self._purpose(module)] += len(inputs[0])

        # A plain function: deep copies of the model keep calling this very one.
        model.register_forward_pre_hook(count)

    def _purpose(self, module: nn.Module) -> str:
        if torch.is_grad_enabled():
            return "train"
        return "refresh" if any(part.training for part in module.modules()) else self.phase


class EpochLoader:
    """Training batches for libraries that need a ``DataLoader``: each pass is the next epoch.

    ``dataset`` exists for its ``classes``, which TorchEnsemble reads.
    """

    def __init__(self, batches: TrainBatches, dataset: Dataset) -> None:
        self.batches = batches
        self.dataset = dataset
        self.epoch = 0

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the next epoch."""
        self.batches.set_epoch(self.epoch)
        self.epoch += 1
        return iter(self.batches)


@dataclass(frozen=True)
class Task:
    """The task of a contender; ``model`` is trained in place or copied, ``folder`` is empty."""

    config: MethodConfig
    dataset: Dataset
    model: nn.Module
    folder: Path

    @property
    def setup(self) -> Setup:
        """The parts of a run with these options."""
        return Setup.of(self.config, self.dataset)

    @property
    def loader(self) -> EpochLoader:
        """New training batches, starting with the first epoch."""
        recipe = endpoint_recipe(self.config)
        return EpochLoader(self.setup.train_batches(recipe), self.dataset)

    @property
    def validation(self) -> EvalBatches:
        """The validation images."""
        return self.setup.eval_batches(self.dataset.val)

    @property
    def sgd(self) -> dict[str, Any]:
        """The options of PyTorch's SGD, as in this package."""
        config = self.config
        return {
            "lr": config.base_lr,
            "momentum": config.momentum,
            "weight_decay": config.weight_decay,
            "fused": True,
        }

    @property
    def cycle_members(self) -> int:
        """Snapshots of FGE within the budget."""
        config = self.config
        return 1 + (config.last_cycle_epoch - config.first_cycle_epoch) // config.cycle_length

    def start_factor(self, epoch: int) -> float:
        """Return the factor of the base rate in an epoch, counted from 0, before the cycles."""
        return endpoint_factor(epoch + 1, self.config.epochs)


@dataclass(frozen=True)
class Trained:
    """The result of training: ``predict(batches)`` returns probabilities (N, C) in float64."""

    members: int
    predict: Callable[[EvalBatches], Tensor]


Contender = Callable[[Task], Trained]


def ours(name: str, task: Task) -> Trained:
    """Train a method of ``fge.methods``, as the command line does."""
    method = find_method({"fge": "fge-paper"}.get(name, name))  # as the others do it
    stages = method.stages(task.config)
    training = make_training(
        task.setup,
        task.model,
        RunFolder(task.folder),
        Observer(),
        recipe=method.recipe(task.config),
        stages=stages,
    )
    training.run()
    store = list(training.stores.values())[-1]
    if method.combine == "weights":
        load_weights(task.model, average_weights(store), "the average")
        images = task.setup.eval_batches(task.dataset.train)
        refresh_batch_norm(task.model, images)
        return Trained(1, partial(predict_proba, task.model))
    return Trained(len(store), Ensemble(task.model, store).predict_proba)


def torchensemble_fge(task: Task) -> Trained:
    """Train TorchEnsemble's ``FastGeometricClassifier``.

    Raises:
        UserError: the budget leaves no epoch before the cycles, which it asks for.
    """
    from torchensemble import FastGeometricClassifier

    config = task.config
    if config.first_cycle_epoch < 1:
        raise UserError(
            f"torchensemble-fge needs an epoch before the cycles, got epochs {config.epochs}; "
            "use more epochs"
        )
    ensemble = FastGeometricClassifier(task.model, task.cycle_members, cuda=_on_cuda(config))
    ensemble.set_optimizer("SGD", **task.sgd)
    with warnings.catch_warnings():  # it warns that the schedule is only for the start, as intended
        warnings.simplefilter("ignore")
        ensemble.set_scheduler("LambdaLR", lr_lambda=task.start_factor)
    ensemble.fit(
        task.loader,
        cycle=config.cycle_length,
        lr_1=config.cycle_lrs.max_lr,
        lr_2=config.cycle_lrs.min_lr,
        epochs=config.first_cycle_epoch,
        test_loader=task.validation,
        save_dir=str(task.folder),
    )
    return Trained(len(ensemble), partial(_predict_torchensemble, ensemble))


def torchensemble_sse(task: Task) -> Trained:
    """Train TorchEnsemble's ``SnapshotEnsembleClassifier``.

    Raises:
        UserError: the budget is not a multiple of the cycles.
    """
    from torchensemble import SnapshotEnsembleClassifier

    config = task.config
    if config.epochs % config.sse_cycles:
        raise UserError(
            f"torchensemble-sse needs epochs that are a multiple of its {config.sse_cycles} "
            f"cycles, got {config.epochs}"
        )
    ensemble = SnapshotEnsembleClassifier(
        estimator=task.model, n_estimators=config.sse_cycles, cuda=_on_cuda(config)
    )
    ensemble.set_optimizer("SGD", **task.sgd)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints "None" without TensorBoard
        ensemble.fit(
            task.loader,
            epochs=config.epochs,
            test_loader=task.validation,
            save_dir=str(task.folder),
        )
    return Trained(len(ensemble), partial(_predict_torchensemble, ensemble))


def _predict_torchensemble(ensemble: Any, batches: EvalBatches) -> Tensor:
    return torch.cat([ensemble.predict(inputs) for inputs, _ in batches]).double()


def torch_swa(task: Task) -> Trained:
    """Train with ``torch.optim.swa_utils``, as the example of ``AveragedModel`` does."""
    config, model, loader = task.config, task.model, task.loader
    optimizer = make_optimizer(endpoint_recipe(config), model.parameters())
    averaged = AveragedModel(model)
    scheduler = LambdaLR(optimizer, task.start_factor)
    swa_scheduler = SWALR(optimizer, swa_lr=config.cycle_lrs.max_lr)
    model.train()
    for epoch in range(config.last_cycle_epoch):
        for inputs, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if epoch >= config.first_cycle_epoch:
            averaged.update_parameters(model)
            swa_scheduler.step()
        else:
            scheduler.step()
    update_bn(loader, averaged)
    return Trained(1, partial(predict_proba, averaged))


def _on_cuda(config: MethodConfig) -> bool:
    return torch.device(config.device).type == "cuda"


CONTENDERS: dict[str, Contender] = {
    "fge": partial(ours, "fge"),
    "torchensemble-fge": torchensemble_fge,
    "sse": partial(ours, "sse"),
    "torchensemble-sse": torchensemble_sse,
    "swa": partial(ours, "swa"),
    "torch-swa": torch_swa,
}
PAIRS = (("fge", "torchensemble-fge"), ("sse", "torchensemble-sse"), ("swa", "torch-swa"))
"""A method of this package, and the corresponding peer."""
