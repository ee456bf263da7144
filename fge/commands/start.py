"""What a training starts from: initial or given weights, some of them frozen, rates per group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from fge.commands.build import Setup
from fge.config import StartOptions
from fge.errors import UserError
from fge.networks import (
    fitting_backbone,
    freeze,
    frozen_tensors,
    input_statistics,
    library_weights,
    read_weights,
    unwrap,
)
from fge.observer import counted
from fge.parallel import default_ranks
from fge.report import ConsoleObserver, MethodResult, ReportBuilder
from fge.train import Recipe, say_groups

_NEAR = 0.1
"""How far mean and standard deviation, from 0 to 1, may be from those that weights know."""
GIVEN_COST = (
    "The run started from given weights (--pretrained): the epochs of their training are unknown, "
    "and the costs do not count them."
)


@dataclass(frozen=True)
class GivenWeights:
    """The section of a run that started from given weights."""

    results: Sequence[MethodResult] = ()

    def add_to(self, report: ReportBuilder) -> None:
        """Say that the cost of the given weights is unknown."""
        report.facts(cost_note=GIVEN_COST)
        report.say(GIVEN_COST)


@dataclass(frozen=True)
class Start:
    """The model with the weights that it starts from, and those among them that were given.

    ``frozen``: what is not trained, by name, as it is at the start.
    """

    model: nn.Module
    given: dict[str, Tensor] | None = None
    frozen: Mapping[str, Tensor] = field(default_factory=dict)

    def another(self, setup: Setup, seed: int) -> nn.Module:
        """Return a model with the initial weights of another seed, where none are given or frozen.

        Frozen parameters are those of the first model, so that no network has others.
        """
        model = setup.new_model(seed)
        if known := {**(self.given or {}), **self.frozen}:
            unwrap(model).load_state_dict(known, strict=False)
        return model


def starting_model(config: StartOptions, setup: Setup, recipe: Recipe) -> Start:
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
            notes += _other_inputs(config.model, setup)
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
    kept = given or {}  # which need not be copied
    frozen = {n: kept[n] if n in kept else t.clone() for n, t in frozen_tensors(model).items()}
    return Start(model, given, frozen)


def _other_inputs(model: str, setup: Setup) -> list[str]:
    """Say it where the channels get other statistics than those that the weights know."""
    dataset = setup.dataset
    try:
        known = input_statistics(model)
    except UserError:  # the library does not say
        return []
    (mean, std), found = known, (dataset.mean, dataset.std)
    pairs = [(sum(a) / len(a), sum(b) / len(b) / 255) for a, b in zip(known, found, strict=True)]
    if all(abs(one - other) <= _NEAR for one, other in pairs):
        return []
    return [
        f"the weights of {model} were trained on channels of mean {_numbers(mean)} and standard "
        f"deviation {_numbers(std)}; --normalize model gives these"
    ]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in dict.fromkeys(values))


def _of_library(setup: Setup) -> dict[str, Tensor]:
    channels, size = setup.dataset.in_channels, setup.dataset.image_size
    return library_weights(setup.model, in_channels=channels, image_size=size)
