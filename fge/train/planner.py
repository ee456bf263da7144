"""Spending a budget while it is spent: how long one network trains, and when another starts.

The decision that matters is how many epochs a network deserves before the next one starts. The
first network is trained for a quarter of the budget, in a linear descent whose tail is averaged.
Then forecasts are compared: of training it to the end of the budget, of training it twice as long,
and, once that has shown what it gains, of starting other networks with what is left. A network that
has its images by heart by then needs no such trial.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypedDict

from fge.errors import UserError, check_at_least
from fge.files import AGAIN, checked
from fge.schemas import Count, Loss, NotNegative, extended
from fge.tasks import NLL_OF_PLANS, PlanLoss
from fge.train.descents import linear_tail
from fge.train.recipes import Stage

FIRST_PART = 4
"""The first descent takes this part of the budget: 1 / 4."""
DIVERSITY, LESS = 0.155, 0.14
"""What infinitely many networks would take off the NLL of one, as a part of it: ``DIVERSITY`` less
``LESS`` times the ratio of training NLL to validation NLL. Held-out images of Fashion-MNIST: 0.07
at a ratio of 0.61, 0.08 at 0.53, 0.15 at 0.07."""
EXPONENT = 0.83
"""What is left of that falls as the number of networks to minus this power (power laws of
ensembles: arXiv 2007.08483; measured with ``DIVERSITY``)."""
SATURATED = 0.48
"""At this ratio of training NLL to validation NLL, longer training gains nothing."""
MEMORISED = 0.2
"""At this ratio it has its images by heart: other networks start at once, and the mean of a longer
tail is better. Held-out images of Fashion-MNIST: at a ratio of 0.07 twice the epochs made the NLL
6 % larger, and the mean of the last half was 5 % better than that of the last fifth; at 0.39 it was
1 % worse."""
LONGER = 0.5
"""The last part of a descent that is averaged then."""
SLOPE = 0.36
"""Above ``SATURATED``, twice the epochs lower the NLL by this times the excess of the ratio, as a
part of it. Held-out images of Fashion-MNIST: 8 % at a ratio of 0.73, 4.5 % at 0.63."""
DECAY = 0.6
"""The gain of a doubling of the epochs is this part of the gain of the doubling before it."""
MARGIN = 0.002
"""A forecast has to be lower by this to be worth more forward passes (nats per example; of a
regression, parts of the variance)."""
_ERRORS = 2.0
"""Standard errors by which a measured gain is taken to be larger before others start."""
FEWEST_WRONG = 30
"""Validation images of which the first network gets fewer wrong decide nothing: it goes on to the
end of the budget, and is trained as networks usually are. Of a regression all examples count."""
HELD = 0.75
"""The part of that which stays at the base rate if the ratio is SATURATED or less. On rows of
digits, of which 200 validate, at a ratio of 0.1, a descent from the start was 5 % worse in NLL than
the conventional schedule, this one as good. In fine-tuning, at a ratio of 1, it was 2 points of
error worse than a quarter with SGD, and as good with AdamW."""
LEAST_GAIN = 0.001
"""Training stops early if another network is forecast to take off less than this."""


_DAMAGED = "log.jsonl is damaged"


class _Change(TypedDict):
    """What a log says of a snapshot, whatever the loss."""

    val_change_error: NotNegative


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
    """The snapshot at the end of a stage, after so many ``epochs`` of the budget.

    ``loss``: of validation examples; ``error``: the standard error of its paired change from the
    snapshot before; ``train``: of training examples; ``joint``: of the ensemble so far; ``count``:
    the validation examples on which a decision rests.
    """

    epochs: int
    loss: float
    error: float
    train: float
    joint: float
    count: int

    @property
    def ratio(self) -> float:
        """The loss of training examples divided by that of validation examples."""
        return self.train / self.loss if self.loss > 0 else 0.0


@dataclass(frozen=True)
class _Option:
    """A way to go on: the network to ``epochs``, then ``others``; the loss that is forecast."""

    epochs: int
    others: int
    loss: float


class AutoPlanner:
    """Continues one network while that gains more than other networks would.

    L is the validation loss of the first network after e epochs, and r the ratio of its loss of
    training examples to L. The loss is the NLL, that of validation examples with one temperature
    fitted on the same; of a regression it is the squared error, in parts of the variance of the
    targets. The constants were measured with NLL. Forecasts:

    - of one network after e' > e epochs: each doubling takes off a part g of L, at first
      SLOPE (r - SATURATED) or 0, then DECAY of that of the doubling before; where an earlier
      descent was measured, the mean of this g and DECAY of what was gained since;
    - of m + 1 networks: their mean L, less D L (1 - (m + 1) ** -EXPONENT), with
      D = DIVERSITY - LESS r.

    After the first descent the network goes on: to the end of the budget, or twice as long where
    that, and others after it, is forecast to be lower by MARGIN, or where r <= SATURATED. After
    another one, others start where they are forecast to be lower than the network at the end of the
    budget would be if the last measured gain were two standard errors larger: few validation images
    have to show a lot. Where r <= MEMORISED the others start after the first descent, with a LONGER
    tail. With fewer than FEWEST_WRONG wrong predictions (of a regression, examples) validation
    decides nothing: the network goes on to the end of the budget. Of a descent to the end of the
    budget ``hold`` is at the base rate, or HELD if validation decided nothing and r <= SATURATED.
    The others get equal epochs, and training stops early when another one is forecast to gain less
    than LEAST_GAIN; D is then the mean of the above and of what the networks so far gained. The
    member of a network is its last average, or one before it that is better by two standard errors.

    Args:
        epochs: the budget.
        final: the part of the base rate to which each descent falls.
        average: the last part of each descent that is averaged.
        hold: the part of the descent to the end of the budget that stays at the base rate.
        given_weights: whether other networks start from the given weights again, and not from new
            initial ones.
        loss: what is compared, as the log names it.
    """

    members = "auto"
    store = "snapshots"

    def __init__(
        self,
        epochs: int,
        *,
        final: float,
        average: float,
        hold: float = 0.0,
        given_weights: bool = False,
        loss: PlanLoss = NLL_OF_PLANS,
    ) -> None:
        check_at_least(1, epochs=epochs)
        self.epochs = epochs
        self.final = final
        self.average = average
        self.hold = hold
        self.given_weights = given_weights
        self.loss = loss
        self._member = extended(_Change, {loss.val: Loss})
        whole = {loss.train: Loss, loss.count: Count, loss.joint: Loss}
        self._snapshot = extended(self._member, whole)

    def decide(self, records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """Return the record of the next stage, or None at the end; equal logs, equal decisions."""
        plans, points = self._logged(records)
        if not plans:
            return self._descent(0, max(1, round(self.epochs / FIRST_PART)), {})
        done = points[-1].epochs
        if done >= self.epochs:
            return None
        if plans[-1]["network"] == 1:
            return self._after_descent(points, done)
        return self._after_network(plans, points, done)

    def _after_descent(self, curve: list[_Point], done: int) -> dict[str, Any]:
        """Decide how the first network goes on, or how many others start."""
        options, memorised = self._options(curve, done)
        best = self._best(curve, options)
        forecasts = {f"forecast_{name}": option.loss for name, option in options.items()}
        facts = {self.loss.now: curve[-1].loss, **forecasts}
        if best.epochs > done:
            facts["forecast"] = _forecast(curve, best.epochs)
            if hold := self._hold(curve[-1], best):
                facts["hold"] = hold
            return self._descent(done, best.epochs - done, facts)
        length = (self.epochs - done) // best.others
        if memorised:
            facts["average"] = max(LONGER, self.average)
        members = [min(point.loss for point in curve), _forecast(curve, length)]
        reached = _ensemble(members, _diversity(curve[-1].ratio))
        return self._network(2, done, length, {**facts, "forecast": reached})

    def _hold(self, last: _Point, best: _Option) -> float:
        """Return which part of the next descent stays at the base rate."""
        if last.count < FEWEST_WRONG and last.ratio <= SATURATED:
            return max(HELD, self.hold)
        return self.hold if best.others == 0 else 0.0

    def _options(self, curve: list[_Point], done: int) -> tuple[dict[str, _Option], bool]:
        """Return the ways to go on, and whether the first network has its images by heart."""
        memorised = curve[0].ratio <= MEMORISED
        options = {"whole": _Option(self.epochs, 0, _forecast(curve, self.epochs))}
        if 2 * done < self.epochs and not memorised:
            options["longer"] = self._with_others(curve, 2 * done)
        if len(curve) > 1 or memorised:
            options["others"] = self._with_others(curve, done)
        return options, memorised

    def _best(self, curve: list[_Point], options: dict[str, _Option]) -> _Option:
        """Return what to do: the whole budget for one network unless something else is shown."""
        whole, last = options["whole"], curve[-1]
        others = [option for name, option in options.items() if name != "whole"]
        if not others or last.count < FEWEST_WRONG:
            return whole
        best = min(others, key=lambda option: option.loss)
        if len(curve) == 1:
            in_doubt = last.ratio <= SATURATED
            return best if in_doubt or best.loss < whole.loss - MARGIN else whole
        return best if best.loss < _forecast(curve, self.epochs, errors=_ERRORS) else whole

    def _with_others(self, curve: list[_Point], epochs: int) -> _Option:
        """Return the best of the network to ``epochs`` with 1, 2, ... others after it."""
        left, diversity = self.epochs - epochs, _diversity(curve[-1].ratio)
        own = min([_forecast(curve, epochs), *(point.loss for point in curve)])
        most = max(1, left // curve[0].epochs)  # shorter ones were not measured
        options = [
            _Option(epochs, m, _ensemble([own, *[_forecast(curve, left // m)] * m], diversity))
            for m in range(1, most + 1)
        ]
        return min(options, key=lambda option: option.loss)

    def _after_network(
        self, plans: list[dict[str, Any]], points: list[_Point], done: int
    ) -> dict[str, Any] | None:
        """Decide whether another network starts."""
        networks, length = plans[-1]["network"], plans[1 - plans[-1]["network"]]["epochs"]
        changes = [(point.loss, point.error) for point in points]
        members = [points[k].loss for k in _best_of_each(plans, changes)]
        last, reached = points[-1], points[-1].joint
        mean = sum(members) / networks
        gained = (1 - reached / mean) / (1 - _left_over(networks)) if mean > 0 else 0.0
        expected = _diversity(last.ratio)
        diversity = (expected + max(0.0, gained)) / 2
        gain = diversity * mean * (_left_over(networks) - _left_over(networks + 1))
        left = self.epochs - done
        if left < length or gain < LEAST_GAIN:
            return None
        if left < 2 * length:
            length = left
        facts = {self.loss.now: reached, "diversity": diversity, "forecast": reached - gain}
        if "average" in plans[-1]:
            facts["average"] = plans[-1]["average"]
        return self._network(networks + 1, done, length, facts)

    def _descent(self, first: int, epochs: int, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the record of a descent of the first network."""
        record = {"network": 1, "first_epoch": first, "epochs": epochs}
        return {"event": "plan", "stage": f"network-1-to-{first + epochs}", **record, **facts}

    def _network(
        self, network: int, first: int, epochs: int, facts: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the record of another network."""
        record = {"network": network, "first_epoch": first, "epochs": epochs}
        return {"event": "plan", "stage": f"network-{network}", **record, **facts}

    def stage(self, record: dict[str, Any]) -> Stage:
        """Return the stage of a record."""
        first, epochs = record["first_epoch"], record["epochs"]
        fresh = record["network"] - 1 if record["network"] > 1 or first == 0 else None
        return Stage(
            record["stage"],
            first,
            first + epochs,
            partial(linear_tail, epochs, self.final, hold=record.get("hold", 0.0)),
            store=self.store,
            keep="end",
            average=record.get("average", self.average),
            members=self.members,
            fresh=fresh,
        )

    def describe(self, record: dict[str, Any]) -> str:
        """Say what was decided, and why."""
        epochs, until = record["epochs"], record["first_epoch"] + record["epochs"]
        if record["network"] == 1:
            text = f"plan: train the network to epoch {until}"
        elif self.given_weights:
            text = f"plan: start from the given weights again, for {epochs} epochs"
        else:
            text = f"plan: start network {record['network']}, for {epochs} epochs"
        if "hold" in record:
            text += f", {record['hold']:.0%} of it at the full rate".replace("%", " %")
        if "average" in record:
            text += f", averaged over its last {record['average']:.0%}".replace("%", " %")
        if "forecast" in record:
            now = f"validation {self.loss.word} {record[self.loss.now]:.4f}"
            text += f"; {now} is forecast to be {record['forecast']:.4f}"
        ways = {
            "whole": "one network",
            "longer": "a longer first one and others",
            "others": "others now",
        }
        forecasts = [
            f"{record[f'forecast_{way}']:.4f} with {words}"
            for way, words in ways.items()
            if f"forecast_{way}" in record
        ]
        return f"{text} (at the end {', '.join(forecasts)})" if forecasts else text

    def kept(self, records: Sequence[dict[str, Any]]) -> list[int]:
        """Return the positions of the members: of each network the last average.

        One before it is the member if its validation loss is lower by two standard errors.
        """
        plans = [r for r in records if r["event"] == "plan"]
        kept = [checked(r, self._member, _DAMAGED) for r in records if r["event"] == "snapshot"]
        return _best_of_each(plans, [(s[self.loss.val], s["val_change_error"]) for s in kept])

    def _logged(
        self, records: Sequence[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], list[_Point]]:
        """Return the plans in a log, and the snapshot at the end of each.

        Raises:
            UserError: they do not follow from each other.
        """
        plans = [r for r in records if r["event"] == "plan"]
        kept = [checked(r, self._snapshot, _DAMAGED) for r in records if r["event"] == "snapshot"]
        network, ends = 1, [0]
        for plan in plans:
            if plan["first_epoch"] != ends[-1] or plan["network"] not in (network, network + 1):
                raise UserError(f"{_DAMAGED}: {plan['stage']} does not follow the plan; {AGAIN}")
            network = plan["network"]
            ends.append(ends[-1] + plan["epochs"])
        if len(plans) != len(kept):
            found = f"{len(plans)} plans and {len(kept)} snapshots"
            raise UserError(f"{_DAMAGED}: it has {found}; {AGAIN}")
        own = self.loss
        keys = (own.val, "val_change_error", own.train, own.joint, own.count)
        points = [
            _Point(end, *(snapshot[key] for key in keys))
            for end, snapshot in zip(ends[1:], kept, strict=True)
        ]
        return plans, points


def _best_of_each(
    plans: Sequence[dict[str, Any]], changes: Sequence[tuple[float, float]]
) -> list[int]:
    """Return the positions of the members, as :meth:`AutoPlanner.kept`.

    ``changes``: of each snapshot the loss, and the standard error of its change.
    """
    members: dict[int, int] = {}
    for position, (plan, (loss, error)) in enumerate(zip(plans, changes, strict=False)):
        network = plan["network"]
        before = changes[members[network]][0] if network in members else loss
        if loss - before <= _ERRORS * error:
            members[network] = position
    return list(members.values())


def _left_over(networks: int) -> float:
    """Return the part of the gain of infinitely many networks that so many still lack."""
    return math.pow(networks, -EXPONENT)


def _diversity(ratio: float) -> float:
    """Return the part of the loss that infinitely many networks with this r would take off."""
    return max(0.0, DIVERSITY - LESS * ratio)


def _ensemble(losses: Sequence[float], diversity: float) -> float:
    """Return the forecast loss of an ensemble of networks with these losses."""
    return sum(losses) / len(losses) * (1 - diversity * (1 - _left_over(len(losses))))


def _forecast(curve: Sequence[_Point], epochs: int, errors: float = 0.0) -> float:
    """Return the forecast loss of one network after so many epochs.

    It is linear in the logarithm of the epochs between measured points. With ``errors``, the last
    measured gain is taken to be so many standard errors larger.
    """
    last = curve[-1]
    for low, high in itertools.pairwise(curve):
        if low.epochs <= epochs <= high.epochs:
            part = math.log(epochs / low.epochs) / math.log(high.epochs / low.epochs)
            return low.loss + part * (high.loss - low.loss)
    doublings = math.log2(epochs / last.epochs)
    return last.loss * (1 - _gain(curve, errors) * (1 - math.pow(DECAY, doublings)) / (1 - DECAY))


def _gain(curve: Sequence[_Point], errors: float) -> float:
    """Return the part of the last loss that the next doubling of the epochs takes off."""
    last = curve[-1]
    by_ratio = SLOPE * max(0.0, last.ratio - SATURATED)
    if len(curve) == 1:
        return by_ratio
    before = curve[-2]
    doublings = math.log2(last.epochs / before.epochs)
    part = (last.loss - errors * last.error) / before.loss if before.loss > 0 else 1.0
    measured = (1 - part) / doublings
    if errors:
        return max(by_ratio, DECAY * measured)
    return (by_ratio + max(0.0, DECAY * measured)) / 2
