"""Networks that a curve connects: trained by a recipe, read from files, predicted once."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_tiny_npz
from safetensors.torch import load_file, save_file
from torch import nn

from fge.commands.build import (
    Setup,
    settle_machine,
    settle_options,
)
from fge.commands.endpoints import (
    Network,
    predict_network,
    read_network,
    read_networks,
    train_network,
)
from fge.commands.loading import load_data
from fge.config import RunConfig
from fge.errors import DivergenceError, UserError
from fge.observer import Observer
from fge.runs import RunFolder
from fge.seeds import derive_seed
from fge.train import Learner, endpoint_recipe, recipe

CONFIG = RunConfig(
    epochs=1,
    batch_size=32,
    lr=0.05,
    device="cpu",
    threads=1,
    channels_last="off",
    compile="off",
    amp="off",
)


class Heard(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    data = write_tiny_npz(tmp_path_factory.mktemp("data") / "tiny.npz")
    config = settle_machine(replace(CONFIG, data=str(data)))
    dataset = load_data(config)
    return Setup.of(settle_options(config, dataset), dataset)


def trained(
    prepared: Setup, folder: Path, name: str = "n", position: int = 0
) -> tuple[Network, Heard]:
    heard = Heard()
    network = train_network(
        prepared,
        endpoint_recipe(CONFIG),
        epochs=1,
        name=name,
        position=position,
        folder=folder,
        observer=heard,
    )
    return network, heard


def test_networks_have_seeds_by_position_and_are_trained_once(
    prepared: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, heard = trained(prepared, tmp_path, "one", 0)
    other, _ = trained(prepared, tmp_path, "two", 1)
    again, _ = trained(prepared, tmp_path, "same", 1)
    assert (first.name, first.train_epochs) == ("one", 1)
    assert heard.notes == ["network one: this package's conventional training"]
    assert any(not torch.equal(value, other.state[name]) for name, value in first.state.items())
    assert all(torch.equal(value, again.state[name]) for name, value in other.state.items())
    stored = load_file(tmp_path / "one" / "network" / "0001.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in first.state.items())
    monkeypatch.setattr(Learner, "step", lambda *_: pytest.fail("trained again"))
    kept, heard = trained(prepared, tmp_path, "one", 0)
    assert heard.notes == []
    assert all(torch.equal(value, kept.state[name]) for name, value in first.state.items())


def test_the_first_network_is_that_of_the_run_s_seed(
    prepared: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []
    build = Setup.new_model

    def seen(self: Setup, seed: int | None = None) -> nn.Module:
        seeds.append(seed)
        return build(self, seed)

    monkeypatch.setattr(Setup, "new_model", seen)
    for position in (0, 1, 2):
        trained(prepared, tmp_path, f"n{position}", position)
    assert seeds[0] == CONFIG.seed
    assert seeds[1:] == [derive_seed(CONFIG.seed, "network", k) for k in (1, 2)]
    assert len(set(seeds)) == 3


def test_a_network_starts_as_its_recipe_says(
    prepared: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[str, torch.Tensor] = {}

    def stop(learner: Learner, *_: object) -> None:
        begun.update({k: p.detach().clone() for k, p in learner.model.named_parameters()})
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        train_network(
            prepared,
            recipe("E", init_variance=4.0),
            epochs=1,
            name="E",
            position=0,
            folder=tmp_path,
            observer=Observer(),
        )
    plain = dict(prepared.new_model().named_parameters())
    factors = {k: float((begun[k] / p.detach()).mean()) for k, p in plain.items() if p.ndim > 1}
    assert factors
    assert all(factor == pytest.approx(2.0, rel=1e-6) for factor in factors.values())


@pytest.mark.filterwarnings("ignore:Detected call of")  # no step is taken
def test_divergence_names_the_network(
    prepared: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Learner, "step", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(DivergenceError, match=r"^network A-2: the loss is nan at step 0"):
        trained(prepared, tmp_path, "A-2", 1)


def test_predictions_are_made_once_and_leave_the_model_to_the_caller(
    prepared: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, model = prepared.dataset, prepared.new_model()
    state = {name: t.clone() for name, t in prepared.new_model(7).state_dict().items()}
    network = Network("n", state, 0)
    predictions = prepared.predictions(RunFolder(tmp_path))
    predict_network(network, prepared.speed, model, predictions)
    model.load_state_dict(state)
    model.eval()
    x = (dataset.test.images - dataset.mean[0]) / dataset.std[0]
    with torch.no_grad():
        expected = model(x).double().softmax(1)
    # float32 arithmetic and storage.
    np.testing.assert_allclose(predictions.test.probabilities("n"), expected, atol=1e-6)
    monkeypatch.setattr(Learner, "predict", lambda *_: pytest.fail("predicted again"))
    predict_network(network, prepared.speed, model, predictions)
    other = Network("n", {k: t + 1 if t.is_floating_point() else t for k, t in state.items()}, 0)
    with pytest.raises(pytest.fail.Exception, match="predicted again"):
        predict_network(other, prepared.speed, model, predictions)


def test_predictions_that_are_not_finite_name_the_network(prepared: Setup, tmp_path: Path) -> None:
    model = prepared.new_model()
    huge = {
        name: torch.full_like(t, 3e38) if t.is_floating_point() else t
        for name, t in model.state_dict().items()
    }
    predictions = prepared.predictions(RunFolder(tmp_path))
    with pytest.raises(DivergenceError, match=r"^network huge: .*not finite"):
        predict_network(Network("huge", huge, 0), prepared.speed, model, predictions)
    assert "huge" not in predictions.test


def linear_file(path: Path, *values: float) -> Path:
    save_file({"weight": torch.tensor([values[:2]]), "bias": torch.tensor([values[2]])}, path)
    return path


def test_networks_are_read_with_their_names(tmp_path: Path) -> None:
    one = linear_file(tmp_path / "one.safetensors", 1.0, 2.0, 3.0)
    torch.save({"state_dict": load_file(one)}, tmp_path / "two.pt")
    model = nn.Linear(2, 1)
    files = [(one, "1-one"), (tmp_path / "two.pt", "2-two")]
    found = read_networks(files, model, [])  # no pair: they may be the same
    assert [(n.name, n.train_epochs) for n in found] == [("1-one", 0), ("2-two", 0)]
    assert all(n.vector(model).tolist() == [1.0, 2.0, 3.0] for n in found)


def test_a_pair_of_the_same_networks_is_refused(tmp_path: Path) -> None:
    paths = [
        linear_file(tmp_path / f"{k}.safetensors", 1.0, 2.0, value)
        for k, value in enumerate((3.0, 4.0, 3.0))
    ]
    files = [(path, path.stem) for path in paths]
    model = nn.Linear(2, 1)
    assert len(read_networks(files, model, [(0, 1), (1, 2)])) == 3
    message = f"{paths[2]} and {paths[0]} hold the same weights; give two networks that differ"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        read_networks(files, model, [(0, 1), (1, 2), (2, 0)])


def test_a_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = linear_file(tmp_path / "one.safetensors", 1.0, 2.0, 3.0)
    with pytest.raises(UserError, match=r"one\.safetensors: tensor 'weight' has shape \(1, 2\)"):
        read_network(path, "one", nn.Linear(3, 1))
    with pytest.raises(UserError, match=r"no weights file .*two\.safetensors"):
        read_network(tmp_path / "two.safetensors", "two", nn.Linear(2, 1))
