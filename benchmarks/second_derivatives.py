"""Second derivatives of every layer of ``torch.nn``: PyTorch's own, and Hessian products.

    python benchmarks/second_derivatives.py

Each layer is measured in float64 on the CPU, in evaluation mode, on a batch of four examples. Its
inputs are x + s, bent by a tanh, where s is a parameter; the loss is the mean square of the
distance to random targets, or the layer itself if it is a loss.

- ``torch.autograd.gradgradcheck`` compares PyTorch's second derivatives of the layer's outputs
  with finite differences, without this package.
- Products of ``fge.HessianOperator`` with three random vectors are compared with central
  differences of PyTorch's gradients, and their quadratic forms with second differences of the loss,
  which need no derivative at all.

Raw results: ``benchmarks/results/second_derivatives.json``. The tables of
``docs/results/second-derivatives.md`` are written from them.
"""

from __future__ import annotations

import json
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from layer_cases import EXAMPLES, WITH_PARAMETERS, Case
from layer_cases_plain import WITHOUT_PARAMETERS
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

import fge
from fge.errors import UserError
from fge.files import write_json, write_text
from fge.report import environment_facts

RESULTS = Path(__file__).parent / "results" / "second_derivatives.json"
PAGE = Path(__file__).parents[1] / "docs" / "results" / "second-derivatives.md"
MARK = "<!-- What follows is written by benchmarks/second_derivatives.py. -->"
PARTS = {"with parameters": WITH_PARAMETERS, "without parameters": WITHOUT_PARAMETERS}
VECTORS = 3
STEP, LOSS_STEP = 1e-6, 1e-4
"""Sizes of finite differences of gradients and of the loss, as lengths of vectors."""
TOLERANCE, LOSS_TOLERANCE = 1e-6, 1e-4
"""Largest relative differences of what is right; rounding leaves less than a tenth of them."""
RIGHT, CORRECTED, REFUSED = "right", "corrected", "refused"
WRONG, FAILS = "wrong", "fails"
"""A wrong product, and an error of PyTorch that is not explained: neither should occur."""
WIDTH, FIXED = 120, "\u00a0"
"""Characters of a line of the page, and a space where no line is broken."""
NONE = "none"
"""PyTorch raises an error instead of a second derivative."""


@dataclass(frozen=True)
class Row:
    """What was found for a layer; the differences are relative, and None if there is no product."""

    layer: str
    pytorch: str
    operator: str
    difference: float | None = None
    loss_difference: float | None = None
    message: str = ""

    @property
    def status(self) -> str:
        """Return ``operator``, or ``corrected`` if right where PyTorch's own is not."""
        if self.operator != RIGHT:
            return self.operator
        return RIGHT if self.pytorch == RIGHT else CORRECTED


class Net(nn.Module):
    """A layer whose inputs depend on a parameter, unless they are indices."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.call = case.call
        self.shift = None if case.indices else nn.Parameter(0.3 * torch.randn(case.shape))
        self.layer = case.make()

    def forward(self, x: Tensor) -> Any:
        """Return the layer's outputs, or its loss."""
        return self.call(self.layer, x if self.shift is None else torch.tanh(x + self.shift))


@dataclass(frozen=True)
class Problem:
    """A network with a layer, its batch, and the loss."""

    model: nn.Module
    batch: tuple[Tensor, Tensor]
    loss_fn: Callable[[Tensor, Tensor], Tensor]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return what is differentiated by."""
        return list(self.model.parameters())

    def loss(self) -> Tensor:
        """Return the loss at the parameters as they are."""
        x, y = self.batch
        return self.loss_fn(self.model(x), y)

    def gradient(self) -> Tensor:
        """Return the gradient (P,) by one ordinary backward pass."""
        parts = torch.autograd.grad(self.loss(), self.parameters, allow_unused=True)
        pairs = zip(parts, self.parameters, strict=True)
        dense = [torch.zeros_like(p) if g is None else g.to_dense() for g, p in pairs]
        return torch.cat([part.reshape(-1) for part in dense])

    def at(self, vector: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Return what is computed with a vector (P,) added to the parameters."""
        before = [p.detach().clone() for p in self.parameters]
        parts = torch.split(vector, [p.numel() for p in self.parameters])
        with torch.no_grad():
            for parameter, part in zip(self.parameters, parts, strict=True):
                parameter.add_(part.reshape(parameter.shape))
        try:
            return compute().detach()
        finally:
            with torch.no_grad():
                for parameter, saved in zip(self.parameters, before, strict=True):
                    parameter.copy_(saved)


