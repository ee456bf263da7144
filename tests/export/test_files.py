"""Exported files predict what the ensemble predicts, or are not written."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from small_ensembles import COUNT, ensemble_of, images_of, small_net, used
from torch import Tensor, nn

from fge import Deployed, Ensemble, Normalise, export
from fge.config import TaskName
from fge.data import Column, Encoder, Table
from fge.errors import UserError
from fge.export import Format, files
from fge.networks import build_model
from fge.networks.architectures.preresnet import preresnet, wide_resnet
from fge.networks.architectures.vgg import vgg16

FACTS = '{"classes": ["a", "b", "ü"]}'
KINDS = ("onnx", "pt2")
IMAGES = images_of(4)


def deployed_of(**options: Any) -> Deployed:
    normalise = Normalise([100.0, 120.0], [50.0, 60.0])
    return ensemble_of(**options).deployable(preprocess=normalise)


def read(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    """Return what predicts with a file, and its facts, without help from this package."""
    if path.suffix == ".pt2":
        extra = {"facts": ""}
        module = torch.export.load(path, extra_files=extra).module()
        return module, extra["facts"]
    session = onnxruntime.InferenceSession(path)

    def predict(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": inputs.numpy()})[0])

    return predict, session.get_modelmeta().custom_metadata_map["facts"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_predicts_batches_of_any_size_and_holds_its_facts(kind: str, tmp_path: Path) -> None:
    deployed, path = deployed_of(), tmp_path / f"model.{kind}"
    export.save(deployed, path, IMAGES, facts=FACTS, input_name="images")
    predict, facts = read(path)
    assert facts == FACTS
    for count in (1, 3, 4):
        found = predict(IMAGES[:count])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, deployed(IMAGES[:count]), rtol=0, atol=1e-5)
    data = path.read_bytes()
    for trace in (b"small_ensembles.py", b"deployed.py", str(Path(__file__).parents[1]).encode()):
        assert trace not in data, "no path or line of code of the machine that wrote it"
    with pytest.raises(UserError, match=rf"model\.{kind} exists; replace it with overwrite=True$"):
        export.save(deployed, path, IMAGES)
    assert path.read_bytes() == data


@pytest.mark.slow
def test_a_file_is_replaced_on_demand_and_is_the_same_each_time(tmp_path: Path) -> None:
    path, written = tmp_path / "model.pt2", []
    for overwrite in (False, True):
        export.save(deployed_of(), path, IMAGES, facts=FACTS, overwrite=overwrite)
        written.append(path.read_bytes())
    assert written[0] == written[1]


OUTPUTS: dict[str, dict[str, Any]] = {
    "sigmoid": {"output": "sigmoid", "combine": "logits", "width": 1},
    "regression": {"output": "identity", "width": 5},
    "function": {"output": lambda z: z.exp() / 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OUTPUTS.values(), ids=OUTPUTS)
def test_every_output_is_exported(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    ensemble, path = ensemble_of(**options), tmp_path / f"model.{kind}"
    inputs = torch.randn(4, 2, 8, 8)
    export.save(ensemble.deployable(members=[0, 2]), path, inputs, input_name="images")
    predict, _ = read(path)
    pair = Ensemble(small_net(9, options.get("width", 3)), [ensemble.members[k] for k in (0, 2)])
    pair.outputs = ensemble.outputs
    torch.testing.assert_close(predict(inputs[:3]), pair(inputs[:3]), rtol=1e-5, atol=1e-5)
    if kind == "onnx":
        [output] = onnxruntime.InferenceSession(path).get_outputs()
        assert output.name == ("probabilities" if ensemble.outputs.probable else "predictions")


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "vgg16-bn": lambda: vgg16(3, 4, (32, 32), batch_norm=True),
    "preresnet": lambda: preresnet(3, 4, (32, 32), depth=8),
    "wrn": lambda: wide_resnet(3, 4, (32, 32), depth=10, factor=1),
    "timm": lambda: build_model(
        "timm:resnet10t", in_channels=3, num_classes=4, image_size=(32, 32)
    ),
}
"""Small ones of each kind; the command's tests have the default network and one of a user's own."""


@pytest.mark.slow
@pytest.mark.parametrize("make", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_architectures_with_batch_norm_are_exported(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = used(make(), 3, 32)
    ensemble = Ensemble(model, [model])
    images = images_of(3, 3, 32)
    normalise = Normalise([80.0, 90.0, 100.0], [60.0, 70.0, 80.0])
    expected = ensemble(normalise(images))
    assert float(expected.std(0).max()) > 1e-4, "the images make a difference"
    path = tmp_path / "model.onnx"
    export.save(ensemble.deployable(preprocess=normalise), path, images, input_name="images")
    for count in (1, 3):
        found = read(path)[0](images[:count])
        torch.testing.assert_close(found, expected[:count], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_networks_in_half_precision_are_exported(kind: str, tmp_path: Path) -> None:
    deployed = deployed_of()
    expected = deployed(IMAGES)
    path = tmp_path / f"model.{kind}"
    export.save(deployed.half(), path, IMAGES, input_name="images")
    found = read(path)[0](IMAGES)
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).abs().max()) <= 2e-3


# ---------------------------------------------------------------------------- what is refused


class Branches(nn.Sequential):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs * 2 if inputs.sum() > 0 else inputs)


class FixedBatch(nn.Sequential):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.reshape(2, -1))


class InNumpy(nn.Sequential):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(torch.from_numpy(inputs.numpy() * 2))


REFUSED: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "branches": (Branches, "Branches, cannot be exported: its forward branches on values that it"),
    "fixed-batch": (FixedBatch, "FixedBatch, cannot be exported: its forward fixes the batch size"),
    "numpy": (InNumpy, "InNumpy, cannot be exported: RuntimeError: .numpy() is not supported"),
    "scripted": (
        lambda *parts: torch.jit.script(nn.Sequential(*parts)),
        "RecursiveScriptModule, cannot be exported: it is scripted (torch.jit); give the module",
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
def test_models_that_cannot_be_traced_are_refused_with_the_reason(
    build: Callable[..., nn.Module],
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = build(nn.Flatten(), nn.Linear(8, 3))
    deployed = Ensemble(model, [model]).deployable()
    with pytest.raises(UserError) as caught:
        export.save(deployed, tmp_path / "model.pt2", torch.randn(2, 2, 2, 2))
    assert f"the model, a {message}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_examples_that_cannot_be_predicted_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with pytest.raises(UserError, match=r"^the model has one output, of shape \(4, 1\), and the "):
        export.save(deployed_of(width=1), path, IMAGES)
    message = r"^the model cannot predict the example, \(4, 1, 8, 8\) torch\.uint8: RuntimeError: "
    with pytest.raises(UserError, match=message):
        export.save(ensemble_of().deployable(), path, IMAGES[:, :1])


def test_other_names_and_single_examples_are_refused(tmp_path: Path) -> None:
    deployed = deployed_of()
    with pytest.raises(UserError, match=r"^an export is named \.onnx or \.pt2, got '.*model\.pt'$"):
        export.save(deployed, tmp_path / "model.pt", IMAGES)
    with pytest.raises(UserError, match=r"^an export needs at least 2 examples, got 1$"):
        export.save(deployed, tmp_path / "model.pt2", IMAGES[:1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", files.PACKAGES)
def test_a_package_that_is_missing_is_named(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as caught:
        export.save(deployed_of(), tmp_path / "model.onnx", IMAGES)
    assert str(caught.value).startswith(f"an ONNX file needs the package {package}, which ")
    assert str(caught.value).endswith("pip install -e '.[onnx]'")


def test_more_members_than_a_file_holds_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deployed = deployed_of()
    needed = sum(t.nbytes for t in deployed.state_dict().values())
    monkeypatch.setattr(files, "_MOST_BYTES", needed - 1)
    with pytest.raises(UserError) as caught:
        export.save(deployed, tmp_path / "model.onnx", IMAGES)
    assert f"{COUNT} members have " in str(caught.value)
    assert "choose fewer members, half precision, or the format pt2" in str(caught.value)
    monkeypatch.setattr(files, "_MOST_BYTES", needed)
    files.check_size(deployed)


def test_other_devices_and_shapes_are_refused(tmp_path: Path) -> None:
    deployed = deployed_of()
    with pytest.raises(UserError, match=r"gives \(4, 3\) and the ensemble \(4, 1\); nothing was w"):
        export.encoded(deployed, IMAGES, "pt2", expected=[torch.zeros(4, 1)])
    with pytest.raises(UserError, match=r"^an export is made on the CPU, got meta; use deployed"):
        export.save(deployed.to("meta"), tmp_path / "model.pt2", IMAGES)


def test_a_file_that_predicts_something_else_is_not_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deployed = deployed_of()
    real = files.program_reader

    def other(data: bytes) -> Callable[[Tensor], Tensor]:
        predict = real(data)
        return lambda inputs: predict(inputs) + (2e-5 if len(inputs) == 1 else 0)

    monkeypatch.setattr(files, "program_reader", other)
    with pytest.raises(UserError, match=r"differ by 2e-05, more than 1e-05; nothing was written$"):
        export.save(deployed, tmp_path / "model.pt2", IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_overflow_in_half_precision_are_not_written(tmp_path: Path) -> None:
    model = small_net(0)
    with torch.no_grad():
        model[0].weight.mul_(1e7)  # type: ignore[index,union-attr,operator]
    deployed = Ensemble(model, [model]).deployable().half()
    with pytest.raises(UserError, match=r"not finite; nothing was written; export in full prec"):
        export.save(deployed, tmp_path / "model.pt2", torch.randn(4, 2, 8, 8))
    assert list(tmp_path.iterdir()) == []


def facts_of(task: TaskName, given: export.ImageInput | export.RowInput) -> export.Facts:
    return export.Facts(task, ("a", "b"), given, (1,), False, "float32", "convnet")


IMAGES_IN = {
    "grey": export.ImageInput(1, 4, 5, (0.0,), (1.0,), None),
    "resized": export.ImageInput(3, 4, 4, (0.0,) * 3, (1.0,) * 3, 4),
}
ROWS_IN = export.RowInput((Column("x"), Column("word", categories=("a", None))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["classification", "binary", "multilabel", "regression"])
@pytest.mark.parametrize("given", [*IMAGES_IN.values(), ROWS_IN], ids=[*IMAGES_IN, "rows"])
def test_the_script_is_a_few_plain_lines_whatever_the_file_is_called(
    kind: Format, task: TaskName, given: export.ImageInput | export.RowInput
) -> None:
    name = 'a\'b"""c\\d\n.onnx'
    text = export.example_script(kind, name, f"{name}_example.py", facts_of(task, given))
    tree = ast.parse(text)
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert name in constants
    assert ast.get_docstring(tree)
    assert len(tree.body) == (7 if kind == "onnx" else 9) - (given is ROWS_IN), "no name is code"
    code = [line for line in text.split('"""\n')[-1].splitlines() if line]
    more = (2 if kind == "pt2" else 0) + (3 if given is IMAGES_IN["resized"] else 0)
    assert len(code) == (9 if given is ROWS_IN else 14) + more
    assert ";" not in "".join(code)


