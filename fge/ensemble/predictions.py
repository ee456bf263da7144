"""The predictions of each member on disk, so that no member is evaluated twice."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fge.arrays import read_npz, write_npz
from fge.data import Dataset, EvalBatches, Split
from fge.errors import UserError
from fge.networks import RunningMean
from fge.tasks import MANY_CLASSES, Task

Array = NDArray[np.float64]
_ARRAYS = ("targets", "members", "sha256")
NOISE_EXAMPLES = 5000
"""Training examples whose residuals say the noise of a regression without validation data."""
TTA_FILE = "test-tta.npz"
"""The file of predictions with test-time augmentation."""


class PredictionFile:
    """An ``.npz`` of class probabilities per member, or of what another task predicts.

    Arrays: ``targets`` (N,), ``members`` (S,) names, ``sha256`` (S,) of each member's weights and
    ``probabilities`` (S, N, C) float32 (of labels (S, N, L) float64; ``predictions`` (S, N, K)
    float64 of a regression). The whole file is written again after each member.

    Args:
        path: the file; read if it exists.
        targets: labels (N,) of the split, or what another task has.
        task: what is predicted; several classes by default.
        noise_from: returns the file whose members say the noise variance of a regression.

    Raises:
        UserError: the file cannot be read, or has other targets.
    """

    def __init__(
        self,
        path: Path,
        targets: Tensor,
        task: Task = MANY_CLASSES,
        noise_from: Callable[[], PredictionFile] | None = None,
    ) -> None:
        self.path = path
        self.task = task
        self.noise_from = noise_from
        self.arrays = (*_ARRAYS, task.array)
        self.targets: NDArray[np.int64] = targets.cpu().numpy()
        self._members: dict[str, tuple[str, NDArray[Any]]] = {}
        if path.exists():
            self._read()

    @classmethod
    def stored(cls, path: Path, task: Task = MANY_CLASSES) -> PredictionFile:
        """Return the file of a run whose targets are not at hand.

        Raises:
            UserError: it cannot be read, or its arrays do not fit together.
        """
        targets = read_npz(path, _ARRAYS[:1])["targets"]
        kind = np.floating if task.uses_noise else np.integer
        if not np.issubdtype(targets.dtype, kind) or targets.ndim != (1 if task.of_classes else 2):
            what = "labels (N,)" if task.of_classes else "numbers (N, K)"
            raise UserError(f"{path} is damaged: its targets are no {what}; delete it")
        numbers = targets if task.uses_noise else targets.astype(np.int64)
        return cls(path, torch.from_numpy(numbers), task)

    @property
    def by_weights(self) -> dict[str, str]:
        """The name of a member for each SHA-256 of weights that made predictions."""
        return {key: name for name, (key, _) in self._members.items()}

    def _read(self) -> None:
        stored = read_npz(self.path, self.arrays)
        names, keys, probs = (stored[name] for name in self.arrays[1:])
        if not (
            names.ndim == keys.ndim == 1
            and probs.ndim == 3
            and len(names) == len(keys) == len(probs)
            and probs.shape[1] == len(stored["targets"])
        ):
            raise UserError(f"{self.path} is damaged: its arrays do not fit together; delete it")
        rows = zip(names, keys, probs, strict=True)
        self._members = {str(name): (str(key), row) for name, key, row in rows}
        if not np.array_equal(stored["targets"], self.targets):
            raise UserError(
                f"{self.path} was made for other labels than the data has now; restore the data, "
                "or use another folder"
            )

    def get(self, member: str, sha256: str) -> Tensor | None:
        """Return a member's stored probabilities (N, C) if its weights are these, else None."""
        key, probs = self._members.get(member, ("", None))
        return torch.from_numpy(probs).double() if key == sha256 and probs is not None else None

    @property
    def members(self) -> list[str]:
        """The names of the members, in the order of the file."""
        return list(self._members)

    def __contains__(self, member: str) -> bool:
        """Return whether there is a prediction of the member."""
        return member in self._members

    def check(self, member: str) -> None:
        """Raise a UserError if there is no prediction of the member."""
        if member not in self:
            raise UserError(
                f"{self.path} lacks the predictions of {member}; resume that run with --resume"
            )

    def probabilities(self, member: str) -> Tensor:
        """Return the stored probabilities (N, C) of a member, float64.

        Raises:
            UserError: there are none.
        """
        self.check(member)
        return torch.from_numpy(self._members[member][1]).double()

    def mean(self, members: Iterable[str]) -> Tensor:
        """Return the mean of the members' probabilities (N, C), float64, in their order."""
        mean = RunningMean()
        for member in members:
            mean.update(self.probabilities(member))
        return mean.value

    def figures(self, members: Sequence[str]) -> dict[str, float]:
        """Return the figures of the ensemble of some members by key."""
        return self.task.figures(self.mean(members), self.targets, *self.variances(members))

    def variances(self, members: Sequence[str]) -> tuple[Array | None, Array | None]:
        """Return the variance over members (N, K) and the noise variance (K,) of a regression.

        The noise is that of the same members in the file that says it, or of all of that file if
        it has none of them. Both are None for other tasks.
        """
        if not self.task.uses_noise:
            return None, None
        spread = self.spread(members)
        if self.noise_from is None:
            return spread, None
        source = self.noise_from()
        known = [member for member in members if member in source] or source.members
        return spread, source.own_noise(known)

    def own_noise(self, members: Sequence[str]) -> Array | None:
        """Return the noise variance (K,) that some members leave of these data, of a regression."""
        if not members:
            return None
        return self.task.noise(self.mean(members), self.targets, self.spread(members))

    def spread(self, members: Sequence[str]) -> Array:
        """Return the variance over members (N, K) of their predictions."""
        mean = self.mean(members).numpy()
        squares = RunningMean()
        for member in members:
            squares.update((self.probabilities(member) - torch.from_numpy(mean)) ** 2)
        return squares.value.numpy()

    def add(self, member: str, sha256: str, probs: Tensor) -> Tensor:
        """Store a member's probabilities (N, C); return them as rounded for the file."""
        # Numbers may be far from 0, with differences that float32 does not have. Probabilities of
        # labels may be near 1, and what they lack of it has no column of its own.
        rounded = (probs.float() if self.task.of_classes else probs.double()).numpy().copy()
        self._members[member] = (sha256, rounded)
        self._write()
        return torch.from_numpy(rounded).double()

    def fill(
        self, member: str, sha256: str, predict: Callable[[], Tensor], same: Iterable[str] = ()
    ) -> Tensor:
        """Store a member's probabilities (N, C) unless they are stored; return the stored ones.

        Args:
            member: its name.
            sha256: of its weights.
            predict: returns the probabilities; called only if they are missing.
            same: members whose probabilities are copied if they have the same weights.
        """
        stored = self.get(member, sha256)
        if stored is not None:
            return stored
        copies = (self.get(name, sha256) for name in same)
        found = next((probs for probs in copies if probs is not None), None)
        return self.add(member, sha256, predict() if found is None else found)

    def keep(self, members: Iterable[str]) -> None:
        """Keep only the named members, in that order."""
        wanted = {name: self._members[name] for name in members if name in self._members}
        if list(wanted) != list(self._members):
            self._members = wanted
            self._write()

    def _write(self) -> None:
        arrays: dict[str, Any] = {
            "targets": self.targets,
            "members": np.array(list(self._members)),
            "sha256": np.array([key for key, _ in self._members.values()]),
            self.task.array: self._stacked(),
        }
        write_npz(self.path, arrays)

    def _stacked(self) -> NDArray[Any]:
        """Return the predictions of all members (S, N, ...)."""
        if not self._members:
            return np.empty((0, len(self.targets), 0), np.float32)
        return np.stack([probs for _, probs in self._members.values()])


