"""Models in other dtypes, compiled, scripted or with lazy layers train, or say why they cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PLAIN
from curve_runs import run as run_line
from interrupting import interrupted
from PIL import Image
from promised import promised
from torch import nn

from fge.commands.predict import predict
from fge.commands.train import fge
from fge.config import FGEConfig, PredictConfig
from fge.ensemble import SnapshotStore
from fge.errors import UserError
from fge.networks import build_model, copy_module

FACTORIES = """
import torch
from torch import nn

def plain(in_channels, num_classes):
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, num_classes),
    )

def bf16(in_channels, num_classes):
    return plain(in_channels, num_classes).bfloat16()

def double(in_channels, num_classes):
    return plain(in_channels, num_classes).double()

def half(in_channels, num_classes):
    return plain(in_channels, num_classes).half()

def compiled(in_channels, num_classes):
    return torch.compile(plain(in_channels, num_classes), backend="eager")

def compiled_double(in_channels, num_classes):
    return torch.compile(double(in_channels, num_classes), backend="eager")

def lazy(num_classes):
    return nn.Sequential(
        nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.Dropout(),
        nn.LazyLinear(num_classes),
    )

def scripted(in_channels, num_classes):
    model = plain(in_channels, num_classes)
    model[1] = nn.Identity()
    return torch.jit.script(model)

def scripted_norm(in_channels, num_classes):
    return torch.jit.script(plain(in_channels, num_classes))

def mixed(in_channels, num_classes):
    model = plain(in_channels, num_classes)
    model[5].double()
    return model

def meta(in_channels, num_classes):
    with torch.device("meta"):
        return plain(in_channels, num_classes)

class Casting(nn.Module):
    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.net = bf16(in_channels, num_classes)

    def forward(self, x):
        assert x.dtype == torch.float32
        return self.net(x.bfloat16()).float()
"""
SHORT: dict[str, Any] = {**PLAIN, "epochs": 3, "cycle_epochs": 2, "val_fraction": 0.25}


@pytest.fixture(autouse=True)
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_models.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model(f"odd_models:{name}", in_channels=1, num_classes=3, image_size=(8, 8))


DTYPES = {"bf16": torch.bfloat16, "double": torch.float64, "compiled_double": torch.float64}


@pytest.mark.parametrize("name", DTYPES)
def test_a_model_of_another_dtype_computes_in_it_and_so_do_its_copies(name: str) -> None:
    images = torch.rand(4, 1, 8, 8)
    model = build(name).eval()
    wanted = build("plain").to(DTYPES[name]).eval()(images.to(DTYPES[name]))
    twin = copy_module(model).eval()
    for each in (model, twin):
        found = each(images)
        assert found.dtype == (torch.float64 if "double" in name else torch.float32)
        assert torch.equal(found, wanted.to(found.dtype))
    assert set(twin.state_dict()) == set(build("plain").state_dict())


def test_a_model_that_takes_float32_images_is_given_them() -> None:
    model = build("Casting")  # it asserts so itself
    assert model(torch.zeros(2, 1, 8, 8)).dtype == torch.float32
    assert not model._forward_pre_hooks


def test_lazy_layers_get_the_weights_that_the_seed_gives_them() -> None:
    one, other = build("lazy"), build("lazy")
    assert one.training
    shapes = {name: tuple(tensor.shape) for name, tensor in one.state_dict().items()}
    assert shapes["0.weight"] == (4, 1, 3, 3)
    assert shapes["5.weight"] == (3, 144)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert float(one[1].num_batches_tracked) == 0  # type: ignore[index]
    state = torch.get_rng_state()
    torch.manual_seed(1)
    again = build_model("odd_models:lazy", in_channels=1, num_classes=3, image_size=(8, 8))
    torch.set_rng_state(state)
    assert not torch.equal(again.state_dict()["0.weight"], one.state_dict()["0.weight"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("half", "model 'odd_models:half' has float16 weights, in which steps of training vanish"),
        (
            "mixed",
            "model 'odd_models:mixed' cannot process images of 1 x 8 x 8: RuntimeError: ",
        ),
        ("meta", "model 'odd_models:meta' has a tensor '0.weight' without values .device meta.; "),
    ],
)
def test_what_cannot_be_trained_is_refused_by_its_reason(
    name: str, message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        build(name)
    line = ["train", "--model", f"odd_models:{name}", "--data", str(data), "--batch-size", "16"]
    result = run_line([*line, "--out", str(tmp_path / "run")])
    assert result.code == 2
    assert result.message.startswith(f"model 'odd_models:{name}'")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_batch_norm_in_a_script_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path
) -> None:
    """No average of the run could get its statistics."""
    line = ["train", "--model", "odd_models:scripted_norm", "--data", str(data)]
    result = run_line([*line, "--batch-size", "16", "--out", str(tmp_path / "run")])
    assert result.code == 2
    assert result.message.endswith("cannot be estimated; give the module before torch.jit.script")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["bf16", "double", "compiled", "compiled_double", "lazy", "scripted", "Casting"]
)
def test_odd_models_train_resume_and_predict(name: str, data: Path, tmp_path: Path) -> None:
    options = {**SHORT, "data": str(data), "model": f"odd_models:{name}", "refit": "bezier"}
    options |= {"refit_epochs": 1, "label_smoothing": 0.1, "mixup": 0.3, "distill_epochs": 1}
    whole = fge(FGEConfig(out=tmp_path / "whole", **options))
    with interrupted(2):
        fge(FGEConfig(out=tmp_path / "cut", **options))
    cut = fge(FGEConfig(out=tmp_path / "cut", resume=True, **options))
    ours, theirs = promised(cut), promised(whole)
    assert sorted(ours) == sorted(theirs)
    assert [file for file in theirs if ours[file] != theirs[file]] == []
    state = SnapshotStore(whole / "snapshots")[0]
    weight = next(tensor for name, tensor in state.items() if name.endswith("weight"))
    assert weight.dtype == {**DTYPES, "Casting": torch.bfloat16}.get(name, torch.float32)
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / "new.png")
    config = PredictConfig(
        run=whole, images=tmp_path / "new.png", threads=1, model=f"odd_models:{name}"
    )
    with np.load(predict(config) / "predictions.npz") as found:
        assert found["probabilities"].sum() == pytest.approx(1, abs=1e-6)
    assert json.loads((whole / "report.json").read_text())["methods"]


@pytest.mark.slow
def test_auto_can_measure_a_scripted_model(data: Path, tmp_path: Path) -> None:
    line = "train --epochs 1 --batch-size 16 --val-fraction 0.25 --threads 1 --speed-cache off"
    line += f" --model odd_models:scripted --compile off --data {data} --out {tmp_path / 'run'}"
    assert run_line(line.split()).code == 0
