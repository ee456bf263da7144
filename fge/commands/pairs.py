"""A pair of networks from fit to result, for every command that connects networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from fge.commands.build import eval_batches, speed_of, train_batches
from fge.commands.curve_study import CurveStudy, StudyData
from fge.config.curves import CurveConfig
from fge.curves.evaluate import Record
from fge.data.splits import Dataset
from fge.ensemble.predictions import MemberPredictions
from fge.errors import DivergenceError, UserError
from fge.observer import Observer
from fge.report.curves import PairResult, pair_result
from fge.train.recipes import endpoint_recipe


@dataclass(frozen=True)
class Measured:
    """A pair of networks with the records along its paths, ``segment`` and ``curve``."""

    pair: PairResult
    paths: dict[str, list[Record]]
    study: CurveStudy


def make_study(
    config: CurveConfig,
    dataset: Dataset,
    model: nn.Module,
    *,
    folder: Path,
    name: str,
    ends: tuple[Tensor, Tensor],
    predictions: MemberPredictions,
    observer: Observer,
) -> CurveStudy:
    """Return the study of the curve between two networks.

    Args:
        config: settled options.
        dataset: on the run's device.
        model: the architecture, on the run's device; left as it is.
        folder: of the curves of the run.
        name: of the pair, and of its folder in ``folder``.
        ends: weights (P,) of the two, canonical.
        predictions: of members of all studies of the run.
        observer: is told of epochs and points.
    """
    return CurveStudy(
        folder / name,
        name,
        model=model,
        ends=ends,
        data=StudyData(
            train_batches(config, dataset, endpoint_recipe(config)),
            eval_batches(config, dataset, dataset.train.first(config.eval_images)),
            eval_batches(config, dataset, dataset.test),
        ),
        config=config,
        speed=speed_of(config),
        predictions=predictions,
        observer=observer,
    )


def measure_pair(study: CurveStudy, members: Sequence[float]) -> Measured:
    """Fit the curve of a pair and measure curve and segment, as far as that is not done.

    Args:
        study: of the pair.
        members: values of t whose test predictions are kept.

    Raises:
        UserError: the networks are the same, or the fit in the folder is another.
        DivergenceError: the loss stopped being finite, in the fit or on a path.
    """
    epochs = study.config.fit_epochs
    if not study.fitted:
        study.observer.note(f"curve {study.name}: {epochs} {'epoch' if epochs == 1 else 'epochs'}")
    try:
        curve = study.fit()
    except (UserError, DivergenceError) as error:
        raise type(error)(f"curve {study.name}: {error}") from None
    along = study.measure("curve", curve, members)
    paths = {"segment": study.measure("segment", study.segment(), members), "curve": along}
    pair = pair_result(
        study.name,
        study.geometry(curve),
        paths,
        fit_epochs=epochs,
        probe_images=sum(map(len, paths.values())) * study.point_images,
    )
    return Measured(pair, paths, study)
