"""Exported files: their bytes, which are compared with the ensemble before they are kept."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from fge.ensemble import DeployedGaussian, DeployedNetworks
from fge.errors import UserError, missing_package
from fge.export.facts import FACTS
from fge.export.program import BATCH, exported_program, quiet
from fge.files import write_bytes
from fge.networks import state_bytes

Format = Literal["onnx", "pt2"]
FORMATS: tuple[Format, ...] = get_args(Format)
TOLERANCE = 1e-5
"""How far a prediction of a file may be from the ensemble's: a probability, or a number over 1 or
the largest one."""
HALF_TOLERANCE = 1e-2
"""The same for networks in half precision, whose numbers have 11 bits."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What writing and comparing an ONNX file needs."""
_OPSET = 18
"""The version of ONNX's operators, which runtimes from 2023 on know."""
_MOST_BYTES = 2**31 - 1
"""A file of ONNX is one message of protobuf, which can be no longer."""
_ONNX_ERRORS = 3
"""ONNX Runtime's level of messages that leaves out warnings."""
Outputs = Tensor | tuple[Tensor, ...]
Predict = Callable[[Tensor], Any]
"""Returns what the module in the file returns: a tensor, or a tuple of them."""


def save(
    deployed: DeployedNetworks,
    path: str | Path,
    example: Tensor,
    *,
    facts: str = "",
    input_name: str = "inputs",
    overwrite: bool = False,
) -> None:
    """Write a deployable ensemble as one file for other programs, complete and compared, or not.

    The file takes batches of any size. Before it is written, it predicts the example, whole and
    one by one, and the predictions are compared: within 1e-5, in half precision 1e-2. Differences
    of numbers that are no probabilities are relative to the largest of them, if that is above 1.

    Args:
        deployed: from :meth:`fge.Ensemble.deployable`, with or without its ``with_variance``.
        path: ends in ``.onnx``, or in ``.pt2`` for a program that ``torch.export.load`` reads.
        example: inputs (N, ...) of two examples or more, of the shape and dtype that the file shall
            take.
        facts: any text, such as JSON with the names of the classes. In an ONNX file it is the
            metadata ``facts``, in a program the extra file ``facts``.
        input_name: of the input of an ONNX file. Its output is ``probabilities``, or
            ``predictions`` for other outputs; a second one is ``variance``.
        overwrite: replace a file that is there.

    Raises:
        UserError: the path has another ending or is in use, a package is missing, the model cannot
            be exported, or the file predicts something else.
        OSError: the file cannot be written.
    """
    target = Path(path)
    kind = target.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise UserError(f"an export is named .onnx or .pt2, got {str(path)!r}")
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; replace it with overwrite=True")
    data = encoded(deployed, example, kind, facts=facts, input_name=input_name)
    write_bytes(target, data)


def encoded(
    deployed: DeployedNetworks,
    example: Tensor,
    kind: Format,
    *,
    facts: str = "",
    input_name: str = "inputs",
    output_names: Sequence[str] = (),
    expected: Sequence[Tensor] = (),
    units: Sequence[Tensor] = (),
) -> bytes:
    """Return the bytes of an exported file, after comparing its predictions; see :func:`save`.

    Args:
        deployed: from :meth:`fge.Ensemble.deployable`.
        example: inputs (N, ...).
        kind: of the file.
        facts: any text.
        input_name: of an ONNX file.
        output_names: of an ONNX file; by default as of :func:`save`.
        expected: each output (N, ...) for the example; by default those of ``deployed``.
        units: of each output, what its differences are divided by; by default as of :func:`save`.

    Raises:
        UserError: as :func:`save`.
    """
    check_packages(kind)
    if kind == "onnx":
        check_size(deployed)
    if strange := {t.device.type for t in (example, *deployed.parameters())} - {"cpu"}:
        raise UserError(f"an export is made on the CPU, got {min(strange)}; use deployed.cpu()")
    own = _predicted(deployed, example)
    program = exported_program(deployed, example)
    if kind == "pt2":
        data = _program_bytes(program, facts)
        predict = program_reader(data)
    else:
        data = _onnx_bytes(program, facts, input_name, output_names or _output_names(deployed))
        predict = onnx_reader(data)
    wanted = expected or own
    units = units or [_unit(values, probable=deployed.outputs.probable) for values in wanted]
    _compare(predict, example, wanted, [_tolerance(deployed) * unit for unit in units])
    return data


def check_packages(kind: Format) -> None:
    """Check that what a format needs is installed.

    Raises:
        UserError: naming the package that is not.
    """
    for package in PACKAGES if kind == "onnx" else ():
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise missing_package("an ONNX file", package, error, extra="onnx") from None


