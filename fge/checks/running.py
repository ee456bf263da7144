"""Checks of how a model runs: outputs, gradients, repeatability, precision, compilation, export."""

from __future__ import annotations

import importlib.util
import shutil

import torch
from torch import Tensor, nn

from fge.checks.findings import CheckFailedError, SkippedError, Subject, distance
from fge.seeds import same_random_state

BF16_DISTANCE = 0.1
"""bf16 keeps 8 bits; deep networks in it differ by some percent."""
COMPILED_DISTANCE = 1e-3
_SEED = 0


def outputs(subject: Subject) -> str:
    """Check shape and value of the outputs, and that nothing but the example decides them."""
    first = subject.predict()
    if first.ndim == 0 or len(first) != subject.examples:
        raise CheckFailedError(
            f"{subject.examples} examples give outputs of shape {tuple(first.shape)}",
            "return one row per example",
        )
    if not bool(torch.isfinite(first).all()):
        raise CheckFailedError("outputs are not finite", "check inputs and initial weights")
    if not torch.equal(subject.predict(), first):
        raise CheckFailedError(
            "two passes in evaluation mode differ", "switch randomness off in eval()"
        )
    half = max(1, subject.examples // 2)
    pieces = torch.cat([subject.predict(piece) for piece in subject.pieces(half)])
    apart = distance(pieces, first)
    if apart > 1e-3:
        raise CheckFailedError(
            f"outputs depend on the other examples of the batch (by {apart:.2g} of their size)",
            "predictions differ with the batch size; use running statistics in eval()",
        )
    return f"{subject.examples} examples give {tuple(first.shape)}, the same in each pass"


def gradients(subject: Subject) -> str:
    """Check that a training step has a finite loss and finite gradients."""
    loss = subject.step(lr=0.0)
    if loss.ndim or not bool(torch.isfinite(loss)):
        raise CheckFailedError(f"the loss is {loss.tolist()}", "it must be one finite number")
    named = [(n, p) for n, p in subject.model.named_parameters() if p.requires_grad]
    if not named:
        raise CheckFailedError("no parameter requires a gradient", "set requires_grad")
    if not float(loss) and not any(
        float(subject.loss(batch).detach()) for batch in subject.batches[1:]
    ):
        raise CheckFailedError(
            "the loss is exactly 0", "give loss_fn= for these outputs and targets"
        )
    for name, parameter in named:
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            raise CheckFailedError(f"the gradient of {name!r} is not finite", "lower the scale")
    without = [name for name, parameter in named if parameter.grad is None]
    if len(without) == len(named):
        raise CheckFailedError("no parameter gets a gradient", "let the outputs depend on them")
    if not any(p.grad is not None and float(p.grad.abs().sum()) > 0 for _, p in named):
        raise CheckFailedError(
            "every gradient is exactly 0",
            "give loss_fn= for these outputs, and let them depend on the parameters",
        )
    note = f"; {len(without)} get none, such as {without[0]!r}" if without else ""
    return f"loss {float(loss):.4g}, {len(named) - len(without)} parameters get gradients{note}"


def repeats(subject: Subject) -> str:
    """Check that two trainings with one seed end with the same weights."""
    ends = []
    for _ in range(2):
        with same_random_state(), subject.untouched():
            torch.manual_seed(_SEED)
            for batch in subject.batches:
                subject.step(batch=batch)
            ends.append([p.detach().clone() for p in subject.model.parameters()])
    if not all(bool(torch.isfinite(end).all()) for end in ends[0]):
        raise CheckFailedError(
            f"the weights are not finite after {len(subject.batches)} steps",
            "lower the scale of the inputs or of the initial weights",
        )
    apart = max(float((a - b).abs().max()) for a, b in zip(*ends, strict=True) if a.numel())
    if any(not torch.equal(a, b) for a, b in zip(*ends, strict=True)):
        raise CheckFailedError(
            f"two trainings with one seed differ by up to {apart:.2g}",
            "draw from PyTorch's generator; on a GPU use torch.use_deterministic_algorithms(True)",
        )
    return f"{len(subject.batches)} steps end with the same bits"


def mixed_precision(subject: Subject) -> str:
    """Check that outputs under bf16 autocast agree with those in full precision."""
    expected = subject.predict()
    if expected.dtype in (torch.float16, torch.bfloat16):
        raise SkippedError(f"the model is in {str(expected.dtype).removeprefix('torch.')} already")
    with torch.autocast(expected.device.type, torch.bfloat16):
        found = subject.predict()
    apart = distance(found, expected)
    if apart > BF16_DISTANCE:
        raise CheckFailedError(
            f"outputs in bf16 differ by {apart:.1%} of their size".replace("%", " %"),
            "use --amp off",
        )
    return f"outputs in bf16 differ by {apart:.2%} of their size".replace("%", " %")


def compiles(subject: Subject) -> str:
    """Check that ``torch.compile`` works and gives the same outputs."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++", "cc", "gcc")):
        raise SkippedError("there is no C++ compiler")
    on_gpu = next(subject.model.parameters()).is_cuda
    if on_gpu and importlib.util.find_spec("triton") is None:
        raise SkippedError("there is no Triton")
    expected = subject.predict()
    compiled: nn.Module = torch.compile(subject.copy(), dynamic=False)  # type: ignore[assignment]
    try:
        found = subject.predict(model=compiled)
    except Exception as error:
        raise CheckFailedError(
            f"torch.compile fails ({type(error).__name__})", "use --compile off"
        ) from None
    apart = distance(found, expected)
    if apart > COMPILED_DISTANCE:
        raise CheckFailedError(
            f"compiled outputs differ by {apart:.2g} of their size", "use --compile off"
        )
    return f"outputs differ by {apart:.1g} of their size"


def exports(subject: Subject) -> str:
    """Check that ``torch.export`` works and gives the same outputs."""
    if subject.own_call:
        raise SkippedError("the model is called through forward_fn")
    inputs = subject.batch[0] if isinstance(subject.batch, list | tuple) else subject.batch
    if not isinstance(inputs, Tensor):
        raise SkippedError(f"inputs are a {type(inputs).__name__}, not a tensor")
    expected = subject.predict()
    try:
        program = torch.export.export(subject.copy().eval(), (inputs,))
        with torch.no_grad():
            found = program.module()(inputs)
    except CheckFailedError:
        raise
    except Exception as error:
        raise CheckFailedError(
            f"torch.export fails ({type(error).__name__})", "save weights instead of a program"
        ) from None
    apart = distance(found, expected)
    if apart > COMPILED_DISTANCE:
        raise CheckFailedError(f"exported outputs differ by {apart:.2g} of their size")
    return f"outputs differ by {apart:.1g} of their size"
