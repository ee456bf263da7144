"""What a task is: outputs and their loss, figures of predictions, and the words for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fge import metrics
from fge.config import OF_CLASSES, TaskName
from fge.networks import ForwardFn, LossFn, Output

Array = NDArray[np.float64]
Column = tuple[str, str, str]
"""Of a table: the key of a figure, the heading, and the form of the cells."""


@dataclass(frozen=True)
class Measure:
    """A figure that sentences and charts name: lower is better.

    ``value`` and ``difference`` are the forms of a value and of a difference, with their units;
    ``unit`` follows the word on an axis.
    """

    key: str
    word: str
    value: str
    difference: str
    unit: str = ""

    @property
    def form(self) -> str:
        """The form of a number without its unit."""
        return self.value.split(" ")[0]

    @property
    def axis(self) -> str:
        """The label of an axis."""
        return self.axis_of("")

    @property
    def heading(self) -> str:
        """The heading of a column."""
        return f"{self.word} {self.unit}".rstrip()

    def axis_of(self, whose: str) -> str:
        """The label of an axis that says whose figure it is, before the unit."""
        return f"{self.word}{whose} ({self.unit})" if self.unit else f"{self.word}{whose}"

    def between(self, low: float, high: float) -> str:
        """A range of values in words.

        >>> ERROR.between(1, 2.5)
        'between 1.00 and 2.50 %'
        """
        return f"between {self.form.format(low)} and {self.value.format(high)}"


ERROR = Measure("error", "error", "{:.2f} %", "{:.2f} points", "%")
LOSS = Measure("loss", "loss", "{:.4f} nats", "{:.4f} nats", "nats")
NLL, BRIER, ECE = (
    ("nll", "NLL", "{:.4f}"),
    ("brier", "Brier", "{:.4f}"),
    ("ece", "ECE", "{:.4f}"),
)
BALANCED = ("balanced_error", "balanced %", "{:.2f}")
RANKINGS = (("auroc", "AUROC", "{:.4f}"), ("average_precision", "AP", "{:.4f}"))


@dataclass(frozen=True)
class PlanLoss:
    """The loss that a planner compares: in words, and by its keys in a log.

    Ratios and parts of it need a meaning: it is not below 0, and other units of the targets do not
    change it. ``now``: key in the record of a plan; in that of a snapshot ``train``: of training
    examples, ``val``: of validation examples, ``joint``: the same of the ensemble so far, and
    ``count``: validation examples on which a decision rests.
    """

    word: str
    unit: str
    how: str
    now: str
    train: str
    val: str
    joint: str
    count: str


NLL_OF_PLANS = PlanLoss(
    word="NLL",
    unit="nats per {example}",
    how="with the temperature that suits these {example}s best",
    now="nll",
    train="train_nll",
    val="val_tempered_nll",
    joint="ensemble_val_tempered_nll",
    count="val_wrong",
)
SQUARES_OF_PLANS = PlanLoss(
    word="squared error",
    unit="parts of the variance of the training targets",
    how="a mean over the targets",
    now="scaled_mse",
    train="train_scaled_mse",
    val="val_scaled_mse",
    joint="ensemble_val_scaled_mse",
    count="val_examples",
)


@dataclass(frozen=True)
class PerExample:
    """Of each test example (N,): what is compared, NLL and calibrated NLL in nats."""

    compared: Array
    nll: Array
    calibrated: Array


class Averaged(NamedTuple):
    """Averaged predictions of inputs, and their variance over members, which numbers have."""

    mean: ArrayLike
    spread: ArrayLike | None = None


@dataclass(frozen=True)
class Task(ABC):
    """A task with the names of its classes, labels or numbers.

    Predictions are float64: probabilities (N, C) of classes, two for binary; (N, L) of labels; the
    numbers (N, K) themselves, in the units of the targets. ``spread`` is their variance over
    members, ``noise`` that of the targets around them; only a regression uses them.
    """

    names: tuple[str, ...]
    name: ClassVar[TaskName]
    columns: ClassVar[tuple[Column, ...]]
    measure: ClassVar[Measure] = ERROR
    """What the log and the console name first, beside the NLL."""
    compared: ClassVar[Measure] = ERROR
    """The mean of one value per example, whose differences have intervals."""
    training: ClassVar[Measure] = LOSS
    """The training loss, along curves and on planes."""
    training_words: ClassVar[str] = "cross-entropy"
    """What it is."""
    more: ClassVar[tuple[Column, ...]] = (BRIER, ECE)
    """Further columns of a comparison, after the NLLs."""
    calibration: ClassVar[str] = (
        "Calibrated numbers are at the optimal temperature (arXiv 2002.06470)."
    )
    """A note of a comparison: what the calibrated NLL is."""
    units: ClassVar[str]
    """A note of tables: what the figures are."""
    array: ClassVar[str] = "probabilities"
    """The name of the array of predictions in files."""
    uses_noise: ClassVar[bool] = False
    plan: ClassVar[PlanLoss] = NLL_OF_PLANS
    """What a planner compares, by :meth:`plan_losses`."""

    @property
    def of_classes(self) -> bool:
        """Whether predictions are probabilities of exclusive classes."""
        return self.name in OF_CLASSES

    @property
    def outputs(self) -> int:
        """The outputs of a network."""
        return len(self.names)

    @property
    @abstractmethod
    def output(self) -> Output:
        """What turns the outputs of a network into predictions."""

    @property
    def forward_fn(self) -> ForwardFn | None:
        """What gives logits of exclusive classes (N, C), where the outputs are others.

        Curves and planes are measured by them.
        """
        return None

    @property
    def path_output(self) -> Output:
        """What turns the outputs of ``forward_fn`` into predictions."""
        return self.output

    def path_loss(self, device: torch.device) -> LossFn:
        """Return the loss of the outputs of ``forward_fn``: that of curves and planes."""
        return self.loss(device)

    @abstractmethod
    def loss(self, device: torch.device) -> LossFn:
        """Return the training loss of outputs and targets on a device."""

    @abstractmethod
    def figures(
        self,
        mean: ArrayLike,
        targets: ArrayLike,
        spread: ArrayLike | None = None,
        noise: ArrayLike | None = None,
    ) -> dict[str, float]:
        """Return the figures of averaged predictions by key."""

    @abstractmethod
    def scores(
        self, mean: ArrayLike, targets: ArrayLike, spread: ArrayLike | None = None
    ) -> tuple[float, float]:
        """Return the measure and the NLL of predictions, those on validation data to choose by.

        That of a regression is with the noise variance that suits these examples best.
        """

    @abstractmethod
    def nll_per_example(self, mean: ArrayLike, targets: ArrayLike) -> Array:
        """Return the NLL (N,) of predictions, whose mean is that of :meth:`scores`."""

    def wrong(self, mean: ArrayLike, targets: ArrayLike) -> NDArray[np.bool_]:
        """Return which examples (N,) are predicted wrong, of several labels one or more.

        Raises:
            TypeError: the predictions are numbers, which are never exactly right.
        """
        del mean, targets
        raise TypeError(f"predictions of a {self.name} are neither right nor wrong")

    @abstractmethod
    def tempered(self, mean: ArrayLike, targets: ArrayLike) -> Array:
        """Return the NLL (N,) of validation data, calibrated on these very examples."""

    def plan_losses(self, mean: ArrayLike, targets: ArrayLike) -> Array:
        """Return the loss (N,) of validation data that a planner compares."""
        return self.tempered(mean, targets)

    def fitted_loss(self, mean: ArrayLike, targets: ArrayLike) -> float:
        """Return the loss of training data that a planner divides by that of validation data."""
        return self.scores(mean, targets)[1]

    def decisive(self, mean: ArrayLike, targets: ArrayLike) -> int:
        """Return on how many validation examples a plan rests: those that are predicted wrong."""
        return int(self.wrong(mean, targets).sum())

    @abstractmethod
    def per_example(
        self,
        mean: ArrayLike,
        targets: ArrayLike,
        spread: ArrayLike | None = None,
        noise: ArrayLike | None = None,
    ) -> PerExample:
        """Return the values of each test example."""

    @abstractmethod
    def diversity(self, members: Sequence[Array], targets: ArrayLike) -> dict[str, float]:
        """Return how two or more members differ, and the means of their own figures."""

    def noise(
        self, mean: ArrayLike, targets: ArrayLike, spread: ArrayLike | None = None
    ) -> Array | None:
        """Return the noise that data say, or None for a task that has none."""
        del mean, targets, spread
        return None

    def detection(self, inside: Averaged, outside: Averaged) -> dict[str, float]:
        """Return how well predictions tell OOD inputs from others: AUROCs by kind of doubt.

        Args:
            inside: of N inputs of the data.
            outside: of M OOD inputs.
        """
        return metrics.ood_auroc(inside.mean, outside.mean)

    def extra(
        self,
        mean: ArrayLike,
        targets: ArrayLike,
        spread: ArrayLike | None = None,
        noise: ArrayLike | None = None,
    ) -> dict[str, Any]:
        """Return figures of a comparison in addition to :meth:`figures`."""
        del mean, targets, spread, noise
        return {}
