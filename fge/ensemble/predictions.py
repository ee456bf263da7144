"""The predictions of each member on disk, so that no member is evaluated twice."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fge.arrays import read_npz
from fge.data import EvalBatches
from fge.errors import UserError
from fge.files import write_bytes
from fge.networks import RunningMean

_ARRAYS = ("targets", "members", "sha256", "probabilities")
TTA_FILE = "test-tta.npz"
"""The file of predictions with test-time augmentation."""


class PredictionFile:
    """An ``.npz`` of class probabilities per member.

    Arrays: ``targets`` (N,), ``members`` (S,) names, ``sha256`` (S,) of each member's weights and
    ``probabilities`` (S, N, C) float32. The whole file is written again after each member.

    Args:
        path: the file; read if it exists.
        targets: labels (N,) of the split.

    Raises:
        UserError: the file cannot be read, or has other targets.
    """

    def __init__(self, path: Path, targets: Tensor) -> None:
        self.path = path
        self.targets: NDArray[np.int64] = targets.cpu().numpy()
        self._members: dict[str, tuple[str, NDArray[np.float32]]] = {}
        if path.exists():
            self._read()

    @classmethod
    def stored(cls, path: Path) -> PredictionFile:
        """Return the file of a run whose labels are not at hand.

        Raises:
            UserError: it cannot be read, or its arrays do not fit together.
        """
        targets = read_npz(path, _ARRAYS[:1])["targets"]
        if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
            raise UserError(f"{path} is damaged: its targets are no labels (N,); delete it")
        return cls(path, torch.from_numpy(targets.astype(np.int64)))

    @property
    def by_weights(self) -> dict[str, str]:
        """The name of a member for each SHA-256 of weights that made predictions."""
        return {key: name for name, (key, _) in self._members.items()}

    def _read(self) -> None:
        stored = read_npz(self.path, _ARRAYS)
        names, keys, probs = (stored[name] for name in _ARRAYS[1:])
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

    def probabilities(self, member: str) -> Tensor:
        """Return the stored probabilities (N, C) of a member, float64.

        Raises:
            UserError: there are none.
        """
        if member not in self:
            raise UserError(
                f"{self.path} lacks the predictions of {member}; resume that run with --resume"
            )
        return torch.from_numpy(self._members[member][1]).double()

    def mean(self, members: Iterable[str]) -> Tensor:
        """Return the mean of the members' probabilities (N, C), float64, in their order."""
        mean = RunningMean()
        for member in members:
            mean.update(self.probabilities(member))
        return mean.value

    def add(self, member: str, sha256: str, probs: Tensor) -> Tensor:
        """Store a member's probabilities (N, C); return them as rounded for the file."""
        rounded = probs.float().numpy().copy()
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
        buffer = io.BytesIO()
        np.savez(
            buffer,
            targets=self.targets,
            members=np.array(list(self._members)),
            sha256=np.array([key for key, _ in self._members.values()]),
            probabilities=np.stack([probs for _, probs in self._members.values()])
            if self._members
            else np.empty((0, len(self.targets), 0), np.float32),
        )
        write_bytes(self.path, buffer.getvalue())


class MemberPredictions:
    """The predictions of each member on the test images, on views of them and on OOD images.

    They are stored in ``test.npz``, with views in ``test-tta.npz``, and in an ``ood-NAME.npz`` for
    each kind of OOD images, under the same names and keys; the targets of OOD images are 0.
    ``test``, ``tta`` (None without views) and ``ood`` (by name) are the files; ``parts`` lists
    those of test and OOD images, each with its batches.

    Args:
        folder: of the files.
        test: batches of the test set.
        ood: batches of OOD images by name.
        views: batches of the test set, one for each further view of its images. A member's
            prediction with test-time augmentation is the mean of its probabilities on the images
            and on these views.

    Raises:
        UserError: a file cannot be read, or has other targets.
    """

    def __init__(
        self,
        folder: Path,
        test: EvalBatches,
        ood: Mapping[str, EvalBatches] | None = None,
        views: Sequence[EvalBatches] = (),
    ) -> None:
        self.test = PredictionFile(folder / "test.npz", test.split.labels)
        self.views = list(views)
        self.tta = PredictionFile(folder / TTA_FILE, test.split.labels) if views else None
        self.ood = {
            name: PredictionFile(folder / f"ood-{name}.npz", batches.split.labels)
            for name, batches in (ood or {}).items()
        }
        self.ood_batches = dict(ood or {})
        self.parts = [
            (self.test, test),
            *((self.ood[name], batches) for name, batches in self.ood_batches.items()),
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
