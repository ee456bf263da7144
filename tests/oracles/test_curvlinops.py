"""Hessian products and eigenvalues of five networks against curvlinops, in float64.

curvlinops differentiates forwards over backwards, which PyTorch has for fewer layers: group norm,
SiLU and Mish lack it, and with layer norm its Hessian is not symmetric (PyTorch 2.14).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

import fge

curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is in the extra test")
pytestmark = pytest.mark.slow

BATCHES = (5, 8, 3)
"""Examples of each batch: the mean is over all of them, not over batches."""
Batches = list[tuple[Tensor, Tensor]]


class Residual(nn.Module):
    """A sum of two paths, with batch norm and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.block = nn.Sequential(
            nn.BatchNorm2d(4), nn.Sigmoid(), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        outputs: Tensor = self.head((hidden + self.block(hidden)).mean((2, 3)))
        return outputs


class Recurrent(nn.Module):
    """The last state of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.inner(x)[0][:, -1])
        return outputs


class Attention(nn.Module):
    """Embeddings, attention of which the weights are asked for, and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, indices: Tensor) -> Tensor:
        x = self.embedding(indices)
        outputs: Tensor = self.head((x + self.inner(x, x, x)[0]).tanh().mean(1))
        return outputs


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Softplus(), nn.Linear(4, 3)
    )


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2), nn.GELU(), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A network, the inputs of so many examples, the targets of so many, and the loss."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    targets: Callable[[int], Tensor]
    loss_fn: nn.Module


def classes(count: int) -> Tensor:
    return torch.randint(0, 3, (count,))


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 6, 6).double()


CASES = {
    "mlp": Case(mlp, lambda n: torch.randn(n, 5).double(), classes, nn.CrossEntropyLoss()),
    "convnet": Case(convnet, images, classes, nn.CrossEntropyLoss(label_smoothing=0.1)),
    "residual": Case(Residual, images, lambda n: torch.randn(n, 3).double(), nn.MSELoss()),
    "recurrent": Case(
        Recurrent,
        lambda n: torch.randn(n, 4, 3).double(),
        lambda n: torch.rand(n, 2).round().double(),
        nn.BCEWithLogitsLoss(),
    ),
    "attention": Case(
        Attention, lambda n: torch.randint(0, 6, (n, 4)), classes, nn.CrossEntropyLoss()
    ),
}


def made(name: str) -> tuple[nn.Module, nn.Module, Batches]:
    """Return a network of nothing special, the loss, and batches of unequal sizes."""
    case = CASES[name]
    torch.manual_seed(3)
    model = case.build().double()
    batches = [(case.inputs(count), case.targets(count)) for count in BATCHES]
    model(batches[0][0])  # statistics of some data
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval(), case.loss_fn, batches


def theirs(model: nn.Module, loss_fn: nn.Module, batches: Batches) -> Tensor:
    """Return the Hessian (P, P) of curvlinops."""
    parameters = list(model.parameters())
    operator = curvlinops.HessianLinearOperator(model, loss_fn, parameters, batches)
    return operator @ torch.eye(sum(p.numel() for p in parameters), dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_curvlinops(name: str) -> None:
    model, loss_fn, batches = made(name)
    expected = theirs(model, loss_fn, batches)
    for chunk, memory in ((256, 2**30), (2, 0)):
        operator = fge.HessianOperator(model, loss_fn, batches, chunk=chunk, graph_memory=memory)
        vectors = torch.randn(operator.size, 3).double()
        found = torch.stack([operator.matvec(vector) for vector in vectors.T], dim=1)
        torch.testing.assert_close(found, expected @ vectors, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(operator.dense(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("name", CASES)
def test_top_eigenvalues_are_those_of_curvlinops_operator(name: str, k: int) -> None:
    model, loss_fn, batches = made(name)
    expected = theirs(model, loss_fn, batches)
    values, vectors = eigsh(expected.numpy(), k=k, which="LA")
    found = fge.top_eigenvalues(
        model, loss_fn, batches, k, tolerance=1e-8, max_iterations=300, vectors=True
    )
    assert found.converged
    np.testing.assert_allclose(found.values, np.sort(values)[::-1], rtol=1e-8)
    assert found.vectors is not None
    overlap = np.abs(found.vectors[0].numpy() @ vectors[:, values.argmax()])
    assert overlap == pytest.approx(1, abs=1e-6)
    default = fge.top_eigenvalues(model, loss_fn, batches, k)
    np.testing.assert_allclose(default.values, np.sort(values)[::-1], rtol=1e-2)


@pytest.mark.parametrize("name", CASES)
def test_the_trace_is_that_of_curvlinops_within_its_error(name: str) -> None:
    model, loss_fn, batches = made(name)
    expected = float(theirs(model, loss_fn, batches).trace())
    found = fge.trace(model, loss_fn, batches, num_samples=60)
    assert found.value == pytest.approx(expected, abs=4 * found.standard_error)
