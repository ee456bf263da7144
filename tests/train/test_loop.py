"""The training loop against loops written out by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from fge.data import Normaliser, Split, TrainBatches
from fge.errors import DivergenceError
from fge.train import EndpointLR, EpochEnd, Learner, TriangularLR, train
from fge.train.schedules import triangular

Batch = tuple[Tensor, Tensor]
RATES = {"max_lr": 0.5, "min_lr": 0.1}


class ListOfBatches:
    """Batches held in a list, which remember the epochs they were told."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def make_model() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(4, 3, dtype=torch.float64)


def make_batches(*sizes: int) -> list[Batch]:
    rng = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, 4, generator=rng, dtype=torch.float64),
            torch.randint(0, 3, (size,), generator=rng),
        )
        for size in sizes
    ]


class NanAt:
    """A loss that is nan in one call, counted from 0."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.calls = 0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        bad = self.calls == self.step
        self.calls += 1
        return F.cross_entropy(logits, targets) * (math.nan if bad else 1.0)


def test_an_epoch_is_bitwise_the_loop_one_would_write() -> None:
    batches, model, plain = make_batches(5, 5, 3), make_model(), make_model()
    options = {"lr": 9.0, "momentum": 0.9, "weight_decay": 1e-2}
    optimizer = SGD(model.parameters(), **options)
    schedule = TriangularLR(optimizer, **RATES, cycle_steps=6)
    train(Learner(model, optimizer), schedule, batches, first_epoch=0, last_epoch=4)

    by_hand, step = SGD(plain.parameters(), **options), 0
    for _ in range(4):
        for inputs, targets in batches:
            by_hand.param_groups[0]["lr"] = triangular(step, **RATES, cycle_steps=6)
            by_hand.zero_grad()
            F.cross_entropy(plain(inputs), targets).backward()
            by_hand.step()
            step += 1
    assert torch.equal(model.weight, plain.weight)
    assert torch.equal(model.bias, plain.bias)
    assert schedule.last_epoch == step


def test_a_quadratic_shrinks_by_the_product_over_the_cycle() -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, 5.0)
    optimizer = SGD(model.parameters(), lr=9.0)
    learner = Learner(model, optimizer, loss_fn=lambda w, m: ((w - m) ** 2).sum() / 2)
    batch = (torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), 2.0, dtype=torch.float64))
    kept = []
    train(
        learner,
        TriangularLR(optimizer, max_lr=0.5, min_lr=0.1, cycle_steps=4),
        [batch] * 2,
        first_epoch=0,
        last_epoch=2,
        on_minimum=lambda epoch: kept.append((epoch, model.weight.item())),
    )
    assert model.weight.item() == pytest.approx(2 + 3 * 0.5 * 0.7 * 0.9 * 0.7, rel=1e-14)
    assert kept == [(1, pytest.approx(2 + 3 * 0.5 * 0.7, rel=1e-14))]


def test_minima_are_told_with_the_number_of_completed_epochs() -> None:
    model, told = make_model(), []
    optimizer = SGD(model.parameters(), lr=1.0)
    train(
        Learner(model, optimizer),
        TriangularLR(optimizer, **RATES, cycle_steps=6),  # 3 steps down: at steps 3, 9, 15
        make_batches(4, 4),
        first_epoch=0,
        last_epoch=8,
        on_minimum=told.append,
    )
    assert told == [1, 4, 7]
    told.clear()
    train(
        Learner(model, optimizer),
        TriangularLR(optimizer, **RATES, cycle_steps=8),  # 4 steps down: at steps 4, 12
        make_batches(4, 4),
        first_epoch=10,
        last_epoch=16,
        on_minimum=told.append,
    )
    assert told == [12, 16]


def test_the_training_loss_weighs_batches_by_their_images() -> None:
    batches, model, ends = make_batches(6, 6, 2), make_model(), []
    optimizer = SGD(model.parameters(), lr=0.0)  # the weights stay
    with torch.no_grad():
        losses = [float(F.cross_entropy(model(x), y)) for x, y in batches]
    train(
        Learner(model, optimizer),
        EndpointLR(optimizer, epochs=2, steps_per_epoch=3),
        batches,
        first_epoch=0,
        last_epoch=2,
        on_epoch=ends.append,
    )
    weighted = float(np.average(losses, weights=[6, 6, 2]))
    assert abs(weighted - np.mean(losses)) > 1e-3, "the two differ here"
    assert ends == [EpochEnd(e, pytest.approx(weighted, rel=1e-14), 14) for e in (0, 1)]


def test_the_mean_loss_of_a_long_epoch_counts_every_step_once() -> None:
    batches, model, ends = make_batches(*[2] * 120, 1), make_model(), []
    optimizer = SGD(model.parameters(), lr=0.0)
    with torch.no_grad():
        total = sum(float(F.cross_entropy(model(x), y, reduction="sum")) for x, y in batches)
    train(
        Learner(model, optimizer),
        EndpointLR(optimizer, epochs=1, steps_per_epoch=121),
        batches,
        first_epoch=0,
        last_epoch=1,
        on_epoch=ends.append,
    )
    assert ends == [EpochEnd(0, pytest.approx(total / 241, rel=1e-12), 241)]


def test_a_last_batch_of_a_single_image_is_left_out() -> None:
    def sizes(count: int) -> list[int]:
        split = Split(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), torch.zeros(count).long())
        normaliser = Normaliser([0.0], [1.0], torch.device("cpu"))
        batches = TrainBatches(split, normaliser, 4, seed=0)
        found = [len(targets) for _, targets in batches]
        assert len(batches) == len(found)
        return found

    assert [sizes(count) for count in (8, 9, 10)] == [[4, 4], [4, 4], [4, 4, 2]]


def test_batch_norm_trains_on_a_split_that_leaves_a_single_image_over() -> None:
    images = torch.arange(9 * 4, dtype=torch.uint8).view(9, 1, 2, 2)
    split = Split(images, torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 0]))
    normaliser = Normaliser([17.5], [10.0], torch.device("cpu"))
    model, ends = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2)), []
    optimizer = SGD(model.parameters(), lr=0.1)
    train(
        Learner(model, optimizer),
        EndpointLR(optimizer, epochs=1, steps_per_epoch=2),
        TrainBatches(split, normaliser, 4, seed=0),
        first_epoch=0,
        last_epoch=1,
        on_epoch=ends.append,
    )
    assert ends[0].images == 8
    assert int(model[1].num_batches_tracked) == 2


def test_each_epoch_is_told_to_the_batches_and_trained_in_training_mode() -> None:
    model, modes = make_model(), []
    model.register_forward_hook(lambda module, _inputs, _output: modes.append(module.training))
    optimizer = SGD(model.parameters(), lr=0.1)
    batches = ListOfBatches(make_batches(4, 4))
    train(
        Learner(model, optimizer),
        EndpointLR(optimizer, epochs=9, steps_per_epoch=2),
        batches,
        first_epoch=3,
        last_epoch=6,
        on_epoch=lambda _end: model.eval() and None,
    )
    assert batches.epochs == [3, 4, 5]
    assert modes == [True] * 6


def dropout_run(parts: list[tuple[int, int]], seed: int = 0) -> Tensor:
    model = nn.Sequential(nn.Dropout(0.5), make_model())
    optimizer = SGD(model.parameters(), lr=0.1)
    schedule = EndpointLR(optimizer, epochs=9, steps_per_epoch=2)
    for first, last in parts:
        torch.rand(first)  # what else a program may draw
        train(
            Learner(model, optimizer),
            schedule,
            make_batches(4, 4),
            first_epoch=first,
            last_epoch=last,
            seed=seed,
        )
    return model[1].weight.detach()


def test_training_goes_on_from_the_end_of_any_epoch_with_the_same_dropout() -> None:
    whole = dropout_run([(0, 4)])
    assert torch.equal(dropout_run([(0, 1), (1, 4)]), whole)
    assert not torch.equal(dropout_run([(0, 4)], seed=1), whole)


@pytest.mark.parametrize("step", [0, 7, 9, 10, 19])
def test_divergence_names_the_step_and_its_learning_rate(step: int) -> None:
    model, kept = make_model(), []
    optimizer = SGD(model.parameters(), lr=1.0)
    schedule = TriangularLR(optimizer, **RATES, cycle_steps=20)
    learner = Learner(model, optimizer, loss_fn=NanAt(step))
    rate = triangular(step, **RATES, cycle_steps=20)
    message = rf"^the loss is nan at step {step} with learning rate {rate:g}; lower the learning"
    with pytest.raises(DivergenceError, match=message):
        train(
            learner,
            schedule,
            make_batches(*[4] * 5),
            first_epoch=0,
            last_epoch=4,
            on_minimum=kept.append,
        )
    assert kept == ([2] if step >= 10 else []), "no snapshot behind the bad step"


def test_steps_are_counted_from_the_beginning_of_the_run_when_going_on() -> None:
    model = make_model()
    optimizer = SGD(model.parameters(), lr=1.0)
    with pytest.raises(DivergenceError, match=r"at step 33 with learning rate 1;"):
        train(
            Learner(model, optimizer, loss_fn=NanAt(3)),
            EndpointLR(optimizer, epochs=99, steps_per_epoch=5),
            make_batches(*[4] * 5),
            first_epoch=6,
            last_epoch=9,
        )


def test_divergence_is_noticed_long_before_a_long_epoch_ends() -> None:
    model, loss = make_model(), NanAt(60)
    optimizer = SGD(model.parameters(), lr=1.0)
    with pytest.raises(DivergenceError, match="at step 60 "):
        train(
            Learner(model, optimizer, loss_fn=loss),
            EndpointLR(optimizer, epochs=9, steps_per_epoch=300),
            make_batches(*[2] * 300),
            first_epoch=0,
            last_epoch=1,
        )
    assert loss.calls <= 110


def test_no_epoch_is_reported_that_diverged() -> None:
    model, ends = make_model(), []
    optimizer = SGD(model.parameters(), lr=1.0)
    with pytest.raises(DivergenceError, match="at step 9 "):
        train(
            Learner(model, optimizer, loss_fn=NanAt(9)),
            EndpointLR(optimizer, epochs=9, steps_per_epoch=5),
            make_batches(*[2] * 5),
            first_epoch=0,
            last_epoch=3,
            on_epoch=ends.append,
        )
    assert [end.epoch for end in ends] == [0]


def test_a_huge_learning_rate_diverges_at_the_step_where_a_plain_loop_does() -> None:
    def build() -> tuple[nn.Linear, SGD]:
        model = nn.Linear(4, 1, dtype=torch.float64)
        nn.init.ones_(model.weight)
        nn.init.zeros_(model.bias)
        return model, SGD(model.parameters(), lr=1e30)

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs[:, 0], targets.double())

    batches = make_batches(*[4] * 9)
    model, optimizer = build()
    diverged = None
    for step, (inputs, targets) in enumerate(batches):
        loss = loss_fn(model(inputs), targets)
        if not math.isfinite(loss.item()):
            diverged = (step, loss.item())
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert diverged is not None
    assert diverged[0] > 2

    model, optimizer = build()
    message = rf"the loss is {diverged[1]} at step {diverged[0]} with learning rate 1e\+30;"
    with pytest.raises(DivergenceError, match=message):
        train(
            Learner(model, optimizer, loss_fn=loss_fn),
            EndpointLR(optimizer, epochs=9, steps_per_epoch=9),
            batches,
            first_epoch=0,
            last_epoch=1,
        )


def test_weights_that_the_last_step_ruined_are_not_kept() -> None:
    def loss_fn(outputs: Tensor, _targets: Tensor) -> Tensor:
        return (outputs * 0).sum().sqrt()  # 0, with an infinite slope: the weights become nan

    model, kept = make_model(), []
    optimizer = SGD(model.parameters(), lr=1.0)
    with pytest.raises(DivergenceError):
        train(
            Learner(model, optimizer, loss_fn=loss_fn),
            TriangularLR(optimizer, **RATES, cycle_steps=2),
            make_batches(4),
            first_epoch=0,
            last_epoch=1,
            on_minimum=kept.append,
        )
    assert kept == []


def test_infinite_numbers_that_are_not_trained_are_no_divergence() -> None:
    """An attention mask may be a parameter that is frozen."""
    model, kept = make_model(), []
    model.mask = nn.Parameter(torch.tensor([-torch.inf]), requires_grad=False)
    optimizer = SGD(model.parameters(), lr=0.1)
    train(
        Learner(model, optimizer),
        TriangularLR(optimizer, **RATES, cycle_steps=2),
        make_batches(4),
        first_epoch=0,
        last_epoch=1,
        on_minimum=kept.append,
    )
    assert kept == [1]
