"""Fine-tuning in whole runs: weights of other classes, frozen parameters, rates per group."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from conftest import PLAIN
from curve_runs import run as run_line
from given_weights import FROZEN, frozen_names, given, write_given
from interrupting import interrupted
from promised import promised
from safetensors.torch import load_file, save_file

from fge.commands.train import fge, train
from fge.config import FGEConfig, TrainConfig
from fge.errors import UserError
from fge.networks import build_model, library_weights

SHORT: dict[str, Any] = {**PLAIN, "epochs": 4, "cycle_epochs": 2, "val_fraction": 0.25}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_given(tmp_path_factory.mktemp("weights") / "seven.pt")


def test_a_frozen_backbone_is_bitwise_the_given_one_in_every_file(
    data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**SHORT, "pretrained": weights, "freeze": FROZEN, "backbone_lr": 0.05, "lr": 0.1}
    run = train(TrainConfig(data=str(data), out=tmp_path / "run", method="fge", **options))
    said = capsys.readouterr().out
    names = [name for name in given(weights) if "weight" in name or "bias" in name]
    head = ", ".join(names[-2:])
    assert f"seven.pt: the head ({head}) is new, for 3 classes" in said.replace("\n", "")
    assert "frozen: " in said
    assert f"learning rates: 0.1 for the head ({head}), 0.05 for the other" in said
    before, kept = given(weights), frozen_names(given(weights))
    assert len(kept) > 5
    files = [*run.glob("snapshots/*.safetensors"), *run.glob("*.safetensors")]
    assert len(files) >= 3  # two members, and their averages
    for file in files:
        state = load_file(file)
        moved = [n for n in state if n not in names[-2:] and not torch.equal(state[n], before[n])]
        assert not set(moved) & set(kept), file
        assert moved  # the rest of the backbone is trained


def test_networks_of_one_run_have_heads_of_their_own(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    standing = {"lr": 1e-30, "momentum": 0.0, "weight_decay": 0.0}
    run = train(
        TrainConfig(
            data=str(data),
            out=tmp_path / "run",
            method="split",
            pretrained=weights,
            **{**SHORT, **standing},
        )
    )
    first, second = (load_file(path) for path in sorted((run / "snapshots").glob("*.safetensors")))
    before = given(weights)
    *body, weight, _ = (n for n in before if "running" not in n and "num_batches" not in n)
    for name in body:
        assert torch.allclose(first[name], before[name], rtol=0, atol=1e-25)
        assert torch.allclose(second[name], before[name], rtol=0, atol=1e-25)
    assert first[weight].shape == (3, before[weight].shape[1])
    assert not torch.equal(first[weight], second[weight])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fge", "star", "split", "auto"])
def test_fine_tuning_resumes_bitwise(
    method: str, data: Path, weights: Path, tmp_path: Path
) -> None:
    def options(name: str, **more: Any) -> TrainConfig:
        return TrainConfig(
            data=str(data),
            out=tmp_path / name,
            method=method,
            pretrained=weights,
            freeze=FROZEN,
            backbone_lr=1e-3,
            optimizer="adamw",
            warmup_epochs=1.0,
            star_trunk=0.5,
            star_branches=2,
            **{**SHORT, **more},
        )

    whole = train(options("whole"))
    with interrupted(2):
        train(options("cut"))
    cut = train(options("cut", resume=True))
    ours, theirs = promised(cut), promised(whole)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in theirs if ours[name] != theirs[name]] == []


@pytest.mark.slow
def test_curves_sharpness_and_planes_of_a_frozen_run_leave_the_frozen_part(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    options = {**SHORT, "pretrained": weights, "freeze": FROZEN, "sharpness_every": 2}
    run = fge(
        FGEConfig(data=str(data), out=tmp_path / "run", refit="bezier", refit_epochs=1, **options)
    )
    report = json.loads((run / "report.json").read_text())
    assert "fge+refit" in [line["name"] for line in report["methods"]]
    before, kept = given(weights), frozen_names(given(weights))
    assert len(report["sharpness"]["measurements"]) >= 2
    for file in run.rglob("*.safetensors"):
        state = load_file(file)
        for name in kept:
            if name in state:
                # The file of a curve has several points.
                assert bool((state[name] == before[name]).all()), (file, name)
    line = "plane --line --line-points 3 --eval-images 16 --channels-last off"
    assert run_line([*line.split(), "--run", str(run), "--out", str(tmp_path / "plane")]).code == 0
    line = "sharpness --k 1 --examples 16 --trace-samples 2 --spectrum-steps 2 --amp off"
    line += " --channels-last off"
    assert run_line([*line.split(), "--run", str(run), "--out", str(tmp_path / "s")]).code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--pretrained", "library"],
            "--pretrained library needs --model timm:NAME or torchvision:NAME, got convnet; give",
        ),
        (["--freeze", "("], "freeze '(' is no regular expression: missing )"),
        (["--freeze", "layer9"], "freeze 'layer9' matches none of the"),
        (["--freeze", "."], "freeze '.' matches all of the"),
        (["--freeze", FROZEN, "--backbone-lr", "0"], "--backbone-lr must be finite and above 0, "),
        (["--weights", "none.pt"], "no weights file none.pt"),
        (["--weights=none.pt"], "no weights file none.pt"),
    ],
)
def test_bad_options_end_with_one_line(
    arguments: list[str], message: str, data: Path, tmp_path: Path
) -> None:
    usual = ["--data", str(data), "--epochs", "4", "--batch-size", "16", "--val-fraction", "0.25"]
    result = run_line(["train", "--out", str(tmp_path / "run"), *usual, *arguments])
    assert result.code == 2
    assert result.message.startswith(message)
    assert not (tmp_path / "run").exists()


def test_a_body_that_does_not_fit_is_named(data: Path, weights: Path, tmp_path: Path) -> None:
    save_file({**given(weights), "0.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    file = str(tmp_path / "w.safetensors")
    line = ["train", "--data", str(data), "--batch-size", "16", "--weights", file]
    result = run_line([*line, "--out", str(tmp_path / "run")])
    assert result.message.startswith(f"{file}: tensor '0.weight' has shape (1,), the model needs")


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_pretrained_weights_of_the_library_are_taken_with_another_head(
    library: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{library}:resnet18"
    torch.manual_seed(3)
    channels = 1 if library == "timm" else 3  # timm adapts its weights to the images itself
    known = build_model(name, in_channels=channels, num_classes=1000, image_size=(32, 32))
    state = {name: tensor + 0 for name, tensor in known.state_dict().items()}
    if library == "timm":
        timm = pytest.importorskip("timm")
        create = timm.create_model

        def loaded(name: str, *, pretrained: bool, **options: Any) -> Any:
            model = create(name, pretrained=False, **options)
            if pretrained:
                assert options["num_classes"] == 1000
                model.load_state_dict(state)
            return model

        monkeypatch.setattr(timm, "create_model", loaded)
    else:
        from torchvision.models import ResNet18_Weights

        monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda *_, **__: state)
    run = train(
        TrainConfig(
            data=str(data),
            out=tmp_path / "run",
            model=name,
            pretrained="library",
            freeze="^(conv1|bn1|layer)",
            **{**SHORT, "epochs": 1, "cycle_epochs": None},
        )
    )
    found = load_file(run / "snapshots" / "0001.safetensors")
    assert found["fc.weight"].shape == (3, 512)
    body = [name for name in state if not name.startswith("fc.")]
    if library == "torchvision":
        red, green, blue = state["conv1.weight"].unbind(1)
        assert torch.allclose(found["conv1.weight"][:, 0], red + green + blue, rtol=0, atol=1e-6)
        body.remove("conv1.weight")
    assert all(torch.equal(found[name], state[name]) for name in body)
    saved = json.loads((run / "config.json").read_text())["options"]
    assert saved["pretrained"] == "library"


@pytest.mark.slow
@pytest.mark.parametrize("normalize", ["data", "imagenet", "model"])
def test_weights_that_know_other_inputs_are_told_of(
    normalize: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm")
    create, name = timm.create_model, "timm:test_resnet"
    monkeypatch.setattr(
        timm, "create_model", lambda name, **given: create(name, **{**given, "pretrained": False})
    )
    line = ["train", "--data", str(data), "--model", name, "--pretrained", "library"]
    line += ["--normalize", normalize, "--out", str(tmp_path / "run"), "--amp", "off"]
    result = run_line([*line, "--method", "single", "--epochs", "1", "--batch-size", "32"])
    assert result.code == 0, result.message
    told = (
        f"the weights of {name} were trained on channels of mean 0.5 and standard deviation 0.5; "
        "--normalize model gives these"
    )
    assert (told in result.out) == (normalize != "model")
    found = json.loads((tmp_path / "run" / "config.json").read_text())["dataset"]
    if normalize == "model":
        assert (found["mean"], found["std"]) == ([127.5], [127.5])


def unreachable(*_: Any, **__: Any) -> Any:
    raise URLError("no route to host\nsecond line")


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_without_a_network_one_line_says_what_to_do(
    library: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{library}:resnet18"
    if library == "timm":
        timm = pytest.importorskip("timm")
        create = timm.create_model
        monkeypatch.setattr(
            timm,
            "create_model",
            lambda name, *, pretrained, **more: (unreachable if pretrained else create)(
                name, **more
            ),
        )
    else:
        from torchvision.models import ResNet18_Weights

        monkeypatch.setattr(ResNet18_Weights, "get_state_dict", unreachable)
    line = ["train", "--data", str(data), "--batch-size", "16", "--model", name]
    result = run_line([*line, "--weights", "library", "--out", str(tmp_path / "run")])
    assert result.message == (
        f"the pretrained weights of {name} cannot be had (URLError: <urlopen error no route to "
        "host); without a network give a file of them, --pretrained FILE"
    )


def test_a_model_without_published_weights_is_named() -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"^timm has no pretrained weights of timm:beit3\w+; give"):
        library_weights("timm:beit3_giant_patch14_224", in_channels=3, image_size=(32, 32))
