"""``FGECallback`` in trainings by the real Trainer of Lightning."""

from __future__ import annotations

import csv
import doctest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR
from torch.utils.data import DataLoader, TensorDataset

import fge
from fge.errors import UserError
from fge.train.schedules import triangular

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
EPOCHS, BATCHES, START = 5, 6, 6
"""Cycles of 8 steps from the second epoch on: snapshots after 10, 18 and 26 of 30 steps."""
OPTIONS: dict[str, Any] = {"cycle_steps": 8, "max_lr": 0.05, "min_lr": 0.001, "average": 0.75}


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def make_loader(batch_size: int = 8) -> DataLoader[tuple[Tensor, ...]]:
    rng = torch.Generator().manual_seed(1)
    inputs = torch.randn(48, 4, generator=rng)
    targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 1).long()
    return DataLoader(TensorDataset(inputs, targets), batch_size=batch_size)


def make_module(**attributes: Any) -> Any:
    from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = make_network()

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x)

        def training_step(self, batch: Any, _: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return make_optimizer(self)

    module = Module()
    for name, value in attributes.items():
        setattr(module, name, value.__get__(module))
    return module


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def make_trainer(folder: Path, *callbacks: Any, **options: Any) -> Any:
    from lightning.pytorch import Trainer

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": EPOCHS, "enable_checkpointing": False, **quiet, **options}
    return Trainer(accelerator="cpu", default_root_dir=folder, callbacks=[*callbacks], **options)


def make_callback(out: Path, **options: Any) -> Any:
    from fge.integrations.lightning import FGECallback

    return FGECallback(out=out, **{**OPTIONS, "refresh": make_loader(), **options})


def plain_loop(out: Path, *, start: int, accumulate: int = 1) -> fge.FGE:
    """Train as Lightning does, with ``FGE`` by hand."""
    model, loader, step = make_network(), make_loader(), 0
    optimizer = make_optimizer(model)
    cycle = None
    for _ in range(EPOCHS):
        for number, (x, y) in enumerate(loader, start=1):
            if step == start and cycle is None:
                cycle = fge.FGE(model, optimizer, out=out, refresh=loader, **OPTIONS)
            (F.cross_entropy(model(x), y) / accumulate).backward()
            if number % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                if cycle is not None:
                    cycle.step()
    assert cycle is not None
    return cycle


def assert_same_snapshots(store: fge.SnapshotStore, other: fge.SnapshotStore) -> None:
    """Compare all tensors bitwise; a LightningModule holds the network under a name."""
    assert len(store) == len(other) > 0
    for one, two in zip(store, other, strict=True):
        assert {name.removeprefix("network.") for name in one} == set(two)
        for name, tensor in one.items():
            assert torch.equal(tensor, two[name.removeprefix("network.")]), name


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A training with checkpoints and a log of learning rates."""
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

    folder = tmp_path_factory.mktemp("whole")
    callback = make_callback(folder / "snapshots", start_epoch=1)
    checkpoints = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    logger = CSVLogger(folder, name="log", version=0)
    trainer = make_trainer(
        folder,
        checkpoints,
        LearningRateMonitor(),
        callback,
        logger=logger,
        log_every_n_steps=1,
        enable_checkpointing=True,
    )
    module = make_module()
    trainer.fit(module, make_loader())
    return SimpleNamespace(folder=folder, callback=callback, module=module)


def test_the_rates_that_are_logged_are_those_of_the_cycle(whole: SimpleNamespace) -> None:
    cycle = {name: OPTIONS[name] for name in ("cycle_steps", "max_lr", "min_lr")}
    steps = EPOCHS * BATCHES
    expected = [0.1] * START + [triangular(step, **cycle) for step in range(steps - START)]
    with (whole.folder / "log" / "version_0" / "metrics.csv").open() as file:
        logged = {(int(row["step"]), float(row["lr-SGD"])) for row in csv.DictReader(file)}
    assert logged == set(enumerate(expected))


def test_snapshots_are_those_of_a_plain_loop(whole: SimpleNamespace, tmp_path: Path) -> None:
    by_hand = plain_loop(tmp_path, start=START)
    assert_same_snapshots(whole.callback.cycle.store, by_hand.store)
    for number in range(3):
        one, two = whole.callback.cycle.store.facts(number), by_hand.store.facts(number)
        assert {**one, "sha256": None} == {**two, "sha256": None}  # names are part of a file
    ensemble, loader = whole.callback.ensemble(), make_loader()
    assert torch.equal(ensemble.predict_proba(loader), by_hand.ensemble().predict_proba(loader))
    for name, tensor in by_hand.model.state_dict().items():
        assert torch.equal(whole.module.state_dict()[f"network.{name}"], tensor)


@pytest.mark.parametrize("epoch", [0, 2, 3])
def test_a_checkpoint_continues_to_the_same_end(
    whole: SimpleNamespace, tmp_path: Path, epoch: int
) -> None:
    """Before the first cycle, at a minimum, and within a tail that is being averaged."""
    out = tmp_path / "snapshots"
    out.mkdir()
    for name, content in contents(whole.folder / "snapshots").items():
        (out / name).write_bytes(content)  # those later than the checkpoint are dropped
    module, callback = make_module(), make_callback(out, start_epoch=1)
    path = whole.folder / f"epoch={epoch}.ckpt"
    make_trainer(tmp_path, callback, max_epochs=epoch + 2).fit(
        module, make_loader(), ckpt_path=path
    )
    kept = sum(step <= (epoch + 2) * BATCHES for step in (10, 18, 26))
    assert len(fge.SnapshotStore(out)) == kept
    module = make_module()
    make_trainer(tmp_path, callback).fit(module, make_loader(), ckpt_path=path)
    assert contents(out) == contents(whole.folder / "snapshots")
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor)


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    callback = make_callback(tmp_path / "a", start_step=5)
    trainer = make_trainer(tmp_path, callback, accumulate_grad_batches=2)
    trainer.fit(make_module(), make_loader())
    assert callback.cycle.store.facts(0)["step"] == 4
    by_hand = plain_loop(tmp_path / "b", start=5, accumulate=2)
    assert_same_snapshots(callback.cycle.store, by_hand.store)


def test_a_warm_up_that_is_over_may_stay(tmp_path: Path) -> None:
    def configure(self: Any) -> Any:
        optimizer = make_optimizer(self)
        constant = LambdaLR(optimizer, lambda _: 1.0)
        return [optimizer], [{"scheduler": constant, "interval": "step"}]

    callback = make_callback(tmp_path / "a", start_epoch=1)
    trainer = make_trainer(tmp_path, callback)
    trainer.fit(make_module(configure_optimizers=configure), make_loader())
    assert_same_snapshots(callback.cycle.store, plain_loop(tmp_path / "b", start=START).store)


def test_a_trial_of_one_step_need_not_reach_a_snapshot(tmp_path: Path) -> None:
    callback = make_callback(tmp_path / "s", start_epoch=1)
    make_trainer(tmp_path, callback, fast_dev_run=True).fit(make_module(), make_loader())
    with pytest.raises(UserError, match="needs at least one member"):
        callback.ensemble()


def test_what_cannot_work_is_refused_before_the_first_step(tmp_path: Path) -> None:
    def two(self: Any) -> Any:
        return [make_optimizer(self.network[0]), make_optimizer(self.network[3])]

    def cosine(self: Any) -> Any:
        optimizer = make_optimizer(self)
        return [optimizer], [CosineAnnealingLR(optimizer, EPOCHS)]

    def by_hand(self: Any, batch: Any, _: int) -> None:
        for _ in range(2):
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            self.optimizers().step()

    def refused(match: str, attributes: dict[str, Any], **options: Any) -> Any:
        module = make_module(**attributes)
        module.automatic_optimization = "training_step" not in attributes
        if "configure_optimizers" in attributes and attributes["configure_optimizers"] is two:
            module.automatic_optimization = False
        trainer = make_trainer(tmp_path, make_callback(tmp_path / "s", **options))
        with pytest.raises(UserError, match=match):
            trainer.fit(module, make_loader())
        return trainer

    several = refused(r"of Module returns 2$", {"configure_optimizers": two})
    fights = refused(
        "the CosineAnnealingLR of .*: return the opt", {"configure_optimizers": cosine}
    )
    late = refused("ends after 30 optimizer steps, .* after 34: start", {}, start_epoch=5)
    assert several.global_step == fights.global_step == late.global_step == 0
    refused("a batch took 2 optimizer steps", {"training_step": by_hand})


def test_weights_that_are_spread_are_refused() -> None:
    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy

    callback = make_callback(Path("nowhere"))
    for kind in (DeepSpeedStrategy, FSDPStrategy):
        trainer = SimpleNamespace(strategy=object.__new__(kind))
        with pytest.raises(UserError, match=rf"cannot read weights under {kind.__name__}: use"):
            callback.on_train_start(trainer, None)


def test_the_example_of_the_documentation_runs() -> None:
    import fge.integrations.lightning as module

    assert doctest.testmod(module).attempted > 1
    assert doctest.testmod(module).failed == 0


def test_of_two_processes_the_first_writes(tmp_path: Path) -> None:
    """They are forked from this one; the pictures of each batch are divided between them."""
    callback = make_callback(tmp_path / "snapshots", start_epoch=1, refresh=make_loader(4))

    def report(self: Any) -> None:
        predictions = callback.ensemble().predict_proba(make_loader())
        facts = {"writes": callback.cycle.writes, "predictions": predictions}
        torch.save({**facts, "state": self.state_dict()}, tmp_path / f"{self.global_rank}.pt")

    trainer = make_trainer(tmp_path, callback, strategy="ddp_fork", devices=2, max_epochs=3)
    trainer.fit(make_module(on_train_end=report), make_loader(4))
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert (one["writes"], two["writes"]) == (True, False)
    assert torch.equal(one["predictions"], two["predictions"])
    store = fge.SnapshotStore(tmp_path / "snapshots")
    assert [store.facts(k)["step"] for k in range(len(store))] == [4, 12]
    by_hand = fge.Ensemble(make_module(), list(store)).predict_proba(make_loader())
    assert torch.equal(one["predictions"], by_hand)
    for name, parameter in make_module().named_parameters():
        assert torch.equal(one["state"][name], two["state"][name])
        assert not torch.equal(one["state"][name], parameter)
