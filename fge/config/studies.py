"""Options of the commands that study networks, finished runs or new images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from fge.config.base import BATCH, POINTS, SEED, THIS_INVOCATION, Precision, whole
from fge.config.curves import PointOptions
from fge.config.options import (
    DataOptions,
    DeviceOptions,
    FigureOptions,
    FormatOptions,
    ModelOptions,
    Options,
    VariedConfig,
)
from fge.errors import UserError, check_not_negative

_PLANE_NEEDS = 3
_PLACE = {**THIS_INVOCATION, "group": "output"}
_NOTHING_TRAINED = "nothing is trained"


@dataclass(frozen=True, kw_only=True)
class LossOptions(Options):
    """The loss that is measured."""

    group: ClassVar[str] = "measurement"
    weight_decay_in_loss: bool = False
    """Add weight_decay / 2 |w|^2 to the training loss."""
    weight_decay: float = 5e-4
    """The weight_decay of --weight-decay-in-loss. With --run, by default that of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(weight_decay=self.weight_decay)

    @property
    def loss_decay(self) -> float:
        """The weight decay in the measured training loss."""
        return self.weight_decay if self.weight_decay_in_loss else 0.0


@dataclass(frozen=True, kw_only=True)
class StudyConfig(LossOptions, VariedConfig):
    """The networks to study."""

    group: ClassVar[str] = "networks"
    unused: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("epochs", "lr", "batch_size", "momentum"), _NOTHING_TRAINED),
        **dict.fromkeys(("compile", "cuda_graphs"), _NOTHING_TRAINED),
    }
    run: Path | None = None
    """Folder of an fge, train, curve-ensemble or connect run. Data and model are those of the
    run by default."""
    weights: tuple[Path, ...] = ()
    """Weights files (.safetensors, or .pt state dicts) instead of --run."""
    seed: int = field(default=0, metadata=SEED)
    """Seed of random directions and vectors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run is not None and self.weights:
            raise UserError("give --run or --weights, not both")
        if self.run is None and not self.weights:
            if self.resume:
                raise UserError(f"no run to resume in {self.out}")
            raise UserError("give --run DIR, a run folder, or --weights FILE ...")


@dataclass(frozen=True, kw_only=True)
class PlaneConfig(PointOptions, FormatOptions, StudyConfig):
    """Measure and draw loss and error, or RMSE, on a plane through networks, or along lines.

    The plane goes through three snapshots of an fge or train run, through the ends and the bend
    of the first curve of a curve-ensemble or connect run, or through three files. --random,
    --trajectory and --line choose other directions.
    """

    group: ClassVar[str] = "plane"
    snapshots: tuple[int, ...] = field(default=(), metadata=whole(1, 10**6))
    """Numbers of three snapshots of an fge or train run, from 1. By default its first, middle
    and last; with --line all."""
    random: bool = False
    """Take two random filter-normalised directions (arXiv 1712.09913) from one file, or from the
    last snapshot of an fge or train run."""
    trajectory: bool = False
    """Take the first two principal components of three or more files, or of all snapshots of an
    fge or train run."""
    line: bool = False
    """Measure lines instead of a plane: from snapshot to snapshot or from file to file, along the
    first curve of a curve-ensemble or connect run and along its segment, or with --random in one
    direction to both sides."""
    line_points: int = field(default=61, metadata=POINTS)
    """Least number of points to measure along each line."""
    resolution: int = field(default=15, metadata=whole(2, 1000))
    """Number of points to measure along each axis of the plane."""
    margin: float = 0.2
    """Margin on each side, as a part of the width or height of the networks, the larger."""
    amp: Precision = "off"
    """Automatic mixed precision. It can hide small differences of the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
                "--snapshots chooses the snapshots of a plane or line: it needs --run, without "
                "--random and --trajectory"
            )
        chosen = " ".join(map(str, self.snapshots))
        different, count = len(set(self.snapshots)), len(self.snapshots)
        if self.line and not 2 <= different == count:
            raise UserError(f"--snapshots needs two different numbers or more, got {chosen}")
        if not self.line and not different == count == _PLANE_NEEDS:
            raise UserError(f"--snapshots needs three different numbers, got {chosen}")

    def _check_files(self, count: int) -> None:
        if self.random and count != 1:
            raise UserError(f"--random needs one file, got {count}")
        if self.line:
            if count < 2 and not self.random:
                raise UserError(
                    f"--line needs two files or more, got {count}; with --random one is enough"
                )
            return
        if self.trajectory and count < _PLANE_NEEDS:
            raise UserError(f"--trajectory needs three files or more, got {count}")
        if not (self.random or self.trajectory) and count != _PLANE_NEEDS:
            raise UserError(
                f"--weights needs three files for a plane, got {count}; "
                "--random needs one, --trajectory three or more"
            )


