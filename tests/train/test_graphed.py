"""Training steps replayed from a recording."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cuda_tools import record_on_the_cpu
from torch import Tensor, nn

from fge.train import Learner, Speed, graphed
from fge.train.graphed import WARM_UP, GraphedPass, Recording


@pytest.fixture(autouse=True)
def recorded_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphed, "record", record_on_the_cpu)


def make_learner(speed: Speed) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Learner(model.train(), optimizer, speed, batch_size=6)


def batches(sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 4, generator=rng), torch.randint(0, 3, (n,), generator=rng)) for n in sizes
    ]


def test_replayed_steps_are_those_of_the_plain_loop() -> None:
    plain, replayed = make_learner(Speed()), make_learner(Speed(cuda_graphs=True))
    data = batches([6] * (WARM_UP + 2) + [5, 6, 2, 6])
    losses = [[learner.step(*batch) for batch in data] for learner in (plain, replayed)]
    # All losses are kept: none is overwritten by a later replay.
    assert torch.equal(torch.stack(losses[0]), torch.stack(losses[1]))
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, replayed.model.state_dict()[name]), name


def test_full_batches_are_replayed_and_others_are_not() -> None:
    computed: list[int] = []
    weight = nn.Parameter(torch.ones(3))

    def compute(batch: tuple[Tensor, ...]) -> Tensor:
        computed.append(len(batch[0]))
        loss = (batch[0] @ weight).square().mean()
        loss.backward()
        return loss.detach()

    step = GraphedPass(compute, [weight])
    replays: list[int] = []
    recorded = graphed.record

    def counting(work: Callable[[], Tensor], parameters: list[nn.Parameter]) -> Recording:
        recording = recorded(work, parameters)

        def replay() -> None:
            replays.append(len(computed))
            recording.replay()

        return recording._replace(replay=replay)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphed, "record", counting)
        for count in [4] * WARM_UP:
            step((torch.randn(count, 3),))
        assert replays == []
        for count in (4, 2, 4):
            weight.grad = None
            x = torch.randn(count, 3)
            loss = step((x,))
            # d/dw mean (x w)^2 = 2 x'(x w) / n
            expected = 2 * x.T @ (x @ weight.detach()) / count
            torch.testing.assert_close(weight.grad, expected)
            torch.testing.assert_close(loss, (x @ weight.detach()).square().mean())
    assert len(replays) == 2


def test_other_forms_of_batches_are_computed_as_usual() -> None:
    weight = nn.Parameter(torch.ones(2))

    def compute(batch: dict[str, Tensor]) -> Tensor:
        loss = F.mse_loss(batch["x"] @ weight, batch["y"])
        loss.backward()
        return loss.detach()

    step = GraphedPass(compute, [weight])
    batch = {"x": torch.eye(2), "y": torch.zeros(2)}
    losses = [float(step(batch)) for _ in range(WARM_UP + 3)]
    assert losses == [1.0] * (WARM_UP + 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    learner = make_learner(Speed(cuda_graphs=True))
    *first, last = batches([6] * (WARM_UP + 1))
    for batch in first:
        learner.step(*batch)
    with pytest.raises(RuntimeError):
        learner.step(*last)