def problem_of(case: Case) -> Problem:
    """Return the problem of a case, always the same."""
    torch.manual_seed(0)
    model = Net(case).double()
    shape = (EXAMPLES, *case.shape)
    x = torch.randint(case.indices, shape) if case.indices else torch.randn(shape).double()
    model(x)  # lazy layers learn their shapes, running statistics become those of something
    model.train(case.batch_statistics)
    with torch.no_grad():
        for parameter in model.parameters():  # biases of 0 and weights of 1 are too special
            parameter.add_(0.1 * torch.randn(parameter.shape).double())
    outputs = model(x)
    if outputs.ndim == 0:
        return Problem(model, (x, torch.zeros(EXAMPLES)), lambda loss, _: loss)
    targets = torch.randn(EXAMPLES, outputs.numel() // EXAMPLES).double()
    return Problem(model, (x, targets), mixed_error)


def mixed_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a mean square in which every output of an example acts on the others."""
    flat = outputs.reshape(len(outputs), -1)
    together = flat.cumsum(1) / flat.shape[1] ** 0.5
    return F.mse_loss(flat * (1 + together.sin()), targets)


def pytorch_alone(problem: Problem) -> str:
    """Return whether PyTorch's second derivatives of the outputs are right, wrong or missing."""
    x, _ = problem.batch
    torch.manual_seed(1)  # of the check's own directions
    options: dict[str, Any] = {"fast_mode": True, "raise_exception": False}
    parameters = tuple(problem.parameters)
    try:
        # The parameters are moved in place, so that they need not be given to the model.
        once = gradcheck(lambda *_: problem.model(x), parameters, **options)
        twice = gradgradcheck(lambda *_: problem.model(x), parameters, **options)
    except (RuntimeError, ValueError):  # the latter for sparse gradients
        return NONE
    return RIGHT if once and twice else WRONG


def by_differences(problem: Problem, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Return Hessian times vector (P,) from gradients, and its quadratic form from losses."""
    ends = [problem.at(sign * STEP * vector, problem.gradient) for sign in (1, -1)]
    losses = [problem.at(n * LOSS_STEP * vector, problem.loss) for n in (1, 0, -1)]
    second = (losses[0] - 2 * losses[1] + losses[2]) / LOSS_STEP**2
    return (ends[0] - ends[1]) / (2 * STEP), second


def measure(name: str, case: Case) -> Row:
    """Return the row of a layer."""
    problem = problem_of(case)
    pytorch = pytorch_alone(problem)
    model, statistics = problem.model, case.batch_statistics
    try:
        operator = fge.HessianOperator(
            model, problem.loss_fn, [problem.batch], batch_statistics=statistics
        )
        # Weights that have no gradient, as those of padding, are no part of what is trained.
        trained = problem.gradient() != 0
        vectors = trained * torch.randn(VECTORS, operator.size, dtype=torch.float64)
        products = [operator.matvec(vector) for vector in vectors]
    except UserError as error:
        return Row(name, pytorch, REFUSED, message=str(error))
    except (RuntimeError, ValueError) as error:
        return Row(name, pytorch, FAILS, message=f"{type(error).__name__}: {error}")
    differences, loss_differences = [], []
    for vector, product in zip(vectors, products, strict=True):
        expected, second = by_differences(problem, vector)
        size = float(expected.norm()) or 1.0
        differences.append(float((product - expected).norm()) / size)
        loss_differences.append(float((vector @ product - second).abs() / vector.norm()) / size)
    right = max(differences) <= TOLERANCE and max(loss_differences) <= LOSS_TOLERANCE
    found = RIGHT if right else WRONG
    return Row(name, pytorch, found, max(differences), max(loss_differences))


def measured(cases: dict[str, Case]) -> list[Row]:
    """Return the rows of all layers that the installed PyTorch has."""
    present = {n: case for n, case in cases.items() if case.cls is None or hasattr(nn, case.cls)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old-style norms, and batches first
        return [measure(name, case) for name, case in present.items()]


def rows_of(content: dict[str, Any], part: str) -> list[Row]:
    """Return the rows of a part of the raw results."""
    return [Row(**row) for row in content[part]]


def tables(content: dict[str, Any]) -> str:
    """Return the tables of the page, from the raw results."""
    first, second = (rows_of(content, part) for part in PARTS)
    plain = [f"`{row.layer}`".replace(" ", FIXED) for row in second if row.status == RIGHT]
    environment = content["environment"]
    facts = [
        ("command", "`python benchmarks/second_derivatives.py`"),
        ("raw figures", f"`benchmarks/results/{RESULTS.name}`"),
        ("seeds", "0"),
        (
            "hardware, versions",
            f"{environment['hardware']}, one thread; Python {environment['python']}, PyTorch "
            f"{environment['torch']}",
        ),
    ]
    return "\n\n".join(
        [
            f"## Layers with parameters\n\n{counted(first)}",
            table(first),
            f"## Layers and losses without parameters\n\n{counted(second)}",
            table([row for row in second if row.status != RIGHT]),
            wrapped(f"Right in PyTorch itself: {', '.join(plain)}."),
            f"## What is said\n\n{messages([*first, *second])}",
            "\n".join(["| | |", "| :-- | :-- |", *(f"| {n} | {fact} |" for n, fact in facts)]),
        ]
    )


def wrapped(text: str) -> str:
    """Return a paragraph in lines of the page's width, with names in one piece."""
    lines = textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return lines.replace(FIXED, " ")


def counted(rows: list[Row]) -> str:
    """Return how many layers have which status."""
    found = [row.status for row in rows]
    names = (RIGHT, CORRECTED, REFUSED, WRONG, FAILS)
    parts = [f"{found.count(name)} {name}" for name in names if name in found]
    return f"{len(rows)} cases: {', '.join(parts)}."


def table(rows: list[Row]) -> str:
    """Return a row per layer: PyTorch's second derivatives, the products, and their difference."""
    lines = [
        (
            f"`{row.layer}`",
            row.pytorch,
            row.status,
            shown(row.difference),
            shown(row.loss_difference),
        )
        for row in rows
    ]
    headings = ("layer", "PyTorch", "products", "from gradients", "from losses")
    rule = [":--"] + ["--:"] * (len(headings) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *lines))


def shown(difference: float | None) -> str:
    """Return the order of magnitude, which is all that other machines share."""
    return "" if difference is None else f"{difference:.0e}"


def messages(rows: list[Row]) -> str:
    """Return what the user is told where there are no products."""
    layers: dict[str, list[str]] = {}
    for row in rows:
        if row.message:
            layers.setdefault(row.message, []).append(f"`{row.layer}`")
    return "\n".join(f"- {', '.join(names)}: {text}." for text, names in layers.items())


def write_page(content: dict[str, Any], page: Path = PAGE) -> None:
    """Replace what stands below the mark on the page by the tables."""
    above, _, _ = page.read_text(encoding="utf-8").partition(MARK)
    write_text(page, f"{above}{MARK}\n\n{tables(content)}\n")


def main() -> None:
    """Measure every layer, and write the raw results and the page."""
    torch.set_num_threads(1)
    content: dict[str, Any] = {"environment": environment_facts(torch.device("cpu"), 1)}
    for part, cases in PARTS.items():
        content[part] = [asdict(row) for row in measured(cases)]
        print(f"{part}: {counted(rows_of(content, part))}")
    write_json(RESULTS, content)
    write_page(json.loads(RESULTS.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
