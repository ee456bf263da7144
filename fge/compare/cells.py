"""One method at one budget with one seed: its cost and its results on the test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NotRequired, TypedDict
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fge import metrics
from fge.arrays import npz_bytes, read_npz
from fge.errors import UserError
from fge.files import (
    checked,
    read_bytes,
    read_json,
    remove,
    sha256,
    write_bytes,
    write_json,
)
from fge.metrics import check_probs
from fge.networks import RunningMean
from fge.schemas import Count, NotNegative, Positive
from fge.tasks import MANY_CLASSES, Averaged, PerExample, Task

Array = NDArray[np.float64]

SCHEMA_VERSION = 1
_MEASURE = "delete it to measure again"
_NLLS = {"nll", "calibrated_nll", "calibrated_log_likelihood"}
_FIGURES = {*_NLLS, "error", "brier", "ece"}
"""Figures that every cell has; those of several members also have ``_DIVERSITY``."""
_DIVERSITY = {"disagreement", "mean_member_error", "mean_member_nll"}
_OF_REGRESSION = {*_NLLS, "rmse", "mse"}
_DIVERSITY_OF_REGRESSION = {"spread", "mean_member_mse", "mean_member_nll"}
_NOT_OF_CELL = ("schema_version", "sha256")
_ARRAYS = ("wrong", "nll", "calibrated_nll", "bin_counts", "bin_confidence", "bin_accuracy")


class _Versioned(TypedDict):
    schema_version: int


class _Cost(TypedDict):
    train_epochs: NotNegative
    images: Count
    members: Positive
    forward_passes: Positive
    weight_bytes: Count
    refresh_images: NotRequired[Count]
    validation_images: NotRequired[Count | None]


class _Record(_Versioned):
    """A cell in its JSON file, without its arrays, whose file has this SHA-256."""

    sha256: str
    method: str
    budget: Positive
    seed: Count
    cost: _Cost
    figures: dict[str, float]
    by_members: list[dict[str, float]]
    note: NotRequired[str]
    pooled: NotRequired[Positive]
    parts: NotRequired[list[str]]


@dataclass(frozen=True)
class Cost:
    """The cost of a method.

    ``train_epochs`` and ``images`` count every forward and backward pass, fits included. A
    prediction averages the ``members`` and takes ``forward_passes``, one for each member and view
    of the image; ``weight_bytes`` is the size of all members. ``refresh_images`` were passed
    forward to estimate batch-norm statistics, ``validation_images`` to choose members (None if they
    were not counted).
    """

    train_epochs: float
    images: int
    members: int
    forward_passes: int
    weight_bytes: int
    refresh_images: int = 0
    validation_images: int | None = None


@dataclass(frozen=True, eq=False)
class Cell:
    """One method at one budget with one seed, measured on the test set of N examples.

    ``budget`` is the k of k B; ``note`` is a remark about the method in this comparison. The cell
    pools ``pooled`` runs: those of this seed and of the following ones, starting again from the
    first seed after the last. So cells of neighbouring seeds share runs. ``parts`` are the names
    of the runs.

    ``figures``: ``error`` (percent), ``nll``, ``calibrated_nll`` and
    ``calibrated_log_likelihood`` (nats per example), ``brier``, ``ece``, ``adaptive_ece``,
    ``calibrated_ece`` and ``aurc`` (fractions); for two or more members also ``disagreement`` and
    ``mean_member_error`` (percent), ``mean_member_nll`` (nats) and, if it is defined,
    ``error_correlation``; ``ood_NAME_max_probability`` and ``ood_NAME_entropy`` (of numbers
    ``ood_NAME_variance``; AUROC) for the OOD data NAME. ``by_members``: ``error``, ``nll`` and
    ``calibrated_nll`` of the first m members together, m = 1 to all. Other tasks have other
    figures, those of :mod:`fge.tasks`.

    Per example, in the order of the test set: ``wrong`` (N,), of classes whether it is, of labels
    the percentage that are, of a regression the squared residual; ``nll`` and ``calibrated_nll``
    (N,) in nats, float32. ``bin_counts``, ``bin_confidence`` and ``bin_accuracy`` (15,) are those
    of :func:`fge.metrics.reliability`.
    """

    method: str
    budget: int
    seed: int
    cost: Cost
    figures: dict[str, float]
    by_members: list[dict[str, float]]
    wrong: NDArray[Any]
    nll: NDArray[np.float32]
    calibrated_nll: NDArray[np.float32]
    bin_counts: NDArray[np.int64]
    bin_confidence: NDArray[np.float64]
    bin_accuracy: NDArray[np.float64]
    note: str = ""
    pooled: int = 1
    parts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the cell's files, without the suffix."""
        return cell_name(self.method, self.budget, self.seed)

    def save(self, folder: Path) -> None:
        """Write NAME.npz, then NAME.json with its SHA-256; the cell exists once both do."""
        remove(folder / f"{self.name}.json")
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        data = npz_bytes(arrays, compressed=True)
        write_bytes(folder / f"{self.name}.npz", data)
        facts = {field.name: getattr(self, field.name) for field in fields(self)}
        record = {name: value for name, value in facts.items() if name not in _ARRAYS}
        record |= {"cost": asdict(self.cost), "sha256": sha256(data)}
        write_json(folder / f"{self.name}.json", {"schema_version": SCHEMA_VERSION, **record})


