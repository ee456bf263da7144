"""Curves through weight space: fit, evaluate, baselines, the path through the origin."""

from fge.curves.baselines import BASELINES, make_baseline
from fge.curves.buffers import (
    Buffers,
    Ends,
    InterpolatedWarning,
    Statistics,
    check_model,
    mixed,
    statistics_of,
    warn_of_interpolated,
)
from fge.curves.curve import Chain, Curve, gram_matrix, straight_curve, straight_points
from fge.curves.evaluate import (
    AnyCurve,
    CurveRecords,
    Probabilities,
    Record,
    WeightsEvaluator,
    bound,
    evaluate_curve,
    summarise_curve,
)
from fge.curves.families import Bezier, PolyChain, make_family
from fge.curves.fit import fit_curve
from fge.curves.geometry import angle, distance, turning_angles
from fge.curves.networks import Networks
from fge.curves.objectives import Objective, stratified_uniform
from fge.curves.origin import OriginPath, TrivialPath

__all__ = [
    "BASELINES",
    "AnyCurve",
    "Bezier",
    "Buffers",
    "Chain",
    "Curve",
    "CurveRecords",
    "Ends",
    "InterpolatedWarning",
    "Networks",
    "Objective",
    "OriginPath",
    "PolyChain",
    "Probabilities",
    "Record",
    "Statistics",
    "TrivialPath",
    "WeightsEvaluator",
    "angle",
    "bound",
    "check_model",
    "distance",
    "evaluate_curve",
    "fit_curve",
    "gram_matrix",
    "make_baseline",
    "make_family",
    "mixed",
    "statistics_of",
    "straight_curve",
    "straight_points",
    "stratified_uniform",
    "summarise_curve",
    "turning_angles",
    "warn_of_interpolated",
]
