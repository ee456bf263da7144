"""Where losses meet outputs: cross-entropy of one output, and targets that it cannot take."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fge
from fge.errors import UserError
from fge.networks import loss_of

INPUTS = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
ONE_OUTPUT = r"the model has one output, of shape \(6, 1\), and the cross-entropy of one class"
OUT_OF_RANGE = r"labels must be in \[0, 3\) for a model of 3 outputs, got 0 to 3; number"


def network(outputs: int) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, outputs)


def ends(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return dict(model.state_dict()), {n: t + 0.1 for n, t in model.state_dict().items()}


def fitted(model: nn.Module, data: list[Any], **options: Any) -> fge.Curve:
    return fge.fit_curve(model, *ends(model), data, epochs=1, lr=0.01, **options)


def evaluated(model: nn.Module, data: list[Any]) -> Any:
    curve = fitted(model, data, loss_fn=lambda outputs, _: outputs.square().mean())
    return fge.evaluate_curve(model, curve, data, num_points=2, refresh=data)


def plane(model: nn.Module, data: list[Any]) -> Any:
    first, last = ends(model)
    across = {n: t * torch.linspace(1, 2, t.shape[-1]) for n, t in first.items()}
    return fge.evaluate_plane(
        model, fge.Plane.through(first, across, last, model=model), data, resolution=2
    )


CALLS: dict[str, Callable[[nn.Module, list[Any]], Any]] = {
    "fit_curve": fitted,
    "evaluate_curve": evaluated,
    "evaluate_plane": plane,
    "top_eigenvalues": partial(lambda loss, m, d: fge.top_eigenvalues(m, loss, d), F.cross_entropy),
    "of a module": partial(
        lambda loss, m, d: fge.top_eigenvalues(m, loss, d), nn.CrossEntropyLoss(label_smoothing=0.1)
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["numbers", "labels"])
def test_cross_entropy_of_one_output_is_refused_everywhere(call: str, kind: str) -> None:
    targets = torch.randn(6, 1) if kind == "numbers" else torch.arange(6) % 2
    with pytest.raises(UserError, match=ONE_OUTPUT) as caught:
        CALLS[call](network(1), [(INPUTS, targets)])
    assert "binary_cross_entropy_with_logits" in str(caught.value)
    assert "mse_loss" in str(caught.value)


@pytest.mark.parametrize("call", CALLS)
def test_labels_out_of_range_are_refused_everywhere(call: str) -> None:
    with pytest.raises(UserError, match=OUT_OF_RANGE):
        CALLS[call](network(3), [(INPUTS, torch.arange(6) % 4)])


LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("outputs", "targets", "loss_fn", "message"),
    [
        (LOGITS[:, 0], torch.rand(6), F.cross_entropy, r"one output, of shape \(6,\)"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4).long(), F.cross_entropy, "one output"),
        (LOGITS, -torch.arange(6), partial(F.cross_entropy, reduction="mean"), "got -5 to 0"),
        (LOGITS, torch.arange(6), nn.CrossEntropyLoss(ignore_index=5), "got 0 to 4"),
        (LOGITS, torch.rand(6), F.cross_entropy, r"targets \(6,\) of type torch.float32"),
        (LOGITS, torch.zeros(6).int(), F.cross_entropy, r"class numbers \(6,\) of type torch.int6"),
        (LOGITS, torch.zeros(5).long(), F.cross_entropy, r"targets \(5,\) of type torch.int64"),
        (LOGITS, [0, 1, 2, 0, 1, 2], F.cross_entropy, "tensor of targets, got a list"),
        ({"logits": LOGITS}, torch.zeros(6).long(), F.cross_entropy, "returns a dict; give forwa"),
    ],
)
def test_what_cross_entropy_cannot_take_is_said(
    outputs: Any, targets: Any, loss_fn: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        loss_of(outputs, (INPUTS, targets), loss_fn)


def test_other_losses_and_targets_are_as_pytorch_has_them() -> None:
    labels, shares = torch.tensor([0, 1, 2, -100, 1, 0]), LOGITS.softmax(1)
    ignoring = nn.CrossEntropyLoss(ignore_index=2)
    for outputs, targets, loss_fn in (
        (LOGITS, labels, F.cross_entropy),
        (LOGITS, shares, F.cross_entropy),
        (LOGITS, labels.clamp_min(0), ignoring),
        (LOGITS[:, :1], shares[:, :1], F.mse_loss),
    ):
        assert loss_of(outputs, (INPUTS, targets), loss_fn) == loss_fn(outputs, targets)

    def broken(*_: Tensor) -> Tensor:
        raise IndexError("its own")

    with pytest.raises(IndexError, match="its own"):
        loss_of(LOGITS, (INPUTS, labels), broken)


def test_dictionaries_that_a_model_cannot_take_need_a_forward_fn() -> None:
    data = [{"x": INPUTS, "labels": torch.arange(6) % 3}]
    target: dict[str, Any] = {"target_fn": lambda batch: batch["labels"]}
    with pytest.raises(UserError, match=r"cannot be called with a dict .*; give forward_fn="):
        fitted(network(3), data, **target)
    curve = fitted(network(3), data, forward_fn=lambda m, batch: m(batch["x"]), **target)
    assert len(curve.points) == 3

    class Taking(nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return batch["x"].sum(1, keepdim=True).expand(-1, 3)

    class Failing(nn.Linear):
        def forward(self, _: Tensor) -> Tensor:
            raise TypeError("its own")

    assert fge.refresh_batch_norm(Taking(), data) == 0
    with pytest.raises(TypeError, match="its own"):
        fge.top_eigenvalues(Failing(8, 3), F.cross_entropy, [(INPUTS, torch.arange(6) % 3)])


def test_an_optimizer_of_frozen_parameters_is_refused(tmp_path: Path) -> None:
    model = network(3)
    model.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options: dict[str, Any] = {"cycle_steps": 2, "max_lr": 0.1, "min_lr": 0.01, "out": tmp_path}
    with pytest.raises(UserError, match="no parameter of the optimizer requires a gradient; set"):
        fge.FGE(model, optimizer, **options)
    model.bias.requires_grad_(True)
    fge.FGE(model, optimizer, **options)


def test_a_loss_is_one_number_whatever_its_dimensions() -> None:
    labels = torch.arange(6) % 3
    found = loss_of(LOGITS, (INPUTS, labels), lambda z, y: F.cross_entropy(z, y)[None, None])
    assert found.shape == ()
    assert found == F.cross_entropy(LOGITS, labels)
    each = nn.CrossEntropyLoss(reduction="none")
    for loss_fn, kind in ((each, r"\(6,\)"), (lambda z, _: float(z.sum()), "float")):
        with pytest.raises(UserError, match=f"one number, the mean over a batch, got {kind}"):
            loss_of(LOGITS, (INPUTS, labels), loss_fn)