@dataclass(frozen=True, kw_only=True)
class SharpnessConfig(StudyConfig):
    """Measure the sharpness of networks: top Hessian eigenvalues, trace, spectral density.

    The networks are the snapshots of an fge or train run, points on the first curve of a
    curve-ensemble or connect run, or files.
    """

    group: ClassVar[str] = "measurement"
    unused: ClassVar[Mapping[str, str]] = {
        **StudyConfig.unused,
        "channels_last": "it has no effect on a Hessian",
        "amp": "a Hessian needs full precision",
        "test_size": "the loss is that of training images",
    }
    k: int = field(default=3, metadata=whole(1, 1000))
    """Number of the largest eigenvalues to compute."""
    examples: int | None = field(default=None, metadata=whole(0, 10**9))
    """Training images, not augmented, in the loss. 0 takes all. By default from 1024 down to 16:
    this and the three numbers of vectors and steps below so that all takes about a minute on two
    cores."""
    chunk: int = field(default=256, metadata=BATCH)
    """Images at a time in a Hessian product."""
    batch_statistics: bool = False
    """Use the batch-norm statistics of each chunk instead of the running ones."""
    trace_samples: int | None = field(default=None, metadata=POINTS)
    """Number of random vectors for the trace. By default 32 to 8."""
    spectrum_vectors: int | None = field(default=None, metadata=whole(1, 10**4))
    """Number of random vectors for the spectral density of the last network. By default 4 to 1."""
    spectrum_steps: int | None = field(default=None, metadata=whole(1, 1000))
    """Lanczos steps from each of these vectors. By default 60 to 30."""
    curve_points: int = field(default=5, metadata=whole(2, 1000))
    """Number of networks on the curve of a curve-ensemble or connect run, evenly spaced in t."""


