"""Spending a budget while it is spent: how long one network trains, and when another starts.

The one decision that matters is how many epochs a network deserves before the next one starts. A
network is trained in cycles that end after an eighth, a quarter, half and all of the budget, each a
linear descent whose tail is averaged. After each, two forecasts are compared: of training it twice
as long, and of starting other networks with what is left of the budget.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch.optim import Optimizer

from fge.errors import check_at_least
from fge.train.descents import LinearTailLR
from fge.train.recipes import Stage
from fge.train.schedules import ClosedFormLR

FIRST_PART = 8
"""The first cycle takes this part of the budget: 1 / 8."""
DIVERSITY = 0.12
"""What infinitely many networks would take off the NLL of one, as a part of it. Measured on
held-out training images of Fashion-MNIST: 0.117 with augmentation, 0.13 without."""
EXPONENT = 0.83
"""The loss of m networks falls as m to the power of minus this (arXiv 2007.08483 finds such power
laws; the exponent was measured with ``DIVERSITY``)."""
DECAY = 0.5
"""The gain of a doubling of the epochs is this part of the gain of the doubling before it."""
MARGIN = 0.002
"""A forecast has to be better by this many nats per example to be worth more forward passes."""
LEAST_GAIN = 0.001
"""Training stops early if another network is forecast to take off less than this (nats)."""
MEMORISED = 0.25
"""Below this ratio of training NLL to validation NLL, longer training is forecast to gain nothing:
the network knows its training images by heart."""


class Planner(Protocol):
    """Decides the stages of a training one by one, from what the log says of those before."""

    epochs: int
    members: str
    store: str

    def decide(self, records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """Return the record of the next stage, or None at the end; equal logs, equal decisions."""

    def stage(self, record: dict[str, Any]) -> Stage:
        """Return the stage of a record."""

    def describe(self, record: dict[str, Any]) -> str:
        """Say what was decided, and why."""

    def kept(self, records: Sequence[dict[str, Any]]) -> list[int]:
        """Return the positions of the snapshots that are members."""


@dataclass(frozen=True)
class _Point:
    """A network after ``epochs``: its validation NLL and its NLL of training images (nats)."""

    epochs: int
    nll: float
    train_nll: float


class AutoPlanner:
    """Continues one network while that gains more than another network would.

    The forecasts, in validation NLL L after e epochs of one network, with R epochs left:

    - continued to e' = 2e (at most e + R): L(e) - DECAY (L(e/2) - L(e)) log2(e'/e), and the gain of
      the networks that the rest of the budget allows;
    - m other networks of R / m epochs each: the mean L of all, less
      DIVERSITY L (1 - (1 + m) ** -EXPONENT).

    The lower one is chosen, and of two alike the one with fewer networks. Once the first network
    has ended, every other one gets the same epochs; the gain of each is measured, and training
    stops early when the next one is forecast to gain less than ``LEAST_GAIN``. The members are the
    last averages of all networks.

    Args:
        epochs: the budget.
        final: the part of the base rate to which each descent falls.
        average: the last part of each descent that is averaged.
        given_weights: whether other networks start from the given weights again, and not from new
            initial ones.
    """

    members = "auto"
    store = "snapshots"

    def __init__(
        self, epochs: int, *, final: float, average: float, given_weights: bool = False
    ) -> None:
        check_at_least(1, epochs=epochs)
        self.epochs = epochs
        self.final = final
        self.average = average
        self.given_weights = given_weights

    def decide(self, records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """Return the record of the next stage, or None at the end; equal logs, equal decisions."""
        plans = [r for r in records if r["event"] == "plan"]
        snapshots = [r for r in records if r["event"] == "snapshot"]
        if not plans:
            return self._cycle(1, 0, max(1, round(self.epochs / FIRST_PART)), {})
        last = plans[-1]
        found = self._outcome(last, snapshots[-1])
        done = last["first_epoch"] + last["epochs"]
        left = self.epochs - done
        if last["network"] == 1 and "network_epochs" not in last:
            return self._after_cycle(plans, snapshots, left, found)
        return self._after_network(plans, snapshots, left, found)

    def _outcome(self, plan: dict[str, Any], snapshot: dict[str, Any]) -> dict[str, Any]:
        """Return what the last stage was forecast to reach, and what it reached."""
        if "forecast" not in plan:
            return {}
        measured = snapshot[
            "ensemble_val_tempered_nll" if plan["network"] > 1 else "val_tempered_nll"
        ]
        return {"forecast_before": plan["forecast"], "measured": measured}

    def _after_cycle(
        self,
        plans: list[dict[str, Any]],
        snapshots: list[dict[str, Any]],
        left: int,
        found: dict[str, Any],
    ) -> dict[str, Any] | None:
        """Decide whether the first network continues."""
        if left == 0:
            return None
        curve = [
            _Point(p["first_epoch"] + p["epochs"], s["val_tempered_nll"], s["train_nll"])
            for p, s in zip(plans, snapshots, strict=True)
        ]
        epochs, nll = curve[-1].epochs, curve[-1].nll
        further = min(2 * epochs, self.epochs)
        if self.epochs - further < epochs / 2:
            further = self.epochs
        longer = _forecast(curve, further)
        on = self._with_others(curve, further, longer, self.epochs - further)
        others, stop = min(
            ((m, self._ensemble(curve, nll, m, left // m)) for m in _counts(left)),
            key=lambda option: option[1],
        )
        facts = {**found, "nll": nll, "forecast_continued": on, "forecast_others": stop}
        if len(curve) < 2 or stop >= on - MARGIN:
            return self._cycle(1, epochs, further - epochs, {**facts, "forecast": longer})
        length = left // others
        facts["forecast"] = self._ensemble(curve, nll, 1, length)
        return self._network(2, epochs, length, facts)

    def _after_network(
        self,
        plans: list[dict[str, Any]],
        snapshots: list[dict[str, Any]],
        left: int,
        found: dict[str, Any],
    ) -> dict[str, Any] | None:
        """Decide whether yet another network starts."""
        last, done = plans[-1], snapshots[-1]["ensemble_val_tempered_nll"]
        length = last["network_epochs"]
        networks = last["network"]
        step = _power(networks) - _power(networks + 1)
        gain = DIVERSITY * done / (1 - DIVERSITY * (1 - _power(networks))) * step
        if left < length or gain < LEAST_GAIN:
            return None
        if left < 2 * length:
            length = left
        return self._network(
            networks + 1, self.epochs - left, length, {**found, "forecast": done - gain}
        )

    def _with_others(self, curve: list[_Point], epochs: int, nll: float, left: int) -> float:
        """Return the forecast for a network continued to ``epochs``, with others after it."""
        longer = [*curve, _Point(epochs, nll, curve[-1].train_nll)]
        options = [self._ensemble(longer, nll, m, left // m) for m in _counts(left)]
        return min([nll, *options])

    def _ensemble(self, curve: list[_Point], nll: float, others: int, epochs: int) -> float:
        """Return the forecast for a network and others of so many epochs each."""
        mean = (nll + others * _forecast(curve, epochs)) / (1 + others)
        return mean * (1 - DIVERSITY * (1 - _power(1 + others)))

    def _cycle(
        self, network: int, first: int, epochs: int, facts: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the record of a cycle of the first network."""
        record = {"network": network, "first_epoch": first, "epochs": epochs}
        name = f"network-{network}-to-{first + epochs}"
        return {"event": "plan", "stage": name, **record, **facts}

    def _network(
        self, network: int, first: int, epochs: int, facts: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the record of another network."""
        record = {"network": network, "first_epoch": first, "epochs": epochs}
        return {
            "event": "plan",
            "stage": f"network-{network}",
            **record,
            "network_epochs": epochs,
            **facts,
        }

    def stage(self, record: dict[str, Any]) -> Stage:
        """Return the stage of a record."""
        first, epochs = record["first_epoch"], record["epochs"]
        fresh = record["network"] - 1 if "network_epochs" in record or first == 0 else None
        return Stage(
            record["stage"],
            first,
            first + epochs,
            partial(_descent, epochs, self.final),
            store=self.store,
            keep="end",
            average=self.average,
            members=self.members,
            fresh=fresh,
        )

    def describe(self, record: dict[str, Any]) -> str:
        """Say what was decided, and why."""
        text = ""
        if "measured" in record:
            text = (
                f"Forecast {record['forecast_before']:.4f}, measured {record['measured']:.4f} "
                "(validation NLL, one temperature). "
            )
        until = record["first_epoch"] + record["epochs"]
        if record["network"] == 1:
            text += f"plan: train the network to epoch {until}"
        elif self.given_weights:
            text += f"plan: start again from the given weights, for {record['epochs']} epochs"
        else:
            text += f"plan: start network {record['network']}, for {record['epochs']} epochs"
        if "forecast" in record:
            text += f"; forecast {record['forecast']:.4f}"
        if "forecast_continued" in record:
            text += (
                f" (for the whole budget: {record['forecast_continued']:.4f} continued, "
                f"{record['forecast_others']:.4f} with other networks)"
            )
        return text

    def kept(self, records: Sequence[dict[str, Any]]) -> list[int]:
        """Return the positions of the members: the last snapshot of each network."""
        networks = [r["network"] for r in records if r["event"] == "plan"]
        return [k for k, n in enumerate(networks) if n not in networks[k + 1 :]]


def _power(networks: int) -> float:
    return math.pow(networks, -EXPONENT)


def _counts(left: int) -> range:
    """Return how many networks may share the epochs that are left."""
    return range(1, min(left, 8) + 1)


def _forecast(curve: Sequence[_Point], epochs: int) -> float:
    """Return the validation NLL of one network after so many epochs.

    Between measured points it is linear in the logarithm of the epochs. Beyond the last one, each
    doubling gains ``DECAY`` of the one before, and nothing once the training images are memorised.
    Before the first one, a halving loses as much as the first measured doubling gained, and more.
    """
    first, last = curve[0], curve[-1]
    if len(curve) == 1:
        return last.nll
    if epochs < first.epochs:
        second = curve[1]
        slope = (first.nll - second.nll) / math.log2(second.epochs / first.epochs)
        return first.nll + max(0.0, slope) / DECAY * math.log2(first.epochs / max(epochs, 1))
    for low, high in itertools.pairwise(curve):
        if epochs <= high.epochs:
            part = math.log(epochs / low.epochs) / math.log(high.epochs / low.epochs)
            return low.nll + part * (high.nll - low.nll)
    before = curve[-2]
    slope = (before.nll - last.nll) / math.log2(last.epochs / before.epochs)
    if slope <= 0 or last.train_nll < MEMORISED * last.nll:
        return last.nll
    doublings = math.log2(epochs / last.epochs)
    return last.nll - slope * DECAY * (1 - math.pow(DECAY, doublings)) / (1 - DECAY)


def _descent(epochs: int, final: float, optimizer: Optimizer, steps_per_epoch: int) -> ClosedFormLR:
    return LinearTailLR(optimizer, steps=epochs * steps_per_epoch, final=final)
