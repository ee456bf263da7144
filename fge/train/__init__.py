"""Schedules, recipes, methods, one learner and one loop; it writes no files."""

from fge.train.learner import EmaLearner, Learner, Speed
from fge.train.loop import Batches, EpochEnd, diverged, train
from fge.train.methods import (
    METHODS,
    Method,
    csgld_recipe,
    csgld_stages,
    ema_stages,
    fge_stages,
    find_method,
    single_stages,
    sse_stages,
)
from fge.train.recipes import (
    RECIPES,
    MakeSchedule,
    Recipe,
    Stage,
    batch_size,
    endpoint_recipe,
    make_optimizer,
    recipe,
    recipe_stages,
    scale_initialisation,
)
from fge.train.schedules import (
    ClosedFormLR,
    CosineRestartsLR,
    CyclicalSGLDLR,
    EndpointLR,
    LinearDecayLR,
    StepsLR,
    TriangularLR,
)
from fge.train.sgld import SGLD
from fge.train.speed import check_speed, choose_speed, is_open

__all__ = [
    "METHODS",
    "RECIPES",
    "SGLD",
    "Batches",
    "ClosedFormLR",
    "CosineRestartsLR",
    "CyclicalSGLDLR",
    "EmaLearner",
    "EndpointLR",
    "EpochEnd",
    "Learner",
    "LinearDecayLR",
    "MakeSchedule",
    "Method",
    "Recipe",
    "Speed",
    "Stage",
    "StepsLR",
    "TriangularLR",
    "batch_size",
    "check_speed",
    "choose_speed",
    "csgld_recipe",
    "csgld_stages",
    "diverged",
    "ema_stages",
    "endpoint_recipe",
    "fge_stages",
    "find_method",
    "is_open",
    "make_optimizer",
    "recipe",
    "recipe_stages",
    "scale_initialisation",
    "single_stages",
    "sse_stages",
    "train",
]
