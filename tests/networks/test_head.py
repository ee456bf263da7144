"""The head of a classifier, and weights whose head is for other classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from fge.errors import UserError
from fge.networks import build_model, find_head, fitting_backbone, read_weights


def build(name: str, classes: int = 3, side: int = 32) -> nn.Module:
    return build_model(name, in_channels=3, num_classes=classes, image_size=(side, side))


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("convnet", None),
        ("preresnet20", None),
        ("torchvision:resnet18", ("fc.weight", "fc.bias")),
        ("torchvision:mobilenet_v3_small", ("classifier.3.weight", "classifier.3.bias")),
        ("torchvision:squeezenet1_1", ("classifier.1.weight", "classifier.1.bias")),
        ("timm:resnet18", ("fc.weight", "fc.bias")),
        ("timm:mobilenetv3_small_050", ("classifier.weight", "classifier.bias")),
        ("timm:vit_tiny_patch16_224", ("head.weight", "head.bias")),
    ],
)
def test_the_head_is_found_by_what_the_library_says(
    name: str, head: tuple[str, ...] | None
) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    model = build(name)
    if head is None:  # the last layer
        *_, weight, bias = (n for n, _ in model.named_parameters())
        head = (weight, bias)
    assert find_head(model) == head
    state = dict(model.named_parameters())
    assert len(state[head[-1]]) == 3  # one per class


def test_a_parametrized_head_is_found_whole() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), weight_norm(nn.Linear(8, 3)))
    weights = (f"2.parametrizations.weight.original{k}" for k in (0, 1))
    assert sorted(find_head(model)) == sorted(["2.bias", *weights])


@pytest.mark.parametrize("last", [nn.PReLU(), nn.LayerNorm(3), nn.BatchNorm1d(3)])
def test_norms_and_activations_behind_a_head_are_not_it(last: nn.Module) -> None:
    assert find_head(nn.Sequential(nn.Linear(4, 3), last)) == ("0.weight", "0.bias")
    assert find_head(nn.Sequential(last)) == tuple(f"0.{n}" for n, _ in last.named_parameters())


def test_the_classifier_of_timm_need_not_be_registered_last() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.body = nn.Linear(4, 3), nn.Linear(4, 4)

        def get_classifier(self) -> nn.Module:
            return self.out

    assert find_head(Odd()) == ("out.weight", "out.bias")
    Odd.get_classifier = lambda _: nn.Identity()  # type: ignore[method-assign]
    assert find_head(Odd()) == ("body.weight", "body.bias")
    with pytest.raises(UserError, match=r"^the model, a Flatten, has no parameters$"):
        find_head(nn.Flatten())


def network(classes: int, width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, classes))


WRAPPINGS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {}},
    "module": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "nested": lambda state: {
        "state_dict": {f"model.module.{name}": tensor for name, tensor in state.items()}
    },
    "compiled": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("headless", [False, True])
def test_another_head_is_left_out_in_every_usual_wrapping(
    wrapping: str, headless: bool, tmp_path: Path
) -> None:
    given, model = network(5).state_dict(), network(3)
    if headless:
        given = {name: tensor for name, tensor in given.items() if not name.startswith("2.")}
    torch.save(WRAPPINGS[wrapping](given), tmp_path / "w.pt")
    found, left_out = fitting_backbone(model, read_weights(tmp_path / "w.pt"), "w.pt")
    assert left_out == ("2.weight", "2.bias")
    assert sorted(found) == sorted(name for name in given if not name.startswith("2."))
    assert all(torch.equal(tensor, given[name]) for name, tensor in found.items())


OTHER_NAMES = {
    "another name": ("", "fc."),
    "beside": ("backbone.", "head."),
    "beside in DDP": ("module.backbone.", "module.head."),
    "of several layers": ("net.", "net.fc.mlp."),
    "SSL": ("teacher.backbone.", "teacher.head.last."),
}


@pytest.mark.parametrize(("body", "head"), OTHER_NAMES.values(), ids=OTHER_NAMES)
@pytest.mark.parametrize("counts", [True, False])
def test_a_head_of_another_name_is_left_out(body: str, head: str, counts: bool) -> None:
    given, model = network(3).state_dict(), network(3)
    state = {(head + n[2:] if n[0] == "2" else body + n): t for n, t in given.items()}
    if not counts:
        state = {name: t for name, t in state.items() if "num_batches" not in name}
    found, left_out = fitting_backbone(model, state, "w")
    assert left_out == ("2.weight", "2.bias")
    assert sorted(found) == sorted(name for name in given if name[0] != "2")
    assert all(torch.equal(found[name], given[name]) for name in found)


def test_a_deeper_body_is_no_head() -> None:
    class Deep(nn.Module):
        def __init__(self, layers: int, head: str) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(layers))
            self.add_module(head, nn.Linear(2, 3))

    for head in ("top", "fc"):
        with pytest.raises(
            UserError, match=r"^w has a tensor 'layers\.2\.weight', but the model h"
        ):
            fitting_backbone(Deep(2, head), Deep(3, "fc").state_dict(), "w")
    assert len(fitting_backbone(Deep(2, "top"), Deep(2, "fc").state_dict(), "w")[0]) == 4


def test_a_head_that_fits_is_taken(tmp_path: Path) -> None:
    given, model = network(3).state_dict(), network(3)
    save_file({f"module.{n}": t for n, t in given.items()}, tmp_path / "w.safetensors")
    found, left_out = fitting_backbone(model, read_weights(tmp_path / "w.safetensors"), "w")
    assert left_out == ()
    assert found.keys() == given.keys()
    assert torch.equal(found["2.weight"], given["2.weight"])


def changed(**tensors: Tensor | None) -> dict[str, Tensor]:
    state: dict[str, Tensor | None] = {**network(5).state_dict(), **tensors}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(**{"0.weight": torch.zeros(4, 3)}), r"w: tensor '0.weight' has shape \(4, 3\), "),
        (changed(**{"0.bias": None}), "w has no tensor '0.bias', but the model needs it"),
        (changed(**{"1.running_mean": None}), r"w has no tensor '1\.running_mean'"),
        (changed(extra=torch.zeros(2)), "w has a tensor 'extra', but the model has none"),
        (
            changed(**{"0.bias": torch.full((4,), torch.nan)}),
            "w: tensor '0.bias' holds values that are not finite",
        ),
        ({"a": torch.zeros(2)}, "w has no tensor '0.weight', but the model needs it; none of"),
    ],
)
def test_what_does_not_fit_beside_the_head_is_named(state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        fitting_backbone(network(3), state, "w")


def test_a_model_that_is_all_head_needs_weights_that_fit() -> None:
    with pytest.raises(UserError, match=r"tensor 'weight' has shape \(5, 2\), the model needs"):
        fitting_backbone(nn.Linear(2, 3), nn.Linear(2, 5).state_dict(), "w")
    with pytest.raises(UserError, match=r"^w has no tensor 'weight'"):
        fitting_backbone(nn.Linear(2, 3), {}, "w")
