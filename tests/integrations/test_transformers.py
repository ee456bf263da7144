"""``FGECallback`` in trainings by the real Trainer of transformers."""

from __future__ import annotations

import doctest
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

import fge
from fge.errors import UserError
from fge.train.schedules import triangular

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
EPOCHS, BATCHES, START = 5, 6, 6
"""Cycles of 8 steps from the second epoch on: snapshots after 10, 18 and 26 of 30 steps."""
OPTIONS: dict[str, Any] = {"cycle_steps": 8, "max_lr": 0.05, "min_lr": 0.001, "average": 0.75}


def tokens() -> list[dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 16, (48, 6), generator=rng)
    return [{"input_ids": row, "labels": (row == 3).any().long()} for row in ids]


class Stream(IterableDataset[dict[str, Tensor]]):
    """Data without a length."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(tokens())


def make_bert() -> Any:
    """A small BERT with dropout."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 16}
    config = BertConfig(num_hidden_layers=1, num_attention_heads=2, **sizes)
    return BertForSequenceClassification(config)


class Normed(nn.Module):
    """Embeddings and batch norm, with the loss inside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(16, 4)
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        scores = self.head(self.norm(self.embedding(input_ids).mean(dim=1)))
        if labels is None:
            return {"logits": scores}
        return {"loss": F.cross_entropy(scores, labels), "logits": scores}


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def make_trainer(folder: Path, model: nn.Module, *callbacks: Any, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    arguments = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": 8,
        "lr_scheduler_type": "constant",
        "learning_rate": 0.1,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "max_grad_norm": 0.0,
        **options,
    }
    shuffled = arguments.pop("shuffled", False)
    data = arguments.pop("train_dataset", None) or tokens()
    optimizers = arguments.pop("optimizers", (None, None))
    kind = Trainer if shuffled else InOrder
    settings = TrainingArguments(str(folder), **arguments)
    return kind(model, settings, train_dataset=data, callbacks=[*callbacks], optimizers=optimizers)


def make_loader() -> DataLoader[Any]:
    return DataLoader(tokens(), batch_size=8)


def make_callback(out: Path, **options: Any) -> Any:
    from fge.integrations.transformers import FGECallback

    return FGECallback(out=out, **{**OPTIONS, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A training with dropout, shuffled data, AdamW and checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    callback, model = make_callback(folder / "snapshots", start_epoch=1), make_bert()
    saves = {"save_strategy": "steps", "save_steps": 1, "shuffled": True}
    trainer = make_trainer(folder, model, callback, **saves)
    trainer.train()
    return SimpleNamespace(folder=folder, callback=callback, model=model, trainer=trainer)


def test_the_rates_that_are_logged_are_those_of_the_cycle(whole: SimpleNamespace) -> None:
    cycle = {name: OPTIONS[name] for name in ("cycle_steps", "max_lr", "min_lr")}
    steps = EPOCHS * BATCHES
    expected = [0.1] * START + [triangular(step, **cycle) for step in range(steps - START)]
    history = whole.trainer.state.log_history
    logged = {(row["step"] - 1, row["learning_rate"]) for row in history if "loss" in row}
    assert logged == set(enumerate(expected))


def test_the_ensemble_is_the_mean_of_its_members(whole: SimpleNamespace) -> None:
    batch = next(iter(make_loader()))
    members = []
    for state in whole.callback.cycle.store:
        model = make_bert().eval()
        model.load_state_dict(state)
        members.append(model(batch["input_ids"]).logits.double().softmax(dim=1))
    expected = torch.stack(members).mean(dim=0)
    assert len(members) == 3
    predicted = whole.callback.ensemble().predict_proba([batch])
    torch.testing.assert_close(predicted, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", [3, 6, 17, 18, 25])
def test_a_checkpoint_continues_to_the_same_end(
    whole: SimpleNamespace, tmp_path: Path, step: int
) -> None:
    """Before the first cycle, at its start, within a tail, at a minimum, before one."""
    shutil.copytree(whole.folder / "snapshots", tmp_path / "snapshots")
    checkpoint = tmp_path / f"checkpoint-{step}"
    shutil.copytree(whole.folder / checkpoint.name, checkpoint)
    callback, model = make_callback(tmp_path / "snapshots", start_epoch=1), make_bert()
    trainer = make_trainer(tmp_path, model, callback, shuffled=True)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert contents(tmp_path / "snapshots") == contents(whole.folder / "snapshots")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_snapshots_are_those_of_a_plain_loop(tmp_path: Path, accumulate: int) -> None:
    """Averaged, with batch norm refreshed by the loader."""
    model = Normed()
    options = {"refresh": make_loader(), "start_step": 5}
    callback = make_callback(tmp_path / "a", **options)
    arguments = {"gradient_accumulation_steps": accumulate}
    optimizers = (make_optimizer(model), None)
    make_trainer(tmp_path, model, callback, optimizers=optimizers, **arguments).train()

    other, step, cycle = Normed(), 0, None
    optimizer = make_optimizer(other)
    for _ in range(EPOCHS):
        for number, batch in enumerate(make_loader(), start=1):
            if step == 5 and cycle is None:
                refresh = {"refresh": make_loader(), "forward_fn": callback.cycle.forward_fn}
                cycle = fge.FGE(other, optimizer, out=tmp_path / "b", **refresh, **OPTIONS)
            (other(**batch)["loss"] / accumulate).backward()
            if number % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                if cycle is not None:
                    cycle.step()
    assert cycle is not None
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(callback.ensemble()) == len(cycle.store) == {1: 3, 2: 1}[accumulate]
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    probabilities = callback.ensemble().predict_proba(make_loader())
    assert torch.equal(probabilities, cycle.ensemble().predict_proba(make_loader()))


def make_language_model(seed: int) -> Any:
    """A small GPT-2: embedding and head share a weight, the loss is inside, and in float32."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 16, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
    torch.manual_seed(seed)
    config = GPT2Config(**sizes, initializer_range=0.3, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config)


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


