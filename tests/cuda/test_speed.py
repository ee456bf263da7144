"""On a GPU: steps replayed as CUDA graphs, a host that never waits, what ``auto`` chooses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cuda_tools import (
    assert_near,
    convnet,
    image_batches,
    image_split,
    moved,
    record_on_the_cpu,
    relative_distance,
    weights_of,
)
from torch import Tensor, nn
from torch.optim import SGD

from fge.config import FGEConfig
from fge.data import EvalBatches, Normaliser, TrainBatches
from fge.networks import predict_proba
from fge.train import EpochEnd, Learner, Speed, TriangularLR, choose_speed, graphed, train

pytestmark = pytest.mark.cuda

GRAPHS = {
    "float32": Speed(cuda_graphs=True),
    "channels-last": Speed(cuda_graphs=True, channels_last=True),
    "fp16": Speed(cuda_graphs=True, amp="fp16"),
    "bf16": Speed(cuda_graphs=True, amp="bf16", channels_last=True),
}


@pytest.fixture(autouse=True)
def recorded_without_a_gpu(accelerator: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for CUDA graphs where the tests run on the CPU."""
    if accelerator.type == "cpu":
        monkeypatch.setattr(graphed, "record", record_on_the_cpu)


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Compute convolutions in float32, not in TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def make_learner(device: torch.device, speed: Speed, *, dropout: float = 0.0) -> Learner:
    model = convnet(0, torch.float32, dropout=dropout).to(device).train()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    learner = Learner(model, optimizer, speed, batch_size=8)
    if speed.amp == "fp16":  # a scale at which nothing overflows: no step is skipped
        learner.scaler.load_state_dict({**learner.scaler.state_dict(), "scale": 128.0})
    return learner


@pytest.mark.parametrize("speed", GRAPHS.values(), ids=GRAPHS)
def test_replayed_steps_are_those_of_the_plain_loop(
    accelerator: torch.device, speed: Speed
) -> None:
    """Full batches are replayed from the fourth on, the smaller ones between them are not."""
    plain = make_learner(accelerator, Speed(speed.channels_last, False, speed.amp))
    replayed = make_learner(accelerator, speed)
    batches = moved(image_batches(8, 8, 8, 8, 8, 5, 8, 8), accelerator, torch.float32)
    losses = [[learner.step(*batch) for batch in batches] for learner in (plain, replayed)]
    # The same kernels on the same numbers, but cuDNN may choose others while recording: they
    # differ by the rounding of the precision, a few operations deep, in eight steps.
    rounding = {"off": 1e-4, "fp16": 0.02, "bf16": 0.1}[speed.amp]
    assert_near(torch.stack(losses[1]), torch.stack(losses[0]), rtol=rounding)
    start = weights_of(convnet(0))
    assert relative_distance(weights_of(replayed.model), weights_of(plain.model), start) < rounding
    tracked = replayed.model.state_dict()["1.num_batches_tracked"]
    assert int(tracked) == len(batches)


def test_replayed_dropout_draws_anew_in_each_step_and_follows_the_seed(
    accelerator: torch.device,
) -> None:
    learner = make_learner(accelerator, Speed(cuda_graphs=True), dropout=0.5)
    for group in learner.optimizer.param_groups:
        group.update(lr=0.0, momentum=0.0)  # so that losses differ by the draws alone
    batch = moved(image_batches(8), accelerator, torch.float32)[0]
    for _ in range(4):
        learner.step(*batch)
    losses = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        losses.append([float(learner.step(*batch)) for _ in range(3)])
    assert len(set(losses[0] + losses[1])) == 6
    # The same masks; batch norm normalises by the batch, so that nothing else has changed.
    assert_near(torch.tensor(losses[2]), torch.tensor(losses[0]), rtol=1e-5)


class Watched:
    """Batches during which, from the sixth on, PyTorch raises if the host waits for the GPU."""

    def __init__(self, batches: TrainBatches, device: torch.device) -> None:
        self.batches = batches
        self.device = device

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        with contextlib.ExitStack() as watch:
            for number, batch in enumerate(self.batches):
                if number == 5 and self.device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("error")
                    watch.callback(torch.cuda.set_sync_debug_mode, "default")
                yield batch


@pytest.mark.parametrize("speed", [Speed(), *GRAPHS.values()], ids=["plain", *GRAPHS])
def test_the_host_waits_for_nothing_within_an_epoch(
    accelerator: torch.device, speed: Speed
) -> None:
    """Not for augmentation, nor for losses, which are checked every 50 steps."""
    if speed.amp == "fp16" and accelerator.type == "cuda":
        pytest.skip("a scaler asks in each step whether gradients are finite")
    split = image_split(8 * 130)
    normaliser = Normaliser([128.0] * 3, [64.0] * 3, accelerator, channels_last=speed.channels_last)
    batches = TrainBatches(split.to(accelerator), normaliser, 8, seed=0, crop_padding=1, flip=True)
    learner = make_learner(accelerator, speed)
    schedule = TriangularLR(learner.optimizer, max_lr=0.05, min_lr=0.01, cycle_steps=2000)
    ends: list[EpochEnd] = []
    train(
        learner,
        schedule,
        Watched(batches, accelerator),
        first_epoch=0,
        last_epoch=2,
        on_epoch=ends.append,
    )
    assert [end.images for end in ends] == [8 * 130] * 2
    assert ends[1].train_loss < ends[0].train_loss


def test_predictions_cross_in_one_transfer(accelerator: torch.device) -> None:
    model = convnet(0, torch.float32).to(accelerator)
    split = image_split(50)
    normaliser = Normaliser([128.0] * 3, [64.0] * 3, accelerator)
    probs = predict_proba(model, EvalBatches(split.to(accelerator), normaliser, 8))
    with torch.no_grad():
        expected = convnet(0).eval()((split.images.double() - 128) / 64).softmax(1)
    # Logits of size 1 are sums of 72 float32 terms, behind two layers of such.
    assert_near(probs, expected, atol=3 * 72 * 2**-24)


def test_auto_chooses_graphs_only_where_their_losses_agree(accelerator: torch.device) -> None:
    config = FGEConfig(channels_last="off", amp="off", compile="off", cuda_graphs="auto")
    inputs, targets = moved(image_batches(8), accelerator, torch.float32)[0]
    model = convnet(0, torch.float32).to(accelerator)
    choice = choose_speed(config, model, inputs, targets, steps=100)
    if accelerator.type == "cpu":
        assert choice.reasons == []
        return
    (reason,) = choice.reasons
    assert reason.startswith("cuda_graphs: on, "), reason


class Counting(nn.Module):
    """Does other work in each step: what a graph cannot record."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 64, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(F.relu(x.flatten(1)) * self.calls)


def test_auto_leaves_a_network_of_ones_own_alone(accelerator: torch.device) -> None:
    config = FGEConfig(
        model="mine:net", channels_last="off", amp="off", compile="off", cuda_graphs="auto"
    )
    inputs, targets = moved(image_batches(8), accelerator, torch.float32)[0]
    choice = choose_speed(config, Counting().to(accelerator), inputs, targets, steps=100)
    assert not choice.speed.cuda_graphs