def cell_name(method: str, budget: int, seed: int) -> str:
    """Return the name of a cell's files, with the method percent-encoded.

    >>> cell_name("fge+refit", 1, 0), cell_name("own.module:method", 2, 0)
    ('fge+refit-b1-s0', 'own.module%3Amethod-b2-s0')
    """
    return f"{quote(method, safe='+')}-b{budget}-s{seed}"


def make_cell(
    method: str,
    budget: int,
    seed: int,
    members: Sequence[Tensor],
    targets: Tensor,
    *,
    cost: Cost,
    ood: Mapping[str, Sequence[Tensor]] | None = None,
    note: str = "",
    pooled: int = 1,
    parts: Sequence[str] = (),
    task: Task = MANY_CLASSES,
    held_out: tuple[Sequence[Tensor], Tensor] | None = None,
) -> Cell:
    """Measure the ensemble that averages the members' probabilities.

    Args:
        method: its name.
        budget: the k of k B.
        seed: of the run.
        members: probs (N, C) of each member on the test set, in the order of training.
        targets: classes (N,), integers.
        cost: of the whole ensemble.
        ood: by name of the OOD data, probs (M, C) of each member.
        note: a remark about the method in this comparison.
        pooled: number of seeds whose runs are pooled; each run is then in as many cells.
        parts: the names of the runs that the members come from.
        task: what is predicted.
        held_out: of a regression, the members' predictions and the targets that say the noise.

    Raises:
        UserError: there are no members, ``cost`` or ``ood`` has another number of them, shapes or
            targets do not fit, values are not probabilities, or there are fewer than 2 examples.
    """
    if not members:
        raise UserError(f"{method}: a cell needs at least one member, got none")
    _check_count(method, "cost.members", cost.members, members)
    y = targets.cpu().numpy()
    mean, by_members, values = _one_by_one(members, y, task, held_out)
    variances = _variances(members, task, held_out, len(members))
    figures = _figures(mean, y, task, values, variances) | _diversity(members, y, task)
    for name, outside in (ood or {}).items():
        _check_count(method, f"ood[{name!r}]", len(outside), members)
        spread, _ = _variances(outside, task, None, len(outside))
        found = Averaged(_mean_of(outside), spread)
        scores = task.detection(Averaged(mean, variances[0]), found)
        figures |= {f"ood_{name}_{score}": value for score, value in scores.items()}
    return Cell(
        method,
        budget,
        seed,
        cost,
        figures,
        by_members,
        mean.argmax(axis=1) != y if task.of_classes else values.compared,
        values.nll.astype(np.float32),
        values.calibrated.astype(np.float32),
        *_reliability(mean, y, task),
        note=note,
        pooled=pooled,
        parts=tuple(parts),
    )


def load_cells(folder: Path) -> list[Cell]:
    """Return the complete cells of a folder, ordered by method, budget and seed.

    Raises:
        UserError: a cell is damaged, has the wrong file name, or has another schema version.
    """
    cells = [_load(path) for path in sorted(folder.glob("*.json"))]
    return sorted(cells, key=lambda cell: (cell.method, cell.budget, cell.seed))


def _load(path: Path) -> Cell:
    archive, damaged = path.with_suffix(".npz"), "is damaged or is not a cell"
    facts = read_json(path, _Versioned, damaged=damaged, remedy=_MEASURE)
    if facts["schema_version"] != SCHEMA_VERSION:
        version = facts["schema_version"]
        raise UserError(f"{path} has schema_version {version}, not {SCHEMA_VERSION}; {_MEASURE}")
    record = checked(facts, _Record, f"{path} {damaged}", _MEASURE)
    if unknown := record.keys() - _Record.__annotations__:
        raise UserError(f"{path} {damaged}: nothing is called {min(unknown)!r}; {_MEASURE}")
    if not archive.is_file() or sha256(read_bytes(archive)) != record["sha256"]:
        raise UserError(f"{archive} is not the one {path.name} belongs to; delete both")
    given: dict[str, Any] = {k: v for k, v in record.items() if k not in _NOT_OF_CELL}
    given |= {"cost": Cost(**record["cost"]), "parts": tuple(record.get("parts", ()))}
    cell = Cell(**(given | read_npz(archive, _ARRAYS)))
    if cell.name != path.stem:
        raise UserError(f"{path} holds the cell {cell.name}: rename or delete it")
    _check_figures(cell, f"{path} {damaged}")
    return cell