@pytest.fixture(scope="module")
def text() -> list[dict[str, Tensor]]:
    ids = torch.stack([row["input_ids"] for row in tokens()])
    return [{"input_ids": part, "labels": part} for part in ids.split([32, 16])]


def test_a_language_model_has_curves_planes_and_averages(text: list[dict[str, Tensor]]) -> None:
    from fge.integrations.transformers import logits

    models = [make_language_model(seed).eval() for seed in range(3)]
    inside: dict[str, Any] = {"forward_fn": loss_of, "loss_fn": lambda loss, _: loss}

    def mean_loss(model: nn.Module) -> float:
        with torch.no_grad():
            return sum(len(b["labels"]) * float(loss_of(model, b)) for b in text) / 48

    curve = fge.fit_curve(models[0], models[0], models[1], text, epochs=1, **inside)
    records = fge.evaluate_curve(models[0], curve, text, num_points=3, **inside)
    members = [curve.module(models[0], t) for t in (0.0, 0.5, 1.0)]
    for record, model in zip(records, members, strict=True):
        assert model.lm_head.weight is model.transformer.wte.weight
        assert record["loss"] == pytest.approx(mean_loss(model), rel=1e-5)
    assert torch.equal(members[0].lm_head.weight, models[0].lm_head.weight)

    plane = fge.Plane.through(*models)
    grid = fge.evaluate_plane(
        models[0], plane, text, resolution=2, bounds=(0.0, 1e-6, 0.0, 1e-6), **inside
    )
    assert grid.values["loss"] == pytest.approx(mean_loss(models[0]), rel=1e-4)

    tail = fge.TailAverage(models[0], first_step=0)
    mean_of = (models[0].lm_head.weight + models[1].lm_head.weight).detach() / 2
    tail.step()
    models[0].load_state_dict(models[1].state_dict())
    tail.step()
    averaged = tail.module().lm_head.weight
    torch.testing.assert_close(averaged, mean_of)

    ensemble = fge.Ensemble(models[1], models[1:], forward_fn=logits, output_dim=-1)
    expected = sum(model(**text[1]).logits.double().softmax(dim=-1) for model in models[1:]) / 2
    torch.testing.assert_close(ensemble.predict(text)[32:], expected, rtol=0, atol=1e-6)


