"""``FGE`` in a loop with accelerate, which needs no callback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fge

pytestmark = pytest.mark.slow


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def loop(out: Path, steps: range, checkpoint: Path, *, prepared: bool = True) -> None:
    """Take steps, each of two batches; begin with the checkpoint, or leave one at 7 steps."""
    from accelerate import Accelerator

    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    inputs, targets = torch.randn(8, 4), torch.arange(8) % 3
    loader: Any = DataLoader(TensorDataset(inputs, targets), batch_size=4)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    if prepared:
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    cycle = fge.FGE(model, optimizer, cycle_steps=4, max_lr=0.1, min_lr=0.01, average=1.0, out=out)
    accelerator.register_for_checkpointing(cycle)
    if steps.start:
        accelerator.load_state(str(checkpoint))
    for step in steps:
        for x, y in loader:
            if not prepared:
                (F.cross_entropy(model(x), y) / 2).backward()
                continue
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
            assert accelerator.sync_gradients == torch.equal(x, inputs[4:])
        if not prepared:
            optimizer.step()
            optimizer.zero_grad()
        cycle.step()
        if step == 6 and prepared:
            accelerator.save_state(str(checkpoint))


def test_snapshots_are_those_of_a_plain_loop_and_resume_from_a_checkpoint(tmp_path: Path) -> None:
    loop(tmp_path / "plain", range(12), tmp_path / "none", prepared=False)
    loop(tmp_path / "whole", range(12), tmp_path / "state")
    assert len(fge.SnapshotStore(tmp_path / "plain")) == 3
    whole = contents(tmp_path / "whole")
    assert whole == contents(tmp_path / "plain")
    loop(tmp_path / "whole", range(7, 12), tmp_path / "state")
    assert contents(tmp_path / "whole") == whole


@pytest.mark.parametrize("workers", [0, 1])
def test_statistics_from_the_prepared_loader_leave_steps_and_order_alone(
    tmp_path: Path, workers: int
) -> None:
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    found = []
    for part in (0.0, 0.5):
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
        data = TensorDataset(torch.randn(20, 4), torch.arange(20) % 3)
        loader: Any = DataLoader(
            data, 4, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )
        accelerator = Accelerator(
            cpu=True,
            gradient_accumulation_steps=2,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        )
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        rates = {"cycle_steps": 4, "max_lr": 0.1, "min_lr": 0.01}
        out = tmp_path / str(part)
        cycle = fge.FGE(model, optimizer, **rates, average=part, refresh=loader, out=out)
        steps = 0
        for _ in range(3):  # an odd number of batches: the last one completes gradients too
            for x, y in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(F.cross_entropy(model(x), y))
                    optimizer.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    cycle.step()
                    steps += 1
        found.append((steps, accelerator.unwrap_model(model)[0].weight.detach().clone()))
    assert found[0][0] == found[1][0] == 9
    assert torch.equal(found[0][1], found[1][1])