def test_a_graph_encodes_rows_as_a_table_is_encoded() -> None:
    columns = (
        Column("size", 1e6, 0.5, missing=True),
        Column("word", categories=("a", "b", None)),
        Column("age", -3.0, 2.0),
        Column("flag", categories=("no", "yes")),
    )
    nan = float("nan")
    values = {
        "size": np.array([1e6, nan, 1000000.25, 999999.0]),
        "word": np.array(["b", None, "c", "a"], dtype=object),
        "age": np.array([-3.0, 1.0, nan, 5.0]),
        "flag": np.array(["yes", None, "no", "maybe"], dtype=object),
    }
    table = Table(Path("t.csv"), values)
    raw = export.raw_rows(columns, table)
    assert raw[:, 1].tolist() == [1, 2, -1, 0]
    assert raw[:, 3].tolist() == [1, -1, 0, -1]
    encode = export.EncodeRows(columns).half()  # it stays in double precision
    found = encode(raw)
    assert found.dtype == torch.float32
    expected = torch.from_numpy(Encoder(columns).encode(table))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found[2].tolist() == [0.5, 0, 0, 0, 0, 0, 1, 0]


def test_numbers_far_from_zero_are_compared_by_their_size(tmp_path: Path) -> None:
    model = small_net(0)
    ensemble = Ensemble(model, [model], output=lambda z: 1e7 + 100 * z)
    inputs = torch.randn(4, 2, 8, 8)
    export.save(ensemble.deployable(), tmp_path / "model.pt2", inputs)
    found = torch.export.load(tmp_path / "model.pt2").module()(inputs)
    torch.testing.assert_close(found, ensemble(inputs), rtol=1e-6, atol=0)
