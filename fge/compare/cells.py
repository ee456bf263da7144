"""One method at one budget with one seed: its cost and its results on the test set."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fge import metrics
from fge.errors import UserError
from fge.files import read_bytes, read_npz, remove, sha256, write_bytes, write_json
from fge.metrics import (
    adaptive_ece,
    aurc,
    calibrated_nll_per_example,
    calibrated_summary,
    check_probs,
    disagreement,
    error_correlation,
    gain_split,
    ood_auroc,
)
from fge.networks import RunningMean

Array = NDArray[np.float64]

SCHEMA_VERSION = 1
_ARRAYS = ("wrong", "nll", "calibrated_nll", "bin_counts", "bin_confidence", "bin_accuracy")


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
    ``error_correlation``; ``ood_NAME_max_probability`` and ``ood_NAME_entropy`` (AUROC) for the OOD
    data NAME. ``by_members``: ``error``, ``nll`` and ``calibrated_nll`` of the first m
    members together, m = 1 to all.

    Per example, in the order of the test set: ``wrong`` (N,), ``nll`` and ``calibrated_nll`` (N,)
    in nats, float32. ``bin_counts``, ``bin_confidence`` and ``bin_accuracy`` (15,) are those of
    :func:`fge.metrics.reliability`.
    """

    method: str
    budget: int
    seed: int
    cost: Cost
    figures: dict[str, float]
    by_members: list[dict[str, float]]
    wrong: NDArray[np.bool_]
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
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        np.savez_compressed(buffer, **arrays)
        write_bytes(folder / f"{self.name}.npz", buffer.getvalue())
        facts = {field.name: getattr(self, field.name) for field in fields(self)}
        record = {name: value for name, value in facts.items() if name not in _ARRAYS}
        record |= {"cost": asdict(self.cost), "sha256": sha256(buffer.getvalue())}
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

    Raises:
        UserError: there are no members, ``cost`` or ``ood`` has another number of them, shapes or
            targets do not fit, values are not probabilities, or there are fewer than 2 examples.
    """
    if not members:
        raise UserError(f"{method}: a cell needs at least one member, got none")
    _check_count(method, "cost.members", cost.members, members)
    y = targets.cpu().numpy()
    mean, by_members, calibrated = _one_by_one(members, y)
    figures = _figures(mean, y) | _diversity(members, y)
    for name, outside in (ood or {}).items():
        _check_count(method, f"ood[{name!r}]", len(outside), members)
        scores = ood_auroc(mean, _mean_of(outside))
        figures |= {f"ood_{name}_{score}": value for score, value in scores.items()}
    return Cell(
        method,
        budget,
        seed,
        cost,
        figures,
        by_members,
        mean.argmax(axis=1) != y,
        metrics.nll_per_example(mean, y).astype(np.float32),
        calibrated.astype(np.float32),
        *metrics.reliability(mean, y),
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
    archive = path.with_suffix(".npz")
    try:
        record = json.loads(read_bytes(path))
        version, digest = record.pop("schema_version"), record.pop("sha256")
        if version != SCHEMA_VERSION:
            raise UserError(f"{path} has schema_version {version}, not {SCHEMA_VERSION}")
        if not archive.is_file() or sha256(read_bytes(archive)) != digest:
            raise UserError(f"{archive} is not the one {path.name} belongs to; delete both")
        record["cost"] = Cost(**record["cost"])
        record["parts"] = tuple(record.get("parts", ()))
        record |= read_npz(archive, _ARRAYS)
        cell = Cell(**record)
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError):
        raise UserError(f"{path} is damaged or is not a cell; delete it to measure again") from None
    if cell.name != path.stem:
        raise UserError(f"{path} holds the cell {cell.name}: rename or delete it")
    return cell


def _check_count(method: str, what: str, count: int, members: Sequence[Tensor]) -> None:
    if count != len(members):
        raise UserError(f"{method}: {what} is {count}, but there are {len(members)} members")


def _one_by_one(
    members: Sequence[Tensor], y: NDArray[np.int64]
) -> tuple[Array, list[dict[str, float]], Array]:
    """Return the mean probabilities, figures of the first m members, calibrated NLLs (N,)."""
    mean, by_members = RunningMean(), []
    for member in members:
        probs = check_probs(mean.update(member.cpu()).numpy())
        calibrated = calibrated_nll_per_example(probs, y)
        values = {"error": metrics.error(probs, y), "nll": metrics.nll(probs, y)}
        by_members.append(values | {"calibrated_nll": float(calibrated.mean())})
    return probs, by_members, calibrated


def _mean_of(members: Sequence[Tensor]) -> Array:
    mean = RunningMean()
    for member in members:
        mean.update(member.cpu())
    probs: Array = mean.value.numpy()
    return probs


def _figures(probs: Array, y: NDArray[np.int64]) -> dict[str, float]:
    calibrated = calibrated_summary(probs, y)
    return {
        **metrics.summary(probs, y),
        "adaptive_ece": adaptive_ece(probs, y),
        **calibrated,
        "calibrated_nll": -calibrated["calibrated_log_likelihood"],
        "aurc": aurc(probs, y),
    }


def _diversity(members: Sequence[Tensor], y: NDArray[np.int64]) -> dict[str, float]:
    """Return the figures of diversity of two or more members, without those that are undefined."""
    if len(members) < 2:
        return {}
    arrays = [member.cpu().double().numpy() for member in members]
    gains = gain_split(arrays, y)
    figures = {
        "disagreement": disagreement(arrays),
        "error_correlation": error_correlation(arrays, y),
        "mean_member_error": gains["error"].members,
        "mean_member_nll": gains["nll"].members,
    }
    return {name: value for name, value in figures.items() if not np.isnan(value)}
