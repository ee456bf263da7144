"""What the tests of data-parallel training run in each of several processes.

Started as a script it forks the processes, with the environment that ``torchrun`` gives them, so
that PyTorch is imported once. Each line on standard input is a JSON job: the ``size`` of the group
and either ``folder``, where each process leaves what :func:`jobs` returns as ``RANK.pt``, or the
``arguments`` of a command, or ``vanishes`` for a step during which the second process ends. With
``at``, the number of an fsync call of the first process, that process is killed there by
``signal``, or where ``all`` is true each is. Each answer is a JSON line: the ``codes`` of the
processes, the ``errors`` they printed, and the ``calls`` of fsync.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sharded_job  # type: ignore[import-not-found]
import torch
import torch.nn.functional as F
from sharded_job import message
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fge
import fge.commands.train
import fge.disk
from fge.commands import cli
from fge.data import Mixup, Normaliser, Policy, Split, TrainBatches
from fge.errors import DivergenceError, UserError
from fge.networks import canonical_state, ranks_of, refresh_batch_norm
from fge.parallel import Ranks, join
from fge.train import SGLD, EmaLearner, EpochEnd, Learner, Speed, TriangularLR, train

IMAGES, BATCH, EPOCHS = 44, 16, 4
"""Batches of 16, 16 and 12 images."""


def split_of(count: int, seed: int = 0) -> Split:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 4, 4), generator=rng, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 3)


def batches_of(count: int, batch_size: int, ranks: Ranks, *, mixed: bool = False) -> TrainBatches:
    return TrainBatches(
        split_of(count),
        Normaliser([128.0], [64.0], torch.device("cpu")),
        batch_size,
        seed=3,
        crop_padding=1,
        flip=True,
        ranks=ranks,
        policy=Policy("trivial", 1) if mixed else None,
        mixup=Mixup(0.4, 3, seed=3) if mixed else None,
    )


def plain_model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double()


def normalised_model() -> nn.Sequential:
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*layers).double()


def learner_of(
    model: nn.Module, ranks: Ranks, optimizer: torch.optim.Optimizer | None = None, **options: Any
) -> Learner:
    if optimizer is None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    options = {"forward_fn": _logits, "ranks": ranks, **options}
    make = EmaLearner if "decay" in options else Learner
    return make(model, optimizer, **options)


def _logits(model: nn.Module, batch: Any) -> Any:
    inputs = batch[0] if isinstance(batch, list | tuple) else batch
    return model(inputs.double())


def _of_doubles(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets.to(outputs))


def trained(
    make: Callable[[], nn.Module],
    ranks: Ranks,
    *,
    images: int = IMAGES,
    batch_size: int = BATCH,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    compiled: bool = False,
    part_size: int | None = None,
    mixed: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Train through the real loop; return the snapshots, the losses and the images of epochs."""
    # Weights that differ between processes become those of the first.
    torch.manual_seed(ranks.rank)
    model = make()
    if part_size is not None:
        options |= {"batch_size": part_size // ranks.size, "accumulate": True}
    learner = learner_of(model, ranks, optimizer(model) if optimizer else None, **options)
    batches = batches_of(images, batch_size, ranks, mixed=mixed)
    if compiled:
        learner.batch_size = batches.share_size
        learner._compiled = torch.compile(model, backend="aot_eager", dynamic=False)
    schedule = TriangularLR(
        learner.optimizer, max_lr=0.1, min_lr=0.01, cycle_steps=2 * len(batches)
    )
    snapshots: list[dict[str, Tensor]] = []
    ends: list[EpochEnd] = []
    train(
        learner,
        schedule,
        batches,
        first_epoch=0,
        last_epoch=EPOCHS,
        seed=5,
        on_minimum=lambda _: snapshots.append(kept_state(learner)),
        on_epoch=ends.append,
    )
    return {
        "snapshots": snapshots,
        "losses": [end.train_loss for end in ends],
        "images": [end.images for end in ends],
    }


def kept_state(learner: Learner) -> dict[str, Tensor]:
    with learner.kept():
        return canonical_state(learner.model)


def noisy(model: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer that draws noise."""
    optimizer = SGLD(model.parameters(), 0.1, examples=IMAGES, momentum=0.5)
    optimizer.param_groups[0]["temperature"] = 1.0
    return optimizer


class Drawing(nn.Module):
    """Dropout that remembers the last mask of each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 3, dtype=torch.float64)
        self.masks: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.masks.append(torch.rand(8))
        return self.layer(inputs.flatten(1))


def masks_of(ranks: Ranks) -> Tensor:
    model = Drawing()
    learner = learner_of(model, ranks, SGLD(model.parameters(), 0.01, examples=IMAGES))
    for group in learner.optimizer.param_groups:
        group["temperature"] = 1.0
    batches = batches_of(32, BATCH, ranks)
    schedule = TriangularLR(learner.optimizer, max_lr=0.1, min_lr=0.01, cycle_steps=8)
    train(learner, schedule, batches, first_epoch=0, last_epoch=1)
    return torch.stack(model.masks)


def running_statistics(ranks: Ranks) -> dict[str, Tensor]:
    """Take one step on shares of 3 and 2 images, the weights differing by process before."""
    torch.manual_seed(ranks.rank)
    model = normalised_model()
    learner = learner_of(model, ranks)
    model.train()
    split = split_of(5)
    mine = ranks.share(5)
    learner.step(split.images[mine].float(), split.labels[mine])
    return canonical_state(model)


def refreshed(ranks: Ranks, all_ranks: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    model = normalised_model()
    rng = torch.Generator().manual_seed(1)
    joint = [torch.randn(n, 1, 4, 4, generator=rng, dtype=torch.float64) for n in (7, 5, 4, 9)]
    mine = joint[ranks.rank :: ranks.size]
    images = refresh_batch_norm(model, mine, num_images=None, all_ranks=all_ranks)
    few = normalised_model()
    few_images = refresh_batch_norm(few, mine, num_images=10, all_ranks=all_ranks)
    nothing = mine if ranks.rank == 0 else []
    one_sided = normalised_model()
    used = refresh_batch_norm(one_sided, nothing, num_images=None, all_ranks=all_ranks)
    return {
        "state": canonical_state(model),
        "images": images,
        "few": few_images,
        "one_sided": used,
        "one_sided_state": canonical_state(one_sided),
    }


def unused_parameters(ranks: Ranks) -> list[list[bool]]:
    """Return for 3 parameters whether they moved: used by all, by the second process, by none.

    There are two steps. In the second the second process has no image.
    """
    model = nn.ParameterList([nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(3)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.5)

    def forward(parameters: Any, batch: Any) -> Tensor:
        used = parameters[0].sum() + (parameters[1].sum() if ranks.rank else 0)
        return used * torch.ones(len(batch[1]), 3)

    learner = Learner(model, optimizer, forward_fn=forward, ranks=ranks)
    moved = []
    for count in (2, 0 if ranks.rank else 2):
        before = [parameter.clone() for parameter in model]
        learner.step(torch.ones(count, 1), torch.zeros(count, dtype=torch.int64))
        moved.append([not torch.equal(*pair) for pair in zip(model, before, strict=True)])
    return moved


def failures(ranks: Ranks) -> dict[str, str]:
    """Return what each process is told when one fails."""

    def fail(rank: int, error: Exception) -> None:
        with ranks.together():
            if ranks.rank == rank:
                raise error

    def diverge() -> None:
        model = plain_model()
        learner = learner_of(model, ranks)
        learner.loss_fn = lambda logits, targets: (
            F.cross_entropy(logits, targets) * (float("nan") if ranks.rank == 1 else 1.0)
        )
        schedule = TriangularLR(learner.optimizer, max_lr=0.1, min_lr=0.1, cycle_steps=8)
        train(learner, schedule, batches_of(32, 16, ranks), first_epoch=0, last_epoch=2)

    return {
        "user": message(lambda: fail(0, UserError("mend it"))),
        "diverged": message(lambda: fail(1, DivergenceError("not finite"))),
        "disk": message(lambda: fail(0, OSError("the disk is full"))),
        "other": message(lambda: fail(1, KeyError("x"))),
        "loss": message(diverge),
        "after": message(lambda: fail(7, UserError("never"))),
    }


def vanish(ranks: Ranks) -> None:
    """Have the second process end in the middle of a step."""
    learner = learner_of(plain_model(), ranks)
    if ranks.rank == 1:
        learner.loss_fn = lambda *_: os._exit(5)  # type: ignore[assignment,return-value]
    learner.step(torch.ones(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64))


class Compiled(nn.Module):
    """Holds a model as ``torch.compile`` does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model


def append_slowly(cycle: fge.FGE) -> None:
    """Have the process that writes take its time: who does not wait finds a snapshot missing."""
    append = cycle.store.append

    def slow(*arguments: Any, **facts: Any) -> Path:
        time.sleep(0.3)
        return append(*arguments, **facts)

    cycle.store.append = slow  # type: ignore[method-assign]


def unwritable(folder: Path, model: nn.Module) -> None:
    """Keep a snapshot where a file is in the way of the folder."""
    (folder / "taken").write_text("")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    out = folder / "taken" / "snapshots"
    cycle = fge.FGE(model, optimizer, cycle_steps=2, max_lr=0.1, min_lr=0.01, out=out)
    optimizer.step()
    cycle.step()


def wrapped(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Use ``FGE`` in a loop of one's own, with PyTorch's data-parallel wrapper."""
    torch.manual_seed(0)
    model: nn.Module = normalised_model()
    if ranks.size > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cycle = fge.FGE(
        model, optimizer, cycle_steps=4, max_lr=0.1, min_lr=0.01, out=folder / "snapshots"
    )
    own = fge.FGE(  # of an optimizer that trains nothing: two cycles of one would disagree
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        cycle_steps=4,
        max_lr=0.1,
        min_lr=0.01,
        out=folder / f"own-{ranks.rank}",
        write=True,
    )
    append_slowly(cycle)
    rng = torch.Generator().manual_seed(ranks.rank)
    ensembles: list[fge.Ensemble] = []
    for _ in range(8):
        inputs = torch.randn(6, 1, 4, 4, generator=rng, dtype=torch.float64)
        F.cross_entropy(model(inputs), torch.arange(6) % 3).backward()
        optimizer.step()
        optimizer.zero_grad()
        if cycle.step():
            ensembles.append(cycle.ensemble())
        own.step()
    probs = ensembles[-1](split_of(5).images.double())
    state = cycle.state_dict()
    cycle.load_state_dict({**state, "snapshots": 1})
    return {
        "snapshots": list(own.store),
        "ensembles": [len(ensemble) for ensemble in ensembles],
        "probs": probs,
        "lost": message(lambda: cycle.load_state_dict({**state, "snapshots": 3})),
        "unwritable": message(lambda: unwritable(folder, model)),
        "writes": cycle.writes,
        "state": state["snapshots"],
        "reloaded": cycle.state_dict()["snapshots"],
        "ranks": (ranks_of(model).rank, ranks_of(Compiled(model)).size),
    }


def told(ranks: Ranks) -> dict[str, Any]:
    mixed = [
        torch.full((2, 3), float(ranks.rank)),
        torch.tensor(ranks.rank == 0),
        torch.tensor([ranks.rank + 1]),
        torch.full((1, 2, 2, 2), float(ranks.rank)).to(memory_format=torch.channels_last),
    ]
    ranks.broadcast(mixed)
    return {
        "bytes": ranks.tell(b"first" if ranks.leads else b"other, longer"),
        "empty": ranks.tell(b""),
        "first": ranks.first(lambda: f"from {ranks.rank}"),
        "broadcast": mixed,
    }


def jobs(folder: Path, ranks: Ranks) -> dict[str, Any]:
    return {
        "plain": trained(plain_model, ranks),
        "uneven": trained(plain_model, ranks, images=35),  # a last batch of 3: one share of 3
        "accumulated": trained(plain_model, ranks, images=35, part_size=4, clip_norm=0.1),
        "clipped": trained(plain_model, ranks, images=35, clip_norm=0.1),
        "mixed": trained(plain_model, ranks, images=35, mixed=True, loss_fn=_of_doubles),
        "noisy": trained(plain_model, ranks, optimizer=noisy),
        "normalised": trained(normalised_model, ranks, images=35),
        # The scaler works; autocast leaves float64 alone.
        "scaled": trained(plain_model, ranks, images=35, speed=Speed(amp="fp16")),
        "compiled": trained(plain_model, ranks, images=35, compiled=True),
        "ema": trained(plain_model, ranks, images=35, decay=0.5, refresh=[]),
        "masks": masks_of(ranks),
        "statistics": running_statistics(ranks),
        "refreshed": refreshed(ranks, all_ranks=ranks.size > 1),
        "wrapped": wrapped(folder, ranks),
        "sharded": sharded_job.sharded(folder / "sharded", ranks, normalised_model, plain_model),
        **({"told": told(ranks), "failures": failures(ranks)} if ranks.size > 1 else {}),
        "unused": unused_parameters(ranks),
    }


def count_and_kill(job: dict[str, Any], calls: list[int]) -> None:
    """Count the calls of fsync in ``calls``, and kill where the job says so."""
    sync = os.fsync

    def counting_fsync(handle: int) -> None:
        calls[0] += 1
        if calls[0] == job.get("at"):
            kill = os.killpg if job.get("all") else os.kill
            kill(os.getpgrp() if job.get("all") else os.getpid(), job["signal"])
        sync(handle)

    fge.disk.os.fsync = counting_fsync  # type: ignore[attr-defined]


def child(job: dict[str, Any], rank: int, port: int) -> int:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(job["size"]), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if "arguments" in job:
        calls = [0]
        if rank == 0:
            count_and_kill(job, calls)
        code = cli.main(job["arguments"])
        if rank == 0:
            Path(job["counter"]).write_text(str(calls[0]))
        return code
    ranks = join("fge")
    if job.get("vanishes"):
        print(message(lambda: vanish(ranks)), file=sys.stderr)
        return 0
    torch.save(jobs(Path(job["folder"]), ranks), Path(job["folder"]) / f"{rank}.pt")
    return 0


def fork(job: dict[str, Any], rank: int, port: int, group: int, stderr: int) -> int:
    """Start a process of the group; return its number."""
    pid = os.fork()
    if pid:
        os.setpgid(pid, group or pid)
        return pid
    code = 1
    try:
        os.setpgid(0, group)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(stderr, 2)
        code = child(job, rank, port)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def run(job: dict[str, Any]) -> dict[str, Any]:
    with socket.socket() as free, tempfile.TemporaryFile() as stderr:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        counter = Path(tempfile.mkdtemp()) / "calls"
        pids: list[int] = []
        for rank in range(job["size"]):
            group = pids[0] if pids else 0
            pids.append(fork({**job, "counter": str(counter)}, rank, port, group, stderr.fileno()))
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        stderr.seek(0)
        errors = stderr.read().decode()
    calls = int(counter.read_text()) if counter.exists() else 0
    return {"codes": codes, "errors": errors, "calls": calls}


if __name__ == "__main__":
    # What PyTorch and the report import at first use, once instead of in every process.
    for module in (
        "torch._dynamo",
        "torchvision.models",
        "fge.commands.train",
        "matplotlib.figure",
    ):
        importlib.import_module(module)
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
