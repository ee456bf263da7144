"""Training on a GPU: batches, steps, precisions, compilation, against the CPU in float64."""

from __future__ import annotations

import copy
import functools
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from cuda_tools import (
    MEAN,
    SGD_OPTIONS,
    SINGLE,
    STD,
    Batch,
    assert_bitwise,
    assert_near,
    by_hand,
    convnet,
    image_batches,
    image_split,
    make_learner,
    moved,
    perceptron,
    relative_distance,
    train_batches,
    vector_batches,
    weights_of,
)
from torch import Tensor, nn
from torch.optim import SGD

from fge.config import FGEConfig
from fge.data import EvalBatches, Normaliser
from fge.errors import DivergenceError
from fge.train import EpochEnd, Learner, Speed, TriangularLR, choose_speed, train
from fge.train import speed as speed_module

pytestmark = pytest.mark.cuda


# --------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("channels_last", [False, True])
def test_training_images_are_bitwise_those_of_the_cpu(
    accelerator: torch.device, channels_last: bool
) -> None:
    """Whole numbers are indexed; then one product and one sum, each rounded once, everywhere."""
    ours = train_batches(accelerator, channels_last=channels_last)
    theirs = train_batches(torch.device("cpu"), channels_last=channels_last)
    for epoch in (0, 1, 5):
        ours.set_epoch(epoch)
        theirs.set_epoch(epoch)
        for (x, y), (other_x, other_y) in zip(ours, theirs, strict=True):
            assert x.device == y.device == accelerator
            assert torch.equal(x.cpu(), other_x)
            assert torch.equal(y.cpu(), other_y)
            assert x.stride() == other_x.stride()


def test_evaluation_images_are_bitwise_those_of_the_cpu(accelerator: torch.device) -> None:
    split, cpu = image_split(10), torch.device("cpu")
    ours = EvalBatches(split.to(accelerator), Normaliser(MEAN, STD, accelerator), 4)
    theirs = EvalBatches(split, Normaliser(MEAN, STD, cpu), 4)
    for (x, y), (other_x, other_y) in zip(ours, theirs, strict=True):
        assert x.device == y.device == accelerator
        assert torch.equal(x.cpu(), other_x)
        assert torch.equal(y.cpu(), other_y)


# ----------------------------------------------------------------------------------------- steps


def test_steps_are_those_of_a_loop_in_float64(accelerator: torch.device) -> None:
    batches = image_batches(8, 8, 8, 5) * 3
    learner, plain = make_learner(accelerator, dtype=torch.float64), convnet()
    losses = [learner.step(*batch) for batch in moved(batches, accelerator)]
    expected = by_hand(plain, batches)
    # Rounding of 2^-53 in sums of up to 2000 terms, twelve times over: with room, 1e-10.
    assert all(loss.device == accelerator for loss in losses)
    assert_near(torch.stack(losses), expected, rtol=1e-10)
    assert relative_distance(weights_of(learner.model), weights_of(plain)) < 1e-10
    for name in ("1.running_mean", "1.running_var"):
        found = learner.model.state_dict()[name]
        assert_near(found, plain.state_dict()[name], rtol=1e-10, atol=1e-10)


# What losses may differ by, and how far twelve steps may end from those in float64, relative to
# how far these go. float32 rounds at 2^-24 = 6e-8; sums of 2000 terms and Winograd convolutions
# lose three digits of that. An fp16 number is good to 2^-12 and a bf16 one to 2^-9 = 0.2 %; four
# layers, both ways, make ten times that of a gradient. An activation that rounding brings to the
# other side of a ReLU counts for one in some hundred.
VARIANTS = {
    "float32": (Speed(), 1e-4, 1e-4),
    "channels-last": (Speed(channels_last=True), 1e-4, 1e-4),
    "fp16": (Speed(amp="fp16"), 10 * 2**-12, 0.04),
    "bf16": (Speed(amp="bf16"), 10 * 2**-9, 0.1),
    "channels-last-bf16": (Speed(channels_last=True, amp="bf16"), 10 * 2**-9, 0.1),
}


@pytest.mark.parametrize(("speed", "of_losses", "of_weights"), VARIANTS.values(), ids=VARIANTS)
def test_each_way_to_run_goes_where_float64_goes(
    accelerator: torch.device, speed: Speed, of_losses: float, of_weights: float
) -> None:
    batches = image_batches(8, 8, 8, 5) * 3
    learner, plain = make_learner(accelerator, speed), convnet()
    if speed.amp == "fp16":  # a scale at which nothing overflows: no step is skipped
        learner.scaler.load_state_dict({**learner.scaler.state_dict(), "scale": 128.0})
    start, outputs = weights_of(plain), []
    learner.model[0].register_forward_hook(lambda *args: outputs.append(args[-1].dtype))
    layout = torch.channels_last if speed.channels_last else torch.contiguous_format
    given = [
        (x.to(accelerator, torch.float32).contiguous(memory_format=layout), y.to(accelerator))
        for x, y in batches
    ]
    losses = torch.stack([learner.step(*batch) for batch in given])
    expected = by_hand(plain, batches)
    assert set(outputs) == {speed.autocast_dtype or torch.float32}
    assert {p.dtype for p in learner.model.parameters()} == {torch.float32}
    assert losses.dtype == torch.float32
    assert_near(losses, expected, rtol=of_losses)
    assert relative_distance(weights_of(learner.model), weights_of(plain), start) < of_weights


