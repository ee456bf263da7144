"""Parameter groups with learning rates of their own: a classifier's head, and the rest of it."""

from __future__ import annotations

from typing import Any

from torch import nn

from fge.errors import UserError
from fge.networks import find_head, unwrap
from fge.train.recipes import Recipe

FACTOR = "rate_factor"
"""The entry of a parameter group by which the rates of schedules are multiplied."""


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[Any]:
    """Return a model's parameters for :func:`fge.train.make_optimizer`, in groups if rates differ.

    The head comes first, at the recipe's rate; the rest has this rate times ``backbone_factor``.

    Raises:
        UserError: the rates differ, and all that is trained belongs to the head, or nothing does.
    """
    if recipe.backbone_factor == 1:
        return list(model.parameters())
    head, rest = _split(model)
    slower = {FACTOR: recipe.backbone_factor, "lr": recipe.lr * recipe.backbone_factor}
    return [{"params": head, FACTOR: 1.0}, {"params": rest, **slower}]


def say_groups(model: nn.Module, recipe: Recipe) -> str:
    """Return a sentence about the groups of :func:`parameter_groups` and their rates."""
    rates = recipe.lr, recipe.lr * recipe.backbone_factor
    names, (_, rest) = find_head(model), _split(model)
    return (
        f"learning rates: {rates[0]:g} for the head ({', '.join(names)}), {rates[1]:g} for the "
        f"other {len(rest)} parameters"
    )


def _split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    names = find_head(model)
    parameters = dict(unwrap(model).named_parameters())
    head = [parameters[name] for name in names]
    rest = [parameter for name, parameter in parameters.items() if name not in names]
    for part, what in ((rest, "but the head"), (head, "in the head")):
        if not any(parameter.requires_grad for parameter in part):
            raise UserError(
                f"--backbone-lr sets other rates but for the head ({', '.join(names)}), and "
                f"nothing {what} is trained; leave it out"
            )
    return head, rest
