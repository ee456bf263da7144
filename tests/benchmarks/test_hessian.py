"""The Hessian benchmark: ratios are paired, and what was not reached is marked."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import nn

sys.path.insert(0, str(ROOT / "benchmarks"))
import hessian as study  # type: ignore[import-not-found, unused-ignore]


def run(seconds: float, *, error: float = 0.1, products: int = 3) -> dict[str, Any]:
    reached = error <= 1
    return {"seconds": seconds, "products": products, "error_percent": error, "reached": reached}


RUNS = {
    "reach fge": [run(1.0), run(4.0), run(2.0)],
    "reach pyhessian": [run(3.0), run(4.0), run(20.0, error=7.0, products=300)],
    "own fge": [run(1.0), run(1.0), run(1.0)],
    "own pyhessian": [run(2.0, error=3.0), run(3.0), run(5.0)],
}


def test_ratios_are_those_within_a_round() -> None:
    found = study.ratios(RUNS)
    # Of the medians it would be 4 / 2 = 2.
    assert found["reach"] == {"median": 3, "low": 1, "high": 10, "count": 3, "at_least": True}
    assert found["own"] == {"median": 3, "low": 2, "high": 5, "count": 3, "at_least": False}


def test_what_is_printed_says_the_rounds_their_range_and_what_was_not_reached() -> None:
    texts = study.lines(RUNS, study.ratios(RUNS), 0.5)
    assert texts[0] == (
        "reach fge        2.00 (1.00 to 4.00, 3 rounds) s, 3 products, 4 gradients, "
        "error at most 0.1 %"
    )
    assert texts[1].endswith("error at most 7 %, NOT within 1 % in 1 of 3 rounds")
    assert texts[4] == (
        "reach: at least 3.00 (1.00 to 10.00, 3 rounds) x faster (target 2.0 x, met)"
    )
    assert texts[5] == "own: 3.00 (2.00 to 5.00, 3 rounds) x faster"


def test_figures_tell_the_error_and_whether_it_is_small_enough() -> None:
    for value, reached in ((2.019, True), (1.981, True), (2.03, False), (1.97, False)):
        found = study.figures(0.0, 5, value, 2.0)
        assert found["error_percent"] == pytest.approx(50 * abs(value - 2))
        assert found["reached"] is reached


def test_costs_are_medians_of_ratios_within_a_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    # Repetitions take 1, 1, 1, 1, 10 s a gradient; products 3 x and 5 x as long each time.
    scale = iter([7.0] * study.WARM_UP + [1.0, 1.0, 1.0, 1.0, 10.0])
    now = 0.0
    state: dict[str, float] = {}

    def gradient(*_: Any) -> float:
        state["scale"] = next(scale)
        return state["scale"]

    def clock() -> float:
        return now

    class Operator:
        size = 2

        def __init__(self, *_: Any, graph_memory: int = 1) -> None:
            self.factor = 3.0 if graph_memory else 5.0

        def matvec(self, _: Any) -> None:
            nonlocal now
            now += self.factor * state["scale"]

    monkeypatch.setattr(study, "gradient_seconds", gradient)
    monkeypatch.setattr(study.time, "perf_counter", clock)
    monkeypatch.setattr(study, "HessianOperator", Operator)
    costs = study.product_costs(nn.Identity(), (torch.zeros(1), torch.zeros(1)), 5)
    assert costs["kept_spread"] == pytest.approx({"median": 3, "low": 3, "high": 3, "count": 5})
    assert costs["recomputed_gradients"] == pytest.approx(5)
    assert costs["gradient_seconds"] == 1
    assert costs["gradient_spread"]["high"] == 10  # the warm-up's 7 s do not count


def test_this_project_reaches_the_truth_of_a_small_network() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    batch = torch.randn(40, 5), torch.randint(0, 3, (40,))
    truth = study.converged_eigenvalue(model, batch)
    weight = [p.detach() for p in model.parameters()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(batch[0] @ flat[:15].view(3, 5).T + flat[15:], batch[1])

    flat = torch.cat([part.reshape(-1) for part in weight]).double()
    batch = batch[0].double(), batch[1]
    dense = torch.func.hessian(loss)(flat)
    assert truth == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-3)
    found = study.lanczos_reaches(model, (batch[0].float(), batch[1]), truth, 0)
    assert found["reached"]