def check_size(deployed: DeployedNetworks) -> None:
    """Check that all members fit into a file of ONNX.

    Raises:
        UserError: they do not.
    """
    needed = state_bytes(deployed)
    if needed > _MOST_BYTES:
        raise UserError(
            f"{len(deployed)} members have {needed / 2**30:.1f} GiB of weights, and an ONNX file "
            "holds less than 2 GiB; choose fewer members, half precision, or the format pt2"
        )


def program_reader(data: bytes) -> Predict:
    """Return what predicts with a program that ``torch.export.save`` wrote."""
    with quiet():
        module = torch.export.load(io.BytesIO(data)).module()

    def predict(inputs: Tensor) -> Outputs:
        with torch.no_grad():
            return cast(Outputs, module(inputs))

    return predict


def onnx_reader(data: bytes) -> Predict:
    """Return what predicts with an ONNX file on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ONNX_ERRORS
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def predict(inputs: Tensor) -> Outputs:
        found = session.run(None, {name: inputs.numpy()})
        outputs = tuple(torch.from_numpy(np.asarray(values)) for values in found)
        return outputs if len(outputs) > 1 else outputs[0]

    return predict


def _each(outputs: Outputs) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def _predicted(deployed: DeployedNetworks, example: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs for the example, in which an error is easier to understand."""
    try:
        with torch.no_grad():
            return _each(deployed(example))
    except UserError:
        raise
    except Exception as error:  # of many kinds, the model's
        shape = tuple(example.shape)
        raise UserError(
            f"the model cannot predict the example, {shape} {example.dtype}: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]


def _program_bytes(program: ExportedProgram, facts: str) -> bytes:
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files={FACTS: facts})
    return buffer.getvalue()


def _onnx_bytes(program: ExportedProgram, facts: str, given: str, returned: Sequence[str]) -> bytes:
    try:
        with quiet():
            found: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=_OPSET,
                input_names=[given],
                output_names=list(returned),
                dynamic_shapes=({0: BATCH},),
                verbose=False,
            )
        proto = found.model_proto
    except Exception as error:  # of many kinds: an operator that ONNX lacks is one of them
        raise UserError(
            f"the model cannot be written as ONNX: {_reason(error)}; the format pt2 may do"
        ) from error
    _forget_the_machine(proto.graph)
    proto.metadata_props.add(key=FACTS, value=facts)
    return cast(bytes, proto.SerializeToString(deterministic=True))


def _forget_the_machine(graph: Any) -> None:
    """Remove the notes of a graph of ONNX: paths and lines of code of where it was made."""
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _forget_the_machine(inner)


def _output_names(deployed: DeployedNetworks) -> list[str]:
    if isinstance(deployed, DeployedGaussian):
        return ["predictions", "variance"]
    return ["probabilities" if deployed.outputs.probable else "predictions"]


def _tolerance(deployed: DeployedNetworks) -> float:
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in deployed.parameters())
    return HALF_TOLERANCE if half else TOLERANCE


def _unit(values: Tensor, *, probable: bool) -> Tensor:
    """Return what differences of an output are divided by: 1, or its largest number."""
    largest = values.double().abs().max()
    return torch.ones_like(largest) if probable else largest.clamp(min=1)


def _compare(
    predict: Predict, example: Tensor, expected: Sequence[Tensor], tolerances: Sequence[Tensor]
) -> None:
    """Check the outputs of a file, for batches of one example and of several.

    Raises:
        UserError: they are not those expected.
    """
    try:
        rows = [_each(predict(row[None])) for row in example]
        found = [_each(predict(example)), [torch.cat(each) for each in zip(*rows, strict=True)]]
    except Exception as error:  # of many kinds, the runtime's
        raise UserError(
            f"the exported file does not run: {_reason(error)}; nothing was written"
        ) from error
    for outputs in found:
        for values, wanted, tolerance in zip(outputs, expected, tolerances, strict=True):
            _compare_one(values, wanted, tolerance)


def _compare_one(predictions: Tensor, expected: Tensor, tolerance: Tensor) -> None:
    """Check one output of a file, to a tolerance of one number or one for each column."""
    if not bool(torch.isfinite(predictions).all()):
        raise UserError(
            "the exported file predicts numbers that are not finite; nothing was written; "
            "export in full precision"
        )
    if predictions.shape != expected.shape:
        raise UserError(
            f"the exported file gives {tuple(predictions.shape)} and the ensemble "
            f"{tuple(expected.shape)}; nothing was written"
        )
    apart = (predictions.double() - expected.double()).abs()
    if bool((apart > tolerance).any()):
        raise UserError(
            f"the exported file predicts something else than the ensemble: they differ by "
            f"{float(apart.max()):.2g}, more than {float(tolerance.min()):g}; nothing was written"
        )
