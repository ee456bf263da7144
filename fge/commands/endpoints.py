"""The networks that a curve connects: trained by a recipe, or read from a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fge.commands.build import Setup
from fge.commands.resumed import run_whole
from fge.commands.start import Start
from fge.commands.training import make_training
from fge.ensemble import MemberPredictions
from fge.errors import DivergenceError, UserError
from fge.files import sha256
from fge.networks import canonical_state, encode_weights, flatten, load_weights, read_weights
from fge.observer import Observer
from fge.report import plain_name
from fge.runs import RunFolder
from fge.seeds import derive_seed
from fge.train import Learner, Recipe, Speed, recipe_stages, scale_initialisation


@dataclass(frozen=True)
class Network:
    """A trained network: its name, state dict and cost (0 if unknown).

    The cost is the training epochs, and the images passed forward for validation and for the
    batch-norm statistics of an average.
    """

    name: str
    state: Mapping[str, Tensor]
    train_epochs: int
    validation_images: int = 0
    refresh_images: int = 0

    def vector(self, model: nn.Module) -> Tensor:
        """Return the weights (P,), canonical, on the model's device."""
        return flatten(self.state, model)


def train_network(
    setup: Setup,
    recipe: Recipe,
    *,
    epochs: int,
    name: str,
    position: int,
    folder: Path,
    observer: Observer,
    start: Start | None = None,
) -> Network:
    """Train a network by a recipe, resume its training, or read it if it is already trained.

    Args:
        setup: of the run.
        recipe: how to train.
        epochs: of the training.
        name: of the network, and of its folder in ``folder``.
        position: of the network in the run, from 0. Each position has its own seed; that of
            position 0 is the run's.
        folder: of the networks.
        observer: called after each epoch.
        start: what the network starts from besides the initial weights of its seed.

    Raises:
        DivergenceError: naming the network.
    """
    seed = setup.seed if position == 0 else derive_seed(setup.seed, "network", position)
    model = start.another(setup, seed) if start else setup.new_model(seed)
    scale_initialisation(model, recipe)
    run = RunFolder(folder / name)
    run.path.mkdir(parents=True, exist_ok=True)
    training = make_training(
        setup,
        model.to(setup.device),
        run,
        observer,
        recipe=recipe,
        stages=recipe_stages(recipe, epochs),
        seed=seed,
        given=start.given if start else None,
    )
    store = training.stores["network"]
    if len(store) == 0:
        observer.note(f"network {name}: {recipe.description}")
    try:
        run_whole(training)
    except DivergenceError as error:
        raise DivergenceError(f"network {name}: {error}") from None
    cost = training.snapshot_costs("network")[0]
    return Network(name, store[0], epochs, cost["validation_images"], cost["refresh_images"])


def named_files(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return weights files with names for their networks: their number and stem."""
    return [(path, f"{i}-{plain_name(path.stem)}") for i, path in enumerate(paths, start=1)]


def read_network(path: Path, name: str, model: nn.Module) -> Network:
    """Return the network in a weights file that fits the model."""
    state = read_weights(path)
    load_weights(model, state, path)
    return Network(name, state, 0)


def read_networks(
    files: Sequence[tuple[Path, str]], model: nn.Module, pairs: Iterable[tuple[int, int]]
) -> list[Network]:
    """Return the networks in weights files, after checking that each pair (of positions) differs.

    The model's weights are overwritten.
    """
    networks = [read_network(path, name, model) for path, name in files]
    for first, second in pairs:
        if torch.equal(networks[first].vector(model), networks[second].vector(model)):
            raise UserError(
                f"{files[first][0]} and {files[second][0]} hold the same weights; "
                "give two networks that differ"
            )
    return networks


def predict_network(
    network: Network, speed: Speed, model: nn.Module, predictions: MemberPredictions
) -> None:
    """Store a trained network's predictions for test and OOD images, unless they are stored."""
    key = sha256(encode_weights(canonical_state(network.state)))
    if predictions.complete(network.name, key):
        return
    load_weights(model, network.state, network.name)
    optimizer = torch.optim.SGD(model.parameters())
    # One pass does not pay for compilation.
    task = predictions.test.task
    learner = Learner(model, optimizer, replace(speed, compile=False), task=task)
    try:
        predictions.predict(network.name, key, learner.predict)
    except DivergenceError as error:
        raise DivergenceError(f"network {network.name}: {error}") from None
