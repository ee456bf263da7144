"""Arrays in, numbers out: what predictions are worth."""

from fge.metrics.calibration import (
    adaptive_ece,
    calibrated_ece,
    calibrated_log_likelihood,
    calibrated_nll_per_example,
    calibrated_summary,
    fit_temperature,
    scale_temperature,
)
from fge.metrics.detection import (
    RiskCoverage,
    aurc,
    auroc,
    entropy,
    ood_auroc,
    risk_coverage,
)
from fge.metrics.diversity import (
    GainSplit,
    disagreement,
    disagreement_matrix,
    error_correlation,
    error_correlation_matrix,
    gain_split,
)
from fge.metrics.equivalent import deep_ensemble_equivalent
from fge.metrics.intervals import Interval, paired_difference, paired_difference_over_seeds
from fge.metrics.scores import (
    TINY,
    Reliability,
    brier,
    check_examples,
    check_probs,
    ece,
    error,
    nll,
    nll_per_example,
    reliability,
    summary,
)

__all__ = [
    "TINY",
    "GainSplit",
    "Interval",
    "Reliability",
    "RiskCoverage",
    "adaptive_ece",
    "aurc",
    "auroc",
    "brier",
    "calibrated_ece",
    "calibrated_log_likelihood",
    "calibrated_nll_per_example",
    "calibrated_summary",
    "check_examples",
    "check_probs",
    "deep_ensemble_equivalent",
    "disagreement",
    "disagreement_matrix",
    "ece",
    "entropy",
    "error",
    "error_correlation",
    "error_correlation_matrix",
    "fit_temperature",
    "gain_split",
    "nll",
    "nll_per_example",
    "ood_auroc",
    "paired_difference",
    "paired_difference_over_seeds",
    "reliability",
    "risk_coverage",
    "scale_temperature",
    "summary",
]