@dataclass(frozen=True)
class ReportConfig(Options):
    """Write the report page of a finished run again, or join several runs on one page."""

    group: ClassVar[str] = "page"
    positional: ClassVar[bool] = True
    instead: ClassVar[Mapping[str, str]] = {
        "figure_format": "the page shows the figures that the run has; give it to the run's command"
    }
    runs: tuple[Path, ...]
    """Run folders."""
    out: Path | None = field(default=None, kw_only=True, metadata=_PLACE)
    """Folder of the page. By default the run folder, or for several the next free
    runs/report-NNN."""
    overwrite: bool = field(default=False, kw_only=True, metadata=_PLACE)
    """Replace the page in --out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs:
            raise UserError("give the folder of a finished run, or several: report DIR [DIR ...]")
        places = [run.resolve() for run in self.runs]
        for run, place in zip(self.runs, places, strict=True):
            if places.count(place) > 1:
                raise UserError(f"the run folder {run} is given twice")


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(DeviceOptions, ModelOptions, DataOptions):
    """Check that a model trains, snapshots, averages, compiles and exports as it should.

    It is checked on 96 training images, in well under a minute for small networks; nothing is
    written.
    """

    group: ClassVar[str] = "measurement"
    unused: ClassVar[Mapping[str, str]] = {"test_size": "it uses training images only"}
    compile: bool = True
    """Also check torch.compile, which may take half a minute."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig(DeviceOptions, FigureOptions):
    """Apply the saved ensemble of an fge or train run to new images."""

    group: ClassVar[str] = "data"
    run: Path
    """Folder of an fge or train run."""
    images: Path
    """An image, a folder that is searched for images, or an .npz file with an array 'images'; for
    a run of a table another .csv or .parquet table."""
    image_size: int | None = field(default=None, metadata=whole(1, 4096))
    """Resize images so that their shorter side has this many pixels, and crop the centre: the size
    of the network's images. By default images are resized if the run did so."""
    workers: int | None = field(default=None, metadata=whole(0, 1024, **THIS_INVOCATION))
    """Processes that read and decode images that are resized. By default one a core, at most 16;
    0 for none."""
    skip_unreadable: bool = False
    """Read all image files first, and leave out those that cannot be read."""
    model: str | None = field(default=None, metadata={"group": "model"})
    """The run's package.module:factory, given again to allow its import."""
    coverage: float | None = field(default=None, metadata={"group": "measurement"})
    """Stated probability that the conformal set of an image holds its class, or all its labels, or
    the conformal interval of a regression its number, in (0, 1), with a threshold from the run's
    validation data. By default 0.9, if the run has enough of it."""
    keep_members: bool = field(default=False, metadata={"group": "output"})
    """Keep the probabilities of each member too, in predictions.npz."""
    batch_size: int = field(default=250, metadata={**BATCH, "group": "speed"})
    """Images per batch."""
    out: Path | None = field(default=None, metadata={"group": "output"})
    """Folder of predictions.csv, predictions.npz and report.html. By default
    RUN/predict-IMAGES, or the next free RUN/predict-IMAGES-2, ..."""
    overwrite: bool = field(default=False, metadata={"group": "output"})
    """Replace the predictions in --out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coverage is not None and not 0 < self.coverage < 1:
            raise UserError(
                f"coverage must be above 0 and below 1, got {self.coverage:g}; for 90 % give 0.9"
            )


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Options):
    """Write the saved ensemble of an fge or train run as one file for other programs.

    The file takes uint8 images (batch, channels, height, width) of the run's size, or rows of a
    table, and gives probabilities; of a regression the mean, and the variance. The normalisation,
    the names of classes, labels or targets and all members are within it; resizing is not. A short
    script beside it uses it without this package.
    """

    group: ClassVar[str] = "ensemble"
    run: Path
    """Folder of an fge or train run."""
    members: tuple[int, ...] = field(default=(), metadata=whole(1, 10**6))
    """Numbers of the snapshots to export, from 1. By default all."""
    half: bool = False
    """Let the networks compute in half precision (float16), for files of half the size.
    Probabilities may differ by 0.01."""
    model: str | None = field(default=None, metadata={"group": "model"})
    """The run's package.module:factory, given again to allow its import."""
    format: Literal["onnx", "pt2"] = field(default="onnx", metadata={"group": "output"})
    """onnx (needs the extra onnx), or pt2 for a program that torch.export.load reads."""
    out: Path | None = field(default=None, metadata={"group": "output"})
    """File to write, with the ending of the format; a script is written beside it, for NAME.onnx
    NAME_onnx_example.py. By default RUN/ensemble.onnx or RUN/ensemble.pt2."""
    overwrite: bool = field(default=False, metadata={"group": "output"})
    """Replace the files that are there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.members)) != len(self.members):
            chosen = " ".join(map(str, self.members))
            raise UserError(f"--members needs different numbers of snapshots, got {chosen}")
        if self.out is not None and self.out.suffix != f".{self.format}":
            raise UserError(
                f"--out {self.out} does not end in .{self.format}; give another name, or --format "
                f"{'pt2' if self.format == 'onnx' else 'onnx'} for a name that ends in it"
            )

    @property
    def target(self) -> Path:
        """The file to write."""
        return self.run / f"ensemble.{self.format}" if self.out is None else self.out


@dataclass(frozen=True)
class VerifyConfig(Options):
    """Check that every file of a run is as it was written; repair what follows from the rest."""

    group: ClassVar[str] = "run"
    positional: ClassVar[bool] = True
    run: Path
    """Run folder."""
    repair: bool = field(default=False, kw_only=True, metadata=THIS_INVOCATION)
    """Make damaged pages, figures, predictions and indices again, and go back to an earlier
    checkpoint."""
