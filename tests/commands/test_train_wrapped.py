"""Factories that return a compiled model: the run is that of the model itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fge_runs import config
from torch import Tensor, nn

from fge import SnapshotStore
from fge.commands.train import fge
from fge.networks import build_model
from fge.train import EmaLearner, Learner

FACTORIES = """
import torch
from torch import nn

class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self._orig_mod = module  # as torch.compile does

    def forward(self, x):
        return self._orig_mod(x)

def plain(in_channels, num_classes):
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, num_classes),
    )

def wrapped(in_channels, num_classes):
    return Wrapper(plain(in_channels, num_classes))

def compiled(in_channels, num_classes):
    return torch.compile(plain(in_channels, num_classes), backend="eager")
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_wrapped.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_wrapped"


def build(name: str) -> nn.Module:
    return build_model(name, in_channels=1, num_classes=3, image_size=(8, 8))


def test_a_learners_state_and_distances_are_those_of_the_model_itself(
    factories: str, tmp_path: Path
) -> None:
    model = build(f"{factories}:wrapped")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    learner = EmaLearner(model, optimizer, decay=0.5, refresh=[torch.zeros(2, 1, 8, 8)])
    plain = build(f"{factories}:plain")
    state = learner.state_dict()
    assert list(state["model"]) == list(plain.state_dict())
    plain_learner = Learner(plain, torch.optim.SGD(plain.parameters(), lr=0.1))
    plain_learner.load_state_dict(state)
    learner.load_state_dict({**plain_learner.state_dict(), "average": state["average"]})
    learner.restart({name: torch.zeros_like(tensor) for name, tensor in plain.state_dict().items()})
    store = SnapshotStore(tmp_path / "snapshots")
    store.append(plain)
    squares: list[Tensor] = [p.detach().double().square().sum() for p in plain.parameters()]
    expected = float(torch.stack(squares).sum().sqrt())
    assert store.distance(learner.model) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wrapped", "compiled"])
def test_a_run_of_a_wrapped_model_is_that_of_the_model_itself(
    kind: str, factories: str, tiny_npz: Path, tmp_path: Path
) -> None:
    runs = [
        fge(config(tiny_npz, tmp_path / name, model=f"{factories}:{name}", single=True))
        for name in ("plain", kind)
    ]
    files = [sorted(p.relative_to(run) for p in run.rglob("*.safetensors")) for run in runs]
    assert files[0] == files[1]
    for name in files[0]:
        if "snapshots" in name.parts or len(name.parts) == 1:
            assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes(), name
    methods = [json.loads((run / "report.json").read_text())["methods"] for run in runs]
    assert methods[0] == methods[1]
