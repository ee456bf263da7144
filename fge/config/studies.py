"""Options of the commands that look at networks which exist."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fge.config.base import Precision, RunConfig, Switch, as_stored, saved_fields
from fge.config.curves import ConnectConfig, CurveEnsembleConfig
from fge.config.method_config import TrainConfig
from fge.config.saved import read_config
from fge.config.training import FGEConfig
from fge.errors import UserError, check_at_least, check_not_negative

RUN_KINDS: dict[str, type[RunConfig]] = {
    "fge": FGEConfig,
    "train": TrainConfig,
    "curve-ensemble": CurveEnsembleConfig,
    "connect": ConnectConfig,
}
"""Commands whose runs can be looked at, with their options."""
_OWN = {"device", "threads", "compile", "amp"}
"""Options that say how to run here, and are not taken from a run that is looked at."""
_OF_DATA = ("data", "train_size", "test_size", "val_fraction")
_PLANE_NEEDS = 3


@dataclass(frozen=True, kw_only=True)
class StudyConfig(RunConfig):
    """Options that tell which networks are looked at."""

    run: Path | None = None
    """Run folder of fge, train, curve-ensemble or connect; data and model are those of the run."""
    weights: tuple[Path, ...] = ()
    """Weights files (.safetensors, or .pt state dicts) instead of --run."""
    weight_decay_in_loss: bool = False
    """Add weight_decay / 2 |w|^2 to the training loss."""

    epochs: int = 1
    """Not used here: nothing is trained."""
    lr: float | None = None
    """Not used here: snapshots tell their learning rates."""
    batch_size: int = 128
    """Used only where --channels-last auto is measured: nothing is trained."""
    momentum: float = 0.9
    """Not used here: nothing is trained."""
    weight_decay: float = 5e-4
    """That of --weight-decay-in-loss; not used without."""
    crop_padding: int | None = None
    """Not used here: images are looked at without augmentation."""
    flip: bool = True
    """Not used here: images are looked at without augmentation."""
    compile: Switch = "off"
    """Not used here."""
    amp: Precision = "off"
    """Automatic mixed precision; off, for small differences of the loss are looked at."""

    def __post_init__(self) -> None:
        """Check that there is something to look at.

        Raises:
            UserError: there is not, or twice.
        """
        super().__post_init__()
        if self.run is not None and self.weights:
            raise UserError("give --run or --weights, not both")
        if self.run is None and not self.weights:
            if self.resume:
                raise UserError(f"no run to resume in {self.out}")
            raise UserError("give --run DIR, a run folder, or --weights FILE ...")

    @property
    def loss_decay(self) -> float:
        """Weight decay in the training loss that is looked at."""
        return self.weight_decay if self.weight_decay_in_loss else 0.0


@dataclass(frozen=True, kw_only=True)
class PlaneConfig(StudyConfig):
    """Measure and draw loss and error on a plane through networks, or along lines (--line).

    The plane goes through three snapshots of an fge or train run, the ends and the bend of the
    first curve of a curve-ensemble or connect run, or three files.
    """

    snapshots: tuple[int, ...] = ()
    """Numbers of three snapshots of an fge or train run; its first, middle and last by default."""
    random: bool = False
    """Instead, two random filter-normalised directions (arXiv 1712.09913) from one file, or from
    the last snapshot of an fge or train run; --seed chooses them."""
    trajectory: bool = False
    """Instead, the first two principal components of all snapshots of an fge or train run, or of
    files."""
    line: bool = False
    """Instead of a plane, lines: from snapshot to snapshot of an fge or train run (all, or two and
    more of --snapshots), along the first curve of a curve-ensemble or connect run and along its
    segment, from file to file, or with --random along one direction to both sides."""
    line_points: int = 61
    """Points along each line, at least; each is measured."""
    resolution: int = 15
    """Points along each axis; each is measured."""
    margin: float = 0.2
    """What is added on each side, as a part of the networks' larger extent, width or height."""
    eval_images: int = 5120
    """Training images, not augmented, for batch-norm statistics and training loss at each point;
    0 takes all."""

    def __post_init__(self) -> None:
        """Check the plane's options as well.

        Raises:
            UserError: naming the option, its value and what it may be.
        """
        super().__post_init__()
        check_at_least(2, resolution=self.resolution, line_points=self.line_points)
        check_at_least(0, eval_images=self.eval_images)
        check_not_negative(margin=self.margin)
        if self.random and self.trajectory:
            raise UserError("give --random or --trajectory, not both")
        if self.line and self.trajectory:
            raise UserError("give --line or --trajectory, not both")
        self._check_snapshots()
        if self.weights:
            self._check_files(len(self.weights))

    def _check_snapshots(self) -> None:
        if not self.snapshots:
            return
        if self.run is None or self.random or self.trajectory:
            raise UserError(
                "--snapshots chooses those that a plane goes through: it needs --run, without "
                "--random and --trajectory"
            )
        chosen = " ".join(map(str, self.snapshots))
        different, count = len(set(self.snapshots)), len(self.snapshots)
        if self.line and not 2 <= different == count:
            raise UserError(f"--snapshots needs two different numbers or more, got {chosen}")
        if not self.line and not different == count == _PLANE_NEEDS:
            raise UserError(f"--snapshots needs three different numbers, got {chosen}")
        if min(self.snapshots) < 1:
            raise UserError(f"--snapshots counts from 1, got {chosen}")

    def _check_files(self, count: int) -> None:
        if self.random and count != 1:
            raise UserError(f"--random needs one file, got {count}")
        if self.line:
            if count < 2 and not self.random:
                raise UserError(
                    f"--line needs two files or more, got {count}; with --random one will do"
                )
            return
        if self.trajectory and count < _PLANE_NEEDS:
            raise UserError(f"--trajectory needs three files or more, got {count}")
        if not (self.random or self.trajectory) and count != _PLANE_NEEDS:
            raise UserError(
                f"--weights needs three files for a plane, got {count}; "
                "with --random one will do, with --trajectory more"
            )


