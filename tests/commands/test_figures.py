"""Records of points on paths: which figures the log of a task has."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

import pytest

from fge.commands.figures import with_figures
from fge.errors import UserError
from fge.files import checked
from fge.schemas import Share
from fge.tasks import MANY_CLASSES, Regression, Task

NUMBERS = Regression(("a",), (0.0,), (1.0,))


class Place(TypedDict):
    t: Share
    note: NotRequired[str]


def check(record: dict[str, Any], task: Task, *, infinite: bool = False) -> None:
    checked(record, with_figures(Place, task, ("test", "ensemble"), infinite=infinite), "log")


CLASSES = {
    "t": 0.5,
    "test_loss": 0.1,
    "test_error": 20.0,
    "test_nll": 0.1,
    "ensemble_error": 10.0,
    "ensemble_nll": 0.2,
}
OTHER = {key.replace("error", "rmse"): value for key, value in CLASSES.items()}


def test_a_task_has_its_own_measure() -> None:
    check(CLASSES, MANY_CLASSES)
    check({**OTHER, "test_rmse": 250.0, "test_nll": -3.0}, NUMBERS)  # a density may be above 1
    check({**CLASSES, "test_loss": "inf", "test_nll": "nan"}, MANY_CLASSES, infinite=True)


@pytest.mark.parametrize(
    ("record", "task", "message"),
    [
        (OTHER, MANY_CLASSES, "missing required field `test_error`"),
        (CLASSES, NUMBERS, "missing required field `test_rmse`"),
        ({**CLASSES, "test_error": 101.0}, MANY_CLASSES, "<= 100.0"),
        ({**CLASSES, "test_nll": -3.0}, MANY_CLASSES, ">= -1e-06"),
        ({**OTHER, "test_rmse": -1.0}, NUMBERS, ">= 0.0"),
        ({**OTHER, "ensemble_nll": "inf"}, NUMBERS, "ensemble_nll"),
        ({**CLASSES, "t": 2.0}, MANY_CLASSES, r"\$.t"),
        ({k: v for k, v in CLASSES.items() if k != "t"}, MANY_CLASSES, "field `t`"),
    ],
)
def test_what_is_missing_or_out_of_range_is_damage(
    record: dict[str, Any], task: Task, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check(record, task)