def test_a_language_model_has_the_hessian_of_double_backward(text: list[dict[str, Tensor]]) -> None:
    """Of attention by PyTorch's own operations, with the loss inside and outside the model."""
    from fge.integrations.transformers import logits

    def outside(scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    model = make_language_model(0).eval()
    parameters = list(model.parameters())
    rng = torch.Generator().manual_seed(3)
    vector = torch.randn(sum(p.numel() for p in parameters), generator=rng, dtype=torch.float64)
    direction = torch.split(vector.float(), [p.numel() for p in parameters])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = sum(len(b["labels"]) * loss_of(model, b) for b in text) / 48
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        dot = sum((g.flatten() * v).sum() for g, v in zip(gradients, direction, strict=True))
        product = torch.autograd.grad(dot, parameters)
    expected = torch.cat([part.flatten() for part in product]).double()
    by_model = fge.HessianOperator(model, lambda loss, _: loss, text, forward_fn=loss_of)
    labels = {"forward_fn": logits, "target_fn": lambda batch: batch["labels"]}
    for operator in (by_model, fge.HessianOperator(model, outside, text, **labels)):
        found = operator.matvec(vector)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert operator.agreement is not None
        assert operator.agreement.dtype == torch.float64
        assert operator.agreement.difference < 1e-5


def test_what_cannot_work_is_refused_before_the_first_step(
    whole: SimpleNamespace, tmp_path: Path
) -> None:
    def refused(match: str, resume: str | None = None, **arguments: Any) -> None:
        names = ("start_step", "start_epoch")
        options = {name: arguments.pop(name) for name in names if name in arguments}
        callback = make_callback(tmp_path / "s", **options)
        trainer = make_trainer(tmp_path, make_bert(), callback, **arguments)
        with pytest.raises(UserError, match=match):
            trainer.train(resume_from_checkpoint=resume)
        assert trainer.state.global_step == (0 if resume is None else 3)

    refused(r"lr_scheduler_type='linear', would change .*=\"constant\"", lr_scheduler_type="linear")
    optimizer = make_optimizer(nn.Linear(1, 1))
    own = {"optimizers": (optimizer, CosineAnnealingLR(optimizer, 9))}
    refused("schedule, a CosineAnnealingLR, would change", **own)
    refused("length of an epoch is not known", train_dataset=Stream(), max_steps=9, start_epoch=1)
    warm_up = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 7}
    refused("warm-up that ends by step 6, where", **warm_up, start_epoch=1)
    refused("ends after 30 optimizer steps, .* after 34", start_epoch=5)
    bare = tmp_path / "checkpoint-3"
    shutil.copytree(whole.folder / bare.name, bare)
    (bare / "fge_callback.safetensors").unlink()
    refused("continues at step 3, .* without a saved state", resume=str(bare))


def test_a_warm_up_that_is_over_may_stay(tmp_path: Path) -> None:
    callback = make_callback(tmp_path / "s", start_epoch=1)
    warm_up = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 6, "max_steps": 10}
    trainer = make_trainer(tmp_path, make_bert(), callback, **warm_up)
    trainer.train()
    rates = [row["learning_rate"] for row in trainer.state.log_history if "loss" in row]
    warm = [0.1 * step / 6 for step in range(6)]
    assert rates == pytest.approx([*warm, 0.05, 0.03775, 0.0255, 0.01325])
    assert len(callback.ensemble()) == 1


def test_trainings_of_other_kinds_are_refused() -> None:
    from fge.integrations.transformers import _check_kind

    plain = {"deepspeed": None, "fsdp": ""}
    for wrong in ({"deepspeed": "zero.json"}, {"fsdp": "full_shard"}):
        with pytest.raises(UserError, match=r"cannot read weights under (DeepSpeed|FSDP): use"):
            _check_kind(SimpleNamespace(**{**plain, **wrong}), search(False))
    with pytest.raises(UserError, match="a search of hyperparameters trains many models"):
        _check_kind(SimpleNamespace(**plain), search(True))


def search(whether: bool) -> Any:
    return SimpleNamespace(is_hyper_param_search=whether)


def test_the_example_of_the_documentation_runs() -> None:
    import fge.integrations.transformers as module

    assert doctest.testmod(module).attempted > 1
    assert doctest.testmod(module).failed == 0


def test_of_two_processes_the_first_writes(tmp_path: Path) -> None:
    """They are forked from this one; the rows of each batch are divided between them."""
    import torch.multiprocessing as multiprocessing

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(one_of_two, (tmp_path, port), nprocs=2, start_method="fork")
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert (one["writes"], two["writes"]) == (True, False)
    assert "already holds 2 snapshots" in one["refusal"] == two["refusal"]
    assert torch.equal(one["predictions"], two["predictions"])
    store = fge.SnapshotStore(tmp_path / "snapshots")
    assert [store.facts(k)["step"] for k in range(len(store))] == [4, 12]
    for name, parameter in Normed().named_parameters():
        assert torch.equal(one["state"][name], two["state"][name])
        assert not torch.equal(one["state"][name], parameter)


def one_of_two(rank: int, folder: Path, port: int) -> None:
    """Train as one of two processes, with the environment that ``torchrun`` gives."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    model = Normed()
    callback = make_callback(folder / "snapshots", start_epoch=1, refresh=make_loader())
    options = {"per_device_train_batch_size": 4, "num_train_epochs": 3, "ddp_backend": "gloo"}
    trainer = make_trainer(folder, model, callback, **options)
    trainer.train()
    assert isinstance(trainer.model_wrapped, DistributedDataParallel)
    try:  # the folder is not empty, which the first process alone sees
        again = make_callback(folder / "snapshots", start_epoch=1, refresh=make_loader())
        make_trainer(folder, Normed(), again, **options).train()
    except UserError as error:
        refusal = str(error)
    predictions = callback.ensemble().predict_proba(make_loader())
    facts = {"writes": callback.cycle.writes, "predictions": predictions, "refusal": refusal}
    torch.save({**facts, "state": model.state_dict()}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
