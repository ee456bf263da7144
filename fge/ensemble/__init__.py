"""Ensembles from one training run: snapshots, predictions, FGE, fold."""

from fge.ensemble.cycle import FGE
from fge.ensemble.deployed import (
    Deployed,
    DeployedGaussian,
    DeployedNetworks,
    KeepsDtype,
    Normalise,
)
from fge.ensemble.ensemble import Ensemble, Members
from fge.ensemble.folding import (
    NOT_FINITE,
    Candidate,
    Fold,
    Scores,
    Trial,
    fold,
    fold_greedily,
    scores_of,
)
from fge.ensemble.predictions import (
    NOISE_EXAMPLES,
    TTA_FILE,
    MemberPredictions,
    PredictionFile,
    noise_data,
    predictions_of_run,
)
from fge.ensemble.selection import without_harmful
from fge.ensemble.snapshots import SnapshotStore, index_bytes

__all__ = [
    "FGE",
    "NOISE_EXAMPLES",
    "NOT_FINITE",
    "TTA_FILE",
    "Candidate",
    "Deployed",
    "DeployedGaussian",
    "DeployedNetworks",
    "Ensemble",
    "Fold",
    "KeepsDtype",
    "MemberPredictions",
    "Members",
    "Normalise",
    "PredictionFile",
    "Scores",
    "SnapshotStore",
    "Trial",
    "fold",
    "fold_greedily",
    "index_bytes",
    "noise_data",
    "predictions_of_run",
    "scores_of",
    "without_harmful",
]
