"""Checks of options, with errors that name the option and its value."""

from __future__ import annotations

import math

from fge.errors import UserError


def check_at_least(bound: int, **values: int | None) -> None:
    """Check that options, where given, are no less than ``bound``.

    Raises:
        UserError: naming the option and its value.
    """
    for name, value in values.items():
        if value is not None and value < bound:
            raise UserError(f"{name} must be >= {bound}, got {value}")


def check_not_negative(**values: float) -> None:
    """Check that options are finite and not below 0.

    Raises:
        UserError: naming the option and its value.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{name} must be finite and >= 0, got {value}")


def check_positive(**values: float | None) -> None:
    """Check that options, where given, are finite and above 0.

    Raises:
        UserError: naming the option and its value.
    """
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{name} must be finite and above 0, got {value}")


def check_learning_rates(max_lr: float, min_lr: float) -> None:
    """Check the two ends of a cycle.

    Raises:
        UserError: one is negative or not finite, or they are in the wrong order.
    """
    check_not_negative(max_lr=max_lr, min_lr=min_lr)
    if max_lr == 0:
        raise UserError("max_lr must be above 0, got 0")
    if min_lr > max_lr:
        raise UserError(f"min_lr must not exceed max_lr, got min_lr {min_lr} > max_lr {max_lr}")