def noise_data(dataset: Dataset) -> tuple[str, Split]:
    """Return the file of predictions that say the noise of a regression, and its data.

    That is the validation data, or without any some of the training data.
    """
    if len(dataset.val):
        return "val.npz", dataset.val
    return "train.npz", dataset.train.first(NOISE_EXAMPLES)


def predictions_of_run(folder: Path, dataset: Dataset, task: Task) -> PredictionFile:
    """Return what a finished run predicts of the test data of a data set.

    Args:
        folder: ``predictions`` of the run.
        dataset: the data of the run.
        task: of the run.

    Raises:
        UserError: a file cannot be read, or is of other data.
    """
    if not task.uses_noise:
        return PredictionFile(folder / "test.npz", dataset.test.labels, task)
    name, split = noise_data(dataset)
    source = PredictionFile(folder / name, split.labels, task)
    return PredictionFile(folder / "test.npz", dataset.test.labels, task, lambda: source)


class MemberPredictions:
    """The predictions of each member on the test images, on views of them and on OOD images.

    They are stored in ``test.npz``, with views in ``test-tta.npz``, and in an ``ood-NAME.npz`` for
    each kind of OOD images, under the same names and keys; the targets of OOD images are 0.
    ``test``, ``tta`` (None without views) and ``ood`` (by name) are the files; ``parts`` lists
    those of test and OOD images, each with its batches, and that of the training data that say the
    noise of a regression.

    Args:
        folder: of the files.
        test: batches of the test set.
        ood: batches of OOD images by name.
        views: batches of the test set, one for each further view of its images. A member's
            prediction with test-time augmentation is the mean of its probabilities on the images
            and on these views.
        task: what is predicted; several classes by default.
        held_out: batches of the validation data, whose predictions say the noise of a regression;
            they are in ``val.npz``.
        fitted: batches of training data that say it where there are none; they are predicted too.

    Raises:
        UserError: a file cannot be read, or has other targets.
    """

    def __init__(
        self,
        folder: Path,
        test: EvalBatches,
        ood: Mapping[str, EvalBatches] | None = None,
        views: Sequence[EvalBatches] = (),
        *,
        task: Task = MANY_CLASSES,
        held_out: EvalBatches | None = None,
        fitted: EvalBatches | None = None,
    ) -> None:
        self.train = None
        if task.uses_noise and held_out is None and fitted is not None:
            self.train = PredictionFile(folder / "train.npz", fitted.split.labels, task)

        def noise_from() -> PredictionFile:
            if self.train is not None or held_out is None:
                assert self.train is not None, "no data say the noise"
                return self.train
            return PredictionFile(folder / "val.npz", held_out.split.labels, task)

        make = partial(PredictionFile, targets=test.split.labels, task=task, noise_from=noise_from)
        self.test = make(folder / "test.npz")
        self.folder, self.held_out, self.views = folder, held_out, list(views)
        self.tta = make(folder / TTA_FILE) if views else None
        self.ood = {
            name: PredictionFile(folder / f"ood-{name}.npz", batches.split.labels, task)
            for name, batches in (ood or {}).items()
        }
        self.ood_batches = dict(ood or {})
        self.parts = [
            (self.test, test),
            *((self.ood[name], batches) for name, batches in self.ood_batches.items()),
            *([(self.train, fitted)] if self.train and fitted else []),
        ]

    @property
    def files(self) -> list[PredictionFile]:
        """All files."""
        return [*(file for file, _ in self.parts), *([self.tta] if self.tta else [])]

    @property
    def plain(self) -> MemberPredictions:
        """The same files without that of the views."""
        plain = copy.copy(self)
        plain.views, plain.tta = [], None
        return plain

    @property
    def others(self) -> list[tuple[PredictionFile, EvalBatches]]:
        """All parts but the test images, each file with its batches."""
        return self.parts[1:]

    def with_held_out(self) -> MemberPredictions:
        """Return the same files with the validation data as one more part, where they say a noise.

        Of snapshots the training writes that file; members of other kinds are added here, after it.
        """
        task = self.test.task
        if not task.uses_noise or self.held_out is None:
            return self
        more = copy.copy(self)
        file = PredictionFile(self.folder / "val.npz", self.held_out.split.labels, task)
        more.parts = [*self.parts, (file, self.held_out)]
        return more

    def complete(self, member: str, sha256: str) -> bool:
        """Return whether a member with exactly these weights has predicted all images."""
        return all(file.get(member, sha256) is not None for file in self.files)

    def predict(
        self,
        member: str,
        sha256: str,
        predict: Callable[[EvalBatches], Tensor],
        same: Iterable[str] = (),
    ) -> Tensor:
        """Store a member's missing predictions; return its test probabilities (N, C).

        Args:
            member: its name.
            sha256: of its weights.
            predict: returns the probabilities for batches; called only for missing predictions.
            same: members whose predictions are copied if they have the same weights.
        """
        same = list(same)
        for file, batches in self.parts:
            file.fill(member, sha256, functools.partial(predict, batches), same)
        if self.tta is not None:
            mean = functools.partial(self._mean_over_views, member, predict)
            self.tta.fill(member, sha256, mean, same)
        return self.test.probabilities(member)

    def _mean_over_views(self, member: str, predict: Callable[[EvalBatches], Tensor]) -> Tensor:
        """Return the mean over all views; that of the image itself is stored already."""
        mean = RunningMean()
        mean.update(self.test.probabilities(member))
        for view in self.views:
            mean.update(predict(view))
        return mean.value

    def keep(self, members: Iterable[str]) -> None:
        """Keep only the named members, in that order."""
        names = list(members)
        for file in self.files:
            file.keep(names)
