"""Tasks: what is predicted, by which loss, and by which figures that is judged."""

from fge.tasks.base import (
    BALANCED,
    ERROR,
    NLL_OF_PLANS,
    Averaged,
    Column,
    Measure,
    PerExample,
    PlanLoss,
    Task,
)
from fge.tasks.choice import make_task, task_of
from fge.tasks.classes import MANY_CLASSES, Binary, Classification, both_classes
from fge.tasks.labels import Multilabel
from fge.tasks.losses import BinaryCrossEntropy, SquaredError, label_cross_entropy
from fge.tasks.numbers import Regression

__all__ = [
    "BALANCED",
    "ERROR",
    "MANY_CLASSES",
    "NLL_OF_PLANS",
    "Averaged",
    "Binary",
    "BinaryCrossEntropy",
    "Classification",
    "Column",
    "Measure",
    "Multilabel",
    "PerExample",
    "PlanLoss",
    "Regression",
    "SquaredError",
    "Task",
    "both_classes",
    "label_cross_entropy",
    "make_task",
    "task_of",
]
