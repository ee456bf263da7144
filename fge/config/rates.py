"""Learning rates used for a model unless told otherwise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Learning rates that suit a model: conventional, and the two ends of a cycle."""

    lr: float
    max_lr: float
    min_lr: float


_RATES = {
    "convnet": Rates(0.2, 0.05, 0.001),  # benchmarks/search_default_job.py
    # This and the next two: the reference implementation of arXiv 1802.10026.
    "vgg16": Rates(0.05, 0.01, 0.01),
    "preresnet": Rates(0.1, 0.05, 0.01),
    "wrn28-10": Rates(0.1, 0.05, 0.01),
}
_USUAL_RATES = Rates(0.05, 0.05, 0.0005)


def rates_of(model: str) -> Rates:
    """Return the learning rates used for a model unless told otherwise."""
    if _is_built_in(model):
        for name, rates in _RATES.items():
            if model.startswith(name):
                return rates
    return _USUAL_RATES


def curve_rate_of(model: str) -> float:
    """Return the learning rate with which curves are fitted unless told otherwise.

    0.1 for ``convnet``, which reached a lower training loss on the default data than 0.03;
    0.015 for VGG-16, and 0.03, which the reference implementation of arXiv 1802.10026 has for
    residual networks, for all others.
    """
    rates = {"convnet": 0.1, "vgg16": 0.015} if _is_built_in(model) else {}
    return next((rate for name, rate in rates.items() if model.startswith(name)), 0.03)


def _is_built_in(model: str) -> bool:
    return ":" not in model  # as torchvision's and the user's own have