@dataclass(frozen=True, kw_only=True)
class SharpnessConfig(StudyConfig):
    """Measure the sharpness of networks: top Hessian eigenvalues, trace, spectral density.

    The networks are the snapshots of an fge or train run, points on the first curve of a
    curve-ensemble or connect run, or files.
    """

    k: int = 3
    """How many of the largest eigenvalues."""
    examples: int = 1024
    """Training images, not augmented, whose mean loss is looked at; 0 takes all."""
    chunk: int = 256
    """Images at a time in a Hessian product."""
    batch_statistics: bool = False
    """Batch norm with the statistics of each chunk instead of the running ones."""
    trace_samples: int = 32
    """Random vectors for the trace."""
    spectrum_vectors: int = 4
    """Random vectors for the spectral density of the last network."""
    spectrum_steps: int = 60
    """Lanczos steps from each of them."""
    channels_last: Switch = "off"
    """Not used here."""
    amp: Precision = "off"
    """Not used here: Hessian products are in full precision."""
    curve_points: int = 5
    """Networks on the curve of a curve-ensemble or connect run, evenly spaced in t."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: naming the option, its value and what it may be.
        """
        super().__post_init__()
        check_at_least(1, k=self.k, chunk=self.chunk)
        check_at_least(0, examples=self.examples)
        check_at_least(2, trace_samples=self.trace_samples, curve_points=self.curve_points)
        check_at_least(
            1, spectrum_vectors=self.spectrum_vectors, spectrum_steps=self.spectrum_steps
        )


C = TypeVar("C", bound=StudyConfig)
KEEP_SNAPSHOTS = ("fge", "train")
"""Commands whose runs keep snapshots; those of the others keep networks and curves."""


def read_run(folder: Path) -> tuple[str, RunConfig, dict[str, Any]]:
    """Return the command of a run, its options and its whole ``config.json``.

    Raises:
        UserError: the folder is no run of a command that leaves networks.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(
            f"{folder} is no run folder (no config.json); "
            "give that of an fge, train, curve-ensemble or connect run"
        )
    try:
        command = str(json.loads(file.read_text(encoding="utf-8"))["command"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a config file: {type(error).__name__} {error}") from None
    if command not in RUN_KINDS:
        raise UserError(
            f"{folder} is a run of {command!r}; give one of fge, train, curve-ensemble or connect"
        )
    options, content = read_config(file, command, RUN_KINDS[command])
    return command, options, content


def options_of_run(kind: type[C], folder: Path) -> C:
    """Return options for looking at a run: data, model and what else they share are the run's.

    Raises:
        UserError: what :func:`read_run` refuses.
    """
    _, options, _ = read_run(folder)
    shared = [name for name in saved_fields(RunConfig) if name not in _OWN]
    return kind(run=folder, **{name: getattr(options, name) for name in shared})


def check_same_images(config: StudyConfig, fingerprint: str) -> None:
    """Check that the images are those of the run, unless options ask for others.

    Args:
        config: with a run or without one.
        fingerprint: of the images.

    Raises:
        UserError: the options are those of the run, but the images are not.
    """
    if config.run is None:
        return
    _, options, content = read_run(config.run)
    facts = content.get("dataset")
    known = facts.get("sha256") if isinstance(facts, dict) else None
    asked = all(
        as_stored(name, getattr(config, name)) == as_stored(name, getattr(options, name))
        for name in _OF_DATA
    )
    if asked and known not in (None, fingerprint):
        raise UserError(f"the images of {config.data} are not those of the run {config.run}")
