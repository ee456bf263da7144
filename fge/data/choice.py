"""Which images of a data set train, validate and test: decided by labels, before any are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fge.config import OF_CLASSES
from fge.data.raw import Part, RawData
from fge.data.targets import strata
from fge.errors import UserError
from fge.seeds import derive_seed

SPLIT_SEED = 0
"""The split does not depend on a run's seed, so that networks with different seeds can be compared
and ensembled: none has trained on another's validation images."""
TEST_FRACTION = 0.2
"""Of the training images, which become the test images of data that have none."""

Order = NDArray[np.int64]


@dataclass(frozen=True)
class Chosen:
    """The images (n,) of a part that are used, in an order; ``origin`` ends "20 images ..."."""

    part: Part
    order: Order
    origin: str

    @property
    def labels(self) -> NDArray[Any]:
        """The labels (n,) of the images."""
        return self.part.labels[self.order]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.order)

    def first(self, count: int) -> Chosen:
        """Return the first ``count`` images, or all if there are fewer."""
        return replace(self, order=self.order[:count])


@dataclass(frozen=True)
class Choice:
    """The images of each split."""

    train: Chosen
    val: Chosen
    test: Chosen


def choose(
    raw: RawData,
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    val_fraction: float = 0.0,
) -> Choice:
    """Return which images train, validate and test; see :func:`fge.data.load_dataset`.

    Raises:
        UserError: a size exceeds the data, or there would be no validation image.
    """
    pool = np.arange(len(raw.train))
    if raw.test is not None:
        test = Chosen(raw.test, np.arange(len(raw.test)), raw.test.origin)
    else:
        # What is left to train on must not depend on how many of these are used.
        groups = strata(raw.train.labels)
        shuffled = balanced_order(groups, derive_seed(SPLIT_SEED, "test"))
        tested = np.arange(len(pool)) < max(1, round(TEST_FRACTION * len(pool)))
        if raw.task in OF_CLASSES:
            tested = _each_class(groups[shuffled], tested)
        pool = np.sort(shuffled[~tested])
        origin = f"{_of_training(TEST_FRACTION)}, as there is no {raw.missing}"
        test = Chosen(raw.train, np.sort(shuffled[tested]), origin)
    test = _balanced(test, "test_size", test_size)
    train = Chosen(raw.train, pool, raw.train.origin)
    if raw.val is None:
        whole = _balanced(train, "train_size", train_size)
        train, val = _held_out(whole, val_fraction, classes=raw.task in OF_CLASSES)
    elif val_fraction == 0:
        val = Chosen(raw.train, pool[:0], f"none (val_fraction 0), those {raw.val.origin} neither")
        train = _balanced(train, "train_size", train_size)
    else:
        own = Chosen(raw.val, np.arange(len(raw.val)), raw.val.origin)
        train, val = _both(train, own, train_size)
    return Choice(train, val, test)


def _each_class(labels: NDArray[np.int64], tested: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which images test: in addition the first of each class of two or more without any.

    The only image of a class does not test, so that it trains, unless all are such images.
    """
    classes, first, counts = np.unique(labels, return_index=True, return_counts=True)
    without = ~np.isin(classes, labels[tested]) & (counts > 1)
    tested = tested.copy()
    tested[first[without]] = True
    several = tested.copy()
    several[first[counts == 1]] = False
    return several if several.any() else tested


def balanced_order(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return a random order of examples whose every prefix has about the class balance of all."""
    rng = np.random.default_rng(seed)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ranks = rng.permutation(len(members))
        position[members] = (ranks + rng.random(len(members))) / len(members)
    return np.argsort(position, kind="stable")


def _balanced(chosen: Chosen, option: str, size: int | None) -> Chosen:
    """Return images in balanced order, the first ``size`` of them."""
    _check_size(option, size, len(chosen))
    order = balanced_order(strata(chosen.labels), derive_seed(SPLIT_SEED, option))
    return replace(chosen, order=chosen.order[order[:size]])


def _check_size(option: str, size: int | None, count: int) -> None:
    if size is not None and size > count:
        raise UserError(f"{option} {size} is more than the {count} available images")


def _held_out(train: Chosen, fraction: float, *, classes: bool) -> tuple[Chosen, Chosen]:
    """Return training images without a fraction, and that fraction for validation.

    Of ``classes`` one whose images would all validate keeps the last of them to train on.
    """
    held = np.arange(len(train)) < round(fraction * len(train))
    if classes and not held.all():
        labels = train.labels
        for label in np.setdiff1d(labels[held], labels[~held]):
            held[np.flatnonzero(labels == label)[-1]] = False
    if fraction > 0 and not held.any():
        why, remedy = "", "raise it"
        if round(fraction * len(train)) > 0:
            why, remedy = ", as each is the only one of its class left to train on", "add images"
        raise UserError(
            f"val_fraction {fraction} of {len(train)} images gives no validation image{why}; "
            f"{remedy}, or set it to 0 for no validation"
        )
    origin = _of_training(fraction) if held.any() else "none"
    val = replace(train, order=train.order[held], origin=origin)
    return replace(train, order=train.order[~held]), val


def _of_training(fraction: float) -> str:
    return f"held out of the training images ({fraction:g} of them)"


def _both(train: Chosen, val: Chosen, size: int | None) -> tuple[Chosen, Chosen]:
    """Return ``size`` images of training and validation in their proportion, or all of both."""
    total = len(train) + len(val)
    _check_size("train_size", size, total)
    share = None if size is None else max(1, round(size * len(val) / total))
    rest = None if size is None or share is None else size - share
    return _balanced(train, "train_size", rest), _balanced(val, "val_size", share)
