"""What a training starts from: initial or given weights, some of them frozen, rates per group."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fge.commands.build import Setup
from fge.config import PretrainedConfig
from fge.networks import fitting_backbone, freeze, library_weights, read_weights, unwrap
from fge.observer import counted
from fge.parallel import default_ranks
from fge.report import ConsoleObserver
from fge.train import Recipe, say_groups


@dataclass(frozen=True)
class Start:
    """The model with the weights that it starts from, and those among them that were given."""

    model: nn.Module
    given: dict[str, Tensor] | None = None


def starting_model(config: PretrainedConfig, setup: Setup, recipe: Recipe) -> Start:
    """Build the model with the weights that the seed, or ``pretrained``, gives it.

    A line says which head was left out, what is frozen, and which rates the groups have.

    Raises:
        UserError: a model or weights that do not fit the data, or options that do not fit the
            model.
    """
    model, given, notes = setup.new_model(), None, list[str]()
    if config.pretrained is not None:
        if config.pretrained == "library":
            state, source = _of_library(setup), f"the weights of {config.model}"
        else:
            state, source = read_weights(config.pretrained), str(config.pretrained)
        given, left_out = fitting_backbone(model, state, source)
        unwrap(model).load_state_dict(given, strict=False)
        if left_out:
            classes = counted(len(setup.dataset.classes), "class", "classes")
            if not setup.task.of_classes:
                classes = counted(setup.task.outputs, "output")
            notes.append(f"{source}: the head ({', '.join(left_out)}) is new, for {classes}")
    if config.freeze is not None:
        notes.append(freeze(model, config.freeze))
    if recipe.backbone_factor != 1:
        notes.append(say_groups(model, recipe))
    for note in notes if default_ranks().leads else ():
        ConsoleObserver().note(note)
    return Start(model, given)


def _of_library(setup: Setup) -> dict[str, Tensor]:
    channels, size = setup.dataset.in_channels, setup.dataset.image_size
    return library_weights(setup.model, in_channels=channels, image_size=size)
