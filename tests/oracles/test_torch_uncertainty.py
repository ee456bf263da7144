"""Metrics of random probabilities against those of TorchUncertainty."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import fge
from fge import metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("torch_uncertainty") is None,
        reason="torch-uncertainty is not installed (it is in the extra test, for Python < 3.14)",
    ),
]

Array = NDArray[np.float64]
CASES = [(60, 2, 0.5), (150, 3, 0.1), (300, 10, 0.5), (300, 10, 5.0), (450, 100, 0.1)]
"""Examples, classes, and spread of the Dirichlet distribution."""


@pytest.fixture(scope="module")
def theirs() -> Iterator[ModuleType]:
    """Return the module of its metrics of classification.

    The package itself imports Lightning, timm and more, which its metrics do without: here it and
    its package of metrics are only places to find modules in.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("torch_uncertainty", "torch_uncertainty.metrics"):
            spec = importlib.util.find_spec(name)
            assert spec is not None
            patch.setitem(sys.modules, name, importlib.util.module_from_spec(spec))
        before = set(sys.modules)
        yield importlib.import_module("torch_uncertainty.metrics.classification")
        for name in set(sys.modules) - before:
            if name.startswith("torch_uncertainty."):
                del sys.modules[name]


def drawn(count: int, classes: int, spread: float, seed: int = 0) -> tuple[Array, Array]:
    """Return probabilities (N, C), of which none is 0, and targets that they half explain."""
    rng = np.random.default_rng([seed, count, classes, round(100 * spread)])
    probs = rng.dirichlet(np.full(classes, spread), size=count) + 1e-6
    probs /= probs.sum(axis=1, keepdims=True)
    informed = np.array([rng.choice(classes, p=row) for row in probs])
    return probs, np.where(rng.random(count) < 0.5, informed, rng.integers(0, classes, count))


def found_by(metric: Any, *arguments: Array) -> Array:
    """Return what one of their metrics is: a number, or one of each example."""
    metric.update(*(torch.as_tensor(a) for a in arguments))
    values: Array = metric.compute().numpy()
    return values


EACH: Any = {"reduction": "none"}
"""Values of each example are not summed in float32."""


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_torch_uncertainty(
    theirs: ModuleType, case: tuple[int, int, float]
) -> None:
    probs, targets = drawn(*case)
    classes = probs.shape[1]
    brier = found_by(theirs.BrierScore(num_classes=classes, **EACH), probs, targets)
    assert metrics.brier(probs, targets) == pytest.approx(brier.mean(), rel=1e-12)
    nll = found_by(theirs.CategoricalNLL(**EACH), probs, targets)
    np.testing.assert_allclose(metrics.nll_per_example(probs, targets), nll, rtol=1e-12)
    entropy = found_by(theirs.Entropy(**EACH), probs)
    np.testing.assert_allclose(metrics.entropy(probs), entropy, rtol=1e-12)


@pytest.mark.parametrize("bins", [5, 15])
@pytest.mark.parametrize("case", CASES)
def test_calibration_errors_are_those_of_torch_uncertainty(
    theirs: ModuleType, case: tuple[int, int, float], bins: int
) -> None:
    """The number of examples is a multiple of the bins: it has whole examples in each."""
    probs, targets = drawn(*case)
    options: dict[str, Any] = {"task": "multiclass", "num_classes": probs.shape[1]}
    options |= {"num_bins": bins, "norm": "l1"}
    ece = found_by(theirs.CalibrationError(**options), probs, targets)
    assert metrics.ece(probs, targets, bins=bins) == pytest.approx(ece, abs=2e-6)
    adaptive = found_by(theirs.AdaptiveCalibrationError(**options), probs, targets)
    assert metrics.adaptive_ece(probs, targets, bins=bins) == pytest.approx(adaptive, abs=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_risk_and_coverage_are_those_of_torch_uncertainty(
    theirs: ModuleType, case: tuple[int, int, float]
) -> None:
    """Its area is by trapezoids from coverage 1/N to 1, divided by that length; ours is a mean."""
    probs, targets = drawn(*case)
    metric = theirs.AURC()
    area = found_by(metric, probs, targets)
    risk = metrics.risk_coverage(probs, targets).risk
    np.testing.assert_allclose(risk, metric.partial_compute(), atol=1e-6)
    count = len(targets)
    mean = ((count - 1) * area + (risk[0] + risk[-1]) / 2) / count
    assert metrics.aurc(probs, targets) == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("members", [2, 5])
@pytest.mark.parametrize("case", CASES)
def test_members_differ_as_torch_uncertainty_says(
    theirs: ModuleType, case: tuple[int, int, float], members: int
) -> None:
    probs = np.stack([drawn(*case, seed=seed)[0] for seed in range(members)])
    expected = found_by(theirs.Disagreement(), probs.swapaxes(0, 1))
    assert metrics.disagreement(probs) == pytest.approx(100 * expected, rel=1e-5)


class Table(nn.Module):
    """Log-probabilities by the number of an example."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, index: Tensor) -> Tensor:
        return self.logits[index]


@pytest.mark.parametrize("case", CASES)
def test_an_ensembles_uncertainty_is_that_of_torch_uncertainty(
    theirs: ModuleType, case: tuple[int, int, float]
) -> None:
    probs = np.stack([drawn(*case, seed=seed)[0] for seed in range(3)])
    tables = [Table(torch.tensor(p).log()) for p in probs]
    ensemble = fge.Ensemble(tables[0], [table.state_dict() for table in tables])
    found = ensemble.uncertainty(torch.arange(case[0]).split(64))
    by_example = probs.swapaxes(0, 1)
    information = found_by(theirs.MutualInformation(**EACH), by_example)
    np.testing.assert_allclose(found["mutual_information"], information, rtol=0, atol=1e-12)
    total = found_by(theirs.Entropy(**EACH), by_example.mean(axis=1))
    np.testing.assert_allclose(found["entropy"], total, rtol=0, atol=1e-12)
