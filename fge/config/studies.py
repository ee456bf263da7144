"""Options of the commands that look at what exists: networks, finished runs, new images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fge.config.base import Precision, RunConfig, Switch
from fge.errors import UserError, check_at_least, check_not_negative

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


@dataclass(frozen=True)
class ReportConfig:
    """Make the report page of a finished run anew, or join those of several on one page."""

    runs: tuple[Path, ...]
    """Run folders."""
    out: Path | None = None
    """Folder of the page; by default that of the run, or for several the next free
    runs/report-NNN."""
    overwrite: bool = False
    """Replace the page in --out."""

    def __post_init__(self) -> None:
        """Check that there are run folders, each once.

        Raises:
            UserError: there are none, or one is given twice.
        """
        if not self.runs:
            raise UserError("give the folder of a finished run, or several: report DIR [DIR ...]")
        places = [run.resolve() for run in self.runs]
        for run, place in zip(self.runs, places, strict=True):
            if places.count(place) > 1:
                raise UserError(f"the run folder {run} is given twice")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Apply the saved ensemble of an fge or train run to new images."""

    run: Path
    """Run folder of an fge or train command."""
    images: Path
    """An image, a folder of images (searched through), or an .npz with an array 'images'."""
    out: Path | None = None
    """Where predictions.csv, predictions.npz and report.html go;
    RUN/predict-IMAGES by default."""
    model: str | None = None
    """The run's package.module:factory, given again to allow its import."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N."""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default."""
    batch_size: int = 250
    """Images per batch."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: naming the option, its value and what it may be.
        """
        check_at_least(1, batch_size=self.batch_size, threads=self.threads)
