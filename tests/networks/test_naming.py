"""Weights under the names of usual wrappers: found where nothing is lost, named where not."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import fge
from fge.errors import UserError
from fge.networks import (
    buffers_within,
    canonical_state,
    encode_weights,
    flatten,
    load_weights,
    read_weights,
)
from fge.networks.naming import under_names

State = dict[str, Tensor]


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


def lightning(state: State) -> State:
    return {**prefixed("model.")(state), "loss.weight": torch.ones(2)}


def within(name: str) -> str:
    return name.replace("2.", "2._orig_mod.")


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "data-parallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "compiled-data-parallel": prefixed("module._orig_mod."),
    "data-parallel-compiled": prefixed("_orig_mod.module."),
    "a-compiled-part": lambda state: {within(name): t for name, t in state.items()},
    "lightning": lightning,
    "lightning-of-compiled": prefixed("model._orig_mod."),
    "an-attribute": prefixed("backbone."),
    "swa": lambda state: {"n_averaged": torch.tensor(3), **prefixed("module.")(state)},
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": state},
    "state_dict": lambda state: {"state_dict": lightning(state), "pytorch-lightning_version": "2"},
    "model": lambda state: {"model": prefixed("module.")(state), "optimizer": {"state": {}}},
    "module": lambda state: {"module": state, "dp_world_size": 1},
    "with-options": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1, name="a")},
    "ema": lambda state: {"ema": {"module": state, "decay": 0.9}, "step": 3},
    "model_ema": lambda state: {"model_ema": prefixed("module.")(state)},
    "params": lambda state: {"params": state},
    "weights": lambda state: {"weights": state, "meta": {"acc": 0.9}},
    "encoder": lambda state: {"encoder": state, "decoder": {"weight": torch.ones(2)}},
    "teacher": lambda state: {"teacher": prefixed("backbone.")(state)},
    "lightning-net": lambda state: {**prefixed("net.")(state), "criterion.weight": torch.ones(2)},
    "the-same-twice": lambda state: {**prefixed("a.")(state), **prefixed("b.")(state)},
    "no-counts": lambda state: {n: t for n, t in state.items() if "num_batches" not in n},
    "no-counts-wrapped": lambda state: {
        f"module.{n}": t for n, t in state.items() if "num_batches" not in n
    },
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_every_usual_wrapping_of_a_file_is_seen_through(
    wrap: Callable[[State], Any], tmp_path: Path
) -> None:
    model, state, path = make_model(1), canonical_state(make_model()), tmp_path / "w.pt"
    torch.save(wrap(state), path)
    load_weights(model, read_weights(path), path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert torch.equal(flatten(path, model), flatten(state, model))
    inputs = torch.randn(5, 3)
    expected = fge.Ensemble(make_model(), [state]).predict_proba([inputs])
    assert torch.equal(fge.Ensemble(make_model(1), [path]).predict_proba([inputs]), expected)


TWICE: dict[str, tuple[str, str, Callable[[State, State], Any]]] = {
    "ema": ("model", "ema", lambda a, b: {"ema": a, "model": b, "epoch": 3}),
    "timm": ("state_dict", "state_dict_ema", lambda a, b: {"state_dict": a, "state_dict_ema": b}),
    "wrapped": ("model", "ema", lambda a, b: {"model": a, "ema": prefixed("module.")(b)}),
    "nested": (
        "model",
        "ema_state",
        lambda a, b: {"state_dict": {"model": a, "ema_state": {"module": b}}},
    ),
    "two containers": ("model", "net", lambda a, b: {"net": a, "model": b}),
    "names": (
        "model.",
        "ema.",
        lambda a, b: {**prefixed("model.")(a), **prefixed("ema.")(b), "loss.weight": a["0.bias"]},
    ),
}


@pytest.mark.parametrize("kind", TWICE)
def test_of_weights_that_are_kept_twice_none_is_taken_silently(kind: str, tmp_path: Path) -> None:
    chosen, other, wrap = TWICE[kind]
    model, path = make_model(2), tmp_path / "w.pt"
    first, second = (canonical_state(make_model(seed)) for seed in range(2))
    torch.save(wrap(first, second), path)
    with pytest.raises(UserError) as caught:
        load_weights(model, read_weights(path), path)
    assert str(caught.value).endswith(
        f" holds weights of the same names under {chosen!r} and under {other!r}, and they differ; "
        "save alone the ones that are meant"
    )
    torch.save(wrap(first, dict(first)), path)  # which one makes no difference
    load_weights(model, read_weights(str(path)), path)
    assert torch.equal(model[0].weight, first["0.weight"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_safetensors_under_a_wrapper_are_seen_through_too(prefix: str, tmp_path: Path) -> None:
    model, state, path = make_model(1), canonical_state(make_model()), tmp_path / "w.safetensors"
    path.write_bytes(encode_weights(prefixed(prefix)(state)))
    load_weights(model, read_weights(path), path)
    assert torch.equal(model[0].weight, state["0.weight"])


def test_an_average_of_wrapped_and_plain_weights_is_their_mean() -> None:
    states = [canonical_state(make_model(seed)) for seed in range(2)]
    mean = fge.average_weights([states[0], prefixed("module.")(states[1])])
    expected = (states[0]["0.weight"].double() + states[1]["0.weight"].double()) / 2
    assert torch.equal(mean["0.weight"], expected.float())


def test_swa_models_are_members() -> None:
    model = make_model()
    inputs = torch.randn(5, 3)
    probs = fge.Ensemble(make_model(1), [AveragedModel(model)]).predict_proba([inputs])
    assert torch.equal(probs, fge.Ensemble(model, [model]).predict_proba([inputs]))


def test_a_model_with_a_compiled_part_takes_the_weights_of_a_plain_one() -> None:
    plain, model = make_model(), make_model(1)
    model[2] = torch.compile(model[2], backend="eager")
    load_weights(model, plain.state_dict(), "here")
    assert torch.equal(model.state_dict()["2._orig_mod.weight"], plain[2].weight)


def test_names_of_ones_own_are_no_wrapping() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    state = canonical_state(Own())
    assert under_names(state, Own().state_dict()) is state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"fc.weight": torch.ones(2)}, r"the model needs it; none of its names is the model's: "),
        ({"module.0.weight": torch.ones(4, 3)}, "the first is 'module.0.weight'$"),
        ({"teacher.x": torch.ones(1), "0.weight": torch.ones(4, 3)}, "no tensor '0.bias', but"),
    ],
)
def test_what_does_not_fit_is_named(state: State, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_weights(make_model(), state, "there")


def test_two_networks_in_one_state_are_refused() -> None:
    one, other = (canonical_state(make_model(seed)) for seed in range(2))
    both = {**prefixed("student.")(one), **prefixed("teacher.")(other)}
    with pytest.raises(
        UserError, match=r"under 'student\.' and under 'teacher\.', and they differ"
    ):
        load_weights(make_model(), both, "there")


def test_counts_that_a_file_lacks_are_0() -> None:
    model = make_model()
    model(torch.randn(5, 3))
    state = {n: t for n, t in model.state_dict().items() if "num_batches" not in n}
    load_weights(model, state, "there")
    assert model[1].num_batches_tracked.item() == 0
    found = buffers_within(state, model)
    assert found is not None
    assert found["1.num_batches_tracked"].item() == 0


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_is_called_so(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(make_model().eval(), torch.randn(2, 3)), tmp_path / "w.pt")
    with pytest.raises(
        UserError, match=r"w\.pt is a TorchScript archive; save model\.state_dict\(\)$"
    ):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            nn.Linear(2, 2),
            r"a pickled torch\.nn.*Linear; save model\.state_dict\(\) alone$",
        ),
        (
            {"args": argparse.Namespace(out=Path("a")), "model": {}},
            r"a pickled pathlib[\w.]*\.PosixPath; save model",
        ),
        ({"epoch": 3, "lr": 0.1}, "its entry 'epoch' is a int; save model"),
        ([1], "but a list; save model"),
        ({0: torch.ones(1)}, "its entry 0 is a tensor without a name"),
    ],
    ids=["module", "namespace", "numbers", "list", "numbered"],
)
def test_a_file_without_a_state_dict_says_what_it_holds(
    content: Any, message: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / "w.pt")
