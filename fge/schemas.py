"""What JSON files hold: ranges of numbers, and the records of a run's log and of its times.

:func:`fge.files.read_json` and :func:`fge.files.read_records` check what they read. Each other file
has its type beside its reader. A ``TypedDict`` names only the keys that are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict, get_type_hints

from msgspec import Meta

_MOST = 2**53
"""Whole numbers up to this are exact as floats too."""
Count = Annotated[int, Meta(ge=0, le=_MOST)]
Positive = Annotated[int, Meta(ge=1, le=_MOST)]
Dimension = Annotated[int, Meta(ge=-64, le=63)]
"""Of a tensor: PyTorch has at most 64."""
NotNegative = Annotated[float, Meta(ge=0)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Share = Annotated[float, Meta(ge=0, le=1)]
Loss = Annotated[float, Meta(ge=-1e-6)]
"""An NLL or a cross-entropy in nats: rounding may leave a little less than 0."""
Infinite = Literal["inf", "-inf", "nan"]
"""A number that JSON does not have, such as a loss far away from the networks."""


def extended(kind: type[Any], more: Mapping[str, Any]) -> type[Any]:
    """Return a ``TypedDict`` with more keys, for records whose keys depend on the task."""
    make: Any = TypedDict
    known = get_type_hints(kind, include_extras=True)
    found: type[Any] = make(kind.__name__, {**known, **more})
    return found


class Epoch(TypedDict):
    """The end of an epoch of training, or of the fit of a curve, which names no rate."""

    stage: str
    epoch: Count
    train_loss: Loss
    next_lr: NotRequired[NotNegative]


class Snapshot(TypedDict):
    """A snapshot, with its figures and those of the ensemble so far, if there is validation.

    The NLL of a regression, that of a density, may be below 0.
    """

    stage: str
    member: Positive
    step: Count
    epoch: Count
    lr: NotNegative
    val_error: NotRequired[Percent]
    val_rmse: NotRequired[NotNegative]
    val_nll: NotRequired[float]
    ensemble_val_error: NotRequired[Percent]
    ensemble_val_rmse: NotRequired[NotNegative]
    ensemble_val_nll: NotRequired[float]
    distance: NotRequired[NotNegative]
    train_nll: NotRequired[Loss]
    train_scaled_mse: NotRequired[NotNegative]
    val_scaled_mse: NotRequired[NotNegative]
    val_examples: NotRequired[Count]
    ensemble_val_scaled_mse: NotRequired[NotNegative]
    val_wrong: NotRequired[Count]
    val_tempered_nll: NotRequired[Loss]
    val_change_error: NotRequired[NotNegative]
    ensemble_members: NotRequired[Positive]
    ensemble_val_tempered_nll: NotRequired[Loss]


class Plan(TypedDict):
    """A stage that a planner decided on."""

    stage: str
    network: Positive
    first_epoch: Count
    epochs: Positive
    nll: NotRequired[Loss]
    scaled_mse: NotRequired[NotNegative]
    forecast: NotRequired[float]
    forecast_whole: NotRequired[float]
    forecast_longer: NotRequired[float]
    forecast_others: NotRequired[float]
    hold: NotRequired[Share]
    average: NotRequired[Share]


class Sharpness(TypedDict):
    """A measurement of the top eigenvalue during training."""

    stage: str
    epoch: Count
    lr: NotNegative
    snapshot: bool
    eigenvalue: float
    residual: NotNegative
    converged: bool
    examples: Positive
    products: Count
    gradients: NotNegative


class Named(TypedDict):
    """A measurement of a network."""

    name: str


class Point(TypedDict):
    """A point on a line."""

    line: str
    t: float


_LOG: Mapping[str, type[Any]] = {
    "epoch": Epoch,
    "snapshot": Snapshot,
    "plan": Plan,
    "sharpness": Sharpness,
    "network": Named,
    "spectrum": Named,
    "point": Point,
}


class TimedEpoch(TypedDict):
    """The time of an epoch."""

    stage: str
    seconds: NotNegative


class Job(TypedDict):
    """A run of a comparison that has begun."""

    job: str


class EndedJob(Job):
    """A run of a comparison that has ended."""

    overlapped: bool


_TIMING: Mapping[str, type[Any]] = {"epoch": TimedEpoch, "job begun": Job, "job": EndedJob}
RECORDS = {"log.jsonl": _LOG, "fit.jsonl": _LOG, "timing.jsonl": _TIMING}
"""The records of files by name, and then by event: of a run, a fit of a curve, and times."""
