"""Second derivatives of layers: every layer has a case, and what is wrong is called wrong."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn

import fge

sys.path.insert(0, str(ROOT / "benchmarks"))
import layer_cases  # type: ignore[import-not-found, unused-ignore]
import layer_cases_plain as plain  # type: ignore[import-not-found, unused-ignore]
import second_derivatives as study  # type: ignore[import-not-found, unused-ignore]

RAW: dict[str, Any] = json.loads(study.RESULTS.read_text(encoding="utf-8"))
LINEAR = layer_cases.own("Linear", (4,), 4, 3)


@pytest.mark.skipif(
    torch.__version__ != RAW["environment"]["torch"], reason="the page is of another PyTorch"
)
def test_every_class_of_torch_nn_has_a_case_or_is_no_layer() -> None:
    cases = layer_cases.WITH_PARAMETERS | plain.WITHOUT_PARAMETERS
    covered = {case.cls for case in cases.values()} | set(plain.NOT_LAYERS)
    classes = {
        name
        for name, value in vars(nn).items()
        if isinstance(value, type) and issubclass(value, nn.Module)
    }
    assert classes - covered == set()


def test_a_right_product_is_called_right_and_a_wrong_one_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = study.measure("linear", LINEAR)
    assert (row.pytorch, row.status, row.message) == ("right", "right", "")
    assert row.difference < 1e-8
    product = fge.HessianOperator.matvec
    monkeypatch.setattr(fge.HessianOperator, "matvec", lambda *given: 1.001 * product(*given))
    row = study.measure("linear", LINEAR)
    assert (row.pytorch, row.status) == ("right", "wrong")
    assert row.difference == pytest.approx(1e-3, rel=1e-3)
    monkeypatch.setattr(fge.HessianOperator, "matvec", failing)
    row = study.measure("linear", LINEAR)
    assert (row.status, row.message) == ("fails", "RuntimeError: of no kind that is known")


def failing(*_: Any) -> Tensor:
    raise RuntimeError("of no kind that is known")


class Skewed(torch.autograd.Function):
    """The square of x, with 3 for its second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (3 * x - x.detach())


@pytest.mark.parametrize(
    ("call", "pytorch", "message"),
    [
        (lambda layer, x: Skewed.apply(layer(x)), "wrong", "Hessian products are wrong: "),
        (
            lambda layer, x: nn.CrossMapLRN2d(2)(layer(x)[..., None, None]),
            "none",
            "the loss is not",
        ),
    ],
)
def test_what_pytorch_has_wrong_or_not_at_all_is_said(
    call: Any, pytorch: str, message: str
) -> None:
    row = study.measure("layer", layer_cases.own("Linear", (4,), 4, 3, call=call))
    assert (row.pytorch, row.status) == (pytorch, "refused")
    assert row.message.startswith(message)
    assert row.difference is None


def test_the_page_is_what_the_raw_results_say() -> None:
    page = study.PAGE.read_text(encoding="utf-8")
    assert page.partition(study.MARK)[2].strip() == study.tables(RAW)
    for part, cases in study.PARTS.items():
        rows = study.rows_of(RAW, part)
        assert [row.layer for row in rows] == list(cases)
        assert {row.status for row in rows} <= {"right", "corrected", "refused"}


def test_names_are_not_broken_between_lines() -> None:
    names = [f"`Layer{study.FIXED}(number{study.FIXED}{n})`" for n in range(20)]
    lines = study.wrapped(", ".join(names)).split("\n")
    assert len(lines) > 1
    assert all(len(line) <= study.WIDTH and line.count("`") % 2 == 0 for line in lines)
    assert " ".join(lines) == ", ".join(names).replace(study.FIXED, " ")


@pytest.mark.slow
def test_every_layer_is_right_or_refused_and_right_where_the_page_says_so() -> None:
    for part, cases in study.PARTS.items():
        known = {row.layer: row.operator for row in study.rows_of(RAW, part)}
        rows = study.measured(cases)
        assert len(rows) > 50
        for row in rows:
            assert row.operator == "right" or row.operator == known[row.layer] == "refused", row
