"""The figure of a training for its report: learning rate, validation errors and distances."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from fge.report.drawn import Figures
from fge.report.figures import training_curves
from fge.report.interactive_runs import training_plot
from fge.report.plots import training_figure
from fge.runs.staged import StagedTraining
from fge.train.recipes import Recipe, make_optimizer

CAPTION = "Learning rate, validation error and distance over epochs"


def rate_holder(recipe: Recipe) -> Optimizer:
    """Return an optimizer whose rates schedules may set: not those of the one that trained."""
    return make_optimizer(recipe, [nn.Parameter(torch.zeros(1))], examples=1)


def add_training(drawn: Figures, training: StagedTraining, recipe: Recipe) -> None:
    """Draw how a training went.

    Args:
        drawn: gets the figure ``training.png``.
        training: finished.
        recipe: of it.
    """
    curves = training_curves(training.stages, rate_holder(recipe), training.folder.records())
    drawn.add("training.png", training_figure(curves), CAPTION, training_plot(curves))