def _check_figures(cell: Cell, damaged: str) -> None:
    """Check that a loaded cell has the figures and arrays of its ensemble and of its members."""
    figures, diversity, first = _FIGURES, _DIVERSITY, "error"
    if "rmse" in cell.figures:
        figures, diversity, first = _OF_REGRESSION, _DIVERSITY_OF_REGRESSION, "rmse"
    figures = figures | diversity if cell.figures.keys() & diversity else figures
    of_members = {first, "nll", "calibrated_nll"}
    for found, needed in ((cell.figures, figures), *((m, of_members) for m in cell.by_members)):
        if missing := needed - found.keys():
            raise UserError(f"{damaged}: it has no figure {min(missing)!r}; {_MEASURE}")
    if len(cell.by_members) != cell.cost.members:
        raise UserError(
            f"{damaged}: it has {cell.cost.members} members and figures of "
            f"{len(cell.by_members)}; {_MEASURE}"
        )


def _check_count(method: str, what: str, count: int, members: Sequence[Tensor]) -> None:
    if count != len(members):
        raise UserError(f"{method}: {what} is {count}, but there are {len(members)} members")


Held = tuple[Sequence[Tensor], Tensor] | None


def _one_by_one(
    members: Sequence[Tensor], y: NDArray[Any], task: Task, held_out: Held
) -> tuple[Array, list[dict[str, float]], PerExample]:
    """Return the mean prediction, figures of the first m members, and values of each example."""
    mean, by_members = RunningMean(), []
    for count, member in enumerate(members, start=1):
        found = mean.update(member.cpu()).numpy()
        found = check_probs(found) if task.of_classes else found
        variances = _variances(members, task, held_out, count)
        values = task.per_example(found, y, *variances)
        first, nll = task.scores(found, y)
        nll = float(values.nll.mean()) if task.uses_noise else nll
        calibrated = float(values.calibrated.mean())
        by_members.append({task.measure.key: first, "nll": nll, "calibrated_nll": calibrated})
    return found, by_members, values


def _variances(
    members: Sequence[Tensor], task: Task, held_out: Held, count: int
) -> tuple[Array | None, Array | None]:
    """Return the variance over the first members (N, K) and their noise variance (K,)."""
    if not task.uses_noise:
        return None, None
    spread = np.var([member.numpy() for member in members[:count]], axis=0)
    if held_out is None:
        return spread, None
    own = np.array([member.numpy() for member in held_out[0][:count]])
    return spread, task.noise(own.mean(axis=0), held_out[1].numpy(), own.var(axis=0))


def _reliability(mean: Array, y: NDArray[Any], task: Task) -> tuple[Any, Any, Any]:
    """Return the bins of classes, or of whether each label is there; empty ones for numbers."""
    if task.of_classes:
        return metrics.reliability(mean, y)
    if task.uses_noise:
        return np.zeros(15, np.int64), np.full(15, np.nan), np.full(15, np.nan)
    pairs = np.stack([1 - mean, mean], axis=-1).reshape(-1, 2)
    return metrics.reliability(pairs.clip(0, 1), y.reshape(-1))


def _mean_of(members: Sequence[Tensor]) -> Array:
    mean = RunningMean()
    for member in members:
        mean.update(member.cpu())
    probs: Array = mean.value.numpy()
    return probs


def _figures(
    mean: Array,
    y: NDArray[Any],
    task: Task,
    values: PerExample,
    variances: tuple[Array | None, Array | None],
) -> dict[str, float]:
    found = {**task.figures(mean, y, *variances), **task.extra(mean, y, *variances)}
    if "calibrated_nll" not in found:
        found["calibrated_nll"] = float(values.calibrated.mean())
        found["calibrated_log_likelihood"] = -found["calibrated_nll"]
    return found


def _diversity(members: Sequence[Tensor], y: NDArray[Any], task: Task) -> dict[str, float]:
    """Return the figures of diversity of two or more members, without those that are undefined."""
    if len(members) < 2:
        return {}
    arrays = [member.cpu().double().numpy() for member in members]
    figures = task.diversity(arrays, y)
    return {name: value for name, value in figures.items() if not np.isnan(value)}
