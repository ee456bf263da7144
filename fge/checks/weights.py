"""Checks of what is done to a model's weights: snapshots, copies, statistics, averages, curves."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fge.checks.findings import CheckFailedError, SkippedError, Subject, distance
from fge.curves import Curve, PolyChain, evaluate_curve
from fge.ensemble import Ensemble, SnapshotStore
from fge.landscape import HessianOperator
from fge.networks import (
    Layout,
    OutputKind,
    TailAverage,
    buffers_of,
    canonical_state,
    check_estimable,
    estimated_layers,
    flatten,
    has_running_statistics,
    load_weights,
)
from fge.seeds import generator

_STEP = 0.05
"""Length of a random change of the weights, as a part of theirs."""


def snapshots(subject: Subject) -> str:
    """Check that a snapshot on disk comes back bitwise, and predicts the same."""
    expected, state = subject.predict(), canonical_state(subject.model)
    with tempfile.TemporaryDirectory() as folder:
        store = SnapshotStore(Path(folder))
        store.append(subject.model)
        _disturb(subject.model)
        load_weights(subject.model, store[0], store.path)
    for name, value in canonical_state(subject.model).items():
        if not torch.equal(value, state[name]) and not bool(torch.isnan(value).any()):
            raise CheckFailedError(f"{name!r} does not come back", "register it as a buffer")
    apart = distance(subject.predict(), expected)
    if apart > 0:
        raise CheckFailedError(
            f"the loaded network's outputs differ by {apart:.2g} of their size",
            "keep all that forward() uses in parameters and buffers",
        )
    return f"{len(state)} tensors and the outputs come back bitwise"


def copies(subject: Subject) -> str:
    """Check that a deep copy predicts the same and shares nothing."""
    expected, copied = subject.predict(), subject.copy()
    found = subject.predict(model=copied)
    if not torch.equal(found, expected):
        raise CheckFailedError("a deep copy predicts something else", "keep no state outside it")
    _disturb(copied)
    if not torch.equal(subject.predict(), expected):
        raise CheckFailedError("a deep copy shares weights with the model", "copy them")
    return "a deep copy predicts the same and shares nothing"


def statistics(subject: Subject) -> str:
    """Check that batch norm's estimated statistics are those of the layers' inputs."""
    check_estimable(subject.model)
    names = {id(module): name for name, module in subject.model.named_modules()}
    layers = {names[id(m)]: m for m in estimated_layers(subject.model, instance_norm=False)}
    if not layers:
        raise SkippedError("there is no batch norm with running statistics")
    seen: dict[str, list[tuple[Tensor, int]]] = {name: [] for name in layers}
    handles = [
        module.register_forward_pre_hook(_recording(seen[name]), with_kwargs=True)
        for name, module in layers.items()
    ]
    try:
        subject.refresh()
    finally:
        for handle in handles:
            handle.remove()
    used = {name: module for name, module in layers.items() if seen[name]}
    for name, module in used.items():
        total = sum(count for _, count in seen[name])
        mean = sum(value * count for value, count in seen[name]) / total
        assert module.running_mean is not None
        scale = float(torch.as_tensor(mean).norm()) + 1e-3
        if not float((module.running_mean.double() - mean).norm()) < 1e-3 * scale:
            raise CheckFailedError(
                f"the mean of {name!r} is not that of its inputs",
                "let each layer be called once per pass",
            )
    left = [name for name in layers if name not in used]
    note = f"; {len(left)} keep theirs, as {left[0]!r} is not called in eval()" if left else ""
    return f"{len(used)} layers have the statistics of their inputs{note}"


def averages(subject: Subject) -> str:
    """Check that a mean over steps is the mean of the weights, and gives a finite network."""
    tail, kept = TailAverage(subject.model, first_step=0), []
    for batch in subject.batches:
        subject.step(batch=batch)
        tail.step()
        kept.append(flatten(subject.model, subject.model).double())
    averaged = tail.module(subject.batches, forward_fn=subject.forward_fn)
    found = flatten(averaged, averaged)
    apart = distance(found, torch.stack(kept).mean(0))
    if apart > (1e-2 if found.dtype in (torch.float16, torch.bfloat16) else 1e-5):
        raise CheckFailedError(f"the mean of {len(kept)} steps is off by {apart:.2g} of its size")
    if not bool(torch.isfinite(subject.predict(model=averaged)).all()):
        raise CheckFailedError("the averaged network's outputs are not finite")
    return f"the mean of {len(kept)} steps is right to {max(apart, 1e-16):.0e}"


def curve_ends(subject: Subject) -> str:
    """Check that both ends of a curve have the losses of their networks."""
    ends, losses, buffers = [], [], []
    for _ in range(2):
        if has_running_statistics(subject.model):
            subject.refresh()
        subject.model.eval()
        with torch.no_grad():
            losses.append(float(subject.loss()))
        ends.append(flatten(subject.model, subject.model).clone())
        buffers.append({n: b.clone() for n, b in buffers_of(subject.model).items()})
        subject.step(lr=_STEP)
    records = evaluate_curve(
        subject.model,
        Curve(PolyChain(2), torch.stack(ends), Layout.of(subject.model), (buffers[0], buffers[1])),
        [subject.batch],
        num_points=2,
        loss_fn=subject.loss_fn,
        forward_fn=subject.forward_fn,
        target_fn=subject.target_fn,
        refresh=subject.batches if has_running_statistics(subject.model) else None,
    )
    for t, record, expected in zip((0, 1), records, losses, strict=True):
        found = next(value for key, value in record.items() if key.endswith("loss"))
        if not math.isclose(found, expected, rel_tol=1e-3, abs_tol=1e-5):
            raise CheckFailedError(
                f"the curve at t = {t} has a loss of {found:.4g}, its network {expected:.4g}",
                "what is neither a parameter nor a buffer belongs to one network",
            )
    return f"losses {losses[0]:.4g} and {losses[1]:.4g} are those of the networks"


def ensembles(subject: Subject) -> str:
    """Check that an ensemble predicts the mean of its members."""
    outputs, kind = subject.predict(), OutputKind(subject.output)
    if kind.name == "softmax" and (outputs.ndim < 2 or outputs.shape[1] < 2):
        raise SkippedError(
            f"outputs of shape {tuple(outputs.shape)} are no logits of classes; give output="
        )
    states = [canonical_state(subject.model)]
    _disturb(subject.model)
    states.append(canonical_state(subject.model))
    members = []
    for state in states:
        load_weights(subject.model, state, "a member")
        members.append(kind.predictions(subject.predict()).cpu())
    ensemble = Ensemble(subject.model, states, forward_fn=subject.forward_fn, output=subject.output)
    apart = distance(ensemble.predict([subject.batch]), torch.stack(members).mean(0))
    if apart > 1e-5:
        raise CheckFailedError(f"the mean of two members is off by {apart:.2g} of its size")
    what = "probabilities" if kind.probable else "predictions"
    return f"two members have the mean of their {what}"


def second_derivatives(subject: Subject) -> str:
    """Check products of the Hessian: symmetry, and a finite difference of gradients."""
    operator = HessianOperator(
        subject.model,
        subject.loss_fn,
        [subject.batch],
        forward_fn=subject.forward_fn,
        target_fn=subject.target_fn,
    )
    operator.gradient()
    assert operator.agreement is not None
    if math.isnan(operator.agreement.symmetry):
        raise SkippedError(f"{operator.agreement}".removesuffix(".").removeprefix("Hessian "))
    return f"{operator.agreement}".removesuffix(".").removeprefix("Hessian ")


@torch.no_grad()
def _disturb(model: nn.Module) -> None:
    """Change the weights a little, always in the same way."""
    rng = generator(1, "check")
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel():
            noise = torch.randn(parameter.shape, generator=rng).to(parameter)
            scale = float(parameter.norm()) / math.sqrt(parameter.numel()) or 1.0
            parameter.add_(noise, alpha=_STEP * scale)


def _recording(kept: list[tuple[Tensor, int]]) -> Callable[[nn.Module, Any, Any], None]:
    """Return a hook that keeps the mean per channel of a layer's inputs, and their number."""

    def hook(_: nn.Module, arguments: Any, named: Any) -> None:
        inputs = (arguments[0] if arguments else named["input"]).detach().double()
        axes = [axis for axis in range(inputs.ndim) if axis != 1]
        kept.append((inputs.mean(axes), len(inputs)))

    return hook
