"""Options of the methods that train one network; see ``fge.config.training`` for those of FGE."""

from __future__ import annotations

from dataclasses import dataclass

from fge.config.base import is_factory
from fge.config.training import CycleConfig
from fge.errors import UserError, check_at_least, check_not_negative, check_positive, unknown

METHOD_NAMES = ("single", "fge", "sse", "swa", "csgld", "ema")
"""Methods that train one network, described in ``fge.methods``."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig(CycleConfig):
    """Options of all methods together."""

    sse_cycles: int = 5
    """Cosine cycles of sse in the budget: 200 epochs in 5 (arXiv 1704.00109)."""
    csgld_cycles: int = 4
    """Cycles of csgld in the budget: 200 epochs in 4 (arXiv 1902.03932)."""
    csgld_samples: int = 3
    """Snapshots of csgld per cycle, at the ends of its last epochs (arXiv 1902.03932)."""
    csgld_lr: float = 0.5
    """Initial learning rate of csgld, without momentum (arXiv 1902.03932)."""
    csgld_temperature: float | None = None
    """Temperature of csgld; 1 / training images by default (reference code of arXiv 1902.03932)."""
    csgld_noise_scale: float = 1.0
    """Factor on the standard deviation of csgld's noise."""
    ema_decay: float = 0.999
    """Decay per step of ema's average of the weights (PyTorch's default)."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: naming the option, its value and what it may be.
        """
        super().__post_init__()
        check_at_least(1, sse_cycles=self.sse_cycles, csgld_cycles=self.csgld_cycles)
        check_at_least(1, csgld_samples=self.csgld_samples)
        check_positive(csgld_lr=self.csgld_lr)
        check_not_negative(csgld_noise_scale=self.csgld_noise_scale)
        if self.csgld_temperature is not None:
            check_not_negative(csgld_temperature=self.csgld_temperature)
        if not 0 < self.ema_decay < 1:
            raise UserError(f"ema_decay must be in (0, 1), got {self.ema_decay}")

    def check_method(self, method: str) -> None:
        """Check that a method exists and that the budget is enough for its cycles.

        Raises:
            UserError: it does not, or is not; it names the smallest budget that is.
        """
        if method not in METHOD_NAMES and not is_factory(method):
            raise unknown("method", method, METHOD_NAMES)
        needed, what = 1, ""
        if method == "sse":
            needed, what = self.sse_cycles, f"{self.sse_cycles} cycles of 1 epoch"
        if method == "csgld":
            needed = self.csgld_cycles * self.csgld_samples
            what = f"{self.csgld_cycles} cycles of {self.csgld_samples} samples, one an epoch"
        if self.epochs < needed:
            raise UserError(
                f"{method} needs epochs >= {needed} ({what}), got {self.epochs}; "
                f"or ask for fewer cycles with --{method}-cycles"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(MethodConfig):
    """Train one network by a method (single, fge, sse, swa, csgld, ema or your own)."""

    method: str = "single"
    """single, fge, sse, swa, csgld, ema, or your own as package.module:method,
    an fge.methods.Method."""

    def __post_init__(self) -> None:
        """Check the method as well.

        Raises:
            UserError: naming the option, its value and what it may be.
        """
        super().__post_init__()
        self.check_method(self.method)
