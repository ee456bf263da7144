"""Options of the command that compares methods."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, fields
from typing import ClassVar, TypeVar

from fge.config.base import HOW_TO_RUN, whole, without_views
from fge.config.invocation import is_factory
from fge.config.learning import RunConfig
from fge.config.training import (
    BASELINE_PARTS,
    METHOD_NAMES,
    CycleConfig,
    MethodConfig,
    PretrainedConfig,
)
from fge.errors import UserError, unknown

SINGLE, DEEP_ENSEMBLE = "single", "deep-ensemble"
AVERAGED, DEEP_ENSEMBLE_AVERAGED = "average", "deep-ensemble-averaged"
FGE, CURVE_ENSEMBLE = "fge", "curve-ensemble"
POOLS = (DEEP_ENSEMBLE, DEEP_ENSEMBLE_AVERAGED)
"""Ensembles of k whole networks at k budgets: conventional ones, and averages of their tails."""
ORDER = (
    *(SINGLE, AVERAGED, "ema", "swa", "fge-paper", FGE, "fge+refit", "fold"),
    *("sse", "csgld", "star", "split", "auto", *POOLS, CURVE_ENSEMBLE, "curve-ensemble-2B"),
)
"""Methods in their order in tables; other methods follow in the order of the cells."""


C = TypeVar("C", bound=RunConfig)

OF_AVERAGED_RUN = (FGE, "fold", "fge+refit")
"""Methods that are lines of one ``fge`` run, whose members may be averages."""
OF_PAPER_RUN = ("fge-paper", "swa")
"""Methods that are lines of one ``fge`` run as published, which trains the single network too."""
OF_SEVERAL_RUNS = (*POOLS, CURVE_ENSEMBLE, "curve-ensemble-2B")
COMPARED = tuple(dict.fromkeys((*METHOD_NAMES, *OF_AVERAGED_RUN, *OF_SEVERAL_RUNS)))
"""Methods that can be compared, beside the user's own."""
WITHOUT_VIEWS = ("fge+refit", "curve-ensemble", "curve-ensemble-2B")
"""Methods that cannot be compared with test-time augmentation."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(PretrainedConfig, MethodConfig):
    """Compare methods at equal budgets over several seeds. The same command continues."""

    group: ClassVar[str] = "comparison"
    methods: tuple[str, ...] = field(
        default=(
            *(SINGLE, AVERAGED, FGE, "fge-paper", "swa", "sse", "split", "auto"),
            *(DEEP_ENSEMBLE, CURVE_ENSEMBLE),
        ),
        metadata=HOW_TO_RUN,
    )
    """Any of single, average, ema, swa, fge-paper, fge, fge+refit, fold, sse, csgld, star, split,
    auto, deep-ensemble, deep-ensemble-averaged, curve-ensemble, curve-ensemble-2B (two networks
    with one budget each, and a fit), and your own as package.module:method. single at one budget is
    always measured. With --tta also a method with test-time augmentation, as single+tta."""
    seeds: int = field(default=5, metadata=whole(None, 100, **HOW_TO_RUN))
    """Number of seeds, from --seed on. Intervals need 2 or more."""
    budgets: tuple[int, ...] = field(default=(1,), metadata=whole(1, 100, **HOW_TO_RUN))
    """Budgets in multiples of --epochs. single, average, auto and curve-ensemble train longer;
    deep-ensemble and the other methods pool that many runs."""
    jobs: int = field(default=1, metadata=whole(1, 1024, **HOW_TO_RUN))
    """Number of runs at a time. They share the CPU threads, and times are not reported. Runs that
    are added to a folder later have as many threads as its first ones."""
    ood: tuple[str, ...] = ("noise", "digits")
    """Out-of-distribution (OOD) images to tell from the test images by the uncertainty of the
    predictions: noise, digits, or the name, file or folder of other data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 2:
            raise UserError(f"seeds must be >= 2, because an interval needs 2, got {self.seeds}")
        if not self.methods:
            raise UserError("name at least one method in --methods")
        if not self.budgets:
            raise UserError("budgets must be whole numbers >= 1, got none")
        if max(self.budgets) > self.seeds:
            raise UserError(
                f"at a budget of {max(self.budgets)} a method pools the runs of as many seeds; "
                f"use --seeds {max(self.budgets)} or more, got {self.seeds}"
            )
        for method in self.methods:
            self._check_views(method)
            self._check_compared(without_views(method))

    def _check_views(self, method: str) -> None:
        plain = without_views(method)
        if plain != method and plain in WITHOUT_VIEWS:
            raise UserError(
                f"{plain} cannot have views of the test images; drop {method} from --methods"
            )
        if plain != method and self.tta is None:
            raise UserError(
                f"{method} needs views of the test images; add --tta 2 or more, or drop it from "
                "--methods"
            )

    def _check_compared(self, method: str) -> None:
        if method not in COMPARED and not is_factory(method):
            raise unknown("method", method, COMPARED)
        needed = 1
        if method == "fold" and self.val_fraction == 0:
            raise UserError(
                f"{method} needs validation data: set --val-fraction above 0, or drop "
                f"{method} from --methods"
            )
        if method == "curve-ensemble-2B" and self.freeze is not None and self.pretrained is None:
            raise UserError(
                f"{method} connects single networks, whose frozen parameters differ without "
                f"--pretrained, got freeze {self.freeze!r}; drop it from "
                "--methods"
            )
        if method in (*OF_AVERAGED_RUN, *OF_PAPER_RUN):
            average = 0.0 if method in OF_PAPER_RUN else self.average
            needed = _epochs_of_two_snapshots(self, average, fitted=method == "fge+refit")
        elif method == "deep-ensemble":
            needed = self.split
        elif method == "curve-ensemble":
            needed = BASELINE_PARTS
        else:
            self.check_method("fge" if method in OF_SEVERAL_RUNS else method)
        if self.epochs < needed:
            raise UserError(
                f"{method} needs epochs >= {needed}, got {self.epochs}; or drop it from --methods"
            )

    @property
    def all_seeds(self) -> range:
        """The seeds."""
        return range(self.seed, self.seed + self.seeds)


CURVE_END_SHARE = 0.4
"""The part of a budget that each network of a curve ensemble takes; the fit takes the rest."""
CURVE_POINTS = 5
"""Points measured along a curve that is compared: no more than its ensemble has members."""


def options_for(kind: type[C], config: RunConfig, **changed: object) -> C:
    """Return options of another command with the values that a comparison or run shares with it."""
    names = {f.name for f in fields(config)}
    shared = {f.name: getattr(config, f.name) for f in fields(kind) if f.name in names}
    return kind(**{**shared, **changed})


def _epochs_of_two_snapshots(
    config: PretrainedConfig, average: float | None, *, fitted: bool
) -> int:
    """Return the smallest budget, from the given one on, in which FGE keeps two snapshots.

    With ``fitted``, the budget also covers a curve between them, which takes half a cycle.
    """
    start = 0 if config.pretrained is not None else config.start_epoch
    cycle = config.cycle_epochs
    for epochs in itertools.count(config.epochs):
        try:
            cycles = CycleConfig(
                epochs=epochs, start_epoch=start, cycle_epochs=cycle, average=average
            )
        except UserError:  # not even one cycle fits
            continue
        halves = 4 if fitted else 3
        if cycles.first_cycle_epoch + halves * cycles.cycle_length // 2 <= epochs:
            return epochs
    raise AssertionError("unreachable")