def test_predictions_are_probabilities_in_float64_on_the_cpu(accelerator: torch.device) -> None:
    batches = image_batches(5, 2)
    learner = make_learner(accelerator)
    learner.model.train()
    probs = learner.predict(moved(batches, accelerator, torch.float32))
    model = convnet().eval()
    with torch.no_grad():
        expected = torch.cat([model(x).softmax(1) for x, _ in batches])
    assert (probs.dtype, probs.device.type) == (torch.float64, "cpu")
    # Logits of size 1 are sums of 72 float32 terms, behind two layers of such: 3 * 72 * 2^-24.
    assert_near(probs, expected, atol=3 * 72 * SINGLE)
    assert all(module.training for module in learner.model.modules())


# ---------------------------------------------------------------------------------- the loop


def in_float64(model: nn.Module, batch: Batch) -> Tensor:
    outputs: Tensor = model(batch[0].double())
    return outputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_epochs_under_a_cycle_are_those_of_the_cpu(
    accelerator: torch.device, dtype: torch.dtype
) -> None:
    cpu, told = torch.device("cpu"), []
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10  # as above, for eight steps
    for device, kind in ((accelerator, dtype), (cpu, torch.float64)):
        forward = in_float64 if kind == torch.float64 else None
        learner = make_learner(device, dtype=kind, forward_fn=forward)
        minima: list[int] = []
        ends: list[EpochEnd] = []
        schedule = TriangularLR(learner.optimizer, max_lr=0.1, min_lr=0.01, cycle_steps=6)
        train(
            learner,
            schedule,
            train_batches(device),
            first_epoch=0,
            last_epoch=2,
            on_minimum=minima.append,
            on_epoch=ends.append,
        )
        told.append((learner, minima, ends))
    (ours, minima, ends), (theirs, other_minima, other_ends) = told
    assert minima == other_minima == [0]
    for end, other in zip(ends, other_ends, strict=True):
        assert (end.epoch, end.images) == (other.epoch, other.images)
        assert end.train_loss == pytest.approx(other.train_loss, rel=tolerance)
    start = weights_of(convnet())
    moved_to = weights_of(ours.model), weights_of(theirs.model)
    assert relative_distance(*moved_to, start) < tolerance


class NanAt:
    """A loss that is nan in one call, counted from 0."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.calls = 0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        bad = self.calls == self.step
        self.calls += 1
        return F.cross_entropy(logits, targets) * (math.nan if bad else 1.0)


@pytest.mark.parametrize("step", [3, 57])
def test_a_loss_that_is_not_finite_is_found_at_its_step(
    accelerator: torch.device, step: int
) -> None:
    """The host looks at losses fifty at a time, and at the end of the epoch."""
    model = nn.Linear(6, 3).to(accelerator)
    optimizer = SGD(model.parameters(), lr=0.1)
    schedule = TriangularLR(optimizer, max_lr=0.1, min_lr=0.1, cycle_steps=1000)
    batches = moved(vector_batches(*[2] * 60, dtype=torch.float32), accelerator)
    with pytest.raises(DivergenceError, match=f"the loss is nan at step {step} with learning rate"):
        train(
            Learner(model, optimizer, loss_fn=NanAt(step)),
            schedule,
            batches,
            first_epoch=0,
            last_epoch=1,
        )


# --------------------------------------------------------------------------- compilation, choosing


def needs_compiler(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip where ``torch.compile`` cannot work; on the CPU take a back end that needs a second."""
    if device.type == "cpu":
        backend = functools.partial(torch.compile, backend="aot_eager")
        monkeypatch.setattr(torch, "compile", backend)
        return
    pytest.importorskip("triton", reason="torch.compile needs Triton on a GPU")
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        pytest.skip("Triton needs a C compiler")


def test_a_compiled_model_trains_as_it_does_uncompiled(
    accelerator: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_compiler(accelerator, monkeypatch)
    batches = moved(vector_batches(8, 8, 5, 8, dtype=torch.float32), accelerator)
    learners = []
    for compiled in (True, False):
        model = perceptron(0, torch.float32).to(accelerator)
        optimizer = SGD(model.parameters(), **SGD_OPTIONS, fused=True)
        learners.append(Learner(model, optimizer, Speed(compile=compiled), batch_size=8))
    start = weights_of(learners[0].model)
    losses = [torch.stack([learner.step(*b) for b in batches]) for learner in learners]
    # Fused kernels round sums of at most 8 terms elsewhere, in four steps.
    assert_near(*losses, rtol=100 * SINGLE)
    after = [weights_of(learner.model) for learner in learners]
    assert relative_distance(*after, start) < 1000 * SINGLE
    torch._dynamo.reset()


def test_choosing_by_measurement_works_and_leaves_everything_as_it_was(
    accelerator: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed_module, "_TIMED_SECONDS", 0.0)
    model = convnet(0, torch.float32).to(accelerator)
    before = copy.deepcopy(model.state_dict())
    inputs, targets = moved(image_batches(8, dtype=torch.float32)[0], accelerator)
    torch.manual_seed(3)
    expected = torch.rand(4, device=accelerator)
    torch.manual_seed(3)
    config = FGEConfig(channels_last="auto", amp="auto", compile="off")
    choice = choose_speed(config, model, inputs, targets, steps=10)
    assert torch.equal(torch.rand(4, device=accelerator), expected)
    assert_bitwise(dict(model.state_dict()), dict(before))
    assert len(choice.reasons) >= 2
    for reason in choice.reasons:
        assert "fails here" not in reason
        assert "but its loss" not in reason
