"""Models and batches of unusual kinds: a right value, or an error that names what to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fge
from fge.curves import evaluate_curve, fit_curve, straight_curve
from fge.errors import UserError
from fge.landscape import HessianOperator, Plane, evaluate_plane
from fge.networks import predict_proba, read_weights
from fge.train import LinearTailLR, TriangularLR

RNG = torch.Generator().manual_seed(0)
X = torch.randn(24, 4, generator=RNG, dtype=torch.float64)
Y = torch.randint(0, 3, (24,), generator=RNG)
BATCHES = [(X[k : k + 8], Y[k : k + 8]) for k in range(0, 24, 8)]


def plain(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def with_inference_buffer(seed: int) -> nn.Module:
    model = plain(seed)
    with torch.inference_mode():
        made = torch.arange(2.0)
    model.register_buffer("made", made)
    return model


def loss_of(model: nn.Module) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(model(X), Y))


def test_buffers_made_in_inference_mode_stay_as_they_are(tmp_path: Path) -> None:
    models = [with_inference_buffer(seed) for seed in range(3)]
    before = [loss_of(model) for model in models]
    curve = fit_curve(models[0], models[0], models[1], BATCHES, epochs=1, lr=0.1)
    records = evaluate_curve(models[2], curve, BATCHES, num_points=3)
    assert [records[0]["loss"], records[2]["loss"]] == pytest.approx(before[:2], rel=1e-12)
    plane = Plane.through(*models)
    evaluate_plane(models[0], plane, BATCHES, resolution=2)
    optimizer = torch.optim.SGD(models[0].parameters(), 0.1)
    cycle = fge.FGE(
        models[0],
        optimizer,
        max_lr=0.1,
        min_lr=0.01,
        cycle_steps=2,
        average=1.0,
        out=tmp_path,
    )
    for x, y in BATCHES:
        optimizer.zero_grad()
        F.cross_entropy(models[0](x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        cycle.step()
    assert cycle.ensemble().predict_proba(BATCHES).shape == (24, 3)
    assert [loss_of(model) for model in models[1:]] == before[1:]
    assert all(torch.equal(model.get_buffer("made"), torch.arange(2.0)) for model in models)


class KeepsLast(nn.Module):
    """Stores the last batch it has seen in a buffer, as a cache does."""

    last: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.network = plain(seed)
        self.register_buffer("last", torch.zeros(0, 4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.detach()
        output: Tensor = self.network(x)
        return output


def test_a_buffer_that_changes_its_shape_is_put_back() -> None:
    first, second = KeepsLast(0), KeepsLast(1)
    curve = straight_curve(first, first, second)
    records = evaluate_curve(first, curve, BATCHES, num_points=3)
    assert records[0]["loss"] == pytest.approx(loss_of(first.network), rel=1e-12)
    assert records[2]["loss"] == pytest.approx(loss_of(second.network), rel=1e-12)
    assert first.last.shape == second.last.shape == (0, 4)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_that_keeps_gradients_can_be_folded() -> None:
    models = [torch.jit.script(plain(seed)) for seed in range(2)]
    for model in models:
        model(X[:4])
    with torch.no_grad():
        assert models[0](X).requires_grad, "TorchScript has recorded gradients"
    result = fge.fold(models[0], models, BATCHES, refresh=BATCHES)
    losses = [loss_of(model) for model in models]
    assert result.before.nll == pytest.approx(min(losses), rel=1e-9)
    assert repr(result) == f"<Fold of 2 members. {result}>"


def test_batch_norm_without_statistics_cannot_have_a_last_batch_of_one() -> None:
    layers = nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3)
    model = nn.Sequential(*layers).double()
    batches = [(X[:8], Y[:8]), (X[8:9], Y[8:9])]
    message = (
        r"^batch norm cannot normalise a batch of a single image; give larger batches, and leave "
        r"out a last one of a single image \(drop_last\)$"
    )
    curve = straight_curve(model, model, {k: v + 1 for k, v in model.state_dict().items()})
    asked: list[Any] = [
        lambda: evaluate_curve(model, curve, batches, num_points=2),
        lambda: predict_proba(model, batches),
        lambda: fge.Ensemble(model, [model]).predict_proba(batches),
    ]
    for ask in asked:
        with pytest.raises(UserError, match=message):
            ask()


@pytest.mark.parametrize("batch", ["text", {}, SimpleNamespace(x=X)])
def test_a_batch_without_tensors_is_named_by_its_own_type(batch: Any) -> None:
    first, second = plain(0), plain(1)
    kind = type(batch).__name__
    with pytest.raises(UserError, match=rf"^a batch must hold a tensor, got a (tuple of )?{kind}$"):
        fit_curve(first, first, second, [batch], epochs=1)


def test_files_that_are_no_weights_say_what_they_are(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(UserError, match=r"index\.json lists the files of a model in parts; load"):
        read_weights(index)
    arrays = tmp_path / "w.npz"
    np.savez(arrays, w=np.zeros(2))
    with pytest.raises(UserError, match=r"w\.npz holds NumPy arrays, not weights; save model\.st"):
        read_weights(arrays)


def test_objects_say_in_one_line_what_they_hold() -> None:
    model = plain(0)
    operator = HessianOperator(model, F.cross_entropy, BATCHES)
    assert repr(operator) == "HessianOperator(43 parameters, 0 products)"
    average = fge.ExponentialAverage(model)
    average.update(model)
    assert repr(average) == "ExponentialAverage(1 step, 43 parameters)"
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    assert repr(LinearTailLR(optimizer, steps=10)) == "LinearTailLR(step 0, learning rate 0.5)"
    cycles = TriangularLR(optimizer, max_lr=0.25, min_lr=0.1, cycle_steps=4)
    assert repr(cycles) == "TriangularLR(step 0, learning rate 0.25)"
