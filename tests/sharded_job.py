"""What the tests of sharded models run in each of several processes; see ``ranks_job``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fge
from fge.networks import ranks_of, refresh_batch_norm
from fge.parallel import Ranks

STEPS, STOP = 12, 8
"""With cycles of 4 there are snapshots after 2, 6 and 10 steps, two of them before the stop."""
Make = Callable[[], nn.Sequential]


def message(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


class Loop:
    """A training loop of one's own with ``FGE``; ``spread`` distributes the model."""

    def __init__(
        self, make: Make, spread: Callable[[Any], nn.Module], out: Path, **options: Any
    ) -> None:
        torch.manual_seed(0)
        self.model = spread(make())
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        options = {"cycle_steps": 4, "max_lr": 0.1, "min_lr": 0.01, **options}
        self.cycle = fge.FGE(self.model, self.optimizer, out=out, **options)

    def run(self, first: int, last: int, ranks: Ranks) -> None:
        for step in range(first, last):
            inputs, targets = joint_batch(step)
            mine = ranks.share(len(inputs))
            F.cross_entropy(self.model(inputs[mine]), targets[mine]).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.cycle.step()


def joint_batch(step: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(step)
    return torch.randn(8, 1, 4, 4, generator=rng, dtype=torch.float64), torch.arange(8) % 3


def shard(model: nn.Sequential) -> nn.Module:
    """Shard each layer that has weights, and what is left."""
    mesh = init_device_mesh("cpu", (2,))
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def replicate(model: nn.Sequential) -> nn.Module:
    """Give each process the whole model, with running statistics of its own."""
    own = [name for name, _ in model.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, own)
    return DistributedDataParallel(model)


def resumed(folder: Path, make: Make, ranks: Ranks) -> list[dict[str, Tensor]]:
    """Save after some steps, take more, and go on from what was saved with new objects."""
    loop = Loop(make, shard, folder)
    loop.run(0, STOP, ranks)
    weights, moments = copy.deepcopy(get_state_dict(loop.model, loop.optimizer))
    saved = loop.cycle.state_dict()
    loop.run(STOP, STEPS, ranks)
    again = Loop(make, shard, folder)
    set_state_dict(again.model, again.optimizer, model_state_dict=weights, optim_state_dict=moments)
    again.cycle.load_state_dict(saved)
    again.run(STOP, STEPS, ranks)
    return list(fge.SnapshotStore(folder))


def sharded(folder: Path, ranks: Ranks, make: Make, plain: Make) -> dict[str, Any]:
    """Train models with (``make``) and without batch norm, sharded over two processes or whole."""
    spread = shard if ranks.size > 1 else lambda model: model
    loop = Loop(plain, spread, folder / "plain")
    loop.run(0, STEPS, ranks)
    results: dict[str, Any] = {"plain": list(fge.SnapshotStore(folder / "plain"))}
    if ranks.size == 1:
        return results
    loop = Loop(make, shard, folder / "normalised")
    loop.run(0, STEPS, ranks)
    whole = Loop(make, replicate, folder / "data-parallel")
    whole.run(0, STEPS, ranks)
    own = Loop(make, shard, folder / f"own-{ranks.rank}", write=True)
    own.run(0, STEPS, ranks)
    spread_over = ranks_of(loop.model)
    images = [joint_batch(step)[0][ranks.share(8)] for step in range(3)]
    used = [
        refresh_batch_norm(model, images, num_images=None, all_ranks=True)
        for model in (loop.model, whole.model)
    ]
    means = [model.state_dict() for model in (loop.model, whole.model.module)]
    return {
        **results,
        "normalised": list(fge.SnapshotStore(folder / "normalised")),
        "data_parallel": list(fge.SnapshotStore(folder / "data-parallel")),
        "own": list(own.cycle.store),
        "resumed": resumed(folder / "resumed", make, ranks),
        "writes": loop.cycle.writes,
        "ranks": (spread_over.rank, spread_over.size),
        "refreshed": used,
        "means": [state["1.running_mean"] for state in means],
        "probs": loop.cycle.ensemble(make())(joint_batch(0)[0]),
        "copied": message(loop.cycle.ensemble),
        "appended": message(lambda: fge.SnapshotStore(folder / "none").append(loop.model)),
    }
